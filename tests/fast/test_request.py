"""What a language model is asked: within its budget, the worst first, nothing twice."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.fast.reflect import Job
from fst_jax.fast.request import FAILED_SHARE, Wording, worst_first
from fst_jax.rollout.rollouts import Rollout
from fst_jax.tasks.task import Problem, Score
from tests.fast.policy import question, rollout


def words(text: str) -> int:
    return len(text.split())


def seen(question: str, text: str, reward: float, kind: str = "kind") -> Rollout:
    score = Score(reward, f"Feedback on {text}", kind)
    return rollout(Problem(question, question, "gold"), "Answer.", text, score)


def wording(recipe="light", budget=4000) -> Wording:
    return Wording(recipe, 300, budget, words, question)


def test_everything_that_an_edit_needs() -> None:
    job = Job("Answer.", [seen("What is 1?", "one", 0.0), seen("What is 2?", "two", 1.0)])
    light, full = (wording(recipe).request(job)[0] for recipe in ("light", "full"))
    for text in (light, full):
        for part in ("Answer.", "What is 1?", "one", "Feedback on one", "score 0", "score 1"):
            assert part in text
        assert "1 of all 2 answers were perfect; the others by kind: kind (1)." in text
        assert "about 300 words" in text
    assert "Change as little as possible" in light and "edited prompt" in light
    assert "Change as little as possible" not in full and "new prompt" in full


def test_a_merge_shows_both_prompts_with_their_answers() -> None:
    job = Job(
        "Be brief.", [seen("What is 1?", "won", 0.0)], "Be exact.", [seen("What is 1?", "one", 1.0)]
    )
    text, _ = wording().request(job)
    order = ["Be brief.", "Answer: won", "Be exact.", "Answer: one", "merged prompt"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)


@pytest.mark.parametrize("partner", [None, "Use:\n`````\nmore\n`````"])
def test_fences_are_longer_than_any_within(partner: str | None) -> None:
    text, asked = wording().request(Job("Use:\n```\ncode\n```", [], partner))
    fence = "`" * (4 if partner is None else 6)
    assert f"{fence}\nUse:\n```\ncode\n```\n{fence}" in text
    assert text.endswith(fence) and f"{fence}`" not in text and asked == fence


def test_braces_are_text() -> None:
    job = Job(r"Use \boxed{path} {0}", [seen("{question}", "{answer}", 0.0)], "{partner}")
    text, _ = wording().request(job)
    assert all(part in text for part in (r"Use \boxed{path} {0}", "{question}", "{partner}"))


def test_the_worst_come_first_and_no_answer_twice() -> None:
    rollouts = [
        seen("a", "fine", 1.0, "correct"),
        seen("b", "half", 0.5, "part"),
        seen("c", "long", 0.0, "length"),
        seen("d", "long", 0.0, "length"),
        seen("d", " long\n", 0.0, "length"),  # the same again
        seen("e", "odd", 0.0, "form"),
        seen("f", "long", 0.0, "length"),
    ]
    ranked = [(r.problem.id, r.score.category) for r in worst_first(rollouts)]
    assert ranked == [
        *(("c", "length"), ("e", "form"), ("d", "length"), ("f", "length")),
        *(("b", "part"), ("a", "correct")),
    ]


texts = st.integers(0, 400).map(lambda n: "word " * n)


@given(
    st.lists(st.tuples(texts, texts, st.sampled_from([0.0, 0.5, 1.0])), max_size=30),
    st.integers(100, 3000),
)
def test_the_budget_holds_for_any_rollouts(entries, budget: int) -> None:
    rollouts = [
        seen(f"{i} {question}", f"{i} {answer}", reward)
        for i, (question, answer, reward) in enumerate(entries)
    ]
    bare = words(wording(budget=budget).request(Job("Answer.", []))[0])
    tally = 30  # words at most
    text, _ = wording(budget=budget).request(Job("Answer.", rollouts))
    assert words(text) - bare <= budget + tally
    if any(reward < 1 for *_, reward in entries):  # the worst is always there
        worst = min(reward for *_, reward in entries)
        assert f"Example 1, score {worst:g}\n" in text
    # Failures leave room for what worked.
    scores = Counter(line.split("score ")[1] for line in text.splitlines() if "score " in line)
    fits = 3 * (int(0.1 * budget) + 1) + 10 <= (1 - FAILED_SHARE) * budget
    if fits and any(reward == 1 for *_, reward in entries):
        assert scores["1"] > 0


def test_a_cut_keeps_the_beginning_and_the_end() -> None:
    text = " ".join(str(i) for i in range(2000))
    shown, _ = wording(budget=1000).request(Job("Answer.", [seen(text, "x" * 50_000, 0.0)]))
    cut = shown.split("Question: ")[1].split("\nAnswer:")[0]
    assert cut.startswith("0 1 2 ") and cut.endswith(" 1998 1999")
    assert " […] " in cut and 60 <= words(cut) <= 100
    # A budget in characters where every character is a token.
    letters = Wording("light", 300, 1000, len, question).request(
        Job("Answer.", [seen("q", "x" * 9999, 0.0)])
    )[0]
    assert letters.count("x") < 200


def test_failures_leave_room_for_what_worked() -> None:
    rollouts = [seen(f"{i}", "wrong " * 60, 0.0) for i in range(50)]
    text, _ = wording(budget=1000).request(Job("Answer.", [*rollouts, seen("x", "right", 1.0)]))
    assert "Answer: right" in text
    assert 700 < sum(words(line) for line in text.splitlines() if "wrong " in line) < 800


def test_a_problem_is_shown_as_it_is_asked() -> None:
    with_options = Wording("light", 300, 4000, words, lambda problem: f"{problem.question} A or B?")
    text, _ = with_options.request(Job("Answer.", [seen("Which one?", "A", 0.0)]))
    assert "Question: Which one? A or B?" in text

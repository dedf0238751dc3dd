"""The rules reflector: one incremental edit, from the failure seen most often."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fst_jax.fast.reflect import Job
from fst_jax.fast.rules import RulesReflector
from fst_jax.rollout.rollouts import Rollout
from fst_jax.tasks.task import Problem, Score
from tests.fast.policy import rollout


def words(text: str) -> int:
    return len(text.split())


def seen(category: str, advice: str, reward: float = 0.0) -> Rollout:
    score = Score(reward, f"{advice}\nThis answer: 7 is wrong.", category)
    return rollout(Problem("1", "question", "answer"), "", "text", score)


def edits(parent: str, rollouts: list[Rollout], limit: int = 100) -> list[str]:
    """What 200 seeds propose; "" for a refusal."""
    reflector = RulesReflector(words, limit)
    return [
        reflector.propose([Job(parent, rollouts)], random.Random(seed))[0].text
        for seed in range(200)
    ]


FAILED = [seen("format", "Use a box.")] * 3 + [seen("path", "Start at the end.")] * 2


def test_the_most_frequent_failure_is_addressed_with_every_kind_of_edit() -> None:
    found = Counter(edits("First.\nSecond.", FAILED))
    assert set(found) == {
        "First.\nSecond.\nUse a box.",
        "Use a box.\nFirst.\nSecond.",
        "Use a box.\nSecond.",
        "First.\nUse a box.",
        "First.",
        "Second.",
        "Second.\nFirst.",
    }
    assert found.most_common(1)[0][0] == "First.\nSecond.\nUse a box."


def test_advice_that_stands_gives_way_to_the_next_category() -> None:
    found = edits("use  a box", FAILED)
    assert all("Start at the end." in text for text in found)
    # The standing advice did not help, so it is what a replacement takes out.
    found = edits("First.\nUse a box.\nThird.", FAILED)
    replaced = {text for text in found if words(text) == words("First. Start at the end. Third.")}
    assert replaced == {"First.\nStart at the end.\nThird."}


def test_with_all_advice_standing_or_no_failure_lines_are_removed_or_moved() -> None:
    for parent, rollouts in (
        ("Use a box.\nStart at the end.", FAILED),
        ("Use a box.\nStart at the end.", [seen("correct", "Keep going.", 1.0)] * 4),
    ):
        assert set(edits(parent, rollouts)) == {
            "Use a box.",
            "Start at the end.",
            "Start at the end.\nUse a box.",
        }


def test_nothing_to_edit() -> None:
    reflector = RulesReflector(words, 100)
    [proposal] = reflector.propose([Job("One line.", [])], random.Random(0))
    assert proposal.refusal == "nothing to edit" and proposal.calls == 0
    assert edits("", FAILED)[0] == "Use a box."


def test_within_a_category_frequent_advice_is_likelier_and_ties_are_fair() -> None:
    mixed = [seen("format", "Often.")] * 3 + [seen("format", "Rarely.")]
    found = Counter(edits("", mixed))
    assert found["Often."] > found["Rarely."] > 0
    tied = [seen("a", "From a."), seen("b", "From b.")]
    found = Counter(edits("", tied))
    assert min(found["From a."], found["From b."]) > 60


def test_a_full_prompt_is_edited_in_place() -> None:
    found = edits("First line.\nSecond line.", FAILED, limit=5)
    assert "First line.\nUse a box." in found
    assert all(text and words(text) <= 5 for text in found)


def test_the_other_lines_stay_as_they_are() -> None:
    parent = "First.\n\n  - indented\n"
    found = set(edits(parent, FAILED))
    assert {"First.\n\n  - indented\nUse a box.", "First.\n\nUse a box."} <= found
    assert all("\n" in text for text in found)


@given(
    st.lists(st.sampled_from([f"Line {i}." for i in range(6)]), unique=True, max_size=5),
    st.lists(
        st.builds(seen, st.sampled_from("abc"), st.sampled_from([f"Line {i}." for i in range(9)])),
        max_size=8,
    ),
    st.integers(),
)
def test_an_edit_is_one_step_and_never_says_a_thing_twice(lines, rollouts, seed) -> None:
    job = Job("\n".join(lines), rollouts)
    reflector = RulesReflector(words, 12)
    [proposal] = reflector.propose([job], random.Random(seed))
    assert [proposal] == reflector.propose([job], random.Random(seed))
    if proposal.refusal:
        return
    edited = proposal.text.splitlines()
    assert edited != lines and words(proposal.text) <= 12
    assert len(set(edited)) == len(edited)
    added, removed = set(edited) - set(lines), set(lines) - set(edited)
    assert len(added) <= 1 and len(removed) <= 1
    assert added <= {r.score.feedback.splitlines()[0] for r in rollouts}


def test_a_rewrite_has_all_advice_and_all_lines_in_any_order() -> None:
    reflector = RulesReflector(words, 100, "full")
    job = Job("First.\nuse a box", FAILED)
    found = {reflector.propose([job], random.Random(seed))[0].text for seed in range(100)}
    assert len(found) > 3
    for text in found:
        lines = {line.casefold().rstrip(".") for line in text.splitlines()}
        assert lines == {"first", "use a box", "start at the end"}
        assert len(text.splitlines()) == 3
    short = RulesReflector(words, 5, "full")
    assert all(words(short.propose([job], random.Random(i))[0].text) <= 5 for i in range(20))
    [proposal] = reflector.propose([Job("One line.", [])], random.Random(0))
    assert proposal.refusal == "nothing to edit"


def test_a_merge_is_the_parent_and_what_its_partner_has_more() -> None:
    reflector = RulesReflector(words, 6)

    def merged(parent: str, partner: str) -> str | None:
        [proposal] = reflector.propose([Job(parent, FAILED, partner)], random.Random(0))
        return proposal.text or proposal.refusal

    assert merged("First.\nSecond.", "second\nThird.") == "First.\nSecond.\nThird."
    assert merged("First.", " first ") == "nothing to merge"
    # As much as fits, of the partner alone.
    assert merged("A a a.", "B b b b.\nC c c.\nD.") == "A a a.\nC c c."

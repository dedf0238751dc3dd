"""The library's data sets as tasks: real problems, gold answers, every category."""

import sys

import pytest

from fst_jax.config import TaskSettings
from fst_jax.errors import TaskError
from fst_jax.tasks.reasoning_gym import Library, ReasoningGym
from fst_jax.tasks.registry import load_task

pytest.importorskip("reasoning_gym", reason="pip install 'fst_jax[tasks]' to test reasoning-gym")


def load(dataset, **options):
    options = {"train_size": 40, "test_size": 10, **options}
    return load_task(
        TaskSettings(name="reasoning_gym", options={"dataset": dataset, **options}, timeout_s=5.0)
    )


class InThisProcess:
    """Stands in for `Workers` where a new process for each data set would only cost time."""

    def __init__(self, factory, folder, *arguments):
        self.library = Library(*arguments)

    def call(self, method, *arguments, timeout_s):
        return getattr(self.library, method)(*arguments)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr("fst_jax.tasks.reasoning_gym.Workers", InThisProcess)


@pytest.fixture(scope="module")
def codeio():
    return load("codeio")


def test_codeio_asks_for_outputs_and_accepts_gold(codeio):
    assert codeio.kind.name == "JSON"
    for problem in [*codeio.problems("test"), *codeio.problems("train")]:
        assert "predict the output" in problem.question
        assert codeio.score(problem, f"So <answer>{problem.answer}</answer>").reward == 1.0


def test_codeio_accepts_any_spacing_of_the_same_value(codeio):
    problem = next(p for p in codeio.problems("train") if ", " in p.answer and '"' not in p.answer)
    fenced = "```json\n" + problem.answer.replace(", ", ",") + "\n```"
    assert codeio.score(problem, fenced).category == "correct"


def test_files_that_codeio_writes_stay_out_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = load("codeio", train_size=100)
    assert len(task.problems("train")[:]) == 100
    assert not list(tmp_path.iterdir())


def test_codeio_is_the_same_in_every_process(codeio):
    again = load("codeio")
    for split in ("train", "test"):
        for one, other in zip(codeio.problems(split), again.problems(split), strict=True):
            assert (one.id, one.question, one.answer) == (other.id, other.question, other.answer)


@pytest.mark.parametrize(
    ("dataset", "kind"),
    [
        ("syllogism", "choice"),
        ("chain_sum", "whole number"),
        ("decimal_chain_sum", "number"),
        ("rotate_matrix", "several lines"),
        ("spell_backward", "text"),
        ("word_ladder", "text"),
        ("acre", "choice"),
    ],
)
def test_gold_answers_score_one(here, dataset, kind):
    task = load(dataset)
    assert task.kind.name == kind
    for problem in [*task.problems("test"), *task.problems("train")[:10]]:
        assert task.score(problem, f"<answer>{problem.answer}</answer>").reward == 1.0
    bare = task.problems("test")[0]
    assert task.score(bare, bare.answer).category == "correct"


def test_every_category(here):
    seen = {}

    def look(task, text, problem=None):
        score = task.score(problem or task.problems("train")[0], text)
        assert len(score.feedback.split("\n")) >= 3
        seen[score.category] = score.reward
        return score

    syllogism = load("syllogism", train_size=5)
    problem = syllogism.problems("train")[0]
    wrong = {"Yes": "No", "No": "Yes"}[problem.answer]
    assert "Expected: " + problem.answer in look(syllogism, problem.answer).feedback
    look(syllogism, wrong)
    look(syllogism, "<think>hm")
    assert "No, Yes" in look(syllogism, "perhaps").feedback.split("\n")[0]
    look(load("prime_factorization"), "nonsense")
    palindrome = load("word_sorting")
    words = palindrome.problems("train")[0].answer.split(", ")
    look(palindrome, ", ".join([words[1], words[0], *words[2:]]))
    gcd = load("gcd")
    problem = next(p for p in gcd.problems("train") if p.answer != "1")
    look(gcd, f"It is {problem.answer}", problem)
    assert set(seen) == {
        "correct",
        "no answer",
        "wrong answer",
        "wrong format",
        "partly right",
        "unreadable answer",
    }
    assert seen.pop("correct") == 1.0
    assert all(0.0 <= reward < 1.0 for reward in seen.values())


def test_a_scorer_that_hangs_on_the_models_text_is_stopped():
    task = load("polynomial_multiplication", train_size=2, test_size=2)
    task._timeout_s = 0.5
    problem = task.problems("train")[0]
    score = task.score(problem, "9**9**9**9")
    assert (score.reward, score.category) == (0.0, "timeout")
    task._timeout_s = 10.0
    assert task.score(problem, problem.answer).reward == 1.0


def test_a_constant_reward_for_any_text_is_nothing(here):
    task = load("color_cube_rotation")
    assert task.score(task.problems("train")[0], "the sky").reward == 0.0


def test_nonsense_outside_a_closed_set_earns_nothing(here):
    task = load("game_of_life_halting")
    assert task.kind.name == "choice"
    assert {task.score(p, "zzz").reward for p in task.problems("train")} == {0.0}


def test_splits_are_disjoint_where_questions_repeat(here):
    task = load("coin_flip", train_size=300, test_size=60)
    test = [problem.question for problem in task.problems("test")]
    assert len(set(test)) == 60
    assert not set(test) & {problem.question for problem in task.problems("train")}


def test_neighbouring_seeds_share_no_problems(here):
    one, two = (load("chain_sum", seed=seed) for seed in (0, 1))
    questions = [{p.question for p in task.problems("train")} for task in (one, two)]
    assert not questions[0] & questions[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "coinflip"}, "did you mean coin_flip"),
        ({"dataset": "gcd", "parameters": {"num": 1}}, "no parameter 'num'; it has"),
        ({"dataset": "gcd", "parameters": {"min_value": -5}}, "refused data set gcd"),
        ({"dataset": "gcd", "parameters": {"size": 5}}, "no parameter 'size'"),
        ({"dataset": "gcd", "test_size": 0}, "test_size must be at least 1"),
        ({}, "reasoning_gym needs dataset"),
    ],
)
def test_mistakes_are_named(here, options, message):
    with pytest.raises(TaskError, match=message):
        load_task(TaskSettings(name="reasoning_gym", options=options))


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(TaskError, match=r"pip install 'fst_jax\[tasks\]'"):
        Library("gcd", 10, 0, {})


def test_advice_varies_between_problems(here):
    task = ReasoningGym("chain_sum", train_size=30, test_size=2)
    lines = {task.score(p, "").feedback.split("\n")[0] for p in task.problems("train")}
    assert len(lines) == 2

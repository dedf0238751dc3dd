"""Every scorer on random answers: it never raises, and its rewards stay in [0, 1]."""

from dataclasses import replace
from importlib.util import find_spec

import pytest

from fst_jax.tasks.fuzz import forms, random_answers
from fst_jax.tasks.judge import judge_all
from fst_jax.tasks.registry import BUILT_IN, load_task
from fst_jax.tasks.scorers import SCORERS
from tests.task_samples import sample_settings

NEEDS = {
    "math": "math_verify",
    "hover": "bm25s",
    "tfds": "tensorflow_datasets",
    "code_io": "reasoning_gym",
    "reasoning_gym": "reasoning_gym",
}
FORMS = {"math": "boxed", "star_graph": "boxed", "hover": "fenced"}
TASKS = [*BUILT_IN, *(f"jsonl/{scorer}" for scorer in SCORERS)]


def fuzz(name, folder, count, timeout_s):
    name, _, scorer = name.partition("/")
    library = NEEDS.get(name)
    if library and find_spec(library) is None:
        pytest.skip(f"{library} is not installed: pip install 'fst_jax[tasks]'")
    settings = replace(sample_settings(name, folder), timeout_s=timeout_s)
    if scorer:
        settings.options["scorer"] = scorer
    task = load_task(settings)
    problems = task.problems("train")[:16]
    answers = list(random_answers(problems, count, seed=1))
    form = FORMS.get(name, "in answer tags")
    answers[1::2] = [forms(text)[form] for text in answers[1::2]]  # past the reading of the form
    asked = [(problems[i % len(problems)], text) for i, text in enumerate(answers)]
    scores = judge_all(task, asked)  # raises if the task does, or if a reward is outside [0, 1]
    assert len(scores) == count
    for score in scores:
        assert isinstance(score.reward, float)
        assert score.category and score.feedback.strip().partition("\n")[0]
        assert isinstance(score.feedback, str)
    rewards = {score.reward for score in scores}
    categories = {score.category for score in scores}
    # A follow-up query is seldom right by chance, and the small world has formats of its own.
    small = name.startswith("tiny_")
    assert rewards - {0.0} or small or name in ("hover", "reasoning_gym")
    assert 1 + (not small) <= len(categories) < 20
    again = judge_all(task, asked[:100])
    late = {"timeout", "scorer crashed"}
    for one, other in zip(scores, again, strict=False):
        assert one == other or {one.category, other.category} & late


@pytest.mark.parametrize("name", TASKS)
def test_a_few_hundred_random_answers(name, tmp_path):
    fuzz(name, tmp_path, 300, timeout_s=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_ten_thousand_random_answers(name, tmp_path):
    fuzz(name, tmp_path, 10_000, timeout_s=1.0)


def test_random_answers_are_the_same_for_the_same_seed(tmp_path):
    problems = load_task(sample_settings("jsonl", tmp_path)).problems("train")[:5]
    one, same, other = (list(random_answers(problems, 50, seed)) for seed in (3, 3, 4))
    assert one == same != other
    assert len(set(one)) > 45

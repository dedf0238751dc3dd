"""The three small-world tasks: problems, rewards and the quality of their advice."""

import pytest

from fst_jax.config import TaskSettings
from fst_jax.errors import TaskError
from fst_jax.small_world.instructions import FORMATS, wordings
from fst_jax.small_world.questions import KINDS, wrap
from fst_jax.tasks.registry import load_task

NAMES = [f"tiny_{kind}" for kind in KINDS]


def _task(name, **options):
    return load_task(TaskSettings(name=name, options=options))


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def _advice(task, problem, text):
    return task.score(problem, text).feedback.partition("\n")[0]


def test_splits_do_not_overlap_and_stay_the_same(name):
    task, again = _task(name, train_size=300), _task(name, train_size=300)
    train, test = (list(task.problems(split)) for split in ("train", "test"))
    assert list(again.problems("train")) == train
    assert not {p.question for p in train} & {p.question for p in test}
    assert [p.question for p in _task(name, seed=1).problems("test")] != [p.question for p in test]


def test_hard_problems_are_longer(name):
    usual, hard = (_task(name, hard=hard).problems("test")[0] for hard in (False, True))
    assert len(hard.question.split()) > len(usual.question.split())


@pytest.mark.parametrize("format", [None, *FORMATS])
def test_only_the_right_answer_in_the_demanded_format_is_rewarded(name, format):
    task = _task(name, answer_format=format)
    kind = KINDS[task.kind]
    for problem in task.problems("test")[:8]:
        for written in FORMATS:
            score = task.score(problem, wrap(problem.answer, written))
            right = written == (format or kind.format)
            assert score.reward == right
            assert score.category == ("correct" if right else "wrong format")
        assert task.score(problem, "").category == "no answer"
        wrong = wrap("60", format or kind.format)
        assert task.score(problem, wrong).category == "no steps"
        assert task.score(problem, f"{kind.opening} {wrong}").category == "no steps"
        assert task.score(problem, f"step {wrong}").category == "wrong steps"
        assert task.score(problem, wrong).reward == 0


def test_full_advice_is_against_what_went_wrong(name):
    task = _task(name)
    kind = KINDS[task.kind]
    for problem in task.problems("test"):
        assert _advice(task, problem, "") in wordings(kind.format)
        assert _advice(task, problem, wrap("60", kind.format)) in wordings(kind.good)


def test_vague_and_random_advice_do_not_depend_on_what_went_wrong(name):
    kind = KINDS[name.removeprefix("tiny_")]
    told = {}
    for feedback in ("full", "vague", "random"):
        task = _task(name, feedback=feedback)
        told[feedback] = {_advice(task, p, "") for p in task.problems("test")}
    useful = set(wordings(kind.format)) | set(wordings(kind.good))
    assert told["full"] <= useful
    assert not told["vague"] <= useful and not told["random"] <= useful
    assert not told["vague"] & set(wordings("remark"))
    assert told["random"] & set(wordings("remark"))


@pytest.mark.parametrize(
    "options", [{"answer_format": "angle"}, {"seed": -1}, {"feedback": "loud"}, {"train_size": 0}]
)
def test_wrong_options_are_refused(name, options):
    with pytest.raises(TaskError):
        _task(name, **options)

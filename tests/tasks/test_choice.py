"""Multiple choice: what counts as choosing, and the forms of the data."""

import pytest

from fst_jax.config import TaskSettings
from fst_jax.errors import TaskError
from fst_jax.tasks.choice import ADVICE, Choice
from fst_jax.tasks.registry import load_task
from tests.task_samples import SCIKNOWEVAL, write_jsonl


@pytest.fixture
def task(tmp_path):
    path = write_jsonl(tmp_path / "sciknoweval.jsonl", SCIKNOWEVAL)
    options = {"train": path, "test_size": 5, "domain": "Physics"}
    return load_task(TaskSettings(name="choice", options=options))


def test_sciknoweval(task):
    train, test = task.problems("train"), task.problems("test")
    assert (len(train), len(test)) == (13, 5)  # the open question and chemistry are left out
    problem = train[0]
    (message,) = task.render(problem)
    lines = message["content"].split("\n")
    assert lines[0] == problem.question and lines[1] == ""
    assert [line[:3] for line in lines[2:]] == ["A. ", "B. ", "C. ", "D. "]
    assert task.score(problem, "<answer>B</answer>").reward == 1.0


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("Speed times time. <answer>B</answer>", "correct"),
        ("<answer>\n b \n</answer>", "correct"),
        ("<answer>(B)</answer>", "correct"),
        ("<answer>B. {right}</answer>", "correct"),
        ("<answer>{right}</answer>", "correct"),
        ("<answer>A</answer> no: <answer>B</answer>", "correct"),
        ("<think><answer>C</answer></think><answer>B</answer>", "correct"),
        ("<answer>C</answer>", "wrong choice"),
        ("<answer>C. {right}</answer>", "not a choice"),
        ("<answer>A or B</answer>", "not a choice"),
        ("<answer>Both</answer>", "not a choice"),
        ("<answer>E</answer>", "not a choice"),
        ("<answer>B and C</answer>", "not a choice"),
        ("<answer></answer>", "no answer"),
        ("The answer is B.", "no answer"),
        ("<think><answer>B</answer>", "no answer"),
        ("", "no answer"),
    ],
)
def test_categories(task, text, category):
    problem = task.problems("train")[0]
    right = problem.data["choices"]["B"]
    score = task.score(problem, text.replace("{right}", right))
    assert (score.category, score.reward) == (category, float(category == "correct"))
    first, *rest = score.feedback.split("\n")
    assert first in ADVICE[category] and rest
    if category in ("wrong choice", "not a choice"):
        assert f"Expected: B. {right}" in score.feedback


def test_plain_lists_with_a_number_or_letter(tmp_path):
    rows = [
        {"question": "2+2?", "choices": ["3", "4"], "answer": 1},
        {"question": "2+3?", "choices": ["5", "4", "6"], "answer": "A"},
        {
            "question": "2+4?",
            "choices": {"label": ["1", "2"], "text": ["6", "8"]},
            "answerKey": "1",
        },
    ]
    task = Choice(write_jsonl(tmp_path / "mmlu.jsonl", rows), test_size=1)
    answers = {p.question: p.answer for s in ("train", "test") for p in task.problems(s)}
    assert answers == {"2+2?": "B", "2+3?": "A", "2+4?": "1"}


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"question": "?", "choices": ["a"], "answer": "E"}, {}, "the answer 'E' is none of A"),
        ({"choices": ["a"], "answer": 0}, {}, "no field 'question'"),
        ({"question": "  ", "choices": ["a"], "answer": 0}, {}, "must be a text"),
        ({"question": "?", "choices": ["a"], "answer": 0}, {"domain": "Law"}, "the 0 problems"),
    ],
)
def test_mistakes_are_named(tmp_path, row, options, message):
    path = write_jsonl(tmp_path / "t.jsonl", [row])
    with pytest.raises(TaskError, match=message):
        Choice(path, test_size=1, **options)

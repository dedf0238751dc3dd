"""A data set of TensorFlow Datasets as a task, its columns mapped by templates."""

import pytest

from fst_jax.config import TaskSettings
from fst_jax.errors import TaskError
from fst_jax.tasks.registry import load_task
from tests.task_samples import write_tfds

pytest.importorskip("tensorflow_datasets", reason="pip install 'fst_jax[tasks]' to test tfds")


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    return write_tfds(tmp_path_factory.mktemp("tfds"))


def load(builder, **options):
    return load_task(TaskSettings(name="tfds", options={"builder": builder, **options}))


def test_columns_become_question_and_answer(builder):
    task = load(builder, question="{hint}\n\n{question}", answer="{parity}", scorer="contains")
    train, test = task.problems("train"), task.problems("test")
    assert (len(train), len(test)) == (40, 10)
    assert len({p.id for p in [*train, *test]}) == 50
    for problem in [*train, *test]:
        (message,) = task.render(problem)
        hint, question = message["content"].split("\n\n")
        assert hint == "Look at the last digit."
        n = int(question.split()[1])
        assert problem.answer == ("even", "odd")[n % 2]
        assert task.score(problem, f"It is {problem.answer}.").reward == 1.0
        assert task.score(problem, "It is both.").category == "wrong answer"


def test_values_that_are_no_text_are_json(builder):
    task = load(builder, answer="{digits}", scorer="json", train_split="train[:5]")
    problem = task.problems("train")[0]
    assert len(task.problems("train")) == 5
    assert task.score(problem, problem.answer.replace(" ", "")).reward == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no field 'answer': it has digits, hint, n, parity, question"),
        ({"answer": "parity"}, "write the name of a column in braces"),
        ({"answer": "{parity"}, "expected '}'"),
        ({"answer": "{n.real}"}, "write the name of a column in braces"),
        ({"answer": "{parities}"}, "did you mean 'parity'"),
        ({"answer": "{n}", "test_split": "valid"}, "Unknown split 'valid'"),
        ({"answer": "{n}", "scorer": "numbers"}, "did you mean 'number'"),
    ],
)
def test_mistakes_are_named(builder, options, message):
    with pytest.raises(TaskError, match=message):
        load(builder, **options)

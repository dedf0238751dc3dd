"""Problems from files."""

import json

import pytest

from fst_jax.errors import TaskError
from fst_jax.tasks.jsonl import Jsonl


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def test_path(tmp_path):
    return write(tmp_path / "test.jsonl", [{"question": "2+2?", "answer": 4}])


def test_random_access(tmp_path, test_path):
    path = tmp_path / "train.jsonl"
    lines = ['\ufeff{"question": "é?", "answer": "a"}', "", '{"question": "b?", "answer": [1]}']
    path.write_text("\n".join(lines), encoding="utf-8")
    train = Jsonl(str(path), test_path).problems("train")
    assert len(train) == 2
    assert (train[1].id, train[1].question, train[1].answer) == ("train-3", "b?", "[1]")
    assert (train[0].id, train[0].question) == ("train-1", "é?")


def test_fields_system_and_score(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"n": 1, "q": "2+2?", "a": "4", "s": "Be brief."}])
    other = write(tmp_path / "o.jsonl", [{"n": 2, "q": "2+3?", "a": "5", "s": ""}])
    task = Jsonl(path, other, "number", "q", "a", id_field="n", system_field="s")
    problem = task.problems("train")[0]
    assert problem.id == "1"
    assert [m["role"] for m in task.render(problem)] == ["system", "user"]
    assert [m["role"] for m in task.render(task.problems("test")[0])] == ["user"]
    assert task.score(problem, "It is 4.").reward == 1.0
    assert task.score(problem, "It is 5.").category == "wrong answer"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: it needs one JSON object a line"),
        ('{"question": "a", "answer": 1}\n{oops\n', r"train.jsonl:2: not a JSON object"),
        ("[1]\n", r"train.jsonl:1: a line must be a JSON object, not list"),
        ('{"questions": "a", "answer": 1}\n', "did you mean 'questions'"),
        ('{"question": "a"}\n', "no field 'answer'"),
        ('{"question": "  ", "answer": 1}\n', "must be a text that is not empty"),
        ("\udcff", "not a JSON object"),
    ],
)
def test_bad_files_name_the_line(tmp_path, test_path, content, message):
    path = tmp_path / "train.jsonl"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(TaskError, match=message):
        Jsonl(str(path), test_path)


def test_other_mistakes(tmp_path, test_path):
    with pytest.raises(TaskError, match=r"task.options.train_path: cannot read .*No such file"):
        Jsonl(str(tmp_path / "none.jsonl"), test_path)
    with pytest.raises(TaskError, match="did you mean 'number'"):
        Jsonl(test_path, test_path, scorer="numbers")
    same = write(tmp_path / "same.jsonl", [{"question": "a", "answer": 1, "id": 7}])
    with pytest.raises(TaskError, match=r"b.jsonl:1: id '7' is taken by .*same"):
        Jsonl(
            same,
            write(tmp_path / "b.jsonl", [{"question": "b", "answer": 2, "id": 7}]),
            id_field="id",
        )

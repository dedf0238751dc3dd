"""Rows of every kind of file, and what is told about those that cannot be read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fst_jax.errors import TaskError
from fst_jax.tasks.rows import open_rows, prepared_rows
from tests.task_samples import write_jsonl, write_tfds

ROWS = [{"a": 1, "b": ["é"]}, {"a": 2, "b": []}, {"a": 3, "b": ["x", "y"]}]


def read(source):
    rows = open_rows(str(source))
    return [rows.read(i) for i in range(rows.size)]


def test_json_and_jsonl(tmp_path):
    write_jsonl(tmp_path / "r.jsonl", ROWS)
    (tmp_path / "r.json").write_text(json.dumps(ROWS))
    (tmp_path / "lines.json").write_text((tmp_path / "r.jsonl").read_text())
    for name in ("r.jsonl", "r.json", "lines.json"):
        assert read(tmp_path / name) == ROWS
    assert open_rows(str(tmp_path / "r.jsonl")).where(2) == f"{tmp_path}/r.jsonl:3"
    assert open_rows(str(tmp_path / "r.json")).where(2) == f"{tmp_path}/r.json, entry 3"


def test_parquet_in_several_files(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    for i in range(3):
        pq.write_table(pyarrow.Table.from_pylist(ROWS[i : i + 1]), tmp_path / f"train-{i}.parquet")
    assert read(tmp_path) == read(tmp_path / "train-*.parquet") == ROWS
    rows = open_rows(str(tmp_path))
    assert rows.where(1) == f"{tmp_path}/train-1.parquet, row 1"
    (tmp_path / "train-9.parquet").write_bytes(b"no parquet")
    with pytest.raises(TaskError, match="cannot read .*train-9.parquet"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({}, "none.jsonl", "cannot read .*none.jsonl: No such file"),
        ({}, "none-*.jsonl", "no file is called like this"),
        ({}, ".", "no file in this folder ends in .jsonl"),
        ({"a.csv": "x"}, "a.csv", "must all end in one of .jsonl, .json, .parquet, not in .csv"),
        ({"a.json": "[]", "a.jsonl": ""}, ".", "not in .json, .jsonl"),
        ({"a.jsonl": "\n\n"}, "a.jsonl", "is empty"),
        ({"a.json": "[1]"}, "a.json", "must hold an array of JSON objects"),
        ({"a.json": "{1"}, "a.json", "a.json:1: not a JSON object"),
    ],
)
def test_mistakes_are_named(tmp_path, files, source, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(TaskError, match=message):
        read(tmp_path / source)


def test_a_source_of_tensorflow_datasets_needs_a_split():
    with pytest.raises(TaskError, match="write tfds:BUILDER#SPLIT"):
        open_rows("tfds:gsm8k")


TFDS = """
import sys
from pathlib import Path
from fst_jax.tasks.rows import open_rows
rows = open_rows(sys.argv[1])
print(rows.size, rows.read(3)["question"])
print([name for name in ("tensorflow", "torch") if name in sys.modules])
"""


def test_records_that_tensorflow_datasets_has_written(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    builder = write_tfds(tmp_path)
    rows = prepared_rows(builder, "train[25%:]")
    assert rows.size == 30
    found = {rows.read(i)["n"]: rows.read(i) for i in range(rows.size)}
    assert len(found) == 30
    for n, row in found.items():
        assert row == {
            "question": f"Is {n} even or odd? Überlege.",
            "hint": "Look at the last digit.",
            "parity": ("even", "odd")[n % 2],
            "n": n,
            "digits": [int(digit) for digit in str(n)],
        }
    by_name = prepared_rows("parity", "test", data_dir=str(tmp_path))
    assert by_name.size == 10 and by_name.read(0) == prepared_rows(builder, "test").read(0)
    done = subprocess.run(
        [sys.executable, "-c", TFDS, f"tfds:{builder}#test"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    first, imported = done.stdout.splitlines()
    assert first.startswith("10 Is ") and imported == "[]", done.stderr


@pytest.mark.parametrize(
    ("builder", "split", "message"),
    [
        ("no_such_data_set", "train", "no_such_data_set#train: DatasetNotFoundError"),
        ("{parity}", "trains", "Unknown split 'trains'"),
        ("mnist", "train", "is not prepared .*tfds build mnist --file_format=array_record"),
    ],
)
def test_mistakes_with_tensorflow_datasets(tmp_path, builder, split, message):
    pytest.importorskip("tensorflow_datasets")
    if builder == "{parity}":
        builder = write_tfds(tmp_path)
    with pytest.raises(TaskError, match=message) as caught:
        prepared_rows(builder, split, data_dir=str(tmp_path))
    assert len(str(caught.value)) < 600


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(TaskError, match=r"pip install 'fst_jax\[tasks\]'"):
        prepared_rows("gsm8k", "train")


def test_halves_of_characters_are_replaced(tmp_path):
    """Texts cut by their bytes have them, and no file or tokenizer takes them."""
    line = r'{"a": "cut \ud83d", "whole": "\ud83d\ude00", "\udc00": [{"b": "\ud800"}]}'
    for name, content in (("r.jsonl", line), ("r.json", f"[{line}]")):
        (tmp_path / name).write_text(content)
        (row,) = read(tmp_path / name)
        assert row == {"a": "cut \ufffd", "whole": "😀", "\ufffd": [{"b": "\ufffd"}]}


def test_a_line_without_end_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n')
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # a hole, no bytes
    with pytest.raises(TaskError, match="r.jsonl:2: a line of more than"):
        read(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_deep_and_long_json(tmp_path, text):
    for name in ("r.jsonl", "r.json"):
        (tmp_path / name).write_text(text)
        with pytest.raises(TaskError, match="not a JSON object"):
            read(tmp_path / name)


def test_a_prepared_data_set_cannot_name_code(tmp_path, monkeypatch):
    """The library would import the module of any class that features.json names."""
    folder = write_tfds(tmp_path)
    (tmp_path / "evil_code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    features = Path(folder) / "features.json"
    good = features.read_text()
    name = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    for written in ("evil_code.Evil", r"\u0065vil_code.Evil"):
        features.write_text(good.replace(name, written))
        with pytest.raises(TaskError, match="class evil_code.Evil, which is none of Tensor"):
            prepared_rows(folder, "train")
    assert not (tmp_path / "ran").exists()
    features.write_text(good)
    assert prepared_rows(folder, "train").size == 40

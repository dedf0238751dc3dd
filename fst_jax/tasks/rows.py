"""Rows of data sets on disk: JSONL, JSON, Parquet, and what TensorFlow Datasets has prepared.

A source is a file, a folder or a pattern such as `data/train-*.parquet` (the layout of a data set
downloaded from the Hugging Face hub), or `tfds:BUILDER#SPLIT`.  Nothing is ever downloaded, and no
code of a data set is run.  Lines of JSONL and records of TensorFlow Datasets are read when they are
asked for; other files are held in memory, Parquet in Arrow's columns.  Halves of characters, as
texts that were cut by their bytes have them, are read as U+FFFD.
"""

import difflib
import glob
import itertools
import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fst_jax.errors import TaskError

Row = dict[str, Any]  # column → value

_FEATURES, _LIBRARY = "features.json", "tensorflow_datasets."
_TFDS = "tfds:"
_LONGEST_LINE = 64 << 20  # bytes of a row in JSONL
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Rows:
    """`size` rows, each made by `read` when it is asked for; `where` names one in a message."""

    size: int
    read: Callable[[int], Row]
    where: Callable[[int], str]


def open_rows(source: str) -> Rows:
    """The rows of a source; see the module's first paragraph.

    Raises:
      TaskError: there is no such file, it is not of its form, or it is empty.
    """
    if source.startswith(_TFDS):
        builder, hash, split = source.removeprefix(_TFDS).rpartition("#")
        if not (builder and hash and split):
            raise TaskError(f"{source}: write tfds:BUILDER#SPLIT, for example tfds:gsm8k#train")
        return prepared_rows(builder, split)
    parts = [_FORMATS[path.suffix](path) for path in _files(source)]
    rows = parts[0] if len(parts) == 1 else _joined(parts)
    if not rows.size:
        raise TaskError(f"{source} is empty: it needs one JSON object a line, or a row")
    return rows


def column(row: Row, name: str, where: str) -> Any:
    """The value of a column.

    Raises:
      TaskError: the row lacks it.
    """
    if name in row:
        return row[name]
    near = difflib.get_close_matches(name, row, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise TaskError(
        f"{where}: no field {name!r}: {hint}it has {', '.join(row)}; task.options can name another"
    )


def as_text(value: Any) -> str:
    """A value as the text of an answer: JSON, unless it is text already."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def json_lines(path: Path) -> Rows:
    """One JSON object a line; blank lines are skipped, and only the place of each line is kept."""
    offsets, numbers = array("Q"), array("Q")
    try:
        for number, offset, line in _lines(path):
            if line.strip():
                offsets.append(offset)
                numbers.append(number)
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror}") from error

    def where(i: int) -> str:
        return f"{path}:{numbers[i]}"

    def read(i: int) -> Row:
        with path.open("rb") as file:
            file.seek(offsets[i])
            line = file.readline()
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{where(i)}: not a JSON object: {error}") from error
        if not isinstance(row, dict):
            raise TaskError(f"{where(i)}: a line must be a JSON object, not {type(row).__name__}")
        return _whole(row) if b"\\ud" in line.lower() else row

    return Rows(len(offsets), read, where)


def json_array(path: Path) -> Rows:
    """A JSON array of objects; a file named .json that holds JSONL is read as such."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError):
        return json_lines(path)
    rows = _whole([content] if isinstance(content, dict) else content)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise TaskError(f"{path}: must hold an array of JSON objects")
    return Rows(len(rows), rows.__getitem__, lambda i: f"{path}, entry {i + 1}")


def parquet(path: Path) -> Rows:
    """The rows of a Parquet file."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise TaskError(
            f"reading {path} needs pyarrow: pip install 'fst_jax[tasks]' ({error})"
        ) from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise TaskError(f"cannot read {path}: {error}") from error
    return Rows(
        table.num_rows,
        lambda i: {name: table.column(name)[i].as_py() for name in table.column_names},
        lambda i: f"{path}, row {i + 1}",
    )


def prepared_rows(builder: str, split: str, data_dir: str | None = None) -> Rows:
    """The records of a split that TensorFlow Datasets has prepared in the ArrayRecord format.

    `builder` is a name, looked up in `data_dir` or the library's usual folder, or a prepared folder
    (one with dataset_info.json).  `split` may be a slice: `train[:90%]`.  Bytes become text, labels
    of a class their names, arrays lists.  TensorFlow is not imported.

    Raises:
      TaskError: the library is missing, the data set is not prepared, or there is no such split.
    """
    _check_features(Path(builder), *([Path(data_dir) / builder] if data_dir else []))
    source, features, where = _prepared(builder, split, data_dir)
    names = {key: f for key, f in features.items() if hasattr(f, "int2str")}

    def read(i: int) -> Row:
        record = source[i]
        return {
            key: names[key].int2str(int(value)) if key in names and value >= 0 else _plain(value)
            for key, value in record.items()
        }

    return Rows(len(source), read, lambda i: f"{where}, record {i}")


def _prepared(builder: str, split: str, data_dir: str | None) -> tuple[Any, dict[str, Any], str]:
    """(source with random access, feature of each column, name for messages)."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise TaskError(
            "data sets of TensorFlow Datasets need the extra tasks: "
            f"pip install 'fst_jax[tasks]' ({error})"
        ) from error
    where = f"data set {builder}#{split}"
    try:
        if (Path(builder) / "dataset_info.json").is_file():
            found = tfds.builder_from_directory(builder)
        else:
            found = tfds.builder(builder, **({} if data_dir is None else {"data_dir": data_dir}))
        if not found.info.splits:
            raise TaskError(
                f"{where} is not prepared in {found.data_dir}: run "
                f"`tfds build {builder} --file_format=array_record` first, where TensorFlow may be"
            )
        source = found.as_data_source(split)
        features = dict(found.info.features)
    except TaskError:
        raise
    except Exception as error:  # the library raises many kinds, with lists of all its data sets
        told = str(error).strip().partition("\n")[0][:300]
        raise TaskError(f"{where}: {type(error).__name__}: {told}") from error
    if not len(source):
        raise TaskError(f"{where} is empty")
    return source, features, where


def _check_features(*folders: Path) -> None:
    """Refuse a data set whose features.json names classes that are not the library's.

    The library would import their modules, whatever they are, from wherever Python finds them.

    Raises:
      TaskError: naming the file.
    """
    for file in (f for folder in folders if folder.is_dir() for f in folder.rglob(_FEATURES)):
        try:
            named = re.findall(r'"pythonClassName"\s*:\s*("[^"]*"|[^"])', file.read_text("utf-8"))
            foreign = [n for n in map(json.loads, named) if not n.startswith(_LIBRARY)]
        except (OSError, ValueError, AttributeError) as error:
            raise TaskError(f"cannot read {file}: {error}") from error
        if foreign:
            raise TaskError(
                f"{file} names the class {foreign[0]}, which is none of TensorFlow Datasets: code "
                "of data sets is not run"
            )


def _whole(value: Any) -> Any:
    """A JSON value without halves of characters, which no file or tokenizer takes."""
    if isinstance(value, str):
        return _HALF_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, dict):
        return {_whole(key): _whole(inner) for key, inner in value.items()}
    return [_whole(inner) for inner in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """A record's value as JSON knows it."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):  # a NumPy scalar or array
        return _plain(value.tolist())
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _files(source: str) -> list[Path]:
    """The files that a source names, all of one format."""
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _FORMATS)
        if not files:
            raise TaskError(f"{source}: no file in this folder ends in {', '.join(_FORMATS)}")
    elif glob.has_magic(source) and not path.exists():
        files = sorted(Path(name) for name in glob.glob(source, recursive=True))
        if not files:
            raise TaskError(f"{source}: no file is called like this")
    else:
        files = [path]
    endings = sorted({file.suffix for file in files})
    if endings[0] not in _FORMATS or len(endings) > 1:
        raise TaskError(
            f"{source}: files must all end in one of {', '.join(_FORMATS)}, not in "
            f"{', '.join(endings)}"
        )
    return files


def _joined(parts: Sequence[Rows]) -> Rows:
    ends = list(itertools.accumulate(part.size for part in parts))

    def place(i: int) -> tuple[Rows, int]:
        part = bisect_right(ends, i)
        return parts[part], i - ends[part] + parts[part].size

    def read(i: int) -> Row:
        part, within = place(i)
        return part.read(within)

    def where(i: int) -> str:
        part, within = place(i)
        return part.where(within)

    return Rows(ends[-1], read, where)


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, offset, line)."""
    offset = 0
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(_LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > _LONGEST_LINE:
                raise TaskError(f"{path}:{number}: a line of more than {_LONGEST_LINE} bytes")
            yield number, offset, line
            offset += len(line)


_FORMATS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": json_lines,
    ".json": json_array,
    ".parquet": parquet,
}

"""Fuzzed configs, task files and model folders, through the command: one message, or a result.

Never a traceback, never half a run folder.  `make test` tries a few of each; the full counts, 2,000
configs and 500 inputs, are slow.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fst_jax import plain_yaml, schema
from fst_jax.errors import UserError
from fst_jax.models.huggingface import load_model
from tests.chaos.dry import dry_run
from tests.task_samples import POLARIS, SCIKNOWEVAL, write_hover

CONFIG = Path(__file__).parents[2] / "configs/ci_tiny.yaml"
# Settings that reach for other machines, or say where things lie.
SPARED = {"parallel.coordinator", "parallel.processes", "parallel.process", "output", "model.path"}
# Both sides of every bound, and what is far from any.
NUMBERS = [0, 1, -1, 2, 3, 7, 100, 10**6, 2**31, 2**63, -(2**63), 0.5, -0.5, 1e-300, 1e300,
           float("inf"), float("-inf"), float("nan")]  # fmt: skip
TEXTS = ["", " ", "x", "null", "../x", "a/b", "/dev/null", "http://", "http://h:1,", "<|im_end|>",
         "{{ 1 }}", "ünï\u2028😀", "\x00", "a: b", "x" * 3000, "os:PathLike", "no_such.py:X",
         "(", "attention|mlp", "star_graph", "jsonl"]  # fmt: skip

leaves = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.sampled_from(TEXTS) | st.text()
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def counted(few: int, all_of_them: int) -> Callable[[Any], Any]:
    """A test twice: with a few examples, always the same, and, slowly, with all, new each time."""

    def decorate(body: Callable[..., None]) -> Any:
        calm = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]

        @pytest.mark.parametrize("count", [few, pytest.param(all_of_them, marks=pytest.mark.slow)])
        def test(count: int, model: Path, samples: Path) -> None:
            @settings(
                max_examples=count, derandomize=count == few, database=None,
                suppress_health_check=calm, print_blob=True,
            )  # fmt: skip
            @given(st.data())
            def once(data: st.DataObject) -> None:
                with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
                    body(data, Path(folder), model, samples)

            once()

        return test

    return decorate


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good task files, to be spoiled."""
    root = tmp_path_factory.mktemp("samples")
    write_hover(root, claims=80, test=10)
    (root / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SCIKNOWEVAL))
    (root / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in POLARIS))
    rows = [{"question": f"{n}+1?", "answer": str(n + 1), "id": n} for n in range(30)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "rows.json").write_text(json.dumps(rows))
    return root


def likely(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a setting's type, the extreme ones above all."""
    kinds = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    choices: list[st.SearchStrategy[Any]] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            choices.append(st.sampled_from(get_args(kind)))
        elif get_origin(kind) is dict:
            names = st.sampled_from(["data", "fsdp", "tensor", "degree", "seed", "x", ""])
            choices.append(st.dictionaries(names, leaves, max_size=3))
        elif kind is bool:
            choices.append(st.booleans())
        elif kind is int:
            choices.append(st.sampled_from([n for n in NUMBERS if isinstance(n, int)]))
        elif kind is float:
            choices.append(st.sampled_from(NUMBERS))
        elif kind is str:
            choices.append(st.sampled_from(TEXTS))
        else:
            choices.append(st.none())
    return st.one_of(choices)


@counted(12, 2000)
def test_configs(data: st.DataObject, folder: Path, model: Path, samples: Path) -> None:
    config = yaml.safe_load(CONFIG.read_text())
    arguments = []
    keys = sorted(schema.settings().keys() - SPARED)
    for key in data.draw(st.lists(st.sampled_from(keys), max_size=4, unique=True)):
        # Of the right type most of the time: else nothing lies behind the first check.
        hint = schema.settings()[key].hint
        value = data.draw(likely(hint) if data.draw(st.integers(0, 3)) else values)
        if data.draw(st.booleans()):
            written = value if isinstance(value, str) else json.dumps(value)
            arguments.append(f"--{key}={written}")
        else:
            section, _, name = key.rpartition(".")
            (config.setdefault(section, {}) if section else config)[name] = value
    text = plain_yaml.dump(config)
    if data.draw(st.booleans()):
        text = spoiled(data, text)
    (folder / "config.yaml").write_text(text, encoding="utf-8", errors="replace")
    arguments += ["--model.path", str(model)]
    dry_run(["--config", str(folder / "config.yaml"), *arguments], folder / "runs")


def spoiled(data: st.DataObject, text: str) -> str:
    """A text with a few places changed."""
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        end = min(len(text), at + data.draw(st.sampled_from([0, 1, 5, 50])))
        put = data.draw(
            st.sampled_from(["", "{", "[", ":", "\n", "- ", "&a ", "*a", "!!python/name:os ", "\t"])
            | st.sampled_from(
                ["'", '"', "#", "|", "? ", "%", "@", "9" * 5000, "{a: " * 200, "\x07"]
            )
            | st.text(max_size=5)
        )
        text = text[:at] + put + text[end:]
    return text


def spoiled_bytes(data: st.DataObject, content: bytes) -> bytes:
    content = bytes(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        end = min(len(content), at + data.draw(st.sampled_from([0, 1, 8, len(content)])))
        put = data.draw(st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, b"{" * 2000, b'"']))
        content = content[:at] + put + content[end:]
    return content


def spoiled_json(data: st.DataObject, value: Any) -> Any:
    """A JSON value with one place in it changed."""
    while isinstance(value, dict | list) and value and data.draw(st.integers(0, 4)):
        if isinstance(value, list):
            at = data.draw(st.integers(0, len(value) - 1))
            return [*value[:at], spoiled_json(data, value[at]), *value[at + 1 :]]
        key = data.draw(st.sampled_from(sorted(value, key=str)))
        return value | {key: spoiled_json(data, value[key])}
    return data.draw(values)


def spoil(data: st.DataObject, file: Path) -> None:
    """Change a file: its JSON, its lines, or its bytes."""
    content = file.read_bytes()
    if file.suffix == ".jsonl" and data.draw(st.booleans()):
        lines = content.decode().splitlines()
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(lines) - 1))
            lines[at] = json.dumps(spoiled_json(data, json.loads(lines[at])))
        file.write_text("\n".join(lines))
    elif file.suffix == ".json" and data.draw(st.integers(0, 3)):
        file.write_text(json.dumps(spoiled_json(data, json.loads(content))))
    else:
        file.write_bytes(spoiled_bytes(data, content))


TASKS: dict[str, dict[str, Any]] = {
    "rows.jsonl": {"name": "jsonl", "scorer": "number"},
    "rows.json": {"name": "choice"},
    "choice.jsonl": {"name": "choice", "test_size": 5},
    "math.jsonl": {"name": "choice", "test_size": 5},
    "hover/train.jsonl": {"name": "hover", "test_size": 5},
    "hover/pages/pages.jsonl": {"name": "hover", "test_size": 5},
    "hover/pages/offsets.npy": {"name": "hover", "test_size": 5},
    "hover/pages/index/params.index.json": {"name": "hover", "test_size": 5},
    "hover/pages/index/data.csc.index.npy": {"name": "hover", "test_size": 5},
}


@counted(10, 250)
def test_task_files(data: st.DataObject, folder: Path, model: Path, samples: Path) -> None:
    name = data.draw(st.sampled_from(sorted(TASKS)))
    options = dict(TASKS[name])
    task = options.pop("name")
    if task == "hover":
        shutil.copytree(samples / "hover", folder / "hover")
        options["folder"] = str(folder / "hover")
    else:
        (folder / name).write_bytes((samples / name).read_bytes())
        sources = ("train_path", "test_path") if task == "jsonl" else ("train",)
        options |= dict.fromkeys(sources, str(folder / name))
    spoil(data, folder / name)
    config = yaml.safe_load(CONFIG.read_text()) | {"task": {"name": task, "options": options}}
    (folder / "config.yaml").write_text(plain_yaml.dump(config))
    arguments = ["--config", str(folder / "config.yaml"), "--model.path", str(model)]
    dry_run(arguments, folder / "runs")


@counted(10, 250)
def test_model_folders(data: st.DataObject, folder: Path, model: Path, samples: Path) -> None:
    changed = folder / "model"
    shutil.copytree(model, changed)
    names = sorted(file.name for file in changed.iterdir())
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        if data.draw(st.integers(0, 9)):
            spoil(data, changed / name)
        else:
            (changed / name).unlink()
    dry_run(["--model.path", str(changed), "--config", str(CONFIG)], folder / "runs")
    try:
        load_model(changed)
    except UserError as error:
        assert "\n" not in str(error)

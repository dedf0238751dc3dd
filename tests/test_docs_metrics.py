"""The glossary of docs/metrics.md holds every key of metrics.jsonl, and no other.

Keys come from three sides: the recorded runs, the tiny run of the suite, and the source of what
writes an event, for those that only some settings bring.
"""

import ast
import gzip
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fst_jax.fast.evolve import EvolveReport
from tests.tiny_run import events

ROOT = Path(__file__).parents[1]
COMMON = {"event", "step", "time_s"}
COUNTED = ("categories", "rejected_by_reason")  # their keys are a task's, or a reason's
# Where the values of an event are made: a module and the functions in it.
WRITERS = {
    "step": {
        "train": ("_advance", "slow_step"),
        "journal": ("slow_step",),
        "slow/groups": ("group_metrics",),
        "slow/learner": ("micro_batch_loss", "update", "step"),
        "slow/distill": ("micro_batch_loss",),
    },
    "evolve": {"journal": ("fast_round",)},
    "eval": {"evaluate": ("_measure",), "train": ("_record",), "slow/drift": ("_drift",)},
}
MADE_OF_A_NAME = {"kl_k1", "kl_k2", "kl_k3"}  # f"kl_{name}"


def glossary() -> dict[str, set[str]]:
    """By event, the keys in the first column of its tables."""
    found: dict[str, set[str]] = {}
    event = ""
    for line in (ROOT / "docs/metrics.md").read_text("utf-8").splitlines():
        if line.startswith("## "):
            event = line[3:]
        elif line.startswith("| `"):
            found.setdefault(event, set()).update(re.findall(r"`([^`]+)`", line.split(" | ")[0]))
    return {event: found.get(event, set()) for event in ("step", "evolve", "eval")}


def keys_of(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys of an event by their path, as `seconds/train` and `pool/[]/id`."""
    for key, value in values.items():
        yield prefix + key
        if key in COUNTED:
            continue
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}/")
        if isinstance(value, list):
            for entry in value:
                yield from keys_of(entry, f"{prefix}{key}/[]/") if isinstance(entry, dict) else ()


def recorded() -> Iterator[dict[str, Any]]:
    """The events of one recorded run of each arm and variant."""
    runs = sorted((ROOT / "reproduction").glob("*/*.seed0/metrics.jsonl.gz"))
    assert len(runs) > 30
    for run in runs:
        with gzip.open(run, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def written_by(module: str, functions: Iterable[str]) -> Iterator[str]:
    """Texts that are keys of a dict, or subscripts that are assigned to, in these functions."""
    tree = ast.parse((ROOT / f"fst_jax/{module}.py").read_text("utf-8"))
    named = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in functions]
    assert {node.name for node in named} == set(functions)
    for node in (inner for function in named for inner in ast.walk(function)):
        keys: list[ast.expr | None] = []
        if isinstance(node, ast.Dict):
            keys = node.keys
        elif isinstance(node, ast.Assign):
            keys = [target.slice for target in node.targets if isinstance(target, ast.Subscript)]
        for key in keys:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value


def in_the_source(event: str) -> set[str]:
    found = {k for module, names in WRITERS[event].items() for k in written_by(module, names)}
    if event == "evolve":
        found |= {field.name for field in fields(EvolveReport)} - {"rollouts"}
    return found - COMMON


def named_in_the_package() -> set[str]:
    """Every text constant and field of the package."""
    trees = [ast.parse(path.read_text("utf-8")) for path in (ROOT / "fst_jax").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    texts = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return texts | {n.target.id for n in nodes
                    if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}  # fmt: skip


def test_recorded_runs_hold_no_key_that_is_not_explained():
    explained = glossary()
    for event in recorded():
        if event["event"] in explained:
            unknown = set(keys_of(event)) - COMMON - explained[event["event"]]
            assert not unknown, f"docs/metrics.md: {event['event']} has no row for {unknown}"


def test_nor_does_a_run_of_today(finished):
    explained = glossary()
    seen: dict[str, set[str]] = {}
    for event in events(finished / "ci_tiny"):
        seen.setdefault(event["event"], set()).update(set(keys_of(event)) - COMMON)
    assert seen.pop("end") == set()
    assert seen.keys() == explained.keys()
    for event, keys in seen.items():
        assert keys <= explained[event]


@pytest.mark.parametrize("event", ["step", "evolve", "eval"])
def test_what_some_settings_add_is_explained_too(event):
    last = {key.rpartition("/")[2] for key in glossary()[event]}
    assert in_the_source(event) <= last


def test_nothing_is_explained_that_is_not_there():
    known = named_in_the_package() | MADE_OF_A_NAME
    for event, keys in glossary().items():
        assert len(keys) >= 8
        assert {key.rpartition("/")[2] for key in keys} <= known, event


def test_the_files_of_a_run_are_listed(finished):
    table = (ROOT / "docs/metrics.md").read_text("utf-8").split("## Files of the run folder")[1]
    listed = {name.split("/")[0] for name in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)}
    assert {path.name for path in (finished / "ci_tiny").iterdir()} <= listed | {"wandb"}
    from fst_jax.run_folder import RunFolder

    places = [n for n, v in inspect.getmembers(RunFolder) if isinstance(v, property)]
    folder = RunFolder(Path("run"))
    kept = {getattr(folder, n).name for n in places if n not in ("ended", "_draft")}
    assert kept <= listed

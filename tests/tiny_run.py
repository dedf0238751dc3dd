"""One finished run of a tiny model, shared by all tests that look at what a run leaves behind."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

CONFIG = Path(__file__).parents[1] / "configs/ci_tiny.yaml"

LETTERS = """
from fst_jax.tasks.task import Problem, Score


class Letters:
    name = "letters"
    seed_prompt = "Answer."

    def problems(self, split):
        return [Problem(f"{split}{i}", f"Say {i}.", "e") for i in range(32)]

    def render(self, problem):
        return [{"role": "user", "content": problem.question}]

    def score(self, problem, text):
        good = any(letter in text for letter in "aeiou")
        return Score(float(good), "Use vowels.", "correct" if good else "no vowel")
"""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model of two layers."""
    from tests.helpers import tiny_model_folder

    return tiny_model_folder(tmp_path_factory.mktemp("model"), max_position_embeddings=1024)


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task that a random model can earn something on, with the config of a run beside it."""
    path = tmp_path_factory.mktemp("task") / "letters.py"
    path.write_text(LETTERS)
    lines = CONFIG.read_text().splitlines(keepends=True)
    config = [line for line in lines if not line.startswith(("  name: star", "  options:"))]
    path.with_suffix(".yaml").write_text("".join(config).replace("task:\n", "task: {}\n"))
    return path


def arguments(model: Path, task: Path, output: Path, *more: str) -> list[str]:
    """The command line of the tiny run."""
    return [
        "--config", str(task.with_suffix(".yaml")), "--model.path", str(model),
        "--output", str(output), "--task.entry_point", f"{task}:Letters", *more,
    ]  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> int:
    """`python -m fst_jax.train` in this process; returns its exit code."""
    from fst_jax.settings import command
    from fst_jax.train import main

    monkeypatch.setattr(sys, "argv", ["train", *argv])
    return command(main)


def events(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def samples(folder: Path, step: int) -> list[dict[str, Any]]:
    """The lines of one file of samples."""
    return [json.loads(line) for line in (folder / f"samples/{step}.jsonl").open()]


@pytest.fixture(scope="session")
def finished(model: Path, task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of one complete run, `ci_tiny`."""
    output = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(monkeypatch, arguments(model, task, output)) == 0
    return output

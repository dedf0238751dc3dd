"""Evaluation of a run: the same figures as the run's own, for weights × contexts."""

import re
import sys
from pathlib import Path

import pytest

from fst_jax.evaluate import main
from fst_jax.settings import command
from tests.tiny_run import events


def lines_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: Path):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--config", str(config)])
    assert command(main) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("eval")]


def test_quadrants_of_a_run(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished / "ci_tiny"
    lines = lines_of(monkeypatch, capsys, folder / "config.yaml")
    shown = [re.search(r"\((\w+) weights, (\w+)\)", line).groups() for line in lines]  # type: ignore[union-attr]
    assert shown == [(w, c) for w in ("base", "trained") for c in ("none", "seed", "pool")]
    measured = [float(re.search(r"mean@2 (\S+)", line)[1]) for line in lines]  # type: ignore[index]
    last = {(e["weights"], e["context"]): e for e in events(folder) if e["event"] == "eval"}
    for at, quadrant in ((1, "base seed"), (2, "base pool"), (4, "trained seed")):
        assert measured[at] == pytest.approx(last[tuple(quadrant.split())]["mean_at_k"], abs=1e-3)
    drifts = [float(re.search(r"kl (\S+)", line)[1]) for line in lines]  # type: ignore[index]
    assert drifts[:3] == [0, 0, 0] and min(drifts[3:]) > 0


def test_a_model_without_a_run(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "config.yaml"
    text = (finished / "ci_tiny/config.yaml").read_text()
    config.write_text(text.replace("name: ci_tiny", "name: other"))
    assert len(lines_of(monkeypatch, capsys, config)) == 2  # none and seed

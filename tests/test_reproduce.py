"""The command `python -m fst_jax.reproduce`: its messages, and whole experiments of tiny runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fst_jax import reproduce
from fst_jax.reproduction.experiments import Experiment, Series
from fst_jax.reproduction.plan import is_finished
from fst_jax.settings import command, to_yaml
from tests.reproduction.records import write_run
from tests.reproduction.test_plan import log

ROOT = Path(__file__).parents[1]
SERIES = Series("main", ("two_hop",), ("rl", "fst"))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["reproduce", *map(str, arguments)])
    try:
        return command(reproduce.main)
    except SystemExit as exit:
        return int(exit.code or 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eficiency"], "no experiment 'eficiency'"),
        ([], "which experiment?"),
        (["all", "--jobs", "0"], "--jobs must be at least 1"),
        (["all", "--seeds", "0"], "--seeds"),
        (["record", "sweep"], "record stands alone"),
        (["sweep", "--config", "no/such.yaml"], "no/such.yaml"),
        (["record", "--root", "no/such/root"], "holds no finished run"),
    ],
)
def test_bad_input(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_the_list_of_experiments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--list", "--seeds", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(reproduce.EXPERIMENTS)
    assert "efficiency    24 runs" in lines[0]


def test_the_runs_of_an_experiment_and_their_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    arguments = ["signal", "--list", "--seeds", 1, "--root", tmp_path]
    assert call(monkeypatch, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["to", "do", f"signal/star_graph.{arm}.seed0"] for arm in ("rl", "prompt", "fst")
    ]
    assert not list(tmp_path.iterdir())


def test_quick_runs_have_a_root_of_their_own() -> None:
    assert reproduce.parse(["all"]).root == Path("runs/reproduction")
    assert reproduce.parse(["all", "--quick"]).root == Path("runs/reproduction_quick")
    assert reproduce.parse(["demo"]).root == Path("runs/demo")
    assert reproduce.parse(["demo"]).seeds == 1


def test_when_all_is_made_only_the_report_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(reproduce.EXPERIMENTS, "signal", Experiment("", [SERIES]))  # type: ignore[misc]
    options = reproduce.parse(["signal", "--seeds", "1", "--root", str(tmp_path)])
    for job in reproduce.jobs_of(options).values():
        write_run(job.folder, job.run.arm, [0.0, 0.1, 0.5])
        (job.folder / "config.yaml").write_text(to_yaml(job.config))
        metrics, end = job.folder / "metrics.jsonl", job.config.train.steps
        metrics.write_text(metrics.read_text().replace('"step": 12', f'"step": {end}'))
        log(job.folder, "end", end)
    assert call(monkeypatch, *options.given) == 0
    assert "2 runs, 0 of them to do" in capsys.readouterr().out
    assert (tmp_path / "report/index.html").is_file()
    assert call(monkeypatch, "signal", "--seeds", 1, "--root", tmp_path, "--list") == 0
    assert "to do" not in capsys.readouterr().out


DRIVER = """
import sys
from pathlib import Path
from fst_jax import reproduce
from fst_jax.reproduction.experiments import Run
from fst_jax.settings import command

class Tiny:
    def runs(self, seeds, quick=False):
        rl, fst = {"fast.enabled": False}, {}
        return [
            *(Run("main", "letters", arm, {}, 0, own) for arm, own in (("rl", rl), ("fst", fst))),
            Run("main", "letters", "rl", {}, 7, rl | {"task.entry_point": "missing.py:Task"}),
        ]

reproduce.EXPERIMENTS["signal"] = Tiny()
sys.exit(command(reproduce.main))
"""


@pytest.mark.slow
def test_a_stopped_command_goes_on_and_a_failed_run_is_told(
    model: Path, task: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.yaml"
    text = task.with_suffix(".yaml").read_text().replace("train: {steps: 4}", "train: {steps: 12}")
    lines = f'task: {{entry_point: "{task}:Letters"}}\nmodel: {{path: {model}}}'
    base.write_text(text.replace("task: {}", lines))
    root = tmp_path / "root"
    arguments = [
        sys.executable, "-c", DRIVER, "signal", "--config", str(base), "--root", str(root),
    ]  # fmt: skip
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    first = subprocess.Popen(arguments, env=os.environ, **options)
    metrics = root / "main/letters.rl.seed0/metrics.jsonl"
    end = time.monotonic() + 300
    while not (metrics.is_file() and '"event": "step", "step": 2,' in metrics.read_text()):
        assert time.monotonic() < end and first.poll() is None, "the runs did not begin"
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=300)
    assert first.returncode == 0, said
    assert "to go on:\n  python -m fst_jax.reproduce signal --config" in said
    assert not is_finished(metrics.parent)

    second = subprocess.run(arguments, env=os.environ, timeout=600, **options)
    assert second.returncode == 1, second.stdout
    assert "no file missing.py" in second.stdout and "1 of 3 runs failed" in second.stdout
    assert all(is_finished(root / f"main/letters.{arm}.seed0") for arm in ("rl", "fst"))
    assert (root / "report/index.html").is_file()
    assert not (root / "main/letters.rl.seed7").exists()

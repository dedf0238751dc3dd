"""Workers on a stand-in for training: order, cores, failures, signals, and shared roots."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fst_jax.config import Config, TrainSettings
from fst_jax.reproduction.experiments import Run
from fst_jax.reproduction.plan import Job
from fst_jax.reproduction.workers import Workers
from tests.reproduction.records import write_run

FAKE = (sys.executable, "-u", str(Path(__file__).with_name("fake_train.py")))
LONG = 100_000  # steps; more than any test waits for


def job(root: Path, name: str = "rl", seed: int = 0, steps: int = 1, **more: Any) -> Job:
    settings = {"--train.steps": str(steps), **more.pop("settings", {})}
    run = Run(more.pop("group", "main"), "star_graph", name, more.pop("variant", {}), seed, {})
    place = {"--name": run.name, "--output": str(root / run.group)}
    arguments = tuple(text for pair in (place | settings).items() for text in pair)
    config = Config(name=run.name, output=str(root / run.group), train=TrainSettings(steps=steps))
    return Job(run, arguments, config, None)


def starts(root: Path) -> list[dict[str, Any]]:
    path = root / "starts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def saved_step(job: Job) -> int:
    return int((job.folder / "saved_step").read_text())


def wait_for_starts(root: Path, count: int) -> None:
    end = time.monotonic() + 30
    while len(starts(root)) < count:
        assert time.monotonic() < end, "the runs did not start"
        time.sleep(0.01)


def test_every_run_is_made_once_and_on_a_core_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    jobs = [job(tmp_path, seed=seed, steps=20) for seed in range(4)]
    outcome = Workers(jobs, tmp_path, 2, train=FAKE).work()
    assert outcome.failed == () and not outcome.stopped
    assert all(each.made for each in jobs)
    begun = starts(tmp_path)
    assert sorted(start["name"] for start in begun) == sorted(each.run.name for each in jobs)
    assert {start["cache"] for start in begun} == {str(tmp_path / ".compiled")}
    if len(os.sched_getaffinity(0)) >= 2:
        assert all(len(start["cores"]) == 1 for start in begun)
        assert begun[0]["cores"] != begun[1]["cores"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    assert "eta" in lines[0] and "eta" not in lines[-1]


def test_a_failed_run_stops_no_other_and_shows_its_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = job(tmp_path, "fst", settings={"--slow.learning_rate": "bad"})
    good = [job(tmp_path, seed=seed) for seed in range(2)]
    outcome = Workers([bad, *good], tmp_path, 1, train=FAKE).work()
    assert outcome.failed == (bad.run.key,) and not bad.made
    assert all(each.made for each in good)
    said = capsys.readouterr().out
    assert "exit code 2" in said and "expected a number" in said


def second(root: Path) -> Job:
    variant = {"from": "fst@step", "kind": "related"}
    return job(root, group="plasticity", variant=variant)


def test_a_second_task_waits_for_the_first_and_starts_from_its_weights(tmp_path: Path) -> None:
    for arm in ("rl", "fst"):
        write_run(tmp_path / f"main/star_graph.{arm}.seed0", arm, [0.0, 0.5], exports=(6,))
    first = [job(tmp_path, arm, steps=3) for arm in ("rl", "fst")]
    outcome = Workers([second(tmp_path), *first], tmp_path, 2, train=FAKE).work()
    assert outcome.failed == ()
    begun = starts(tmp_path)
    assert begun[-1]["name"].startswith("star_graph.rl.from=")
    assert begun[-1]["model"] == str(tmp_path / "main/star_graph.fst.seed0/exports/6")
    assert begun[0]["model"] is None


@pytest.mark.parametrize("fails", ["the first task", "its exports"])
def test_a_second_task_without_weights_is_not_run(
    fails: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rate = {"--slow.learning_rate": "bad" if fails == "the first task" else "1"}
    first = [job(tmp_path, arm, settings=rate) for arm in ("rl", "fst")]
    outcome = Workers([*first, second(tmp_path)], tmp_path, 2, train=FAKE).work()
    assert outcome.failed[-1] == second(tmp_path).run.key
    assert not any("from=" in start["name"] for start in starts(tmp_path))
    said = capsys.readouterr().out
    assert ("it needs main/star_graph.rl.seed0" if "first" in fails else "has no exports") in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_all_runs_and_they_go_on_later(
    number: signal.Signals, tmp_path: Path
) -> None:
    jobs = [job(tmp_path, seed=seed, steps=LONG) for seed in range(3)]

    def interrupt() -> None:
        wait_for_starts(tmp_path, 2)
        time.sleep(0.3)  # some steps
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    outcome = Workers(jobs, tmp_path, 2, train=FAKE).work()
    thread.join()
    assert outcome.stopped and outcome.failed == ()
    assert len(starts(tmp_path)) == 2  # the third was not begun
    for each in jobs[:2]:
        step = saved_step(each)
        assert 0 < step < LONG and not each.made
        resumed = job(tmp_path, seed=each.run.seed, steps=step + 1)
        Workers([resumed], tmp_path, 1, train=FAKE).work()
        assert resumed.made and starts(tmp_path)[-1]["from"] == step


def test_a_run_that_another_command_has_in_hand_is_left_to_it(tmp_path: Path) -> None:
    ours, theirs = job(tmp_path, seed=0), job(tmp_path, seed=1)
    log = theirs.folder.with_name(theirs.folder.name + ".log")
    log.parent.mkdir(parents=True)
    with open(log, "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def finish() -> None:
            wait_for_starts(tmp_path, 1)
            subprocess.run([*FAKE, *theirs.arguments], check=True, env=os.environ | CACHE)
            fcntl.flock(held, fcntl.LOCK_UN)

        thread = threading.Thread(target=finish)
        thread.start()
        outcome = Workers([theirs, ours], tmp_path, 2, train=FAKE).work()
        thread.join()
    assert outcome.failed == () and theirs.made and ours.made
    assert [start["name"] for start in starts(tmp_path)] == [ours.run.name, theirs.run.name]


CACHE = {"JAX_COMPILATION_CACHE_DIR": "unused"}


def test_events_are_echoed_with_their_arm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Workers([job(tmp_path, "fst", steps=3)], tmp_path, 1, echo=True, train=FAKE).work()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"   fst | step {step}/3" for step in (1, 2, 3)]

"""Killed or stopped at 30 random moments, taken up each time: as if nothing had been."""

import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.runs import PHASES, STEPS, Machine, Moment, assert_same, result
from tests.tiny_run import arguments

KILLS = int(os.environ.get("FST_JAX_KILLS", "30"))
MACHINES = {
    "1 device": Machine(processes=1, devices=1),
    "8 devices": Machine(processes=1, devices=8),
    "2 processes": Machine(processes=2, devices=2),
}


def asked(model: Path, task: Path, folder: Path, within_s: float = 20.0) -> list[str]:
    settings = {
        "train.steps": STEPS,
        "fast.reuse": "true",
        "checkpoint.every": 2,
        "watch.stop_within_s": within_s,
    }
    texts = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    return arguments(model, task, folder, *texts)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda one: one.name)
@pytest.mark.parametrize("machine", MACHINES)
def test_disturbed_runs_end_as_the_undisturbed_one(
    machine: str, number: signal.Signals, model: Path, task: Path, tmp_path: Path
) -> None:
    on, rng = MACHINES[machine], random.Random(f"{machine} {number.name}")
    assert set(on.run(asked(model, task, tmp_path / "whole"), tmp_path / "whole")) == {0}
    wanted = result(tmp_path / "whole/ci_tiny")
    struck: Counter[str] = Counter()
    folder = tmp_path / "disturbed"
    while struck.total() < KILLS:
        moment = Moment.drawn(rng, number)
        within_s = rng.choice((0.01, 0.3, 20.0))  # to end the step in, after SIGTERM
        codes = on.run(asked(model, task, folder, within_s), folder, moment)
        log = (folder / "0.log").read_text()
        assert "Traceback" not in log, log
        # A run that has come to its end heeds no signal any more: this one was too late.
        over = "run folder: " in log and set(codes) <= {0, -signal.SIGTERM}
        if set(codes) == {0} or over:
            stopped = "to go on:" in log
            struck[moment.phase] += stopped
            (folder / "0.log").unlink()
            if not stopped:  # the moment did not come: the run is done
                assert_same(result(folder / "ci_tiny"), wanted)
                shutil.rmtree(folder)
        else:
            assert number == signal.SIGKILL and -signal.SIGKILL in codes, (codes, log)
            struck[moment.phase] += 1
    assert set(on.run(asked(model, task, folder), folder)) == {0}
    assert_same(result(folder / "ci_tiny"), wanted)
    print(machine, number.name, dict(struck))
    assert len(struck) == len(PHASES) or KILLS < 30

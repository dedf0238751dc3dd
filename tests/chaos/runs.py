"""Whole runs of a tiny model in processes of their own, and what must be equal in two of them."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import ROOT, free_port, virtual_devices
from tests.tiny_run import events

PHASES = ("sync", "evaluate", "evolve", "rollout", "train", "checkpoint")
STEPS = 6
TIMED = {"time_s", "seconds", "compiles", "mfu"}


@dataclass(frozen=True)
class Machine:
    """On what a run takes place: so many processes, each with so many virtual devices."""

    processes: int
    devices: int

    def start(self, arguments: Sequence[str], folder: Path, moment: "Moment | None" = None) -> Any:
        """Start the processes of a run in `folder`; a moment of disturbance is for all of them."""
        folder.mkdir(exist_ok=True)
        port = free_port()
        started = []
        for index in range(self.processes):
            command = ["-m", "fst_jax.train"]
            if moment is not None:
                command = ["-m", "tests.chaos.disturbed", *moment.told]
            own = []
            if self.processes > 1:
                where = {"coordinator": f"127.0.0.1:{port}", "processes": 2, "process": index}
                own = [
                    text
                    for key, value in where.items()
                    for text in (f"--parallel.{key}", str(value))
                ]
            with open(folder / f"{index}.log", "ab") as log:
                started.append(
                    subprocess.Popen(
                        [sys.executable, *command, *arguments, *own],
                        cwd=ROOT, env=virtual_devices(self.devices),
                        stdout=log, stderr=subprocess.STDOUT,
                    )
                )  # fmt: skip
        return started

    def run(
        self, arguments: Sequence[str], folder: Path, moment: "Moment | None" = None
    ) -> list[int]:
        """The exit codes of a run's processes, at its end or after a disturbance.

        Who is left when another was killed is killed soon after, as when a slice is taken back; it
        would notice by itself only when JAX misses the other's heartbeats.
        """
        processes = self.start(arguments, folder, moment)
        end, seen = time.monotonic() + 600, 0.0
        try:
            while any(process.poll() is None for process in processes):
                assert time.monotonic() < end, "a run did not come to its end"
                if any(process.poll() == -signal.SIGKILL for process in processes):
                    seen = seen or time.monotonic()
                    if time.monotonic() - seen > 2:
                        break
                time.sleep(0.05)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [process.returncode for process in processes]


@dataclass(frozen=True)
class Moment:
    """When a process is disturbed, and by which signal."""

    phase: str
    times: int
    delay_s: float
    signal: int

    @staticmethod
    def drawn(rng: random.Random, number: signal.Signals) -> "Moment":
        delay_s = rng.choice((0.0, rng.uniform(0, 0.1), rng.uniform(0, 1.0)))
        return Moment(rng.choice(PHASES), rng.choice((1, 1, 2, 3)), delay_s, number)

    @property
    def told(self) -> list[str]:
        return [self.phase, str(self.times), str(self.delay_s), str(int(self.signal))]


def result(folder: Path) -> dict[str, Any]:
    """What a finished run has come to, times aside."""
    metrics = [{k: v for k, v in event.items() if k not in TIMED} for event in events(folder)]
    newest = max((p for p in (folder / "checkpoints").iterdir() if p.name.isdigit()),
                 key=lambda path: int(path.name))  # fmt: skip
    saved = json.loads((newest / "host/metadata").read_text())
    kept = ("pool", "samples", "export", "exports")
    files = sorted(path for name in kept for path in (folder / name).rglob("*") if path.is_file())
    return {
        "metrics": metrics,
        "parameters and optimiser": saved["arrays"],  # their checksums
        "progress": saved["host"]["progress"],
        "files": {str(path.relative_to(folder)): path.read_bytes() for path in files},
    }


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for ours, theirs in zip(found["metrics"], wanted["metrics"], strict=False):
        assert ours == theirs
    assert len(found["metrics"]) == len(wanted["metrics"])
    assert found["files"].keys() == wanted["files"].keys()
    for name, content in wanted["files"].items():
        assert found["files"][name] == content, name
    assert found == wanted


def wait_for(path: Path, text: str, deadline_s: float = 300) -> None:
    """Return when a file holds a text."""
    end = time.monotonic() + deadline_s
    while not (path.is_file() and text in path.read_text()):
        if time.monotonic() > end:
            raise TimeoutError(f"{text!r} did not come in {path}")
        time.sleep(0.02)

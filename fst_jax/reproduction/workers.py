"""Makes runs, several at a time: one process of `fst_jax.train` each, on a core of its own.

What a process prints goes to <run folder>.log, whose lock its process holds: two commands on one
root share the work, and a run left behind by a killed command is not begun twice.  A stopped run
saves itself and goes on when the same command is given again.  One that fails stops no other.
"""

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fst_jax.errors import RunError
from fst_jax.interrupt import StopRequest
from fst_jax.reproduction import origin
from fst_jax.reproduction.plan import Job, is_finished
from fst_jax.tracking import duration

TRAIN = (sys.executable, "-u", "-m", "fst_jax.train")
_POLL_S = 0.2
_TAIL = 15  # lines of a failed run's log that are shown
_EVENTS = (b"step ", b"eval ", b"evolve ")


@dataclass
class Worker:
    """A run under way."""

    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    slot: int
    started: float
    shown: int  # bytes of the log that need not be printed any more


@dataclass(frozen=True)
class Outcome:
    """What became of the jobs."""

    failed: tuple[str, ...]  # keys
    stopped: bool  # by a signal; the rest can be resumed


class Workers:
    """The processes of one command."""

    def __init__(
        self,
        jobs: Sequence[Job],
        root: Path,
        parallel: int,
        echo: bool = False,
        train: Sequence[str] = TRAIN,
    ):
        """At most `parallel` at a time.  With `echo` what happens in the runs is printed, too.

        `train` is the command that makes a run, to which its arguments are added.
        """
        self._waiting, self._total = list(jobs), len(jobs)
        self._root, self._parallel, self._echo, self._train = root, parallel, echo, train
        self._active: list[Worker] = []
        self._seconds: list[float] = []  # of the runs that were made here
        self._ended = 0
        self._failed: list[str] = []

    def work(self) -> Outcome:
        """Make every run; returns when all have ended, or the stopped ones are saved."""
        with StopRequest() as stop:
            told = False
            while self._active or (self._waiting and not stop.requested):
                if not stop.requested:
                    self._fill()
                elif not told:
                    told = True
                    for worker in self._active:
                        worker.process.terminate()
                time.sleep(_POLL_S)
                for worker in list(self._active):
                    self._show(worker)
                    if worker.process.poll() is not None:
                        self._end(worker, stop.requested)
            return Outcome(tuple(self._failed), stop.requested)

    def _fill(self) -> None:
        """Start what can be started."""
        waiting, self._waiting = self._waiting, []
        to_come = {job.run.key for job in waiting} | {one.job.run.key for one in self._active}
        for job in waiting:
            missing = [
                key for key in job.run.needs if key in to_come or not is_finished(self._root / key)
            ]
            lost = [key for key in missing if key in self._failed]
            if job.made:
                self._say(job, "made by another command")
            elif lost:
                self._fail(job, f"not run, since it needs {' and '.join(lost)}")
            elif missing or len(self._active) >= self._parallel or not self._start(job):
                self._waiting.append(job)

    def _start(self, job: Job) -> bool:
        """Start a run, unless another command has it in hand or its origin is unknown."""
        log = job.folder.with_name(f"{job.folder.name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        arguments = list(job.arguments)
        if job.run.origin:
            folders = {key.split(".")[1]: self._root / key for key in job.run.needs}
            try:
                arguments += ["--model.path", str(origin.export(*job.run.origin, folders))]
            except RunError as error:
                self._fail(job, str(error))
                return True
        slot = min(set(range(self._parallel)) - {worker.slot for worker in self._active})
        with open(log, "ab") as output, _on_core(slot, self._parallel):
            try:
                fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            process = subprocess.Popen(
                [*self._train, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(self._root),
                start_new_session=True,  # Ctrl-C reaches it once, through this process
            )
            size = output.tell()
        self._active.append(Worker(job, process, log, slot, time.monotonic(), size))
        return True

    def _end(self, worker: Worker, stopping: bool) -> None:
        """Take note of a process that has ended."""
        self._active.remove(worker)
        if worker.job.made:
            self._seconds.append(time.monotonic() - worker.started)
            self._say(worker.job, duration(self._seconds[-1]))
        elif not stopping:
            code, lines = worker.process.returncode, worker.log.read_bytes().splitlines()
            tail = "".join(f"\n    {line.decode(errors='replace')}" for line in lines[-_TAIL:])
            how = f"failed with exit code {code}" if code else "was stopped before its end"
            self._fail(worker.job, f"{how}; the end of {worker.log}:{tail}")

    def _fail(self, job: Job, why: str) -> None:
        self._failed.append(job.run.key)
        self._say(job, why)

    def _say(self, job: Job, what: str) -> None:
        """A line on a run that has ended, with the time that is left."""
        self._ended += 1
        left = self._total - self._ended
        line = f"[{self._ended}/{self._total}] {job.run.key}  {what}"
        if left and self._seconds:
            mean = sum(self._seconds) / len(self._seconds)
            line += f"  eta {duration(mean * left / self._parallel)}"
        print(line, flush=True)

    def _show(self, worker: Worker) -> None:
        """Print the new events of a run's log, if wanted."""
        if not self._echo:
            return
        with open(worker.log, "rb") as log:
            log.seek(worker.shown)
            new = log.read()
        whole = new[: new.rfind(b"\n") + 1]
        worker.shown += len(whole)
        for line in whole.splitlines():
            if line.startswith(_EVENTS):
                print(f"{worker.job.run.arm:>6} | {line.decode(errors='replace')}", flush=True)


def _environment(root: Path) -> dict[str, str]:
    """The CPU, where the small world is at home, and programs that are compiled once for all."""
    ours = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(root.absolute() / ".compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    return ours | dict(os.environ)


@contextlib.contextmanager
def _on_core(slot: int, parallel: int) -> Iterator[None]:
    """What is started inside has a core of its own, where there are enough of them."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(cores) < parallel:
        yield
        return
    os.sched_setaffinity(0, {sorted(cores)[slot]})  # a child has the cores of its parent
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)

"""Watches that a run goes on: a heartbeat for its user, and an end where nothing moves any more.

The run says which phase it is in (`phase`) and that something came of it (`beat`): a chunk of
tokens, an answer, an update.  heartbeat.json in the run's folder holds the newest; a phase without
a beat for its time in `watch.stall_s` ends the process with the stacks of all threads, on stderr
and in stalled.txt, and the command to go on with.  What hangs while it holds Python's lock, such as
a regular expression, is ended a little later by `faulthandler`, which needs no lock.
"""

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx

EXIT_CODE = 3  # of a process that was ended because it stalled
HEARTBEAT = "heartbeat.json"
_LOOK_S, _WRITE_S, _ASK_S = 0.5, 5.0, 5.0  # between looks, heartbeats, questions for a notice
_GRACE_S = 30.0  # from a stall to its end by faulthandler
_PRINT_S = 10.0  # in which the stacks are printed


@dataclass
class Doing:
    """What this process is at."""

    phase: str = "start"
    step: int = 0
    beats: int = 0
    began: float = 0.0  # the phase, on the monotonic clock
    moved: float = 0.0  # something
    elsewhere: bool = False  # whether another process does the work


_now = Doing(began=time.monotonic(), moved=time.monotonic())


def doing() -> Doing:
    """What this process is at, now and in future: always the same object."""
    return _now


class Watchdog:
    """While entered, a thread watches the phases of this process."""

    def __init__(
        self,
        folder: Path,
        stall_s: Mapping[str, float],
        resume: str,
        writes: bool = True,
        noticed: Callable[[], bool] = lambda: False,
        leave: Callable[[str], None] = lambda why: None,
    ):
        """Watch a run in `folder`.

        Args:
          stall_s: seconds without a beat that each phase may take; 0 or unnamed: any time.
          resume: the command that goes on with the run.
          writes: whether this process writes the heartbeat; one of a run does.
          noticed: asked every few seconds, whether the machine is about to be taken back.
          leave: called when it is.
        """
        self._folder, self._stall_s, self._resume = folder, dict(stall_s), resume
        self._writes, self._noticed, self._leave = writes, noticed, leave
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        phase("start", 0)
        _now.beats = 0
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if self._writes:
            (self._folder / HEARTBEAT).unlink(missing_ok=True)

    def _watch(self) -> None:
        written = asked = -_WRITE_S
        while not self._end.wait(_LOOK_S):
            now = time.monotonic()
            if self._limit and now - _now.moved > self._limit:
                self._stalled(now - _now.moved)
            if now - written >= _WRITE_S:
                written = now
                self._arm()
                if self._writes:
                    self._write(now)
            if now - asked >= _ASK_S:
                asked = now
                if self._noticed():
                    self._leave("this machine is about to be taken back")

    @property
    def _limit(self) -> float:
        return 0.0 if _now.elsewhere else self._stall_s.get(_now.phase, 0.0)

    def _arm(self) -> None:
        """Have the process ended if even this thread cannot run any more."""
        faulthandler.cancel_dump_traceback_later()
        if self._limit and sys.__stderr__ is not None:
            after = self._limit + _GRACE_S
            faulthandler.dump_traceback_later(after, exit=True, file=sys.__stderr__)

    def _write(self, now: float) -> None:
        beat = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": _now.step,
            "phase": _now.phase,
            "phase_s": round(now - _now.began, 1),
            "idle_s": round(now - _now.moved, 1),  # since something moved
            "beats": _now.beats,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        path = self._folder / HEARTBEAT
        with contextlib.suppress(OSError):  # a full disk is for the run itself to say
            draft = path.with_suffix(".tmp")
            draft.write_text(json.dumps(beat) + "\n", encoding="utf-8")
            draft.replace(path)

    def _stalled(self, idle_s: float) -> None:
        """Dump the stacks and end the process, also where nobody reads what it prints."""
        end = threading.Timer(_PRINT_S, os._exit, (EXIT_CODE,))
        end.daemon = True
        end.start()
        path = self._folder / f"stalled.{os.getpid()}.txt"
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file)
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback(sys.__stderr__)
        print(
            f"error: nothing has moved in phase {_now.phase} of step {_now.step} for "
            f"{idle_s:.0f} s, and watch.stall_s.{_now.phase} is {self._limit:g}; the stacks of "
            f"all threads are above and in {path}; to go on:\n  {self._resume}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_CODE)


def phase(name: str, step: int | None = None) -> None:
    """Say what is done now, and of which step."""
    beat()  # first: the watchdog may look in between
    _now.phase, _now.began = name, _now.moved
    _now.step = _now.step if step is None else step


def beat() -> None:
    """Say that something moved."""
    _now.beats += 1
    _now.moved = time.monotonic()


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """While another process works, whose own watchdog looks, this one need not move."""
    _now.elsewhere = True
    try:
        yield
    finally:
        beat()
        _now.elsewhere = False


def notice_of(url: str | None) -> Callable[[], bool]:
    """Whether a cloud's metadata server, asked at `url`, says that it takes the machine back.

    Compute Engine and TPU VMs answer NONE or FALSE while nothing is planned (Google Cloud, "Get
    live migration notices" and "preempted" of the VM metadata).
    """
    if url is None:
        return lambda: False
    headers = {"Metadata-Flavor": "Google"}

    def noticed() -> bool:
        try:
            answer = httpx.get(url, headers=headers, timeout=2.0)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200 and answer.text.strip().upper() not in ("NONE", "FALSE")

    return noticed

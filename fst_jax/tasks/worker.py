"""Run code that may hang, crash or misbehave in processes that can be killed.

A `Workers` object owns processes that each build one object from a factory and
answer calls of its methods under a wall-clock deadline.  A process that is late
or dies is replaced at the next call; concurrent callers get one process each.

The processes are plain interpreters, not forks and not `multiprocessing`
children: JAX's threads make a fork unsafe, and a user's script is never imported
again.  They hold no accelerator (JAX_PLATFORMS=cpu), hash strings the same way
in every run (PYTHONHASHSEED=0) and end when this process does.  Requests are
pickles of our own objects; replies are JSON, so that nothing that a scorer was
tricked into writing is ever unpickled here.  This is a guard against accidents,
not a sandbox.
"""

import contextlib
import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from pathlib import Path
from typing import Any, BinaryIO

from fst_jax.errors import TaskError, UserError

_START_S = 300.0  # a task may load a large data set
_GRACE_S = 5.0


class CallTimeout(Exception):
    """The call took longer than its deadline; its process was killed."""


class CallCrashed(Exception):
    """The process died in the call, by a signal or by exiting."""


class CallRaised(Exception):
    """The code raised; a subclass named like the original exception carries its message."""


class Workers:
    """Calls methods of one object in killable processes; thread-safe."""

    def __init__(self, factory: str, *arguments: Any):
        """`factory` is "module:function"; called with `arguments`, it makes the object.

        The first process starts at once and in the background.
        """
        self._start = (factory, arguments)
        self._lock = threading.Lock()
        self._idle = [_Process(*self._start)]
        self._end = weakref.finalize(self, _stop_all, self._idle)

    def call(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        """What `method` returns, which must be JSON.

        Raises:
          CallTimeout, CallCrashed, CallRaised: see there.
          UserError: the factory or the method raised one, or the process cannot start.
        """
        with self._lock:
            process = self._idle.pop() if self._idle else None
        if process is None or not process.alive():
            process = _Process(*self._start)
        try:
            process.wait_until_ready()
            return process.ask((method, arguments, timeout_s), timeout_s)
        finally:
            if process.alive():
                with self._lock:
                    self._idle.append(process)

    def close(self) -> None:
        """End all processes that are not in a call."""
        self._end()


class _Process:
    """One interpreter that runs `serve` and answers one request at a time."""

    def __init__(self, factory: str, arguments: tuple[Any, ...]):
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore::SyntaxWarning",
                "-c",
                "from fst_jax.tasks.worker import serve; serve()",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": path,
                "PYTHONHASHSEED": "0",
                "JAX_PLATFORMS": "cpu",
            },
            start_new_session=True,  # Ctrl-C is ours to handle, and its children die with it
        )
        assert process.stdin is not None and process.stdout is not None
        self._process, self._requests, self._replies = process, process.stdin, process.stdout
        self._expired = False
        self._ready = False
        with contextlib.suppress(OSError):  # if it is dead already, wait_until_ready says so
            self._send((factory, arguments))

    def alive(self) -> bool:
        return not self._expired and self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Wait for the factory; UserError if it fails."""
        if self._ready:
            return
        try:
            self._reply(_START_S)
        except CallRaised as error:
            self.stop()
            raise TaskError(f"{type(error).__name__}: {error}") from error
        except UserError:
            self.stop()
            raise
        except (CallTimeout, CallCrashed) as error:
            raise TaskError(f"the task's worker process did not start: {error}") from error
        self._ready = True

    def ask(self, request: tuple[Any, ...], timeout_s: float) -> Any:
        try:
            self._send(request)
        except OSError:
            pass  # it died; reading the reply says how
        except Exception as error:
            raise TaskError(f"a problem cannot be sent to the worker process: {error}") from error
        return self._reply(timeout_s)

    def stop(self) -> None:
        """Kill the process and all that it started."""
        self._expired = True
        if self._process.returncode is None:  # not reaped yet: its id is still its own
            with contextlib.suppress(OSError):
                if hasattr(os, "killpg"):
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()
            self._process.wait()
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                pipe.close()

    def _send(self, message: Any) -> None:
        self._requests.write(pickle.dumps(message))
        self._requests.flush()

    def _reply(self, timeout_s: float) -> Any:
        late = threading.Event()

        def expire() -> None:
            late.set()
            with contextlib.suppress(OSError):
                self._process.kill()

        timer = threading.Timer(timeout_s, expire)
        timer.daemon = True
        timer.start()
        line = self._replies.readline()
        timer.cancel()
        timer.join()
        complete = line.endswith(b"\n")
        if not complete and not late.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)  # to learn how it ended by itself
        if not complete or late.is_set():
            self.stop()
        if not complete:
            if late.is_set() or self._process.returncode == -_ALARM:
                raise CallTimeout(f"it took longer than {timeout_s:g} s")
            raise CallCrashed(f"it {_ending(self._process.returncode)}")
        reply = json.loads(line)
        if "value" in reply:
            return reply["value"]
        if reply["mendable"]:
            raise TaskError(reply["message"])
        raise type(reply["raised"], (CallRaised,), {})(reply["message"])


def serve() -> None:
    """The process's side: build the object, then answer requests until stdin ends."""
    replies = os.fdopen(os.dup(1), "wb")
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)  # what user code prints goes to stderr, not between the replies
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    factory, arguments = pickle.load(requests)
    module, _, function = factory.partition(":")
    target: Any = None

    def start() -> None:
        nonlocal target
        target = getattr(importlib.import_module(module), function)(*arguments)

    if not _answer(replies, start):
        return
    while True:
        try:
            method, arguments, timeout_s = pickle.load(requests)
        except EOFError:
            return
        if hasattr(signal, "setitimer"):  # should the parent die meanwhile, end all the same
            signal.setitimer(signal.ITIMER_REAL, timeout_s + _GRACE_S)
        _answer(replies, lambda m=method, a=arguments: getattr(target, m)(*a))
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(replies: BinaryIO, work: Any) -> bool:
    """Write what `work` returns or raises as one line; whether it returned."""
    try:
        line = json.dumps({"value": work()})
        returned = True
    except Exception as error:
        line = json.dumps(
            {
                "raised": type(error).__name__,
                "message": str(error) + _place(error),
                "mendable": isinstance(error, UserError),
            }
        )
        returned = False
    replies.write(line.encode() + b"\n")
    replies.flush()
    return returned


def _place(error: Exception) -> str:
    """Where the user's code raised: the innermost line that is no library's."""
    if isinstance(error, UserError):
        return ""
    here = Path(__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        library = file.is_relative_to(sys.prefix) or file.is_relative_to(sys.base_prefix)
        if file.parent != here and not library and not frame.filename.startswith("<"):
            return f" ({file.name}, line {frame.lineno})"
    return ""


def _ending(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"exited with code {code}"


def _stop_all(processes: list[_Process]) -> None:
    while processes:
        processes.pop().stop()


_ALARM = int(getattr(signal, "SIGALRM", 0))

"""Run code that may hang, crash or misbehave in processes that can be killed.

A `Workers` object owns processes that each build one object from a factory and
answer calls of its methods under a wall-clock deadline and with bounded memory.
A process that is late, dies or runs out of memory is replaced at the next call,
and what it started ends with it; concurrent callers get one process each.

The processes are plain interpreters, not forks and not `multiprocessing`
children: JAX's threads make a fork unsafe, and a user's script is never imported
again.  They hold no accelerator (JAX_PLATFORMS=cpu), hash strings the same way
in every run (PYTHONHASHSEED=0) and end when this process does.  Requests are
pickles of our own objects; replies are JSON of bounded length, so that nothing
that a scorer was tricked into writing is ever unpickled here.  What it prints is
passed on to stderr up to a limit.  This is a guard against accidents, not a
sandbox: a process has the user's rights, files, network and environment.
"""

import contextlib
import importlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from pathlib import Path
from typing import Any, BinaryIO

from fst_jax.errors import TaskError, UserError

_START_S = 300.0  # a task may load a large data set
_GRACE_S = 5.0
_LOOK_S = 0.5  # between two looks whether a process is still there
_LONGEST_REPLY = 16 << 20  # bytes
_MOST_PRINTED = 1 << 20  # bytes that one process may print
_OUT_OF_MEMORY = 77  # exit code
MEMORY_GB = 4.0
# Libraries of linear algebra take memory for every thread, and one is enough here.
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class CallTimeout(Exception):
    """The call took longer than its deadline; its process was killed."""


class CallCrashed(Exception):
    """The process died in the call, by a signal or by exiting, or gave what is no reply."""


class CallOverMemory(CallCrashed):
    """The call needed more memory than its process may have; the process was ended."""


class CallRaised(Exception):
    """The code raised; a subclass named like the original exception carries its message."""


class Workers:
    """Calls methods of one object in killable processes; thread-safe."""

    def __init__(self, factory: str, *arguments: Any, memory_gb: float = MEMORY_GB):
        """`factory` is "module:function"; called with `arguments`, it makes the object.

        `memory_gb` (10⁹ bytes) is what each process may allocate, on Linux; what it starts may
        have as much again.  The first process starts at once and in the background.
        """
        self._start = (factory, arguments, int(memory_gb * 1e9))
        self._lock = threading.Lock()
        self._idle = [_Process(*self._start)]
        self._end = weakref.finalize(self, _stop_all, self._idle)

    def call(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        """What `method` returns, which must be JSON.

        Raises:
          CallTimeout, CallCrashed, CallOverMemory, CallRaised: see there.
          UserError: the factory or the method raised one, or the process cannot start.
        """
        with self._lock:
            process = self._idle.pop() if self._idle else None
        if process is not None and not process.alive():
            process.stop()
            process = None
        process = process or _Process(*self._start)
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

    def __init__(self, factory: str, arguments: tuple[Any, ...], memory: int):
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore::SyntaxWarning",
                "-c",
                f"from fst_jax.tasks.worker import serve; serve({memory})",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **dict.fromkeys(_ONE_THREAD, "1"),
                **os.environ,
                "PYTHONPATH": path,
                "PYTHONHASHSEED": "0",
                "JAX_PLATFORMS": "cpu",
            },
            start_new_session=True,  # Ctrl-C is ours to handle, and its children die with it
        )
        assert process.stdin is not None and process.stdout is not None
        self._process, self._requests, self._replies = process, process.stdin, process.stdout
        threading.Thread(target=_pass_on, args=(process.stderr,), daemon=True).start()
        self._received = bytearray()
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
            remedy = "; raise task.memory_gb" if isinstance(error, CallOverMemory) else ""
            raise TaskError(f"the task's worker process did not start: {error}{remedy}") from error
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
        line = self._line(time.monotonic() + timeout_s)
        if line is None:
            ended = self._ended(1.0)
            self.stop()
            code = self._process.returncode
            if not ended or code == -_ALARM:
                raise CallTimeout(f"it took longer than {timeout_s:g} s")
            if code == _OUT_OF_MEMORY:
                raise CallOverMemory("it needed more memory than it may have")
            raise CallCrashed(f"it {_ending(code)}")
        try:
            reply = json.loads(line)
            if "value" in reply:
                return reply["value"]
            raised, message, mendable = reply["raised"], reply["message"], reply["mendable"]
            kind = type(raised, (CallRaised,), {})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self.stop()
            raise CallCrashed("it gave what is no reply") from error
        raise TaskError(message) if mendable else kind(message)

    def _line(self, deadline: float) -> bytes | None:
        """The next reply, or None where the process is late or has ended.

        The end of the pipe alone would not tell: a child that was forked may hold it open.
        """
        descriptor, waiting = self._replies.fileno(), select.poll()
        waiting.register(descriptor, select.POLLIN)
        while b"\n" not in self._received[-(1 << 16) :]:
            left = deadline - time.monotonic()
            if waiting.poll(1000 * max(0.0, min(left, _LOOK_S))):
                part = os.read(descriptor, 1 << 16)
                if not part or len(self._received) > _LONGEST_REPLY:
                    return None
                self._received += part
            elif left <= 0 or self._ended(0):
                return None
        line, _, more = bytes(self._received).partition(b"\n")
        self._received.clear()
        return b"" if more else line  # one reply to one request

    def _ended(self, wait_s: float) -> bool:
        """Whether the process ends by itself within this time.

        It is not reaped yet, so that its number is still that of its group.
        """
        until = time.monotonic() + wait_s
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        while os.waitid(os.P_PID, self._process.pid, flags) is None:
            if time.monotonic() >= until:
                return False
            time.sleep(0.01)
        return True


def serve(memory: int) -> None:
    """The process's side: build the object, then answer requests until stdin ends.

    `memory` is what it may allocate, in bytes.
    """
    _limit_memory(memory)
    try:
        _serve()
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)


def _serve() -> None:
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
    own = os.getpid()
    try:
        line = json.dumps({"value": work()})
        if len(line) >= _LONGEST_REPLY:
            raise ValueError(f"the score takes {len(line)} bytes: shorten its feedback")
        returned = True
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)  # what holds it would not be given back
    except (SystemExit, KeyboardInterrupt):
        os._exit(1)
    except Exception as error:
        line = json.dumps(
            {
                "raised": type(error).__name__,
                "message": str(error) + _place(error),
                "mendable": isinstance(error, UserError),
            }
        )
        returned = False
    if os.getpid() != own:
        os._exit(0)  # a child that the work forked, and that came back from it as well
    replies.write(line.encode() + b"\n")
    replies.flush()
    return returned


def _limit_memory(memory: int) -> None:
    """Bound what this process and each of its children may allocate; Linux alone heeds it."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = memory if most == resource.RLIM_INFINITY else min(memory, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _pass_on(printed: BinaryIO) -> None:
    """Copy what a process prints to stderr, the first `_MOST_PRINTED` bytes of it."""
    left = _MOST_PRINTED
    with printed, contextlib.suppress(OSError):
        while part := os.read(printed.fileno(), 1 << 16):
            if left > 0:
                # Not through sys.stderr, whose lock may not be held when the interpreter ends.
                os.write(2, part[:left])
                left -= len(part)
                if left <= 0:
                    os.write(2, b"\n[a scorer prints more than is shown]\n")


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

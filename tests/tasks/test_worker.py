"""Killable workers: deadlines, crashes, exceptions, threads, and their end."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fst_jax.errors import TaskError
from fst_jax.tasks.worker import CallCrashed, CallOverMemory, CallRaised, CallTimeout, Workers

HOSTED = """
import ctypes, os, re, subprocess, sys, time

class Hosted:
    def echo(self, value): return value
    def pid(self): return os.getpid()
    def sleep(self, seconds): time.sleep(seconds)
    def backtrack(self): re.fullmatch(r"(a+)+b", "a" * 40)  # holds the GIL
    def segfault(self): ctypes.string_at(0)
    def leave(self): os._exit(3)
    def fail(self): return 1 / 0
    def chatter(self): print("not a reply"); sys.stdin.read(); return "fine"
    def child(self):
        subprocess.Popen(["sleep", "60"]); time.sleep(60)
    def allocate(self, gigabytes): return len(bytearray(int(gigabytes * 1e9)))
    def allocate_without_end(self):
        held = []
        while True: held.append(bytearray(10_000_000))
    def fork_and_return(self): return os.fork() and "parent"
    def fork_and_hang(self):
        if os.fork() == 0:
            os.setsid(); time.sleep(30)
        time.sleep(60)
    def fork_and_die(self):
        if os.fork() == 0: time.sleep(30)
        os._exit(4)
    def shout(self, descriptor):
        while True: os.write(descriptor, b"x" * 100_000)
    def leave_politely(self): sys.exit("enough")
    def interrupt(self): raise KeyboardInterrupt
    def nan(self): return [float("nan"), float("inf"), 10**400]
    def huge(self): return "x" * (20 << 20)
    def deep(self):
        value = []
        for _ in range(100_000): value = [value]
        return value
    def forge(self):
        for descriptor in range(3, 10):
            try: os.write(descriptor, b'{"value": 1}\\nno reply\\n')
            except OSError: pass
        return "fine"
    def environment(self): return [os.environ["JAX_PLATFORMS"], "jax" in sys.modules]
"""


@pytest.fixture
def workers(tmp_path, monkeypatch):
    (tmp_path / "hosted.py").write_text(HOSTED)
    monkeypatch.syspath_prepend(tmp_path)
    workers = Workers("hosted:Hosted")
    yield workers
    workers.close()


def test_a_worker_persists_and_holds_no_accelerator(workers):
    first = workers.call("pid", timeout_s=10)
    assert first == workers.call("pid", timeout_s=10) != os.getpid()
    assert workers.call("echo", {"a": [1, "é\ud800"]}, timeout_s=10) == {"a": [1, "é\ud800"]}
    assert workers.call("environment", timeout_s=10) == ["cpu", False]
    assert workers.call("chatter", timeout_s=10) == "fine"


@pytest.mark.parametrize("method", ["sleep", "backtrack", "child"])
def test_a_late_call_is_killed_and_the_worker_replaced(workers, method):
    first = workers.call("pid", timeout_s=10)
    start = time.monotonic()
    with pytest.raises(CallTimeout, match="longer than 0.3 s"):
        workers.call(method, *([60] if method == "sleep" else []), timeout_s=0.3)
    assert time.monotonic() - start < 5
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert workers.call("pid", timeout_s=10) != first


@pytest.mark.parametrize(("method", "how"), [("segfault", "SIGSEGV"), ("leave", "code 3")])
def test_a_crash_is_told_and_the_worker_replaced(workers, method, how):
    with pytest.raises(CallCrashed, match=how):
        workers.call(method, timeout_s=10)
    assert workers.call("echo", 1, timeout_s=10) == 1


def test_memory_is_bounded_and_the_worker_replaced(tmp_path, monkeypatch):
    (tmp_path / "hosted.py").write_text(HOSTED)
    monkeypatch.syspath_prepend(tmp_path)
    workers = Workers("hosted:Hosted", memory_gb=0.3)
    first = workers.call("pid", timeout_s=10)
    for method, arguments in (("allocate", [1]), ("allocate_without_end", [])):
        with pytest.raises(CallOverMemory, match="more memory than it may have"):
            workers.call(method, *arguments, timeout_s=30)
    assert workers.call("pid", timeout_s=10) != first
    assert workers.call("allocate", 0.1, timeout_s=10) == 100_000_000
    workers.close()
    with pytest.raises(TaskError, match="did not start: .* raise task.memory_gb"):
        Workers("json:loads", " " * 100_000_000, memory_gb=0.05).call("echo", timeout_s=10)


@pytest.mark.parametrize(
    ("method", "arguments", "error", "how"),
    [
        ("fork_and_die", [], CallCrashed, "code 4"),
        ("fork_and_hang", [], CallTimeout, "longer"),  # its child holds all pipes open
        ("shout", [1], CallTimeout, "longer"),
        ("shout", [2], CallTimeout, "longer"),
        ("leave_politely", [], CallCrashed, "code 1"),
        ("interrupt", [], CallCrashed, "code 1"),
        ("huge", [], CallRaised, r"takes \d+ bytes: shorten"),
        ("deep", [], CallRaised, "recursion"),
        ("forge", [], CallCrashed, "no reply"),
    ],
)
def test_whatever_a_call_does_it_is_told_in_time(workers, capfd, method, arguments, error, how):
    first = workers.call("pid", timeout_s=10)
    start = time.monotonic()
    with pytest.raises(error, match=how):
        workers.call(method, *arguments, timeout_s=1.0)
    assert time.monotonic() - start < 5
    assert workers.call("echo", "as before", timeout_s=10) == "as before"
    if error is not CallRaised:
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)
    printed = capfd.readouterr()
    assert not printed.out and len(printed.err) < (1 << 20) + 100 and "Traceback" not in printed.err
    assert ("more than is shown" in printed.err) == (method == "shout")


def test_a_child_that_returns_as_well_answers_nothing(workers):
    first = workers.call("pid", timeout_s=10)
    for n in range(5):
        assert workers.call("fork_and_return", timeout_s=10) == "parent"
        assert workers.call("echo", n, timeout_s=10) == n
    assert workers.call("pid", timeout_s=10) == first


def test_numbers_that_json_does_not_have_travel(workers):
    nan, infinity, large = workers.call("nan", timeout_s=10)
    assert nan != nan and infinity == float("inf") and large == 10**400


def test_an_exception_keeps_its_name_message_and_place(workers):
    with pytest.raises(CallRaised, match=r"division by zero \(hosted.py, line 11\)") as caught:
        workers.call("fail", timeout_s=10)
    assert type(caught.value).__name__ == "ZeroDivisionError"
    assert workers.call("echo", 1, timeout_s=10) == 1


def test_what_cannot_travel_is_told(workers):
    with pytest.raises(TaskError, match="cannot be sent"):
        workers.call("echo", lambda: 0, timeout_s=10)
    with pytest.raises(CallRaised, match="not JSON serializable"):
        workers.call("echo", {1, 2}, timeout_s=10)


def test_threads_do_not_wait_for_each_other(workers):
    workers.call("echo", 0, timeout_s=10)
    pids = []
    threads = [
        threading.Thread(target=lambda: pids.append(workers.call("pid", timeout_s=10)))
        for _ in range(4)
    ]
    slow = threading.Thread(target=lambda: workers.call("sleep", 1.5, timeout_s=10))
    for thread in [slow, *threads]:
        thread.start()
    for thread in [slow, *threads]:
        thread.join()
    assert len(pids) == 4


def test_a_factory_that_fails_is_a_task_error():
    with pytest.raises(TaskError, match="ModuleNotFoundError: No module named 'nowhere'"):
        Workers("nowhere:Hosted").call("echo", timeout_s=10)


SCRIPT = """
import os, signal, sys
print("imported", flush=True)
from fst_jax.tasks.worker import Workers
workers = Workers("hosted:Hosted")
print(workers.call("pid", timeout_s=10), flush=True)
if "killed" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("ending", ["normal", "killed"])
def test_a_script_without_main_guard_works_and_workers_die_with_it(tmp_path, ending):
    (tmp_path / "hosted.py").write_text(HOSTED)
    (tmp_path / "script.py").write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    result = subprocess.run(
        [sys.executable, "script.py", ending],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=30,
    )
    imported, pid = result.stdout.split()
    assert imported == "imported" and not result.stderr  # once, and without a word
    deadline = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(int(pid), 0)
            time.sleep(0.05)

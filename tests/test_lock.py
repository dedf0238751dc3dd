"""One process at a time in a folder: the second is told of the first, the dead are no bar."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from fst_jax import lock
from fst_jax.errors import RunError
from fst_jax.lock import Lock
from fst_jax.watchdog import HEARTBEAT
from tests.processes import ROOT

HOLD = """
import sys, time
from pathlib import Path
from fst_jax.lock import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_of_the_first(holder, tmp_path):
    said = f"in use by process {holder.pid} on {socket.gethostname()}"
    for _ in range(2):
        with pytest.raises(RunError, match=said):
            Lock(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock = Lock(tmp_path)  # nobody unlocked it
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    lock.release()
    Lock(tmp_path).release()


@pytest.mark.parametrize("heart", ["beats", "stopped just now", "stopped long ago"])
def test_a_live_run_on_another_host_is_seen_by_its_heartbeat(tmp_path, heart, monkeypatch):
    """As where a shared file system keeps locks to each host; one that stopped is no bar."""
    monkeypatch.setattr(lock, "_FRESH_S", 3.0)
    (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    (tmp_path / HEARTBEAT).write_text("{}")
    then = time.time() - 300 * (heart == "stopped long ago")
    os.utime(tmp_path / HEARTBEAT, (then, then))
    if heart == "beats":
        beat = threading.Timer(1.0, (tmp_path / HEARTBEAT).write_text, ("{}",))
        beat.start()
        with pytest.raises(RunError, match="process 7 on elsewhere"):
            Lock(tmp_path)
        beat.join()
    else:
        Lock(tmp_path).release()


def test_a_damaged_lock_is_taken(tmp_path):
    (tmp_path / "lock").write_bytes(b"\xff[")
    Lock(tmp_path).release()


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(RunError, match="cannot write"):
        Lock(tmp_path / "missing")

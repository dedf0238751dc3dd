"""The watchdog: a heartbeat to be seen, stalls that end the process, notices that are heard."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from fst_jax import watchdog
from fst_jax.watchdog import EXIT_CODE, HEARTBEAT, Watchdog, beat, notice_of, phase
from tests.processes import ROOT


def wait_for(path, seconds=20.0):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    return json.loads(path.read_text())


def test_the_heartbeat_says_where_the_run_is(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "_WRITE_S", 0.2)
    with Watchdog(tmp_path, {}, "resume"):
        phase("rollout", 7)
        beat()
        (tmp_path / HEARTBEAT).unlink(missing_ok=True)
        told = wait_for(tmp_path / HEARTBEAT)
        assert (told["phase"], told["step"], told["pid"]) == ("rollout", 7, os.getpid())
        assert told["host"] == socket.gethostname() and told["beats"] == 2
        phase("train")
        time.sleep(0.5)
        (tmp_path / HEARTBEAT).unlink(missing_ok=True)
        told = wait_for(tmp_path / HEARTBEAT)
        assert (told["phase"], told["step"]) == ("train", 7) and told["idle_s"] >= 0.4
    assert list(tmp_path.iterdir()) == []
    phase("train")  # nobody watches
    beat()


STALL = """
import re, sys, threading, time
from pathlib import Path
from fst_jax import watchdog
from fst_jax.watchdog import Watchdog, beat, phase

watchdog._WRITE_S, watchdog._GRACE_S = 0.1, 1.0

def hangs_here():
    {how}

with Watchdog(Path(sys.argv[1]), {{"rollout": 1.0}}, "python -m fst_jax.train --config mine.yaml"):
    phase("train", 3)
    time.sleep(1.5)  # a phase without a limit
    phase("rollout")
    for _ in range(4):
        time.sleep(0.5)
        beat()
    print("moving", flush=True)
    hangs_here()
"""


@pytest.mark.parametrize(
    "how",
    ["threading.Event().wait(60)", "re.match(r'(a|a)*b', 'a' * 60)"],
    ids=["waits", "holds Python's lock"],
)
def test_a_stall_ends_the_process_with_its_stacks(how, tmp_path):
    code = STALL.format(how=how)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "moving\n" and time.monotonic() - began < 30
    assert "in hangs_here" in done.stderr
    if "re.match" in how:
        assert done.returncode == 1 and "Timeout" in done.stderr
        return
    assert done.returncode == EXIT_CODE
    assert "nothing has moved in phase rollout of step 3" in done.stderr
    assert "--config mine.yaml" in done.stderr and "watch.stall_s.rollout" in done.stderr
    (stacks,) = tmp_path.glob("stalled.*.txt")
    assert "in hangs_here" in stacks.read_text()


ELSEWHERE = """
import sys, time
from pathlib import Path
from fst_jax import watchdog
from fst_jax.watchdog import Watchdog, elsewhere, phase

watchdog._WRITE_S = 0.1
with Watchdog(Path(sys.argv[1]), {"rollout": 0.5}, "resume"):
    phase("rollout")
    with elsewhere():
        time.sleep(2)
    print("came back", flush=True)
    time.sleep(60)
"""


def test_who_waits_for_another_process_has_not_stalled(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "came back\n" and done.returncode == EXIT_CODE


def test_a_notice_is_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "_ASK_S", 0.1)
    answers, asked = ["NONE", "FALSE", "TERMINATE_ON_HOST_MAINTENANCE"], []

    class Metadata(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Metadata-Flavor"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[min(len(asked), len(answers)) - 1].encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/computeMetadata/v1/instance/maintenance-event"
    heard = threading.Event()
    with Watchdog(tmp_path, {}, "resume", noticed=notice_of(url), leave=lambda why: heard.set()):
        assert heard.wait(20)
    server.shutdown()
    server.server_close()
    assert len(asked) >= 3
    assert set(asked) == {("/computeMetadata/v1/instance/maintenance-event", "Google")}
    assert not notice_of(url)() and not notice_of(None)()  # nobody is there

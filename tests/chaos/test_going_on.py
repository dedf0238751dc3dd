"""Runs that stall, are started twice, lose their machine or move to another one."""

import json
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fst_jax.watchdog import EXIT_CODE
from tests.chaos.runs import Machine, assert_same, result, wait_for
from tests.processes import ROOT
from tests.tiny_run import arguments, events

ONE, EIGHT = Machine(1, 1), Machine(1, 8)


def start(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fst_jax.train", *argv],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_scorer_that_hangs_is_found_and_the_run_goes_on_when_it_is_mended(
    finished: Path, model: Path, task: Path, tmp_path: Path
) -> None:
    hangs = tmp_path / "hangs"
    own = tmp_path / "letters.py"
    own.write_text(
        task.read_text().replace(
            "        good = any(",
            f"        import os, time\n        while os.path.exists({str(hangs)!r}):\n"
            "            time.sleep(0.1)\n        good = any(",
        )
    )
    own.with_suffix(".yaml").write_text(task.with_suffix(".yaml").read_text())
    limits = {phase: 20.0 for phase in ("sync", "evaluate", "evolve", "rollout", "train")}
    argv = arguments(model, own, tmp_path, "--task.timeout_s", "60")
    argv += ["--watch.stall_s", json.dumps(limits)]
    process = start(argv)
    folder = tmp_path / "ci_tiny"
    wait_for(folder / "metrics.jsonl", '"event": "step", "step": 3,')
    hangs.touch()
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == EXIT_CODE, printed
    assert "nothing has moved in phase" in printed and "in side_by_side" in printed
    assert f"python -m fst_jax.train --config {folder / 'config.yaml'}" in printed
    assert list(folder.glob("stalled.*.txt"))
    hangs.unlink()
    again = start(argv)
    printed, _ = again.communicate(timeout=300)
    assert again.returncode == 0, printed
    assert_same(result(folder), result(finished / "ci_tiny"))


@pytest.mark.slow
def test_a_second_process_is_refused_and_a_stop_lets_the_next_one_in(
    finished: Path, model: Path, task: Path, tmp_path: Path
) -> None:
    argv = arguments(model, task, tmp_path)
    folder = tmp_path / "ci_tiny"
    first = start(argv)
    wait_for(folder / "metrics.jsonl", '"event": "eval"')
    assert json.loads((folder / "heartbeat.json").read_text())["pid"] == first.pid
    before = first.poll()
    second = start(argv)
    printed, _ = second.communicate(timeout=300)
    if before is None and first.poll() is None:  # else it was too fast to be in the way
        assert second.returncode == 2 and f"in use by process {first.pid}" in printed, printed
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=300)
    third = start(argv)
    printed, _ = third.communicate(timeout=300)
    assert third.returncode == 0, printed
    assert_same(result(folder), result(finished / "ci_tiny"))
    assert not (folder / "heartbeat.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 75])
def test_a_notice_of_maintenance_is_as_sigterm(
    code: int, model: Path, task: Path, tmp_path: Path
) -> None:
    answer = [b"NONE"]

    class Metadata(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer[0])

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    argv = arguments(model, task, tmp_path, "--watch.notice_url", url, "--train.steps", "400")
    argv += ["--watch.stopped_exit", f"{code}"] if code else []
    process = start(argv)
    folder = tmp_path / "ci_tiny"
    wait_for(folder / "metrics.jsonl", '"event": "step", "step": 1,')
    answer[0] = b"TERMINATE_ON_HOST_MAINTENANCE"
    printed, _ = process.communicate(timeout=300)
    server.shutdown()
    server.server_close()
    assert process.returncode == code and "about to be taken back" in printed, printed
    assert "to go on:" in printed
    done = max(event["step"] for event in events(folder) if event["event"] == "step")
    assert (folder / f"checkpoints/{done}").is_dir()


@pytest.mark.slow
def test_a_run_goes_on_over_other_devices(model: Path, task: Path, tmp_path: Path) -> None:
    """From 8 devices as (8 fsdp) to (4 fsdp × 2 tensor) and to one: the same parameters."""
    folder = tmp_path / "ci_tiny"
    exports = []
    for machine, mesh, steps in (
        (EIGHT, '{"fsdp": 8}', 2),
        (EIGHT, '{"fsdp": 4, "tensor": 2}', 3),
        (ONE, '{"fsdp": -1}', 4),
    ):
        before = folder / "export"
        kept = load_file(before / "model.safetensors") if before.exists() else None
        argv = arguments(
            model, task, tmp_path, "--parallel.mesh", mesh, "--train.steps", str(steps)
        )
        assert machine.run(argv, tmp_path) == [0], (tmp_path / "0.log").read_text()
        exports.append((kept, load_file(folder / "export/model.safetensors")))
    steps = [event["step"] for event in events(folder) if event["event"] == "step"]
    assert steps == [1, 2, 3, 4]
    for kept, moved in exports[1:]:
        assert kept is not None
        assert any((kept[name] != moved[name]).any() for name in kept)  # a step further on
        for name, weight in kept.items():
            np.testing.assert_allclose(moved[name], weight, atol=5e-3)

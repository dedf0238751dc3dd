"""Algorithm 1 with a model served by another process: the same run, and what may go wrong."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rollout import faults
from tests.rollout.faults import Faults
from tests.rollout.served import Served, serving
from tests.tiny_run import arguments, events, run

VARIES = {"time_s", "seconds", "compiles", "mfu", "sync_mismatch"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served_runs")


@pytest.fixture(scope="module")
def served(model: Path, root: Path) -> Iterator[Served]:
    with serving(model, "--weights-root", root, "--slots", 32) as server:
        yield server


def remote(url: str, *more: str) -> tuple[str, ...]:
    return ("--rollout.engine", "sglang", "--rollout.url", url, *more)


def same(one: object, other: object) -> bool:
    """Equal, but for the last digits of what depends on the order of sums."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys() - VARIES
        return keys == other.keys() - VARIES and all(same(one[k], other[k]) for k in keys)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, rel=1e-3, abs=1e-5)
    return one == other


def test_a_served_model_gives_the_run_of_the_sampler_in_process(
    finished: Path, served: Served, model: Path, task: Path, root: Path, monkeypatch
) -> None:
    assert run(monkeypatch, arguments(model, task, root / "over_http", *remote(served.url))) == 0
    here, there = events(finished / "ci_tiny"), events(root / "over_http/ci_tiny")
    assert len(here) == len(there)
    for one, other in zip(here, there, strict=True):
        assert same(one, other), (one, other)
    steps = [event for event in there if event["event"] == "step"]
    assert all(0 < event["sync_mismatch"] < 1e-4 for event in steps)
    assert "sync_mismatch" not in next(event for event in here if event["event"] == "step")


@pytest.mark.slow
def test_adapters_are_served_merged(
    served: Served, model: Path, task: Path, root: Path, monkeypatch
) -> None:
    lora = ("--slow.lora_rank", "2", "--slow.learning_rate", "0.01", "--fast.enabled", "false")
    argv = arguments(model, task, root / "adapters", *remote(served.url), *lora)
    assert run(monkeypatch, [*argv, "--train.steps", "3", "--eval.every", "0"]) == 0
    found = [e for e in events(root / "adapters/ci_tiny") if e["event"] == "step"]
    assert found[-1]["kl_k3"] > 0.01  # far from the base, and yet the server agrees
    assert all(0 < event["sync_mismatch"] < 1e-4 for event in found)


@pytest.mark.slow
def test_student_and_teacher_take_turns_on_a_server(
    served: Served, model: Path, task: Path, root: Path, monkeypatch
) -> None:
    """Fast rounds ask the base, groups the student, and the server agrees with either."""
    distill = ("--distill.enabled", "true", "--slow.learning_rate", "0.01", "--eval.every", "0")
    argv = arguments(model, task, root / "distilled", *remote(served.url), *distill)
    assert run(monkeypatch, [*argv, "--train.steps", "3"]) == 0
    steps = [e for e in events(root / "distilled/ci_tiny") if e["event"] == "step"]
    assert len(steps) == 3
    assert all(0 < event["sync_mismatch"] < 1e-4 for event in steps)
    assert all(event["mismatch_k3"] < 1e-6 and event["distill_kl"] > 0 for event in steps)


def test_a_model_that_disagrees_is_not_trained_on(
    served: Served, model: Path, task: Path, root: Path, monkeypatch, capsys
) -> None:
    """The proxy claims that an update was made, and passes none on."""
    with Faults(served.url) as proxy:

        def pretend(handler, response):
            faults.send(handler, 200, b'{"success": true, "message": "", "num_paused_requests": 0}')
            return True

        proxy.spoil("/generate", *[_named(root)] * 200)
        proxy.spoil("/model_info", None, *[_named(root)] * 200)
        proxy.spoil("/update_weights_from_disk", None, *[pretend] * 50)
        argv = arguments(model, task, root / "lied_to", *remote(proxy.url))
        assert run(monkeypatch, argv) == 2
    error = capsys.readouterr().err
    assert "disagree by" in error and "rollout.max_mismatch" in error
    assert not [e for e in events(root / "lied_to/ci_tiny") if e["event"] == "step"][1:]


def _named(root: Path):
    """Answers under the name of the newest weights, whatever made them."""

    def rename(answers):
        folders = sorted((root / "lied_to/ci_tiny/weights").glob("*-*"))
        label = max(folders, key=lambda path: path.stat().st_mtime_ns).name if folders else None
        for answer in answers if isinstance(answers, list) else [answers]:
            meta = answer.get("meta_info", answer)
            meta["weight_version"] = label or meta["weight_version"]
            meta.pop("weight_versions", None)

    return faults.changed(rename)


def test_a_run_survives_its_server_and_goes_on_where_it_stopped(
    finished: Path, model: Path, task: Path, root: Path, monkeypatch, capsys
) -> None:
    more = ("--checkpoint.every", "1", "--rollout.patience_s", "3")
    with serving(model, "--weights-root", root, "--slots", 32) as first:
        argv = arguments(model, task, root / "bereft", *remote(first.url, *more))
        port = int(first.url.rsplit(":", 1)[1])
        watcher = threading.Thread(target=_kill_after_step, args=(first, root / "bereft", 2))
        watcher.start()
        assert run(monkeypatch, argv) == 2
        watcher.join()
    error = capsys.readouterr().err
    assert "has failed for" in error and "resume" in error and "Traceback" not in error
    assert run(monkeypatch, argv) == 2  # it is still not there
    with serving(model, "--weights-root", root, "--slots", 32, port=port):
        assert run(monkeypatch, argv) == 0
    there = events(root / "bereft/ci_tiny")
    for one, other in zip(events(finished / "ci_tiny"), there, strict=True):
        assert same(one, other), (one, other)


def _kill_after_step(server: Served, output: Path, step: int) -> None:
    path = output / "ci_tiny/metrics.jsonl"
    while not (path.is_file() and f'"event": "step", "step": {step},' in path.read_text()):
        if server.process.poll() is not None:
            return
        threading.Event().wait(0.01)
    server.process.send_signal(signal.SIGKILL)


def test_a_server_that_is_not_there_is_named(
    model: Path, task: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    url = "http://127.0.0.1:9"
    argv = arguments(model, task, tmp_path / "out", *remote(url, "--rollout.patience_s", "1"))
    assert run(monkeypatch, argv) == 2
    error = capsys.readouterr().err
    first, last = error.splitlines()[0], error.splitlines()[-1]
    assert url in first and "it is tried for another" in first
    assert last.startswith("error: ") and url in last and "Traceback" not in error
    argv = arguments(model, task, tmp_path / "out", *remote("localhost:30000"))
    assert run(monkeypatch, argv) == 2
    assert "rollout.url" in capsys.readouterr().err

"""Whole runs whose reflector is a model behind HTTP: it may die, and so may the run."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fst_jax.fast import language_model
from fst_jax.fast.pool import Pool
from tests.fast.endpoint import Endpoint, chat, editor, serving
from tests.tiny_run import arguments, events, run

pytestmark = pytest.mark.slow
VARIES = {"time_s", "seconds", "compiles", "mfu"}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as endpoint:
        yield endpoint


def asking(endpoint: Endpoint, *more: str) -> tuple[str, ...]:
    return ("--fast.reflector", "lm", "--fast.lm_url", endpoint.url, *more)


def rounds(folder: Path) -> list[dict[str, Any]]:
    return [event for event in events(folder / "ci_tiny") if event["event"] == "evolve"]


def test_a_run_goes_on_without_its_reflector_and_stops_where_the_user_must_help(
    endpoint: Endpoint, model: Path, task: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(language_model, "FIRST_PAUSE_S", 0.001)
    in_first = 2  # requests that are answered

    def dies(body: dict[str, Any]) -> Any:
        return editor(body) if len(endpoint.requests) <= in_first else (500, {}, b"out of memory")

    endpoint.answer = dies
    more = ("--fast.lm_price_in", "1", "--fast.lm_price_out", "10", "--fast.acceptance", "none")
    argv = arguments(model, task, tmp_path, "--slow.enabled", "false", *asking(endpoint, *more))
    assert run(monkeypatch, argv) == 0
    first, second = rounds(tmp_path)
    assert first["reflection_calls"] == first["accepted"] == in_first
    assert first["reflection_cost"] == pytest.approx(in_first * (11 * 1 + 7 * 10) / 1e6)
    assert second["reflection_cost"] == 0 and second["reflection_calls"] == 10
    assert second["rejected_by_reason"]["server error"] == 2 and second["accepted"] == 0
    assert second["staleness"] is not None and first["staleness"] is None
    pools = [Pool.load(tmp_path / f"ci_tiny/pool/{step}.json") for step in (0, 2)]
    texts = [{prompt.text for prompt in pool.prompts} for pool in pools]
    assert texts[1] <= texts[0] and pools[1].rounds == 2
    kept = [json.loads(line) for line in (tmp_path / "ci_tiny/reflections.jsonl").open()]
    assert len(kept) == in_first and all("It lacks a line." in entry["content"] for entry in kept)

    endpoint.answer, endpoint.replies = None, [(401, {}, {"error": {"message": "no key"}})]
    argv[argv.index(str(tmp_path))] = str(tmp_path / "refused")
    assert run(monkeypatch, argv) == 2
    error = capsys.readouterr().err
    assert "answers 401: no key; check the key in the environment variable" in error
    assert "Traceback" not in error


def test_a_run_killed_in_a_fast_round_resumes_without_asking_again(
    endpoint: Endpoint, model: Path, task: Path, tmp_path: Path
) -> None:
    def command(output: Path) -> list[str]:
        argv = arguments(model, task, output, *asking(endpoint))
        return [sys.executable, "-m", "fst_jax.train", *argv]

    endpoint.answer = editor
    subprocess.run(command(tmp_path / "whole"), check=True, timeout=600)
    needed = sorted(endpoint.seeds)
    endpoint.requests.clear()
    hanging, killed = threading.Event(), threading.Event()

    def hangs(body: dict[str, Any]) -> Any:
        if len(endpoint.requests) > 3:  # in the second call of the reflector
            hanging.set()
            killed.wait(600)
            return (200, {}, chat("too late"))
        return editor(body)

    endpoint.answer = hangs
    process = subprocess.Popen(command(tmp_path / "halves"))
    kept = tmp_path / "halves/ci_tiny/reflections.jsonl"
    assert hanging.wait(600)
    while kept.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
    process.kill()
    assert process.wait(60) == -9
    killed.set()
    answered = [body["seed"] for body, _ in endpoint.requests[:3]]
    with open(kept, "ab") as file:
        file.write(b'{"request": "torn by the k')
    endpoint.requests.clear()

    endpoint.answer = editor
    subprocess.run(command(tmp_path / "halves"), check=True, timeout=600)
    assert sorted([*answered, *endpoint.seeds]) == needed
    whole, halves = (
        [{key: value for key, value in event.items() if key not in VARIES} for event in found]
        for found in (events(tmp_path / f"{name}/ci_tiny") for name in ("whole", "halves"))
    )
    assert halves == whole
    for step in (0, 2):
        pools = [tmp_path / f"{name}/ci_tiny/pool/{step}.json" for name in ("whole", "halves")]
        assert pools[0].read_bytes() == pools[1].read_bytes()

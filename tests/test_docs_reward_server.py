"""The example of docs/reward_server.md, with its service running and gone."""

import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from fst_jax.errors import TaskError
from fst_jax.settings import load
from fst_jax.tasks.judge import judge
from fst_jax.tasks.registry import load_task
from tests.processes import free_port

PAGE = Path(__file__).parents[1] / "docs/reward_server.md"


def example(name: str) -> str:
    (block,) = re.findall(rf"`{name}`[^\n]*:\n\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return block


@pytest.fixture
def service(tmp_path, monkeypatch):
    """The service at a free port, and its address; task and config are in the working folder."""
    port = free_port()
    for name in ("judge_server.py", "served_sums.py", "served_sums.yaml"):
        (tmp_path / name).write_text(example(name).replace("8765", str(port)))
    monkeypatch.chdir(tmp_path)
    process = subprocess.Popen([sys.executable, "judge_server.py"])
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/judge")
            break
        except httpx.TransportError:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
    yield process
    process.kill()
    process.wait()


def test_the_service_judges_and_its_loss_is_an_error(service):
    config, _ = load(["--config", "served_sums.yaml"], "train", "")
    task = load_task(config.task)
    problem = task.problems("train")[0]
    right = judge(task, problem, f"It is {problem.answer}.")
    assert (right.reward, right.category) == (1.0, "correct")
    assert judge(task, problem, "It is 99.").category == "wrong sum"
    assert judge(task, problem, "half a character: \ud800").category == "no number"
    service.kill()
    service.wait()
    with pytest.raises(TaskError, match=r"task served_sums raised in score\(\)"):
        judge(task, problem, "7")

"""Who may use the server and how much, what happens under load, and how it ends."""

import asyncio
import random
import signal
import subprocess
import sys
import time

import httpx
import pytest

from tests.rollout.served import ROOT, serving, wait_until


def body(**changes):
    sampling = {"max_new_tokens": 8, "ignore_eos": True, "sampling_seed": 1} | changes
    return {"input_ids": [5, 6, 7], "sampling_params": sampling}


def test_a_foreign_address_needs_a_key(weights):
    done = subprocess.run(
        [
            sys.executable, "-m", "fst_jax.serve", "--model", str(weights / "first"),
            "--host", "0.0.0.0",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and "--api-key" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_opens_everything_but_health(weights):
    with serving(weights / "first", "--api-key", "s3cret", "--slots", 2) as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.get(f"{server.url}/metrics").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "s3"}):
            for path in ("/model_info", "/v1/models", "/flush_cache"):
                response = httpx.get(f"{server.url}{path}", headers=headers)
                assert response.status_code == 401
                assert "s3cret" not in response.text
        right = {"authorization": "Bearer s3cret"}
        assert httpx.get(f"{server.url}/model_info", headers=right).status_code == 200
        told = httpx.post(
            f"{server.url}/update_weights_from_disk", headers=right,
            json={"model_path": str(weights / "second")},
        )  # fmt: skip
        assert told.status_code == 400 and "not set" in told.json()["message"]
        # Graceful end: what is under way finishes, what comes is refused.
        with httpx.Client(base_url=server.url, headers=right, timeout=60) as client:
            asked = body(max_new_tokens=450) | {"stream": True}
            with client.stream("POST", "/generate", json=asked) as response:
                lines = response.iter_lines()
                next(lines)
                server.process.send_signal(signal.SIGTERM)
                late = []
                for line in lines:
                    if line and not late:
                        with httpx.Client(base_url=server.url, headers=right) as other:
                            late.append(other.post("/generate", json=body()).status_code)
                    last = line or last if "last" in locals() else line
        assert late == [503] and last == "data: [DONE]"
        assert server.process.wait(30) == 0


def test_a_paused_server_ends_too(weights):
    with serving(weights / "first", "--slots", 2) as server:
        httpx.post(f"{server.url}/pause_generation", json={"mode": "in_place"})
        with httpx.Client(base_url=server.url, timeout=60) as client:
            with client.stream("POST", "/generate", json=body() | {"stream": True}) as response:
                server.process.send_signal(signal.SIGTERM)
                lines = [line for line in response.iter_lines() if line]
        assert '"abort"' in lines[0] and lines[-1] == "data: [DONE]"
        assert server.process.wait(30) == 0


def test_a_second_signal_ends_at_once(weights):
    with serving(weights / "first", "--slots", 2) as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            asked = body(max_new_tokens=500) | {"stream": True, "input_ids": [[5]] * 60}
            with client.stream("POST", "/generate", json=asked) as response:
                lines = response.iter_lines()
                assert next(lines).startswith("data")
                server.process.send_signal(signal.SIGTERM)
                assert "finishing" in server.process.stdout.readline()
                server.process.send_signal(signal.SIGTERM)
                assert server.process.wait(10) == 128 + signal.SIGTERM
        assert server.process.stdout.read() == "stopped; 60 answers were cut off\n"


def test_no_host_header_opens_a_door(weights):
    """Paths are taken from the request line, not from what a client says is the host."""
    with serving(weights / "first", "--api-key", "s3cret", "--slots", 2) as server:
        for host in ("x/health?", "x/metrics#", "localhost"):
            response = httpx.get(f"{server.url}/model_info", headers={"host": host})
            assert response.status_code in (400, 401)


def test_bodies_and_queues_are_bounded(client, served):
    large = client.post("/generate", content=b" " * (1 << 20) + b"{}  ")
    assert large.status_code == 413
    never = client.post("/generate", json=body() | {"input_ids": [[5]] * 25})
    assert never.status_code == 400
    assert "at most 24: send fewer" in never.json()["error"]["message"]
    client.post("/pause_generation", json={"mode": "in_place"})
    asked = body() | {"stream": True, "input_ids": [[5]] * 20}
    with client.stream("POST", "/generate", json=asked):
        wait_until(client, running=0, waiting=20)
        refused = client.post("/generate", json=body() | {"input_ids": [[5]] * 5})
        assert refused.status_code == 429
        assert "limit of 24" in refused.json()["error"]["message"]
    wait_until(client, running=0, waiting=0)  # since the client has gone
    client.post("/continue_generation", json={})
    assert client.post("/generate", json=body() | {"input_ids": [[5]] * 24}).status_code == 200


async def _clients(url: str, seconds: float, count: int) -> dict[str, list[float]]:
    """Clients that ask, each its own prompt, and hang up now and then."""
    taken: dict[str, list[float]] = {"answered": [], "left": [], "refused": []}
    end = time.monotonic() + seconds

    async def one(number: int, client: httpx.AsyncClient) -> None:
        rng = random.Random(number)
        expected = None
        while time.monotonic() < end:
            asked = body(max_new_tokens=24, sampling_seed=number)
            asked["input_ids"] = [number + 10] * (1 + number % 5)
            start = time.monotonic()
            leave = rng.random() < 0.3
            try:
                request = client.post("/generate", json=asked)
                response = await (asyncio.wait_for(request, 0.02) if leave else request)
            except TimeoutError:
                taken["left"].append(time.monotonic() - start)
                continue
            if response.status_code == 429:
                taken["refused"].append(time.monotonic() - start)
                await asyncio.sleep(0.05)
                continue
            assert response.status_code == 200, response.text
            taken["answered"].append(time.monotonic() - start)
            answer = response.json()["output_ids"]
            assert expected in (None, answer), "another client's answer"
            expected = answer

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        await asyncio.gather(*(one(number, client) for number in range(count)))
    return taken


def _memory(pid: int) -> int:
    """Resident KiB of a process."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def _load(client: httpx.Client, served, seconds: float, count: int) -> dict[str, list[float]]:
    taken = asyncio.run(_clients(served.url, seconds, count))
    for _ in range(200):
        (state,) = client.get("/server_info").json()["internal_states"]
        if state["running"] == state["waiting"] == 0:
            break
        time.sleep(0.05)
    assert state["running"] == state["waiting"] == 0
    # All room is there again: as many samples as the limit allows are taken at once.
    assert client.post("/generate", json=body() | {"input_ids": [[5]] * 24}).status_code == 200
    return taken


def test_many_clients_that_come_and_go(client, served):
    taken = _load(client, served, 4, 24)
    assert len(taken["answered"]) > 20 and len(taken["left"]) > 5


@pytest.mark.slow
def test_a_minute_of_load_leaks_nothing(client, served):
    _load(client, served, 10, 64)
    before = _memory(served.process.pid)
    taken = _load(client, served, 60, 64)
    ordered = sorted(taken["answered"])
    print(
        f"{len(ordered)} answered, {len(taken['left'])} left, {len(taken['refused'])} refused; "
        f"p50 {ordered[len(ordered) // 2]:.3f} s, p99 {ordered[len(ordered) * 99 // 100]:.3f} s"
    )
    assert _memory(served.process.pid) < 1.05 * before

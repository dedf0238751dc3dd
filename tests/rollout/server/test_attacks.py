"""The server under requests that no client means to send: it answers, keeps its memory, goes on."""

import asyncio
import collections
import itertools
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from fst_jax.rollout.server import connections, front
from tests.helpers import tiny_model_folder
from tests.rollout.served import Served, serving
from tests.rollout.server.attacks import CONTROLS, exchange, request, wire

KEY = "s3cret"
# 429 and 503 are for a server that is full or going down; there is no other 5xx.
EXPECTED = {100, 200, 400, 401, 404, 405, 408, 413, 429, 431, 501}
GOOD = {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 4, "sampling_seed": 1}}
# What another attack may have changed is set right after it.
RESTORE = ("/continue_generation", "/resume_memory_occupation")


class Victim:
    """A running server, what it says, and what it was asked."""

    def __init__(self, served: Served, root: Path) -> None:
        self.served, self.root = served, root
        self.said: collections.deque[str] = collections.deque(maxlen=5000)
        self.client = httpx.Client(base_url=served.url, timeout=60)
        host, port = served.url.removeprefix("http://").split(":")
        self.address = host, int(port)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.served.process.stdout is not None
        with self.served.process.stdout as stdout:
            self.said.extend(stdout)

    def answer(self) -> list[int]:
        response = self.client.post("/generate", json=GOOD)
        assert response.status_code == 200, response.text
        ids: list[int] = response.json()["output_ids"]
        return ids

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Any path at all, as it stands."""
        url = self.client.base_url.copy_with(raw_path=path.encode())
        return self.client.request(method, url, **more)

    def attack(self, rng: random.Random, count: int) -> collections.Counter[int]:
        """Send `count` requests, over connections of their own or one that is kept."""
        statuses: collections.Counter[int] = collections.Counter()
        for _ in range(count):
            if rng.random() < 0.3:
                data = wire(rng)
                found = exchange(self.address, data)
                touched = any(path.encode() in data for path in CONTROLS)
            else:
                method, path, body = request(rng)
                found = [self.ask(method, path, content=body).status_code]
                touched = path in CONTROLS
            assert set(found) <= EXPECTED, (found, list(self.said)[-30:])
            statuses.update(found or [0])
            if touched:
                for path in RESTORE:
                    assert self.client.post(path, json={}).status_code == 200
        return statuses

    def memory(self) -> int:
        """Resident KiB, once nothing is under way."""
        with open(f"/proc/{self.served.process.pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

    def idle(self) -> None:
        for _ in range(200):
            (state,) = self.client.get("/server_info").json()["internal_states"]
            if state["running"] == state["waiting"] == 0:
                return
            time.sleep(0.05)
        raise AssertionError(f"samples are left: {state}")


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    root = tmp_path_factory.mktemp("attacked")
    tiny_model_folder(root / "model")
    options = ("--slots", 8, "--max-queued", 16, "--max-body-mib", 1)
    with serving(root / "model", "--weights-root", root, *options) as served:
        yield Victim(served, root)


def test_five_hundred_requests(victim):
    before = victim.answer()
    statuses = victim.attack(random.Random(0), 500)
    assert statuses[400] > 100 and statuses[200] > 50
    victim.idle()
    assert victim.answer() == before
    assert not [line for line in victim.said if "Traceback" in line or "ERROR" in line]


@pytest.mark.slow
def test_ten_thousand_requests_leave_the_memory_as_it_was(victim):
    """A rare program that is compiled late takes megabytes once; a leak would show every time."""
    before, rng = victim.answer(), random.Random(1)
    statuses = victim.attack(rng, 3000)  # most programs are compiled, and caches filled
    victim.idle()
    resident, descriptors = [victim.memory()], _descriptors(victim)
    for _ in range(5):
        statuses += victim.attack(rng, 2000)
        victim.idle()
        resident.append(victim.memory())
    print(f"{dict(statuses)}; {resident} KiB")
    assert victim.answer() == before
    grown = sorted(b - a for a, b in itertools.pairwise(resident))
    assert grown[2] < 1000, resident  # half a KiB a request
    assert resident[-1] < 1.15 * resident[0]
    assert _descriptors(victim) <= descriptors + 2
    assert not [line for line in victim.said if "Traceback" in line or "ERROR" in line]


def _descriptors(victim: Victim) -> int:
    return len(os.listdir(f"/proc/{victim.served.process.pid}/fd"))


def test_half_open_connections_do_not_keep_others_out(victim):
    waiting = [socket.create_connection(victim.address) for _ in range(200)]
    for number, connection in enumerate(waiting):
        connection.sendall(b"POST /generate HTTP/1.1\r\ncontent-length: 10\r\n"[: number % 50])
    assert victim.answer()
    for connection in waiting:
        connection.close()
    assert victim.answer()


def test_without_the_key_nothing_is_done(tmp_path):
    root = tmp_path
    with serving(tiny_model_folder(root / "model"), "--api-key", KEY, "--slots", 2) as served:
        guarded, rng = Victim(served, root), random.Random(2)
        opened = {"/health", "/metrics"}
        for _ in range(150):
            method, path, body = request(rng)
            headers = rng.choice(
                [{}, {"authorization": "Bearer " + rng.choice(["x", KEY[:-1], KEY + "x"])}]
            )
            response = guarded.ask(method, path, content=body, headers=headers)
            assert path in opened or response.status_code in (400, 401), (
                path,
                response.status_code,
            )
            assert KEY not in response.text
        guarded.client.headers["authorization"] = f"Bearer {KEY}"
        assert guarded.answer()
        assert not any(KEY in line or "Traceback" in line for line in guarded.said)


def test_a_link_that_turns_never_leads_out_of_the_root(victim, tmp_path):
    """While weights are loaded by the name of a link, it is turned outside and back again."""
    outside = tiny_model_folder(tmp_path / "outside", seed=9)
    inside, link = victim.root / "model", victim.root / "turning"
    before, ended = victim.answer(), threading.Event()

    def turn() -> None:
        while not ended.is_set():
            for target in (outside, inside):
                (victim.root / "next").symlink_to(target)
                (victim.root / "next").replace(link)
                time.sleep(0.001)

    turning = threading.Thread(target=turn)
    turning.start()
    statuses: collections.Counter[int] = collections.Counter()
    try:
        for number in range(40):
            body = {"model_path": str(link), "weight_version": str(number)}
            response = victim.client.post("/update_weights_from_disk", json=body)
            statuses[response.status_code] += 1
            assert response.status_code == 200 or "weights-root" in response.json()["message"]
            assert victim.answer() == before
    finally:
        ended.set()
        turning.join()
    assert statuses[400] and statuses[200] and len(statuses) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_files_of_a_folder_below_the_root_lie_there_too(victim, tmp_path, name):
    outside = tiny_model_folder(tmp_path / "outside", seed=9)
    folder = tiny_model_folder(victim.root / f"linked_{name}")
    (folder / name).unlink()
    (folder / name).symlink_to(outside / name)
    body = {"model_path": str(folder)}
    response = victim.client.post("/update_weights_from_disk", json=body)
    assert response.status_code == 400 and "outside of its model folder" in response.text


def test_who_sends_nothing_is_not_waited_for(monkeypatch):
    """uvicorn itself, with the server's connections and shorter times."""
    monkeypatch.setattr(connections, "HEAD_S", 0.5)
    monkeypatch.setattr(front, "BODY_S", 0.5)

    async def application(scope, receive, send):
        await asyncio.sleep(0.8)  # an answer may take longer than its question
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    config = uvicorn.Config(
        application, port=0, http=connections.Connection, lifespan="off", log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    address = server.servers[0].sockets[0].getsockname()
    try:
        for sent in (b"", b"GET / HTTP/1.1\r\nhost"):
            with socket.create_connection(address, 10) as connection:
                connection.sendall(sent)
                began = time.monotonic()
                assert connection.recv(100) == b""
                assert 0.3 < time.monotonic() - began < 5
        with socket.create_connection(address, 10) as connection:
            for _ in range(2):
                connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                received = b""
                while not received.endswith(b"done\r\n0\r\n\r\n"):
                    part = connection.recv(1000)
                    assert part, "it was closed"
                    received += part
    finally:
        server.should_exit = True
        thread.join()


def test_a_body_that_trickles_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(front, "BODY_S", 0.2)

    class Trickling:
        async def stream(self):
            while True:
                await asyncio.sleep(0.05)
                yield b"x"

    plain = object.__new__(front.Front)
    plain.max_body_bytes = 1 << 20
    with pytest.raises(front.TooSlow, match="0.2 s"):
        asyncio.run(plain.body(Trickling()))

"""The thread that owns the engine outlives what fails in it."""

import asyncio
import threading
from typing import Any

import pytest

from fst_jax.rollout.batching import Batcher
from fst_jax.rollout.engine import Request
from fst_jax.rollout.server.questions import Prompt
from fst_jax.rollout.server.service import Answer, Service
from tests.slow import tiny


@pytest.mark.parametrize("failing", ["submit", "advance"])
def test_a_failure_ends_what_is_under_way_and_nothing_else(monkeypatch, failing):
    batcher = Batcher(tiny.model(), tiny.one_device(), slots=4)
    service = Service(batcher, tokenizer=None, slots=4, max_queued=4)

    def fails(*_: Any) -> None:
        monkeypatch.undo()  # once
        raise MemoryError("no memory is left")

    async def answers() -> list[Answer]:
        prompt = Prompt(Request((5, 9, 2), n=2, max_new_tokens=6, temperature=1.0, seed=1))
        return await asyncio.wait_for(service.finished(service.submit(prompt)), timeout=60)

    async def ask() -> None:
        before = [answer.ids for answer in await answers()]
        monkeypatch.setattr(batcher, failing, fails)
        for answer in await answers():
            assert answer.finish is not None and answer.finish.failed
            assert answer.finish.message == "the engine failed: MemoryError: no memory is left"
        assert service.open == 0
        assert [answer.ids for answer in await answers()] == before
        state = await service.call(service.state)
        assert state["running"] == state["waiting"] == 0

    asyncio.run(ask())


def test_nobody_waits_for_a_call_that_was_given_up():
    service = Service(Batcher(tiny.model(), tiny.one_device(), slots=2), None, 2, 2)
    busy, go_on = threading.Event(), threading.Event()

    async def ask() -> None:
        def occupy() -> None:
            busy.set()
            go_on.wait(30)

        first = asyncio.create_task(service.call(occupy))
        await asyncio.to_thread(busy.wait, 30)
        given_up = asyncio.create_task(service.call(service.state))
        prompt = Prompt(Request((5, 9), n=1, max_new_tokens=3, temperature=1.0, seed=1))
        answers = asyncio.create_task(service.finished(service.submit(prompt)))
        await asyncio.sleep(0.05)
        given_up.cancel()
        go_on.set()
        await first
        (answer,) = await asyncio.wait_for(answers, 60)
        assert answer.finish is not None and answer.finish.type == "length"

    asyncio.run(ask())


def test_a_pause_does_not_hold_a_server_that_goes_down():
    service = Service(Batcher(tiny.model(), tiny.one_device(), slots=2), None, 2, 2)

    async def ask() -> None:
        await service.call(lambda: service.pause("in_place"))
        prompt = Prompt(Request((5, 9), n=1, max_new_tokens=3, temperature=1.0, seed=1))
        held = asyncio.create_task(service.finished(service.submit(prompt)))
        await service.call(service.proceed)
        await service.call(lambda: service.pause("in_place"))
        service.close()
        await service.call(lambda: service.pause("retract"))
        (answer,) = await asyncio.wait_for(held, 60)
        assert answer.finish is not None and answer.finish.type in ("abort", "length")
        assert service.open == 0

    asyncio.run(ask())

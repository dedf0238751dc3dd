"""The thread that owns the engine outlives what fails in it."""

import asyncio
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

"""Continuous batching: whatever else happens, a sample is what it would have been alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from fst_jax.config import ParallelSettings
from fst_jax.parallel.mesh import make_mesh
from fst_jax.rollout.batching import Batcher
from fst_jax.rollout.engine import Request
from fst_jax.rollout.sample import Sample
from tests.slow import tiny

STOPS = (3, 17, 18, 40)
PARAMS = nnx.split(tiny.model())[1]
OTHERS = tiny.perturbed(PARAMS, seed=1, scale=0.2)
SYSTEM = tuple(range(1, 49))  # long enough to be worth sharing


def batcher_of(slots: int = 8, **mesh: int) -> Batcher:
    on = make_mesh(ParallelSettings(mesh)) if mesh else tiny.one_device()
    return Batcher(tiny.model(), on, slots)


def samples(prompt: tuple[int, ...], count: int = 1, seed: int = 0, **options) -> list[Sample]:
    options = {"max_new_tokens": 12, "stop_ids": STOPS} | options
    request = Request(prompt, n=count, seed=seed, **options)
    return [Sample(request, own) for own in request.sample_seeds]


def finish(batcher: Batcher, limit: int = 2000) -> None:
    for _ in range(limit):
        if not batcher.advance():
            return
    raise AssertionError("the batcher does not come to an end")


def result(sample: Sample) -> tuple[list[int], str | None]:
    return sample.ids, sample.finish_reason


def alone(sample: Sample) -> tuple[list[int], str | None]:
    batcher, again = batcher_of(), Sample(sample.request, sample.seed)
    batcher.submit([again])
    finish(batcher)
    return result(again)


def check_logprobs(sample: Sample, params: nnx.State = PARAMS) -> None:
    exact = tiny.logprobs(
        tiny.weights(params), tiny.config(), sample.request.prompt_ids, np.array(sample.ids, int)
    )
    np.testing.assert_allclose(sample.logprobs, exact, atol=1e-4)


def test_samples_survive_any_schedule():
    """Submissions, cancellations and retractions in random order."""
    rng = np.random.default_rng(0)
    batcher, every, cancelled = batcher_of(), [], set()
    for step in range(60):
        if len(every) < 60:
            for _ in range(rng.integers(3)):
                tail = tuple(rng.integers(60, size=rng.integers(1, 30)).tolist())
                prompt = (*SYSTEM, *tail) if rng.random() < 0.5 else tail
                limit = int(rng.integers(1, 25))
                new = samples(prompt, int(rng.integers(1, 6)), step, max_new_tokens=limit)
                every += new
                batcher.submit(new)
        unfinished = [sample for sample in every if not sample.finish_reason]
        if rng.random() < 0.3 and unfinished:
            cancelled.add(gone := unfinished[rng.integers(len(unfinished))])
            batcher.cancel(gone)
        if rng.random() < 0.1:
            batcher.retract()
        if rng.random() < 0.05:
            batcher.release()
        batcher.advance(int(rng.integers(1, 8)))
    finish(batcher)
    assert batcher.waiting == batcher.running == 0
    assert len(every) > 50 and len(cancelled) > 5
    for sample in every:
        expected = alone(sample)
        if sample in cancelled:
            assert sample.finish_reason == "abort"
            assert sample.ids == expected[0][: len(sample.ids)]
        else:
            assert result(sample) == expected
            check_logprobs(sample)


def test_a_shared_beginning_is_computed_once():
    batcher = batcher_of(slots=4)
    asked = [samples((*SYSTEM, 50, i), count=4, seed=i) for i in range(12)]
    batcher.submit(sample for group in asked for sample in group)
    finish(batcher)
    distinct = len(SYSTEM) + 1 + 12
    assert distinct <= batcher.work.prefilled <= distinct + 12
    total = sum(len(s.request.prompt_ids) for group in asked for s in group)
    assert batcher.work.cached + batcher.work.prefilled == total
    assert asked[0][0].cached == 0 and asked[0][1].cached == len(SYSTEM) + 2
    for group in asked:
        for sample in group:
            assert result(sample) == alone(sample)
    # The rows remember: the same request again computes nothing.
    before = batcher.work.prefilled
    again = samples((*SYSTEM, 50, 11), seed=5)
    batcher.submit(again)
    finish(batcher)
    assert batcher.work.prefilled == before and again[0].cached == len(SYSTEM) + 2
    assert result(again[0]) == alone(again[0])


def test_new_weights_find_nothing_of_the_old_ones():
    batcher = batcher_of()
    first = samples(SYSTEM, 2)
    batcher.submit(first)
    finish(batcher)
    batcher.set_weights(OTHERS, 1)
    second = samples(SYSTEM, 2)
    batcher.submit(second)
    finish(batcher)
    assert second[0].cached == 0
    for old, new in zip(first, second, strict=True):
        assert old.spans == [(0, 0)] and new.spans == [(1, 0)]
        check_logprobs(old, PARAMS)
        check_logprobs(new, OTHERS)
    batcher.set_weights(OTHERS, 2)  # the same arrays: what they computed stays good
    third = samples(SYSTEM)
    batcher.submit(third)
    finish(batcher)
    assert third[0].cached == len(SYSTEM) and third[0].spans == [(2, 0)]


@pytest.mark.parametrize("retract", [False, True])
def test_weights_that_change_under_a_sample(retract):
    """In place its past stays; retracted, its past is computed anew under the new weights."""
    batcher, (sample,) = batcher_of(), samples(SYSTEM, max_new_tokens=12, stop_ids=())
    batcher.submit([sample])
    batcher.advance(5)
    held = list(sample.ids)
    batcher.set_weights(OTHERS, 1)
    if retract:
        batcher.retract()
        assert (batcher.waiting, batcher.running) == (1, 0)
    finish(batcher)
    assert sample.ids[:5] == held and len(sample.ids) == 12
    # In place, the old weights had given logits for one more token.
    middle = 5 if retract else 6
    assert sample.spans == [(0, 0), (1, middle)] and sample.finish_reason == "length"
    ids = np.array(sample.ids, int)
    new = tiny.logprobs(tiny.weights(OTHERS), tiny.config(), SYSTEM, ids)
    old = tiny.logprobs(tiny.weights(PARAMS), tiny.config(), SYSTEM, ids)
    np.testing.assert_allclose(sample.logprobs[:middle], old[:middle], atol=1e-4)
    gap = np.abs(sample.logprobs[middle:] - new[middle:]).max()
    assert gap < 1e-4 if retract else gap > 1e-3


def test_weights_that_change_twice_before_a_token():
    batcher, (sample,) = batcher_of(), samples(SYSTEM, max_new_tokens=4, stop_ids=())
    batcher.submit([sample])
    batcher.advance(2)
    batcher.set_weights(OTHERS, 1)
    batcher.set_weights(PARAMS, 2)
    batcher.advance(1)
    assert sample.spans == [(0, 0)] and len(sample.ids) == 3
    finish(batcher)
    assert sample.spans == [(0, 0), (2, 3)]


def test_long_contexts_and_growing_grids():
    """Contexts of several pieces; a longer request comes while a short one is under way."""
    rng = np.random.default_rng(3)
    batcher = batcher_of(slots=4)
    short = samples((1, 2, 3), 2, max_new_tokens=60, stop_ids=())
    batcher.submit(short)
    batcher.advance(3)
    long = samples(tuple(rng.integers(60, size=330).tolist()), 3, max_new_tokens=100, stop_ids=())
    batcher.submit(long)
    finish(batcher)
    for sample in (*short, *long):
        assert result(sample) == alone(sample)
        check_logprobs(sample)


def test_freed_slots_are_filled_at_once():
    """Lengths that vary eightfold keep the slots busy; a static batch would idle."""
    batcher = batcher_of(slots=8)
    lengths = [8, 8, 8, 64] * 16
    for i, limit in enumerate(lengths):
        batcher.submit(samples((i % 60,), seed=i, max_new_tokens=limit, stop_ids=()))
    finish(batcher)
    assert batcher.work.decoded == sum(lengths)
    static = len(lengths) // 8 * 64 * 8
    assert static / batcher.work.capacity > 1.5


def test_a_long_context_outlives_short_requests():
    rng = np.random.default_rng(5)
    long = tuple(rng.integers(60, size=300).tolist())
    batcher = batcher_of(slots=64)
    for prompt in (long, (1, 2), (3,), (*long, 7)):
        (last,) = samples(prompt)
        batcher.submit([last])
        finish(batcher)
    assert last.cached == len(long)
    assert result(last) == alone(last)


def test_columns_grow_with_what_is_generated():
    """A request that may be long takes no more memory than what it has generated asks for."""
    batcher, (sample,) = batcher_of(), samples((1, 2, 3), max_new_tokens=450, stop_ids=())
    batcher.submit([sample])
    batcher.advance()
    assert batcher._slots.keys.shape[-1] == 256
    finish(batcher)
    assert batcher._slots.keys.shape[-1] == 512
    assert len(sample.ids) == 450
    check_logprobs(sample)


def narrowed_on_two_devices() -> None:
    """Rows come in twos, so a narrower grid may have no more of them."""
    batcher = batcher_of(4, fsdp=2)
    old = [
        sample
        for seed, lengths in enumerate([(9, 200, 200, 200), (9, 9, 9, 200)])
        for own, limit in zip(samples((seed + 5,), 4, seed, stop_ids=()), lengths, strict=True)
        for sample in [Sample(replace(own.request, max_new_tokens=limit), own.seed)]
    ]
    batcher.submit(old)
    for _ in range(3):
        batcher.advance(8)
    new = samples((9, 9), 3)
    batcher.submit(new)
    finish(batcher)
    for sample in (*old, *new):
        assert sample.finish_reason
        check_logprobs(sample)


@pytest.mark.slow
def test_a_narrower_grid_on_two_devices(on_devices):
    on_devices(narrowed_on_two_devices, count=2)


def on_a_mesh() -> None:
    """On eight devices: rows over data and fsdp, heads over tensor."""
    sharded = batcher_of(16, data=2, fsdp=2, tensor=2)
    asked = [samples((*SYSTEM, i), 2, seed=i) for i in range(10)]
    sharded.submit(sample for group in asked for sample in group)
    finish(sharded)
    for group in asked:
        for sample in group:
            check_logprobs(sample)
    assert jax.device_count() == 8


def test_on_eight_devices(on_devices):
    on_devices(on_a_mesh)

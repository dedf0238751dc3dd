"""The in-process engine against plain forward passes: what is sampled, and with which logprob."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from fst_jax.compiles import compiles
from fst_jax.errors import ConfigError, Interrupted
from fst_jax.interrupt import StopRequest
from fst_jax.rollout.engine import Completion, Request
from fst_jax.rollout.local import LocalEngine
from fst_jax.slow.logprobs import score_tokens
from fst_jax.slow.packing import Sample, pack
from tests.slow import tiny

STOPS = (3, 17, 18, 40, 41, 42)  # enough for early stops
NEVER = (90, 91, 92, 93, 94, 95)  # as many, outside the vocabulary
WEIGHTS = nnx.split(tiny.model())[1]
PROMPTS = [(5, 9, 2), (7,), tuple(range(20)), (1, 2, 3, 4, 5, 6, 7, 8, 9)]


def engine_of(family: str = "qwen3", dtype: str = "float32", batch_size: int = 16) -> LocalEngine:
    return LocalEngine(tiny.model(family, dtype), tiny.one_device(), batch_size)


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    return engine_of()


def requests(**changes: object) -> list[Request]:
    """Mixed lengths, temperatures and seeds."""
    return [
        Request(
            prompt,
            **{
                "n": 4,
                "max_new_tokens": 12,
                "temperature": 0.5 if i % 2 else 1.0,
                "stop_ids": STOPS,
                "seed": 100 + i,
            }
            | changes,
        )
        for i, prompt in enumerate(PROMPTS)
    ]


def ids(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.ids.tolist() for completion in group] for group in groups]


def samples_of(asked: list[Request], groups: list[list[Completion]]) -> list[Sample]:
    return [
        Sample(request.prompt_ids, c.ids, c.logprobs, c.temperature, p, 0.0, False)
        for p, (request, group) in enumerate(zip(asked, groups, strict=True))
        for c in group
    ]


def learner_gap(family: str, asked: list[Request]) -> np.ndarray:
    """|sampler's − learner's log-probability| of every sampled token."""
    graphdef, params = nnx.split(tiny.model(family))
    mesh = tiny.one_device()
    groups = engine_of(family).generate(asked)
    batch = pack(samples_of(asked, groups), per_row=2, micro_batch_rows=8)
    rows = jax.tree.map(lambda x: jnp.asarray(x[0]), batch)

    @jax.jit
    def score(params, rows):
        return score_tokens(nnx.merge(graphdef, params), rows, 64, mesh).logprob

    gap = np.abs(score(params, rows) - rows.behaviour)[batch.token_weight[0] > 0]
    assert len(gap) == sum(len(c.ids) for group in groups for c in group)
    return gap


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_the_learner_finds_the_samplers_logprobs(family):
    assert learner_gap(family, requests()).max() < 1e-4


def test_cast_weights_take_the_place_of_those_cast_before():
    low = engine_of(dtype="bfloat16")
    (first, *_) = jax.tree.leaves(low.batcher.params)
    assert first.dtype == jnp.bfloat16
    other = jax.tree.map(lambda x: 1.5 * x, WEIGHTS)
    low.update_weights(other, version=1)
    assert first.is_deleted()
    wanted = jax.tree.map(lambda x: x.astype(jnp.bfloat16), other)
    jax.tree.map(np.testing.assert_array_equal, low.batcher.params, wanted)
    held = low.batcher.params
    low.update_weights(other, version=2)  # the same arrays
    assert low.batcher.params is held and low.batcher.version == 2
    low.generate(requests())


def test_after_a_sync_nothing_reminds_of_what_was_sampled_before():
    """Else a resumed run would differ in the last bits of its log-probabilities."""
    busy, fresh = engine_of(), engine_of()
    busy.generate(requests(n=1, max_new_tokens=70))
    busy.generate([Request(tuple(range(50)) * 3, max_new_tokens=5, temperature=1.0)])
    for engine in (busy, fresh):
        engine.update_weights(WEIGHTS, version=1)
    pairs = zip(busy.generate(requests()), fresh.generate(requests()), strict=True)
    for own, other in (pair for groups in pairs for pair in zip(*groups, strict=True)):
        np.testing.assert_array_equal(own.ids, other.ids)
        np.testing.assert_array_equal(own.logprobs, other.logprobs)


def test_completions_end_as_they_say(engine):
    """Logprobs by the float64 model; a stop id ends a completion and is part of it."""
    asked = requests()
    weights = tiny.weights(WEIGHTS)
    reasons = set()
    for request, group in zip(asked, engine.generate(asked), strict=True):
        assert len(group) == request.n
        for completion in group:
            reasons.add(completion.finish_reason)
            assert completion.ids.dtype == np.int32 and completion.logprobs.dtype == np.float32
            assert completion.temperature == request.temperature
            assert completion.weight_version == 0
            inner, last = completion.ids[:-1], completion.ids[-1]
            assert not set(inner.tolist()) & set(STOPS)
            if completion.finish_reason == "stop":
                assert last in STOPS and len(completion.ids) <= request.max_new_tokens
            else:
                assert last not in STOPS and len(completion.ids) == request.max_new_tokens
            exact = tiny.logprobs(
                weights,
                tiny.config(),
                request.prompt_ids,
                completion.ids,
                request.temperature,
            )
            np.testing.assert_allclose(completion.logprobs, exact, atol=1e-4)
    assert reasons == {"stop", "length"}


def test_greedy_equals_a_full_recomputation(engine):
    asked = requests(temperature=0.0, n=4)
    weights = tiny.weights(WEIGHTS)
    for request, group in zip(asked, engine.generate(asked), strict=True):
        tokens = list(request.prompt_ids)
        while len(tokens) < len(request.prompt_ids) + request.max_new_tokens:
            tokens.append(int(tiny.forward(weights, tiny.config(), np.array(tokens))[-1].argmax()))
            if tokens[-1] in STOPS:
                break
        expected = tokens[len(request.prompt_ids) :]
        for completion in group:
            assert completion.ids.tolist() == expected
            # Its logprob is that of temperature 1.
            exact = tiny.logprobs(weights, tiny.config(), request.prompt_ids, completion.ids)
            np.testing.assert_allclose(completion.logprobs, exact, atol=1e-4)


def test_a_sample_depends_on_its_seed_alone(engine):
    asked = requests()
    alone = ids(engine.generate(asked))
    assert ids(engine.generate(asked[::-1])) == alone[::-1]
    assert ids(engine.generate([*requests(seed=5), asked[1]]))[-1] == alone[1]
    assert ids(engine_of(batch_size=4).generate(asked)) == alone
    assert ids(engine_of(batch_size=1).generate([asked[2]])) == [alone[2]]
    # Fewer samples of the same request are its first ones.
    assert ids(engine.generate([dataclasses.replace(asked[0], n=2)])) == [alone[0][:2]]
    assert ids(engine.generate(requests(seed=5))) != alone
    for group in alone:
        assert len({tuple(sample) for sample in group}) > 1


def test_limits_and_stops_are_each_requests_own(engine):
    limits, stops = [1, 5, 12, 3], [NEVER, STOPS, NEVER, STOPS]
    asked = [
        dataclasses.replace(request, max_new_tokens=limit, stop_ids=stop)
        for request, limit, stop in zip(requests(), limits, stops, strict=True)
    ]
    free = ids(engine.generate(requests(stop_ids=NEVER)))
    groups = engine.generate(asked)
    for request, group, unlimited in zip(asked, groups, free, strict=True):
        for completion, sample in zip(group, unlimited, strict=True):
            cut = sample[: request.max_new_tokens]
            ends = [i for i, token in enumerate(cut) if token in request.stop_ids]
            assert completion.ids.tolist() == (cut[: ends[0] + 1] if ends else cut)
            assert completion.finish_reason == ("stop" if ends else "length")


def test_truncation_chooses_among_the_likeliest(engine):
    greedy = ids(engine.generate(requests(temperature=0.0)))
    assert ids(engine.generate(requests(top_k=1, temperature=1.0))) == greedy
    weights = tiny.weights(WEIGHTS)
    asked = [
        dataclasses.replace(request, **truncation)
        for request, truncation in zip(
            requests(temperature=1.0, stop_ids=NEVER),
            [{"top_k": 3}, {"top_p": 0.5}, {"top_k": 5, "min_p": 0.2}, {}],
            strict=True,
        )
    ]
    groups = engine.generate(asked)
    for request, group in zip(asked, groups, strict=True):
        for completion in group:
            every = tiny.predictions(weights, tiny.config(), request.prompt_ids, completion.ids)
            chosen = every[np.arange(len(completion.ids)), completion.ids]
            likelier = every > chosen[:, None]
            if request.top_k:
                assert likelier.sum(axis=-1).max() < request.top_k
            mass = np.sum(np.exp(every) * likelier, axis=-1)
            assert request.top_p == 1 or mass.max() < request.top_p
            assert (chosen - every.max(axis=-1)).min() > np.log(request.min_p or 1e-9) - 1e-5
            np.testing.assert_allclose(completion.logprobs, chosen, atol=1e-4)
    # A request of full support is not touched by its neighbours.
    assert ids(groups[3:]) == ids(engine.generate(requests(temperature=1.0, stop_ids=NEVER)))[3:]


def test_first_tokens_follow_the_model(engine):
    """Full support: the frequencies are the model's probabilities."""
    draws, prompt = 4096, PROMPTS[0]
    request = Request(prompt, n=4, max_new_tokens=1, temperature=2.0, stop_ids=NEVER)
    asked = [dataclasses.replace(request, seed=seed) for seed in range(draws // request.n)]
    tokens = [c.ids[0] for group in engine.generate(asked) for c in group]
    counts = np.bincount(tokens, minlength=tiny.VOCABULARY)
    weights = tiny.weights(WEIGHTS)
    exact = tiny.predictions(weights, tiny.config(), prompt, np.zeros(1, int), 2.0)
    expected = np.exp(exact[0]) * draws
    assert expected.min() > 5
    assert stats.chisquare(counts, expected, sum_check=False).pvalue > 1e-4


def test_nothing_is_compiled_after_warm_up(engine):
    engine.generate(requests())
    others = tiny.perturbed(WEIGHTS, 0, 0.1)
    warm = compiles()
    for length in (1, 2, 30, 32):
        prompts = [tuple(range(length)), (1, 2), (3,)]
        engine.generate(
            [
                Request(
                    p, n=4, max_new_tokens=length, temperature=0.7, stop_ids=STOPS[1:], seed=length
                )
                for p in prompts
            ]
        )
    engine.update_weights(others, version=1)
    engine.generate(requests())
    engine.update_weights(WEIGHTS, version=0)
    assert compiles() == warm


def test_a_request_that_does_not_fit_is_refused(engine):
    assert engine.capabilities.update_weights and engine.capabilities.max_context == 512
    with pytest.raises(ConfigError, match="500 tokens .* 13 exceed the model's context of 512"):
        engine.generate([Request((1,) * 500, max_new_tokens=13)])
    assert engine.generate([]) == []


def test_a_call_depends_on_its_requests_and_the_weights_alone() -> None:
    """To the last bit, whatever was sampled before: shapes and contexts of other calls are gone."""
    asked, engine = requests(), engine_of()
    wanted = engine.generate(asked)
    engine.generate([Request(tuple(range(50)), n=9, max_new_tokens=70, stop_ids=NEVER, seed=8)])
    for again in (engine, engine_of()):
        found = again.generate(asked)
        assert ids(found) == ids(wanted)
        for ours, theirs in zip(found, wanted, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert one.logprobs.tobytes() == other.logprobs.tobytes()


def test_an_interrupted_call_leaves_nothing_behind() -> None:
    asked, engine = requests(stop_ids=NEVER, max_new_tokens=200), engine_of()
    with StopRequest(within_s=0.0) as stop:
        stop.ask("the test")
        with pytest.raises(Interrupted):
            engine.generate(asked)
    assert engine.batcher.waiting == engine.batcher.running == 0
    assert ids(engine.generate(requests())) == ids(engine_of().generate(requests()))

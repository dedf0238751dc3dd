"""Every objective against float64 numpy, in value and in gradient, however it is packed."""

from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fst_jax.config import Objective, SlowSettings
from fst_jax.consistency import UNCLIPPED
from fst_jax.slow.objectives import RECIPES, cispo, completion_mean, policy_loss, ppo_clip, recipe
from fst_jax.slow.packing import Batch, Sample, pack

TAU = 4.0
LONGEST = 9


def tokens(count: int = 200) -> tuple[jax.Array, ...]:
    """Ratios on both sides of τ, both signs of advantage, some padding."""
    rng = np.random.default_rng(0)
    logprob = -rng.uniform(0, 8, count)
    behaviour = -rng.uniform(0, 8, count)
    weight = rng.uniform(0, 0.1, count) * (rng.random(count) < 0.8)
    advantage = rng.normal(size=count)
    return tuple(jnp.asarray(x, jnp.float32) for x in (logprob, behaviour, advantage, weight))


def test_cispo_equals_its_formula():
    logprob, behaviour, advantage, weight = tokens()
    exact = [np.asarray(x, np.float64) for x in (logprob, behaviour, advantage, weight)]
    ratio = np.exp(exact[0] - exact[1])
    coefficient = exact[3] * np.minimum(ratio, TAU) * exact[2]
    assert 0.2 < np.mean(ratio > TAU) < 0.8

    (loss, metrics), gradient = jax.value_and_grad(cispo, has_aux=True)(
        logprob, behaviour, advantage, weight, TAU
    )
    np.testing.assert_allclose(loss, -np.sum(coefficient * exact[0]), rtol=1e-5)
    np.testing.assert_allclose(gradient, -coefficient, rtol=2e-6)
    np.testing.assert_allclose(metrics["ratio"], ratio, rtol=2e-6)
    np.testing.assert_array_equal(metrics["clipped"], ratio > TAU)


@pytest.mark.parametrize(("gap", "kept"), [(10.0, TAU), (1e4, TAU), (np.inf, TAU), (0.0, 1.0)])
def test_cispo_gradient_is_exact_at_and_above_the_clip(gap, kept):
    logprob = jnp.full(3, -0.5, jnp.float32)
    behaviour = jnp.full(3, -0.5 - gap, jnp.float32)
    advantage = jnp.array([1.5, -0.3, 0.0], jnp.float32)
    weight = jnp.array([0.25, 0.5, 1.0], jnp.float32)
    gradient = jax.grad(lambda x: cispo(x, behaviour, advantage, weight, TAU)[0])(logprob)
    np.testing.assert_array_equal(gradient, -(weight * kept * advantage))


def test_cispo_has_no_lower_bound_and_behaviour_no_gradient():
    one = jnp.ones(1, jnp.float32)

    def loss(logprob, behaviour):
        return cispo(logprob, behaviour, one, one, TAU)[0]

    gradient = jax.grad(loss, (0, 1))(-9 * one, -2 * one)
    np.testing.assert_allclose(gradient[0], -np.exp(-7.0), rtol=1e-6)
    vanishing = jax.grad(loss)(-1e6 * one, -2 * one)
    assert np.isfinite(vanishing).all() and abs(vanishing[0]) < 1e-8


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28)])
def test_ppo_clip_equals_its_formula(low, high):
    exact = tokens(400)
    near = (exact[0], exact[0] + 0.05 * (exact[1] - exact[0]), *exact[2:])  # ratios about 1
    logprob, behaviour, advantage, weight = (np.asarray(x, np.float64) for x in near)
    ratio = np.exp(logprob - behaviour)
    surrogate = np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)
    flat = ((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low))
    for side in (advantage > 0, advantage < 0):
        assert 0.02 < np.mean(flat[side]) < 0.5
    (loss, metrics), gradient = jax.value_and_grad(ppo_clip, has_aux=True)(*near, low, high)
    np.testing.assert_allclose(loss, -np.sum(weight * surrogate), rtol=1e-5)
    expected = np.where(flat, 0.0, -weight * ratio * advantage)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(metrics["ratio"], ratio, rtol=2e-6)
    np.testing.assert_array_equal(metrics["clipped"], flat)


def test_on_policy_every_objective_has_the_policy_gradient():
    """With ρ = 1 none clips, and d loss / d logprob = −weight · A, for GSPO on average."""
    rng = np.random.default_rng(0)
    logprob = jnp.asarray(-rng.uniform(0, 3, (2, 6)), jnp.float32)
    sample = np.array([[1, 1, 1, 2, 2, 0], [3, 4, 4, 4, 4, 4]], np.int32)
    per_sample = rng.normal(size=5).astype(np.float32)
    advantage, weight = per_sample[sample], (0.1 * (sample > 0)).astype(np.float32)
    zeros = np.zeros_like(sample)
    rows = Batch(*[zeros] * 6, sample, logprob, weight, advantage, *[weight] * 3)
    rows = jax.tree.map(jnp.asarray, rows)
    for name in RECIPES:
        (_, found), gradient = jax.value_and_grad(policy_loss, has_aux=True)(
            logprob, rows, SlowSettings(objective=name)
        )
        np.testing.assert_allclose(gradient, -weight * advantage, rtol=1e-5, err_msg=name)
        assert not np.any(found["clipped"])


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=3, max_size=3))
def test_completion_mean(rows):
    sample, count = np.zeros((len(rows), 24), np.int32), 0
    for r, sizes in enumerate(rows):
        ids = np.repeat(np.arange(count, count + len(sizes)) + 1, sizes)
        sample[r, : len(ids)] = ids
        count += len(sizes)
    values = np.random.default_rng(0).normal(size=sample.shape).astype(np.float32)
    expected = np.zeros_like(values)
    for one in range(1, count + 1):
        expected[sample == one] = values[sample == one].mean()
    found = jax.jit(completion_mean)(jnp.asarray(values), jnp.asarray(sample))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def labelled_samples(seed: int, count: int, spread: float) -> tuple[list[Sample], np.ndarray]:
    """Samples over three problems and four contexts, and log π_θ of all of their tokens."""
    rng = np.random.default_rng(seed)
    samples, logprobs = [], []
    for _ in range(count):
        size = int(rng.integers(1, LONGEST))
        logprobs.append(-rng.uniform(0.1, 4, size))
        samples.append(
            Sample(
                context_ids=[(1,), (5, 6, 7), (5, 6, 8), tuple(range(40))][rng.integers(4)],
                ids=rng.integers(10, 99, size).astype(np.int32),
                logprobs=(logprobs[-1] + spread * rng.normal(size=size)).astype(np.float32),
                temperature=1.0,
                group=int(rng.integers(3)),
                advantage=float(np.float32(rng.normal())),
                valid=bool(rng.random() < 0.7),
            )
        )
    return samples, np.concatenate(logprobs)


def by_definition(
    samples: list[Sample], logprobs: np.ndarray, own: SlowSettings
) -> tuple[float, np.ndarray]:
    """Loss and gradient in float64, by each objective's own paper, a completion at a time."""
    learned = [s for s in samples if s.valid]
    problems = {s.group for s in learned}
    loss, gradient = 0.0, []
    ends = np.cumsum([len(s.ids) for s in samples])
    for s, policy in zip(samples, np.split(logprobs, ends[:-1]), strict=True):
        size = len(s.ids)
        if not s.valid:
            gradient.append(np.zeros(size))
            continue
        denominator = {
            "cispo": len(problems) * sum(len(o.ids) for o in learned if o.group == s.group),
            "grpo": len(learned) * size,
            "dapo": sum(len(o.ids) for o in learned),
            "dr_grpo": len(samples) * LONGEST,
            "gspo": len(learned),
            "rloo": len(learned),
            "reinforce": len(learned),
        }[own.objective]
        log_ratio = policy - s.logprobs.astype(np.float64)
        ratio, advantage = np.exp(log_ratio), s.advantage
        if own.objective in UNCLIPPED:
            cap = own.clip_threshold if own.objective == "cispo" else own.importance_cap
            slope = np.minimum(ratio, cap) * advantage
            loss -= np.sum(slope * policy) / denominator
        else:
            if own.objective == "gspo":
                ratio = np.exp(log_ratio.mean(keepdims=True))
            low, high = RECIPES[own.objective].clip_low, RECIPES[own.objective].clip_high
            terms = ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage
            loss -= np.sum(np.minimum(*terms)) / denominator
            slope = np.where(terms[0] <= terms[1], terms[0], 0.0)
            if own.objective == "gspo":
                slope = np.repeat(slope / size, size)
        gradient.append(-slope / denominator)
    return loss, np.concatenate(gradient)


@partial(jax.jit, static_argnames="own")
def summed(flat: jax.Array, order: jax.Array, batch: Batch, own: SlowSettings) -> tuple:
    """Loss and gradient by log π_θ of all tokens, `order` being where each is in the batch."""

    def total(flat: jax.Array) -> jax.Array:
        elsewhere = jnp.full(batch.sample.size, -3.0)  # whatever a model says about padding
        placed = elsewhere.at[order].set(flat, mode="drop").reshape(batch.sample.shape)
        return jnp.sum(jax.lax.map(lambda x: policy_loss(*x, own)[0], (placed, batch)))

    return jax.value_and_grad(total)(flat)


def packed(
    samples: list[Sample], logprobs: np.ndarray, own: SlowSettings, per_row: int, rows: int
) -> tuple[float, np.ndarray]:
    """The same from packed rows, in 48 micro-batches of 1 or 16 of 3; as many more of padding."""
    batch = pack(samples, per_row, rows, aggregation=recipe(own).aggregation, longest=LONGEST)
    wide, tokens = 48 if rows == 1 else 64, 48 * LONGEST
    empty = 48 // rows - len(batch.sample)
    batch = jax.tree.map(
        lambda x: np.pad(x, ((0, empty), (0, 0), (0, wide - x.shape[2]))),
        batch._replace(**dict.fromkeys(Batch._fields[:4], batch.sample)),  # of one width
    )
    placed = [np.flatnonzero(batch.sample.ravel() == 1 + i) for i in range(len(samples))]
    order = np.concatenate([*placed, np.full(tokens - len(logprobs), batch.sample.size)])
    flat = np.pad(logprobs, (0, tokens - len(logprobs))).astype(np.float32)
    loss, gradient = summed(flat, order, batch, own)
    return float(loss), np.asarray(gradient)[: len(logprobs)]


@pytest.mark.parametrize("name", RECIPES)
@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 16),
    per_row=st.integers(1, 4),
    rows=st.sampled_from([1, 3]),
)
def test_equals_its_paper_however_it_is_packed(name, seed, count, per_row, rows):
    own = SlowSettings(objective=name, clip_threshold=1.2, importance_cap=1.1)
    samples, logprobs = labelled_samples(seed, count, spread=1e-3 if name == "gspo" else 0.3)
    loss, gradient = packed(samples, logprobs, own, per_row, rows)
    wanted_loss, wanted = by_definition(samples, logprobs, own)
    assert loss == pytest.approx(wanted_loss, rel=1e-5, abs=1e-5)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", RECIPES)
def test_the_oracle_sees_both_sides_of_the_clip(name):
    own = SlowSettings(objective=name, clip_threshold=1.2, importance_cap=1.1)
    samples, logprobs = labelled_samples(0, 48, spread=1e-3 if name == "gspo" else 0.3)
    _, gradient = packed(samples, logprobs, own, per_row=2, rows=1)
    learned = np.repeat([s.valid for s in samples], [len(s.ids) for s in samples])
    silent = np.mean(gradient[learned] == 0)
    assert silent == 0 if name in UNCLIPPED else 0.05 < silent < 0.6


def test_every_name_has_a_recipe_and_settings_win():
    assert tuple(RECIPES) == get_args(Objective)
    assert tuple(name for name, own in RECIPES.items() if not own.clips) == UNCLIPPED
    for name, own in RECIPES.items():
        assert recipe(SlowSettings(objective=name)) == own
    changed = recipe(
        SlowSettings(
            objective="grpo",
            aggregation="token",
            baseline="prompt",
            normalize_std=False,
            clip_low=0.1,
            clip_high=0.5,
        )
    )
    assert (changed.aggregation, changed.baseline, changed.normalize_std) == (
        "token",
        "prompt",
        False,
    )
    assert (changed.clip_low, changed.clip_high, changed.loss) == (0.1, 0.5, ppo_clip)
    in_reward = SlowSettings(kl_placement="reward")
    assert recipe(SlowSettings()).normalize_std and not recipe(in_reward).normalize_std
    asked = SlowSettings(kl_placement="reward", normalize_std=True)
    assert recipe(asked).normalize_std

"""Which policy ratios are taken against, and the truncated weight that corrects for the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fst_jax.config import SlowSettings
from fst_jax.slow.importance import against, against_params, ratio_to
from fst_jax.slow.objectives import RECIPES
from fst_jax.slow.packing import Batch, Sample, pack
from tests.slow import tiny

CAP = 1.5
SAMPLES = tiny.make_samples()


def test_which_policy_each_ratio_is_taken_against():
    for name in RECIPES:
        clips = name in ("grpo", "dapo", "dr_grpo", "gspo")
        assert ratio_to(SlowSettings(objective=name)) == ("now" if name == "gspo" else "sampler")
        for several in ({"epochs": 2}, {"minibatches": 2}):
            found = ratio_to(SlowSettings(objective=name, **several))
            assert found == ("before" if clips else "sampler")


def weights_by_definition(old: list[np.ndarray], objective: str) -> list[np.ndarray]:
    """min(π_old / π_sampler, cap), per token or, for GSPO, of the geometric mean."""
    found = []
    for sample, logprob in zip(SAMPLES, old, strict=True):
        log_ratio = logprob - sample.logprobs
        if objective == "gspo":
            log_ratio = np.full_like(log_ratio, log_ratio.mean())
        found.append(np.minimum(np.exp(log_ratio), CAP))
    return found


def of_samples(values: np.ndarray, batch: Batch) -> list[np.ndarray]:
    return [values[batch.sample == 1 + i] for i in range(len(SAMPLES))]


@pytest.mark.parametrize("objective", ["grpo", "gspo"])
def test_a_batch_against_the_learner_equals_its_formula(objective):
    settings = SlowSettings(objective=objective, epochs=2, importance_cap=CAP, head_chunk=64)
    graphdef, params = nnx.split(tiny.model())
    batch = pack(SAMPLES, per_row=2, micro_batch_rows=2)
    fixed = {"graphdef": graphdef, "settings": settings, "mesh": tiny.one_device()}
    behaviour, weight, mismatch = jax.jit(against_params, static_argnames=tuple(fixed))(
        params, params, batch, **fixed
    )
    weights = tiny.weights(params)
    old = [
        tiny.logprobs(weights, tiny.config(), s.context_ids, s.ids, s.temperature) for s in SAMPLES
    ]
    expected = weights_by_definition(old, objective)
    assert 0.1 < np.mean(np.concatenate(expected) == CAP) < 0.9
    for found, wanted in zip(of_samples(np.asarray(behaviour), batch), old, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-4)
    factors = np.asarray(weight) / np.where(batch.policy_weight, batch.policy_weight, 1)
    for sample, found, wanted in zip(SAMPLES, of_samples(factors, batch), expected, strict=True):
        np.testing.assert_allclose(found, wanted if sample.valid else 0, rtol=5e-4)
    apart = np.concatenate(old) - np.concatenate([s.logprobs for s in SAMPLES])
    assert mismatch == pytest.approx(np.mean(np.exp(apart) - 1 - apart), rel=1e-3)


def test_a_sampler_that_agrees_changes_nothing():
    rows = jax.tree.map(lambda x: jnp.asarray(x[0]), pack(SAMPLES, 2, 2))
    same = against(rows.behaviour, rows, SlowSettings(objective="grpo", epochs=2))
    jax.tree.map(np.testing.assert_array_equal, same, rows)


def test_extreme_mismatch_stays_finite():
    sample = Sample((1,), np.array([1, 2], np.int32), np.array([-1e5, 0.0]), 1.0, 0, 1.0, True)
    rows = jax.tree.map(lambda x: jnp.asarray(x[0]), pack([sample], 1, 1))
    for objective in ("grpo", "gspo"):
        moved = against(
            jnp.full_like(rows.behaviour, -3.0), rows, SlowSettings(objective, epochs=2)
        )
        assert np.isfinite(moved.policy_weight).all()

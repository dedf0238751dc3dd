"""CISPO and the KL estimators against float64 numpy, in value and in gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fst_jax.slow import kl
from fst_jax.slow.objectives import OBJECTIVES, cispo

TAU = 4.0


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
    assert OBJECTIVES["cispo"] is cispo


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


def test_kl_estimators_equal_their_formulas():
    rng = np.random.default_rng(1)
    logprob, reference = jnp.asarray(-rng.uniform(0, 6, (2, 100)), jnp.float32)
    log_ratio = np.asarray(reference, np.float64) - np.asarray(logprob, np.float64)
    ratio = np.exp(log_ratio)
    oracle = {
        "k1": (-log_ratio, np.ones(100)),
        "k2": (log_ratio**2 / 2, -log_ratio),
        "k3": (ratio - 1 - log_ratio, 1 - ratio),
    }
    assert kl.estimators(logprob, reference).keys() == oracle.keys()
    for name, (value, slope) in oracle.items():
        found, pullback = jax.vjp(lambda x, name=name: kl.estimators(x, reference)[name], logprob)
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(pullback(jnp.ones(100))[0], slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_kl_estimators_do_not_overflow(dtype):
    logprob = jnp.asarray([-1e4, 0.0, -3.0], dtype)
    reference = jnp.asarray([0.0, -1e4, -3.0], dtype)
    for name, value in kl.estimators(logprob, reference).items():
        assert value.dtype == jnp.float32
        assert np.isfinite(value).all(), name
        assert value[2] == 0
    gradient = jax.grad(lambda x: kl.estimators(x, reference)["k3"].sum())(logprob)
    assert np.isfinite(gradient.astype(jnp.float32)).all()


def test_k3_is_unbiased_and_never_negative():
    rng = np.random.default_rng(2)
    policy, reference = (np.log(rng.dirichlet(np.ones(5) * 3)) for _ in range(2))
    exact = np.sum(np.exp(policy) * (policy - reference))
    every = kl.estimators(jnp.asarray(policy), jnp.asarray(reference))
    assert np.all(every["k3"] >= 0)
    for name in ("k1", "k3"):  # the expectation under the policy, not a sample of it
        np.testing.assert_allclose(np.sum(np.exp(policy) * every[name]), exact, rtol=1e-5)

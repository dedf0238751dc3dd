"""The KL estimators against float64 numpy, in value, in gradient and in expectation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fst_jax.slow import kl


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


def test_k3_plus_has_the_value_of_k3_and_the_gradient_of_k2():
    rng = np.random.default_rng(3)
    logprob, reference = jnp.asarray(-rng.uniform(0, 6, (2, 100)), jnp.float32)
    log_ratio = np.asarray(reference, np.float64) - np.asarray(logprob, np.float64)
    found, pullback = jax.vjp(lambda x: kl.regularizer("k3+", x, reference), logprob)
    np.testing.assert_allclose(found, np.exp(log_ratio) - 1 - log_ratio, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pullback(jnp.ones(100))[0], -log_ratio, rtol=1e-5, atol=1e-6)
    for name in ("k1", "k2", "k3"):
        plain = kl.estimators(logprob, reference)[name]
        np.testing.assert_array_equal(kl.regularizer(name, logprob, reference), plain)


def test_on_policy_the_gradient_of_k3_plus_is_that_of_the_kl_and_that_of_k3_is_not():
    """The mean over all samples of a categorical policy, each with its probability."""
    rng = np.random.default_rng(4)
    logits, reference = rng.normal(size=(2, 6))
    policy = np.exp(logits) / np.exp(logits).sum()
    base = reference - np.log(np.exp(reference).sum())
    log_ratio = np.log(policy) - base
    reverse = policy * (log_ratio - policy @ log_ratio)  # of KL(policy || reference), by logits
    forward = policy - np.exp(base)  # of KL(reference || policy)

    def mean_gradient(name: str) -> np.ndarray:
        def loss(logits: jax.Array) -> jax.Array:
            estimates = kl.regularizer(name, jax.nn.log_softmax(logits), jnp.asarray(base))
            return jnp.sum(jnp.asarray(policy, jnp.float32) * estimates)

        return np.asarray(jax.grad(loss)(jnp.asarray(logits, jnp.float32)))

    for name in ("k2", "k3+"):
        np.testing.assert_allclose(mean_gradient(name), reverse, atol=1e-6)
    np.testing.assert_allclose(mean_gradient("k3"), forward, atol=1e-6)
    np.testing.assert_allclose(mean_gradient("k1"), 0, atol=1e-6)
    assert np.abs(reverse - forward).max() > 0.05

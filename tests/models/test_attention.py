"""Grouped-query attention against a loop over heads and queries in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from fst_jax.models.attention import attention

jitted = jax.jit(attention, static_argnames="scale")


def oracle(query, key, value, mask, scale):
    out = np.zeros(query.shape)
    group = query.shape[2] // key.shape[2]
    for b, t, h in np.ndindex(query.shape[:3]):
        allowed = np.flatnonzero(mask[b, t])
        scores = key[b, allowed, h // group] @ query[b, t, h] * scale
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights / weights.sum() @ value[b, allowed, h // group]
    return out


def inputs(heads, kv_heads, seed=0, length=5, keys=7):
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(2, length, heads, 8))
    key, value = rng.normal(size=(2, 2, keys, kv_heads, 8))
    mask = rng.random((2, length, keys)) < 0.6
    mask[..., 0] = True
    return query, key, value, mask


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_equals_the_loop(kv_heads, scale):
    *arrays, mask = inputs(6, kv_heads)
    float32 = (jnp.asarray(x, jnp.float32) for x in arrays)
    got = jitted(*float32, jnp.asarray(mask), scale)
    want = oracle(*arrays, mask, 8**-0.5 if scale is None else scale)
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_a_query_without_keys_stays_finite_in_both_passes():
    *arrays, mask = inputs(4, 2)
    mask[0, 1] = False
    arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
    both = jax.value_and_grad(lambda arrays: attention(*arrays, jnp.asarray(mask)).sum())
    value, gradients = jax.jit(both)(arrays)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


def test_bfloat16_in_bfloat16_out():
    *arrays, mask = inputs(4, 2)
    got = jitted(*(jnp.asarray(x, jnp.bfloat16) for x in arrays), jnp.asarray(mask))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), oracle(*arrays, mask, 8**-0.5), atol=0.05)


def test_shapes_are_checked_in_tests():
    """Or the hook in tests/conftest.py came too late."""
    query, key, value, mask = map(jnp.asarray, inputs(4, 2))
    with pytest.raises(TypeCheckError, match="mask"):
        attention(query, key, value, mask[:, :, 1:])

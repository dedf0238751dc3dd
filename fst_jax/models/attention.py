"""Grouped-query attention in plain XLA: the reference that every faster kernel must equal."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attention(
    query: Float[Array, "B T H Dh"],
    key: Float[Array, "B S Hkv Dh"],
    value: Float[Array, "B S Hkv Dh"],
    mask: Bool[Array, "#B T S"],
    scale: float | None = None,
) -> Float[Array, "B T H Dh"]:
    """softmax(scale · query keyᵀ) value, where `mask` is True for what a query may attend to.

    Query head h reads key/value head h // (H / Hkv) (Ainslie et al. 2023, arXiv 2305.13245);
    the key/value heads are never repeated in memory.  `scale` defaults to 1/sqrt(Dh).  Scores
    and softmax are float32, the result has the query's dtype.  A query that may attend to
    nothing (padding) gets the finite mean of the values.
    """
    batch, length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    if scale is None:
        scale = head_dim**-0.5
    # Heads before positions: the products then need no shuffled copies on the CPU.
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    grouped = grouped.transpose(0, 2, 3, 1, 4)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    scores = jnp.einsum("bkgtd,bksd->bkgts", grouped, key, preferred_element_type=jnp.float32)
    # A finite floor, since a row of -inf would make NaN in the backward pass.
    scores = jnp.where(mask[:, None, None], scores * scale, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum("bkgts,bksd->bkgtd", weights, value)
    return out.transpose(0, 3, 1, 2, 4).reshape(query.shape).astype(query.dtype)

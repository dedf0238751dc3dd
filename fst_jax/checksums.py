"""Checksums of sharded arrays, computed where they lie: the same on any mesh, in any layout."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Shaped, UInt32

from fst_jax.parallel.sharding import on_devices

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@jax.jit
def checksum(x: Shaped[Array, "..."]) -> UInt32[Array, "2"]:
    """Σ bᵢ and Σ (2i + 1)·bᵢ modulo 2³² over the elements' bits bᵢ, in row-major order i.

    The second sum changes with any one element, since its factor is odd; two that change by chance
    go unseen in one of 2⁶⁴ cases.  Sums of integers do not depend on their order.
    """
    bits = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.stack([jnp.sum(bits), jnp.sum(bits * (2 * place + 1))])


def checksums(tree: Any) -> list[list[int]]:
    """The checksum of every array of a tree, in its order."""
    sums = [checksum(on_devices(leaf)) for leaf in jax.tree.leaves(tree)]
    return [each.tolist() for each in jax.device_get(sums)]

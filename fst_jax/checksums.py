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
    """Σ mᵢ and Σ (2i + 1)·mᵢ modulo 2³² over elements in row-major order i.

    mᵢ mixes an element's bits with its place by the last steps of MurmurHash3 (Appleby 2011), which
    are a bijection: any one element that changes changes both sums, and damage with a pattern, such
    as signs that flip or blocks that change places, is as good as chance.  Sums of integers do not
    depend on their order.
    """
    bits = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    mixed = bits ^ (place * np.uint32(0x9E3779B9))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * np.uint32(factor)
    mixed = mixed ^ (mixed >> 16)
    return jnp.stack([jnp.sum(mixed), jnp.sum(mixed * (2 * place + 1))])


def checksums(tree: Any) -> list[list[int]]:
    """The checksum of every array of a tree, in its order."""
    sums = [checksum(on_devices(leaf)) for leaf in jax.tree.leaves(tree)]
    return [each.tolist() for each in jax.device_get(sums)]

"""Checksums against numpy, and that they see what changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fst_jax.checksums import checksum, checksums
from fst_jax.config import ParallelSettings
from fst_jax.parallel.mesh import make_mesh
from fst_jax.parallel.sharding import shardings

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint8", "int8")


def in_numpy(x: np.ndarray) -> list[int]:
    words = x.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize]).ravel()
    sums = [0, 0]
    for place, bits in enumerate(words.tolist()):
        mixed = bits ^ (place * 0x9E3779B9 % 2**32)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            mixed = (mixed ^ (mixed >> shift)) * factor % 2**32
        mixed ^= mixed >> 16
        sums = [sums[0] + mixed, sums[1] + mixed * (2 * place + 1)]
    return [total % 2**32 for total in sums]


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_the_bits(dtype):
    rng = np.random.default_rng(0)
    for shape in ((), (1,), (7,), (3, 5), (2, 3, 4), (0, 3)):
        x = jnp.asarray(rng.normal(size=shape) * 50, dtype)
        assert checksum(x).tolist() == in_numpy(np.asarray(x))


@settings(max_examples=50)
@given(arrays.arrays(np.float32, (4, 5), elements=st.floats(width=32)), st.data())
def test_any_one_bit_shows(x, data):
    place, bit = data.draw(st.integers(0, x.size - 1)), data.draw(st.integers(0, 31))
    changed = x.copy()
    changed.view(np.uint32).ravel()[place] ^= np.uint32(1 << bit)
    assert checksum(jnp.asarray(x)).tolist() != checksum(jnp.asarray(changed)).tolist()


def test_order_and_sign_of_zero_show():
    x = jnp.arange(6.0)
    assert checksum(x).tolist() != checksum(x[::-1]).tolist()
    assert checksum(jnp.zeros(3)).tolist() != checksum(-jnp.zeros(3)).tolist()


def test_damage_with_a_pattern_shows():
    x = jax.random.normal(jax.random.key(0), (1 << 17,)).astype(jnp.bfloat16).astype(jnp.float32)
    blocks = x.reshape(4, -1)
    for changed in (-x, x.at[:2].multiply(-1), blocks[jnp.array([1, 0, 2, 3])].reshape(-1)):
        assert checksum(changed)[0] != checksum(x)[0]
        assert checksum(changed)[1] != checksum(x)[1]


def on_meshes() -> None:
    tree = {"embedding": jnp.arange(128.0).reshape(16, 8), "step": jnp.int32(3)}
    wanted = checksums(tree)
    for sizes in ({"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 8}):
        mesh = make_mesh(ParallelSettings(mesh=sizes))
        assert checksums(jax.device_put(tree, shardings(tree, mesh))) == wanted


def test_the_same_on_every_mesh(on_devices):
    on_devices(on_meshes)

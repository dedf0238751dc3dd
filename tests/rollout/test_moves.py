"""Rows of arrays that are split over devices go where plain indexing puts them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from fst_jax.config import ParallelSettings
from fst_jax.parallel.mesh import make_mesh
from fst_jax.parallel.sharding import spec
from fst_jax.rollout.moves import put_rows, take_rows
from tests.slow.tiny import one_device

KEYS, LOGITS = "sampler/contexts/keys", "sampler/contexts/logits"


def moves_as_indexing_does() -> None:
    mesh = make_mesh(ParallelSettings(mesh={"data": 2, "fsdp": 2, "tensor": 2}))
    rng = np.random.default_rng(0)
    for path, axis, shape in ((KEYS, 1, (2, 8, 2, 3, 5)), (LOGITS, 0, (8, 7))):
        x = rng.normal(size=shape).astype(np.float32)
        placed = jax.device_put(x, NamedSharding(mesh, spec(path, shape, mesh)))
        taken = jax.jit(lambda x, sources: take_rows(x, sources, path, axis, mesh))  # noqa: B023
        written = jax.jit(lambda x, rows, new: put_rows(x, rows, new, path, axis, mesh))  # noqa: B023
        for count in (1, 2, 3, 4, 8, 12):
            for sources in (rng.integers(8, size=count), np.arange(count) % 8):
                found = taken(placed, jnp.asarray(sources))
                np.testing.assert_array_equal(found, np.take(x, sources, axis=axis))
            rows = rng.permutation(8)[:count]
            new = np.take(x, rng.integers(8, size=len(rows)), axis=axis) + 1
            wanted = x.copy()
            wanted[(slice(None),) * axis + (rows,)] = new
            found = written(placed, jnp.asarray(rows), jnp.asarray(new))
            np.testing.assert_array_equal(found, wanted)
            assert found.sharding.spec == placed.sharding.spec


def test_on_eight_devices(on_devices):
    on_devices(moves_as_indexing_does)


def test_on_one_device():
    x, sources, mesh = jnp.arange(24.0).reshape(8, 3), jnp.array([3, 3, 0]), one_device()
    np.testing.assert_array_equal(take_rows(x, sources, LOGITS, 0, mesh), x[sources])
    rows, new = jnp.array([5, 1]), jnp.ones((2, 3))
    np.testing.assert_array_equal(put_rows(x, rows, new, LOGITS, 0, mesh), x.at[rows].set(new))

"""Every kernel of packed rows against a loop in numpy, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fst_jax.config import ParallelSettings
from fst_jax.models.row_attention import Visible, kernel_of, row_attention, row_mask
from fst_jax.models.splash_rows import Layout, RowMask
from fst_jax.parallel.mesh import make_mesh
from tests.slow import tiny

# 1 is the prefix, 2 and 5 continue it, 3 and 4 continue 2, 6 continues 5.
LAYOUT = Layout(
    ((1, 1, 40), (2, 1, 30), (3, 2, 20), (4, 2, 50), (5, 1, 16), (6, 5, 70), (0, 0, 30))
)


def rows(layout: Layout, batch: int, seed: int = 0) -> Visible:
    """Rows of a layout, in which each segment is padded differently."""
    rng = np.random.default_rng(seed)
    segments, parents = (np.tile(x, (batch, 1)) for x in layout.arrays())
    for row in range(batch):
        start = 0
        for _, _, length in layout.runs:
            used = rng.integers(1, length + 1)
            segments[row, start + used : start + length] = 0
            start += length
    parents[segments == 0] = 0
    return Visible(jnp.asarray(segments), jnp.asarray(parents), layout)


def seen(visible: Visible) -> np.ndarray:
    """Which tokens see which, by the words of the module's docstring."""
    segments, parents = np.asarray(visible.segments), np.asarray(visible.parents)
    mask = np.zeros((*segments.shape, segments.shape[1]), bool)
    for b, q, k in np.ndindex(mask.shape):
        related = segments[b, k] in {1, parents[b, q], segments[b, q]}
        mask[b, q, k] = k <= q and segments[b, k] != 0 and related
    return mask


def oracle(query, key, value, mask, out_gradient):
    """Attention and its gradients in float64, for queries that see something."""
    query, key, value, out_gradient = (
        np.asarray(x, np.float64) for x in (query, key, value, out_gradient)
    )
    out, found = np.zeros(query.shape), [np.zeros(x.shape) for x in (query, key, value)]
    scale, group = query.shape[-1] ** -0.5, query.shape[2] // key.shape[2]
    for b, t, h in np.ndindex(query.shape[:3]):
        allowed = np.flatnonzero(mask[b, t])
        if not len(allowed):
            continue
        keys, values = key[b, allowed, h // group], value[b, allowed, h // group]
        weights = np.exp(keys @ query[b, t, h] * scale)
        weights /= weights.sum()
        out[b, t, h] = weights @ values
        above = out_gradient[b, t, h]
        inner = weights * (values @ above - above @ out[b, t, h]) * scale
        found[0][b, t, h] = inner @ keys
        found[1][b, allowed, h // group] += np.outer(inner, query[b, t, h])
        found[2][b, allowed, h // group] += np.outer(weights, above)
    return out, found


def inputs(length: int, heads: int, kv_heads: int, size: int, batch: int):
    rng = np.random.default_rng(1)
    shape = (batch, length, heads, size)
    query, above = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    key, value = (
        jnp.asarray(rng.normal(size=(batch, length, kv_heads, size)), jnp.float32) for _ in range(2)
    )
    return query, key, value, above


def agrees(mesh, kernel: str, heads: int, kv_heads: int, size: int = 8, batch: int = 2) -> None:
    visible = rows(LAYOUT, batch)
    query, key, value, above = inputs(LAYOUT.length, heads, kv_heads, size, batch)
    real = (visible.segments > 0)[:, :, None, None]
    above = jnp.where(real, above, 0)  # a loss does not depend on padding

    @jax.jit
    def both(query, key, value):
        attend = functools.partial(row_attention, visible=visible, mesh=mesh, kernel=kernel)
        out, back = jax.vjp(attend, query, key, value)
        return out, back(above)

    out, gradients = both(query, key, value)
    assert np.isfinite(out).all()
    wanted, wanted_gradients = oracle(query, key, value, seen(visible), above)
    np.testing.assert_allclose(jnp.where(real, out, 0), np.where(real, wanted, 0), atol=5e-6)
    for found, exact in zip(gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(found, exact, atol=2e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize("kernel", ["xla", "splash"])
def test_a_kernel_equals_the_loop(kernel, heads, kv_heads):
    agrees(tiny.one_device(), kernel, heads, kv_heads)


def on_a_mesh() -> None:
    mesh = make_mesh(ParallelSettings(mesh={"data": 2, "tensor": 2, "context": 2}))
    for kernel in ("xla", "splash"):
        agrees(mesh, kernel, 4, 2)
    # One key/value head cannot be split over tensor: all of its devices compute all heads.
    agrees(mesh, "xla", 3, 1)


def test_tokens_split_over_a_mesh(on_devices):
    on_devices(on_a_mesh)


def test_masks_are_what_the_docstring_says():
    visible = rows(LAYOUT, batch=2)
    mask = row_mask(visible.segments, visible.parents, visible.segments)
    np.testing.assert_array_equal(mask, seen(visible))
    segments, parents = (jnp.asarray(x)[None] for x in LAYOUT.arrays())
    used = np.asarray(segments[0] > 0)
    whole = RowMask(LAYOUT)[:, :]
    wanted = seen(Visible(segments, parents))[0]
    np.testing.assert_array_equal(whole[used], wanted[used])
    assert whole.any(axis=1).all()  # padding sees padding, but
    assert not whole[np.ix_(used, ~used)].any()  # is seen by nothing else
    np.testing.assert_array_equal(RowMask(LAYOUT)[64:128, :96], whole[64:128, :96])


def test_the_kernel_follows_the_devices_of_the_mesh():
    class Mesh:
        def __init__(self, platform: str):
            self.platform, self.devices = platform, np.array([self])

    kernels = {name: kernel_of(Mesh(name)) for name in ("tpu", "gpu", "cuda", "cpu", "METAL")}
    assert kernels == {
        "tpu": "splash", "gpu": "cudnn", "cuda": "cudnn", "cpu": "xla", "METAL": "xla"
    }  # fmt: skip


def test_splash_needs_a_layout():
    visible = rows(LAYOUT, batch=1)._replace(layout=None)
    query, key, value, _ = inputs(LAYOUT.length, 2, 2, 8, 1)
    with pytest.raises(ValueError, match="pack them for this mesh"):
        row_attention(query, key, value, visible, tiny.one_device(), "splash")

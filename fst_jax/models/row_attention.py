"""Attention within packed rows: one function, and on each platform the kernel that suits it.

A row is a tree of segments laid out one after the other (`slow/packing.py`).  A token sees what
lies before it in its own segment, in the segment that this one continues (its parent), and in
segment 1, with which the row begins:

    visible(q, k) = k ≤ q and segment k ∈ {1, parent of q, segment of q}

That is two integers a token instead of a mask of T² elements; every kernel takes what it needs:

    TPU   splash attention (`splash_rows.py`), which never holds the scores and skips blocks that
          no token sees; it wants the segments at the same places in all rows: `Visible.layout`
    GPU   cuDNN's fused attention, with the mask as its bias, shared by all layers and heads
    else  plain XLA (`attention.py`)

A mesh's `context` axis splits the tokens of a row.  Keys and values are gathered over it and each
device computes its own queries, as in Llama 3's training (arXiv 2407.21783, sec. 3.3.2): with few
key/value heads they are small, and any mask works.  In the backward pass their gradients are
reduced and scattered.  Work is not balanced: late tokens see more.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from fst_jax.models import splash_rows
from fst_jax.models.attention import attention
from fst_jax.models.splash_rows import Layout
from fst_jax.parallel.sharding import shards, spec

Kernel = Literal["splash", "cudnn", "xla"]

_CUDNN_HEAD = 128  # largest head that cuDNN's backward pass takes on every generation


class Visible(NamedTuple):
    """What the tokens of rows see."""

    segments: Int[Array, "B T"]  # 0 padding, 1 what all tokens see, 2… others
    parents: Int[Array, "B T"]  # the segment that the token's own continues; 0 or 1 for none
    layout: Layout | None = None  # where segments lie, if that is the same in every row


def kernel_of(mesh: Mesh) -> Kernel:
    """The kernel for a mesh's devices, which need not be there: a topology to compile for will do.

    The choice cannot follow `jax.default_backend()`, which is this machine's.
    """
    kernels: dict[str, Kernel] = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}
    return kernels.get(mesh.devices.flat[0].platform, "xla")


def row_attention(
    query: Float[Array, "B T H Dh"],
    key: Float[Array, "B T Hkv Dh"],
    value: Float[Array, "B T Hkv Dh"],
    visible: Visible,
    mesh: Mesh,
    kernel: Kernel | None = None,
) -> Float[Array, "B T H Dh"]:
    """softmax(query keyᵀ / sqrt(Dh)) value over what each token sees; query head h reads key/value
    head h // (H / Hkv).

    Scores and softmax are float32, the result has the query's dtype; the results of padding
    tokens are finite and mean nothing.  Rows are split over data and fsdp, tokens over context,
    heads over tensor where it divides both numbers of heads.  `kernel` is for tests: splash runs
    anywhere, in Pallas's interpreter, but needs `visible.layout`.

    Raises:
      ValueError: splash attention without a layout.
    """
    kernel = kernel or kernel_of(mesh)
    if kernel == "cudnn" and not _fits_cudnn(query):
        kernel = "xla"
    if kernel == "splash" and visible.layout is None:
        raise ValueError("splash attention needs rows with a layout: pack them for this mesh")
    heads = spec("activations/heads", key.shape, mesh)  # Hkv divides H
    tokens = PartitionSpec(*heads[:2])
    context = "context" if heads[1] else None
    program, program_spec = None, None
    if kernel == "splash":
        own_heads = query.shape[2] // (shards(mesh, heads[2]) if heads[2] else 1)
        parts = shards(mesh, context) if context else 1
        interpret = mesh.devices.flat[0].platform != "tpu"
        program = splash_rows.program(visible.layout, own_heads, parts, interpret)
        placed = NamedSharding(mesh, PartitionSpec(None, context))
        program_spec = program.manual_sharding_spec(placed)
    return jax.shard_map(
        partial(_local, kernel=kernel, context=context),
        mesh=mesh,
        in_specs=(program_spec, heads, heads, heads, tokens, tokens),
        out_specs=heads,
        check_vma=False,  # Pallas calls do not say over which axes their results vary
    )(program, query, key, value, visible.segments, visible.parents)


def _fits_cudnn(query: Array) -> bool:
    head = query.shape[-1]
    return query.dtype in (jnp.bfloat16, jnp.float16) and head % 8 == 0 and head <= _CUDNN_HEAD


def _local(
    program: Any,
    query: Array,
    key: Array,
    value: Array,
    segments: Array,
    parents: Array,
    *,
    kernel: Kernel,
    context: str | None,
) -> Array:
    """One device's queries, over the keys of whole rows."""
    own, start = segments, jnp.int32(0)
    if context:
        start = jax.lax.axis_index(context) * query.shape[1]
        key, value, segments = (
            jax.lax.all_gather(x, context, axis=1, tiled=True) for x in (key, value, segments)
        )
    if kernel == "splash":
        return splash_rows.splash_attention(program, query, key, value, own, segments)
    mask = row_mask(own, parents, segments, start)
    if kernel == "cudnn":
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask[:, None], implementation="cudnn"
        )
    return attention(query, key, value, mask)


def row_mask(
    own: Int[Array, "B T"],
    parents: Int[Array, "B T"],
    segments: Int[Array, "B S"],
    start: Int[Array, ""] | int = 0,
) -> Bool[Array, "B T S"]:
    """What queries at `start`… of rows see of all S tokens; padding is seen by nobody."""
    index = start + jnp.arange(own.shape[1])
    causal = index[:, None] >= jnp.arange(segments.shape[1])
    key = segments[:, None, :]
    related = (key == 1) | (key == parents[:, :, None]) | (key == own[:, :, None])
    return causal & (key != 0) & related

"""Splash attention for packed rows: Pallas's block-sparse flash kernel of the TPU.

The kernel's mask is known at compile time, so it can leave out the blocks that no token sees; the
mask of a row follows from where its segments lie, its `Layout`.  What differs from row to row is
only which of those places hold padding: that is told by the kernel's segment ids, 1 for tokens and
0 for padding, across which nothing is seen.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import jax
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

LANES = 128  # tokens that a block of the kernel is a multiple of
_BLOCK = 512  # queries and keys of a block, where the row's length allows


@jax.tree_util.register_static
@dataclass(frozen=True)
class Layout:
    """Where the segments of a row lie: runs of (segment, parent, length), from the row's start.

    Segments are numbered as in `row_attention.Visible`.  A pytree without leaves, so that it
    travels with the arrays that it describes and is part of the compiled program's shape.
    """

    runs: tuple[tuple[int, int, int], ...]

    @property
    def length(self) -> int:
        return sum(length for _, _, length in self.runs)

    @property
    def starts(self) -> tuple[int, ...]:
        """The first token of each run."""
        lengths = [length for _, _, length in self.runs]
        return tuple(accumulate(lengths, initial=0))[:-1]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Segment and parent of each token, int32 [T] both."""
        segments, parents, lengths = np.array(self.runs, np.int32).T
        return np.repeat(segments, lengths), np.repeat(parents, lengths)


class RowMask(masks.Mask):
    """`row_attention.row_mask` of a layout, computed for a block at a time.

    Padding at the end of a row sees itself, since the kernel's softmax needs something to see.
    """

    def __init__(self, layout: Layout):
        self._layout = layout
        self._segments, self._parents = layout.arrays()

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._layout.length,) * 2

    def __getitem__(self, index: Any) -> np.ndarray:
        rows, columns = index
        place = np.arange(self._layout.length)
        own, parent, key = self._segments[rows], self._parents[rows], self._segments[columns]
        related = (key == 1) | (key == own[:, None]) | ((key == parent[:, None]) & (key != 0))
        return (place[rows][:, None] >= place[columns]) & related

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowMask) and self._layout == other._layout

    def __hash__(self) -> int:
        return hash(self._layout)


def block_size(layout: Layout, shards: int) -> int:
    """Queries and keys of a block of the kernel, for queries in `shards` equal parts.

    Raises:
      ValueError: a part is no multiple of 128 tokens.
    """
    part, rest = divmod(layout.length, shards)
    if rest or part % LANES:
        raise ValueError(f"{layout.length} tokens in {shards} parts: not multiples of {LANES}")
    return math.gcd(part, _BLOCK)


@lru_cache
def program(
    layout: Layout, heads: int, shards: int, interpret: bool
) -> splash.SplashAttentionKernel:
    """The kernel for rows of a layout, whose queries are split into `shards` equal parts.

    Raises:
      ValueError: a part is no multiple of 128 tokens.
    """
    block = block_size(layout, shards)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    with jax.ensure_compile_time_eval():
        made = splash.make_splash_mha(
            masks.MultiHeadMask([RowMask(layout)] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=shards,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, made)  # constants of whatever is being traced


def splash_attention(
    program: splash.SplashAttentionKernel,
    query: Float[Array, "B T H Dh"],
    key: Float[Array, "B S Hkv Dh"],
    value: Float[Array, "B S Hkv Dh"],
    own: Int[Array, "B T"],
    segments: Int[Array, "B S"],
) -> Float[Array, "B T H Dh"]:
    """The attention of some queries of rows, of segments `own`, over whole rows of `segments`."""

    @jax.vmap
    def each(query: Array, key: Array, value: Array, own: Array, segments: Array) -> Array:
        real = splash.SegmentIds((own > 0).astype(np.int32), (segments > 0).astype(np.int32))
        out: Any = program(query, key, value, segment_ids=real)
        return out

    query = query * query.shape[-1] ** -0.5
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    return each(query, key, value, own, segments).swapaxes(1, 2)

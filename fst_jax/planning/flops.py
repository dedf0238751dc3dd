"""FLOPs of a train step from the sizes of the model alone, to hold against the compiled program.

A product of [n, a] and [a, b] takes 2 n a b (Kaplan et al. 2020, arXiv 2001.08361, sec. 2.1).  The
forward pass of T tokens, of which N query-key pairs are computed and C are targets, takes

    matrices   2 T L (H (q + 2 k) + q H + 3 H I)      q = heads · size, k = key/value heads · size
    attention  4 N L q
    head       2 C H V
    adapters   2 T r (in + out) for each linear layer that has one

and the backward pass twice that: for the gradient of the input and for that of the weights, of
which frozen ones have none.  Splash attention, which computes scores anew in each of its two
backward kernels, takes 3.5 times its forward pass.  Recomputing a layer (`model.remat`: full,
offload) leaves out the product whose result the layer's gradient does not need, that of `mlp/down`;
`dots` recomputes attention alone.  The head's chunks are always recomputed.  The reference takes a
forward pass, and so does the teacher of FST-distill, whose part of the head is recomputed, too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fst_jax.config import Remat
from fst_jax.models.config import ModelConfig
from fst_jax.models.splash_rows import RowMask, block_size
from fst_jax.slow.packing import Batch, Pair, sides


@dataclass(frozen=True)
class StepFlops:
    """Of all chips together."""

    executed: float  # padding, hidden pairs and recomputation included: what a program must do
    model: float  # of tokens, targets and visible pairs alone, without recomputation: for the MFU


def step_flops(
    model: ModelConfig,
    batch: Batch | Pair,
    remat: Remat,
    pairs: float,
    adapters: Any = None,
    distills: bool = False,
) -> StepFlops:
    """FLOPs of one update over a batch; `pairs` query-key pairs are computed in each row.

    `adapters` are those that are trained in place of the weights, by path, or their shapes;
    `distills` says that the update is towards a teacher.
    """
    own, other = sides(batch)
    layer, head = _layer_flops(model), 2 * model.hidden_size * model.vocab_size
    pair = 4 * model.num_heads * model.head_dim
    anew, attention_anew = remat in ("full", "offload"), remat != "none"
    gradients = 1 if adapters else 2  # of the input, and of weights that are trained
    attention_gradients = 3.5 if own.layout else 2.0

    def forward(tokens: float, seen: float) -> float:
        return model.num_layers * (tokens * layer + seen * pair)

    tokens, targets = own.tokens.size, own.target.size
    down = 2 * model.intermediate_size * model.hidden_size
    executed = model.num_layers * (
        tokens * ((1 + anew + gradients) * layer - anew * down)
        + tokens / own.tokens.shape[2] * pairs * pair * (1 + attention_anew + attention_gradients)
    )
    executed += forward(other.tokens.size, other.tokens.size / other.tokens.shape[2] * pairs)
    executed += (3 + distills + gradients) * targets * head
    seen, sampled = map(_seen, (own, other)), int(np.count_nonzero(own.token_weight))
    (present, visible), (others, others_visible) = seen
    useful = (2 + gradients) * sampled * head + forward(others, others_visible)
    useful += (1 + gradients) * forward(present, 0) + 3 * forward(0, visible)
    for path, factors in (adapters or {}).items():
        each = 2 * sum(leaf.size for leaf in jax.tree.leaves(factors))
        in_head = path.startswith("head")
        executed += each * (4 * targets if in_head else (3 + anew) * tokens)
        useful += each * 3 * (sampled if in_head else present)
    return StepFlops(float(executed), float(useful))


def _layer_flops(model: ModelConfig) -> int:
    """Of one token in the matrices of one layer, forwards."""
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    hidden = model.hidden_size
    return 2 * (2 * hidden * queries + 2 * hidden * keys + 3 * hidden * model.intermediate_size)


def computed_pairs(batch: Batch, mesh: Mesh) -> int:
    """Query-key pairs of a row that the attention kernel computes: all, or whole visible blocks."""
    length = batch.tokens.shape[2]
    if batch.layout is None:
        return length**2
    block, mask = block_size(batch.layout, mesh.shape["context"]), RowMask(batch.layout)
    edges = [slice(start, start + block) for start in range(0, length, block)]
    return block**2 * sum(bool(mask[rows, columns].any()) for rows in edges for columns in edges)


def _seen(batch: Batch) -> tuple[int, int]:
    """Tokens of a batch, and the pairs of them that see each other."""
    return int(np.count_nonzero(batch.segments)), sum(map(_visible, _segments(batch)))


def _segments(batch: Batch) -> Iterator[list[tuple[int, int, int]]]:
    """(segment, parent, length) of the segments of each row, padding apart."""
    length = batch.tokens.shape[2]
    rows = zip(batch.segments.reshape(-1, length), batch.parents.reshape(-1, length), strict=True)
    for segments, parents in rows:
        found, first, counts = np.unique(segments, return_index=True, return_counts=True)
        lengths = zip(found.tolist(), parents[first].tolist(), counts.tolist(), strict=True)
        yield [run for run in lengths if run[0]]


def _visible(runs: list[tuple[int, int, int]]) -> int:
    """Pairs of a row that `row_attention.row_mask` leaves."""
    length_of = {segment: length for segment, _, length in runs}
    total = 0
    for segment, parent, length in runs:
        before = {1, parent} - {0, segment}
        seen = sum(length_of[other] for other in before if other in length_of)
        total += length * (length + 1) // 2 + length * seen
    return total

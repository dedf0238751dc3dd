"""Rollouts to fixed-shape training rows that share their context.

A row holds one context (system prompt and problem) and the completions sampled
from it.  A completion sees the context and itself, so the context is computed
once for all of them:

    tokens     c c c c | a a a | b b | 0 0
    segments   1 1 1 1 | 2 2 2 | 3 3 | 0 0
    parents    1 1 1 1 | 1 1 1 | 1 1 | 0 0
    positions  0 1 2 3 | 4 5 6 | 4 5 | 0 0

The first token of every completion is predicted by the last context token, each
later one by its predecessor; `predictor` holds that index for each target.

Denominators are taken over the whole batch, here, before it is split into
micro-batches: the loss does not depend on the split, on padding or on order.
The paper aggregates tokens "at the prompt level", read as: the mean over all
completion tokens of a problem's group, then the mean over problems.

Shapes come from a short list of lengths (`bucket`), so that a run compiles a
few programs and then none.  Segments follow one another without a gap, unless
the attention kernel of the mesh wants each at the same place in all rows
(`Batch.layout`); the gaps are then padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from fst_jax.models.row_attention import kernel_of
from fst_jax.models.splash_rows import LANES, Layout
from fst_jax.parallel.sharding import whole_shards
from fst_jax.shapes import bucket


@dataclass(frozen=True)
class Sample:
    """One completion as the learner needs it."""

    context_ids: tuple[int, ...]
    ids: Int[np.ndarray, "t"]
    logprobs: Float[np.ndarray, "t"]  # behaviour, at `temperature`
    temperature: float
    group: int  # problem of the step; denominators are per group
    advantage: float
    valid: bool  # those it was compared with have variance


class Batch(NamedTuple):
    """M micro-batches of R rows with T tokens and C targets; NumPy on the host, then JAX."""

    tokens: Int[Any, "M R T"]
    positions: Int[Any, "M R T"]
    segments: Int[Any, "M R T"]  # 0 padding, 1 context, 2… completions
    parents: Int[Any, "M R T"]  # the segment that a token's own continues
    predictor: Int[Any, "M R C"]
    target: Int[Any, "M R C"]
    behaviour: Float[Any, "M R C"]
    temperature: Float[Any, "M R C"]
    advantage: Float[Any, "M R C"]
    policy_weight: Float[Any, "M R C"]  # groups with variance only; sums to 1 or 0
    kl_weight: Float[Any, "M R C"]  # every group; sums to 1
    token_weight: Float[Any, "M R C"]  # plain mean over tokens, for metrics; sums to 1
    layout: Layout | None = None  # where segments lie, if at the same places in all rows


def completions_per_row(
    samples_per_context: int, max_prompt: int, max_new: int, hidden_size: int
) -> int:
    """How many of a context's completions share a row, so that all rows cost least.

    A row of T tokens takes T · (12 H² + 2 T H) multiplications a layer, for the matrices and for
    attention, which also computes what its mask hides.  Sharing saves the context's part of the
    first and adds to the second.
    """

    def cost(completions: int) -> float:
        length = max_prompt + completions * max_new
        return length * (6 * hidden_size + length) / completions

    divisors = (c for c in range(1, samples_per_context + 1) if samples_per_context % c == 0)
    return min(divisors, key=cost)


def row_bucket(tokens: int, quantum: int = 32) -> int:
    """The length of a row that holds `tokens`: a step's cost is its padded length."""
    return bucket(tokens, quantum, per_octave=4)


def pack(
    samples: Sequence[Sample], per_row: int, micro_batch_rows: int, mesh: Mesh | None = None
) -> Batch:
    """Lay out samples as rows of one context and at most `per_row` completions.

    Samples with equal `context_ids` share rows.  Shapes are bucketed, rows are
    padded with empty ones to a multiple of `micro_batch_rows`.  For a `mesh`, tokens and targets
    divide by its context axis, rows of a micro-batch by the others, and rows have a layout where
    its attention kernel wants one; without, for one device and any kernel but that.
    """
    rows = _rows(samples, per_row)
    parts = mesh.shape["context"] if mesh else 1
    layout = _layout(rows, parts) if mesh and kernel_of(mesh) == "splash" else None
    tight = row_bucket(max(len(row[0].context_ids) + _tokens(row) for row in rows))
    length = layout.length if layout else _multiple(tight, parts)
    targets = _multiple(bucket(max(_tokens(row) for row in rows)), parts)
    micro_batch_rows = whole_shards(micro_batch_rows, mesh) if mesh else micro_batch_rows
    count = _multiple(len(rows), micro_batch_rows)

    group_tokens = _group_tokens(samples)
    valid_tokens = _group_tokens([sample for sample in samples if sample.valid])
    total_tokens = sum(group_tokens.values())

    def integers(width: int) -> np.ndarray:
        return np.zeros((count, width), np.int32)

    def floats() -> np.ndarray:
        return np.zeros((count, targets), np.float32)

    tokens, positions = integers(length), integers(length)
    segments, parents = integers(length), integers(length)
    predictor, target = integers(targets), integers(targets)
    behaviour, advantage = floats(), floats()
    temperature = np.ones((count, targets), np.float32)
    policy_weight, kl_weight, token_weight = floats(), floats(), floats()
    for r, row in enumerate(rows):
        context = row[0].context_ids
        start = len(context)
        tokens[r, :start] = context
        positions[r, :start] = np.arange(start)
        segments[r, :start] = parents[r, :start] = 1
        at = 0
        for c, sample in enumerate(row):
            size = len(sample.ids)
            start = layout.starts[1 + c] if layout else start
            here = slice(start, start + size)
            tokens[r, here] = sample.ids
            positions[r, here] = len(context) + np.arange(size)
            segments[r, here], parents[r, here] = 2 + c, 1
            there = slice(at, at + size)
            predictor[r, there] = np.arange(start - 1, start + size - 1)
            predictor[r, at] = len(context) - 1
            target[r, there] = sample.ids
            behaviour[r, there] = sample.logprobs
            temperature[r, there] = sample.temperature
            advantage[r, there] = sample.advantage
            kl_weight[r, there] = 1.0 / group_tokens[sample.group] / len(group_tokens)
            if sample.valid:
                policy_weight[r, there] = 1.0 / valid_tokens[sample.group] / len(valid_tokens)
            token_weight[r, there] = 1.0 / total_tokens
            start += size
            at += size
    flat = (
        tokens, positions, segments, parents, predictor, target, behaviour,
        temperature, advantage, policy_weight, kl_weight, token_weight,
    )  # fmt: skip
    whole = Batch(*flat, layout=layout)
    return jax.tree.map(lambda x: x.reshape(-1, micro_batch_rows, x.shape[-1]), whole)


def _layout(rows: Sequence[Sequence[Sample]], parts: int) -> Layout:
    """Room for the longest context and the longest completion, at the same places in all rows."""
    context = row_bucket(max(len(row[0].context_ids) for row in rows), LANES)
    completion = row_bucket(max(len(sample.ids) for row in rows for sample in row), LANES)
    count = max(map(len, rows))
    runs = [(1, 1, context), *((2 + c, 1, completion) for c in range(count))]
    total = sum(length for _, _, length in runs)
    rest = _multiple(total, LANES * parts) - total
    return Layout((*runs, (0, 0, rest)) if rest else tuple(runs))


def _multiple(count: int, divisor: int) -> int:
    return -(-count // divisor) * divisor


def _rows(samples: Sequence[Sample], per_row: int) -> list[list[Sample]]:
    by_context: dict[tuple[int, ...], list[Sample]] = {}
    for sample in samples:
        by_context.setdefault(sample.context_ids, []).append(sample)
    return [
        own[start : start + per_row]
        for own in by_context.values()
        for start in range(0, len(own), per_row)
    ]


def _group_tokens(samples: Sequence[Sample]) -> dict[int, int]:
    totals: dict[int, int] = {}
    for sample in samples:
        totals[sample.group] = totals.get(sample.group, 0) + len(sample.ids)
    return totals


def _tokens(row: Sequence[Sample]) -> int:
    return sum(len(sample.ids) for sample in row)

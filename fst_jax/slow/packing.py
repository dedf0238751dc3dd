"""Rollouts to fixed-shape training rows that share their context.

A row holds one context (system prompt and problem) and the completions sampled
from it.  A completion sees the context and itself, so the context is computed
once for all of them:

    tokens     c c c c | a a a | b b | 0 0
    segments   1 1 1 1 | 2 2 2 | 3 3 | 0 0
    positions  0 1 2 3 | 4 5 6 | 4 5 | 0 0

The first token of every completion is predicted by the last context token, each
later one by its predecessor; `predictor` holds that index for each target.

Denominators are taken over the whole batch, here, before it is split into
micro-batches: the loss does not depend on the split, on padding or on order.
The paper aggregates tokens "at the prompt level", read as: the mean over all
completion tokens of a problem's group, then the mean over problems.

Shapes come from a short list of lengths (`bucket`), so that a run compiles a
few programs and then none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

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
    predictor: Int[Any, "M R C"]
    target: Int[Any, "M R C"]
    behaviour: Float[Any, "M R C"]
    temperature: Float[Any, "M R C"]
    advantage: Float[Any, "M R C"]
    policy_weight: Float[Any, "M R C"]  # groups with variance only; sums to 1 or 0
    kl_weight: Float[Any, "M R C"]  # every group; sums to 1
    token_weight: Float[Any, "M R C"]  # plain mean over tokens, for metrics; sums to 1


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


def row_bucket(tokens: int) -> int:
    """The length of a row that holds `tokens`: a step's cost is its padded length."""
    return bucket(tokens, per_octave=4)


def pack(samples: Sequence[Sample], per_row: int, micro_batch_rows: int) -> Batch:
    """Lay out samples as rows of one context and at most `per_row` completions.

    Samples with equal `context_ids` share rows.  Shapes are bucketed, rows are
    padded with empty ones to a multiple of `micro_batch_rows`.
    """
    rows = _rows(samples, per_row)
    length = row_bucket(max(len(row[0].context_ids) + _tokens(row) for row in rows))
    targets = bucket(max(_tokens(row) for row in rows))
    count = -(-len(rows) // micro_batch_rows) * micro_batch_rows

    group_tokens = _group_tokens(samples)
    valid_tokens = _group_tokens([sample for sample in samples if sample.valid])
    total_tokens = sum(group_tokens.values())

    def integers(width: int) -> np.ndarray:
        return np.zeros((count, width), np.int32)

    def floats() -> np.ndarray:
        return np.zeros((count, targets), np.float32)

    tokens, positions, segments = integers(length), integers(length), integers(length)
    predictor, target = integers(targets), integers(targets)
    behaviour, advantage = floats(), floats()
    temperature = np.ones((count, targets), np.float32)
    policy_weight, kl_weight, token_weight = floats(), floats(), floats()
    for r, row in enumerate(rows):
        context = row[0].context_ids
        start = len(context)
        tokens[r, :start] = context
        positions[r, :start] = np.arange(start)
        segments[r, :start] = 1
        at = 0
        for c, sample in enumerate(row):
            size = len(sample.ids)
            here = slice(start, start + size)
            tokens[r, here] = sample.ids
            positions[r, here] = len(context) + np.arange(size)
            segments[r, here] = 2 + c
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
        tokens, positions, segments, predictor, target, behaviour,
        temperature, advantage, policy_weight, kl_weight, token_weight,
    )  # fmt: skip
    return Batch(*(x.reshape(-1, micro_batch_rows, x.shape[-1]) for x in flat))


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

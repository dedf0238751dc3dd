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

Where it pays (`contexts_per_row`), several contexts share a row as well, and in
it what they begin with, such as the system prompt.  A problem's part of its
context sees the beginning and itself, a completion these two and itself:

    tokens     p p p | q q | a a a | r | b b | 0
    segments   1 1 1 | 2 2 | 3 3 3 | 4 | 5 5 | 0
    parents    1 1 1 | 1 1 | 2 2 2 | 1 | 4 4 | 0
    positions  0 1 2 | 3 4 | 5 6 7 | 3 | 4 5 | 0

Denominators are taken over the whole batch, here, before it is split into
micro-batches: the loss does not depend on the split, on padding or on order.
The paper aggregates tokens "at the prompt level", read as: the mean over all
completion tokens of a problem's group, then the mean over problems.  Other
objectives have other denominators (`token_weights`).

Shapes come from a short list of lengths (`bucket`), so that a run compiles a
few programs and then none.  Segments follow one another without a gap, unless
the attention kernel of the mesh wants each at the same place in all rows
(`Batch.layout`); the gaps are then padding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from fst_jax.config import Aggregation
from fst_jax.models.row_attention import kernel_of
from fst_jax.models.splash_rows import LANES, Layout
from fst_jax.parallel.sharding import ROWS, shards, whole_shards
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
    frozen_ids: tuple[int, ...] = ()  # the frozen model's context where it is another


class Batch(NamedTuple):
    """M micro-batches of R rows with T tokens and C targets; NumPy on the host, then JAX."""

    tokens: Int[Any, "M R T"]
    positions: Int[Any, "M R T"]
    segments: Int[Any, "M R T"]  # 0 padding, 1 the row's beginning, 2… what follows
    parents: Int[Any, "M R T"]  # the segment that a token's own continues
    predictor: Int[Any, "M R C"]
    target: Int[Any, "M R C"]
    sample: Int[Any, "M R C"]  # 1 + index of the target's completion in the batch; 0 padding
    behaviour: Float[Any, "M R C"]
    temperature: Float[Any, "M R C"]
    advantage: Float[Any, "M R C"]
    policy_weight: Float[Any, "M R C"]  # 1 / denominator; groups with variance only
    kl_weight: Float[Any, "M R C"]  # the same for every group
    token_weight: Float[Any, "M R C"]  # plain mean over tokens, for metrics; sums to 1
    layout: Layout | None = None  # where segments lie, if at the same places in all rows


class Pair(NamedTuple):
    """The same completions, target by target, under two contexts; only the lengths of rows differ.

    Of the frozen model's batch, only what the model reads is used.
    """

    own: Batch  # under θ's context
    frozen: Batch  # under that of the teacher, or of a reference


def sides(batch: Batch | Pair) -> Pair:
    """A pair as it is; a batch as one whose contexts are the same."""
    return batch if isinstance(batch, Pair) else Pair(batch, batch)


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


def contexts_per_row(
    samples: Sequence[Sample],
    per_row: int,
    max_prompt: int,
    max_new: int,
    hidden_size: int,
    mesh: Mesh,
    most: int,
) -> int:
    """How many contexts, at `most`, share a row, so that all rows cost least; 1 unless it pays.

    Every shard of the mesh keeps a row of its own.

    The cost is that of `completions_per_row`, for the part of contexts that these samples share;
    attention costs what is seen where the mesh's kernel skips the rest.  Rows get longer, and their
    number smaller: a twentieth must be saved.  The shared part is taken as a power of two, so that
    the choice, which is another program, changes seldom.
    """
    contexts = sorted({sample.context_ids for sample in samples})
    common = sorted(map(_common, contexts, contexts[1:]))
    if not common or common[len(common) // 2] == 0:
        return 1
    shared = min(2 ** (common[len(common) // 2].bit_length() - 1), max_prompt - 1)
    own = max_prompt - shared
    branch = own + per_row * max_new

    def cost(count: int) -> float:
        length = shared + count * branch
        seen = length * length
        if kernel_of(mesh) == "splash":
            completion = max_new * (max_prompt + max_new / 2)
            context = own * (shared + own / 2)
            seen = shared * shared / 2 + count * (context + per_row * completion)
        return (length * 6 * hidden_size + seen) / count

    most = min(most, len(contexts) // shards(mesh, ROWS))
    divisors = [c for c in range(2, most + 1) if len(contexts) % c == 0]
    best = min([1, *divisors], key=cost)
    return best if cost(best) <= 0.95 * cost(1) else 1


def token_weights(
    samples: Sequence[Sample], aggregation: Aggregation, rollouts: int, longest: int
) -> Callable[[Sample], float]:
    """The weight of each token of one of `samples`, that is, 1 / its denominator.

    problem: mean over the tokens of a problem, then over problems (the paper's).
    token: mean over all tokens (DAPO, arXiv 2503.14476, eq. 8, over the batch).
    completion: mean over a completion's tokens, then over completions (GRPO, arXiv 2402.03300).
    completion_sum: sum over a completion's tokens, mean over completions (RLOO, arXiv 2402.14740).
    constant: sum over tokens, divided by what `rollouts` completions of `longest` tokens would
      have (Dr.GRPO, arXiv 2503.20783: no denominator that depends on what was sampled).

    The first three sum to 1 over all tokens.
    """
    tokens: dict[int, int] = {}
    for sample in samples:
        tokens[sample.group] = tokens.get(sample.group, 0) + len(sample.ids)
    total, count = sum(tokens.values()), len(samples)
    weights: dict[Aggregation, Callable[[Sample], float]] = {
        "problem": lambda sample: 1.0 / tokens[sample.group] / len(tokens),
        "token": lambda sample: 1.0 / total,
        "completion": lambda sample: 1.0 / len(sample.ids) / count,
        "completion_sum": lambda sample: 1.0 / count,
        "constant": lambda sample: 1.0 / longest / rollouts,
    }
    return weights[aggregation]


def split_problems(samples: Sequence[Sample], count: int) -> list[list[Sample]]:
    """`count` parts with equally many problems each, give or take one, in their order."""
    problems = {group: i for i, group in enumerate(dict.fromkeys(s.group for s in samples))}
    parts: list[list[Sample]] = [[] for _ in range(count)]
    for sample in samples:
        parts[problems[sample.group] * count // len(problems)].append(sample)
    return parts


Numbered = tuple[int, Sample]  # 1 + index among those that are packed together


@dataclass(frozen=True)
class _Row:
    """What a row begins with, and its branches: what contexts have beyond it, their completions."""

    shared: tuple[int, ...]
    branches: list[tuple[tuple[int, ...], list[Numbered]]]

    @property
    def targets(self) -> int:
        return sum(len(sample.ids) for _, samples in self.branches for _, sample in samples)

    def runs(self, split: bool) -> list[tuple[int, int, int]]:
        """(segment, parent, length) of its segments; `split`: contexts have parts of their own."""
        sizes = [(len(own), [len(s.ids) for _, s in samples]) for own, samples in self.branches]
        return _runs(len(self.shared), sizes, split)


def pack(
    samples: Sequence[Sample],
    per_row: int,
    micro_batch_rows: int,
    mesh: Mesh | None = None,
    contexts: int = 1,
    aggregation: Aggregation = "problem",
    longest: int = 1,
) -> Batch:
    """Lay out samples as rows of `contexts` contexts with at most `per_row` completions each.

    Samples with equal `context_ids`, and equal `frozen_ids`, share rows.  Shapes are bucketed,
    rows are padded with empty ones to a multiple of `micro_batch_rows`.  For a `mesh`, tokens and
    targets divide by its context axis, rows of a micro-batch by the others, and rows have a layout
    where its attention kernel wants one; without, for one device and any kernel but that.
    `aggregation` and `longest`, the limit of a completion in tokens: see `token_weights`.
    """
    (batch,) = pack_together(
        [samples], per_row, micro_batch_rows, mesh, contexts, aggregation, longest
    )
    return batch


def pack_together(
    parts: Sequence[Sequence[Sample]],
    per_row: int,
    micro_batch_rows: int,
    mesh: Mesh | None,
    contexts: int,
    aggregation: Aggregation,
    longest: int,
) -> list[Batch]:
    """A batch for each part as `pack` makes it, but all of one shape.

    Each has its own denominators; one with fewer rows than another is padded to as many.
    """
    layouts = [_rows(part, per_row, contexts) for part in parts]
    rows = [row for layout in layouts for row in layout]
    split = contexts > 1
    shards = mesh.shape["context"] if mesh else 1
    fixed = _layout(rows, split, shards) if mesh and kernel_of(mesh) == "splash" else None
    tight = row_bucket(max(sum(length for *_, length in row.runs(split)) for row in rows))
    length = fixed.length if fixed else _multiple(tight, shards)
    targets = _multiple(bucket(max(row.targets for row in rows)), shards)
    micro_batch_rows = whole_shards(micro_batch_rows, mesh) if mesh else micro_batch_rows
    height = _multiple(max(map(len, layouts)), micro_batch_rows)
    batches = []
    for part, own in zip(parts, layouts, strict=True):
        learned = [sample for sample in part if sample.valid]
        whole = _lay_out(
            own,
            (height, length, targets),
            split,
            fixed,
            _most(rows),
            policy=token_weights(learned, aggregation, len(part), longest),
            regularizer=token_weights(part, aggregation, len(part), longest),
            plain=token_weights(part, "token", len(part), longest),
        )
        batches.append(jax.tree.map(lambda x: x.reshape(-1, micro_batch_rows, x.shape[-1]), whole))
    return batches


def pack_pairs(
    parts: Sequence[Sequence[Sample]],
    per_row: int,
    micro_batch_rows: int,
    mesh: Mesh | None,
    aggregation: Aggregation,
    longest: int,
) -> list[Pair]:
    """A pair for each part, whose rows hold completions that share both of their contexts.

    Samples have `frozen_ids`.  Arguments are those of `pack`; all pairs are of one shape.
    """
    exchanged = [
        [replace(s, context_ids=s.frozen_ids, frozen_ids=s.context_ids) for s in part]
        for part in parts
    ]
    own, frozen = (
        pack_together(side, per_row, micro_batch_rows, mesh, 1, aggregation, longest)
        for side in (parts, exchanged)
    )
    return [Pair(*pair) for pair in zip(own, frozen, strict=True)]


def _lay_out(
    rows: Sequence[_Row],
    shape: tuple[int, int, int],
    split: bool,
    layout: Layout | None,
    most: int,
    policy: Callable[[Sample], float],
    regularizer: Callable[[Sample], float],
    plain: Callable[[Sample], float],
) -> Batch:
    """A batch with one axis for all rows, given the weights of its tokens.

    Where there is a layout, every branch has room for `most` completions.
    """
    count, length, targets = shape

    def integers(width: int) -> np.ndarray:
        return np.zeros((count, width), np.int32)

    def floats() -> np.ndarray:
        return np.zeros((count, targets), np.float32)

    tokens, positions = integers(length), integers(length)
    segments, parents = integers(length), integers(length)
    predictor, target, of_sample = integers(targets), integers(targets), integers(targets)
    behaviour, advantage = floats(), floats()
    temperature = np.ones((count, targets), np.float32)
    policy_weight, kl_weight, token_weight = floats(), floats(), floats()
    for r, row in enumerate(rows):
        runs = layout or Layout(tuple(row.runs(split)))
        slots = list(zip(runs.runs, runs.starts, strict=True))

        def lay(slot: int, ids: Any, position: int, r: int = r, slots: Any = slots) -> int:
            """Put tokens into a segment's place; returns the index after them."""
            (segment, parent, _), start = slots[slot]
            here = slice(start, start + len(ids))
            tokens[r, here] = ids
            positions[r, here] = position + np.arange(len(ids))
            segments[r, here], parents[r, here] = segment, parent
            return start + len(ids)

        begun = lay(0, row.shared, 0)
        slot, at = 1, 0
        for own, completions in row.branches:
            after = slot + split + (most if layout else len(completions))
            last = begun - 1  # of the context
            if split:
                last = lay(slot, own, begun) - 1 if own else last
                slot += 1
            for number, sample in completions:
                size = len(sample.ids)
                end = lay(slot, sample.ids, begun + len(own))
                there = slice(at, at + size)
                predictor[r, there] = np.arange(end - size - 1, end - 1)
                predictor[r, at] = last
                target[r, there] = sample.ids
                of_sample[r, there] = number
                behaviour[r, there] = sample.logprobs
                temperature[r, there] = sample.temperature
                advantage[r, there] = sample.advantage
                kl_weight[r, there] = regularizer(sample)
                if sample.valid:
                    policy_weight[r, there] = policy(sample)
                token_weight[r, there] = plain(sample)
                slot += 1
                at += size
            slot = after
    return Batch(
        tokens, positions, segments, parents, predictor, target, of_sample, behaviour,
        temperature, advantage, policy_weight, kl_weight, token_weight, layout,
    )  # fmt: skip


def _runs(
    shared: int, branches: Sequence[tuple[int, Sequence[int]]], split: bool
) -> list[tuple[int, int, int]]:
    """Segments of a row in order, numbered from 1, with those that they continue."""
    runs = [(1, 1, shared)]
    for own, completions in branches:
        parent = 1
        if split:
            parent = len(runs) + 1
            runs.append((parent, 1, own))
        runs += [(len(runs) + 1 + i, parent, size) for i, size in enumerate(completions)]
    return runs


def _most(rows: Sequence[_Row]) -> int:
    """Completions of the branch that has most."""
    return max(len(completions) for row in rows for _, completions in row.branches)


def _layout(rows: Sequence[_Row], split: bool, parts: int) -> Layout:
    """Room for the longest of each kind of segment, at the same places in all rows."""
    shared = row_bucket(max(len(row.shared) for row in rows))
    own = row_bucket(max(len(own) for row in rows for own, _ in row.branches))
    completion = row_bucket(
        max(len(s.ids) for row in rows for _, completions in row.branches for _, s in completions)
    )
    branches = max(len(row.branches) for row in rows)
    runs = _runs(shared, [(own, [completion] * _most(rows))] * branches, split)
    total = sum(length for *_, length in runs)
    rest = _multiple(total, LANES * parts) - total
    return Layout((*runs, (0, 0, rest)) if rest else tuple(runs))


def _multiple(count: int, divisor: int) -> int:
    return -(-count // divisor) * divisor


def _rows(samples: Sequence[Sample], per_row: int, contexts: int) -> list[_Row]:
    by_context: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Numbered]] = {}
    for number, sample in enumerate(samples, start=1):
        key = sample.context_ids, sample.frozen_ids
        by_context.setdefault(key, []).append((number, sample))
    pieces = [
        (context, own[start : start + per_row])
        for (context, _), own in by_context.items()
        for start in range(0, len(own), per_row)
    ]
    if contexts == 1:
        return [_Row(context, [((), own)]) for context, own in pieces]
    # Sorted, contexts are beside those with which they have most in common.
    pieces.sort(key=lambda piece: piece[0])
    common = [_common(one[0], other[0]) for one, other in pairwise(pieces)]
    enough = sorted(common)[len(common) // 2] // 2 if common else 0
    rows = [[pieces[0]]]
    for piece, shared in zip(pieces[1:], common, strict=True):
        if len(rows[-1]) == contexts or shared < enough:
            rows.append([])
        rows[-1].append(piece)
    return [_branched(row) for row in rows]


def _branched(pieces: Sequence[tuple[tuple[int, ...], list[Numbered]]]) -> _Row:
    """One row of several contexts, in their sorted order."""
    size = _common(pieces[0][0], pieces[-1][0])
    return _Row(pieces[0][0][:size], [(context[size:], own) for context, own in pieces])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))

"""Packed rows hold every sample once, and weights whose denominators are the whole batch's."""

from types import SimpleNamespace
from typing import get_args
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh

from fst_jax.config import Aggregation
from fst_jax.slow.packing import (
    Batch,
    Sample,
    completions_per_row,
    contexts_per_row,
    pack,
    pack_together,
    row_bucket,
    split_problems,
    token_weights,
)
from tests.slow import tiny

CONTEXTS = [(1,), (5, 6), (5, 6, 7), (5, 6, 8), tuple(range(40))]


COUNTS = {"count": st.integers(1, 14), "seed": st.integers(0, 2**32)}
ROWS = {"per_row": st.integers(1, 4), "micro_batch_rows": st.integers(1, 5)}


def random_samples(count: int, seed: int) -> list[Sample]:
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        size = int(rng.integers(1, 9))
        samples.append(
            Sample(
                context_ids=CONTEXTS[rng.integers(len(CONTEXTS))],
                ids=rng.integers(10, 99, size).astype(np.int32),
                logprobs=rng.normal(size=size).astype(np.float32),
                temperature=float(rng.choice([0.5, 1.0])),
                group=int(rng.integers(3)),
                advantage=float(np.float32(rng.normal())),
                valid=bool(rng.random() < 0.6),
            )
        )
    return samples


def unpack(batch: Batch, two_level: bool = False) -> list[tuple]:
    """Every completion as a reader of the layout finds it."""
    found = []
    rows = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), batch)
    for r in range(len(rows.tokens)):
        tokens, segments, positions = rows.tokens[r], rows.segments[r], rows.positions[r]
        parents = rows.parents[r]
        assert not tokens[segments == 0].any() and not parents[segments == 0].any()
        if batch.layout is None:
            assert not segments[np.count_nonzero(segments) :].any()
        else:
            for own, theirs in zip((segments, parents), batch.layout.arrays(), strict=True):
                np.testing.assert_array_equal(own, np.where(segments, theirs, 0))
        at = 0
        for segment in sorted(set(segments) - {0, 1}):
            places = np.flatnonzero(segments == segment)
            size, parent = len(places), parents[places[0]]
            if two_level and parent == 1:
                continue  # a problem's part of its context
            context = np.flatnonzero((segments == 1) | (segments == parent))
            np.testing.assert_array_equal(positions[context], np.arange(len(context)))
            np.testing.assert_array_equal(positions[places], len(context) + np.arange(size))
            here = slice(at, at + size)
            np.testing.assert_array_equal(rows.predictor[r, here], [context[-1], *places[:-1]])
            np.testing.assert_array_equal(rows.target[r, here], tokens[places])
            (index,) = set(rows.sample[r, here].tolist())
            found.append(
                (
                    index - 1,
                    tuple(tokens[context].tolist()),
                    tuple(tokens[places].tolist()),
                    tuple(rows.behaviour[r, here].tolist()),
                    *(
                        tuple(np.unique(getattr(rows, name)[r, here]).tolist())
                        for name in (
                            "temperature",
                            "advantage",
                            "policy_weight",
                            "kl_weight",
                            "token_weight",
                        )
                    ),
                )
            )
            at += size
        for name in ("policy_weight", "kl_weight", "token_weight", "sample"):
            assert not getattr(rows, name)[r, at:].any()
        assert np.all(rows.temperature[r, at:] == 1)
    return found


def expected(samples: list[Sample]) -> list[tuple]:
    """The same, from the definition: mean over a problem's tokens, then over problems."""

    def tokens(members: list[Sample]) -> int:
        return sum(len(s.ids) for s in members)

    problems = {s.group: [t for t in samples if t.group == s.group] for s in samples}
    teaching = {g: [s for s in own if s.valid] for g, own in problems.items()}
    teaching = {g: own for g, own in teaching.items() if own}
    return [
        (
            index,
            s.context_ids,
            tuple(s.ids.tolist()),
            tuple(s.logprobs.tolist()),
            (s.temperature,),
            (s.advantage,),
            (np.float32(1 / len(teaching) / tokens(teaching[s.group]) if s.valid else 0),),
            (np.float32(1 / len(problems) / tokens(problems[s.group])),),
            (np.float32(1 / tokens(samples)),),
        )
        for index, s in enumerate(samples)
    ]


def tpu(context: int = 1, fsdp: int = 1) -> Mesh:
    """As much of a mesh of TPUs as packing looks at."""
    sizes = {"data": 1, "fsdp": fsdp, "tensor": 1, "context": context}
    return Mock(spec=Mesh, shape=sizes, devices=np.array([SimpleNamespace(platform="tpu")]))


@given(**COUNTS, **ROWS, contexts=st.integers(1, 3), on_tpu=st.booleans())
def test_every_sample_is_there_once(count, seed, per_row, micro_batch_rows, contexts, on_tpu):
    samples = random_samples(count, seed)
    batch = pack(samples, per_row, micro_batch_rows, tpu() if on_tpu else None, contexts)
    assert (batch.layout is not None) == on_tpu
    found, wanted = sorted(unpack(batch, contexts > 1)), sorted(expected(samples))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one[:6] == other[:6]
        np.testing.assert_allclose(one[6:], other[6:], rtol=1e-6)


@given(**COUNTS, **ROWS)
def test_weights_sum_to_one_and_shapes_are_bucketed(count, seed, per_row, micro_batch_rows):
    samples = random_samples(count, seed)
    batch = pack(samples, per_row, micro_batch_rows)
    assert batch.kl_weight.sum() == pytest.approx(1, abs=1e-5)
    assert batch.token_weight.sum() == pytest.approx(1, abs=1e-5)
    learned = any(sample.valid for sample in samples)
    assert batch.policy_weight.sum() == pytest.approx(float(learned), abs=1e-5)
    assert batch.segments.max() <= 1 + per_row
    for array in jax.tree.leaves(batch):
        assert array.shape[:2] == batch.tokens.shape[:2]
        assert array.shape[1] == micro_batch_rows
        assert array.shape[2] == row_bucket(array.shape[2])
        assert array.dtype in (np.int32, np.float32)
    # No micro-batch is padding alone.
    assert np.all((batch.segments != 0).any(axis=(1, 2)))


@given(**COUNTS)
def test_denominators_equal_their_definitions(count, seed):
    samples, longest, rollouts = random_samples(count, seed), 20, 17
    sizes = [len(s.ids) for s in samples]
    groups = {s.group for s in samples}
    expected = {
        "problem": [
            1 / len(groups) / sum(len(o.ids) for o in samples if o.group == s.group)
            for s in samples
        ],
        "token": [1 / sum(sizes)] * count,
        "completion": [1 / (count * size) for size in sizes],
        "completion_sum": [1 / count] * count,
        "constant": [1 / (rollouts * longest)] * count,
    }
    assert tuple(expected) == get_args(Aggregation)
    for name, weights in expected.items():
        weigh = token_weights(samples, name, rollouts, longest)
        np.testing.assert_allclose([weigh(s) for s in samples], weights, rtol=1e-12)
        total = sum(weigh(s) * size for s, size in zip(samples, sizes, strict=True))
        assert total == pytest.approx(1) or name in ("completion_sum", "constant")


@given(
    **COUNTS,
    **ROWS,
    parts=st.integers(1, 3),
    contexts=st.integers(1, 3),
    on_tpu=st.booleans(),
)
def test_minibatches_are_batches_of_their_problems_in_one_shape(
    count, seed, per_row, micro_batch_rows, parts, contexts, on_tpu
):
    samples = random_samples(count, seed)
    problems = list(dict.fromkeys(s.group for s in samples))
    parts = min(parts, len(problems))
    mesh = tpu() if on_tpu else None
    batches = pack_together(
        split_problems(samples, parts), per_row, micro_batch_rows, mesh, contexts, "token", 9
    )
    assert len({str(jax.tree.map(np.shape, batch)) for batch in batches}) == 1  # and one layout
    shares = [
        [s for s in samples if problems.index(s.group) * parts // len(problems) == part]
        for part in range(parts)
    ]
    counts = [len({s.group for s in share}) for share in shares]
    assert max(counts) - min(counts) <= 1
    for share, batch in zip(shares, batches, strict=True):
        alone = pack(share, per_row, micro_batch_rows, mesh, contexts, "token", 9)
        assert unpack(batch, contexts > 1) == unpack(alone, contexts > 1)
        assert len(unpack(batch, contexts > 1)) == len(share)


def test_denominators_leave_out_groups_without_variance_but_for_the_constant():
    def sample(group: int, size: int, valid: bool) -> Sample:
        return Sample((1,), np.ones(size, np.int32), -np.ones(size), 1.0, group, 1.0, valid)

    samples = [sample(0, 2, True), sample(0, 4, True), sample(1, 3, False)]
    for aggregation, policy, regularizer in (
        ("problem", [1 / 6, 1 / 6, 0], [1 / 12, 1 / 12, 1 / 6]),
        ("token", [1 / 6, 1 / 6, 0], [1 / 9, 1 / 9, 1 / 9]),
        ("completion", [1 / 4, 1 / 8, 0], [1 / 6, 1 / 12, 1 / 9]),
        ("completion_sum", [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]),
        ("constant", [1 / 30, 1 / 30, 0], [1 / 30, 1 / 30, 1 / 30]),
    ):
        batch = pack(samples, 1, 3, aggregation=aggregation, longest=10)
        found = np.concatenate([batch.policy_weight[0, :, :1], batch.kl_weight[0, :, :1]], axis=1)
        np.testing.assert_allclose(found.T, [policy, regularizer], rtol=1e-6)


def test_the_layout_of_the_docstring():
    def sample(*ids: int) -> Sample:
        count = len(ids)
        return Sample((9, 8, 7, 6), np.array(ids, np.int32), -np.ones(count), 1.0, 0, 1.0, True)

    row = jax.tree.map(lambda x: x[0, 0], pack([sample(1, 2, 3), sample(4, 5)], 2, 1))
    assert row.tokens[:11].tolist() == [9, 8, 7, 6, 1, 2, 3, 4, 5, 0, 0]
    assert row.segments[:11].tolist() == [1, 1, 1, 1, 2, 2, 2, 3, 3, 0, 0]
    assert row.positions[:9].tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5]
    assert row.predictor[:5].tolist() == [3, 4, 5, 3, 7]
    assert row.target[:6].tolist() == [1, 2, 3, 4, 5, 0]


def test_two_contexts_of_the_docstring():
    samples = [
        Sample(context, np.array(ids, np.int32), -np.ones(len(ids)), 1.0, 0, 1.0, True)
        for context, ids in (((9, 8, 7, 1, 2), (3, 4, 5)), ((9, 8, 7, 6), (4, 3)))
    ]
    row = jax.tree.map(lambda x: x[0, 0], pack(samples, 1, 1, contexts=2))
    assert row.tokens[:12].tolist() == [9, 8, 7, 1, 2, 3, 4, 5, 6, 4, 3, 0]
    assert row.segments[:12].tolist() == [1, 1, 1, 2, 2, 3, 3, 3, 4, 5, 5, 0]
    assert row.parents[:12].tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 1, 4, 4, 0]
    assert row.positions[:11].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5]
    assert row.predictor[:5].tolist() == [4, 5, 6, 8, 9]
    assert row.target[:6].tolist() == [3, 4, 5, 4, 3, 0]


def test_rows_fill_the_parts_of_a_context_axis():
    batch = pack(random_samples(9, seed=1), 2, 2, tpu(context=3))
    assert batch.tokens.shape[2] % (3 * 128) == 0 and batch.target.shape[2] % 3 == 0


def test_contexts_share_a_row_where_it_pays():
    def samples(prefix: int, own: int) -> list[Sample]:
        ids = np.zeros(4, np.int32)
        contexts = [(*range(prefix), *range(1000 + i, 1000 + i + own)) for i in range(8)]
        return [Sample(c, ids, -np.ones(4), 1.0, 0, 1.0, True) for c in contexts]

    cpu = tiny.one_device()
    # A long prompt, short problems and answers: nearly all of each row is the same.
    assert contexts_per_row(samples(512, 40), 1, 600, 16, 576, tpu(), 64) == 8
    # Where attention computes what its mask hides, fewer of them.
    assert contexts_per_row(samples(512, 40), 1, 900, 16, 576, tpu(), 64) == 8
    assert contexts_per_row(samples(512, 40), 1, 900, 16, 576, cpu, 64) == 4
    assert contexts_per_row(samples(512, 40), 1, 4096, 8192, 4096, tpu(), 64) == 1  # saves 2 %
    assert contexts_per_row(samples(512, 40), 1, 600, 16, 576, tpu(), 5) == 4  # of 5 at most
    # Every shard keeps a row.
    assert contexts_per_row(samples(512, 40), 1, 600, 16, 576, tpu(fsdp=4), 64) == 2
    assert contexts_per_row(samples(0, 40), 1, 600, 16, 576, tpu(), 64) == 1
    assert contexts_per_row(samples(512, 40)[:1], 1, 600, 16, 576, tpu(), 64) == 1


@given(st.integers(1, 64), st.integers(1, 300), st.integers(1, 300), st.integers(1, 4096))
def test_completions_per_row_cost_least(samples, prompt, new, hidden):
    def multiplications(per_row):
        """Of one layer with a gated MLP of 8/3 H, over all rows: 12 H² a token, and attention."""
        rows, tokens = samples // per_row, prompt + per_row * new
        projections = 4 * hidden * hidden + 3 * hidden * (8 * hidden / 3)
        return rows * (projections * tokens + 2 * tokens * tokens * hidden)

    chosen = completions_per_row(samples, prompt, new, hidden)
    assert samples % chosen == 0
    least = min(multiplications(c) for c in range(1, samples + 1) if samples % c == 0)
    assert multiplications(chosen) == pytest.approx(least)


def test_completions_per_row_of_the_configs():
    assert completions_per_row(8, 112, 32, 128) == 8  # short: contexts are worth sharing
    assert completions_per_row(8, 4096, 8192, 4096) == 1  # long: attention would cost more

"""A saved step comes back bit for bit, and a person can read its rollouts."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from fst_jax.config import SlowSettings
from fst_jax.models.splash_rows import Layout
from fst_jax.rollout.engine import Completion
from fst_jax.rollout.rollouts import Rollout
from fst_jax.slow.groups import samples_of
from fst_jax.slow.offending import load, save
from fst_jax.slow.packing import Batch, Pair, pack, pack_pairs, pack_together, split_problems
from fst_jax.tasks.task import Problem, Score

SETTINGS = SlowSettings()


def groups(seed: int = 0) -> list[list[Rollout]]:
    """Six problems of four rollouts, under two prompts, in no order that packing would keep."""
    rng = np.random.default_rng(seed)

    def rollout(p: int, i: int) -> Rollout:
        context, size = tuple(rng.integers(3, 60, 5 + p % 3).tolist()), int(rng.integers(1, 7))
        logprobs = -rng.uniform(0, 3, size).astype(np.float32)
        done = Completion(rng.integers(3, 60, size).astype(np.int32), logprobs, "stop", 0.7, 4)
        score = Score(float(rng.integers(3)) / 2, "advice", "kind")
        return Rollout(Problem(f"p{p}", "q", "ä"), f"φ{i // 2}", context, done, f"{p}.{i}", score)

    return [[rollout(p, i) for i in range(4)] for p in range(6)]


def minibatches(rollouts: list[list[Rollout]], count: int) -> list[Batch]:
    parts = split_problems(samples_of(rollouts, SETTINGS), count)
    return pack_together(parts, 2, 2, None, 1, "problem", 8)


def same(found: Batch | Pair, wanted: Batch | Pair) -> None:
    assert type(found) is type(wanted)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))


@pytest.mark.parametrize("count", [1, 3])
def test_minibatches_and_rollouts(tmp_path: Path, count: int) -> None:
    rollouts = groups()
    batches = minibatches(rollouts, count)
    batches[0].behaviour[0, 0, 0] = np.nan
    save(tmp_path / "nonfinite/7", batches, rollouts)
    found = load(tmp_path / "nonfinite/7")
    assert len(found) == count
    for one, other in zip(found, batches, strict=True):
        same(one, other)
    path = tmp_path / "nonfinite/7/rollouts.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    flat = [rollout for group in rollouts for rollout in group]
    assert [line["text"] for line in lines] == [rollout.text for rollout in flat]
    assert [line["prompt"] for line in lines] == [rollout.prompt for rollout in flat]
    wanted = [np.float32(sample.advantage) for sample in samples_of(rollouts, SETTINGS)]
    assert [line["advantage"] for line in lines] == wanted
    for line, rollout in zip(lines, flat, strict=True):
        assert line["logprobs"] == rollout.completion.logprobs.tolist()
        assert line["ids"] == rollout.completion.ids.tolist()
        assert line["reward"] == rollout.score.reward and line["answer"] == "ä"


def test_a_pair_a_layout_and_bfloat16(tmp_path: Path) -> None:
    rollouts = groups()
    samples = [replace(s, frozen_ids=s.context_ids[1:]) for s in samples_of(rollouts, SETTINGS)]
    (pair,) = pack_pairs([samples], 2, 2, None, "problem", 8)
    length = pair.frozen.tokens.shape[-1]
    frozen = pair.frozen._replace(
        layout=Layout(((1, 1, 8), (2, 1, length - 8))),
        advantage=pair.frozen.advantage.astype(ml_dtypes.bfloat16),
    )
    frozen.advantage[0, 0, :3] = np.nan, np.inf, -0.0
    pair = pair._replace(frozen=frozen)
    save(tmp_path / "7", [pair], rollouts)
    (found,) = load(tmp_path / "7")
    same(found, pair)
    with zipfile.ZipFile(tmp_path / "7/batch-0.npz") as archive:
        assert "own/tokens.npy" in archive.namelist()


def test_it_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    for count in (3, 1):
        save(tmp_path / "7", minibatches(groups(count), count), groups(count))
    assert {path.name for path in (tmp_path / "7").iterdir()} == {"batch-0.npz", "rollouts.jsonl"}
    assert [path.name for path in tmp_path.iterdir()] == ["7"]
    same(load(tmp_path / "7")[0], pack(samples_of(groups(1), SETTINGS), 2, 2))


def test_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no batch"):
        load(tmp_path)

"""The log of a round: what was sampled is not sampled again, and only by the very same round."""

from pathlib import Path
from typing import Any

import pytest

from fst_jax.config import Config
from fst_jax.fast.round_log import RoundLog
from fst_jax.rollout.plain import to_plain
from fst_jax.rollout.rollouts import Rollout
from fst_jax.tasks.task import Problem
from fst_jax.train import round_sampler
from tests.fast.test_reuse import problem, rollout

BATCHES = [[(problem(name), prompt) for name in "abc"] for prompt in ("one", "two", "one")]


class Sampler:
    """Stands where an Actor does: its rollouts depend on the random numbers that it is given."""

    def __init__(self) -> None:
        self.asked = self.counted = 0

    def roll_out(self, pairs: Any, counts: Any, sampling: Any, rng: Any) -> list[list[Rollout]]:
        assert set(counts) == {1}
        self.asked += len(pairs)
        numbers = [int(rng.integers(2**31)) for _ in pairs]
        return [
            [rollout(of.id, prompt, number)]
            for (of, prompt), number in zip(pairs, numbers, strict=True)
        ]

    def count(self, rollouts: list[Rollout]) -> None:
        self.counted += len(rollouts)


def play(path: Path | None, batches: int, step: int = 4) -> tuple[list[Any], Sampler]:
    actor = Sampler()
    roll_out = round_sampler(Config(), actor, RoundLog(path), step)  # type: ignore[arg-type]
    return [[to_plain(r) for r in roll_out(pairs)] for pairs in BATCHES[:batches]], actor


def test_a_round_that_was_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "round.jsonl"
    wanted, whole = play(None, 3)
    assert (whole.asked, whole.counted) == (9, 0)
    play(path, 2)
    found, rest = play(path, 3)
    assert found == wanted  # the third batch with the random numbers that it would have had
    assert (rest.asked, rest.counted) == (3, 6)
    found, none = play(path, 3)
    assert found == wanted and (none.asked, none.counted) == (0, 9)


def test_problems_keep_their_data(tmp_path: Path) -> None:
    log = RoundLog(tmp_path / "round.jsonl")
    log.begin(0)
    log.add(BATCHES[0], [rollout(of.id, prompt, 5) for of, prompt in BATCHES[0]])
    log.begin(0)
    kept = log.next(BATCHES[0])
    assert kept is not None and all(one.problem.data == {"live": True} for one in kept)


@pytest.mark.parametrize("lost", ["end", "middle"])
def test_what_is_damaged_is_sampled_again(lost: str, tmp_path: Path) -> None:
    path = tmp_path / "round.jsonl"
    wanted, _ = play(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    if lost == "end":
        path.write_bytes(b"".join(lines)[:-20])
    else:
        lines[1] = lines[1].replace(b'"step": 4', b'"step": 4 ').replace(b'"two"', b'"ten"')
        path.write_bytes(b"".join(lines))
    found, again = play(path, 3)
    assert found == wanted and again.asked == 3


def test_another_round_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "round.jsonl"
    play(path, 3)
    found, actor = play(path, 1, step=5)
    assert actor.asked == 3 and found != play(None, 1)[0]
    assert path.read_bytes().count(b"\n") == 1  # of the newest round alone
    other = Sampler()
    log = RoundLog(path)
    roll_out = round_sampler(Config(), other, log, 5)  # type: ignore[arg-type]
    roll_out([(Problem("z", "?", "!"), "one")])  # asks for other problems
    assert other.asked == 1

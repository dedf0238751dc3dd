"""Guards and hints: on figures made up for the purpose, and on every recorded run."""

import gzip
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fst_jax.config import Config, DistillSettings, GuardSettings, SlowSettings
from fst_jax.rollout.engine import Completion
from fst_jax.rollout.rollouts import Rollout
from fst_jax.slow.guards import FIRST_STEPS, HINT_STEPS, SILENT_STEPS, Guards, Stop, watch
from fst_jax.tasks.task import Problem, Score

RECORDED = Path(__file__).parents[2] / "reproduction"
CONFIG = Config(guards=GuardSettings(patience=3, max_mismatch=0.5, max_kl=2.0))
HEALTHY = {
    "nonfinite_steps": 0.0, "mismatch_k3": 1e-3, "kl_k3": 0.1, "entropy": 0.5, "reward_mean": 0.5,
    "response_tokens_mean": 8.0, "truncated_fraction": 0.0, "zero_variance_groups": 0,
}  # fmt: skip
Groups = list[list[Rollout]]
NAN = float("nan")


def rollout(problem: Problem, text: str, reward: float) -> Rollout:
    done = Completion(np.zeros(1, np.int32), np.zeros(1, np.float32), "stop", 1.0, 0)
    return Rollout(problem, "", (1,), done, text, Score(reward, "", ""))


def groups_of(texts: list[list[str]], rewards: Any = (0.0, 1.0), answers: Any = None) -> Groups:
    """A group for each list of texts; rewards take turns."""
    return [
        [
            rollout(
                Problem(str(p), f"{p}?", answers[p] if answers else f"answer {p}"),
                text,
                rewards[i % len(rewards)],
            )
            for i, text in enumerate(own)
        ]
        for p, own in enumerate(texts)
    ]


VARIED = groups_of([[f"{p} {i}" for i in range(4)] for p in range(4)])


def watched(
    steps: list[dict[str, Any]],
    groups: Groups = VARIED,
    config: Config = CONFIG,
    guards: Guards | None = None,
) -> tuple[list[list[str]], list[Stop | None], Guards]:
    """Warnings and stop of every step, each given by what is not healthy in it."""
    guards, warnings, stops = guards or Guards(), [], []
    for step, odd in enumerate(steps, start=1):
        guards, told, stop = watch(guards, config, step, HEALTHY | odd, groups)
        warnings.append(told)
        stops.append(stop)
    return warnings, stops, guards


def codes(warnings: list[list[str]]) -> list[list[str]]:
    return [[text.split(":")[0] for text in step] for step in warnings]


def test_healthy_steps_are_left_alone() -> None:
    warnings, stops, guards = watched([{}] * 40)
    assert not any(warnings) and not any(stops) and not guards.broken and not guards.hinted


NONFINITE = {"nonfinite_steps": 1.0, "loss": NAN, "mismatch_k3": NAN, "kl_k3": NAN, "entropy": NAN}


@pytest.mark.parametrize(
    ("name", "odd", "said"),
    [
        ("nonfinite", NONFINITE, "slow.learning_rate"),
        ("nonfinite", {"nonfinite_steps": 2.0}, "slow.learning_rate"),  # of several updates
        ("max_mismatch", {"mismatch_k3": 0.51}, "guards.max_mismatch = 0.5"),
        ("max_kl", {"kl_k3": 2.01}, "guards.max_kl = 2"),
    ],
)
def test_a_guard_that_is_broken_in_a_row_stops_the_run(
    name: str, odd: dict[str, float], said: str
) -> None:
    _, stops, _ = watched([{}, odd, odd, {}, odd, odd, odd])
    assert [stop.guard if stop else None for stop in stops] == [None] * 6 + [name]
    assert stops[-1] is not None
    assert "3 steps in a row, the last of them step 7" in stops[-1].message
    assert said in stops[-1].message


def test_what_is_just_below_a_ceiling_or_has_none_goes_on() -> None:
    assert not any(watched([{"kl_k3": 2.0, "mismatch_k3": 0.5}] * 5)[1])
    free = replace(CONFIG, guards=GuardSettings(patience=3, max_mismatch=None, max_kl=None))
    assert not any(watched([{"kl_k3": 1e9, "mismatch_k3": 1e9}] * 5, config=free)[1])
    student = {name: value for name, value in HEALTHY.items() if name != "kl_k3"}
    assert watch(Guards(), CONFIG, 1, student, VARIED)[1:] == ([], None)


def test_a_step_that_is_not_finite_says_nothing_of_ceilings() -> None:
    high = {"kl_k3": 3.0}
    _, stops, _ = watched([high, high, NONFINITE, high])
    assert [stop.guard if stop else None for stop in stops] == [None, None, None, "max_kl"]
    for odd in (high, NONFINITE):
        _, _, guards = watched([odd])
        assert guards.in_doubt and not guards.rested.in_doubt
        assert not watched([odd, {}])[2].in_doubt


def test_memory_survives_a_checkpoint() -> None:
    rng = np.random.default_rng(0)
    steps = [
        {"kl_k3": rng.uniform(0, 3), "response_tokens_mean": rng.uniform(1, 90), "task": task}
        for task in ("a", "b")
        for _ in range(20)
    ]
    whole = watched(steps)
    for cut in (3, 7, 25):
        first = watched(steps[:cut])
        kept = Guards(**json.loads(json.dumps(asdict(first[2]))))
        second = watched(steps[cut:], guards=kept)
        assert first[0] + second[0] == whole[0] and second[2] == whole[2]


ONSET = HINT_STEPS - 1  # steps of a sign before it is told


@pytest.mark.parametrize(
    ("code", "odd", "harmless"),
    [
        ("length_explosion", {"response_tokens_mean": 32.1}, {"response_tokens_mean": 32.0}),
        ("entropy_collapse", {"entropy": 0.024}, {"entropy": 0.026}),
        ("entropy_collapse", {"entropy": 0.024}, {"entropy": 0.001, "reward_mean": 0.8}),
        ("truncation", {"truncated_fraction": 0.51}, {"truncated_fraction": 0.5}),
    ],
)
def test_a_hint_is_told_after_some_steps_and_for_as_long_as_it_lasts(
    code: str, odd: dict[str, float], harmless: dict[str, float]
) -> None:
    warnings, stops, _ = watched([{}] * FIRST_STEPS + [odd] * (ONSET + 2) + [{}, odd])
    assert codes(warnings) == [[]] * (FIRST_STEPS + ONSET) + [[code]] * 2 + [[]] * 2
    assert not any(stops)
    assert not any(watched([{}] * FIRST_STEPS + [harmless] * 10)[0])
    assert not any(watched([{}] * FIRST_STEPS + [odd] * ONSET + [{}] + [odd] * ONSET)[0])


def test_a_stage_is_compared_with_its_own_first_steps() -> None:
    long = {"response_tokens_mean": 80.0, "task": "second"}
    assert not any(watched([{"task": "first"}] * 10 + [long] * 20)[0])
    assert any(watched([{}] * 10 + [long | {"task": ""}] * 20)[0])


def test_what_begins_among_the_first_steps_is_told() -> None:
    jump = [{"response_tokens_mean": length} for length in (4.0, 30.0, 30.0)]
    assert codes(watched(jump + jump[-1:] * 7)[0]) == [[]] * 9 + [["length_explosion"]]
    fall = [{"entropy": value} for value in (4.0, 0.1, 0.1)]
    assert codes(watched(fall + fall[-1:] * 7)[0]) == [[]] * 9 + [["entropy_collapse"]]


SAME = [["A"] * 4 for _ in range(8)]


@pytest.mark.parametrize(
    ("texts", "answers", "told"),
    [
        (SAME, None, True),
        ([["A", "A", "A ", " A\n"]] * 8, None, True),
        ([["A"] * 4] * 7 + [["B", "A", "A", "A"]], None, True),  # 31 of 32
        ([["A"] * 4] * 6 + [["B"] * 4] * 2, None, False),  # three quarters
        (SAME, ["A"] * 8, False),  # it is the answer
        (SAME, ["A"] * 7 + ["B"], True),  # of most
        ([["A"] * 4] * 7 + [["B"] * 4], ["A"] * 7 + ["B"], False),
        (SAME, [""] * 8, True),  # none is known
        (SAME[:1], None, False),  # one problem
    ],
)
def test_the_same_answer_to_different_problems(
    texts: list[list[str]], answers: list[str] | None, told: bool
) -> None:
    warnings, _, _ = watched([{}] * 6, groups_of(texts, answers=answers))
    assert codes(warnings) == [[]] * ONSET + [["same_answers"] * told] * 2


@pytest.mark.parametrize("problems", [3, 7, 49, 93])
def test_shares_that_only_rounding_sets_apart(problems: int) -> None:
    groups = groups_of([["A"] * 3] * problems, answers=["A"] * problems)
    assert not any(watched([{}] * 6, groups)[0])


def test_problems_that_are_drawn_twice_count_once() -> None:
    twice = groups_of(SAME)[:2] + groups_of([["B"] * 4])
    twice[2] = [replace(r, problem=twice[0][0].problem) for r in twice[2]]
    assert not any(watched([{}] * 6, twice)[0])  # of two problems, one has it half of the time


def test_no_variance() -> None:
    silent, flat = {"zero_variance_groups": 4, "reward_mean": 0.0}, ["0", "1", "2", "3"]
    groups = groups_of([[f"{p}{i}" for i in range(4)] for p in range(4)], rewards=[0.0])
    warnings, _, _ = watched([silent] * (SILENT_STEPS + 1), groups)
    assert codes(warnings) == [[]] * (SILENT_STEPS - 1) + [["no_variance"]] * 2
    assert "easier" in warnings[-1][0]
    solved = watched([silent | {"reward_mean": 1.0}] * SILENT_STEPS, groups)[0]
    assert "harder" in solved[-1][0]
    once = [silent] * 20 + [{"zero_variance_groups": 3}] + [silent] * 20
    assert not any(watched(once, groups)[0])
    student = replace(CONFIG, distill=DistillSettings(enabled=True))
    assert not any(watched([silent] * 40, groups, student)[0])
    # Where the whole step is one group, problems may differ from each other.
    batch = replace(CONFIG, slow=SlowSettings(objective="reinforce"))
    differ = [[rollout(Problem(p, p, p), p + t, float(p == "0")) for t in flat] for p in flat]
    assert not any(watched([silent] * 40, differ, batch)[0])
    assert any(watched([silent] * 40, groups, batch)[0])


def test_recorded_runs_have_no_hint_but_those_that_learned_nothing() -> None:
    """Of their rollouts only statistics are kept, so `same_answers` is not tried here."""
    count, learned = 0, list[Any]()
    groups = groups_of([[str(p)] for p in range(4)], rewards=[0.0])  # for the 16 there were
    for path in sorted(RECORDED.glob("*/*/metrics.jsonl.gz")):
        with gzip.open(path, "rt") as file:
            events = [json.loads(line) for line in file if '"event": "step"' in line]
        guards, told = Guards(), set[str]()
        for event in events:
            event["zero_variance_groups"] //= 4
            guards, warnings, stop = watch(guards, Config(), event["step"], event, groups)
            assert stop is None, (path, event["step"])
            told |= {text.split(":")[0] for text in warnings}
            if told and event["reward_mean"] > 0.1:
                learned.append((path, event["step"], told))
        assert told <= {"no_variance"}, path
        count += len(events)
    assert count > 20_000
    assert not learned

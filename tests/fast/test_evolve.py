"""A fast round: it finds what helps, keeps to its budget, and hides no failure."""

import dataclasses
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fst_jax.config import Config, FastSettings
from fst_jax.errors import ConfigError, ReflectionError, TaskError
from fst_jax.fast.evolve import EvolveReport, evolve, smallest_budget
from fst_jax.fast.pool import Pool, Prompt
from fst_jax.fast.reflect import Job, Proposal, Reflector, reflector_for
from fst_jax.fast.validate import Validator
from fst_jax.tasks.task import Problem, Score
from tests.fast.policy import BACKWARDS, REVERSE, Policy, obeys_strategy, star_graph

GRAPH = star_graph()
ANCHORS = [GRAPH.problems("train")[i] for i in range(24)]
VALIDATOR = Validator(lambda text: len(text.split()), ["<|im_end|>"], max_tokens=120)


def fast(**changes: object) -> FastSettings:
    defaults = {"population": 4, "metric_calls": 480, "minibatch": 6, "proposals": 4}
    return FastSettings(**{**defaults, **changes})


def start(seed: int = 0, population: int = 4) -> Pool:
    return Pool.start(GRAPH.seed_prompt, population, seed)


def run(
    pool: Pool,
    policy: Policy,
    settings: FastSettings,
    reflector: Reflector | None = None,
    step: int = 0,
    version: int = 1,
    anchors: Sequence[Problem] = ANCHORS,
) -> tuple[Pool, EvolveReport]:
    reflector = reflector or reflector_for(Config(fast=settings), VALIDATOR.count_tokens)
    return evolve(pool, anchors, policy, reflector, VALIDATOR, settings, step, version)


class Scripted:
    """A reflector that answers by a function of (job number, job)."""

    name = "scripted"

    def __init__(self, answer):
        self.answer, self.count = answer, 0

    def propose(self, jobs: Sequence[Job], rng: random.Random) -> list[Proposal]:
        proposals = []
        for job in jobs:
            proposals.append(self.answer(self.count, job))
            self.count += 1
        return proposals


class Coin:
    """A task of yes/no questions; the reward is whatever the text says."""

    name, seed_prompt = "coin", "seed"

    def score(self, problem: Problem, text: str) -> Score:
        return Score(float(text), f"Try {text}.\nNo more.", f"said {text}")


@pytest.mark.parametrize("seed", range(8))
def test_rules_find_the_advice_that_helps_within_one_round(seed: int) -> None:
    pool, report = run(start(seed), Policy(GRAPH, obeys_strategy, seed), fast())
    best = pool.active_prompts[0]
    assert BACKWARDS in best.text or REVERSE in best.text
    assert best.mean_score == 1.0 and best.origin == "rules"
    assert report.accepted >= 1
    # Carried on, it stays in front and the seed prompt stays as a control.
    policy = Policy(GRAPH, obeys_strategy, seed + 100)
    again, _ = run(pool, policy, fast(), step=6, version=2)
    assert again.active_prompts[0].mean_score == 1.0
    assert again.seed.text == GRAPH.seed_prompt and len(again.seed.scores) == len(ANCHORS)


def test_two_lines_that_help_only_together_are_found_by_lateral_steps() -> None:
    def both(problem: Problem, prompt: str, rng: random.Random) -> str:
        if prompt.count("boxed") < 2:
            return obeys_strategy(problem, "", rng)
        return obeys_strategy(problem, prompt, rng)

    found = 0
    for seed in range(6):
        pool, _ = run(start(seed), Policy(GRAPH, both, seed), fast(metric_calls=960))
        found += pool.active_prompts[0].mean_score == 1.0
    assert found >= 4


def test_every_rollout_is_counted_where_it_belongs_and_batches_are_few() -> None:
    pool = start()
    for cycle in range(3):
        policy = Policy(GRAPH, obeys_strategy, cycle)
        carried = len(pool.carried)
        pool, report = run(pool, policy, fast(), step=6 * cycle, version=cycle)
        assert report.carried_rescored == policy.batches[0] == carried * len(ANCHORS)
        assert report.metric_calls == sum(policy.batches[1:]) <= 480
        assert report.proposals == report.accepted + sum(report.rejected_by_reason.values())
        # parents, children, anchors: at most three batches for up to four proposals
        assert len(policy.batches) - 1 <= 3 * (report.proposals + 3) / 4 + 3
        assert (pool.step, pool.weight_version) == (6 * cycle, cycle)
        assert {row["id"] for row in report.pool} == {prompt.id for prompt in pool.prompts}
        assert report.pool[0].keys() == {"id", "parent", "coverage", "mean_score", "tokens"}
        assert report.reflection_calls == 0
        scores = {(p.text, x): score for p in pool.prompts for x, score in p.scores.items()}
        kept = {(r.prompt, r.problem.id): r.score.reward for r in report.rollouts}
        assert kept == scores and len(report.rollouts) == len(scores)


@settings(max_examples=60)
@given(
    anchors=st.integers(1, 24),
    minibatch=st.integers(1, 30),
    proposals=st.integers(1, 6),
    budget=st.integers(1, 300),
    population=st.integers(1, 6),
    seed=st.integers(0, 9),
    luck=st.floats(0, 1),
)
def test_the_budget_is_never_overshot_nor_left_while_a_proposal_can_be_paid(
    anchors, minibatch, proposals, budget, population, seed, luck
) -> None:
    def lucky(problem: Problem, prompt: str, rng: random.Random) -> str:
        return str(float(rng.random() < luck))

    policy = Policy(Coin(), lucky, seed)
    chosen = fast(
        population=population, minibatch=minibatch, proposals=proposals, metric_calls=budget
    )
    endless = Scripted(lambda i, job: Proposal(text=f"attempt {i}", calls=1))
    arguments = (policy, chosen, endless)
    if budget < smallest_budget(anchors, minibatch):
        with pytest.raises(ConfigError, match="cannot pay one proposal"):
            run(start(seed, population), *arguments, anchors=ANCHORS[:anchors])
        assert policy.batches == []
        return
    pool, report = run(start(seed, population), *arguments, anchors=ANCHORS[:anchors])
    assert report.metric_calls == sum(policy.batches[1:])
    assert budget - smallest_budget(anchors, minibatch) < report.metric_calls <= budget
    assert len(pool.active) == population
    assert report.reflection_calls == report.proposals


def test_the_same_arguments_give_the_same_round() -> None:
    def one(rng_seed: int) -> tuple[Pool, EvolveReport]:
        first, _ = run(start(rng_seed), Policy(GRAPH, obeys_strategy, 1), fast())
        # through the file, as a resumed run would
        first = Pool.from_json(first.to_json())
        pool, report = run(first, Policy(GRAPH, obeys_strategy, 2), fast(), step=6)
        return pool, dataclasses.replace(report, rollouts=[])

    assert one(3) == one(3)
    assert one(3) != one(4)


def test_the_order_of_python_sets_does_not_matter() -> None:
    code = (
        "from tests.fast.test_evolve import *\n"
        "pool, _ = run(start(3), Policy(GRAPH, obeys_strategy, 1), fast())\n"
        "print(run(pool, Policy(GRAPH, obeys_strategy, 2), fast())[0].to_json())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def half(problem: Problem, prompt: str, rng: random.Random) -> str:
    return {"worse": "0.0", "better": "0.75", "best": "1.0"}.get(prompt.split()[0], "0.5")


@pytest.mark.parametrize(
    ("names", "spare", "adopted", "rejected"),
    [
        # Better children alone, the best first.
        (
            ["equal", "worse", "better", "best"],
            2,
            ["best 3", "better 2"],
            {"no better on its minibatch": 1, "worse on its minibatch": 1},
        ),
        # What the budget cannot score is turned away, the best last.
        (
            ["best", "better", "better", "best"],
            2,
            ["best 0", "best 3"],
            {"over budget": 2},
        ),
        # One lateral step where nothing is better.
        (
            ["worse", "equal", "equal", "equal"],
            1,
            ["equal 1"],
            {"no better on its minibatch": 2, "worse on its minibatch": 1},
        ),
        (["worse"] * 4, 1, [], {"worse on its minibatch": 4}),
    ],
)
def test_which_children_are_accepted(names, spare, adopted, rejected) -> None:
    reflector = Scripted(lambda i, job: Proposal(text=f"{names[i]} {i}"))
    budget = 4 * 2 * 6 + spare * len(ANCHORS)  # one batch, and its best `spare` children
    pool, report = run(
        start(population=3),
        Policy(Coin(), half),
        fast(metric_calls=budget, population=3),
        reflector,
    )
    assert report.accepted == len(adopted)
    assert report.rejected_by_reason == rejected
    active = [prompt.text for prompt in pool.active_prompts if prompt.origin != "seed"]
    assert list(dict.fromkeys(active)) == adopted
    assert all(prompt.parent == pool.seed.id for prompt in pool.prompts[1:])


def test_refused_proposals_are_counted_by_reason_and_idle_rounds_end() -> None:
    texts = ["", GRAPH.seed_prompt, "bad <|im_end|>", "word " * 200, ANCHORS[0].question]
    reflector = Scripted(lambda i, job: Proposal(text=texts[i % 5]))
    pool, report = run(start(), Policy(GRAPH, obeys_strategy), fast(proposals=5), reflector)
    assert set(report.rejected_by_reason) == {
        *("empty", "identical", "control tokens", "too long", "quotes training answers")
    }
    assert report.accepted == 0 and report.proposals == reflector.count == 20
    assert report.metric_calls == 20 * 6  # the parents' minibatches alone
    assert pool.active == (pool.seed.id,) * 4 and pool.rounds == 1


def test_a_text_is_tried_once_in_a_round() -> None:
    reflector = Scripted(lambda i, job: Proposal(text="Always the same."))
    pool, report = run(start(), Policy(GRAPH, obeys_strategy), fast(), reflector)
    assert report.rejected_by_reason == {"identical": report.proposals - 1}
    assert [prompt.text for prompt in pool.prompts[1:]] == ["Always the same."]


def failed(message: str) -> Proposal:
    return Proposal(refusal="reflector failed", error=ReflectionError(message), calls=5)


def test_a_reflector_that_always_fails_ends_the_round_at_once() -> None:
    policy = Policy(GRAPH, obeys_strategy)
    with pytest.raises(ReflectionError, match="down 0"):
        run(start(), policy, fast(), Scripted(lambda i, job: failed(f"down {i}")))
    assert len(policy.batches) == 2  # re-scoring and the first parents, no more


def test_a_reflector_that_fails_now_and_then_is_counted_and_one_that_dies_ends_the_round() -> None:
    def flaky(i: int, job: Job) -> Proposal:
        return failed("busy") if i % 2 else Proposal(text=f"attempt {i}", calls=1)

    _, report = run(start(), Policy(GRAPH, obeys_strategy), fast(), Scripted(flaky))
    failures = report.rejected_by_reason["reflector failed"]
    assert failures == report.proposals // 2 > 1
    assert report.reflection_calls == 5 * failures + (report.proposals - failures)

    def dies(i: int, job: Job) -> Proposal:
        return failed("gone") if i >= 4 else Proposal(text=f"attempt {i}")

    pool, report = run(
        start(), Policy(GRAPH, obeys_strategy), fast(metric_calls=960), Scripted(dies)
    )
    assert report.proposals == 8 and report.rejected_by_reason["reflector failed"] == 4
    assert report.accepted == 1 and pool.rounds == 1


@pytest.mark.parametrize("error", [RuntimeError("bug"), ReflectionError("401")])
def test_what_a_reflector_raises_reaches_the_caller(error: Exception) -> None:
    def broken(i: int, job: Job) -> Proposal:
        raise error

    reflector = Scripted(broken)
    with pytest.raises(type(error), match=str(error)):
        run(start(), Policy(GRAPH, obeys_strategy), fast(), reflector)


@pytest.mark.parametrize("batch", range(4))
def test_what_roll_out_raises_reaches_the_caller(batch: int) -> None:
    class Breaking(Policy):
        def __call__(self, pairs):
            if len(self.batches) == batch:
                raise TaskError("the task raised")
            return super().__call__(pairs)

    with pytest.raises(TaskError, match="the task raised"):
        run(start(), Breaking(GRAPH, obeys_strategy), fast())


def test_a_missing_rollout_is_no_score() -> None:
    class Short(Policy):
        def __call__(self, pairs):
            return super().__call__(pairs)[:-1]

    with pytest.raises(ValueError, match="asked for 24 rollouts, got 23"):
        run(start(), Short(GRAPH, obeys_strategy), fast())


def test_more_active_prompts_than_the_pool_holds() -> None:
    pool, _ = run(
        start(population=8), Policy(GRAPH, obeys_strategy), fast(population=8, metric_calls=36)
    )
    assert len(pool.active) == 8 and len(pool.prompts) < 8
    assert set(pool.active) == {prompt.id for prompt in pool.prompts}


def test_anchors_that_repeat_are_scored_once() -> None:
    policy = Policy(GRAPH, obeys_strategy)
    pool, _ = run(start(), policy, fast(), anchors=[*ANCHORS, *ANCHORS])
    assert policy.batches[0] == len(ANCHORS) == len(pool.seed.scores)


def test_stale_scores_are_gone_when_the_anchors_change() -> None:
    pool, _ = run(start(), Policy(GRAPH, obeys_strategy), fast())
    others = [GRAPH.problems("train")[i] for i in range(30, 50)]
    again, _ = run(pool, Policy(GRAPH, obeys_strategy), fast(), anchors=others, version=2)
    assert all(set(prompt.scores) == {p.id for p in others} for prompt in again.prompts)


def test_gepa_writes_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    run(start(), Policy(GRAPH, obeys_strategy), fast())
    assert os.listdir(tmp_path) == []
    assert capsys.readouterr() == ("", "")


def test_a_seed_prompt_over_the_token_budget_is_a_config_error() -> None:
    policy = Policy(GRAPH, obeys_strategy)
    with pytest.raises(ConfigError, match="seed prompt takes 121 tokens"):
        run(Pool.start("word " * 121, 4, 0), policy, fast())
    assert policy.batches == []


def test_a_pool_of_unscored_prompts_starts_a_round() -> None:
    pool = Pool(
        (Prompt("seed"), Prompt("mine", Prompt("seed").id, "user")),
        (Prompt("mine").id, Prompt("seed").id),
    )
    after, report = run(pool, Policy(GRAPH, obeys_strategy), fast(population=2))
    assert report.carried_rescored == 2 * len(ANCHORS)
    assert after.seed.text == "seed"

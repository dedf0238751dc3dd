"""A fast round: it finds what helps, keeps to its budget, and hides no failure."""

import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fst_jax.config import Acceptance, Config, FastSettings, ParentChoice
from fst_jax.errors import ConfigError, ReflectionError, TaskError
from fst_jax.fast.evolve import EvolveReport, evolve, smallest_budget
from fst_jax.fast.pool import Pool, Prompt
from fst_jax.fast.reflect import Job, Proposal, Reflector, reflector_for
from fst_jax.fast.validate import Validator
from fst_jax.tasks.task import Problem, Score
from tests.fast.policy import BACKWARDS, REVERSE, Policy, obeys_strategy, question, star_graph

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
    reflector = reflector or reflector_for(Config(fast=settings), VALIDATOR.count_tokens, question)
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
    each=st.integers(1, 3),
    merge=st.booleans(),
    acceptance=st.sampled_from(get_args(Acceptance)),
    parent=st.sampled_from(get_args(ParentChoice)),
)
def test_the_budget_is_never_overshot_nor_left_while_a_proposal_can_be_paid(
    anchors, minibatch, proposals, budget, population, seed, luck, each, merge, acceptance, parent
) -> None:
    def lucky(problem: Problem, prompt: str, rng: random.Random) -> str:
        return str(float(rng.random() < luck))

    policy = Policy(Coin(), lucky, seed)
    chosen = fast(
        population=population,
        minibatch=minibatch,
        proposals=proposals,
        metric_calls=budget,
        anchor_rollouts=each,
        merge=merge,
        acceptance=acceptance,
        parent=parent,
    )
    endless = Scripted(lambda i, job: Proposal(text=f"attempt {i}", calls=1))
    arguments = (policy, chosen, endless)
    smallest = smallest_budget(anchors, minibatch, each)
    if budget < smallest:
        with pytest.raises(ConfigError, match="cannot pay one proposal"):
            run(start(seed, population), *arguments, anchors=ANCHORS[:anchors])
        assert policy.batches == []
        return
    pool, report = run(start(seed, population), *arguments, anchors=ANCHORS[:anchors])
    assert report.metric_calls == sum(policy.batches[1:])
    assert budget - smallest < report.metric_calls <= budget
    assert report.proposals == report.accepted + sum(report.rejected_by_reason.values())
    assert report.carried_rescored == anchors * each
    assert len(report.rollouts) == len(pool.prompts) * anchors * each
    assert 0 <= report.merges_accepted <= report.merges <= report.proposals * merge
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


# Of three rounds each, before any of these switches existed: recorded experiments rely on them.
RECORDED = ["fb7a29053d5c6c2a", "36960a4776351c15", "4ba6dd4a6f7e4fae", "65393144b6633785"]


@pytest.mark.parametrize("seed", range(4))
def test_rounds_by_default_settings_are_those_of_recorded_experiments(seed: int) -> None:
    names = ("proposals", "accepted", "rejected_by_reason", "pool")
    pool, seen = start(seed), []
    for cycle in range(3):
        policy = Policy(GRAPH, obeys_strategy, seed + 10 * cycle)
        pool, report = run(pool, policy, fast(), step=6 * cycle, version=cycle)
        keys = (*names, "metric_calls", "carried_rescored")
        seen += [pool.to_json(), {key: getattr(report, key) for key in keys}]
    digest = hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()
    assert digest[:16] == RECORDED[seed]


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


def failed(message: str, mendable: bool = False) -> Proposal:
    error = ReflectionError(message)
    return Proposal(refusal="server error", error=error, mendable=mendable, calls=5)


def test_a_reflector_that_is_down_ends_the_round_and_the_pool_stays(caplog) -> None:
    before, _ = run(start(), Policy(GRAPH, obeys_strategy), fast())
    policy = Policy(GRAPH, obeys_strategy, 1)
    scripted = Scripted(lambda i, job: failed(f"down {i}", mendable=i == 0))
    pool, report = run(before, policy, fast(), scripted, step=6, version=6)
    assert len(policy.batches) == 2  # re-scoring and the first parents, no more
    assert report.rejected_by_reason == {"server error": 4} and report.reflection_calls == 20
    assert {prompt.id for prompt in pool.prompts} <= {prompt.id for prompt in before.carried}
    assert (pool.rounds, pool.step, pool.weight_version) == (2, 6, 6)
    [warning] = caplog.messages
    assert warning == "down 0; the fast round ends with the prompts that it has"


@pytest.mark.parametrize("late", [0, 4])
def test_what_only_the_user_can_mend_ends_the_run(late: int) -> None:
    def refuses(i: int, job: Job) -> Proposal:
        return failed("no key", True) if i >= late else Proposal(text=f"attempt {i}")

    with pytest.raises(ReflectionError, match="no key"):
        settings = fast(metric_calls=960)
        run(start(), Policy(GRAPH, obeys_strategy), settings, Scripted(refuses))


def test_a_reflector_that_fails_now_and_then_is_counted_and_one_that_dies_ends_the_round() -> None:
    def flaky(i: int, job: Job) -> Proposal:
        return failed("busy") if i % 2 else Proposal(text=f"attempt {i}", calls=1)

    _, report = run(start(), Policy(GRAPH, obeys_strategy), fast(), Scripted(flaky))
    failures = report.rejected_by_reason["server error"]
    assert failures == report.proposals // 2 > 1
    assert report.reflection_calls == 5 * failures + (report.proposals - failures)

    def dies(i: int, job: Job) -> Proposal:
        return failed("gone") if i >= 4 else Proposal(text=f"attempt {i}")

    pool, report = run(
        start(), Policy(GRAPH, obeys_strategy), fast(metric_calls=960), Scripted(dies)
    )
    assert report.proposals == 8 and report.rejected_by_reason["server error"] == 4
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


def test_a_pool_of_unscored_prompts_starts_a_round() -> None:
    pool = Pool(
        (Prompt("seed"), Prompt("mine", Prompt("seed").id, "user")),
        (Prompt("mine").id, Prompt("seed").id),
    )
    after, report = run(pool, Policy(GRAPH, obeys_strategy), fast(population=2))
    assert report.carried_rescored == 2 * len(ANCHORS)
    assert after.seed.text == "seed"


@pytest.mark.parametrize(
    ("rule", "adopted", "rejected"),
    [
        ("strict", ["best 3", "better 2"], {"no better": 1, "worse": 1}),
        ("or_equal", ["best 3", "better 2", "equal 0"], {"worse": 1}),
        ("lateral", ["best 3", "better 2"], {"no better": 1, "worse": 1}),
        ("none", ["best 3", "better 2", "equal 0", "worse 1"], {}),
    ],
)
def test_acceptance_by_name(rule, adopted, rejected) -> None:
    names = ["equal", "worse", "better", "best"]
    reflector = Scripted(lambda i, job: Proposal(text=f"{names[i]} {i}"))
    policy = Policy(Coin(), half)
    _, report = run(
        start(), policy, fast(acceptance=rule, metric_calls=48 + 24 * len(adopted)), reflector
    )
    assert report.rejected_by_reason == {f"{r} on its minibatch": n for r, n in rejected.items()}
    scored = policy.prompts[-24 * len(adopted) :][::24]
    assert report.accepted == len(adopted) and scored == adopted


@pytest.mark.parametrize("rule", ["strict", "or_equal"])
def test_lateral_steps_are_a_matter_of_acceptance(rule: str) -> None:
    reflector = Scripted(lambda i, job: Proposal(text=f"equal {i}"))
    settings = fast(acceptance=rule, metric_calls=4 * 12 + 4 * 24)
    _, report = run(start(), Policy(Coin(), half), settings, reflector)
    assert report.accepted == (4 if rule == "or_equal" else 0)


def by_letters(problem: Problem, prompt: str, rng: random.Random) -> str:
    """Right where the prompt names the problem's kind, of three; else half right."""
    kind = "ABC"[int(problem.id.rpartition("-")[2]) % 3]
    return "1.0" if kind in prompt else "0.5"


def kinds(pool: Pool) -> set[str]:
    return {"".join(sorted(set(prompt.text) & set("ABC"))) for prompt in pool.prompts}


def test_the_two_that_solve_most_together_are_merged_by_rules() -> None:
    known = [Prompt("seed"), Prompt("Say A.\nGo on."), Prompt("Say B.\nGo on.")]
    pool = Pool(tuple(known), tuple(prompt.id for prompt in known))
    policy = Policy(Coin(), by_letters)
    settings = fast(population=3, merge=True, metric_calls=2 * 6 + 24, proposals=4)
    merged, report = run(pool, policy, settings)
    assert (report.proposals, report.merges, report.merges_accepted) == (1, 1, 1)
    child = merged.prompts[-1]
    assert child.text == "Say A.\nGo on.\nSay B." and child.origin == "rules"
    assert (child.parent, child.partner) == (known[1].id, known[2].id)
    assert merged.active_prompts[0] == child and child.mean_score == pytest.approx(5 / 6)
    assert Pool.from_json(json.loads(json.dumps(merged.to_json()))) == merged
    # Without the switch nothing is merged.
    plain, report = run(
        pool, Policy(Coin(), by_letters), dataclasses.replace(settings, merge=False)
    )
    assert report.merges == 0 and all(prompt.partner is None for prompt in plain.prompts)


def test_a_merge_sees_the_partner_on_the_same_problems_and_follows_what_is_new() -> None:
    known = [Prompt("seed"), *(Prompt(f"Say {kind}.") for kind in "ABC")]
    pool = Pool(tuple(known), tuple(prompt.id for prompt in known))
    jobs: list[Job] = []

    def joins(i: int, job: Job) -> Proposal:
        jobs.append(job)
        text = f"{job.parent} {job.partner}" if job.partner else f"worse {i}"
        return Proposal(text=text)

    settings = fast(population=4, merge=True, metric_calls=1200, anchor_rollouts=2, proposals=3)
    after, report = run(pool, Policy(Coin(), by_letters), settings, Scripted(joins))
    merges = [i for i, job in enumerate(jobs) if job.partner is not None]
    assert report.merges == len(merges)
    for i in merges:
        assert i % 3 == 2  # the last of its batch
        asked = [rollout.problem.id for rollout in jobs[i].rollouts]
        shown = [rollout.problem.id for rollout in jobs[i].partner_rollouts]
        assert shown == [id for id in asked for _ in range(2)]
        assert {rollout.prompt for rollout in jobs[i].partner_rollouts} == {jobs[i].partner}
        assert {rollout.prompt for rollout in jobs[i].rollouts} == {jobs[i].parent}
    pairs = [frozenset((jobs[i].parent, jobs[i].partner)) for i in merges]
    assert len(set(pairs)) == len(pairs)
    # Two of three, then all three; then nothing complements them, or nothing is new.
    assert {"ABC"} <= kinds(after) and after.active_prompts[0].mean_score == 1.0
    assert report.merges_accepted == 2


def test_several_rollouts_of_an_anchor_make_its_score_their_mean() -> None:
    def lucky(problem: Problem, prompt: str, rng: random.Random) -> str:
        return str(float(rng.random() < 0.5))

    policy = Policy(Coin(), lucky)
    settings = fast(anchor_rollouts=4, metric_calls=960)
    pool, report = run(start(), policy, settings)
    assert policy.batches[0] == report.carried_rescored == 4 * len(ANCHORS)
    kept: dict[tuple[str, str], list[float]] = {}
    for rollout in report.rollouts:
        kept.setdefault((rollout.prompt, rollout.problem.id), []).append(rollout.score.reward)
    assert all(len(rewards) == 4 for rewards in kept.values())
    for prompt in pool.prompts:
        for problem, score in prompt.scores.items():
            assert score == sum(kept[prompt.text, problem]) / 4
    assert len({score for prompt in pool.prompts for score in prompt.scores.values()}) > 2


def test_staleness_is_how_far_the_carried_prompts_have_moved() -> None:
    now = {"level": "0.75"}
    policy = Policy(Coin(), lambda problem, prompt, rng: now["level"])
    pool, report = run(start(), policy, fast(metric_calls=60))
    assert report.staleness is None  # nothing was chosen yet
    now["level"] = "0.5"
    pool, report = run(pool, policy, fast(metric_calls=60))
    assert report.staleness == pytest.approx(-0.25)
    _, report = run(pool, policy, fast(metric_calls=60))
    assert report.staleness == 0.0


def test_what_a_round_costs() -> None:
    answer = Proposal("Better.", calls=1, prompt_tokens=1500, completion_tokens=500)
    for prices, cost in (({}, None), ({"lm_price_in": 2.0, "lm_price_out": 8.0}, 0.007)):
        settings = fast(metric_calls=36, **prices)
        _, report = run(
            start(), Policy(GRAPH, obeys_strategy), settings, Scripted(lambda i, j: answer)
        )
        assert (report.reflection_prompt_tokens, report.reflection_completion_tokens) == (1500, 500)
        assert report.reflection_cost == (None if cost is None else pytest.approx(cost))

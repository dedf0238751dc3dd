"""Claims of runs whose curves were chosen, against figures worked out by hand."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fst_jax.reporting.claims import derive
from fst_jax.reporting.runs import Run, find, read_all
from fst_jax.reporting.table import rows
from fst_jax.reporting.variants import natural
from tests.reporting.synthetic import Curve, Plan, flat, write_run


def step_at(step: int, low: float = 0.0, high: float = 0.8) -> Curve:
    """`low` before `step`, `high` from it on."""
    return lambda t: high if t >= step else low


def ramp(to: float, steps: int) -> Curve:
    """From 0 at the start to `to` after so many steps, then flat."""
    return lambda t: to * min(1.0, t / steps)


def runs_in(root: Path) -> list[Run]:
    runs, left_out = read_all(find([root]))
    assert not left_out
    return runs


@pytest.fixture
def claims(tmp_path: Path) -> Callable[[dict[str, Plan]], dict[str, Any]]:
    """Derives the claims of runs given by their places."""

    def derived(plans: dict[str, Plan]) -> dict[str, Any]:
        for place, plan in plans.items():
            write_run(tmp_path / place, plan)
        return derive(runs_in(tmp_path))

    return derived


Derive = Callable[[dict[str, Plan]], dict[str, Any]]


def seeds(name: str, plan: Callable[[int], Plan], count: int = 3) -> dict[str, Plan]:
    return {f"{name}.seed{k}": plan(k) for k in range(count)}


def test_sample_efficiency_counts_rollouts_to_rls_peak(claims: Derive) -> None:
    found = claims(
        seeds("main/t.rl", lambda k: Plan("rl", own=step_at(48)))
        | seeds("main/t.fst", lambda k: Plan("fst", own=step_at(12 if k else 24)))
    )["sample_efficiency"]["t"]
    assert found["ratio"]["per_seed"] == {"0": 2.0, "1": 4.0, "2": 4.0}
    assert found["ratio"]["mean"] == pytest.approx((2 * 4 * 4) ** (1 / 3), abs=1e-6)
    every = 48 * 128 / (12 * 128 + 2 * 100)  # two fast rounds before step 12
    assert found["ratio_all_rollouts"]["per_seed"]["1"] == pytest.approx(every, abs=1e-6)
    assert found["ratio_at_90_percent"]["per_seed"] == found["ratio"]["per_seed"]
    assert found["ratio"]["censored"] == 0 and found["seeds"] == 3
    assert found["rl_flatness"]["mean"] == pytest.approx(0.8 / 3, abs=1e-6)  # 45 is in its rise


def test_a_seed_that_never_gets_there_counts_with_its_bound(claims: Derive) -> None:
    found = claims(
        seeds("main/t.rl", lambda k: Plan("rl", own=step_at(30)))
        | seeds("main/t.fst", lambda k: Plan("fst", own=step_at(6, high=0.8 if k else 0.7)))
    )["sample_efficiency"]["t"]
    assert found["ratio"]["per_seed"] == {"0": 0.5, "1": 5.0, "2": 5.0}
    assert found["ratio"]["censored"] == 1


def test_an_arm_that_never_gets_there_has_no_ratio(claims: Derive) -> None:
    found = claims(
        seeds("main/t.rl", lambda k: Plan("rl", own=step_at(30)))
        | seeds("main/t.prompt", lambda k: Plan("prompt", own=step_at(6, high=0.5)))
    )["sample_efficiency"]["t"]["prompt"]["ratio_all_rollouts"]
    assert found["mean"] is None and found["censored"] == 3


def test_kl_is_compared_at_matched_reward(claims: Derive) -> None:
    found = claims(
        seeds("main/t.rl", lambda k: Plan("rl", own=ramp(0.8, 60), drift=lambda t: 0.01 * t))
        | seeds(
            "main/t.fst",
            lambda k: Plan(
                "fst",
                own=ramp(0.8, 30),
                drift=lambda t: 0.004 * t,
                seeded_drift=lambda t: 0.01 * t,
            ),
        )
    )["kl_at_matched_reward"]["t"]
    # The same reward after half the steps: 0.4 times the drift a step is a fifth of the drift.
    for level, reward in (("highest common", 0.8), ("50 % of RL's peak", 0.4)):
        at = found["levels"][level]
        assert at["reward"]["mean"] == pytest.approx(reward, abs=1e-6)
        assert at["own"]["reduction"]["mean"] == pytest.approx(0.8, abs=1e-6)
        assert at["seed"]["reduction"]["mean"] == pytest.approx(0.5, abs=1e-6)
    assert found["reduction"]["mean"] == pytest.approx(0.8, abs=1e-6)
    assert found["seed_prompt"]["reduction"]["mean"] == pytest.approx(0.5, abs=1e-6)


def test_ceilings_quadrants_and_what_prompts_do_alone(claims: Derive) -> None:
    def rise(high: float) -> Curve:
        return lambda t: high / (1 + (10 / t) ** 3) if t else 0.0

    found = claims(
        seeds("main/t.rl", lambda k: Plan("rl", own=rise(0.6)))
        | seeds("main/t.fst", lambda k: Plan("fst", own=rise(0.7), seeded=flat(0.1)))
        | seeds("main/t.prompt", lambda k: Plan("prompt", own=rise(0.5)))
    )
    ceiling = found["ceiling"]["t"]
    assert ceiling["difference"]["mean"] == pytest.approx(0.1, abs=1e-3)
    assert ceiling["rl"]["mean"] == pytest.approx(0.6, abs=1e-3)
    quadrants = {name: entry["mean"] for name, entry in found["quadrants"]["t"].items()}
    expected = {"base_seed": 0.0, "base_pool": 0.4, "trained_seed": 0.1}
    assert expected.items() <= quadrants.items()
    assert quadrants["trained_pool"] == pytest.approx(rise(0.7)(60), abs=1e-6)
    beyond = (rise(0.2)(60) + rise(0.2)(54)) / 2  # the last two evaluations
    assert found["prompt_only"]["t"]["fst_minus_prompt"]["mean"] == pytest.approx(beyond, abs=1e-6)
    assert found["final"]["t"]["fst"]["seed"]["accuracy"]["mean"] == pytest.approx(0.1)
    assert "seed" not in found["final"]["t"]["prompt"]


def test_the_first_signal_must_last(claims: Derive) -> None:
    blip: Curve = lambda t: {6: 0.5}.get(t, 0.3 if t >= 30 else 0.0)  # noqa: E731
    found = claims(
        seeds("signal/t.rl", lambda k: Plan("rl", own=blip))
        | seeds("signal/t.fst", lambda k: Plan("fst", own=step_at(6 if k else 12)))
        | seeds("signal/t.prompt", lambda k: Plan("prompt", own=step_at(60)))
    )["signal"]["t"]
    assert found["rl"]["step"]["median"] == 30 and found["fst"]["step"]["median"] == 6
    assert found["fst"]["step"]["high"] == 12 and found["fst"]["never"] == 0
    assert found["prompt"]["step"]["median"] is None and found["prompt"]["never"] == 3


def test_plasticity_by_origin_kind_and_match(claims: Derive) -> None:
    final = {"base": 0.2, "rl@reward": 0.3, "fst@reward": 0.5, "rl@step": 0.6, "fst@step": 0.5}
    found = claims(
        {
            f"plasticity/two.rl.from={origin}+kind={kind}.seed{k}": Plan(
                "rl", own=flat(value / (2 if kind == "conflicting" else 1) + 0.01 * k)
            )
            for origin, value in final.items()
            for kind in ("related", "conflicting")
            for k in range(2)
        }
    )["plasticity"]
    related = found["by_kind"]["related"]
    assert related["reward"]["fst_minus_rl"]["mean"] == pytest.approx(0.2)
    assert related["step"]["fst_minus_rl"]["mean"] == pytest.approx(-0.1)
    assert related["reward"]["base"]["mean"] == pytest.approx(0.205)
    assert found["fst_minus_rl"]["mean"] == pytest.approx((0.2 - 0.1 + 0.1 - 0.05) / 4)
    assert found["fst_minus_rl"]["seeds"] == 2


def test_what_a_stage_brings_and_what_is_kept_of_it(claims: Derive) -> None:
    stages = [{"name": name, "options": {}, "steps": 30} for name in "ab"]
    settings = {"task": {"name": "stream", "options": {"stages": stages}}}

    def plan(arm: str, high: float, kept: float) -> Plan:
        first: Curve = lambda t: 0.1 if t < 12 else high if t <= 30 else kept  # noqa: E731
        own = {"a": first, "b": step_at(36, 0.0, high)}
        return Plan(arm, steps=60, tasks=("a", "b"), task_own=own, settings=settings)

    found = claims(
        seeds("continual/stream.rl", lambda k: plan("rl", 0.5, 0.2))
        | seeds("continual/stream.fst", lambda k: plan("fst", 0.9, 0.8))
    )["continual"]
    first, second = found["stages"]
    assert (first["task"], first["start"], first["end"]) == ("a", 0, 30)
    assert (second["task"], second["start"], second["end"]) == ("b", 30, 60)
    assert first["gain"]["rl"]["mean"] == pytest.approx(0.4)
    assert first["gain_percent"]["rl"]["mean"] == pytest.approx(50)  # of 0.1 to 0.9
    assert first["kept"]["rl"]["mean"] == pytest.approx(-0.3)
    assert first["kept"]["fst_minus_rl"]["mean"] == pytest.approx(0.2)
    assert second["gain"]["fst_minus_rl"]["mean"] == pytest.approx(0.4)
    assert second["kept"]["rl"]["mean"] is None  # nothing comes after the last stage
    assert found["fst_minus_rl"]["mean"] == pytest.approx(0.4)


def test_variants_beside_the_default_of_the_same_length(claims: Derive) -> None:
    found = claims(
        seeds("main/t.fst", lambda k: Plan("fst", own=ramp(0.6, 60)), 4)
        | seeds("ablations/t.fst.population=1", lambda k: Plan("fst", own=flat(0.2), steps=30), 2)
    )["ablations"]["t"]["fst"]
    default = found["default"]["final"]
    assert default["mean"] == pytest.approx((0.24 + 0.3) / 2) and default["seeds"] == 2
    assert found["default"]["area"]["mean"] == pytest.approx(0.15)
    assert found["population=1"]["minus_default"]["mean"] == pytest.approx(0.2 - 0.27)


def test_ablations_and_few_problems_in_the_table(claims: Derive) -> None:
    """An ablation that the paper finds worse holds where it is worse; arms are paired by seed."""
    found = claims(
        seeds("main/t.fst", lambda k: Plan("fst", own=flat(0.6)), 3)
        | seeds("ablations/t.fst.population=1", lambda k: Plan("fst", own=flat(0.4 - k / 100)), 3)
        | seeds("ablations/t.fst.cycle_steps=12", lambda k: Plan("fst", own=flat(0.7 + k / 99)), 3)
        | seeds("ablations/t.fst.anchors=12", lambda k: Plan("fst", own=flat(0.7)), 3)
        | seeds("fewshot/t.fst.train_size=8", lambda k: Plan("fst", own=flat(0.5 + k / 10)), 3)
        | seeds("fewshot/t.rl.train_size=8", lambda k: Plan("rl", own=flat(0.2 + k / 10)), 3)
    )
    entry = found["fewshot"]["t"]["fst"]["train_size=8"]
    assert entry["minus_rl"]["mean"] == pytest.approx(0.3) and entry["minus_rl"]["seeds"] == 3
    assert "minus_prompt" not in entry
    verdicts = {row.claim: row.verdict for row in rows(found)}
    assert verdicts["FST with K = 1 minus FST"] == "holds"
    assert verdicts["FST with T = 12 minus FST"] == "contradicted"
    assert verdicts["FST with 12 anchors minus FST"] == ""
    assert verdicts["With 8 training problems: FST minus RL"] == "holds"


def test_the_best_setting_of_a_sweep(claims: Derive) -> None:
    def plan(rate: float, high: float) -> Plan:
        slow = {"learning_rate": rate, "kl_coefficient": 0.0}
        return Plan("rl", own=flat(high), settings={"slow": slow})

    found = claims(
        seeds("sweep/t.rl.learning_rate=1e-3+kl=0", lambda k: plan(1e-3, 0.6))
        | seeds("sweep/t.rl.learning_rate=3e-3+kl=0", lambda k: plan(3e-3, 0.5 + 0.1 * (k == 0)))
    )["sweep"]["t"]
    assert found["best"]["rl"]["learning_rate"] == 1e-3


def test_variants_sort_by_value() -> None:
    names = ["train_size=64", "train_size=8", "train_size=16", "feedback=vague"]
    assert sorted(names, key=natural)[1:] == ["train_size=8", "train_size=16", "train_size=64"]


def test_costs_add_up(claims: Derive) -> None:
    found = claims(seeds("main/t.fst", lambda k: Plan("fst", steps=12)))["cost"]["t"]["fst"]
    means = {name: entry["mean"] for name, entry in found.items()}
    assert means["rollouts"] == 12 * 128 and means["evolve_rollouts"] == 200
    assert means["tokens_generated"] == 12 * 1000 + 2 * 500 and means["reflection_calls"] == 6
    assert means["seconds"] == pytest.approx(12 * 2.6 + 2 * 2.0)


def test_runs_that_are_no_experiments_speak_for_themselves(claims: Derive) -> None:
    found = claims({"mine": Plan("fst", own=flat(0.3)), "other": Plan("rl", own=flat(0.4))})
    assert found.keys() == {"runs"} and found["runs"]["mine"]["arm"] == "fst"
    quadrants = {(e["weights"], e["context"]) for e in found["runs"]["mine"]["evaluations"]}
    assert ("trained", "pool") in quadrants and ("base", "pool") in quadrants


def test_no_figure_is_nan(claims: Derive) -> None:
    """JSON has none: what is not known is null."""

    def check(value: Any) -> None:
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                check(inner)
        else:
            assert not isinstance(value, float) or math.isfinite(value)

    plan = Plan("rl", own=flat(0.0), drift=flat(math.nan))
    check(claims({"main/t.rl.seed0": plan, "main/t.fst.seed0": replace(plan, arm="fst")}))

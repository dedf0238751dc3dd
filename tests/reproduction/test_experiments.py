"""The table of experiments: names, seeds and settings, and that they all fit the base config."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fst_jax.reproduction.experiments import (
    ARMS,
    DEMO,
    EXPERIMENTS,
    QUICK,
    STEPS,
    TASKS,
    Run,
    vary,
)
from fst_jax.reproduction.plan import plan
from fst_jax.settings import difference
from fst_jax.tasks.registry import load_task

BASE = Path(__file__).parents[2] / "configs/small_world.yaml"
GROUPS = {"main", "sweep", "signal", "plasticity", "continual", "ablations", "reflector", "fewshot"}


def all_runs(seeds: int = 5, quick: bool = False) -> list[Run]:
    return [run for each in EXPERIMENTS.values() for run in each.runs(seeds, quick)]


def test_vary_makes_every_combination() -> None:
    assert vary("a=1,2 b=x") == [{"a": "1", "b": "x"}, {"a": "2", "b": "x"}]
    assert len(vary("a=1,2,3 b=1,2 c=1,2")) == 12


def test_names_have_their_parts_and_numbers_no_dots() -> None:
    for run in all_runs():
        assert run.group in GROUPS
        parts = run.name.split(".")
        assert parts[0] in (*TASKS, "stream") and parts[1] in ARMS
        assert re.fullmatch(r"seed[0-4]", parts[-1]) and len(parts) in (3, 4)
        if run.variant:
            pairs = dict(pair.split("=") for pair in parts[2].split("+"))
            assert pairs == dict(run.variant)


def test_one_name_means_one_run() -> None:
    by_key: dict[str, Run] = {}
    for run in all_runs():
        assert by_key.setdefault(run.key, run) == run


def test_a_needed_run_is_in_the_same_experiment() -> None:
    for quick in (False, True):
        for experiment in EXPERIMENTS.values():
            runs = experiment.runs(3, quick)
            assert {key for run in runs for key in run.needs} <= {run.key for run in runs}


def test_the_contract_of_every_group() -> None:
    names = {run.key for run in all_runs(2)}
    assert {f"main/{t}.{a}.seed1" for t in TASKS for a in ARMS} <= names
    assert {f"continual/stream.{a}.seed0" for a in ("rl", "prompt", "fst")} <= names
    assert "plasticity/two_hop.rl.from=fst@reward+kind=related.seed0" in names
    assert "plasticity/star_graph.rl.from=base+kind=conflicting.seed0" in names
    assert "sweep/star_graph.rl.kl=0.seed1" in names
    assert "fewshot/star_graph.prompt.train_size=8.seed0" in names
    assert "ablations/star_graph.fst.population=1.seed0" in names
    assert "reflector/star_graph.prompt.feedback=vague.seed0" in names
    assert "signal/star_graph.fst.seed0" in names


def test_fewer_seeds_where_a_series_says_so() -> None:
    of_sweep = EXPERIMENTS["sweep"].runs(5)
    seeds = {run.seed for run in of_sweep if run.arm == "fst" and run.group == "sweep"}
    assert seeds == {0, 1, 2}
    assert [run.seed for run in of_sweep] == sorted(run.seed for run in of_sweep)


def test_quick_is_one_seed_of_one_task_in_few_steps() -> None:
    for name, experiment in EXPERIMENTS.items():
        runs = experiment.runs(5, quick=True)
        assert {run.seed for run in runs} == {0}
        assert len({run.task for run in runs}) == (2 if name == "plasticity" else 1)
        assert {run.settings["train.steps"] for run in runs} == {QUICK["train.steps"]}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    return plan(all_runs(1), BASE, tmp_path_factory.mktemp("root"))


def test_every_run_has_a_valid_config(jobs) -> None:  # type: ignore[no-untyped-def]
    assert len(jobs) > 50
    assert all(job.config.name == job.run.name for job in jobs.values())


def test_every_task_takes_its_options(jobs) -> None:  # type: ignore[no-untyped-def]
    settings = {str(job.config.task): job.config.task for job in jobs.values()}
    assert len(settings) > 8
    for task in settings.values():
        load_task(task)


def test_arms_differ_in_their_switches_alone(jobs) -> None:  # type: ignore[no-untyped-def]
    for task, arm in itertools.product(TASKS, ARMS):
        fst = jobs[f"main/{task}.fst.seed0"].config
        steps = STEPS[task][arm != "rl"]
        assert jobs[f"main/{task}.{arm}.seed0"].config.train.steps == steps
        train = replace(fst.train, steps=steps)
        config = replace(jobs[f"main/{task}.{arm}.seed0"].config, name=fst.name)
        changed = {line.split(":")[0] for line in difference(replace(fst, train=train), config)}
        assert changed == set(ARMS[arm])


def test_variants_are_compared_with_main_runs_that_are_at_least_as_long(jobs) -> None:  # type: ignore[no-untyped-def]
    for group in ("ablations", "reflector", "sweep"):
        for job in (job for job in jobs.values() if job.run.group == group):
            main = jobs[f"main/{job.run.task}.{job.run.arm}.seed0"]
            assert main.config.train.steps >= job.config.train.steps


def test_a_stream_takes_equal_turns(jobs) -> None:  # type: ignore[no-untyped-def]
    config = jobs["continual/stream.fst.seed0"].config
    stages = config.task.options["stages"]
    assert [stage["name"] for stage in stages] == [f"tiny_{task}" for task in TASKS]
    assert sum(stage["steps"] for stage in stages) == config.train.steps
    assert all(stage["steps"] % config.fast.cycle_steps == 0 for stage in stages)
    assert all(stage["steps"] % config.eval.every == 0 for stage in stages)


def test_the_demonstration_is_short() -> None:
    runs = DEMO.runs(1)
    assert {run.arm for run in runs} == {"rl", "fst"} and len(runs) == 2
    assert {run.settings["train.steps"] for run in runs} <= set(range(1, 61))

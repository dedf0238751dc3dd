"""Run folders are read as they are written, and what is wrong with them is said."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fst_jax.errors import RunError
from fst_jax.reporting.runs import find, read, read_all
from tests.reporting.synthetic import Plan, flat, write_run


def test_a_real_run_is_read(finished: Path) -> None:
    run = read(finished / "ci_tiny")
    assert (run.arm, run.task, run.group, run.finished) == ("fst", "letters", "", True)
    assert [event.step for event in run.curve()] == [0, 2, 4]
    last = run.steps[-1]
    assert run.evaluations[-1].rollouts == last["rollouts_total"]
    assert run.evaluations[-1].evolve_rollouts == last["evolve_rollouts_total"]
    assert [pool["step"] for pool in run.pools()] == [0, 2]
    assert {sample["context"] for sample in run.samples(0)} == {"seed"}


def test_the_synthetic_events_have_the_fields_of_real_ones(finished: Path, tmp_path: Path) -> None:
    def fields(path: Path) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for line in path.read_text().splitlines():
            event = json.loads(line)
            found.setdefault(event["event"], set()).update(event)
        return found

    real = fields(finished / "ci_tiny/metrics.jsonl")
    made = fields(write_run(tmp_path / "run", Plan()) / "metrics.jsonl")
    assert made.keys() == real.keys()
    assert all(made[event] <= real[event] for event in made)


def test_names_of_experiments(tmp_path: Path) -> None:
    name = "two_hop.rl.from=fst@reward+kind=related.seed3"
    run = read(write_run(tmp_path / "plasticity" / name, Plan("rl"), compressed=True))
    assert (run.group, run.task, run.arm, run.seed) == ("plasticity", "two_hop", "rl", 3)
    assert run.variant == {"from": "fst@reward", "kind": "related"}
    assert run.variant_name == "from=fst@reward+kind=related"


@pytest.mark.parametrize("place", ["main/quick.start", "other/a.fst.seed1", "main/a.best.seed1"])
def test_other_names_are_runs_for_themselves(tmp_path: Path, place: str) -> None:
    run = read(write_run(tmp_path / place, Plan("prompt"), seed=7))
    assert (run.group, run.task, run.arm, run.seed) == ("", "tiny_task", "prompt", 7)


def test_own_context_and_seed_prompt(tmp_path: Path) -> None:
    plan = Plan("fst", own=lambda s: s / 100, seeded=flat(0.1), steps=12)
    run = read(write_run(tmp_path / "run", plan))
    assert [e.mean_at_k for e in run.curve()] == [0.0, 0.06, 0.12]
    assert [e.mean_at_k for e in run.curve("seed")] == [0.0, 0.1, 0.1]
    assert [e.all_rollouts for e in run.curve()] == [0, 6 * 128 + 100, 12 * 128 + 200]
    prompt = read(write_run(tmp_path / "prompt", replace(plan, arm="prompt")))
    assert [e.mean_at_k for e in prompt.curve()] == [0.0, 0.06, 0.12]
    assert [e.all_rollouts for e in prompt.curve()] == [0, 100, 200]


def test_a_run_cut_short_is_as_it_was_then(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run", Plan("fst", steps=60))).until(30)
    assert run.finished and run.evaluations[-1].step == 30
    assert len(run.steps) == 30 and len(run.rounds) == 5


def test_unfinished_experiments_are_left_out_and_other_runs_marked(tmp_path: Path) -> None:
    write_run(tmp_path / "main/task.rl.seed0", Plan("rl", stop=20))
    write_run(tmp_path / "mine", Plan("rl", stop=20))
    runs, left_out = read_all(find([tmp_path]))
    assert [(run.name, run.finished) for run in runs] == [("mine", False)]
    assert len(left_out) == 1 and "up to step 18 of 60" in left_out[0]


def test_reused_rollouts_are_trained_on_and_sampled_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Plan("fst_reuse", steps=6))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for event in lines:
        if event["event"] == "step":
            event["reused_rollouts"] = 10
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))
    last = read(folder).evaluations[-1]
    assert last.rollouts == 6 * 128 + 60 and last.all_rollouts == 6 * 128 + 100


def test_the_same_experiment_counts_once(tmp_path: Path) -> None:
    for root in ("made", "recorded"):
        write_run(tmp_path / root / "main/task.rl.seed0", Plan("rl"))
    runs, left_out = read_all(find([tmp_path / "made", tmp_path / "recorded"]))
    assert [run.path.parts[-3] for run in runs] == ["made"]
    assert len(left_out) == 1 and "the same experiment" in left_out[0]


def test_a_last_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Plan("rl"))
    whole = read(folder)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"event": "eva')
    assert read(folder) == whole


def test_damage_is_named_and_spares_the_other_runs(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "broken", Plan("rl"))
    write_run(tmp_path / "whole", Plan("rl"))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], "{", *lines[2:]]) + "\n")
    with pytest.raises(RunError, match="metrics.jsonl, line 2 is damaged"):
        read(folder)
    runs, left_out = read_all(find([tmp_path]))
    assert [run.name for run in runs] == ["whole"] and len(left_out) == 1


def test_a_name_that_contradicts_the_settings_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "main/task.rl.seed0", Plan("fst"))
    with pytest.raises(RunError, match="named rl, but its settings are those of fst"):
        read(folder)


def test_an_event_that_lacks_a_figure_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Plan("rl"))
    (folder / "metrics.jsonl").write_text('{"event": "eval", "step": 0}\n')
    with pytest.raises(RunError, match="task"):
        read(folder)


def test_places_without_runs(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        find([tmp_path])
    with pytest.raises(RunError, match="not a folder"):
        find([tmp_path / "nowhere"])

"""Plans: what is finished, what is recorded, what stands in the way."""

import json
import shutil
from pathlib import Path

import pytest

from fst_jax.errors import ConfigError, RunError
from fst_jax.reproduction.experiments import Run
from fst_jax.reproduction.plan import is_finished, plan, to_do

BASE = Path(__file__).parents[2] / "configs/ci_tiny.yaml"


def run(arm: str = "fst", group: str = "main", seed: int = 0, **settings: object) -> Run:
    return Run(group, "star_graph", arm, {}, seed, settings)


def second(seed: int = 0) -> Run:
    variant = {"from": "rl@reward"}
    return Run("plasticity", "two_hop", "rl", variant, seed, {"fast.enabled": False})


def log(folder: Path, event: str, step: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.jsonl", "a") as metrics:
        metrics.write(json.dumps({"event": event, "step": step, "time_s": 1.0}) + "\n")


def make(jobs, key: str) -> Path:  # type: ignore[no-untyped-def]
    """As if the job had been run to its end."""
    from fst_jax.settings import to_yaml

    folder = jobs[key].folder
    log(folder, "end", 4)
    (folder / "config.yaml").write_text(to_yaml(jobs[key].config))
    return folder


def test_a_real_run_is_finished(finished: Path) -> None:
    assert is_finished(finished / "ci_tiny")


def test_the_last_line_decides(tmp_path: Path) -> None:
    assert not is_finished(tmp_path)
    log(tmp_path, "eval", 9)
    assert not is_finished(tmp_path)
    log(tmp_path, "end", 9)
    assert is_finished(tmp_path) and is_finished(tmp_path, 9) and not is_finished(tmp_path, 12)
    log(tmp_path, "step", 10)
    assert not is_finished(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as metrics:
        metrics.write('{"event": "end", "st')
    assert not is_finished(tmp_path)


def test_names_and_places(tmp_path: Path) -> None:
    (key, job), *others = plan([run(seed=3), run(seed=3)], BASE, tmp_path).items()
    assert not others and key == "main/star_graph.fst.seed3"
    assert job.folder == tmp_path / key and job.config.seed == 3
    assert {"--config", str(BASE), "--name", "star_graph.fst.seed3"} <= set(job.arguments)


def test_settings_of_a_run_reach_its_config(tmp_path: Path) -> None:
    settings = {
        "fast.reuse": True,
        "slow.learning_rate": "1e-4",
        "task.options": {"degree": 4},
        "slow.baseline": "prompt",
    }
    (job,) = plan([run(**settings)], BASE, tmp_path).values()
    config = job.config
    assert config.fast.reuse and config.slow.learning_rate == 1e-4
    assert config.slow.baseline == "prompt"
    assert config.task.options["degree"] == 4 and config.task.options["path_nodes"] == 3


def test_a_bad_setting_names_its_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"main/star_graph\.fst\.seed0.*did you mean") as caught:
        plan([run(**{"fast.populatoin": 4})], BASE, tmp_path)
    assert "fast.population" in str(caught.value)


def test_made_runs_are_not_done_again(tmp_path: Path) -> None:
    jobs = plan([run(), run("rl")], BASE, tmp_path)
    assert to_do(jobs) == list(jobs.values())
    make(jobs, "main/star_graph.fst.seed0")
    assert [job.run.arm for job in to_do(jobs)] == ["rl"]


def test_folders_of_other_settings_stop_the_plan(tmp_path: Path) -> None:
    seeds = range(5)
    jobs = plan([run(seed=seed) for seed in seeds], BASE, tmp_path)
    for key in jobs:
        make(jobs, key)
    with pytest.raises(RunError, match="another --root") as caught:
        plan([run(seed=seed, **{"train.steps": 3}) for seed in seeds], BASE, tmp_path)
    message = str(caught.value)
    assert message.startswith("5 folders") and "train.steps: 4 → 3" in message
    assert "and 2 more" in message


def test_a_run_that_should_be_longer_is_to_do(tmp_path: Path) -> None:
    make(plan([run()], BASE, tmp_path), run().key)
    assert to_do(plan([run()], BASE, tmp_path)) == []
    assert len(to_do(plan([run(**{"train.steps": 6})], BASE, tmp_path))) == 1


def record(jobs, key: str, recorded: Path) -> None:  # type: ignore[no-untyped-def]
    folder = make(jobs, key)
    kept = recorded / key
    kept.mkdir(parents=True)
    shutil.copy(folder / "config.yaml", kept)
    shutil.rmtree(folder)


def test_recorded_runs_count_as_finished_unless_their_weights_are_needed(tmp_path: Path) -> None:
    root, recorded = tmp_path / "root", tmp_path / "recorded"
    runs = [run("rl"), run("fst"), second()]
    jobs = plan(runs, BASE, root)
    record(jobs, "main/star_graph.rl.seed0", recorded)
    record(jobs, "main/star_graph.fst.seed0", recorded)
    assert to_do(plan(runs[:2], BASE, root, recorded)) == []
    assert len(to_do(plan(runs, BASE, root, recorded))) == 3  # the second task starts from them
    record(jobs, second().key, recorded)
    assert to_do(plan(runs, BASE, root, recorded)) == []


def test_a_recorded_run_of_other_settings_does_not_count(tmp_path: Path) -> None:
    root, recorded = tmp_path / "root", tmp_path / "recorded"
    record(plan([run()], BASE, root), run().key, recorded)
    other = plan([run(**{"slow.kl_coefficient": 0})], BASE, root, recorded)
    assert len(to_do(other)) == 1
    exports = plan([run(**{"checkpoint.export_every": 2})], BASE, root, recorded)
    assert to_do(exports) == []  # what is kept besides does not change what happened


def test_a_variant_like_a_main_run_is_left_out(tmp_path: Path) -> None:
    runs = [
        run(**{"checkpoint.export_every": 2}),
        Run("ablations", "star_graph", "fst", {"population": "2"}, 0, {"fast.population": "2"}),
        Run("ablations", "star_graph", "fst", {"population": "4"}, 0, {"fast.population": "4"}),
        Run("ablations", "star_graph", "fst", {"population": "2"}, 1, {"fast.population": "2"}),
    ]
    assert list(plan(runs, BASE, tmp_path)) == [runs[0].key, runs[2].key, runs[3].key]


@pytest.mark.parametrize(("steps", "stands_for_it"), [(2, True), (4, True), (6, False)])
def test_a_main_run_stands_for_shorter_ones(
    tmp_path: Path, steps: int, stands_for_it: bool
) -> None:
    short = Run("sweep", "star_graph", "fst", {"kl": "1e-3"}, 0, {"train.steps": steps})
    jobs = plan([run(), short], BASE, tmp_path)
    assert (short.key not in jobs) == stands_for_it

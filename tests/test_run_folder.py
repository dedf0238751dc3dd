"""A run's folder serves its own config and no other."""

from dataclasses import replace

import pytest

from fst_jax.config import Config, ParallelSettings, TrackingSettings, TrainSettings
from fst_jax.errors import RunError
from fst_jax.run_folder import RunFolder
from fst_jax.settings import load_file


@pytest.fixture
def config(tmp_path):
    return Config(name="try", output=str(tmp_path / "runs"))


def test_create_and_resume(config, tmp_path):
    folder = RunFolder.of(config)
    folder.check(config)
    assert not (tmp_path / "runs").exists()
    folder.create(config)
    assert folder.path == tmp_path / "runs" / "try"
    assert {entry.name for entry in folder.path.iterdir()} == {
        "config.yaml",
        "pool",
        "samples",
        "checkpoints",
    }
    assert load_file(folder.config) == config
    folder.create(config)


def test_another_config_is_refused_with_a_diff(config):
    folder = RunFolder.of(config)
    folder.create(config)
    other = replace(config, seed=1, train=TrainSettings(steps=7))
    with pytest.raises(RunError) as caught:
        folder.create(other)
    assert "choose another --name" in str(caught.value)
    assert str(caught.value).splitlines()[1:] == ["  seed: 0 → 1", "  train.steps: 500 → 7"]
    assert load_file(folder.config) == config


def test_a_run_may_go_on_for_longer(config):
    folder = RunFolder.of(config)
    folder.create(config)
    longer = replace(config, train=TrainSettings(steps=config.train.steps + 1))
    folder.create(longer)
    assert load_file(folder.config) == longer


def test_a_moved_run_resumes(config, tmp_path):
    RunFolder.of(config).create(config)
    RunFolder.of(config).path.rename(tmp_path / "moved")
    moved = replace(config, name="moved", output=str(tmp_path))
    RunFolder.of(moved).check(moved)


def test_what_is_no_run_is_refused(config, tmp_path):
    folder = RunFolder.of(config)
    folder.path.mkdir(parents=True)
    folder.check(config)  # empty
    (folder.path / "config.yaml.tmp").touch()
    folder.check(config)  # killed while it was created
    (folder.path / "thesis.tex").touch()
    with pytest.raises(RunError, match="is not the folder of a run"):
        folder.create(config)
    folder.config.write_text("seed: [")
    with pytest.raises(RunError, match="config cannot be read"):
        folder.check(config)
    with pytest.raises(RunError, match="is not a folder"):
        RunFolder(folder.config).check(config)


def test_a_place_that_cannot_be_written(config, tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError):
        RunFolder.of(config).create(config)


def test_who_watches_and_how_the_reflector_is_reached_may_change(config):
    folder = RunFolder.of(config)
    folder.create(config)
    folder.check(replace(config, tracking=TrackingSettings(tensorboard=True)))
    folder.check(replace(config, fast=replace(config.fast, lm_url="http://elsewhere/v1")))
    priced = replace(config.fast, lm_price_in=1.0, lm_price_out=2.0)
    folder.check(replace(config, fast=priced))
    with pytest.raises(RunError, match="fast.lm_model"):
        folder.check(replace(config, fast=replace(config.fast, lm_model="another")))


def test_how_its_servers_are_reached_may_change(config):
    RunFolder.of(config).create(config)
    elsewhere = replace(config.rollout, url="http://other:30000", patience_s=5.0, timeout_s=7.0)
    RunFolder.of(config).check(replace(config, rollout=elsewhere))
    with pytest.raises(RunError, match="rollout.engine"):
        RunFolder.of(config).check(replace(config, rollout=replace(elsewhere, engine="sglang")))


def test_an_output_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is not a folder to write to"):
        config = Config(name="try", output=str(tmp_path / "file"))
        RunFolder.of(config).check(config)


def test_how_the_processes_start_is_not_kept(config):
    folder = RunFolder.of(config)
    parallel = ParallelSettings({"fsdp": 4}, "host:1", processes=2, process=0)
    folder.create(replace(config, parallel=parallel))
    assert load_file(folder.config).parallel == ParallelSettings({"fsdp": 4})
    folder.check(replace(config, parallel=replace(parallel, process=1)))
    folder.check(replace(config, parallel=ParallelSettings({"fsdp": 4})))
    folder.check(replace(config, parallel=ParallelSettings({"data": 2, "fsdp": 2})))


def test_the_end_of_a_run_is_the_last_line_of_its_metrics(config):
    folder = RunFolder.of(config)
    assert folder.ended is None
    folder.create(config)
    lines = ['{"event": "eval", "step": 4, "time_s": 1}', '{"event": "end", "step": 4}']
    folder.metrics.write_text("\n".join(["x" * 9000, *lines]) + "\n")
    assert folder.ended == 4
    for last in ('{"event": "step", "step": 5}', '{"event": "end", "ste', "[]", '{"event": "end"}'):
        folder.metrics.write_text("\n".join([*lines, last]))
        assert folder.ended is None

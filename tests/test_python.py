"""The Python interface: a run taken step by step, left, gone on with, asked, and read again."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

import fst_jax
from fst_jax.config import RolloutSettings, TrainSettings
from fst_jax.errors import ConfigError, EngineError, RunError
from fst_jax.train import Run
from tests.processes import ROOT
from tests.tiny_run import events

VARYING = ("time_s", "seconds", "mfu", "compiles")


class Heard:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.shown: list[str] = []
        self.closed = 0

    def log(self, event, step, values):
        self.events.append((event, step))

    def show(self, name, step, texts):
        assert all(isinstance(text, str) for text in texts)
        self.shown.append(name)

    def close(self):
        self.closed += 1


@pytest.fixture
def config(model: Path, task: Path, tmp_path: Path) -> fst_jax.Config:
    changes = {
        "model.path": str(model),
        "task.entry_point": f"{task}:Letters",
        "output": str(tmp_path),
        "eval.every": 2,
    }
    return fst_jax.load_config(task.with_suffix(".yaml"), changes)


def told(folder: Path) -> list[dict]:
    return [{k: v for k, v in e.items() if k not in VARYING} for e in events(folder)]


def test_a_run_that_is_left_asked_and_gone_on_with_is_as_one_that_is_not(
    config, finished, tmp_path, capsys
):
    whole = finished / "ci_tiny"
    capsys.readouterr()
    heard = Heard()
    run = fst_jax.Run(replace(config, name="parts"), heard)
    assert (run.step, run.finished, run.folder) == (0, False, tmp_path / "parts")
    taken = []
    for step in run:
        taken.append(step)
        break
    assert run.step == 1 and not run.finished
    (evaluation,) = run.evaluate("seed", "base")
    assert evaluation["n"] == evaluation["k"] * config.eval.problems
    assert run.sample("Say it.", count=2, seed=1) == run.sample("Say it.", count=2, seed=1)
    (greedy,) = run.sample("Say it.", prompt="", temperature=0.0, max_new_tokens=3)
    assert (greedy,) == tuple(run.sample("Say it.", "", temperature=0.0, max_new_tokens=3, seed=9))
    taken += islice(run, 1)
    with pytest.raises(RunError, match="in use by process"):
        fst_jax.Run(replace(config, name="parts"), Heard())
    run.close()
    run.close()

    with fst_jax.Run(replace(config, name="parts"), heard) as run:
        taken += list(run)
        assert run.finished and list(run) == []
        texts = [prompt.text for prompt in run.pool.active_prompts]
        problem = fst_jax.Problem("mine", "Say 3.", "e")
        assert len(run.sample(problem, texts[0], count=3)) == 3
    assert told(tmp_path / "parts") == told(whole)
    assert capsys.readouterr().out == ""  # the tracker has it all

    # Each step once, with all that metrics.jsonl has of it.
    assert [step.number for step in taken] == list(range(1, config.train.steps + 1))
    by_kind = {kind: [e for e in told(whole) if e["event"] == kind] for kind in
               ("step", "evolve", "eval")}  # fmt: skip
    keys = set(by_kind["step"][0])
    assert [{k: step.metrics[k] for k in keys} for step in taken] == by_kind["step"]
    assert len([step for step in taken if step.fast_round]) == len(by_kind["evolve"])
    # Those of the step at which the run was closed are made again, to the same end.
    looks = {(e["step"], e["weights"], e["context"]): e for s in taken for e in s.evaluations}
    assert len(looks) == len(by_kind["eval"])
    for event in by_kind["eval"]:
        assert looks[event["step"], event["weights"], event["context"]].items() >= event.items()
    assert heard.closed == 2 and {"prompts", "rollouts/step"} <= set(heard.shown)

    record = fst_jax.read_run(whole)
    assert record.finished and len(record.steps) == config.train.steps
    assert [entry["text"] for entry in record.newest_pool()["prompts"]][0] == "Answer."


def test_a_run_left_in_the_middle_of_a_step_must_be_opened_again(config, monkeypatch):
    with fst_jax.Run(config, Heard()) as run:

        def fails(*_, **__):
            raise EngineError("no answer")

        with monkeypatch.context() as patch:
            patch.setattr(run._actor, "roll_out", fails)
            with pytest.raises(EngineError, match="no answer"):
                run.train()
        with pytest.raises(RunError, match="in the middle of a step: close it"):
            run.train()


def test_a_config_made_in_code_is_checked(model, task, tmp_path):
    bad = fst_jax.Config(
        output=str(tmp_path),
        rollout=RolloutSettings(group_size=7, temperature="hot"),
        train=TrainSettings(steps=0),
    )
    with pytest.raises(ConfigError) as caught:
        fst_jax.Run(bad)
    message = str(caught.value)
    assert "rollout.temperature: expected a number" in message and "train.steps" in message
    with pytest.raises(ConfigError, match="did you mean train.steps"):
        fst_jax.load_config(task.with_suffix(".yaml"), {"train.step": 3})
    assert list(tmp_path.iterdir()) == []


def test_changes_of_a_file(task):
    changes = {"task.options.arms": 5, "train.steps": 9, "slow.learning_rate": 1}
    config = fst_jax.load_config(task.with_suffix(".yaml"), changes)
    assert config.task.options == {"arms": 5}
    assert config.train.steps == 9 and config.slow.learning_rate == 1.0


@pytest.mark.slow
def test_a_run_may_be_taken_in_a_thread(config):
    from threading import Thread

    found: list[Run] = []

    def work() -> None:
        with fst_jax.Run(config, Heard()) as run:
            run.train()
            found.append(run)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert found and found[0].finished


def test_importing_is_quick_and_complete():
    code = (
        "import sys, json, fst_jax\n"
        "early = [m for m in ('jax', 'transformers', 'numpy') if m in sys.modules]\n"
        "names = {name: hasattr(fst_jax, name) for name in fst_jax.__all__}\n"
        "print(json.dumps([early, names]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    early, names = json.loads(done.stdout)
    assert early == [] and all(names.values())
    assert set(names) <= set(dir(fst_jax))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fst_jax.nothing  # noqa: B018

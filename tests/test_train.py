"""Whole runs of Algorithm 1 on a tiny model: what they write, how they resume, what they refuse."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fst_jax.convert import main as convert
from fst_jax.fast.pool import Pool
from fst_jax.journal import Journal
from fst_jax.lock import Lock
from fst_jax.models.huggingface import load_model
from tests.helpers import tiny_model_folder
from tests.tiny_run import arguments, events, run, samples

ROOT = Path(__file__).parents[1]
STEP_KEYS = {
    "reward_mean", "reward_std_within_prompt", "reward_std_across_prompts", "zero_variance_groups",
    "loss", "grad_norm", "lr", "kl_k1", "kl_k2", "kl_k3", "entropy", "clip_fraction", "ratio_max",
    "mismatch_k3", "response_tokens_mean", "truncated_fraction", "reused_rollouts",
    "rollouts_total", "evolve_rollouts_total", "reflection_calls_total", "tokens_generated",
    "tokens_trained", "seconds", "compiles", "weight_version", "mfu", "flops", "categories",
}  # fmt: skip


def untimed(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock or on the process."""
    drop = {"time_s", "seconds", "compiles", "mfu"}
    return [
        {key: value for key, value in event.items() if key not in drop} for event in events(folder)
    ]


def test_run_folder(finished: Path) -> None:
    folder = finished / "ci_tiny"
    found = events(folder)
    steps = [event for event in found if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4]
    assert all(STEP_KEYS <= event.keys() for event in steps)
    assert all(event["mismatch_k3"] < 1e-6 for event in steps)  # the sampler is the learner
    assert steps[-1]["rollouts_total"] == 4 * 4 * 4
    rounds = [event for event in found if event["event"] == "evolve"]
    assert [event["step"] for event in rounds] == [0, 2]  # before the RL steps of each cycle
    spent = sum(event["metric_calls"] + event["carried_rescored"] for event in rounds)
    assert steps[-1]["evolve_rollouts_total"] == spent
    assert max(event["metric_calls"] for event in rounds) <= 40
    quadrants = {(e["weights"], e["context"]) for e in found if e["event"] == "eval"}
    assert quadrants == {(w, c) for w in ("base", "trained") for c in ("seed", "pool")}
    for step in (0, 2):
        pool = Pool.load(folder / f"pool/{step}.json")
        assert len(pool.active) == 2 and pool.seed.text == "Answer."
    assert [line["event"] for line in samples(folder, 1)] == ["step"] * 2 * 4
    looked = [line for line in samples(folder, 2) if line["event"] == "eval"]
    # One rollout of each of the 8 held-out problems, under the seed prompt and under the pool.
    assert [line["context"] for line in looked] == ["seed"] * 8 + ["pool"] * 8
    assert [line["problem"] for line in looked] == [f"test{i}" for i in range(8)] * 2
    assert {line["weights"] for line in samples(folder, 0)} == {"base"}
    shown = {"step", "task", "question", "prompt", "text", "reward", "feedback", "category"}
    assert all(shown <= line.keys() for line in looked)
    assert (folder / "config.yaml").is_file()
    load_model(folder / "export")
    kept = sorted((folder / "exports").iterdir())
    assert [path.name for path in kept] == ["3"]
    load_model(kept[0])


def test_no_compilation_after_the_first_cycles(finished: Path) -> None:
    counts = [e["compiles"] for e in events(finished / "ci_tiny") if e["event"] == "step"]
    assert counts[3] == counts[2]


def test_a_finished_run_is_not_run_again(
    finished: Path, model: Path, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished / "ci_tiny/metrics.jsonl").read_text()
    assert run(monkeypatch, arguments(model, task, finished)) == 0
    assert (finished / "ci_tiny/metrics.jsonl").read_text() == before


def test_a_finished_run_goes_on_with_more_steps(
    finished: Path, model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in ("2", "4"):
        assert run(monkeypatch, arguments(model, task, tmp_path, "--train.steps", steps)) == 0
    folder = tmp_path / "ci_tiny"
    assert untimed(folder) == untimed(finished / "ci_tiny")
    assert (folder / "config.yaml").read_text().count("steps: 4") == 1
    assert run(monkeypatch, arguments(model, task, tmp_path, "--train.steps", "3")) == 2


def test_another_config_is_refused(
    finished: Path,
    model: Path,
    task: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, arguments(model, task, finished, "--seed", "7")) == 2
    assert "seed: 0 → 7" in capsys.readouterr().err


def test_a_run_goes_on_over_its_own_base_and_checkpoints_alone(
    finished: Path,
    model: Path,
    task: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And what users put beside its files stays."""
    shutil.copytree(finished / "ci_tiny", tmp_path / "ci_tiny")
    folder, longer = tmp_path / "ci_tiny", ("--train.steps", "5")
    (folder / "exports/3").rename(folder / "exports/best")
    (folder / "samples/notes.txt").write_text("mine")
    base = load_file(model / "model.safetensors")
    other = base | {"model.norm.weight": base["model.norm.weight"] / 2}
    save_file(other, model / "model.safetensors", metadata={"format": "pt"})
    try:
        assert run(monkeypatch, arguments(model, task, tmp_path, *longer)) == 2
        assert "holds other weights than when the run" in capsys.readouterr().err
    finally:
        save_file(base, model / "model.safetensors", metadata={"format": "pt"})
    assert run(monkeypatch, arguments(model, task, tmp_path, *longer)) == 0
    assert (folder / "exports/best/config.json").is_file()
    assert (folder / "samples/notes.txt").read_text() == "mine"
    shutil.rmtree(folder / "checkpoints")
    capsys.readouterr()
    assert run(monkeypatch, arguments(model, task, tmp_path, *longer)) == 2
    assert "its checkpoints are gone" in capsys.readouterr().err
    assert len(events(folder)) > 10


def test_a_refused_process_changes_nothing(
    finished: Path, model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "ci_tiny", tmp_path / "ci_tiny")
    before = (tmp_path / "ci_tiny/config.yaml").read_text()
    held = Lock(tmp_path / "ci_tiny")
    assert run(monkeypatch, arguments(model, task, tmp_path, "--train.steps", "99")) == 2
    assert (tmp_path / "ci_tiny/config.yaml").read_text() == before
    held.release()


def test_same_seed_same_file(
    finished: Path, model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, arguments(model, task, tmp_path)) == 0
    assert untimed(tmp_path / "ci_tiny") == untimed(finished / "ci_tiny")


def test_rl_only(model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, arguments(model, task, tmp_path, "--fast.enabled", "false")) == 0
    found = events(tmp_path / "ci_tiny")
    assert {event["event"] for event in found} == {"step", "eval", "end"}
    assert {e["context"] for e in found if e["event"] == "eval"} == {"seed"}
    assert not list((tmp_path / "ci_tiny/pool").iterdir())


def test_prompt_only(
    model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, arguments(model, task, tmp_path, "--slow.enabled", "false")) == 0
    found = events(tmp_path / "ci_tiny")
    assert {event["event"] for event in found} == {"evolve", "eval", "end"}
    evaluations = [event for event in found if event["event"] == "eval"]
    assert {event["weights"] for event in evaluations} == {"base"}
    assert all(event["kl_to_base"] == 0 for event in evaluations)


def test_a_stream_carries_on_from_stage_to_stage(
    model: Path,
    task: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    letters = f"{task}:Letters"
    stages = [
        {"entry_point": letters, "steps": 3},
        {"entry_point": letters, "steps": 9, "label": "again"},
    ]
    config = tmp_path / "stream.yaml"
    text = task.with_suffix(".yaml").read_text()
    options = json.dumps({"name": "stream", "options": {"stages": stages}})
    config.write_text(text.replace("task: {}", f"task: {options}"))
    argv = ["--config", str(config), "--model.path", str(model), "--output", str(tmp_path)]
    assert run(monkeypatch, [*argv, "--train.steps", "3"]) == 2
    assert "before the last stage of the stream, again, begins at step 3" in capsys.readouterr().err
    assert run(monkeypatch, argv) == 0
    folder = tmp_path / "ci_tiny"
    found = events(folder)
    # A cycle is 2 steps, but the second one ends with its stage.
    rounds = [event for event in found if event["event"] == "evolve"]
    assert [(event["cycle"], event["step"]) for event in rounds] == [(0, 0), (1, 2), (2, 3)]
    pools = [Pool.load(folder / f"pool/{step}.json") for step in (0, 2, 3)]
    stage_of = [{problem.split("/")[0] for problem in pool.seed.scores} for pool in pools]
    assert stage_of == [{"letters"}, {"letters"}, {"again"}]
    looks = [(e["step"], e["task"], e["weights"], e["context"]) for e in found if "mean_at_k" in e]
    assert len(looks) == len(set(looks)) == 2 * (1 + 2 + 3)  # before, at step 2, at the end
    assert {look[:2] for look in looks} == {(s, t) for s in (0, 2, 4) for t in ("letters", "again")}
    trained = [p for step in (3, 4) for p in samples(folder, step) if p["event"] == "step"]
    assert [p["problem"].split("/")[0] for p in trained] == ["letters"] * 8 + ["again"] * 8
    learned = [event for event in found if event["event"] in ("step", "evolve")]
    tasks = {(event["event"], event["step"]): event["task"] for event in learned}
    assert tasks == {
        ("evolve", 0): "letters",
        ("step", 1): "letters",
        ("step", 2): "letters",
        ("evolve", 2): "letters",
        ("step", 3): "letters",
        ("evolve", 3): "again",
        ("step", 4): "again",
    }
    assert "\nagain\nheld-out reward" in capsys.readouterr().out


def test_a_stream_may_forget_pool_and_optimiser_where_a_stage_begins(
    model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = f"{task}:Letters"
    stages = [
        {"entry_point": letters, "steps": 2},
        {"entry_point": letters, "steps": 9, "label": "again"},
    ]
    text = task.with_suffix(".yaml").read_text()
    options = {"stages": stages, "reset_pool": True, "reset_optimizer": True}
    config = tmp_path / "stream.yaml"
    config.write_text(
        text.replace("task: {}", f"task: {json.dumps({'name': 'stream', 'options': options})}")
    )
    argv = ["--config", str(config), "--model.path", str(model), "--eval.every", "0"]
    assert run(monkeypatch, [*argv, "--output", str(tmp_path)]) == 0
    folder = tmp_path / "ci_tiny"
    steps = [event for event in events(folder) if event["event"] == "step"]
    peak = 1e-3  # which the warm-up takes two steps to reach
    assert [event["lr"] for event in steps] == pytest.approx([peak / 2, peak, peak / 2, peak])
    first, second = (Pool.load(folder / f"pool/{step}.json") for step in (0, 2))
    assert (first.rounds, second.rounds) == (1, 2)
    assert len(first.prompts) > 1
    assert {prompt.created_step for prompt in second.prompts if prompt.parent} == {2}


def test_reused_rollouts_stand_in_for_new_ones(
    model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--fast.reuse", "true", "--fast.cycle_steps", "4", "--fast.anchors", "8"]
    argv = arguments(model, task, tmp_path / "whole", *more, "--checkpoint.every", "1")
    assert run(monkeypatch, argv) == 0
    whole = tmp_path / "whole/ci_tiny"
    steps = [event for event in events(whole) if event["event"] == "step"]
    # The 8 anchors are the problems of the first two steps; K = 2 prompts, G/K = 2 rollouts each:
    # one of the two is there already.
    pool = Pool.load(whole / "pool/0.json")
    distinct = len(set(pool.active))
    assert [event["reused_rollouts"] for event in steps] == [4 * distinct, 4 * distinct, 0, 0]
    assert steps[-1]["rollouts_total"] == 4 * 4 * 4 - 8 * distinct
    assert steps[0]["mismatch_k3"] < 1e-6 and steps[0]["ratio_max"] < 1.001  # same weights still
    assert steps[1]["mismatch_k3"] > 1e-6  # one update later

    argv[argv.index(str(tmp_path / "whole"))] = str(tmp_path / "halves")
    run_in_halves(monkeypatch, argv, step=2)
    assert untimed(tmp_path / "halves/ci_tiny") == untimed(whole)


def test_a_reference_without_the_prompt(
    model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--slow.reference_prompt", "none", "--slow.kl_coefficient", "0.1", "--train.steps", "2"]
    for place in ("loss", "reward"):
        argv = arguments(model, task, tmp_path / place, *more, "--slow.kl_placement", place)
        assert run(monkeypatch, argv) == 0
        first = next(e for e in events(tmp_path / place / "ci_tiny") if e["event"] == "step")
        # The weights are the base's still, but it reads something else.
        assert first["kl_k2"] > 1e-6 and first["mismatch_k3"] < 1e-6
        assert place == "loss" or abs(first["kl_penalty_mean"]) > 1e-7


def run_in_halves(monkeypatch: pytest.MonkeyPatch, argv: list[str], step: int) -> None:
    """Run until a step is recorded, fail there, and run again to the end."""

    class Killed(Exception):
        pass

    def killed(self: Journal, *values: Any) -> None:
        slow_step(self, *values)
        if self.progress.step == step:
            raise Killed

    slow_step = Journal.slow_step
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Journal, "slow_step", killed)
        run(monkeypatch, argv)
    assert run(monkeypatch, argv) == 0


@pytest.mark.slow
def test_several_updates_with_the_kl_in_the_reward_and_a_refreshed_reference(
    model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [
        "--fast.enabled", "false", "--train.steps", "5", "--checkpoint.every", "1",
        "--slow.objective", "grpo", "--slow.minibatches", "2", "--slow.epochs", "2",
        "--slow.kl_placement", "reward", "--slow.kl_coefficient", "0.1",
        "--slow.reference_refresh", "2",
    ]  # fmt: skip
    assert run(monkeypatch, arguments(model, task, tmp_path / "whole", *more)) == 0
    whole = tmp_path / "whole/ci_tiny"
    steps = [event for event in events(whole) if event["event"] == "step"]
    assert [event["weight_version"] for event in steps] == [1, 2, 3, 4, 5]
    assert steps[0]["lr"] == pytest.approx(1e-3)  # warm after two updates of four
    assert all(event["mismatch_k3"] < 1e-6 for event in steps)  # before the first update
    assert all(event["ratio_max"] > 1.01 for event in steps)  # after it
    assert steps[0]["kl_penalty_mean"] == pytest.approx(0, abs=1e-4)
    assert steps[1]["kl_penalty_mean"] > 1e-3
    # The reference is that of step 2 from then on: nobody has moved from it yet.
    assert steps[2]["kl_penalty_mean"] == pytest.approx(0, abs=1e-4)
    drifts = {e["step"]: e["kl_to_base"] for e in events(whole) if e["event"] == "eval"}
    assert drifts[0] == 0 and drifts[2] > 1e-3 and drifts[4] > drifts[2]
    assert steps[4]["compiles"] == steps[3]["compiles"] == steps[2]["compiles"]
    # Killed in step 3: from a checkpoint whose reference is no longer the base.  What a sampler
    # served before shows in the last bits of its log-probabilities.
    run_in_halves(monkeypatch, arguments(model, task, tmp_path / "halves", *more), step=3)
    pairs = zip(untimed(tmp_path / "halves/ci_tiny"), untimed(whole), strict=True)
    for found, wanted in pairs:
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            close = pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value
            assert found[key] == close, key


def start(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fst_jax.train", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(folder: Path, step: int, deadline_s: float = 300) -> None:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        path = folder / "metrics.jsonl"
        if path.is_file() and f'"event": "step", "step": {step},' in path.read_text():
            return
        time.sleep(0.02)
    raise TimeoutError(f"step {step} was not reached")


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_killed_run_resumes_as_if_undisturbed(
    number: signal.Signals, finished: Path, model: Path, task: Path, tmp_path: Path
) -> None:
    argv = arguments(model, task, tmp_path)
    process = start(argv)
    # Step 3 is one step after a checkpoint; a signal to save must come well before the end.
    wait_for_step(tmp_path / "ci_tiny", 3 if number == signal.SIGKILL else 1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    if number == signal.SIGTERM:
        assert process.returncode == 0, output
        assert "python -m fst_jax.train --config" in output
    else:
        assert process.returncode == -signal.SIGKILL
    resumed = start(argv)
    output, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, output
    assert untimed(tmp_path / "ci_tiny") == untimed(finished / "ci_tiny")
    files = [f"samples/{step}.jsonl" for step in range(5)]
    files += ["export/model.safetensors", "exports/3/model.safetensors", "pool/2.json"]
    for name in files:
        ours, theirs = (folder / "ci_tiny" / name for folder in (tmp_path, finished))
        assert ours.read_bytes() == theirs.read_bytes()


def test_adapters_are_trained_exported_and_resumed(
    model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = ("--slow.lora_rank", "2", "--slow.lora_layers", "attention", "--fast.enabled", "false")
    for output, ends in (("whole", "4"), ("halves", "2"), ("halves", "4")):
        argv = arguments(model, task, tmp_path / output, *lora, "--eval.every", "0")
        assert run(monkeypatch, [*argv, "--train.steps", ends]) == 0
    whole, halves = (tmp_path / output / "ci_tiny" for output in ("whole", "halves"))
    found = untimed(halves)
    assert found == untimed(whole)
    assert max(e["kl_k3"] for e in found if e["event"] == "step") > 0
    for name in ("export/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (halves / name).read_bytes() == (whole / name).read_bytes()
    # export/ is the base with the adapter merged in, in the attention alone.
    assert convert([str(whole / "adapter"), str(tmp_path / "merged")]) == 0
    base, export, merged = (
        load_file(path / "model.safetensors")
        for path in (model, whole / "export", tmp_path / "merged")
    )
    for name, weight in base.items():
        np.testing.assert_allclose(export[name], merged[name], atol=1e-7)
        assert (export[name] != weight).any() == ("self_attn" in name and "_proj" in name), name


def test_dry_run_writes_nothing(
    model: Path,
    task: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, arguments(model, task, tmp_path / "out", "--dry-run")) == 0
    printed = capsys.readouterr().out
    assert "reference" in printed and "training rows: 8 of up to" in printed
    extra = ("base, to measure drift", "before the first update", "the KL of a step's")
    assert not any(text in printed for text in extra)
    more = ["--slow.reference_refresh", "3", "--slow.kl_placement", "reward"]
    more += ["--slow.objective", "dapo", "--slow.epochs", "2"]
    assert run(monkeypatch, arguments(model, task, tmp_path / "out", "--dry-run", *more)) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in extra)
    assert not (tmp_path / "out").exists()


RAISING = {
    "problems": "def problems(self, split): raise OSError('disk is gone')",
    "render": "def render(self, problem): raise KeyError('field')",
    "score": "def score(self, problem, text): raise ZeroDivisionError('oops')",
    "empty": "def problems(self, split): return []",
}


@pytest.mark.parametrize("where", RAISING)
def test_task_that_fails(
    where: str,
    model: Path,
    task: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / f"bad_{where}.py"
    bad.write_text(task.read_text() + "class Bad(Letters):\n    " + RAISING[where] + "\n")
    argv = arguments(model, task, tmp_path / "out", "--task.entry_point", f"{bad}:Bad")
    assert run(monkeypatch, argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "letters" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--slow.learning_rte", "1"], "slow.learning_rate"),
        (["--slow.learning_rate", "fast"], "slow.learning_rate"),
        (["--fast.population", "3"], "must divide rollout.group_size"),
        (["--model.path", "/no/such/folder"], "/no/such/folder"),
        (["--rollout.max_prompt_tokens", "2000"], "exceed the context"),
        (["--rollout.max_prompt_tokens", "12", "--fast.max_prompt_tokens", "8"], "takes"),
        (["--fast.metric_calls", "3"], "metric_calls"),
        (["--slow.lora_rank", "2", "--slow.lora_layers", "q_proj"], "fits no linear layer"),
        (["--slow.lora_rank", "2", "--slow.lora_layers", "("], "not a regular expression"),
        (["--slow.lora_rank", "2", "--slow.reference", "offload"], "nothing to offload"),
        (["--fast.max_prompt_tokens", "395"], "leave room"),
        (["--rollout.group_size", "1", "--fast.enabled", "false"], "at least 2"),
        (["--slow.enabled", "false", "--fast.enabled", "false"], "nothing would learn"),
        (["--parallel.mesh", "{data: 3}"], "parallel.mesh"),
        (["--fast.max_prompt_tokens", "2"], "more than fast.max_prompt_tokens = 2"),
        (["--task.entry_point", "no.such.module:Task"], "no.such.module"),
        (["--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_bad_input(
    more: list[str],
    message: str,
    model: Path,
    task: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, arguments(model, task, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_model_folder_without_tokenizer(
    task: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tiny_model_folder(tmp_path / "model", max_position_embeddings=1024)
    (folder / "tokenizer.json").unlink()
    assert run(monkeypatch, arguments(folder, task, tmp_path / "out")) == 2
    assert "has no tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_message_of_a_real_process(model: Path, task: Path, tmp_path: Path) -> None:
    argv = arguments(model, task, tmp_path / "out", "--fast.population", "3")
    process = start(argv)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in output and "must divide" in output


def test_paper_configs_and_their_variants_are_valid() -> None:
    from fst_jax.settings import difference, load_file

    for name in ("star_graph_qwen3_4b", "codeio_qwen3_8b"):
        config = load_file(ROOT / f"configs/{name}.yaml")
        assert (config.rollout.group_size, config.fast.population, config.fast.cycle_steps) == (
            8,
            8,
            6,
        )
        assert config.rollout.problems_per_step * config.rollout.group_size == 256
    quickstart = load_file(ROOT / "configs/quickstart.yaml")
    for name, key in (("rl_only", "fast.enabled"), ("prompt_only", "slow.enabled")):
        variant = load_file(ROOT / f"configs/quickstart_{name}.yaml")
        changed = [line.split(":")[0] for line in difference(quickstart, variant)]
        assert sorted(changed) == sorted(["name", key])

"""Whole runs that go wrong: what stops them, what they leave, what they say while they go on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fst_jax import replay as replaying
from fst_jax.replay import replay
from fst_jax.run_folder import by_step
from fst_jax.slow.learner import Learner
from fst_jax.slow.offending import load
from fst_jax.slow.packing import Batch, Pair
from tests.helpers import tiny_model_folder
from tests.test_train import run_in_halves, untimed
from tests.tiny_run import LETTERS, arguments, events, run

# Weights alone: nothing here is about prompts.
ALONE = ("--fast.enabled", "false", "--eval.every", "0", "--checkpoint.export_every", "0")
Run = Callable[..., int]


@pytest.fixture
def trained(model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`trained(*settings)` runs the tiny run in tmp_path with a guard's settings; its exit code."""

    def trained(*more: str, model: Path = model, task: Path = task) -> int:
        return run(monkeypatch, arguments(model, task, tmp_path, *ALONE, *more))

    return trained


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [event for event in events(folder) if event["event"] == "step"]


def codes(event: dict[str, Any]) -> list[str]:
    return [text.split(":")[0] for text in event.get("warnings", [])]


BLOWN_UP = ("--slow.learning_rate", "1e30", "--train.steps", "8", "--checkpoint.every", "1")


def test_losses_that_are_not_finite_stop_the_run_which_may_go_on(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first update ruins the weights: real NaNs from then on."""
    assert trained(*BLOWN_UP) == 2
    folder = tmp_path / "ci_tiny"
    found = steps_of(folder)
    assert [event["nonfinite_steps"] for event in found] == [0, 1, 1, 1]
    assert [event["loss"] is None for event in found] == [False, True, True, True]
    said = capsys.readouterr().err
    kept = folder / "nonfinite/4"
    assert said.startswith("error: the loss or its gradient was not finite in 3 steps in a row")
    assert "slow.learning_rate" in said and f"python -m fst_jax.replay {kept}" in said
    assert [path.name for path in by_step(folder / "checkpoints")][-2:] == ["1", "4"]

    lines = [json.loads(line) for line in (kept / "rollouts.jsonl").open()]
    assert len(lines) == 4 * 4
    wanted = {"problem", "question", "prompt", "text", "reward", "advantage", "ids", "logprobs"}
    assert all(wanted <= line.keys() for line in lines)
    assert all(len(line["ids"]) == len(line["logprobs"]) for line in lines)
    replayed = replay(kept)
    assert np.isnan(replayed["loss"]) and replayed["nonfinite_steps"] == 1

    # It has its patience again; a guard's settings are no other run's.
    assert trained(*BLOWN_UP, "--guards.patience", "2") == 2
    assert [event["step"] for event in steps_of(folder)] == [1, 2, 3, 4, 5, 6]
    assert "2 steps in a row, the last of them step 6" in capsys.readouterr().err
    assert {path.name for path in (folder / "nonfinite").iterdir()} == {"4", "6"}


def damaged(folder: Path) -> tuple[Path, int]:
    """A model whose embedding of one byte is not a number, and the token that it is of."""
    tiny_model_folder(folder, max_position_embeddings=1024)
    token = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["Z"]
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][token] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, token


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [(), ("--slow.lora_rank", "2"), ("--distill.enabled", "true")],
    ids=["weights", "lora", "distill"],
)
def test_a_step_that_is_not_finite_is_skipped_and_can_be_looked_at(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """Some completions hold the token that the model cannot read."""
    model, token = damaged(tmp_path / "model")
    moved: list[bool] = []
    step = Learner.step

    def watched(self: Learner, *minibatches: Any) -> dict[str, float]:
        before = jax.tree.map(jnp.copy, self.state.params)
        metrics = step(self, *minibatches)
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(self.state.params), strict=True)
        moved.append(any(not np.array_equal(*pair, equal_nan=True) for pair in pairs))
        return metrics

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", watched)
        settings = ("--train.steps", "8", *more)
        assert trained(*settings, "--guards.patience", "9", model=model) == 0
    skipped = [event["nonfinite_steps"] for event in steps_of(tmp_path / "ci_tiny")]
    assert 0 < sum(skipped) < 8 and moved == [not skip for skip in skipped]

    # With no patience the run stops at the first of them, whose loss can be computed again.
    assert trained(*settings, "--name", "again", "--guards.patience", "1", model=model) == 2
    folder, last = tmp_path / "again", skipped.index(1) + 1
    assert steps_of(folder)[-1]["step"] == last
    kept = folder / f"nonfinite/{last}"
    lines = [json.loads(line) for line in (kept / "rollouts.jsonl").open()]
    for line in lines:  # what follows the token has no log-probability
        assert (None in line["logprobs"]) == (token in line["ids"][:-1])
    assert any(None in line["logprobs"] for line in lines)
    replayed = replay(kept)
    assert np.isnan(replayed["loss"]) and replayed["nonfinite_steps"] == 1

    # Without the token the same weights have a loss.
    def mended(batch: Batch) -> Batch:
        tokens = np.where(batch.tokens == token, 1, batch.tokens)
        return batch._replace(tokens=tokens, behaviour=np.nan_to_num(batch.behaviour))

    (batch,) = load(kept)
    assert isinstance(batch, Pair) == ("--distill.enabled" in more)
    clean = Pair(*map(mended, batch)) if isinstance(batch, Pair) else mended(batch)
    monkeypatch.setattr(replaying, "load", lambda _: [clean])
    assert np.isfinite(replay(kept)["loss"])


@pytest.mark.slow
def test_a_ceiling_stops_the_run_and_leaves_what_was_before(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--train.steps", "5", "--checkpoint.every", "1")
    low = ("--guards.max_kl", "1e-6", "--guards.patience", "2")
    assert trained(*common, *low) == 2
    folder = tmp_path / "ci_tiny"
    found = steps_of(folder)
    assert [event["kl_k3"] > 1e-6 for event in found] == [False, True, True]
    said = capsys.readouterr().err
    assert "kl_k3 was above guards.max_kl = 1e-06 in 2 steps in a row" in said
    assert "slow.kl_coefficient" in said
    assert by_step(folder / "checkpoints")[-1].name == "1"
    assert not (folder / "nonfinite").exists()
    # Without the ceiling it goes on from there, as if there had been none.
    assert trained(*common, "--guards.max_kl", "null") == 0
    assert trained(*common, "--name", "unguarded") == 0
    assert untimed(folder) == untimed(tmp_path / "unguarded")

    argv = ("--name", "other", "--guards.max_mismatch", "1e-20", "--guards.patience", "1")
    assert trained(*common, *argv) == 2
    assert "mismatch_k3 was above guards.max_mismatch = 1e-20 in a step" in capsys.readouterr().err


@pytest.mark.slow
def test_a_resumed_run_warns_where_an_uninterrupted_one_does(
    model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most completions of a random model are cut off; killed in the step before that is told."""
    argv = arguments(model, task, tmp_path / "whole", *ALONE, "--train.steps", "7")
    assert run(monkeypatch, argv) == 0
    whole = tmp_path / "whole/ci_tiny"
    assert [codes(event) for event in steps_of(whole)] == [[]] * 4 + [["truncation"]] * 3
    argv[argv.index(str(tmp_path / "whole"))] = str(tmp_path / "halves")
    run_in_halves(monkeypatch, argv, step=4)
    assert untimed(tmp_path / "halves/ci_tiny") == untimed(whole)


# Rewards that a policy can hack.  Answers of the problems differ, so that no answer fits all.
HACKED = LETTERS.replace('"e")', "str(i))").replace("float(good)", "{reward}")
LENGTH = "min(1.0, len(text) / 40)"
CONSTANT = "0.5 * sum(letter == 'e' for letter in text) / max(len(text), 4)"
NOTHING = "0.0"


def fond_of_stopping(folder: Path) -> Path:
    """A model of short completions: what all embeddings share speaks for the stop token."""
    tiny_model_folder(folder, max_position_embeddings=1024)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, 0] = 4.0
    tensors["lm_head.weight"][2] = 0.0
    tensors["lm_head.weight"][2, 0] = 2.5  # a quarter of the probability
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "settings", "hints"),
    [
        (LENGTH, ("--rollout.max_new_tokens", "32", "--train.steps", "12"), {"length_explosion"}),
        (
            CONSTANT,
            ("--rollout.max_new_tokens", "4", "--train.steps", "40"),
            {"same_answers", "entropy_collapse"},
        ),
        (NOTHING, ("--train.steps", "31"), {"no_variance"}),
    ],
)
def test_hacks_are_told(
    trained: Run,
    model: Path,
    task: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    reward: str,
    settings: tuple[str, ...],
    hints: set[str],
) -> None:
    hacked = tmp_path / "letters.py"
    hacked.write_text(HACKED.replace("{reward}", reward))
    hacked.with_suffix(".yaml").write_text(task.with_suffix(".yaml").read_text())
    if reward == LENGTH:
        model = fond_of_stopping(tmp_path / "model")
    assert trained(*settings, "--slow.learning_rate", "1e-2", model=model, task=hacked) == 0
    found = steps_of(tmp_path / "ci_tiny")
    told = {code for event in found for code in codes(event)}
    assert hints <= told <= hints | {"truncation"}
    printed = capsys.readouterr().out
    for code in hints:
        first = next(event for event in found if code in codes(event))
        assert first["step"] > 5
        assert f"warning: {code}: " in printed

"""Whole runs of FST-distill on a tiny model: who samples, who is asked, what is evaluated."""

from pathlib import Path

import pytest

from fst_jax.fast.pool import Pool
from fst_jax.reporting.runs import read
from tests.test_train import run_in_halves, untimed
from tests.tiny_run import arguments, events, run, samples

DISTILL = ("--distill.enabled", "true")


@pytest.fixture(scope="module")
def distilled(model: Path, task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one complete run with a teacher that stays the base."""
    output = tmp_path_factory.mktemp("distilled")
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(monkeypatch, arguments(model, task, output, *DISTILL)) == 0
    return output / "ci_tiny"


def test_the_student_has_no_prompt(distilled: Path) -> None:
    found = events(distilled)
    steps = [event for event in found if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4]
    for event in steps:
        assert {"distill_kl", "reward_mean", "entropy", "grad_norm", "flops"} <= event.keys()
        assert event["distill_kl"] > 0 and event["nonfinite_steps"] == 0
        assert event["mismatch_k3"] < 1e-6  # the sampler is the student
        assert "kl_k3" not in event  # to a reference, of which there is none
    assert steps[-1]["rollouts_total"] == 4 * 4 * 4
    for step in (1, 2, 3, 4):
        trained = [line for line in samples(distilled, step) if line["event"] == "step"]
        assert {line["prompt"] for line in trained} == {""}
    looks = [(e["step"], e["weights"], e["context"]) for e in found if e["event"] == "eval"]
    trained = [(s, "trained", c) for s in (2, 4) for c in ("none", "seed", "pool")]
    base = [(0, "base", "none"), (0, "base", "seed"), (4, "base", "pool")]
    assert sorted(looks) == sorted(trained + base)
    moved = [e["kl_to_base"] for e in found if e["event"] == "eval" and e["weights"] == "trained"]
    assert min(moved) > 0
    counts = [event["compiles"] for event in steps]
    assert counts[3] == counts[2]


def test_the_prompts_are_those_of_evolution_alone(
    distilled: Path, model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that stays the base reads them, whatever the student has become."""
    argv = arguments(model, task, tmp_path, "--slow.enabled", "false")
    assert run(monkeypatch, argv) == 0
    for step in (0, 2):
        found, alone = (
            Pool.load(folder / f"pool/{step}.json") for folder in (distilled, tmp_path / "ci_tiny")
        )
        assert found == alone


def test_the_report_knows_it(distilled: Path) -> None:
    read_back = read(distilled)
    assert (read_back.arm, read_back.own_context) == ("distill", "none")
    curve = [(event.step, event.weights, event.context) for event in read_back.curve()]
    assert curve == [(0, "base", "none"), (2, "trained", "none"), (4, "trained", "none")]


@pytest.mark.slow
def test_a_refreshed_teacher_resumes_exactly(
    model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in step 3, after a checkpoint whose teacher is no longer the base."""
    more = [*DISTILL, "--distill.teacher_refresh", "2", "--distill.student_prompt", "seed"]
    more += ["--checkpoint.every", "1", "--eval.every", "0"]
    assert run(monkeypatch, arguments(model, task, tmp_path / "whole", *more)) == 0
    whole = tmp_path / "whole/ci_tiny"
    steps = [event for event in events(whole) if event["event"] == "step"]
    assert len(steps) == 4
    contexts = {e["context"] for e in events(whole) if e["event"] == "eval"}
    assert contexts == {"seed", "pool"}
    assert {p["prompt"] for p in samples(whole, 1) if p["event"] == "step"} == {"Answer."}
    run_in_halves(monkeypatch, arguments(model, task, tmp_path / "halves", *more), step=3)
    assert untimed(tmp_path / "halves/ci_tiny") == untimed(whole)


def test_a_given_prompt_alone_may_be_distilled(
    model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without evolution the teacher has the seed prompt, the student none."""
    more = [*DISTILL, "--fast.enabled", "false", "--train.steps", "2", "--eval.every", "0"]
    assert run(monkeypatch, arguments(model, task, tmp_path, *more)) == 0
    found = events(tmp_path / "ci_tiny")
    steps = [event for event in found if event["event"] == "step"]
    assert all(event["distill_kl"] > 0 for event in steps)
    looks = [(e["weights"], e["context"]) for e in found if e["event"] == "eval"]
    assert looks == [(w, c) for w in ("base", "trained") for c in ("none", "seed")]


def test_dry_run(
    model: Path,
    task: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = arguments(model, task, tmp_path / "out", "--dry-run", *DISTILL)
    assert run(monkeypatch, [*argv, "--distill.teacher_refresh", "3"]) == 0
    printed = capsys.readouterr().out
    for text in ("which the teacher alone is given", "  teacher  ", "base, to measure drift"):
        assert text in printed
    assert "(n = 4)" in printed and not (tmp_path / "out").exists()

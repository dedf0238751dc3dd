"""Metrics as JSON lines, on the console, and through the optional packages."""

import io
import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from fst_jax.config import Config, TrackingSettings
from fst_jax.errors import ConfigError, RunError
from fst_jax.tracking import (
    ConsoleTracker,
    JsonlTracker,
    TensorBoardTracker,
    Trackers,
    WandbTracker,
    duration,
    extra_trackers,
    numbers,
    plain,
)


def test_jsonl_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    values = {
        "reward_mean": np.float32(0.25),
        "loss": jnp.float32(0.5),
        "tokens": np.int64(3),
        "kl_k1": float("nan"),
        "ratio_max": jnp.array(jnp.inf),
        "seconds": {"train": np.float64(1.5)},
        "pool": [{"id": 1, "parent": None, "scores": np.array([1.0, np.nan])}],
        "context": "größer",
        "skipped": np.bool_(True),
    }
    tracker.log("step", np.int32(2), values)
    # Readable before the file is closed.
    line = path.read_text(encoding="utf-8")
    assert line.endswith("\n") and "größer" in line
    record = json.loads(line)
    assert list(record)[:3] == ["event", "step", "time_s"]
    assert record.pop("time_s") >= 0
    assert record == {
        "event": "step",
        "step": 2,
        "reward_mean": 0.25,
        "loss": 0.5,
        "tokens": 3,
        "kl_k1": None,
        "ratio_max": None,
        "seconds": {"train": 1.5},
        "pool": [{"id": 1, "parent": None, "scores": [1.0, None]}],
        "context": "größer",
        "skipped": True,
    }
    tracker.close()


def test_jsonl_resumes_at_its_offset(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonlTracker(path)
    first.log("step", 1, {"loss": 1.0})
    offset, elapsed_s = first.offset, first.elapsed_s
    assert offset == path.stat().st_size
    first.log("step", 2, {"loss": 2.0})
    first.close()
    again = JsonlTracker(path, offset, elapsed_s + 100.0)
    assert again.offset == offset
    again.log("step", 2, {"loss": 3.0})
    again.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in records] == [(1, 1.0), (2, 3.0)]
    assert records[1]["time_s"] >= 100.0


def test_a_new_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("left over")
    JsonlTracker(path).close()
    assert path.read_text() == ""


def test_jsonl_refuses_a_file_that_lost_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("x")
    with pytest.raises(RunError, match="has 1 bytes, but had 9"):
        JsonlTracker(path, offset=9)
    assert path.read_text() == "x"
    with pytest.raises(RunError, match="cannot write"):
        JsonlTracker(tmp_path / "none" / "metrics.jsonl")


def test_console_lines():
    stream = io.StringIO()
    tracker = ConsoleTracker(20, stream)
    seconds = {"rollout": 1.0, "train": 1.0}
    step = {"reward_mean": 0.41, "kl_k3": 0.00123456, "tokens_generated": 1624, "seconds": seconds}
    tracker.log("step", 3, step)
    pool = [{"id": 0, "mean_score": 0.25}, {"id": 1, "mean_score": np.float32(0.5)}]
    evolve = {"cycle": 1, "proposals": 4, "accepted": 1, "pool": pool, "metric_calls": 96}
    tracker.log("evolve", 3, evolve)
    scores = {"mean_at_k": 0.5, "best_at_k": 1.0, "k": 4, "kl_to_base": None}
    tracker.log("eval", 3, {"task": "star_graph", "weights": "base", "context": "pool", **scores})
    tracker.log("stop", 3, {"reason": "signal", "left": 2})
    assert stream.getvalue().splitlines() == [
        "step 3/20  reward 0.41  kl 0.001235  tok/s 812  eta 0s",
        "evolve 3  cycle 1  pool 2  best 0.5  accepted 1 of 4  rollouts 96",
        "eval 3  star_graph (base weights, pool)  mean@4 0.5  best@4 1",
        "stop 3  left 2",
    ]


def test_console_prints_a_hint_when_it_begins():
    stream = io.StringIO()
    tracker = ConsoleTracker(20, stream)
    both = ["truncation: 60% of …", "no_variance: all …"]
    for step, warnings in enumerate(([], both[:1], ["truncation: 70% of …"], both, [], both[:1])):
        tracker.log("step", step, {"warnings": warnings} if warnings else {})
    lines = [line for line in stream.getvalue().splitlines() if "warning" in line]
    assert lines == [f"  warning: {text}" for text in (both[0], both[1], both[0])]


def test_console_bears_missing_values():
    stream = io.StringIO()
    tracker = ConsoleTracker(2, stream)
    for event in ("step", "evolve", "eval", "other"):
        tracker.log(event, 1, {})
    tracker.log("step", 3, {"reward_mean": float("nan"), "seconds": {}})
    assert len(stream.getvalue().splitlines()) == 5
    assert "nan" not in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (42.4, "42s"), (59.6, "1m00s"), (190, "3m10s"), (7500, "2h05m")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_numbers_and_plain():
    values = plain({"a": np.float32(1), "b": {"c": 2, "d": "text"}, "e": [1], "f": None, 3: (1,)})
    assert values == {"a": 1.0, "b": {"c": 2, "d": "text"}, "e": [1], "f": None, "3": [1]}
    assert dict(numbers(values)) == {"a": 1.0, "b/c": 2}


def test_trackers_pass_events_on():
    class Listener:
        def __init__(self) -> None:
            self.heard: list = []

        def log(self, event, step, values):
            self.heard.append((event, step, values))

        def close(self):
            self.heard.append("closed")

    listeners = [Listener(), Listener()]
    trackers = Trackers(listeners)
    trackers.log("step", 1, {"a": 2})
    trackers.close()
    for listener in listeners:
        assert listener.heard == [("step", 1, {"a": 2}), "closed"]


def test_extra_trackers_that_are_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert extra_trackers(Config(), tmp_path, {}) == []
    for settings in (TrackingSettings(tensorboard=True), TrackingSettings(wandb_project="p")):
        with pytest.raises(ConfigError, match="pip install 'fst_jax\\[track\\]'"):
            extra_trackers(Config(tracking=settings), tmp_path, {})


def test_tensorboard(tmp_path, monkeypatch):
    written, opened = [], []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            opened.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    tracker = TensorBoardTracker(tmp_path, first_step=5)
    tracker.log("step", 5, {"loss": np.float32(0.5), "seconds": {"train": 2}, "note": "x"})
    tracker.log("eval", 5, {"task": "star_graph", "context": "seed", "mean_at_k": 1.0})
    tracker.close()
    assert opened == [(str(tmp_path), 5)]
    assert written == [
        ("step/loss", 0.5, 5),
        ("step/seconds/train", 2, 5),
        ("eval/star_graph/seed/mean_at_k", 1.0, 5),
        "closed",
    ]


def test_wandb_goes_on_in_the_same_page(tmp_path, monkeypatch):
    calls = []

    class Page:
        id = "abc"

        def log(self, values, step):
            calls.append((values, step))

        def finish(self):
            calls.append("finished")

    def init(**options):
        calls.append(options["id"])
        return Page()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for _ in range(2):
        tracker = WandbTracker("project", "run", tmp_path / "wandb", {"seed": 0})
        tracker.log("step", 1, {"loss": np.float32(0.5), "pool": [1]})
        tracker.close()
    once = [({"step/loss": 0.5}, 1), "finished"]
    assert calls == [None, *once, "abc", *once]

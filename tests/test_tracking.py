"""Metrics as JSON lines, on the console, and through the optional packages."""

import io
import json
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from fst_jax.config import Config, TrackingSettings
from fst_jax.errors import ConfigError, RunError
from fst_jax.tracking import (
    ConsoleTracker,
    JsonlTracker,
    Pace,
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
        "step 3/20  reward 0.41  kl 0.001235  tok/s 812",
        "evolve 3  cycle 1  pool 2  best 0.5  accepted 1 of 4  rollouts 96",
        "eval 3  star_graph (base weights, pool)  mean@4 0.5  best@4 1",
        "stop 3  left 2",
    ]


def test_time_left_is_that_of_steps_after_the_first(monkeypatch):
    times = iter([100.0, 110.0, 114.0, 130.0])
    monkeypatch.setattr("fst_jax.tracking.time.monotonic", lambda: next(times))
    pace = Pace(8)
    assert [pace.left_s(step) for step in (5, 6, 7, 8)] == [None, 20.0, 7.0, 0.0]


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

        def show(self, name, step, texts):
            self.heard.append((name, step, texts))

        def close(self):
            self.heard.append("closed")

    listeners = [Listener(), Listener()]
    trackers = Trackers(listeners)
    trackers.log("step", 1, {"a": 2})
    trackers.show("prompts", 1, ["Answer."])
    trackers.close()
    for listener in listeners:
        assert listener.heard == [("step", 1, {"a": 2}), ("prompts", 1, ["Answer."]), "closed"]


def test_extra_trackers_that_are_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert extra_trackers(Config(), tmp_path, {}) == []
    for settings in (TrackingSettings(tensorboard=True), TrackingSettings(wandb_project="p")):
        with pytest.raises(ConfigError, match="pip install 'fst_jax\\[track\\]'"):
            extra_trackers(Config(tracking=settings), tmp_path, {})


def logged(tracker):
    """The same events for every tracker."""
    tracker.log("step", 5, {"loss": np.float32(0.5), "seconds": {"train": 2}, "note": "x"})
    tracker.log("eval", 5, {"task": "star_graph", "context": "seed", "mean_at_k": 1.0})
    tracker.show("prompts", 5, ["Be *brief*.\n\n  <b>Now</b>", "Löse es."])
    tracker.close()


def tensorboard_events(folder):
    """What TensorBoard finds, file by file: TFRecords of 8 bytes' length, 4 of CRC, data, CRC."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event()
            event.ParseFromString(data[12 : 12 + size])
            yield event
            data = data[16 + size :]


def test_tensorboard(tmp_path):
    logged(TensorBoardTracker(tmp_path, first_step=5))
    events = list(tensorboard_events(tmp_path))
    values = {v.tag: v for event in events for v in event.summary.value}
    scalars = {tag: v.simple_value for tag, v in values.items() if v.HasField("simple_value")}
    assert scalars == {
        "step/loss": 0.5,
        "step/seconds/train": 2.0,
        "eval/star_graph/seed/mean_at_k": 1.0,
    }
    # Markdown's code blocks: shown as they stand, the markup too.
    (text,) = values["prompts/text_summary"].tensor.string_val
    first, second = text.decode().split("\n\n---\n\n")
    assert first == "    Be *brief*.\n    \n      <b>Now</b>" and second == "    Löse es."
    # What an earlier process wrote from step 5 on is hidden.
    assert [e.step for e in events if e.session_log.status == e.session_log.START] == [5]
    assert {event.step for event in events if event.summary.value} == {5}


@pytest.fixture
def wandb_offline(monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield wandb
    wandb.teardown()


def wandb_records(path):
    """What is in W&B's own file: after 7 bytes, records as in the logs of LevelDB.

    Blocks of 32 KiB; a piece has 4 bytes of CRC, 2 of length, 1 of kind (all of a record, its
    first piece, one between, its last).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, pieces = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        pieces += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(pieces)
            pieces = b""
            yield record


def test_wandb_offline(tmp_path, wandb_offline):

    for _ in range(2):  # a run that was interrupted, and went on
        logged(WandbTracker("project", "run", tmp_path, {"seed": 3}))
    wandb_offline.teardown()  # its own process has written everything
    pages, rows, shown = set(), [], []
    for path in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb")):
        for record in wandb_records(path):
            if record.run.run_id:
                pages.add(record.run.run_id)
            if record.history.item:
                items = {i.key or "/".join(i.nested_key): i for i in record.history.item}
                rows.append({key: json.loads(item.value_json) for key, item in items.items()})
        shown += [page.read_text() for page in path.parent.glob("files/media/html/*.html")]
    assert len(pages) == 1 and (tmp_path / "page_id").read_text() in pages
    assert len(rows) == 2
    for row in rows:
        assert (row["step/loss"], row["eval/star_graph/seed/mean_at_k"]) == (0.5, 1.0)
        assert row["prompts/_type"] == "html-file"
    assert len(shown) == 2
    assert all("&lt;b&gt;Now&lt;/b&gt;" in page and "Löse es." in page for page in shown)

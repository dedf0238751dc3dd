"""Two real processes: what process 0 decides holds in both, and they train as one does."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fst_jax.config import ParallelSettings
from fst_jax.errors import ConfigError, RunError, TaskError
from fst_jax.parallel.distributed import agreed, any_of, is_main, start, whole
from fst_jax.parallel.mesh import make_mesh
from fst_jax.parallel.sharding import put
from fst_jax.settings import load
from tests.processes import call, free_port, run_together
from tests.tiny_run import arguments, events


def test_one_process_decides_for_itself():
    start(ParallelSettings())
    assert not jax.distributed.is_initialized()
    assert is_main() and agreed(lambda: 3) == 3 and any_of(True) and not any_of(False)
    np.testing.assert_array_equal(whole(np.arange(3)), np.arange(3))


def decide_together(index: str, port: str) -> None:
    settings = ParallelSettings({"fsdp": 4}, f"127.0.0.1:{port}", 2, int(index))
    start(settings)
    start(settings)  # the second one does nothing
    assert jax.process_count() == 2 and is_main() == (index == "0")
    for size in (0, 10, 5000):
        assert agreed(lambda size=size: (int(index), "ü" * size)) == (0, "ü" * size)

    def refuse() -> None:
        raise TaskError(f"process {index} refuses")

    with pytest.raises(TaskError, match="process 0 refuses"):
        agreed(refuse)
    assert any_of(index == "1") and not any_of(False)
    values = np.arange(24.0).reshape(8, 3)
    placed = put({"x": values}, NamedSharding(make_mesh(settings), PartitionSpec("fsdp")))["x"]
    assert not placed.is_fully_addressable and placed.addressable_data(0).shape == (2, 3)
    np.testing.assert_array_equal(whole(placed), values)
    np.testing.assert_array_equal(whole(placed[5]), values[5])
    jax.distributed.shutdown()


def test_two_processes_agree(tmp_path: Path):
    port = free_port()
    run_together([call(decide_together, index, port) for index in range(2)], tmp_path, devices=2)


def test_processes_that_do_not_come_are_an_error():
    settings = ParallelSettings({}, f"127.0.0.1:{free_port()}", 2, 1, start_timeout_s=1.0)
    with pytest.raises(RunError, match="did not come together"):
        start(settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"coordinator": "somewhere"}, "parallel.coordinator: must be auto or the host:port"),
        ({"coordinator": "a:1"}, "parallel.processes: goes with a host:port"),
        ({"processes": 2}, "parallel.processes: goes with a host:port"),
        ({"coordinator": "auto", "process": 0}, "parallel.process: goes with a host:port"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "parallel.process: must be from 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, said: str):
    given = [text for key, value in settings.items() for text in (f"--parallel.{key}", str(value))]
    with pytest.raises(ConfigError, match=said):
        load(given, "train", "")


@pytest.mark.slow
def test_two_processes_train_as_one(model: Path, task: Path, tmp_path: Path):
    """The whole of Algorithm 1, then once more for longer, from the checkpoint."""

    def command(output: str, steps: int, *more: object) -> list[object]:
        sizes = ["--train.steps", str(steps), "--eval.every", "0", "--parallel.mesh.fsdp", "2"]
        own = arguments(model, task, tmp_path / output, *sizes)
        return ["-m", "fst_jax.train", *own, *more]

    run_together([command("one", 3)], tmp_path, devices=2)
    for steps in (2, 3):  # the second goes on where the first stopped
        port = free_port()
        together = ["--parallel.coordinator", f"127.0.0.1:{port}", "--parallel.processes", 2]
        both = [command("two", steps, *together, "--parallel.process", i) for i in range(2)]
        printed = run_together(both, tmp_path, devices=1)
        assert "step 2/2" in printed[0] or steps == 3
        assert "reward" not in printed[1]  # process 0 speaks for both

    timings = {"time_s", "seconds", "compiles", "mfu"}
    one, two = (
        [
            {key: value for key, value in event.items() if key not in timings}
            for event in events(tmp_path / output / "ci_tiny")
            if event["event"] != "eval" or event["step"] in (0, 3)
        ]
        for output in ("one", "two")
    )
    two = [event for event in two if event["event"] != "eval" or event in one]
    assert len(one) == len(two)
    for ours, theirs in zip(two, one, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            exact = not isinstance(value, float)
            assert ours[name] == (value if exact else pytest.approx(value, rel=1e-5)), name
    assert (tmp_path / "two/ci_tiny/export/model.safetensors").is_file()

"""Checkpoints at matched reward and matched steps, from curves written by hand."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.errors import RunError
from fst_jax.reproduction.origin import LEVEL, export, first_reaching
from tests.reproduction.records import write_run

# RL peaks at 0.80 (step 24), FST at 0.90; the level is 0.95 × 0.80 = 0.76.
RL = [0.0, 0.1, 0.3, 0.77, 0.80, 0.78]
FST = [0.0, 0.5, 0.76, 0.90, 0.85, 0.88]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {
        "rl": write_run(tmp_path / "main/star_graph.rl.seed0", "rl", RL, (6, 12, 18, 24, 30)),
        "fst": write_run(tmp_path / "main/star_graph.fst.seed0", "fst", FST, (6, 12, 18, 24)),
    }


def test_matched_reward_is_the_first_crossing(folders: dict[str, Path]) -> None:
    assert export("rl", "reward", folders) == folders["rl"] / "exports/18"
    assert export("fst", "reward", folders) == folders["fst"] / "exports/12"


def test_matched_steps_are_the_last_that_both_have(folders: dict[str, Path]) -> None:
    for arm, folder in folders.items():
        assert export(arm, "step", folders) == folder / "exports/24"


def test_the_nearest_export_is_taken_where_steps_differ(tmp_path: Path) -> None:
    folders = {
        "rl": write_run(tmp_path / "main/star_graph.rl.seed0", "rl", RL, (10, 20)),
        "fst": write_run(tmp_path / "main/star_graph.fst.seed0", "fst", FST, (5, 30)),
    }
    assert export("rl", "reward", folders) == folders["rl"] / "exports/20"
    assert export("fst", "reward", folders) == folders["fst"] / "exports/5"
    with pytest.raises(RunError, match="no export in common"):
        export("rl", "step", folders)


def test_a_run_without_exports_says_what_to_do(tmp_path: Path) -> None:
    folders = {arm: write_run(tmp_path / f"main/a.{arm}.seed0", arm, RL) for arm in ("rl", "fst")}
    with pytest.raises(RunError, match="remove the folder to run it again"):
        export("rl", "reward", folders)


def test_an_unfinished_export_is_no_export(folders: dict[str, Path]) -> None:
    (folders["rl"] / "exports/24/config.json").unlink()
    assert export("fst", "step", folders).name == "18"


rewards = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(rewards, rewards)
def test_both_arms_reach_the_level_and_not_before(one: list[float], other: list[float]) -> None:
    curves = {
        name: list(enumerate(values, start=1)) for name, values in (("rl", one), ("fst", other))
    }
    level = LEVEL * min(max(one), max(other))
    for name, values in (("rl", one), ("fst", other)):
        step = first_reaching(name, curves)
        assert values[step - 1] >= level
        assert all(value < level for value in values[: step - 1])

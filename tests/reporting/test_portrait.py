"""What the page says of one run: outcome, hints, prompts in use, costs and commands."""

import math
from pathlib import Path

import numpy as np
import pytest

from fst_jax.reporting.cost_table import cost_table, reflection
from fst_jax.reporting.portrait import hints, portrait
from fst_jax.reporting.runs import Run, read
from fst_jax.reporting.training import rounds_of, running_mean, spent_until
from tests.reporting.hard_run import write_hard_run
from tests.reporting.synthetic import Plan, flat, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read(write_hard_run(tmp_path_factory.mktemp("runs") / "hard"))


def test_outcome(run: Run) -> None:
    change, spent = portrait(run).outcome
    assert "mean@4 went from 10.0\u00a0% under the seed prompt to 70.0\u00a0%" in change
    assert "8,680 rollouts, 7,680 of them for RL groups and 1,000 for prompt evolution" in spent


def test_hints_are_told_once_with_their_steps(run: Run) -> None:
    (hint,) = hints(run)
    assert hint.text.startswith("truncation: 61 %")
    assert (hint.first, hint.last, hint.steps) == (20, 39, 20)


def test_prompts_in_use_come_as_they_are_ranked(run: Run) -> None:
    shown = portrait(run)
    last = run.pools()[-1]
    assert [member.id for member in shown.in_use] == last["active"]
    generations = [generation for generation, _ in shown.family]
    assert generations == list(range(10))
    assert [member.parent_number for _, member in shown.family] == [None, *range(1, 10)]


def test_what_became_of_proposals(run: Run) -> None:
    assert portrait(run).proposals.startswith(
        "10 fast rounds proposed 40 edits and kept 10; refused: over budget 20, "
    )


def test_reflection_is_counted_and_priced(run: Run) -> None:
    assert reflection(run) == pytest.approx(
        {
            "reflection_prompt_tokens": 512_340,
            "reflection_completion_tokens": 23_450,
            "reflection_cost": 0.182,
        }
    )
    table = cost_table([run])
    shown = dict(zip(table.columns, table.rows[0].values, strict=True))
    assert (shown["reflection calls"], shown["… tokens asked"]) == ("30", "512,340")
    assert shown["… price"] == "0.182"


def test_a_reflection_without_prices_is_not_free(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run", Plan("fst")))
    assert math.isnan(reflection(run)["reflection_cost"])
    table = cost_table([run])
    assert table.rows[0].values[table.columns.index("… price")] == "not priced"


def test_no_columns_about_a_reflection_that_there_was_not(tmp_path: Path) -> None:
    table = cost_table([read(write_run(tmp_path / "run", Plan("rl")))])
    assert not [name for name in table.columns if "reflection" in name or "price" in name]


@pytest.mark.parametrize(("stop", "first"), [(None, "Go on for as long again"), (20, "Go on, in")])
def test_commands(tmp_path: Path, stop: int | None, first: str) -> None:
    folder = write_run(tmp_path / "a run", Plan("fst", stop=stop))
    (what, command), (_, again) = portrait(read(folder)).commands
    assert what.startswith(first)
    assert ("--train.steps 120" in command) == (stop is None)
    assert f"--config '{folder}/config.yaml'" in command and again.endswith("--name 'a run'_again")


def test_rewards_stand_at_every_rollout_sampled_until_then(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run", Plan("fst", own=flat(0.3), steps=12)))
    x, y = spent_until(run, "reward_mean")
    assert x[0] == 128 + 100 and x[-1] == 12 * 128 + 2 * 100 and set(y) == {0.5}
    assert rounds_of(run) == [0.0, 6 * 128 + 100]


def test_a_running_mean_keeps_a_line_and_its_length() -> None:
    values = np.arange(100.0)
    smooth = running_mean(values)
    assert len(smooth) == 100 and list(smooth[5:-5]) == pytest.approx(values[5:-5])

"""The table of costs: what each arm of the main experiments, and every other run, has spent.

Seconds leave evaluation out.  Reflection is what a language model was asked for edits: its calls,
tokens of requests and answers, and their price where `fast.lm_price_in` and `fast.lm_price_out`
are set.  Columns that are nothing in all rows are left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fst_jax.reporting.claims import cost
from fst_jax.reporting.runs import ARMS, Run
from fst_jax.reporting.select import chosen, tasks_of
from fst_jax.reporting.style import NAMES

_COLUMNS = {
    "seconds": "seconds",
    "seconds_train": "… training",
    "seconds_rollout": "… sampling",
    "seconds_evolve": "… prompt evolution",
    "rollouts": "RL rollouts",
    "evolve_rollouts": "prompt rollouts",
    "tokens_generated": "tokens generated",
    "tokens_trained": "tokens trained on",
    "reflection_calls": "reflection calls",
    "reflection_prompt_tokens": "… tokens asked",
    "reflection_completion_tokens": "… tokens answered",
    "reflection_cost": "… price",
}


@dataclass(frozen=True)
class Spending:
    """One row; `values` has a text for each column of the table."""

    task: str
    series: str
    values: Sequence[str]


@dataclass(frozen=True)
class CostTable:
    """Columns with their units, and a row for each series."""

    columns: Sequence[str]
    rows: Sequence[Spending]


def cost_table(runs: Sequence[Run]) -> CostTable:
    """Mean cost of the arms of the main group, then every run that is no experiment."""
    series = [
        (task, NAMES[arm], of_arm)
        for task in tasks_of(runs, "main")
        for arm in ARMS
        if (of_arm := chosen(runs, "main", task, arm, ""))
    ]
    series += [(run.task, f"{NAMES[run.arm]} ({run.name})", [run]) for run in runs if not run.group]
    spent = [(task, name, _mean([_all_of(run) for run in of])) for task, name, of in series]
    shown = [key for key in _COLUMNS if any(values[key] for _, _, values in spent)]
    return CostTable(
        [_COLUMNS[key] for key in shown],
        [
            Spending(task, name, [_text(key, values[key]) for key in shown])
            for task, name, values in spent
        ],
    )


def reflection(run: Run) -> dict[str, float]:
    """Tokens of requests and answers of the reflection model, and their price, NaN if unknown."""

    def total(key: str) -> float:
        return float(sum(event.get(key) or 0 for event in run.rounds))

    asked = [event for event in run.rounds if event["reflection_calls"]]
    priced = all(event.get("reflection_cost") is not None for event in asked)
    return {
        "reflection_prompt_tokens": total("reflection_prompt_tokens"),
        "reflection_completion_tokens": total("reflection_completion_tokens"),
        "reflection_cost": total("reflection_cost") if priced else math.nan,
    }


def _all_of(run: Run) -> dict[str, float]:
    return cost(run) | reflection(run)


def _mean(spent: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: sum(each[key] for each in spent) / len(spent) for key in spent[0]}


def _text(key: str, value: float) -> str:
    if math.isnan(value):
        return "not priced"
    return f"{value:,.4g}" if key == "reflection_cost" else f"{value:,.0f}"

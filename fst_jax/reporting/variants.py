"""Variants of the method: ablations, reflectors, few problems, learning rates.

A variant is measured by its final accuracy (mean of the last two evaluations) and by the mean
height of its learning curve.  The default it is compared with is the group's own run without a
variant, or else the main group's runs of the same seeds, cut to the length of the variants.
"""

from collections.abc import Sequence
from typing import Any

from fst_jax.reporting.runs import ARMS, Run
from fst_jax.reporting.select import chosen, final
from fst_jax.reporting.statistics import area, mean_interval, rounded

DEFAULT = "default"


def by_variant(runs: Sequence[Run], group: str, task: str, arm: str) -> dict[str, list[Run]]:
    """Runs of an arm in a group by variant name, the default first and the rest in order."""
    own = chosen(runs, group, task, arm)
    found: dict[str, list[Run]] = {}
    compared = own or chosen(runs, group, task)
    seeds = {run.seed for run in compared}
    steps = min((run.planned_steps for run in compared), default=0)
    default = [run for run in own if not run.variant] or [
        run.until(steps)
        for run in chosen(runs, "main", task, arm, "")
        if run.seed in seeds and run.planned_steps >= steps
    ]
    if default:
        found[DEFAULT] = default
    for name in sorted({run.variant_name for run in own} - {""}, key=natural):
        found[name] = chosen(own, variant=name)
    return found


def natural(name: str) -> tuple[Any, ...]:
    """Sorts `train_size=8` before `train_size=16`: numbers by value, text by letters."""
    parts: list[tuple[int, Any]] = []
    for part in name.replace("+", "=").split("="):
        try:
            parts.append((0, float(part)))
        except ValueError:
            parts.append((1, part))
    return tuple(parts)


def variant_claims(runs: Sequence[Run], group: str, task: str) -> dict[str, Any]:
    """By arm and variant: final accuracy, mean of the curve, final minus the default's.

    FST also has its final accuracy minus that of each other arm under the same variant.
    """
    result: dict[str, Any] = {}
    finals: dict[tuple[str, str], dict[int, float]] = {}  # by arm and variant, then by seed
    for arm in ARMS:
        variants = by_variant(runs, group, task, arm)
        for name, of_variant in variants.items():
            own = finals[arm, name] = {run.seed: final(run) for run in of_variant}
            entry = {
                "final": mean_interval(list(own.values())).to_json(),
                "area": mean_interval([curve_area(run) for run in of_variant]).to_json(),
            }
            others = {"default": (arm, DEFAULT)} if name != DEFAULT else {}
            if arm == "fst":
                others |= {other: (other, name) for other in ARMS if other != arm}
            for label, other in others.items():
                theirs = finals.get(other, {})
                differences = [own[seed] - theirs[seed] for seed in own if seed in theirs]
                if differences:
                    entry[f"minus_{label}"] = mean_interval(differences).to_json()
            result.setdefault(arm, {})[name] = entry
    return result


def curve_area(run: Run) -> float:
    """Mean height of the held-out curve over the run's steps, under its own context."""
    curve = run.curve()
    return area([event.step for event in curve], [event.mean_at_k for event in curve])


def best_settings(runs: Sequence[Run], task: str) -> dict[str, Any]:
    """By arm, the learning rate and KL coefficient of the sweep with the best final accuracy."""
    result = {}
    for arm in ARMS:
        variants = by_variant(runs, "sweep", task, arm)
        if variants:
            means = {
                name: mean_interval([final(run) for run in of_variant]).mean
                for name, of_variant in variants.items()
            }
            name = max(means, key=lambda name: means[name])
            slow = variants[name][0].config["slow"]
            result[arm] = {
                "variant": name,
                "learning_rate": float(slow["learning_rate"]),
                "kl_coefficient": float(slow["kl_coefficient"]),
                "final": rounded(means[name]),
            }
    return result

"""The figure of training itself: reward and drift of every step of runs that are no experiments.

Evaluations come every few steps; this is what the run saw in between, against all rollouts that it
had sampled by then.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fst_jax.reporting.curves import pretty, single_runs
from fst_jax.reporting.runs import Run, round_rollouts
from fst_jax.reporting.statistics import smoothed
from fst_jax.reporting.style import COLOURS, Figure, LineStyle, Panel, below, counts

_SMOOTHED = 20  # parts of a run, over each of which its bold line is a mean
_VALUES = {
    "reward_mean": ("reward", "mean reward of a step's rollouts, 0 to 1"),
    "kl_k3": ("KL to the reference", "KL to the reference (k3), nats per token"),
    "distill_kl": ("KL to the teacher", "KL to the teacher, nats per token"),
}


def training(runs: Sequence[Run]) -> Iterator[Figure]:
    """Reward and KL of each step against all rollouts sampled until then."""

    def panel(series: Sequence[tuple[str, LineStyle, Run]], key: str) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            for label, style, run in series:
                x, y = spent_until(run, key)
                colour, short = COLOURS[run.arm], len(x) < _SMOOTHED
                axes.plot(x, y, color=colour, alpha=1 if short else 0.3, linewidth=1,
                          marker="." if short else None, linestyle=style,
                          label=label if short else None)  # fmt: skip
                if not short:
                    axes.plot(x, running_mean(y), color=colour, linestyle=style, label=label)
            rounds = rounds_of(series[0][2]) if len(series) == 1 else []
            if rounds:
                axes.plot(rounds, [0.02] * len(rounds), "|", transform=axes.get_xaxis_transform(),
                          color=COLOURS["base"], markersize=9, clip_on=False,
                          label="a fast round begins")  # fmt: skip
            axes.set_xlabel("all rollouts sampled so far")
            axes.set_ylabel(_VALUES[key][1])
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
            counts(axes.xaxis)
            below(axes)

        return draw

    panels = []
    for task, series in single_runs(runs).items():
        for key, (title, _) in _VALUES.items():
            kept = [one for one in series if len(spent_until(one[2], key)[0])]
            if kept:
                panels.append(Panel(f"{pretty(task)}: {title}", panel(kept, key)))
    if panels:
        yield Figure(
            "training",
            "While training",
            "Across: all rollouts sampled until the step, those of prompt evolution included. Up: "
            "the mean reward of the step's own rollouts, and the estimated KL of the policy to its "
            "reference on them. A reward that rises faster than the KL is learned with little "
            f"drift. In long runs thin lines are steps and bold ones means over a {_SMOOTHED}th of "
            "the run. Where the reward jumps as a fast round begins, new prompts came into use.",
            panels,
            columns=2,
        )


def spent_until(run: Run, key: str) -> tuple[np.ndarray, np.ndarray]:
    """All rollouts sampled until each step that has a value, and the value, both [steps]."""
    rows = [
        (sampled(event), float(event[key])) for event in run.steps if event.get(key) is not None
    ]
    table = np.array(rows, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def rounds_of(run: Run) -> list[float]:
    """All rollouts sampled before each fast round began."""
    found, evolved = [], 0
    for event in run.rounds:
        before = [step["rollouts_total"] for step in run.steps if step["step"] <= event["step"]]
        found.append(float((before[-1] if before else 0) + evolved))
        evolved += round_rollouts(event)
    return found


def sampled(event: Mapping[str, Any]) -> float:
    """Rollouts sampled for RL groups and fast rounds until a `step` event, each counted once."""
    return float(event["rollouts_total"] + event["evolve_rollouts_total"])


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of a twentieth of the values around each, fewer at the ends; [n] → [n]."""
    half = max(1, len(values) // _SMOOTHED // 2)
    return smoothed(values.tolist(), 2 * half + 1)

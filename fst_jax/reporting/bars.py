"""Figures of final figures: quadrants, variants, few problems, the sweep, costs.

Bars and points are means over seeds, whiskers 95 % intervals (Student's t).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes

from fst_jax.reporting.claims import PHASES, QUADRANTS, cost, quadrants
from fst_jax.reporting.curves import Series, panels_of, pretty
from fst_jax.reporting.runs import ARMS, Run
from fst_jax.reporting.select import chosen, final, tasks_of
from fst_jax.reporting.statistics import mean_interval
from fst_jax.reporting.style import (
    COLOURS,
    MARKERS,
    NAMES,
    SHADES,
    Figure,
    Panel,
    accuracy_axis,
    below,
    counts,
    whisker,
)
from fst_jax.reporting.variants import by_variant

_WHISKERS = " Whiskers are 95 % intervals over seeds."
_ERROR = {"capsize": 2, "elinewidth": 1}


def gains(runs: Sequence[Run]) -> Iterator[Figure]:
    """Where the gain lives: {base, trained} × {seed, pool}, with RL and prompt-only beside it."""

    def panel(series: Sequence[Series]) -> Callable[[Axes], None]:
        bars: list[tuple[str, dict[str, Any], str]] = []
        for one in series:
            found = quadrants(one.runs)
            if one.arm in ("fst", "fst_reuse"):
                for weights, context in QUADRANTS:
                    key = f"{weights}_{context}"
                    if key in found:
                        where = "seed prompt" if context == "seed" else "evolved prompts"
                        bars.append(
                            (f"{one.label}: {weights} weights,\n{where}", found[key], one.arm)
                        )
            else:
                own = [final(run) for run in one.runs]
                bars.append((f"{one.label}, at its end", mean_interval(own).to_json(), one.arm))

        def draw(axes: Axes) -> None:
            for place, (_, estimate, arm) in enumerate(bars):
                axes.barh(
                    place, estimate["mean"], color=COLOURS[arm], height=0.7,
                    xerr=whisker(estimate), ecolor=COLOURS["base"], error_kw=_ERROR,
                )  # fmt: skip
                axes.annotate(
                    f"{estimate['mean']:.2f}",
                    (estimate["high"] or estimate["mean"], place),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
            axes.set_yticks(range(len(bars)), [label for label, _, _ in bars], fontsize=7.5)
            axes.invert_yaxis()
            axes.set_xlim(0, 1.15 * max(0.05, *(e["high"] or e["mean"] for _, e, _ in bars)))
            axes.set_xlabel(f"held-out accuracy, mean@{series[0].runs[0].evaluations[0].k}")

        return draw

    panels = [Panel(pretty(task), panel(series)) for task, series in panels_of(runs).items()]
    if panels:
        yield Figure(
            "quadrants",
            "Where the gain lives",
            "Across: held-out accuracy in the last evaluation. FST has the four quadrants "
            "{base, trained} weights × {seed, evolved} prompts: the second less the first is what "
            "prompts give to the base, the third less the first what went into the weights, and "
            "the last is both together. Beside them RL and prompt evolution alone."
            f"{_WHISKERS if any(run.group for run in runs) else ''}",
            panels,
        )


def ablations(runs: Sequence[Run]) -> Iterator[Figure]:
    """Variants of the method."""
    yield from _forest(runs, "ablations", "Ablations", "variants of the method")


def reflectors(runs: Sequence[Run]) -> Iterator[Figure]:
    """Better and worse advice."""
    yield from _forest(runs, "reflector", "Quality of the reflector", "better and worse advice")


def _forest(runs: Sequence[Run], group: str, title: str, what: str) -> Iterator[Figure]:
    def panel(task: str) -> Callable[[Axes], None]:
        rows = [
            (arm, name, [final(run) for run in of_variant])
            for arm in ARMS
            for name, of_variant in by_variant(runs, group, task, arm).items()
        ]

        def draw(axes: Axes) -> None:
            for place, (arm, _, finals) in enumerate(reversed(rows)):
                estimate = mean_interval(finals).to_json()
                axes.plot(finals, [place] * len(finals), ".", color=COLOURS[arm], alpha=0.4)
                axes.errorbar(
                    estimate["mean"],
                    place,
                    xerr=whisker(estimate),
                    fmt=MARKERS[arm],
                    color=COLOURS[arm],
                    markersize=6,
                    **_ERROR,  # type: ignore[arg-type]
                )
            labels = [f"{NAMES[arm]}, {_spaced(name)}" for arm, name, _ in reversed(rows)]
            axes.set_yticks(range(len(rows)), labels, fontsize=7.5)
            axes.set_ylim(-0.6, len(rows) - 0.4)
            axes.set_xlim(0, 1)
            k = chosen(runs, group, task)[0].evaluations[0].k
            axes.set_xlabel(f"held-out accuracy, mean@{k}")

        return draw

    panels = [Panel(pretty(task), panel(task)) for task in tasks_of(runs, group)]
    if panels:
        yield Figure(
            group,
            title,
            f"Across: final held-out accuracy (mean of the last two evaluations) with {what}, a "
            "line for each; the default is the main run of the same seeds, cut to the same "
            "length. What lies right of an arm's default is better; where whiskers overlap much, "
            f"seeds do not tell them apart. Dots are seeds.{_WHISKERS}",
            panels,
        )


def fewshot(runs: Sequence[Run]) -> Iterator[Figure]:
    """Final accuracy against the number of training problems."""

    def panel(task: str) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            for arm in ARMS:
                rows = [
                    (size, mean_interval([final(run) for run in of_size]))
                    for of_size in by_variant(runs, "fewshot", task, arm).values()
                    if (size := of_size[0].config["task"]["options"].get("train_size"))
                ]
                _points(axes, sorted(rows, key=lambda row: row[0]), arm, NAMES[arm])
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_xlabel("training problems")
            accuracy_axis(axes, chosen(runs, "fewshot", task)[0].evaluations[0].k)
            below(axes)

        return draw

    panels = [Panel(pretty(task), panel(task)) for task in tasks_of(runs, "fewshot")]
    if panels:
        yield Figure(
            "fewshot",
            "Few training problems",
            "Across: how many different training problems a run sees, on a log scale. Up: final "
            "held-out accuracy (mean of the last two evaluations). A curve that is high on the "
            f"left needs few problems.{_WHISKERS}",
            panels,
        )


def sweep(runs: Sequence[Run]) -> Iterator[Figure]:
    """Learning rates and KL coefficients, one changed at a time."""
    yield from _forest(
        runs, "sweep", "Learning rate and KL coefficient", "one setting changed at a time"
    )


def costs(runs: Sequence[Run]) -> Iterator[Figure]:
    """Seconds, rollouts, tokens and reflection calls of a run."""
    stacks = {
        "time": ("seconds", [f"seconds_{phase}" for phase in (*PHASES, "evolve")]),
        "rollouts": ("rollouts", ["rollouts", "evolve_rollouts"]),
        "tokens": ("tokens", ["tokens_generated", "tokens_trained"]),
        "reflection": ("calls", ["reflection_calls"]),
    }
    names = {
        "rollouts": "RL groups",
        "evolve_rollouts": "prompt evolution",
        "tokens_generated": "generated",
        "tokens_trained": "trained on",
        "reflection_calls": "reflection calls",
    }

    def panel(series: Sequence[Series], unit: str, parts: Sequence[str]) -> Callable[[Axes], None]:
        spent = [[cost(run) for run in one.runs] for one in series]

        def draw(axes: Axes) -> None:
            left, stacked = [0.0] * len(series), unit != "tokens"  # trained on are among generated
            height = 0.6 if stacked else 0.6 / len(parts)
            for i, (shade, part) in enumerate(zip(SHADES, parts, strict=False)):
                widths = [mean_interval([each[part] for each in of]).mean for of in spent]
                down = 0.0 if stacked else (i - (len(parts) - 1) / 2) * height
                if any(widths):
                    label = names.get(part, part.removeprefix("seconds_"))
                    places = [place + down for place in range(len(series))]
                    axes.barh(places, widths, left=left, color=shade, label=label, height=height)
                if stacked:
                    left = [a + b for a, b in zip(left, widths, strict=True)]
            axes.set_yticks(range(len(series)), [one.label for one in series], fontsize=8)
            room = max(0.0, 1 - len(series) / 2)  # so that a single bar is no beam
            axes.set_ylim(-0.6 - room, len(series) - 0.4 + room)
            axes.invert_yaxis()
            axes.set_xlabel(f"{unit} per run")
            counts(axes.xaxis)
            below(axes, columns=3)

        return draw

    spent = [cost(run) for run in runs]
    used = {
        name: (unit, parts)
        for name, (unit, parts) in stacks.items()
        if any(each[part] for each in spent for part in parts)
    }
    panels = [
        Panel(f"{pretty(task)}: {name}", panel(series, unit, parts))
        for task, series in panels_of(runs).items()
        for name, (unit, parts) in used.items()
    ]
    if panels:
        yield Figure(
            "cost",
            "Cost",
            "Across: what a run costs, mean over seeds where there are several: seconds by phase, "
            "rollouts, tokens, and calls of the reflection model; shorter is cheaper. Evaluation "
            "is left out. Tokens trained on are among those generated, so their bars are side by "
            "side, not stacked.",
            panels,
            columns=len(used),  # a row for each task
        )


def _points(axes: Axes, rows: Sequence[tuple[float, Any]], arm: str, label: str) -> None:
    """Means with whiskers at x, joined by a line."""
    if not rows:
        return
    estimates = [estimate.to_json() for _, estimate in rows]
    x = [at for at, _ in rows]
    axes.plot(
        x,
        [estimate["mean"] for estimate in estimates],
        marker=MARKERS[arm],
        color=COLOURS[arm],
        label=label,
    )
    for at, estimate in zip(x, estimates, strict=True):
        _error(axes, at, estimate, COLOURS[arm])


def _error(axes: Axes, at: float, estimate: dict[str, Any], colour: str | None = None) -> None:
    error = whisker(estimate)
    if error:
        axes.errorbar(
            at, estimate["mean"], yerr=error, fmt="none", ecolor=colour or COLOURS["base"],
            **_ERROR,  # type: ignore[arg-type]
        )  # fmt: skip


def _spaced(variant: str) -> str:
    return variant.replace("_", " ").replace("=", " = ").replace("+", ", ")

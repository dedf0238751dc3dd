"""Figures of learning curves: efficiency, ceiling, frontier, first signal, entropy, second tasks.

Lines are means over seeds, bands their 95 % intervals (Student's t); a run that is no experiment
is a line of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fst_jax.reporting.claims import rollout_curve
from fst_jax.reporting.efficiency import SIGNAL, first_signal
from fst_jax.reporting.runs import ARMS, Evaluation, Run
from fst_jax.reporting.second_task import MATCHES, from_origin, kinds, stages
from fst_jax.reporting.select import chosen, tasks_of
from fst_jax.reporting.sigmoid import Sigmoid, fit
from fst_jax.reporting.statistics import mean_interval
from fst_jax.reporting.style import (
    COLOURS,
    MARKERS,
    NAMES,
    STYLES,
    Figure,
    LineStyle,
    Panel,
    accuracy_axis,
    below,
    counts,
)

Value = Callable[[Evaluation], float]
_BANDS = " Lines are means over seeds, bands their 95 % intervals."


@dataclass(frozen=True)
class Series:
    """Runs that make one line; `task` where a run has several."""

    label: str
    arm: str
    runs: Sequence[Run]
    task: str | None = None
    style: LineStyle = "-"


def steps(event: Evaluation) -> float:
    return event.step


def _bands(found: Mapping[str, Sequence[Series]]) -> str:
    """What a caption says of means and intervals, where a line stands for several seeds."""
    several = any(len(one.runs) > 1 for series in found.values() for one in series)
    return _BANDS if several else ""


def accuracy(event: Evaluation) -> float:
    return event.mean_at_k


def drift(event: Evaluation) -> float:
    return event.kl_to_base


def panels_of(runs: Sequence[Run], group: str = "main") -> dict[str, list[Series]]:
    """By task, the arms of a group's default runs; for other runs, a line each."""
    found: dict[str, list[Series]] = {}
    for task in tasks_of(runs, group):
        arms = [(arm, chosen(runs, group, task, arm, "")) for arm in ARMS]
        series = [Series(NAMES[arm], arm, of_arm) for arm, of_arm in arms if of_arm]
        if series:
            found[task] = series
    for single in single_runs(runs).values() if group == "main" else ():
        for label, style, run in single:
            if len(run.tasks) == 1:  # a stream has a figure of its own
                one = Series(label, run.arm, [run], None, style)
                found.setdefault(run.tasks[0], []).append(one)
    return found


def single_runs(runs: Sequence[Run]) -> dict[str, list[tuple[str, LineStyle, Run]]]:
    """By task, the runs that are no experiments, with a label and the style of their lines."""
    found: dict[str, list[tuple[str, LineStyle, Run]]] = {}
    for run in (run for run in runs if not run.group):
        beside = found.setdefault(run.task, [])
        style = STYLES[sum(other.arm == run.arm for _, _, other in beside) % len(STYLES)]
        beside.append((f"{NAMES[run.arm]} ({shortened(run.name)})", style, run))
    return found


def overview(runs: Sequence[Run]) -> Iterator[Figure]:
    """The experiments at a glance: each arm under its own context, against all rollouts."""

    def panel(series: Sequence[Series]) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            for one in series:
                line(axes, one, lambda event: event.all_rollouts, accuracy)
            axes.set_xlabel("all rollouts, those that score prompts included")
            counts(axes.xaxis)
            finish(axes, series)

        return draw

    experiments = panels_of([run for run in runs if run.group])
    kept = {
        task: [one for one in series if one.arm in ("rl", "prompt", "fst")]
        for task, series in experiments.items()
    }
    panels = [Panel(pretty(task), panel(series)) for task, series in kept.items()]
    if panels:
        yield Figure(
            "overview",
            "At a glance",
            "Across: all rollouts. Up: mean@k, the share of held-out answers that is right, of RL "
            f"under the seed prompt and of the others under their evolved prompts.{_bands(kept)}",
            panels,
        )


def efficiency(runs: Sequence[Run]) -> Iterator[Figure]:
    """Held-out accuracy against RL rollouts and against all rollouts."""

    def panel(series: Sequence[Series], all_counted: bool) -> Callable[[Axes], None]:
        def count(event: Evaluation) -> float:
            return event.all_rollouts if all_counted else event.rollouts

        def draw(axes: Axes) -> None:
            for one in series:
                if one.arm == "prompt" and not all_counted:
                    _level(axes, one)
                    continue
                line(axes, one, count, accuracy)
                if one.arm in ("fst", "fst_reuse"):
                    line(axes, one, count, accuracy, context="seed")
            axes.set_xlabel("all rollouts" if all_counted else "RL rollouts")
            counts(axes.xaxis)
            finish(axes, series)

        return draw

    found = panels_of(runs)
    panels = [
        Panel(
            f"{pretty(task)}: {'every rollout' if every else 'RL rollouts'}", panel(series, every)
        )
        for task, series in found.items()
        for every in (False, True)
    ]
    if panels:
        yield Figure(
            "efficiency",
            "Sample efficiency",
            "Across: rollouts of RL groups alone, then every rollout, those of prompt evolution "
            "included. Up: mean@k, the share of held-out answers that is right. A curve that rises "
            "further to the left needs fewer rollouts for the same accuracy. Dashed: FST's weights "
            f"under the seed prompt, which is what the weights alone have learned.{_bands(found)}",
            panels,
            columns=2,
        )


def ceilings(runs: Sequence[Run]) -> Iterator[Figure]:
    """Mean evaluation points and the mean of the sigmoids fitted to the seeds."""

    def panel(fitted: Sequence[tuple[Series, list[Sigmoid]]]) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            for one, sigmoids in fitted:
                x, y, _, _ = over_seeds(one, lambda e: e.rollouts, accuracy)
                axes.plot(x, y, MARKERS[one.arm], color=COLOURS[one.arm], alpha=0.5)
                fine = np.linspace(0, x[-1], 200)
                ceiling = float(np.mean([sigmoid.ceiling for sigmoid in sigmoids]))
                mean = np.mean([sigmoid(fine) for sigmoid in sigmoids], axis=0)
                name = f"{one.label}, A = {ceiling:.3f}"
                axes.plot(fine, mean, color=COLOURS[one.arm], label=name)
                axes.axhline(ceiling, color=COLOURS[one.arm], linestyle=":", linewidth=1)
            axes.set_xlabel("RL rollouts")
            counts(axes.xaxis)
            finish(axes, [one for one, _ in fitted])

        return draw

    panels = []
    for task, series in panels_of(runs).items():
        fitted = []
        for one in series:
            if one.arm == "prompt":
                continue
            try:
                fitted.append((one, [fit(rollout_curve(run)) for run in one.runs]))
            except ValueError:
                continue
        if fitted:
            panels.append(Panel(pretty(task), panel(fitted)))
    if panels:
        yield Figure(
            "ceiling",
            "Ceilings",
            "Across: rollouts of RL groups. Up: held-out accuracy under the run's own context, "
            "points as measured (means over seeds), lines as fitted (means of the seeds' "
            "sigmoids). A, dotted, is where the lines would end with rollouts without limit: an "
            "extrapolation, to be trusted only as far as the points follow the line.",
            panels,
        )


def frontier(runs: Sequence[Run]) -> Iterator[Figure]:
    """Reward against KL to the base, under the own context and under the seed prompt."""

    def panel(series: Sequence[Series], context: str) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            for one in series:
                seed = None if context == "own" else "seed"
                if one.arm == "prompt":  # frozen weights do not drift
                    y = mean_interval([run.curve()[-1].mean_at_k for run in one.runs]).mean
                    if context == "own":
                        axes.plot([0], [y], MARKERS["prompt"], color=COLOURS["prompt"],
                                  label=one.label, markersize=7)  # fmt: skip
                    continue
                line(axes, one, drift, accuracy, context=seed, band=False)
                for run in one.runs if len(one.runs) > 1 else []:
                    curve = run.curve(seed)
                    axes.plot([drift(e) for e in curve], [accuracy(e) for e in curve],
                              MARKERS[one.arm], color=COLOURS[one.arm], alpha=0.18)  # fmt: skip
                if context == "seed" and one.arm != "rl":
                    _pair(axes, one)
            axes.set_xlabel("KL to the base, nats per token")
            axes.xaxis.set_major_locator(MaxNLocator(5))
            finish(axes, series)

        return draw

    titles = {"own": "own context", "seed": "seed prompt"}
    panels = [
        Panel(f"{pretty(task)}: {titles[context]}", panel(series, context))
        for task, series in panels_of(runs).items()
        if any(one.arm != "prompt" for one in series)
        for context in ("own", "seed")
    ]
    if panels:
        yield Figure(
            "frontier",
            "Reward against drift",
            "Across: how far the policy has moved from the base, as exact token-level KL on "
            "held-out rollouts. Up: held-out accuracy of the same evaluation; a point for each. "
            "First both under the run's own context, then both under the seed prompt (dotted: the "
            "accuracy with its own prompts). Higher at the same KL is better: more was learned "
            "for the same drift. Faint points are single seeds.",
            panels,
            columns=2,
        )


def signal(runs: Sequence[Run]) -> Iterator[Figure]:
    """The start of learning, and when it first shows."""
    group = "signal" if tasks_of(runs, "signal") else "main"

    def panel(task: str, series: Sequence[Series]) -> Callable[[Axes], None]:
        found = first_signal(runs, group, task)
        medians = {arm: entry["step"]["median"] for arm, entry in found.items()}
        known = [step for step in medians.values() if step]
        last = max(run.planned_steps for one in series for run in one.runs)

        def draw(axes: Axes) -> None:
            for one in series:
                line(axes, one, steps, accuracy)
                if medians.get(one.arm):
                    axes.axvline(medians[one.arm], color=COLOURS[one.arm], linestyle=":")
            base = mean_interval([r.curve()[0].mean_at_k for one in series for r in one.runs]).mean
            axes.axhline(base + SIGNAL, color=COLOURS["base"], linewidth=1, linestyle="--",
                         label=f"base + {SIGNAL}")  # fmt: skip
            axes.set_xlim(0, min(last, 2.5 * max(known)) if known else last)
            axes.set_xlabel("RL steps")
            finish(axes, series)

        return draw

    series_of = {t: s for t, s in panels_of(runs, group).items() if s[0].runs[0].group}
    if series_of:
        yield Figure(
            "signal",
            "First signal",
            f"Across: RL steps, the first ones. Up: held-out accuracy. Dotted: the median step at "
            f"which an arm exceeds the base by {SIGNAL} and does so again at the next evaluation; "
            f"the further left, the sooner there is something to learn from.{_bands(series_of)}",
            [Panel(pretty(task), panel(task, series)) for task, series in series_of.items()],
        )


def entropies(runs: Sequence[Run]) -> Iterator[Figure]:
    """Entropy of the policy on held-out rollouts."""

    def panel(series: Sequence[Series]) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            for one in series:
                line(axes, one, steps, lambda event: event.entropy)
            axes.set_xlabel("RL steps")
            axes.set_ylabel("entropy, nats per token")
            axes.set_ylim(bottom=0)
            below(axes)

        return draw

    found = panels_of(runs)
    panels = [Panel(pretty(task), panel(series)) for task, series in found.items()]
    if panels:
        yield Figure(
            "entropy",
            "Entropy",
            "Across: RL steps. Up: entropy of the policy per token on its own held-out rollouts "
            "under the context that it learns with. A fall while accuracy rises is certainty; a "
            f"fall without it is a policy that has stopped exploring.{_bands(found)}",
            panels,
        )


def plasticity(runs: Sequence[Run]) -> Iterator[Figure]:
    """Second-task curves by origin, a panel for each kind of task and way of matching."""

    def panel(kind: str, match: str) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            series = []
            for arm, origin in (("base", "base"), ("rl", f"rl@{match}"), ("fst", f"fst@{match}")):
                found = from_origin(runs, kind, origin)
                if found:
                    series.append(Series(f"from {NAMES[arm]}", arm, found))
                    line(axes, series[-1], steps, accuracy)
            axes.set_xlabel("RL steps on the second task")
            finish(axes, series)

        return draw

    panels = [
        Panel(f"{kind} task, checkpoints of equal {'reward' if match == 'reward' else 'steps'}",
              panel(kind, match))
        for kind in kinds(runs)
        for match in MATCHES
        if from_origin(runs, kind, f"rl@{match}") or from_origin(runs, kind, f"fst@{match}")
    ]  # fmt: skip
    if panels:
        yield Figure(
            "plasticity",
            "Plasticity",
            "Across: steps of plain RL under the seed prompt on a second task. Up: held-out "
            "accuracy on it, started from the base and from checkpoints of RL and of FST on the "
            "first task. A steeper curve is a checkpoint that still learns well; below the base, "
            f"the first task has cost the ability to learn the second.{_BANDS}",
            panels,
            columns=2,
        )


def continual(runs: Sequence[Run]) -> Iterator[Figure]:
    """Every task of a stream throughout, with the borders of stages."""
    experiments = [run for run in chosen(runs, "continual") if not run.variant]
    single = [run for run in runs if not run.group and len(run.tasks) > 1]
    streams = experiments or single[:1]
    if not streams:
        return

    def panel(task: str) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            series = [
                Series(NAMES[arm], arm, chosen(streams, arm=arm), task)
                for arm in ARMS
                if chosen(streams, arm=arm)
            ]
            for one in series:
                line(axes, one, steps, accuracy)
            for stage in stages(streams[0]):
                if stage.task == task:
                    axes.axvspan(stage.start, stage.end, color=COLOURS["base"], alpha=0.13, lw=0)
                axes.axvline(stage.end, color=COLOURS["base"], linewidth=0.8)
            axes.set_xlabel("RL steps")
            finish(axes, series)

        return draw

    yield Figure(
        "continual",
        "A stream of tasks",
        "Across: RL steps of one run over all tasks, with a vertical line where the task changes. "
        "Up: held-out accuracy on one task throughout, shaded while that task is trained. A rise "
        "within the shade is adaptation, a fall after it forgetting."
        f"{_BANDS if len(streams) > 1 else ''}",
        [Panel(pretty(task), panel(task)) for task in streams[0].tasks],
    )


def line(
    axes: Axes,
    series: Series,
    x: Value,
    y: Value,
    context: str | None = None,
    band: bool = True,
) -> None:
    """Mean over seeds of y against the mean of x at the same step, and its interval."""
    at, mean, low, high = over_seeds(series, x, y, context)
    seed_prompt = context == "seed" and series.arm != "rl"
    axes.plot(
        at,
        mean,
        color=COLOURS[series.arm],
        linestyle="--" if seed_prompt else series.style,
        marker=None if seed_prompt else MARKERS[series.arm],
        label=f"{series.label}, seed prompt" if seed_prompt else series.label,
    )
    if band and len(series.runs) > 1:
        axes.fill_between(
            at, np.maximum(low, 0), high, color=COLOURS[series.arm], alpha=0.16, linewidth=0
        )


def over_seeds(
    series: Series, x: Value, y: Value, context: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, mean, low and high of y at every step that all seeds were evaluated at, each [steps]."""
    curves = [
        {event.step: event for event in run.curve(context, series.task)} for run in series.runs
    ]
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    rows = []
    for step in common:
        estimate = mean_interval([y(curve[step]) for curve in curves])
        at = float(np.mean([x(curve[step]) for curve in curves]))
        rows.append((at, estimate.mean, estimate.low, estimate.high))
    table = np.array(rows, dtype=float).reshape(-1, 4)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3]


def finish(axes: Axes, series: Sequence[Series]) -> None:
    """Axis of accuracy and legend."""
    accuracy_axis(axes, series[0].runs[0].evaluations[0].k)
    below(axes)


def shortened(name: str, most: int = 22) -> str:
    """A run's name with its middle left out where it is too long for a legend."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def pretty(task: str) -> str:
    """A task's name for a reader: tiny_star_graph as star graph."""
    return task.removeprefix("tiny_").replace("_", " ")


def _level(axes: Axes, series: Series) -> None:
    """Prompt-only spends nothing on RL groups: its last accuracy is a level."""
    level = mean_interval([run.curve()[-1].mean_at_k for run in series.runs]).mean
    axes.axhline(
        level, color=COLOURS["prompt"], linestyle="-.", label=f"{series.label}, at its end"
    )


def _pair(axes: Axes, series: Series) -> None:
    """Accuracy under the own prompts against drift under the seed prompt."""
    rows = []
    for step in sorted({event.step for event in series.runs[0].curve("seed")}):
        own = [e.mean_at_k for run in series.runs for e in run.curve() if e.step == step]
        seed = [e.kl_to_base for run in series.runs for e in run.curve("seed") if e.step == step]
        if own and seed:
            rows.append((np.mean(seed), np.mean(own)))
    axes.plot(*zip(*rows, strict=True), ":", color=COLOURS[series.arm],
              label=f"{series.label}, own accuracy")  # fmt: skip

"""One HTML page that needs nothing but itself: claims, figures, and single runs read closely."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fst_jax import plain_yaml
from fst_jax.reporting import table
from fst_jax.reporting.claims import cost
from fst_jax.reporting.curves import pretty
from fst_jax.reporting.family import Member, family
from fst_jax.reporting.runs import ARMS, Run
from fst_jax.reporting.select import chosen, final, tasks_of
from fst_jax.reporting.style import COLOURS, NAMES, Figure, inline_svg

_SHOWN_PROBLEMS = 4
_SHOWN_RUNS = 12  # that are no experiments
_COSTS = {
    "seconds": "seconds",
    "seconds_train": "… training",
    "seconds_rollout": "… sampling",
    "seconds_evolve": "… prompt evolution",
    "rollouts": "RL rollouts",
    "evolve_rollouts": "prompt rollouts",
    "tokens_generated": "tokens generated",
    "tokens_trained": "tokens trained on",
    "reflection_calls": "reflection calls",
}


@dataclass(frozen=True)
class Example:
    """One held-out problem before and after training."""

    question: str
    answer: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]


@dataclass(frozen=True)
class Portrait:
    """One run as the page shows it."""

    run: Run
    family: Sequence[Member]
    examples: Sequence[Example]
    config: str


def render(
    runs: Sequence[Run],
    claims: Mapping[str, Any],
    figures: Sequence[Figure],
    left_out: Sequence[str],
) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("fst_jax.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = [
        (
            figure,
            [
                Markup(inline_svg(panel, f"{figure.name}-{place}"))
                for place, panel in enumerate(figure.panels)
            ],
        )
        for figure in figures
    ]
    return environment.get_template("page.html.jinja").render(
        runs=runs,
        experiments=[run for run in runs if run.group],
        rows=list(table.rows(claims)),
        figures=drawn,
        costs=_cost_table(runs, claims),
        cost_names=_COSTS,
        portraits=[_portrait(run) for run in portrayed(runs)],
        left_out=left_out,
        colours={arm.replace("_", "-"): colour for arm, colour in COLOURS.items()},
        names=NAMES,
        pretty=pretty,
        final=final,
    )


def portrayed(runs: Sequence[Run]) -> list[Run]:
    """Runs to read closely: those that are no experiments, and one FST run of each main task."""
    single = [run for run in runs if not run.group][:_SHOWN_RUNS]
    first = [chosen(runs, "main", task, "fst", "")[:1] for task in tasks_of(runs, "main")]
    return single + [run for of_task in first for run in of_task]


def examples(run: Run) -> list[Example]:
    """Held-out problems that were recorded in the first and the last evaluation."""
    if not run.evaluations:
        return []
    weights = "base" if run.arm == "prompt" else "trained"
    before = _evaluated(run, 0, "base", "seed")
    after = _evaluated(run, run.evaluations[-1].step, weights, run.own_context)
    return [
        Example(old["question"], old["answer"], old, after[problem])
        for problem, old in before.items()
        if problem in after
    ][:_SHOWN_PROBLEMS]


def _evaluated(run: Run, step: int, weights: str, context: str) -> dict[str, dict[str, Any]]:
    """One recorded held-out rollout of each problem."""
    found: dict[str, dict[str, Any]] = {}
    for sample in run.samples(step):
        if (sample.get("weights"), sample.get("context")) == (weights, context):
            found.setdefault(sample["problem"], sample)
    return found


def _portrait(run: Run) -> Portrait:
    return Portrait(run, family(run.pools()), examples(run), plain_yaml.dump(dict(run.config)))


def _cost_table(
    runs: Sequence[Run], claims: Mapping[str, Any]
) -> list[tuple[str, str, dict[str, float]]]:
    """(task, series, mean cost) of the arms of the main group and of every other run."""
    rows = [
        (task, NAMES[arm], {name: entry["mean"] for name, entry in by_arm[arm].items()})
        for task, by_arm in claims.get("cost", {}).items()
        for arm in ARMS
        if arm in by_arm
    ]
    single = [run for run in runs if not run.group]
    return rows + [(run.task, f"{NAMES[run.arm]} ({run.name})", cost(run)) for run in single]

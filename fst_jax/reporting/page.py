"""One HTML page that needs nothing but itself: claims, figures, and single runs read closely."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fst_jax.reporting import table
from fst_jax.reporting.cost_table import cost_table
from fst_jax.reporting.curves import pretty
from fst_jax.reporting.family import condensed
from fst_jax.reporting.portrait import portrait, portrayed
from fst_jax.reporting.runs import Run
from fst_jax.reporting.style import COLOURS, NAMES, Figure, inline_svg


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
        costs=cost_table(runs),
        portraits=[portrait(run) for run in portrayed(runs)],
        left_out=left_out,
        colours={arm.replace("_", "-"): colour for arm, colour in COLOURS.items()},
        names=NAMES,
        pretty=pretty,
        condensed=condensed,
    )

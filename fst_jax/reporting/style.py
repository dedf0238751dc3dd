"""How figures look: one colour per arm everywhere, panels that stand side by side or alone.

A figure is a row of panels.  Its PNG and SVG files hold all of them on white; in the page every
panel is an SVG of its own, so that a narrow window stacks them, drawn in the page's text colour
and arm colours, so that a dark window inverts them.  The colours are Okabe and Ito's, which
colour-blind readers tell apart, its orange darkened to be seen on white; line styles and markers
repeat what colours say.
"""

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter, MaxNLocator

COLOURS = {
    "rl": "#d55e00",
    "prompt": "#009e73",
    "fst": "#0072b2",
    "fst_reuse": "#cc79a7",
    "distill": "#b98000",
    "base": "#808080",
}
NAMES = {
    "rl": "RL only",
    "prompt": "prompt only",
    "fst": "FST",
    "fst_reuse": "FST with reuse",
    "distill": "FST-distill",
    "base": "base",
}
MARKERS = {"rl": "s", "prompt": "^", "fst": "o", "fst_reuse": "D", "distill": "v", "base": "x"}
LineStyle = str | tuple[int, tuple[int, ...]]
STYLES: tuple[LineStyle, ...] = (
    "-",
    (0, (1, 1)),
    (0, (3, 1, 1, 1)),
    (0, (5, 1)),
)  # of ordinary runs of one arm
SHADES = ("#56b4e9", "#b98000", "#009e73", "#cc79a7", "#d55e00")  # parts of a stack, not arms
INK, GRID = "#1b1b1d", "#b4b4b8"
_SIZE = (4.6, 3.7)  # inches, of a panel
_LEGEND = 70  # characters side by side in a legend, six of each entry for its handle
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.alpha": 0.4,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.7,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Panel:
    """One plot: `draw` puts data, labels and limits on empty axes."""

    title: str
    draw: Callable[[Axes], None]


@dataclass(frozen=True)
class Figure:
    """A named row of panels; the caption says what the axes are, and what to read from them."""

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]
    columns: int = 3  # panels side by side where there is room


def write(figure: Figure, folder: Path) -> None:
    """Save figure.name.png and .svg with all panels."""
    columns = min(figure.columns, len(figure.panels))
    rows = math.ceil(len(figure.panels) / columns)
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": figure.name}):
        canvas = Canvas(
            figsize=(_SIZE[0] * columns, _SIZE[1] * rows), layout="constrained", facecolor="white"
        )
        for place, panel in enumerate(figure.panels, start=1):
            _draw(panel, canvas.add_subplot(rows, columns, place))
        canvas.savefig(folder / f"{figure.name}.png", dpi=150, metadata={"Software": None})
        canvas.set_layout_engine("none")  # what was found for one file serves the other
        canvas.savefig(folder / f"{figure.name}.svg", metadata={"Date": None})


def inline_svg(panel: Panel, name: str) -> str:
    """The panel as an SVG element for the page; `name` keeps its ids apart from other panels'."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        canvas = Canvas(figsize=_SIZE, layout="constrained")
        canvas.patch.set_visible(False)
        axes = canvas.add_subplot()
        axes.patch.set_visible(False)
        _draw(panel, axes)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r' width="[\d.]+pt"| height="[\d.]+pt"', "", text, count=2)
    # Only what is referred to keeps an id: a page holds many panels, and an id once.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: _labelled(found[1], used, name), text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    text = text.replace("<svg", f'<svg role="img" aria-label="{_attribute(panel.title)}"', 1)
    text = text.replace(INK, "currentColor").replace(GRID, "var(--grid)")
    for arm, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{arm.replace('_', '-')})")
    return text


def below(axes: Axes, columns: int = 2) -> None:
    """The legend below the axes, where it hides no data; nothing without labels."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = max(1, min(columns, _LEGEND // (max(map(len, labels)) + 6)))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns)


def counts(axis: Axis) -> None:
    """Ticks of large numbers: 50k; a lone point at 0 has no room for negative ones."""
    if axis.get_data_interval()[1] <= 0:
        axis.set_view_interval(0, 1, ignore=True)
    axis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_major_formatter(EngFormatter(sep=""))


def accuracy_axis(axes: Axes, k: int, tops: Iterable[float] = ()) -> None:
    """The y axis of held-out accuracy, from 0 to what the data need."""
    axes.set_ylabel(f"held-out accuracy, mean@{k}")
    top = max([axes.get_ylim()[1], *tops])
    axes.set_ylim(0, min(1.02, max(0.1, top)))


def whisker(estimate: dict[str, Any]) -> list[list[float]] | None:
    """Distances below and above the mean for an error bar; None without an interval."""
    if estimate["low"] is None or estimate["high"] is None:
        return None
    below_, above = estimate["mean"] - estimate["low"], estimate["high"] - estimate["mean"]
    return [[max(below_, 0.0)], [max(above, 0.0)]]


def _draw(panel: Panel, axes: Axes) -> None:
    panel.draw(axes)
    axes.set_title(panel.title)
    axes.set_axisbelow(True)


def _labelled(label: str, used: set[str], name: str) -> str:
    """An id of Matplotlib's, kept apart from other panels', or as the class of its kind."""
    if label in used:
        return f' id="{name}-{label}"'
    return f' class="{re.sub(r"[_.]?[0-9]+$", "", label)}"'


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")

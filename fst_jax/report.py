"""python -m fst_jax.report: figures, claims and one HTML page from run folders.

    python -m fst_jax.report runs/quickstart
    python -m fst_jax.report runs/reproduction
    python -m fst_jax.report reproduction --output report

Given run folders, or folders with runs below them, writes each figure as PNG and
SVG, claims.json with every figure's mean, 95 % interval and seeds, and
index.html, which holds all of it and asks the network for nothing.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fst_jax.errors import RunError
from fst_jax.reporting.claims import derive
from fst_jax.reporting.figures import all_figures
from fst_jax.reporting.page import render
from fst_jax.reporting.runs import find, read_all
from fst_jax.reporting.style import write
from fst_jax.settings import command


def report(places: Sequence[Path], output: Path) -> dict[str, Any]:
    """Write the report of all runs at or below `places` to `output`; returns the claims.

    Raises:
      RunError: there is no readable run, or `output` cannot be written.
    """
    runs, left_out = read_all(find(places))
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    if not runs:
        raise RunError("no run is complete enough to report on")
    claims, figures = derive(runs), all_figures(runs)
    try:
        output.mkdir(parents=True, exist_ok=True)
        for figure in figures:
            write(figure, output)
        (output / "claims.json").write_text(json.dumps(claims, indent=1) + "\n", encoding="utf-8")
        page = render(runs, claims, figures, left_out)
        (output / "index.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write the report to {output}: {error.strerror}") from error
    counted = f"{len(runs)} run{'s' * (len(runs) > 1)}, {len(figures)} figures"
    print(f"{counted}: {output / 'index.html'}")
    return claims


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m fst_jax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("places", nargs="+", type=Path, metavar="RUN_OR_ROOT")
    parser.add_argument("--output", type=Path, help="default: report/ in the first folder given")
    options = parser.parse_args(arguments)
    report(options.places, options.output or options.places[0] / "report")


if __name__ == "__main__":
    sys.exit(command(main))

"""Every figure that the given runs allow, in the order of the page."""

from collections.abc import Sequence

from fst_jax.reporting import bars, curves, training
from fst_jax.reporting.runs import Run
from fst_jax.reporting.style import Figure

_ALL = (
    curves.overview,
    training.training,
    bars.gains,
    curves.efficiency,
    curves.entropies,
    curves.frontier,
    curves.ceilings,
    curves.plasticity,
    curves.continual,
    curves.signal,
    bars.ablations,
    bars.reflectors,
    bars.fewshot,
    bars.sweep,
    bars.costs,
)


def all_figures(runs: Sequence[Run]) -> list[Figure]:
    """The figures whose runs exist."""
    return [figure for make in _ALL for figure in make(runs)]

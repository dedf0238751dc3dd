"""What the report does to numbers: intervals over seeds, running maxima, first crossings.

The paper shows single runs without error bars.  Here the unit of every interval is the seed:
Student's t over seeds for means and paired differences, the same on logarithms for ratios, and
the bootstrap over seeds for medians and fitted curves.  With one seed there is a mean and no
interval.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
_EXACT_SEEDS = 5  # up to here all resamples are listed: 126 for 5 seeds
_RESAMPLES = 400


@dataclass(frozen=True)
class Estimate:
    """A figure over `seeds` seeds with its 95 % interval; NaN where there is none."""

    mean: float
    low: float
    high: float
    seeds: int

    def to_json(self) -> dict[str, Any]:
        """mean, low and high rounded to six decimals, null where there is none, and seeds."""
        shown = {"mean": self.mean, "low": self.low, "high": self.high}
        return {name: rounded(value) for name, value in shown.items()} | {"seeds": self.seeds}


def rounded(value: float) -> float | None:
    """Six decimals, so that a claim derived again is the same number; null for NaN and ±∞."""
    return round(float(value), 6) if math.isfinite(value) else None


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean and Student's t interval; values that are NaN are left out."""
    kept = np.array([value for value in values if not math.isnan(value)], dtype=float)
    n = len(kept)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = float(kept.mean())
    if n == 1:
        return Estimate(mean, math.nan, math.nan, 1)
    error = float(kept.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    return Estimate(mean, mean - half, mean + half, n)


def ratio_interval(ratios: Sequence[float]) -> Estimate:
    """Geometric mean of positive ratios, and the t interval of their logarithms."""
    logs = mean_interval([math.log(ratio) for ratio in ratios])
    mean, low, high = (math.exp(x) for x in (logs.mean, logs.low, logs.high))
    return Estimate(mean, low, high, logs.seeds)


def median_interval(values: Sequence[float]) -> Estimate:
    """Median, and its bootstrap interval over seeds; ∞ stands for `not in the budget`."""
    data = np.array(values, dtype=float)
    if not len(data):
        return Estimate(math.nan, math.nan, math.nan, 0)
    return bootstrap(lambda weights: weighted_median(data, weights), len(data))


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The lower median of values that count `weights` times each; may be ∞."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) >= weights.sum() / 2
    return float(values[order][np.argmax(reached)])


def bootstrap(estimate: Callable[[np.ndarray], float], seeds: int) -> Estimate:
    """Percentile bootstrap over seeds of an estimate that is a function of their weights.

    `estimate` takes how often each seed is drawn, an int array [seeds] of sum `seeds`.  All
    resamples are listed for up to five seeds and drawn, always the same ones, above.
    """
    point = estimate(np.ones(seeds, dtype=int))
    if seeds < 2:
        return Estimate(point, math.nan, math.nan, seeds)
    draws = list(resamples(seeds))
    values = np.array([estimate(weights) for weights, _ in draws])
    shares = np.array([share for _, share in draws])
    known = ~np.isnan(values)
    if not known.any():
        return Estimate(point, math.nan, math.nan, seeds)
    low, high = (
        _quantile(values[known], shares[known], q) for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    )
    return Estimate(point, low, high, seeds)


def resamples(seeds: int) -> Iterator[tuple[np.ndarray, float]]:
    """(how often each seed is drawn, probability) of the resamples of `bootstrap`."""
    if seeds <= _EXACT_SEEDS:
        for drawn in itertools.combinations_with_replacement(range(seeds), seeds):
            counts = np.bincount(drawn, minlength=seeds)
            ways = math.factorial(seeds) / math.prod(math.factorial(int(c)) for c in counts)
            yield counts, ways / seeds**seeds
    else:
        rng = np.random.default_rng(0)
        for _ in range(_RESAMPLES):
            yield rng.multinomial(seeds, [1 / seeds] * seeds), 1 / _RESAMPLES


def _quantile(values: np.ndarray, shares: np.ndarray, q: float) -> float:
    """The smallest value with at least a share q at or below it."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(shares[order]) / shares.sum() >= q - 1e-12
    return float(values[order][np.argmax(reached)])


def running_max(values: Sequence[float]) -> np.ndarray:
    """The best value so far."""
    return np.maximum.accumulate(np.asarray(values, dtype=float))


def smoothed(values: Sequence[float], window: int = 3) -> np.ndarray:
    """Centred moving average, over fewer values at the ends."""
    data = np.asarray(values, dtype=float)
    half = window // 2
    return np.array([data[max(0, i - half) : i + half + 1].mean() for i in range(len(data))])


def first_at(x: Sequence[float], y: Sequence[float] | np.ndarray, level: float) -> float:
    """The first x at which y is at least `level`; NaN if it never is."""
    return next((float(a) for a, b in zip(x, y, strict=True) if b >= level), math.nan)


def at_crossing(reward: Sequence[float], other: Sequence[float], level: float) -> float:
    """`other` where the running max of `reward` first reaches `level`, interpolated linearly.

    Both are sequences over the same checkpoints.  NaN if the level is never reached.
    """
    best = running_max(reward)
    i = int(np.argmax(best >= level))
    if not len(best) or best[i] < level:
        return math.nan
    if i == 0:
        return float(other[i])
    share = (level - best[i - 1]) / (best[i] - best[i - 1])
    return float(other[i - 1] + share * (other[i] - other[i - 1]))


def area(x: Sequence[float], y: Sequence[float]) -> float:
    """Mean height of the curve y(x), by trapezoids; y itself when x has one value."""
    if len(x) < 2 or x[-1] == x[0]:
        return float(np.mean(y)) if len(y) else math.nan
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))

"""The ceiling: a sigmoid in the number of rollouts, fitted to the evaluation curve of each seed.

R(C) = R0 + (A − R0) / (1 + (C_mid / C)^B), the paper's form for the ceiling A.  The curve is
linear in R0 and A for given C_mid and B, so a grid over the latter two gives the starting point of
a bounded least-squares fit with 0 ≤ R0 ≤ A ≤ 1.  Seeds are fitted singly, since a mean of curves
that rise at different times is no sigmoid; the interval comes from resampling seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from fst_jax.reporting.statistics import Estimate, bootstrap

Curve = Sequence[tuple[float, float]]  # (rollouts, reward)
_STEEPNESS = (0.3, 12.0)
_BEYOND = 4.0  # C_mid at most this many times the longest run
_TIGHT = 1e-14


@dataclass(frozen=True)
class Sigmoid:
    """Start R0, ceiling A, rollouts C_mid at half height, steepness B."""

    start: float
    ceiling: float
    middle: float
    steepness: float

    def __call__(self, rollouts: np.ndarray) -> np.ndarray:
        """Reward after each number of rollouts."""
        return self.start + (self.ceiling - self.start) * _rise(
            np.asarray(rollouts, dtype=float), self.middle, self.steepness
        )


def fit(curve: Curve) -> Sigmoid:
    """The least-squares sigmoid of one seed's curve.

    Raises:
      ValueError: fewer than four different numbers of rollouts.
    """
    c, r = np.array(sorted(curve), dtype=float).T
    if len(set(c)) < 4:
        raise ValueError("four parameters need four different numbers of rollouts")
    return _least_squares(c, r)


def ceilings(
    one: Sequence[Sigmoid], other: Sequence[Sigmoid]
) -> tuple[Estimate, Estimate, Estimate]:
    """Mean ceilings of two arms and A(other) − A(one); seed i of both is resampled together."""
    a = np.array([sigmoid.ceiling for sigmoid in one])
    b = np.array([sigmoid.ceiling for sigmoid in other])

    def mean(values: np.ndarray) -> Estimate:
        return bootstrap(lambda weights: float(weights @ values / weights.sum()), len(values))

    return mean(a), mean(b), mean(b - a)


def _rise(c: np.ndarray, middle: float | np.ndarray, steepness: float | np.ndarray) -> np.ndarray:
    """1 / (1 + (C_mid/C)^B), 0 at C = 0."""
    with np.errstate(divide="ignore", over="ignore"):
        return 1 / (1 + np.power(middle / c, steepness))


def _least_squares(c: np.ndarray, r: np.ndarray) -> Sigmoid:
    """Fit to rewards [n] at increasing rollouts [n]."""
    positive = c[c > 0]
    low, high = math.log(positive[0] / 10), math.log(positive[-1] * _BEYOND)

    def curve(p: np.ndarray) -> np.ndarray:
        start, share, log_middle, steepness = p
        return start + (1 - start) * share * _rise(c, math.exp(log_middle), steepness)

    def residuals(p: np.ndarray) -> np.ndarray:
        return curve(p) - r

    def jacobian(p: np.ndarray) -> np.ndarray:
        start, share, log_middle, steepness = p
        rise = _rise(c, math.exp(log_middle), steepness)
        slope = rise * (1 - rise)
        logs = np.where(c > 0, np.log(np.where(c > 0, c, 1)) - log_middle, 0.0)
        height = (1 - start) * share
        columns = (
            1 - share * rise,
            (1 - start) * rise,
            -height * slope * steepness,
            height * slope * logs,
        )
        return np.stack(columns, axis=1)

    lower = np.array([0.0, 0.0, low, _STEEPNESS[0]])
    upper = np.array([1.0, 1.0, high, _STEEPNESS[1]])
    found = least_squares(
        residuals,
        np.clip(_start(c, r, low, high), lower + 1e-9, upper - 1e-9),
        jac=jacobian,
        bounds=(lower, upper),
        ftol=_TIGHT,
        xtol=_TIGHT,
        gtol=_TIGHT,
        max_nfev=400,
    )
    start, share, log_middle, steepness = (float(x) for x in found.x)
    ceiling = start + (1 - start) * share
    return Sigmoid(start, ceiling, math.exp(log_middle), steepness)


def _start(c: np.ndarray, r: np.ndarray, low: float, high: float) -> np.ndarray:
    """The best (R0, (A − R0)/(1 − R0), log C_mid, B) with C_mid and B on a grid."""
    grid = np.array([(m, b) for m in np.linspace(low, high, 24) for b in (0.5, 1.0, 2.0, 4.0, 8.0)])
    rise = _rise(c, np.exp(grid[:, :1]), grid[:, 1:])  # [grid, n]
    centred = rise - rise.mean(axis=1, keepdims=True)
    spread = np.maximum((centred**2).mean(axis=1), 1e-12)
    height = (centred * (r - r.mean())).mean(axis=1) / spread  # linear regression on each row
    base = np.clip(r.mean() - height * rise.mean(axis=1), 0.0, 0.999)
    share = np.clip(height / (1 - base), 0.0, 1.0)
    errors = ((base[:, None] + ((1 - base) * share)[:, None] * rise - r) ** 2).mean(axis=1)
    best = int(np.argmin(errors))
    return np.array([base[best], share[best], *grid[best]])

"""Intervals, crossings and resampling against closed forms and NumPy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.reporting.statistics import (
    area,
    at_crossing,
    bootstrap,
    first_at,
    mean_interval,
    median_interval,
    ratio_interval,
    resamples,
    running_max,
    smoothed,
)

rewards = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_the_t_interval_of_five_values_is_the_textbooks() -> None:
    found = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445 * math.sqrt(2.5 / 5)  # t of 4 degrees of freedom, variance 2.5
    assert found.mean == 3.0 and found.seeds == 5
    assert found.low == pytest.approx(3 - half, abs=1e-5)
    assert found.high == pytest.approx(3 + half, abs=1e-5)


def test_one_seed_has_a_mean_and_no_interval() -> None:
    found = mean_interval([0.25]).to_json()
    assert found == {"mean": 0.25, "low": None, "high": None, "seeds": 1}
    assert mean_interval([]).to_json()["mean"] is None


def test_missing_values_count_for_nothing() -> None:
    assert mean_interval([1.0, math.nan, 3.0]) == mean_interval([1.0, 3.0])


def test_ratios_average_on_a_logarithmic_scale() -> None:
    assert ratio_interval([2.0, 8.0]).mean == pytest.approx(4.0)
    one, other = ratio_interval([2.0, 3.0, 5.0]), ratio_interval([1 / 2, 1 / 3, 1 / 5])
    assert one.low == pytest.approx(1 / other.high) and one.mean == pytest.approx(1 / other.mean)


@pytest.mark.parametrize("seeds", [1, 3, 5, 8])
def test_resamples_draw_every_seed_equally_often(seeds: int) -> None:
    drawn = list(resamples(seeds))
    assert sum(share for _, share in drawn) == pytest.approx(1)
    assert all(weights.sum() == seeds for weights, _ in drawn)
    mean = sum(share * weights for weights, share in drawn)
    np.testing.assert_allclose(mean, 1, atol=1e-12 if seeds <= 5 else 0.2)


def test_the_bootstrap_of_a_mean_has_the_spread_of_a_mean() -> None:
    values = np.array([0.1, 0.4, 0.5, 0.9, 0.6])
    found = bootstrap(lambda w: float((values * w).sum() / w.sum()), 5)
    draws = np.random.default_rng(1).choice(values, (100_000, 5)).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.mean == pytest.approx(0.5)
    assert found.low == pytest.approx(low, abs=0.02) and found.high == pytest.approx(high, abs=0.02)


def test_a_median_may_be_beyond_the_budget() -> None:
    assert median_interval([6.0, 12.0, math.inf]).mean == 12
    found = median_interval([6.0, math.inf, math.inf]).to_json()
    assert found["mean"] is None and found["low"] == 6 and found["high"] is None


@given(rewards)
def test_the_running_maximum_rises_and_is_never_below_the_curve(values: list[float]) -> None:
    best = running_max(values)
    assert (np.diff(best) >= 0).all() and (best >= values).all() and best[-1] == max(values)


@given(rewards, st.floats(0, 1))
def test_the_first_crossing_is_the_first(values: list[float], level: float) -> None:
    x = list(range(len(values)))
    at = first_at(x, values, level)
    if math.isnan(at):
        assert max(values) < level
    else:
        assert values[int(at)] >= level and all(v < level for v in values[: int(at)])


def test_a_crossing_is_interpolated_between_evaluations() -> None:
    assert at_crossing([0.0, 0.4, 0.3, 0.8], [0.0, 1.0, 2.0, 5.0], 0.6) == pytest.approx(3.5)
    assert at_crossing([0.0, 0.4], [0.0, 1.0], 0.1) == pytest.approx(0.25)
    assert at_crossing([0.5, 0.6], [7.0, 8.0], 0.2) == 7.0
    assert math.isnan(at_crossing([0.1, 0.2], [0.0, 1.0], 0.3))


@given(rewards, st.floats(0, 1))
def test_a_crossing_lies_among_the_values_of_its_curve(values: list[float], level: float) -> None:
    drift = [0.1 * i for i in range(len(values))]
    found = at_crossing(values, drift, level)
    assert math.isnan(found) == (max(values) < level)
    assert math.isnan(found) or 0 <= found <= drift[-1] + 1e-12


def test_area_and_smoothing() -> None:
    assert area([0, 10, 30], [0.0, 1.0, 1.0]) == pytest.approx(25 / 30)
    np.testing.assert_allclose(smoothed([0, 3, 6, 3]), [1.5, 3, 4, 4.5])

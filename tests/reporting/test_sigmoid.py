"""The fit finds the curve that made the points, and its bounds hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fst_jax.reporting.sigmoid import Sigmoid, ceilings, fit

ROLLOUTS = np.arange(0, 20) * 128.0


def curve(sigmoid: Sigmoid) -> list[tuple[float, float]]:
    return list(zip(ROLLOUTS.tolist(), sigmoid(ROLLOUTS).tolist(), strict=True))


@pytest.mark.parametrize(
    "truth",
    [Sigmoid(0.02, 0.9, 700, 4), Sigmoid(0.1, 0.6, 200, 1.5), Sigmoid(0.0, 0.8, 1500, 6)],
)
def test_the_parameters_of_a_clean_curve_are_found(truth: Sigmoid) -> None:
    found = fit(curve(truth))
    assert found.start == pytest.approx(truth.start, abs=1e-4)
    assert found.ceiling == pytest.approx(truth.ceiling, abs=1e-3)
    assert found.middle == pytest.approx(truth.middle, rel=1e-2)
    assert found.steepness == pytest.approx(truth.steepness, rel=1e-2)


def test_the_formula_is_the_papers() -> None:
    start, ceiling, middle, steepness = 0.1, 0.9, 500.0, 3.0
    expected = start + (ceiling - start) / (1 + (middle / 800) ** steepness)
    found = Sigmoid(start, ceiling, middle, steepness)(np.array([0.0, 500.0, 800.0]))
    np.testing.assert_allclose(found, [0.1, 0.5, expected])


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=5, max_size=15))
def test_the_ceiling_is_an_accuracy_above_the_start(rewards: list[float]) -> None:
    found = fit([(100.0 * i, reward) for i, reward in enumerate(rewards)])
    assert 0 <= found.start <= found.ceiling <= 1


def test_ceilings_their_difference_and_intervals() -> None:
    low = [fit(curve(Sigmoid(0, 0.7 + 0.01 * i, 200 + 200 * i, 4))) for i in range(3)]
    high = [fit(curve(Sigmoid(0, 0.8 + 0.01 * i, 300, 4))) for i in range(3)]
    rl, fst, difference = ceilings(low, high)
    assert rl.mean == pytest.approx(0.71, abs=2e-3) and fst.mean == pytest.approx(0.81, abs=2e-3)
    assert difference.mean == pytest.approx(0.1, abs=2e-3)
    assert rl.low < 0.705 and rl.high > 0.715  # seeds differ
    assert difference.high - difference.low < 0.005  # but not their differences


def test_a_seed_that_rises_late_has_its_own_ceiling() -> None:
    """The mean of two steep curves has two steps, which no sigmoid has; each seed's has one."""
    early, late = curve(Sigmoid(0, 0.8, 300, 8)), curve(Sigmoid(0, 0.8, 1800, 8))
    mean = [(c, (a + b) / 2) for (c, a), (_, b) in zip(early, late, strict=True)]
    assert fit(early).ceiling == pytest.approx(0.8, abs=1e-3)
    assert fit(late).ceiling == pytest.approx(0.8, abs=1e-3)
    assert abs(fit(mean).ceiling - 0.8) > 0.02


def test_three_points_are_too_few() -> None:
    with pytest.raises(ValueError, match="four"):
        fit([(0.0, 0.1), (1.0, 0.2), (2.0, 0.3)])

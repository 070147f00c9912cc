import numpy as np
import pandas as pd
import pytest
from scipy import stats
from utilsforecast import losses

from forecaster.metrics import (
    coverage,
    crps_from_quantiles,
    interval_width,
    msis,
    owa,
    pinball,
    weighted_quantile_loss,
    winkler_score,
)

LEVELS = np.array([0.1, 0.5, 0.8])
NAN = float("nan")


@pytest.fixture
def actuals_and_quantiles() -> tuple[np.ndarray, np.ndarray]:
    """Four series of six steps, and quantiles of each."""
    noise = np.random.default_rng(0)
    return noise.normal(size=(4, 6)), np.sort(noise.normal(size=(4, 6, 3)), axis=-1)


def make_frame(actual: np.ndarray, **columns: np.ndarray) -> pd.DataFrame:
    ids = np.repeat([f"series_{row}" for row in range(len(actual))], actual.shape[1])
    return pd.DataFrame(
        {"unique_id": ids, "ds": np.tile(np.arange(actual.shape[1]), len(actual)), "y": actual.ravel()}
        | {name: column.ravel() for name, column in columns.items()}
    )


def test_pinball_equals_a_slow_loop(actuals_and_quantiles):
    actual, quantiles = actuals_and_quantiles
    found = pinball(actual, quantiles, LEVELS)
    for place in np.ndindex(quantiles.shape):
        error, level = actual[place[:2]] - quantiles[place], LEVELS[place[2]]
        assert found[place] == pytest.approx(level * error if error > 0 else (1 - level) * -error)


@pytest.mark.parametrize("column", range(3))
def test_pinball_equals_utilsforecast(actuals_and_quantiles, column):
    actual, quantiles = actuals_and_quantiles
    other = losses.quantile_loss(make_frame(actual, model=quantiles[..., column]), {"model": "model"}, q=LEVELS[column])
    np.testing.assert_allclose(pinball(actual, quantiles, LEVELS)[..., column].mean(axis=1), other["model"])


def test_weighted_quantile_loss_equals_utilsforecast(actuals_and_quantiles):
    """Its scaled_crps is the mean of ours over levels, of one series."""
    actual, quantiles = actuals_and_quantiles
    columns = {f"q{column}": quantiles[..., column] for column in range(3)}
    other = losses.scaled_crps(make_frame(actual, **columns), {"model": list(columns)}, quantiles=LEVELS)
    for row, theirs in enumerate(other["model"]):
        ours = weighted_quantile_loss(actual[row], quantiles[row], LEVELS)
        assert ours.mean() == pytest.approx(theirs, rel=1e-6)


def test_weighted_quantile_loss_sums_over_series_before_dividing(actuals_and_quantiles):
    actual, quantiles = actuals_and_quantiles
    slow = [2 * pinball(actual, quantiles, LEVELS)[..., k].sum() / np.abs(actual).sum() for k in range(3)]
    np.testing.assert_allclose(weighted_quantile_loss(actual, quantiles, LEVELS), slow)


def test_weighted_quantile_loss_ignores_missing_actuals(actuals_and_quantiles):
    actual, quantiles = actuals_and_quantiles
    holes = actual.copy()
    holes[:, 4:] = NAN
    expected = weighted_quantile_loss(actual[:, :4], quantiles[:, :4], LEVELS)
    np.testing.assert_allclose(weighted_quantile_loss(holes, quantiles, LEVELS), expected)
    assert np.isnan(weighted_quantile_loss(np.zeros((1, 6)), quantiles[:1], LEVELS)).all()
    assert np.isnan(weighted_quantile_loss(np.full((1, 6), NAN), quantiles[:1], LEVELS)).all()


def test_crps_of_normal_quantiles_approaches_the_closed_form():
    """Gneiting and Raftery 2007, section 4.2."""
    levels = np.linspace(0, 1, 1001)[1:-1]
    actual = np.array([-2.0, 0.0, 0.7])
    quantiles = np.tile(1 + 2 * stats.norm.ppf(levels), (3, 1))
    z = (actual - 1) / 2
    closed = 2 * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    np.testing.assert_allclose(crps_from_quantiles(actual, quantiles, levels), closed, rtol=1e-3)


def test_crps_of_deciles_is_nine_tenths_of_the_mean_pinball_loss(actuals_and_quantiles):
    actual = actuals_and_quantiles[0]
    levels = np.arange(1, 10) / 10
    quantiles = np.sort(np.random.default_rng(1).normal(size=(4, 6, 9)), axis=-1)
    plain = 2 * pinball(actual, quantiles, levels).mean(axis=-1)
    np.testing.assert_allclose(crps_from_quantiles(actual, quantiles, levels), 0.9 * plain)


def test_coverage_equals_utilsforecast(actuals_and_quantiles):
    actual, quantiles = actuals_and_quantiles
    columns = {"model-lo-70": quantiles[..., 0], "model-hi-70": quantiles[..., 2]}
    other = losses.coverage(make_frame(actual, **columns), ["model"], level=70)
    np.testing.assert_allclose(coverage(actual, quantiles[..., 0], quantiles[..., 2]), other["model"])


def test_coverage_includes_the_bounds_and_ignores_missing_values():
    actual = np.array([[0.0, 1.0, 2.0, NAN, 0.5], [NAN, NAN, NAN, NAN, NAN]])
    lower, upper = np.zeros_like(actual), np.ones_like(actual)
    lower[0, 4] = NAN
    np.testing.assert_allclose(coverage(actual, lower, upper), [2 / 3, NAN])


def test_width_ignores_missing_values():
    np.testing.assert_allclose(interval_width(np.array([0.0, 1.0, NAN]), np.array([1.0, 4.0, 2.0])), 2.0)


def test_winkler_is_width_plus_penalty():
    actual = np.array([5.0, -1.0, 12.0, NAN])
    lower, upper = np.zeros(4), np.full(4, 10.0)
    np.testing.assert_allclose(winkler_score(actual, lower, upper, level=0.9), [10, 10 + 20 * 1, 10 + 20 * 2, NAN])


def test_winkler_equals_the_sum_of_two_pinball_losses(actuals_and_quantiles):
    """Each weighs 2 / alpha: Bracher et al. 2021."""
    actual, quantiles = actuals_and_quantiles
    ends = quantiles[..., [0, 2]]
    both = pinball(actual, ends, np.array([0.05, 0.95])).sum(axis=-1) * 2 / 0.1
    np.testing.assert_allclose(winkler_score(actual, ends[..., 0], ends[..., 1], level=0.9), both)


def test_msis_equals_the_loop_of_the_m4_organisers(actuals_and_quantiles):
    actual, quantiles = actuals_and_quantiles
    lower, upper, scale = quantiles[..., 0], quantiles[..., 2], np.array([0.5, 1.0, 2.0, 3.0])
    for row in range(4):
        total = 0.0
        for y, low, high in zip(actual[row], lower[row], upper[row], strict=True):
            total += high - low
            if y < low:
                total += (2 / 0.05) * (low - y)
            if y > high:
                total += (2 / 0.05) * (y - high)
        assert msis(actual, lower, upper, level=0.95, scale=scale)[row] == pytest.approx(total / 6 / scale[row])


def test_owa_equals_that_of_the_m4_winner():
    """Makridakis et al. 2020: ES-RNN 1.536 and 11.374 against Naive 2's 1.912 and 13.564 is 0.821."""
    assert owa(mase=1.536, smape=11.374, naive2_mase=1.912, naive2_smape=13.564) == pytest.approx(0.821, abs=5e-4)

"""Tests of accuracy measures against slow loops, utilsforecast and published figures."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from utilsforecast import losses

from forecaster.metrics import (
    coverage,
    crps_from_quantiles,
    energy_score,
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
    """Actuals of four series with six steps, and quantiles of each."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(4, 6)), np.sort(rng.normal(size=(4, 6, 3)), axis=-1)


def make_frame(actual: np.ndarray, **columns: np.ndarray) -> pd.DataFrame:
    ids = np.repeat([f"series_{row}" for row in range(len(actual))], actual.shape[1])
    return pd.DataFrame(
        {"unique_id": ids, "ds": np.tile(np.arange(actual.shape[1]), len(actual)), "y": actual.ravel()}
        | {name: column.ravel() for name, column in columns.items()}
    )


def test_pinball_equals_a_slow_loop(actuals_and_quantiles):
    actual, quantiles = actuals_and_quantiles
    losses = pinball(actual, quantiles, LEVELS)
    for index in np.ndindex(quantiles.shape):
        error, level = actual[index[:2]] - quantiles[index], LEVELS[index[2]]
        assert losses[index] == pytest.approx(level * error if error > 0 else (1 - level) * -error)


@pytest.mark.parametrize("column", range(3))
def test_pinball_equals_utilsforecast(actuals_and_quantiles, column):
    actual, quantiles = actuals_and_quantiles
    expected = losses.quantile_loss(
        make_frame(actual, model=quantiles[..., column]), {"model": "model"}, q=LEVELS[column]
    )
    np.testing.assert_allclose(pinball(actual, quantiles, LEVELS)[..., column].mean(axis=1), expected["model"])


def test_weighted_quantile_loss_equals_utilsforecast(actuals_and_quantiles):
    """scaled_crps of utilsforecast is the mean over levels, for a single series."""
    actual, quantiles = actuals_and_quantiles
    columns = {f"q{column}": quantiles[..., column] for column in range(3)}
    expected = losses.scaled_crps(make_frame(actual, **columns), {"model": list(columns)}, quantiles=LEVELS)
    for row, expected_score in enumerate(expected["model"]):
        loss = weighted_quantile_loss(actual[row], quantiles[row], LEVELS)
        assert loss.mean() == pytest.approx(expected_score, rel=1e-6)


def test_weighted_quantile_loss_sums_over_series_before_dividing(actuals_and_quantiles):
    actual, quantiles = actuals_and_quantiles
    expected = [2 * pinball(actual, quantiles, LEVELS)[..., column].sum() / np.abs(actual).sum() for column in range(3)]
    np.testing.assert_allclose(weighted_quantile_loss(actual, quantiles, LEVELS), expected)


def test_weighted_quantile_loss_ignores_missing_actuals(actuals_and_quantiles):
    actual, quantiles = actuals_and_quantiles
    actual_with_gaps = actual.copy()
    actual_with_gaps[:, 4:] = NAN
    expected = weighted_quantile_loss(actual[:, :4], quantiles[:, :4], LEVELS)
    np.testing.assert_allclose(weighted_quantile_loss(actual_with_gaps, quantiles, LEVELS), expected)
    assert np.isnan(weighted_quantile_loss(np.zeros((1, 6)), quantiles[:1], LEVELS)).all()
    assert np.isnan(weighted_quantile_loss(np.full((1, 6), NAN), quantiles[:1], LEVELS)).all()


def test_crps_of_normal_quantiles_approaches_the_closed_form():
    """Gneiting and Raftery 2007, section 4.2."""
    levels = np.linspace(0, 1, 1001)[1:-1]
    actual = np.array([-2.0, 0.0, 0.7])
    quantiles = np.tile(1 + 2 * stats.norm.ppf(levels), (3, 1))
    z = (actual - 1) / 2
    closed_form = 2 * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    np.testing.assert_allclose(crps_from_quantiles(actual, quantiles, levels), closed_form, rtol=1e-3)


def test_crps_of_deciles_is_nine_tenths_of_the_mean_pinball_loss(actuals_and_quantiles):
    actual = actuals_and_quantiles[0]
    levels = np.arange(1, 10) / 10
    quantiles = np.sort(np.random.default_rng(1).normal(size=(4, 6, 9)), axis=-1)
    mean_loss = 2 * pinball(actual, quantiles, levels).mean(axis=-1)
    np.testing.assert_allclose(crps_from_quantiles(actual, quantiles, levels), 0.9 * mean_loss)


def test_coverage_equals_utilsforecast(actuals_and_quantiles):
    actual, quantiles = actuals_and_quantiles
    columns = {"model-lo-70": quantiles[..., 0], "model-hi-70": quantiles[..., 2]}
    expected = losses.coverage(make_frame(actual, **columns), ["model"], level=70)
    np.testing.assert_allclose(coverage(actual, quantiles[..., 0], quantiles[..., 2]), expected["model"])


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
    """Each has the weight 2 / alpha (Bracher et al. 2021)."""
    actual, quantiles = actuals_and_quantiles
    bounds = quantiles[..., [0, 2]]
    expected = pinball(actual, bounds, np.array([0.05, 0.95])).sum(axis=-1) * 2 / 0.1
    np.testing.assert_allclose(winkler_score(actual, bounds[..., 0], bounds[..., 1], level=0.9), expected)


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
    """Makridakis et al. 2020: ES-RNN with 1.536 and 11.374, Naive 2 with 1.912 and 13.564; the OWA is 0.821."""
    assert owa(mase=1.536, smape=11.374, naive2_mase=1.912, naive2_smape=13.564) == pytest.approx(0.821, abs=5e-4)


def slow_energy_score(actual: np.ndarray, paths: np.ndarray) -> float:
    """Equation 22 of Gneiting and Raftery 2007 as a loss, over all ordered pairs of different paths."""
    count = len(paths)
    error = sum(np.sqrt(((path - actual) ** 2).sum()) for path in paths) / count
    pairs = [(first, second) for first in range(count) for second in range(count) if first != second]
    spread = sum(np.sqrt(((paths[first] - paths[second]) ** 2).sum()) for first, second in pairs) / len(pairs)
    return error - spread / 2


def test_energy_score_equals_a_double_loop_and_ignores_missing_steps():
    rng = np.random.default_rng(0)
    actual, paths = rng.normal(size=(5, 6)), rng.normal(size=(5, 7, 6))
    for row in range(5):
        expected = slow_energy_score(actual[row], paths[row])
        assert energy_score(actual, paths)[row] == pytest.approx(expected, rel=1e-12)
    actual[0, 2], actual[1], paths[2, 3, 4] = NAN, NAN, NAN
    scores = energy_score(actual, paths)
    keep = np.arange(6) != 2
    assert scores[0] == pytest.approx(slow_energy_score(actual[0, keep], paths[0][:, keep]), rel=1e-12)
    assert np.isnan(scores[1])
    keep = np.arange(6) != 4
    assert scores[2] == pytest.approx(slow_energy_score(actual[2, keep], paths[2][:, keep]), rel=1e-12)
    assert np.isnan(energy_score(actual, paths[:, :1])).all()


def test_energy_score_of_a_point_is_its_distance_and_two_paths_share_half_of_theirs():
    point = np.zeros((1, 5, 2))
    assert energy_score(np.array([[3.0, 4.0]]), point)[0] == 5.0
    assert energy_score(np.array([[0.0, 0.0]]), np.array([[[0.0, 1.0], [0.0, -1.0]]]))[0] == 0.0
    assert energy_score(np.array([[2.0, 0.0]]), np.array([[[0.0, 0.0], [4.0, 0.0]]]))[0] == 0.0


def test_energy_score_of_one_step_estimates_the_crps_without_bias():
    """The mean over many rows with five standard normal paths each is the closed form of the CRPS at 0.7."""
    paths = np.random.default_rng(1).normal(size=(40_000, 5, 1))
    scores = energy_score(np.full((40_000, 1), 0.7), paths)
    expected = 0.7 * (2 * stats.norm.cdf(0.7) - 1) + 2 * stats.norm.pdf(0.7) - 1 / np.sqrt(np.pi)
    assert scores.mean() == pytest.approx(expected, abs=4 * scores.std() / 200)


def test_energy_score_prefers_paths_with_the_correlation_of_the_actuals():
    """Quantiles of single steps cannot tell these forecasts apart."""
    rng = np.random.default_rng(2)
    walks, shuffled = (
        np.cumsum(rng.normal(size=(200, 100, 8)), axis=2),
        np.cumsum(rng.normal(size=(200, 100, 8)), axis=2),
    )
    actual = np.cumsum(rng.normal(size=(200, 8)), axis=1)
    independent = rng.permuted(shuffled, axis=1)
    assert energy_score(actual, walks).mean() < energy_score(actual, independent).mean()

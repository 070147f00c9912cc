"""Significance tests: nominal false positive rates, power for real differences, and degenerate inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from forecaster.evaluation.backtest import Backtest, backtest
from forecaster.evaluation.significance import compare_forecasters, diebold_mariano_test, paired_t_test
from tests.factories import make_panel, make_wave
from tests.forecaster.evaluation.test_backtest import constant_forecast

NAN = float("nan")


def test_the_paired_test_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    candidate, baseline = rng.normal(size=25), rng.normal(0.3, size=25)
    result = paired_t_test(baseline - candidate)
    assert result.p == pytest.approx(stats.ttest_rel(baseline, candidate).pvalue)
    assert result.difference == pytest.approx((baseline - candidate).mean())
    assert result.observed == 25
    assert result.low < result.difference < result.high


def test_one_step_ahead_diebold_mariano_is_a_t_test_with_the_variance_over_n() -> None:
    """Harvey, Leybourne and Newbold's factor for h = 1 is (n - 1) / n, which turns the variance over n into that over n - 1."""
    differences = np.random.default_rng(1).normal(0.2, size=20)
    result = diebold_mariano_test(differences, horizon=1)
    assert result.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_diebold_mariano_equals_a_slow_loop(horizon: int) -> None:
    d = np.convolve(np.random.default_rng(2).normal(0.4, size=32), np.ones(3), "valid")
    n, mean = len(d), d.mean()
    gamma = [sum((d[t] - mean) * (d[t - k] - mean) for t in range(k, n)) / n for k in range(horizon)]
    statistic = mean / math.sqrt((gamma[0] + 2 * sum(gamma[1:])) / n)
    statistic *= math.sqrt((n + 1 - 2 * horizon + horizon * (horizon - 1) / n) / n)
    assert diebold_mariano_test(d, horizon=horizon).p == pytest.approx(2 * stats.t.sf(abs(statistic), n - 1))


@pytest.mark.parametrize(("horizon", "origins", "max_rate"), [(1, 40, 0.07), (4, 80, 0.10)])
def test_diebold_mariano_has_its_nominal_false_positive_rate(horizon: int, origins: int, max_rate: float) -> None:
    """Errors of overlapping forecasts are sums of the same shocks. The test is known to reject too often on few origins."""
    rng = np.random.default_rng(3)
    shocks = rng.normal(size=(1500, origins + horizon - 1))
    rejected = [
        diebold_mariano_test(np.convolve(shock, np.ones(horizon), "valid"), horizon=horizon).p < 0.05
        for shock in shocks
    ]
    assert 0.03 < np.mean(rejected) < max_rate


def test_ignoring_the_overlap_of_forecasts_rejects_too_often() -> None:
    rng = np.random.default_rng(4)
    shocks = [np.convolve(rng.normal(size=83), np.ones(4), "valid") for _ in range(500)]
    assert np.mean([diebold_mariano_test(shock, horizon=1).p < 0.05 for shock in shocks]) > 0.2


def test_the_paired_tests_have_their_nominal_false_positive_rate() -> None:
    rng = np.random.default_rng(5)
    results = [paired_t_test(rng.normal(size=30), num_resamples=199) for _ in range(600)]
    assert 0.03 < np.mean([result.p < 0.05 for result in results]) < 0.07
    assert 0.03 < np.mean([result.bootstrap_p <= 0.05 for result in results]) < 0.08


@pytest.mark.parametrize("test", [lambda d: diebold_mariano_test(d, horizon=2), paired_t_test])
def test_a_true_difference_is_detected_symmetrically(test) -> None:
    rng = np.random.default_rng(6)
    results = [test(rng.normal(0.6, size=60)) for _ in range(50)]
    assert np.mean([result.p < 0.05 for result in results]) > 0.9
    differences = rng.normal(0.2, size=60)
    positive, negative = test(differences), test(-differences)
    assert positive.p == pytest.approx(negative.p)
    assert positive.difference == -negative.difference
    if not math.isnan(positive.bootstrap_p):
        assert positive.bootstrap_p == negative.bootstrap_p
        assert (positive.low, positive.high) == pytest.approx((-negative.high, -negative.low))


def test_the_test_is_deterministic_and_scale_invariant() -> None:
    differences = np.random.default_rng(7).normal(0.1, size=40)
    assert paired_t_test(differences) == paired_t_test(differences)
    assert paired_t_test(1e6 * differences).p == pytest.approx(paired_t_test(differences).p)
    assert paired_t_test(1e6 * differences).bootstrap_p == paired_t_test(differences).bootstrap_p


@pytest.mark.parametrize("test", [lambda d: diebold_mariano_test(d, horizon=2), paired_t_test])
def test_zero_differences_are_not_significant_and_constant_differences_are(test) -> None:
    assert test(np.zeros(10)).p == 1.0
    assert test(np.zeros(10)).difference == 0.0
    assert test(np.full(10, 0.5)).p == 0.0


@pytest.mark.parametrize("differences", [[], [1.0], [NAN, NAN, 1.0]])
def test_too_few_differences_are_not_tested(differences: list[float]) -> None:
    for result in (paired_t_test(np.array(differences)), diebold_mariano_test(np.array(differences), horizon=1)):
        assert math.isnan(result.p)
        assert "too few" in result.test
    assert math.isnan(diebold_mariano_test(np.arange(3.0), horizon=3).p)
    assert not math.isnan(diebold_mariano_test(np.arange(4.0), horizon=3).p)


def test_missing_observations_are_ignored() -> None:
    differences = np.random.default_rng(8).normal(0.3, size=30)
    with_gaps = np.insert(differences, [3, 17], NAN)
    assert paired_t_test(with_gaps) == paired_t_test(differences)
    assert diebold_mariano_test(with_gaps, horizon=1).p == pytest.approx(diebold_mariano_test(differences, horizon=1).p)


def test_a_non_positive_variance_estimate_is_replaced() -> None:
    """The differences alternate: the plain variance estimate at horizon 2 is below zero."""
    d = np.resize([1.0, -1.0], 20) + 0.01
    mean = d.mean()
    assert ((d - mean) ** 2).sum() + 2 * ((d[1:] - mean) * (d[:-1] - mean)).sum() < 0
    assert 0 < diebold_mariano_test(d, horizon=2).p <= 1


def make_backtest(series: int, *, windows: int, stride: int = 1) -> Backtest:
    panel = make_panel(*(make_wave(60, seed=index) for index in range(series)))
    forecasters = {"near": constant_forecast(1.2), "far": constant_forecast(4.0)}
    return backtest(panel, forecasters, horizon=3, windows=windows, season=24, stride=stride)


def test_many_series_are_compared_by_series_means_and_one_series_by_origins() -> None:
    many_series = make_backtest(6, windows=2)
    result = compare_forecasters(many_series, "near", "far")
    expected = (many_series.scaled_errors("far") - many_series.scaled_errors("near")).mean(axis=(1, 2))
    assert result == paired_t_test(expected)
    assert result.difference > 0
    assert result.difference == pytest.approx(many_series.scores("far")["mase"] - many_series.scores("near")["mase"])

    one_series = make_backtest(1, windows=12)
    result = compare_forecasters(one_series, "near", "far")
    origins = (one_series.scaled_errors("far") - one_series.scaled_errors("near"))[0].mean(axis=1)
    assert result.test == "Diebold-Mariano over 12 origins"
    assert result.p == diebold_mariano_test(origins, horizon=3).p
    assert compare_forecasters(make_backtest(1, windows=6, stride=3), "near", "far").observed == 6


def test_constant_series_are_compared_by_absolute_errors() -> None:
    panel = make_panel(np.full(12, 3.0), np.full(12, 5.0), np.full(12, 6.0))
    result = backtest(
        panel, {"near": constant_forecast(4.0), "far": constant_forecast(9.0)}, horizon=2, windows=1, season=1
    )
    assert compare_forecasters(result, "near", "far").difference == pytest.approx((6 + 4 + 3) / 3 - (1 + 1 + 2) / 3)

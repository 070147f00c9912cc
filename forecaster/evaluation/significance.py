"""Tests of whether the errors of two forecasters differ by more than chance."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from forecaster.evaluation.backtest import Backtest
from forecaster.metrics import nanmean
from forecaster.shapes import Float64

NUM_RESAMPLES = 999
_MAX_VALUES_AT_ONCE = 1 << 22  # values of a resampling held in memory


class SignificanceResult(NamedTuple):
    """The difference of two forecasters' errors, and how likely chance alone would make it as large.

    Attributes:
        difference: The mean difference; NaN where nothing could be measured.
        p: Two-sided p value of Student's t distribution; NaN where no test is possible.
        bootstrap_p: The same from resampled series; NaN where series were not resampled.
        low: Lower end of a 95 % interval of the difference, from the same resampling.
        high: Its upper end.
        observed: Number of differences: series, or origins of a single one.
        test: The test that was made, in words.
    """

    difference: float
    p: float
    bootstrap_p: float
    low: float
    high: float
    observed: int
    test: str


_NAN = float("nan")


def compare_forecasters(result: Backtest, candidate: str, baseline: str, *, seed: int = 0) -> SignificanceResult:
    """Tests the baseline's scaled absolute errors (MASE) less the candidate's: above 0 the candidate is better.

    Only windows with a forecast of every forecaster count.
    Several series are compared by `paired_t_test` over their means, a single one by `diebold_mariano_test` over its origins.
    Where no series has a scale, plain absolute errors are used.
    """
    errors = {name: result.scaled_errors(name) for name in (candidate, baseline)}
    if not np.isfinite(errors[candidate]).any():
        comparable = result.comparable_mask()[:, :, None]
        errors = {name: np.where(comparable, np.abs(result.actual - result.forecasts[name]), np.nan) for name in errors}
    differences = errors[baseline] - errors[candidate]
    if len(differences) == 1:
        overlap = -(-result.horizon // result.stride)
        return diebold_mariano_test(nanmean(differences[0], axis=1), horizon=overlap)
    return paired_t_test(nanmean(differences, axis=(1, 2)), seed=seed)


def diebold_mariano_test(differences: Float64[np.ndarray, "origin"], *, horizon: int) -> SignificanceResult:
    """The test of Diebold and Mariano (1995), with the small-sample correction of Harvey, Leybourne and Newbold (1997).

    Their equation 9 and Student's t distribution with n - 1 degrees. It assumes that the differences are stationary, and that
    those `horizon` or more origins apart are independent, as errors of an optimal forecaster are. If the estimated variance is
    not positive, which can happen, autocovariances are weighted by Bartlett's kernel (Newey and West 1987), which ensures it.

    Args:
        differences: Loss of one forecaster less that of the other at successive origins; NaN where nothing was observed.
        horizon: Steps ahead, in origins: forecasts of this many successive origins overlap.
    """
    centered = differences - nanmean(differences)
    valid = ~np.isnan(centered)
    count, mean = int(valid.sum()), float(nanmean(differences))
    test = f"Diebold-Mariano over {count} origins"
    if count < 2 or count <= horizon:
        return SignificanceResult(mean, _NAN, _NAN, _NAN, _NAN, count, f"{test}: too few")
    centered = np.where(valid, centered, 0.0)
    lags = min(horizon, len(centered))
    covariances = np.array([centered[lag:] @ centered[: len(centered) - lag] for lag in range(lags)]) / count
    variance = covariances[0] + 2 * covariances[1:].sum()
    if variance <= 0:
        variance = covariances[0] + 2 * (covariances[1:] * (1 - np.arange(1, lags) / lags)).sum()
    correction = (count + 1 - 2 * horizon + horizon * (horizon - 1) / count) / count
    error = math.sqrt(max(variance, 0.0) / count / correction)
    return SignificanceResult(mean, _two_sided_p_value(mean, error, count - 1), _NAN, _NAN, _NAN, count, test)


def paired_t_test(
    differences: Float64[np.ndarray, "series"], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> SignificanceResult:
    """Tests whether the mean of the differences over series is zero: Student's paired t test, and a bootstrap over series.

    Both treat the series as independent draws from the population of interest: the result says whether the difference would
    hold for further series like these, at the same time. Series that move together (one calendar, one market) carry less
    information than their number suggests, and both p values are then too small. The t test also needs a mean that is roughly
    Gaussian, so no few series that dominate; the bootstrap does not: series are drawn with replacement, the t statistic of each
    draw is measured from the observed mean (Efron and Tibshirani 1993, section 16.4), and p is the share of draws beyond the
    observed one, which itself counts as a draw.

    Args:
        differences: Of each series, the mean loss of one forecaster less that of the other; NaN is left out.
        seed: Of the resampling.
        num_resamples: Number of resamplings.
    """
    observed = differences[~np.isnan(differences)]
    count, mean = len(observed), float(nanmean(observed))
    test = f"paired t over {count} series"
    if count < 2:
        return SignificanceResult(mean, _NAN, _NAN, _NAN, _NAN, count, f"{test}: too few")
    error = float(observed.std(ddof=1)) / math.sqrt(count)
    p = _two_sided_p_value(mean, error, count - 1)
    means, errors = _bootstrap_means(observed, seed=seed, num_resamples=num_resamples)
    low, high = (float(end) for end in np.quantile(means, [0.025, 0.975]))
    if error == 0:
        return SignificanceResult(mean, p, p, low, high, count, test)
    # Compared without a division: a draw of a single repeated series has no spread, and counts as beyond.
    beyond = np.abs(means - mean) * error >= abs(mean) * errors
    return SignificanceResult(mean, p, float((1 + beyond.sum()) / (1 + num_resamples)), low, high, count, test)


def _bootstrap_means(
    values: Float64[np.ndarray, "_"], *, seed: int, num_resamples: int
) -> tuple[Float64[np.ndarray, "draw"], Float64[np.ndarray, "draw"]]:
    """Returns the mean of each resampling and its standard error."""
    rng, count = np.random.default_rng(seed), len(values)
    means, errors = np.empty(num_resamples), np.empty(num_resamples)
    at_once = max(1, _MAX_VALUES_AT_ONCE // count)
    for first in range(0, num_resamples, at_once):
        samples = values[rng.integers(count, size=(min(at_once, num_resamples - first), count))]
        means[first : first + len(samples)] = samples.mean(axis=1)
        errors[first : first + len(samples)] = samples.std(axis=1, ddof=1) / math.sqrt(count)
    return means, errors


def _two_sided_p_value(mean: float, standard_error: float, degrees: int) -> float:
    """Returns the probability of a mean this far from zero; without any spread it is 1 or 0."""
    if standard_error == 0:
        return 1.0 if mean == 0 else 0.0
    return student_t_tail(mean / standard_error, degrees)


def student_t_tail(statistic: float, degrees: int) -> float:
    """Returns the probability that Student's t is further from zero."""
    from scipy.special import stdtr

    return float(2 * stdtr(degrees, -abs(statistic)))

"""Whether one forecaster is really better than another, or was lucky on these windows."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from forecaster.evaluation.backtest import Backtest
from forecaster.metrics import nanmean
from forecaster.shapes import Float64

NUM_RESAMPLES = 999
_MAX_VALUES_AT_ONCE = 1 << 22  # numbers of a resampling held in memory


class SignificanceResult(NamedTuple):
    """How far the errors of two forecasters differ, and how likely chance alone would have them differ so much.

    Attributes:
        difference: The mean difference; NaN where there is none to measure.
        p: Two-sided p value of Student's t distribution; NaN where no test is possible.
        bootstrap_p: The same from resampled series; NaN where series were not resampled.
        low: Lower end of a 95 % interval of the difference, from the same resampling.
        high: Its upper end.
        observed: How many differences there were: series, or origins of a single one.
        test: What was done, in words.
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
    """Their scaled absolute errors (MASE) less ours, on the windows that every forecaster answered: above 0 we are better.

    Over many series `paired_t_test`, of each series' mean; of a single one `diebold_mariano_test`, of each origin's. Where no series
    has a scale, plain absolute errors are taken.
    """
    ahead = {name: result.scaled_errors(name) for name in (candidate, baseline)}
    if not np.isfinite(ahead[candidate]).any():
        keep = result.comparable_mask()[:, :, None]
        ahead = {name: np.where(keep, np.abs(result.actual - result.forecasts[name]), np.nan) for name in ahead}
    differences = ahead[baseline] - ahead[candidate]
    if len(differences) == 1:
        overlapping = -(-result.horizon // result.stride)
        return diebold_mariano_test(nanmean(differences[0], axis=1), horizon=overlapping)
    return paired_t_test(nanmean(differences, axis=(1, 2)), seed=seed)


def diebold_mariano_test(differences: Float64[np.ndarray, "origin"], *, horizon: int) -> SignificanceResult:
    """The test of Diebold and Mariano (1995), with the small-sample correction of Harvey, Leybourne and Newbold (1997).

    Their equation 9 and Student's t distribution with n - 1 degrees. It assumes that the differences are stationary and
    that those `horizon` or more origins apart do not depend on each other, as errors of a forecaster that misses nothing
    do. Should the estimated variance not be positive, as it need not be, autocovariances are weighed by Bartlett's kernel
    (Newey and West 1987), which makes it so.

    Args:
        differences: Loss of one forecaster less that of the other at successive origins; NaN was not observed.
        horizon: Steps ahead, in origins: forecasts of this many successive origins overlap.
    """
    found = differences - nanmean(differences)
    there = ~np.isnan(found)
    count, mean = int(there.sum()), float(nanmean(differences))
    test = f"Diebold-Mariano over {count} origins"
    if count < 2 or count <= horizon:
        return SignificanceResult(mean, _NAN, _NAN, _NAN, _NAN, count, f"{test}: too few")
    found = np.where(there, found, 0.0)
    lags = min(horizon, len(found))
    covariances = np.array([found[lag:] @ found[: len(found) - lag] for lag in range(lags)]) / count
    variance = covariances[0] + 2 * covariances[1:].sum()
    if variance <= 0:
        variance = covariances[0] + 2 * (covariances[1:] * (1 - np.arange(1, lags) / lags)).sum()
    correction = (count + 1 - 2 * horizon + horizon * (horizon - 1) / count) / count
    error = math.sqrt(max(variance, 0.0) / count / correction)
    return SignificanceResult(mean, _two_sided_p_value(mean, error, count - 1), _NAN, _NAN, _NAN, count, test)


def paired_t_test(
    differences: Float64[np.ndarray, "series"], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> SignificanceResult:
    """Whether the mean of the differences over series is zero: Student's paired t test, and a bootstrap over series.

    Both take the series for independent draws from those one cares for: it is said whether the difference would hold for
    further series like these, at the same time. Series that move together (one calendar, one market) are fewer than they
    look, and both p values are then too small. The t test needs besides that the mean is about Gaussian, so not a few
    series that decide everything; the bootstrap does not: series are drawn with replacement, the t statistic of each draw
    is measured from the observed mean (Efron and Tibshirani 1993, section 16.4), and p is the share beyond the observed
    one, both counted with it.

    Args:
        differences: Of each series, the mean loss of one forecaster less that of the other; NaN is left out.
        seed: Of the resampling.
        draws: Resamplings.
    """
    found = differences[~np.isnan(differences)]
    count, mean = len(found), float(nanmean(found))
    test = f"paired t over {count} series"
    if count < 2:
        return SignificanceResult(mean, _NAN, _NAN, _NAN, _NAN, count, f"{test}: too few")
    error = float(found.std(ddof=1)) / math.sqrt(count)
    p = _two_sided_p_value(mean, error, count - 1)
    means, errors = _bootstrap_means(found, seed=seed, num_resamples=num_resamples)
    low, high = (float(end) for end in np.quantile(means, [0.025, 0.975]))
    if error == 0:
        return SignificanceResult(mean, p, p, low, high, count, test)
    # Multiplied out, for a draw of one series over and over has no spread: it counts as beyond.
    beyond = np.abs(means - mean) * error >= abs(mean) * errors
    return SignificanceResult(mean, p, float((1 + beyond.sum()) / (1 + num_resamples)), low, high, count, test)


def _bootstrap_means(
    values: Float64[np.ndarray, "_"], *, seed: int, num_resamples: int
) -> tuple[Float64[np.ndarray, "draw"], Float64[np.ndarray, "draw"]]:
    """The mean of each resampling and its standard error."""
    draw, count = np.random.default_rng(seed), len(values)
    means, errors = np.empty(num_resamples), np.empty(num_resamples)
    at_once = max(1, _MAX_VALUES_AT_ONCE // count)
    for first in range(0, num_resamples, at_once):
        some = values[draw.integers(count, size=(min(at_once, num_resamples - first), count))]
        means[first : first + len(some)] = some.mean(axis=1)
        errors[first : first + len(some)] = some.std(axis=1, ddof=1) / math.sqrt(count)
    return means, errors


def _two_sided_p_value(mean: float, standard_error: float, degrees: int) -> float:
    """The chance of a mean so far from zero; without any spread it is certain or none."""
    if standard_error == 0:
        return 1.0 if mean == 0 else 0.0
    return student_t_tail(mean / standard_error, degrees)


def student_t_tail(statistic: float, degrees: int) -> float:
    """The chance that Student's t is further from zero: I_x(degrees / 2, 1 / 2) at x = degrees / (degrees + t²).

    Abramowitz and Stegun 1964, 26.7.1; the regularised incomplete beta function by its continued fraction, DLMF 8.17.22.
    """
    square = statistic * statistic
    x, rest = degrees / (degrees + square), square / (degrees + square)  # which add up to one
    a, b = degrees / 2, 0.5
    if rest == 0:
        return 1.0
    if x == 0:
        return 0.0
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = math.exp(a * math.log(x) + b * math.log(rest) - log_beta)
    if x > (a + 1) / (a + b + 2):  # there the fraction converges quickly for the complement alone
        return 1 - front * _beta_continued_fraction(b, a, rest) / b
    return front * _beta_continued_fraction(a, b, x) / a


def _beta_continued_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, from the back; it takes about the root of a + b terms."""
    value = 1.0
    for m in range(50 + 4 * math.isqrt(math.ceil(a + b)), 0, -1):
        value = 1 + m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)) / value
        value = 1 - (a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1)) / value
    return 1 / value

"""Accuracy measures as plain functions of arrays. NaN marks a missing value, and is excluded from every mean."""

from __future__ import annotations

import numpy as np

from forecaster.shapes import Float64

HorizonArray = Float64[np.ndarray, "*rows horizon"]
QuantileArray = Float64[np.ndarray, "*rows horizon level"]
PathArray = Float64[np.ndarray, "*rows path horizon"]
DECILES = tuple(round(0.1 * number, 1) for number in range(1, 10))
"""The levels whose mean quantile loss is reported as the weighted quantile loss, as by GluonTS and fev."""
ScoreValues = float | Float64[np.ndarray, "..."]


def nanmean(
    values: Float64[np.ndarray, "..."], axis: int | tuple[int, ...] | None = None
) -> Float64[np.ndarray, "..."]:
    """Returns the mean without NaN; NaN, without a warning, where there is no value.

    Equal to numpy.nanmean, which takes five times as long on short rows.
    """
    present = ~np.isnan(values)
    count = np.asarray(present.sum(axis=axis))
    total = np.asarray(np.where(present, values, 0.0).sum(axis=axis))
    return np.asarray(np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0))


def seasonal_error(history: Float64[np.ndarray, "step"], *, season: int, power: int = 1) -> float:
    """Mean of |y_t - y_(t-season)| ** power over a history: the scale of MASE (power 1) and RMSSE (power 2).

    Hyndman and Koehler 2006, section 2.5. NaN if the history has no such pair, or if all differences are zero.
    """
    if len(history) <= season:
        return float("nan")
    scale = float(nanmean(np.abs(history[season:] - history[:-season]) ** power))
    return scale if scale > 0 else float("nan")


def scale_season(num_steps: int, *, season: int) -> int:
    """Returns the season of the scale of MASE: that of the data, or 1 for a history that is not longer than a season.

    With 1 the scale is the error of the last value. GluonTS does the same; M4 had no such series, and others give no score.
    """
    return season if num_steps > season else 1


def mae(actual: HorizonArray, forecast: HorizonArray) -> Float64[np.ndarray, "*rows"]:
    """Mean absolute error of each row."""
    return nanmean(np.abs(actual - forecast), axis=-1)


def mse(actual: HorizonArray, forecast: HorizonArray) -> Float64[np.ndarray, "*rows"]:
    """Mean squared error of each row."""
    return nanmean((actual - forecast) ** 2, axis=-1)


def smape(actual: HorizonArray, forecast: HorizonArray) -> Float64[np.ndarray, "*rows"]:
    """Symmetric mean absolute percentage error of each row, 0 to 200 (Makridakis et al. 2018, M4); 0/0 counts as 0."""
    size = np.abs(actual) + np.abs(forecast)
    gap = np.abs(actual - forecast)
    return nanmean(np.where(size > 0, 200 * gap / np.where(size > 0, size, 1), gap), axis=-1)


def owa(*, mase: ScoreValues, smape: ScoreValues, naive2_mase: ScoreValues, naive2_smape: ScoreValues) -> ScoreValues:
    """Overall weighted average of M4 (Makridakis et al. 2018): the mean ratio of two scores to those of Naive 2.

    A value of 1 is as accurate as Naive 2. The scores are means over all series, taken before the ratios. Another baseline may
    be used in place of Naive 2.
    """
    return (mase / naive2_mase + smape / naive2_smape) / 2


def pinball(actual: HorizonArray, quantiles: QuantileArray, levels: Float64[np.ndarray, "level"]) -> QuantileArray:
    """Quantile loss (Koenker and Bassett 1978) of each element and level, not averaged; NaN where either value is missing."""
    error = actual[..., None] - quantiles
    return np.asarray(np.maximum(levels * error, (levels - 1) * error))


def weighted_quantile_loss(
    actual: HorizonArray, quantiles: QuantileArray, levels: Float64[np.ndarray, "level"]
) -> Float64[np.ndarray, "level"]:
    """Twice the pinball loss over the absolute actuals, both summed over all rows and steps, per level.

    The weighted quantile loss of Salinas et al. 2020 (their rho-risk), GluonTS and fev; their headline figure is
    the mean over levels. NaN if all observed actuals are 0.
    """
    loss = pinball(actual, quantiles, levels)
    size = np.where(np.isnan(loss), np.nan, np.abs(actual)[..., None])
    rows = tuple(range(actual.ndim))
    total = np.nansum(size, axis=rows)
    return np.where(total > 0, 2 * np.nansum(loss, axis=rows) / np.where(total > 0, total, 1), np.nan)


def crps_from_quantiles(
    actual: HorizonArray, quantiles: QuantileArray, levels: Float64[np.ndarray, "level"]
) -> HorizonArray:
    """Continuous ranked probability score of each element: the integral over levels of twice the pinball loss.

    Gneiting and Ranjan 2011, by the trapezoidal rule over ascending levels, with a loss of 0 at the levels 0 and 1. (The
    plain mean over levels, which some packages call CRPS, weights each level by 1/n: 1/9 rather than 1/10 for the nine deciles.)
    """
    edges = np.concatenate([[0.0], levels, [1.0]])
    return np.asarray(2 * pinball(actual, quantiles, levels) @ ((edges[2:] - edges[:-2]) / 2))


def coverage(actual: HorizonArray, lower: HorizonArray, upper: HorizonArray) -> Float64[np.ndarray, "*rows"]:
    """Share of each row's steps whose actual lies within its interval, bounds included."""
    present = ~(np.isnan(actual) | np.isnan(lower) | np.isnan(upper))
    return nanmean(np.where(present, (lower <= actual) & (actual <= upper), np.nan), axis=-1)


def interval_width(lower: HorizonArray, upper: HorizonArray) -> Float64[np.ndarray, "*rows"]:
    """Mean width of each row's intervals."""
    return nanmean(upper - lower, axis=-1)


def winkler_score(actual: HorizonArray, lower: HorizonArray, upper: HorizonArray, *, level: float) -> HorizonArray:
    """Interval score of each element: the width plus 2 / (1 - level) times the distance of the actual from the interval.

    Winkler 1972; Gneiting and Raftery 2007, equation 43. `level` is the nominal coverage of the interval, such as 0.95.
    """
    outside = np.maximum(lower - actual, 0) + np.maximum(actual - upper, 0)
    return np.asarray(upper - lower + 2 / (1 - level) * outside)


def msis(
    actual: HorizonArray,
    lower: HorizonArray,
    upper: HorizonArray,
    *,
    level: float,
    scale: Float64[np.ndarray, "*rows"] | float,
) -> Float64[np.ndarray, "*rows"]:
    """Mean scaled interval score of each row, as in M4 (Makridakis et al. 2020, with level 0.95).

    `scale` is the `seasonal_error` of the row's history.
    """
    return np.asarray(nanmean(winkler_score(actual, lower, upper, level=level), axis=-1) / scale)


def energy_score(actual: HorizonArray, paths: PathArray) -> Float64[np.ndarray, "*rows"]:
    """Energy score of the sample paths of each row: of the joint distribution of all steps, lower is better.

    Gneiting and Raftery 2007, equation 22 with the exponent 1 and the sign of a loss: the mean distance of the paths from the
    actuals, less half the mean distance of two different paths. With pairs of different paths only, the estimate has no bias
    for any number of paths (Ferro 2014), and may be below zero by chance. For a single step it estimates the CRPS. Steps
    without an actual, and steps at which some path is missing, are left out of the distances of their row; NaN where no step
    remains, or where a row has fewer than two paths.
    """
    num_paths = paths.shape[-2]
    keep = ~(np.isnan(actual) | np.isnan(paths).any(axis=-2))
    if num_paths < 2:
        return np.full(actual.shape[:-1], np.nan)
    valid = np.where(keep[..., None, :], paths, 0.0)
    error = np.linalg.norm(valid - np.where(keep, actual, 0.0)[..., None, :], axis=-1).mean(axis=-1)
    distance = np.zeros(actual.shape[:-1])
    for gap in range(1, num_paths):  # every pair once; all pairs at once would need as much memory as paths times paths
        distance += np.linalg.norm(valid[..., gap:, :] - valid[..., :-gap, :], axis=-1).sum(axis=-1)
    spread = distance / (num_paths * (num_paths - 1) / 2)
    return np.asarray(np.where(keep.any(axis=-1), error - spread / 2, np.nan))


def cross_entropy(
    actual: Float64[np.ndarray, "*rows"], probabilities: Float64[np.ndarray, "*rows symbol"]
) -> Float64[np.ndarray, "*rows"]:
    """Negative logarithm of the probability of each actual symbol, in nats (Shannon 1948).

    Args:
        actual: Codes: 1 for the symbol of the first column of the probabilities, and so on.
        probabilities: Of each symbol.
    Returns:
        One value per actual; NaN where it is missing or unknown (code 0).
    """
    is_known = actual > 0
    index = np.where(is_known, actual, 1).astype(np.int64) - 1
    chosen = np.take_along_axis(probabilities, index[..., None], axis=-1)[..., 0]
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(is_known, -np.log(chosen), np.nan))


def perplexity(cross_entropy: ScoreValues) -> ScoreValues:
    """The exponential of a mean cross-entropy in nats: the number of equally probable symbols with the same cross-entropy.

    Jelinek et al. 1977. The number of symbols for a uniform prediction, 1 for a certain and correct one.
    """
    return np.exp(np.minimum(cross_entropy, 700.0))  # beyond, it would overflow


def accuracy(actual: HorizonArray, predicted: HorizonArray) -> Float64[np.ndarray, "*rows"]:
    """Share of each row's steps whose predicted symbol is the actual one; an unknown actual counts as wrong."""
    is_missing = np.isnan(actual) | np.isnan(predicted)
    return nanmean(np.where(is_missing, np.nan, (actual == predicted) & (actual > 0)), axis=-1)

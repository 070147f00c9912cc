"""Split conformal prediction: computes a calibration from the errors of point forecasts on rolling origins.

The terms level, residual and spread are defined in `calibration.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np

from forecaster.intervals.adaptive import normal_quantiles
from forecaster.intervals.calibration import MAX_FACTORS, MAX_GROUPS, Calibration, QuantileTable
from forecaster.intervals.difficulty import Difficulty, fit_difficulty
from forecaster.intervals.joint import fit_joint_table, scores_under_table
from forecaster.metrics import nanmean
from forecaster.shapes import Bool, Float64

_TAIL_LEVELS = (0.001, 0.0025, 0.005)
TABLE_LEVELS = tuple(
    sorted(
        round(level, 6)
        for level in {*np.arange(1, 100) / 100, 0.025, 0.975, *_TAIL_LEVELS, *(1 - q for q in _TAIL_LEVELS)}
    )
)
"""The levels in a table. Levels in between are interpolated linearly in the normal quantile, levels beyond extrapolated."""

MIN_STEP_RESIDUALS = 100  # a step with fewer residuals also uses those of neighbouring steps
MIN_RANK_WINDOWS = 20  # with fewer windows the distribution is assumed to be Gaussian, and ranks are not used
MIN_GROUP_WINDOWS = 100  # a group with fewer windows has no table of its own
MAX_TABLE_NUMBERS = 500_000  # in all tables together: about 5 MB of JSON
STD_OVER_MEAN_ABS_DEVIATION = math.sqrt(math.pi / 2)  # of a Gaussian


def calibrate(
    errors: Float64[np.ndarray, "series window horizon"],
    scales: Float64[np.ndarray, "series *window"],
    *,
    changes: Float64[np.ndarray, "series window change"] | None = None,
    groups: Sequence[str | None] | None = None,
    ids: Sequence[str] | None = None,
) -> Calibration:
    """Computes quantiles of the errors by step ahead, pooled over series, with the ranks of split conformal prediction.

    With n residuals, a quantile above the median is the residual of rank ceil((n + 1) level), below the median that of rank
    floor((n + 1) level) (Vovk et al. 2005; Lei et al. 2018, section 2), each tail separately. A step with fewer than
    `MIN_STEP_RESIDUALS` residuals also uses those of neighbouring steps, each divided by the spread of its step; n remains the
    number of windows, because the steps of a window are not independent. Levels beyond the outermost residual are extrapolated
    along the line from the median through that residual, in proportion to the normal quantile.

    The distance of a quantile from the median never shrinks with the step: it is the nearest sequence that does not (isotonic
    regression), so that the intervals of a few windows are not jagged.

    From a backtest on windows that the model was not trained on:

        errors = result.actual - result.forecasts[name]
        distances = rolling_origins(windows=windows, horizon=horizon)
        scales = np.array([
            [history_scale(series.y[: len(series) - distance], season) for distance in distances]
            for series in result.series
        ])
        calibrate(errors, scales)

    Args:
        errors: Actual minus forecast; NaN where either is missing.
        scales: `history_scale` of each series, or of each of its windows, from the history up to the origin only. Windows
            without a positive scale are ignored.
        changes: `measure_changes` of the history of each window, to fit the difficulty of series and moments.
        groups: The group of each series, or None; a group with at least `MIN_GROUP_WINDOWS` windows gets its own table.
        ids: The id of each series, to fit factors of series (empirical Bayes: nearly no effect with few windows).
    """
    scales = np.asarray(scales, dtype=np.float64)
    scales = np.broadcast_to(scales.reshape(len(scales), -1), errors.shape[:2])
    usable = np.isfinite(scales) & (scales > 0)
    residuals = np.where(usable[:, :, None], errors / np.where(usable, scales, 1.0)[:, :, None], np.nan)
    residuals = np.where(np.isfinite(residuals), residuals, np.nan)
    difficulty = None
    if changes is not None:
        difficulty = fit_window_difficulty(residuals, changes, scales)
    if difficulty is not None and changes is not None:
        residuals /= window_factors(difficulty, changes, scales)[:, :, None]
    factors: dict[str, float] = {}
    if ids is not None:
        # A window is divided by the factor from the other windows of its series, not from itself.
        all_factors, held_out = _fit_factors(residuals)
        rows_with_factors = np.argsort(-np.abs(np.log(all_factors)), kind="stable")[:MAX_FACTORS]
        factors = {ids[row]: round_significant(all_factors[row]) for row in rows_with_factors if all_factors[row] != 1}
        residuals[rows_with_factors] /= held_out[rows_with_factors, :, None]
    rows_by_group = rows_of_large_groups(residuals, groups)
    steps = _select_steps(errors.shape[2], table_count=1 + len(rows_by_group))
    pool = _fit_table(flatten_windows(residuals), steps)
    paths = flatten_windows(residuals)[:, steps - 1]
    return Calibration(
        steps=tuple(int(step) for step in steps),
        levels=TABLE_LEVELS,
        pool=pool,
        groups={group: _fit_table(flatten_windows(residuals[rows]), steps) for group, rows in rows_by_group.items()},
        factors=factors,
        difficulty=difficulty,
        joint=fit_joint_table(scores_under_table(paths, np.array(pool.offsets), TABLE_LEVELS), steps.tolist()),
    )


def fit_window_difficulty(
    residuals: Float64[np.ndarray, "series window step"],
    changes: Float64[np.ndarray, "series window change"],
    scales: Float64[np.ndarray, "series window"],
) -> Difficulty | None:
    """Fits the difficulty to the mean absolute residual of each window, relative to that of all windows at the same step."""
    flat = residuals.reshape(-1, residuals.shape[2])
    step_spreads = nanmean(np.abs(flat), axis=0)
    sizes = nanmean(np.abs(flat) / np.where(step_spreads > 0, step_spreads, np.nan), axis=1)
    return fit_difficulty(changes.reshape(len(flat), -1), scales.ravel(), sizes)


def window_factors(
    difficulty: Difficulty,
    changes: Float64[np.ndarray, "series window change"],
    scales: Float64[np.ndarray, "series window"],
) -> Float64[np.ndarray, "series window"]:
    """Returns the factor of the scale of each window."""
    return difficulty.compute_factors(changes.reshape(scales.size, -1), scales.ravel()).reshape(scales.shape)


def rows_of_large_groups(
    residuals: Float64[np.ndarray, "series window step"], groups: Sequence[str | None] | None
) -> dict[str, list[int]]:
    """Returns the rows of each group that gets a table of its own, in alphabetical order."""
    rows_by_group: dict[str, list[int]] = {}
    for row, group in enumerate(groups or ()):
        if group is not None:
            rows_by_group.setdefault(group, []).append(row)
    windows_by_group = {group: int(np.isfinite(residuals[rows]).any(2).sum()) for group, rows in rows_by_group.items()}
    large = sorted(
        (group for group in windows_by_group if windows_by_group[group] >= MIN_GROUP_WINDOWS),
        key=lambda group: (-windows_by_group[group], group),
    )
    return {group: rows_by_group[group] for group in sorted(large[:MAX_GROUPS])}


ResidualArray = Float64[np.ndarray, "row step"]  # one row per window of any series


def flatten_windows(residuals: Float64[np.ndarray, "series window step"]) -> ResidualArray:
    """Returns all windows of all series with at least one residual."""
    flat = residuals.reshape(-1, residuals.shape[2])
    return np.asarray(flat[np.isfinite(flat).any(1)])


def _select_steps(horizon: int, *, table_count: int) -> np.ndarray:
    """Returns the steps to store: all, or evenly spaced steps within the limit of MAX_TABLE_NUMBERS."""
    max_steps = max(2, MAX_TABLE_NUMBERS // (len(TABLE_LEVELS) * table_count))
    return np.unique(np.linspace(1, horizon, min(horizon, max_steps)).round().astype(int))


def _fit_table(residuals: ResidualArray, steps: np.ndarray) -> QuantileTable:
    spreads, growth = _fit_spreads(residuals)
    if len(residuals) >= MIN_RANK_WINDOWS:
        basis: Literal["ranks", "gaussian", "assumed"] = "ranks"
        offsets = _widen_with_step(np.stack([_rank_offsets(residuals, spreads, int(step) - 1) for step in steps]))
    else:
        basis = "gaussian" if len(residuals) else "assumed"
        offsets = (
            STD_OVER_MEAN_ABS_DEVIATION
            * spreads[steps - 1, None]
            * _student_t_quantiles(TABLE_LEVELS, windows=len(residuals))
        )
    return QuantileTable(
        basis=basis,
        windows=len(residuals),
        growth=round_significant(growth),
        spreads=tuple(round_significant(spread) for spread in spreads[steps - 1]),
        offsets=tuple(tuple(round_significant(offset) for offset in row) for row in offsets),
    )


def _fit_spreads(residuals: ResidualArray) -> tuple[Float64[np.ndarray, "step"], float]:
    """Returns the spread of each step, and the exponent of its power-law growth.

    The power law is fitted to the logarithms by least squares, with its exponent limited to 0 (white noise) to 1 (a missed
    trend); with a single step it is that of a random walk, 0.5. The spread of a step with few residuals is shrunk towards the
    power law.
    """
    steps_ahead = np.arange(1, residuals.shape[1] + 1)
    counts = np.isfinite(residuals).sum(0)
    step_spreads = nanmean(np.abs(residuals), axis=0) if len(residuals) else np.full(len(steps_ahead), np.nan)
    is_positive = step_spreads > 0
    if not is_positive.any():
        return (np.sqrt(steps_ahead) if not counts.any() else np.zeros(len(steps_ahead))), 0.5
    x, y = np.log(steps_ahead[is_positive]), np.log(step_spreads[is_positive])
    growth = (
        float(np.clip(np.polyfit(x, y, 1, w=np.sqrt(counts[is_positive]))[0], 0, 1)) if is_positive.sum() > 1 else 0.5
    )
    log_law = np.average(y - growth * x, weights=counts[is_positive]) + growth * np.log(steps_ahead)
    weight = np.where(is_positive, counts / (counts + MIN_RANK_WINDOWS), 0.0)
    return np.exp(weight * np.log(np.where(is_positive, step_spreads, 1.0)) + (1 - weight) * log_law), growth


def _rank_offsets(
    residuals: ResidualArray, spreads: Float64[np.ndarray, "step"], step_index: int
) -> Float64[np.ndarray, "level"]:
    """Returns the quantiles of one step, from its residuals or, if they are few, also from those of the steps around it."""
    present: Bool[np.ndarray, "row step"] = np.isfinite(residuals)
    last_step, neighbours = residuals.shape[1] - 1, slice(step_index, step_index + 1)
    for reach in range(last_step + 1):
        neighbours = slice(max(0, step_index - reach), min(last_step, step_index + reach) + 1)
        if present[:, neighbours].sum() >= MIN_STEP_RESIDUALS:
            break
    unit = np.where(spreads > 0, spreads, 1.0)
    pooled = np.sort((residuals[:, neighbours] * (unit[step_index] / unit[neighbours]))[present[:, neighbours]])
    return rank_quantiles(pooled, int(present[:, neighbours].any(1).sum()))


def rank_quantiles(pooled: Float64[np.ndarray, "_"], window_count: int) -> Float64[np.ndarray, "level"]:
    """Returns the quantiles of sorted residuals at `TABLE_LEVELS`, each tail by its ranks."""
    levels = np.array(TABLE_LEVELS)
    above = _upper_quantiles(pooled, window_count, np.maximum(levels, 0.5))
    below = -_upper_quantiles(-pooled[::-1], window_count, np.maximum(1 - levels, 0.5))
    return np.select([levels > 0.5, levels < 0.5], [above, below], (above + below) / 2)


def _widen_with_step(offsets: Float64[np.ndarray, "step level"]) -> Float64[np.ndarray, "step level"]:
    """Returns the offsets, with distances from the median that never shrink with the step."""
    middle = offsets[:, [TABLE_LEVELS.index(0.5)]]
    upper = np.array(TABLE_LEVELS) > 0.5
    distances = np.where(upper, offsets - middle, middle - offsets)
    return np.asarray(middle + np.where(upper, 1.0, -1.0) * _isotonic(distances))


def _isotonic(values: Float64[np.ndarray, "step column"]) -> Float64[np.ndarray, "step column"]:
    """Returns the non-decreasing columns nearest in squares, by pooling adjacent violators (Barlow et al. 1972, 1.2)."""
    violating = np.flatnonzero((np.diff(values, axis=0) < 0).any(axis=0))
    result = values.copy()
    for column in violating:
        pools: list[tuple[float, int]] = []  # mean and length
        for value in values[:, column].tolist():
            mean, length = value, 1
            while pools and pools[-1][0] > mean:
                earlier, earlier_length = pools.pop()
                mean = (earlier * earlier_length + mean * length) / (earlier_length + length)
                length += earlier_length
            pools.append((mean, length))
        result[:, column] = np.concatenate([np.full(length, mean) for mean, length in pools])
    return result


def _upper_quantiles(
    pooled: Float64[np.ndarray, "_"], window_count: int, levels: Float64[np.ndarray, "_"]
) -> Float64[np.ndarray, "_"]:
    """Returns the residual of rank ceil((window_count + 1) level); `pooled` is sorted, with one or more residuals per window."""
    rank = np.ceil(np.round((window_count + 1) * levels, 9))
    pooled_rank = np.ceil(np.round(np.minimum(rank, window_count) * len(pooled) / window_count, 9)).astype(int)
    inside = pooled[np.clip(pooled_rank, 1, len(pooled)) - 1]
    median = (pooled[(len(pooled) - 1) // 2] + pooled[len(pooled) // 2]) / 2
    relative_distance = normal_quantiles(levels) / NormalDist().inv_cdf(window_count / (window_count + 1))
    beyond = np.maximum(median + (pooled[-1] - median) * relative_distance, pooled[-1])
    return np.asarray(np.where(rank > window_count, beyond, inside))


def _student_t_quantiles(levels: Sequence[float], *, windows: int) -> Float64[np.ndarray, "level"]:
    """Returns Student's t quantiles with one degree of freedom per window, widened for the uncertainty of the centre.

    Cornish-Fisher expansion (Abramowitz and Stegun 1964, 26.7.5), which is accurate from three degrees of freedom on.
    """
    z, degrees = normal_quantiles(levels), max(windows, 3)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return np.asarray((z + first / degrees + second / degrees**2) * math.sqrt(1 + 1 / degrees))


def _fit_factors(
    residuals: Float64[np.ndarray, "series window step"],
) -> tuple[Float64[np.ndarray, "series"], Float64[np.ndarray, "series window"]]:
    """Returns each series' spread relative to all series, shrunk towards 1; and for each window the same without that window.

    The logarithm of a window's spread is modelled as the sum of a series term and a window term. The ratio of their variances
    is the weight of the prior in windows (empirical Bayes by the method of moments).
    """
    spreads, _ = _fit_spreads(flatten_windows(residuals))
    sizes = nanmean(np.abs(residuals) / np.where(spreads > 0, spreads, 1.0), axis=2)
    logs = np.log(np.where(sizes > 0, sizes, np.nan))
    counts = np.isfinite(logs).sum(1)
    has_windows, has_several = counts > 0, counts > 1
    if has_several.sum() < 2 or has_windows.sum() < 3:
        return np.ones(len(logs)), np.ones(logs.shape)
    logs = logs - float(nanmean(nanmean(logs[has_windows], axis=1)))
    totals = np.nansum(logs, axis=1)
    means = totals / np.maximum(counts, 1)
    within = float(np.nansum((logs[has_several] - means[has_several, None]) ** 2) / (counts[has_several] - 1).sum())
    between = float(np.var(means[has_windows], ddof=1)) - within * float(np.mean(1 / counts[has_windows]))
    if between <= 0:
        return np.ones(len(logs)), np.ones(logs.shape)
    prior = within / between
    other_totals = totals[:, None] - np.where(np.isfinite(logs), logs, 0.0)
    other_counts = counts[:, None] - np.isfinite(logs)
    return np.exp(totals / (counts + prior)), np.exp(other_totals / np.maximum(other_counts + prior, 1e-12))


def round_significant(number: float) -> float:
    """Rounds to six significant digits, more than the precision of any calibration."""
    return float(f"{number:.6g}")

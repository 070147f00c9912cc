"""Recalibration of a head's quantiles: actuals as normal scores, and quantiles at the scores that they should have had.

The normal score of an actual is the standard normal quantile of its level under the head's distribution. Were the head
calibrated, scores would be standard normal; their observed quantiles map the nominal levels to those that hold (Kuleshov et al.
2018). Between two levels of the head a score is linear in the value. Beyond the outermost level it grows along the line from the
median through that level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forecaster.intervals.adaptive import normal_quantiles
from forecaster.shapes import Float64

MAX_SCORE = 50.0
_MIN_RELATIVE_GAP = 1e-6  # between neighbouring quantiles, relative to the spread: equal quantiles would have no slope


def compute_scores(
    deviations: Float64[np.ndarray, "*rows"], offsets: Float64[np.ndarray, "*rows level"], levels: Sequence[float]
) -> Float64[np.ndarray, "*rows"]:
    """Returns the normal scores of actuals; NaN where an actual or a quantile is missing, or the head has no spread.

    Args:
        deviations: Actuals relative to the median.
        offsets: Quantiles of the head relative to the median.
        levels: Their levels, ascending; the median is one of them.
    """
    scores = normal_quantiles(levels)
    spreads = offsets[..., -1] - offsets[..., 0]
    knots = offsets + np.arange(len(levels)) * (_MIN_RELATIVE_GAP * spreads)[..., None]
    left = np.clip((deviations[..., None] >= knots).sum(axis=-1) - 1, 0, len(levels) - 2)
    low, high = (np.take_along_axis(knots, index[..., None], axis=-1)[..., 0] for index in (left, left + 1))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inside = scores[left] + (deviations - low) / (high - low) * (scores[left + 1] - scores[left])
        above = deviations / knots[..., -1] * scores[-1]
        below = deviations / knots[..., 0] * scores[0]
    result = np.where(
        (deviations > knots[..., -1]) & (scores[-1] > 0) & (knots[..., -1] > 0),
        above,
        np.where((deviations < knots[..., 0]) & (scores[0] < 0) & (knots[..., 0] < 0), below, inside),
    )
    is_usable = np.isfinite(deviations) & np.isfinite(spreads) & (spreads > 0)
    return np.where(is_usable, np.clip(np.nan_to_num(result), -MAX_SCORE, MAX_SCORE), np.nan)


def compute_quantiles(
    scores: Float64[np.ndarray, "row level"],
    offsets: Float64[np.ndarray, "row horizon head_level"],
    head_levels: Sequence[float],
) -> Float64[np.ndarray, "row horizon level"]:
    """Returns the values, relative to the median, that have these normal scores under the head's distribution.

    Args:
        scores: The scores of the wanted quantiles of each row.
        offsets: Quantiles of the head relative to the median, ascending.
        head_levels: Their levels, ascending; the median is one of them.
    """
    knots = normal_quantiles(head_levels)
    left = np.clip(np.searchsorted(knots, scores, side="right") - 1, 0, len(knots) - 2)
    weights = (scores - knots[left]) / (knots[left + 1] - knots[left])
    rows = np.arange(len(offsets))[:, None]
    low, high = (offsets.transpose(0, 2, 1)[rows, index].transpose(0, 2, 1) for index in (left, left + 1))
    result = low + (high - low) * weights[:, None, :]
    for is_beyond, outer in (((scores > knots[-1]) & (knots[-1] > 0), -1), ((scores < knots[0]) & (knots[0] < 0), 0)):
        if is_beyond.any():
            beyond = offsets[:, :, outer, None] * (scores / knots[outer])[:, None, :]
            result = np.where(is_beyond[:, None, :], beyond, result)
    return np.asarray(result)

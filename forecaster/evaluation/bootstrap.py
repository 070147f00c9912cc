"""Bootstrap of the relative gain of one forecaster over another: series and blocks of windows are resampled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from forecaster.evaluation.significance import student_t_tail
from forecaster.metrics import nanmean
from forecaster.shapes import Float64

NUM_RESAMPLES = 999
MAX_VALUES_AT_ONCE = 1 << 22  # values of a resampling held in memory

WindowErrors = Float64[np.ndarray, "series window"]


class PairedGain(NamedTuple):
    """By what share the candidate's errors are smaller than the baseline's, and the uncertainty of that share.

    Attributes:
        gain: 1 less the candidate's mean error over the baseline's: 0.05 is five percent better; NaN where nothing is measured.
        low: Lower bound of the gain at the requested one-sided confidence; NaN where nothing could be resampled.
        p: Probability of such a gain, or a larger one, for a candidate that is no better; NaN where nothing could be resampled.
        series: Number of series.
        windows: Number of windows.
        resampled_units: What was resampled, in words.
        resampled_gains: The gain in each resampling.
    """

    gain: float
    low: float
    p: float
    series: int
    windows: int
    resampled_units: str
    resampled_gains: Float64[np.ndarray, "draw"]


def compute_paired_gain(
    candidate_errors: WindowErrors,
    baseline_errors: WindowErrors,
    *,
    block_length: int,
    min_units: int,
    confidence: float,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> PairedGain:
    """Compares mean errors (of each series over its windows, then over series) on the windows that both have.

    Series are resampled with replacement, and so are circular blocks of successive windows, the same for all series: windows
    of one series depend on each other, and so do series at one time (Politis and Romano 1992; both at once is Owen's pigeonhole
    bootstrap of 2007, which is conservative). An axis with fewer than `min_units` units, series or blocks, carries little
    information: it is not resampled, unless both are that short. The resampled gains give the standard error; the bounds are
    Student's, with one degree of freedom less than the number of series or blocks, whichever is smaller.

    Args:
        candidate_errors: Mean error of each series in each window; NaN where not measured.
        baseline_errors: The same for the other forecaster.
        block_length: Windows of a block.
        min_units: Units an axis needs to be resampled, as above.
        confidence: Of `low`, one-sided.
        seed: Of the resampling.
        num_resamples: Number of resamplings.
    """
    valid = np.isfinite(candidate_errors) & np.isfinite(baseline_errors)
    rows, columns = valid.any(axis=1), valid.any(axis=0)
    candidate_errors, baseline_errors = (
        np.where(valid, errors, np.nan)[rows][:, columns] for errors in (candidate_errors, baseline_errors)
    )
    series, windows = candidate_errors.shape
    gain = _relative_gain(
        float(nanmean(nanmean(candidate_errors, axis=1))), float(nanmean(nanmean(baseline_errors, axis=1)))
    )
    block_length = max(1, min(block_length, windows))
    units = {"series": series, "blocks of windows": windows // block_length}
    long_axes = [axis for axis, count in units.items() if count >= min_units]
    window_axes = ["blocks of windows"] if windows >= min_units and units["blocks of windows"] > 1 else []
    resampled_axes = long_axes or window_axes or [axis for axis, count in units.items() if count > 1]
    if not resampled_axes or math.isnan(gain):
        return PairedGain(gain, math.nan, math.nan, series, windows, "nothing", np.empty(0))
    rng = np.random.default_rng(seed)
    resampled_gains = np.concatenate(
        [
            _resampled_gains(
                candidate_errors,
                baseline_errors,
                draw_series_counts(rng, series, count) if "series" in resampled_axes else np.ones((count, series)),
                _draw_window_counts(rng, windows, block_length, count)
                if len(resampled_axes) > ("series" in resampled_axes)
                else None,
            )
            for count in chunk_sizes(num_resamples, max(1, MAX_VALUES_AT_ONCE // series))
        ]
    )
    fewest = min(units[axis] for axis in resampled_axes)
    error = float(np.nanstd(resampled_gains)) * math.sqrt(fewest / (fewest - 1))
    description = " and ".join(f"{units[axis]} {axis}" for axis in resampled_axes)
    if error <= 1e-12 * max(1.0, abs(gain)):  # the gain is the same in every resampling
        return PairedGain(gain, gain, 0.0 if gain > 0 else 1.0, series, windows, description, resampled_gains)
    from scipy.special import stdtrit  # the quantile of Student's t

    tail_probability = student_t_tail(gain / error, fewest - 1) / 2
    low = gain - float(stdtrit(fewest - 1, confidence)) * error
    return PairedGain(
        gain, low, tail_probability if gain > 0 else 1 - tail_probability, series, windows, description, resampled_gains
    )


def choose_block_length(*, windows: int, horizon: int, stride: int) -> int:
    """Returns how many successive windows depend on each other: those that overlap, or the cube root of all if larger."""
    return max(-(-horizon // stride), round(math.cbrt(windows)))


def _relative_gain(candidate: float, baseline: float) -> float:
    if math.isnan(candidate) or math.isnan(baseline):
        return math.nan
    if baseline == 0:  # no error is better than zero
        return 0.0 if candidate == 0 else -math.inf
    return 1 - candidate / baseline


def _resampled_gains(
    candidate_errors: WindowErrors,
    baseline_errors: WindowErrors,
    series_counts: Float64[np.ndarray, "draw series"],
    window_counts: Float64[np.ndarray, "draw window"] | None,
) -> Float64[np.ndarray, "draw"]:
    """Returns the gain of each resampling, in which series and windows count as often as they were drawn."""
    valid = np.isfinite(candidate_errors)
    if window_counts is None:
        drawn = np.ones((len(series_counts), len(candidate_errors)), dtype=bool)
        means = [
            np.broadcast_to(nanmean(errors, axis=1), drawn.shape) for errors in (candidate_errors, baseline_errors)
        ]
    else:
        weight = window_counts @ valid.T.astype(np.float64)
        drawn = weight > 0
        share = np.where(drawn, weight, 1.0)
        means = [
            window_counts @ np.where(valid, errors, 0.0).T / share for errors in (candidate_errors, baseline_errors)
        ]
    totals = [np.where(drawn, series_counts * mean, 0.0).sum(axis=1) for mean in means]
    return np.asarray(1 - np.divide(totals[0], totals[1], out=np.full(len(series_counts), np.nan), where=totals[1] > 0))


def draw_series_counts(
    rng: np.random.Generator, num_series: int, num_resamples: int
) -> Float64[np.ndarray, "draw series"]:
    """Returns how often each series is drawn in each resampling, in which as many are drawn with replacement as there are."""
    indices = (
        rng.integers(num_series, size=(num_resamples, num_series)) + num_series * np.arange(num_resamples)[:, None]
    )
    return (
        np.bincount(indices.ravel(), minlength=num_resamples * num_series)
        .reshape(num_resamples, num_series)
        .astype(np.float64)
    )


def _draw_window_counts(
    rng: np.random.Generator, num_windows: int, block_length: int, num_resamples: int
) -> Float64[np.ndarray, "draw window"]:
    starts = rng.integers(num_windows, size=(num_resamples, -(-num_windows // block_length)))
    indices = ((starts[:, :, None] + np.arange(block_length)) % num_windows).reshape(num_resamples, -1)[:, :num_windows]
    row_offsets = num_windows * np.arange(num_resamples)[:, None]
    return (
        np.bincount((indices + row_offsets).ravel(), minlength=num_resamples * num_windows)
        .reshape(num_resamples, num_windows)
        .astype(np.float64)
    )


def chunk_sizes(total: int, chunk_size: int) -> Iterator[int]:
    """Yields the sizes of the chunks into which `total` resamplings are cut."""
    for first in range(0, total, chunk_size):
        yield min(chunk_size, total - first)

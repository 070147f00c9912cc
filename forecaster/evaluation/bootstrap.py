"""How much better one forecaster is than another, and how far chance moves that: series and blocks of windows are redrawn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from forecaster.evaluation.significance import student_t_tail
from forecaster.metrics import nanmean
from forecaster.shapes import Float64

NUM_RESAMPLES = 999
_MAX_VALUES_AT_ONCE = 1 << 22  # numbers of a resampling held in memory

WindowErrors = Float64[np.ndarray, "series window"]


class PairedGain(NamedTuple):
    """By what share our errors are smaller than theirs, and how sure that is.

    Attributes:
        gain: 1 less our mean error over theirs: 0.05 is five percent better; NaN where there is nothing to measure.
        low: The gain is above this with the confidence asked for; NaN where nothing could be redrawn.
        p: The chance of such a gain, or a larger one, of a forecaster that is no better; NaN likewise.
        series: How many series there were.
        windows: How many windows there were.
        redrawn: What was redrawn, in words.
        draws: The gain in each resampling.
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

    Series are redrawn with replacement, and so are circular blocks of successive windows, the same for all series: windows
    of one series depend on each other, and series at one time do (Politis and Romano 1992; both at once is Owen's pigeonhole
    bootstrap of 2007, which errs on the side of caution). Of an axis with fewer than `min_units` units, series or blocks, little
    can be learnt: it is held as it is, unless both are so short. What the draws tell is the standard error; the bounds are
    Student's, with a degree less than there are series, or blocks, whichever are fewer.

    Args:
        ours: Mean error of each series in each window; NaN was not measured.
        theirs: Of the other forecaster.
        block: Windows of a block.
        least: As above.
        confidence: Of `low`, one-sided.
        seed: Of the resampling.
        draws: Resamplings.
    """
    there = np.isfinite(candidate_errors) & np.isfinite(baseline_errors)
    rows, columns = there.any(axis=1), there.any(axis=0)
    candidate_errors, baseline_errors = (
        np.where(there, errors, np.nan)[rows][:, columns] for errors in (candidate_errors, baseline_errors)
    )
    series, windows = candidate_errors.shape
    found = _relative_gain(
        float(nanmean(nanmean(candidate_errors, axis=1))), float(nanmean(nanmean(baseline_errors, axis=1)))
    )
    block_length = max(1, min(block_length, windows))
    units = {"series": series, "blocks of windows": windows // block_length}
    many = [axis for axis, count in units.items() if count >= min_units]
    some_windows = ["blocks of windows"] if windows >= min_units and units["blocks of windows"] > 1 else []
    redrawn = many or some_windows or [axis for axis, count in units.items() if count > 1]
    if not redrawn or math.isnan(found):
        return PairedGain(found, math.nan, math.nan, series, windows, "nothing", np.empty(0))
    draw = np.random.default_rng(seed)
    some = np.concatenate(
        [
            _resampled_gains(
                candidate_errors,
                baseline_errors,
                _draw_series_counts(draw, series, count) if "series" in redrawn else np.ones((count, series)),
                _draw_window_counts(draw, windows, block_length, count)
                if len(redrawn) > ("series" in redrawn)
                else None,
            )
            for count in _chunk_sizes(num_resamples, max(1, _MAX_VALUES_AT_ONCE // series))
        ]
    )
    fewest = min(units[axis] for axis in redrawn)
    error = float(np.nanstd(some)) * math.sqrt(fewest / (fewest - 1))
    words = " and ".join(f"{units[axis]} {axis}" for axis in redrawn)
    if error <= 1e-12 * max(1.0, abs(found)):  # the same everywhere: no chance in it
        return PairedGain(found, found, 0.0 if found > 0 else 1.0, series, windows, words, some)
    tail = student_t_tail(found / error, fewest - 1) / 2
    low = found - _student_t_quantile(confidence, fewest - 1) * error
    return PairedGain(found, low, tail if found > 0 else 1 - tail, series, windows, words, some)


def choose_block_length(*, windows: int, horizon: int, stride: int) -> int:
    """How many successive windows depend on each other: those that overlap, and the cube root of all for what lingers."""
    return max(-(-horizon // stride), round(math.cbrt(windows)))


def _relative_gain(candidate: float, baseline: float) -> float:
    if math.isnan(candidate) or math.isnan(baseline):
        return math.nan
    if baseline == 0:  # nothing is better than no error
        return 0.0 if candidate == 0 else -math.inf
    return 1 - candidate / baseline


def _resampled_gains(
    candidate_errors: WindowErrors,
    baseline_errors: WindowErrors,
    series_counts: Float64[np.ndarray, "draw series"],
    window_counts: Float64[np.ndarray, "draw window"] | None,
) -> Float64[np.ndarray, "draw"]:
    """The gain when every series and window counts as often as it was drawn."""
    there = np.isfinite(candidate_errors)
    if window_counts is None:
        counted = np.ones((len(series_counts), len(candidate_errors)), dtype=bool)
        means = [
            np.broadcast_to(nanmean(errors, axis=1), counted.shape) for errors in (candidate_errors, baseline_errors)
        ]
    else:
        weight = window_counts @ there.T.astype(np.float64)
        counted = weight > 0
        share = np.where(counted, weight, 1.0)
        means = [
            window_counts @ np.where(there, errors, 0.0).T / share for errors in (candidate_errors, baseline_errors)
        ]
    totals = [np.where(counted, series_counts * mean, 0.0).sum(axis=1) for mean in means]
    return np.asarray(1 - np.divide(totals[0], totals[1], out=np.full(len(series_counts), np.nan), where=totals[1] > 0))


def _draw_series_counts(
    rng: np.random.Generator, num_series: int, num_resamples: int
) -> Float64[np.ndarray, "draw series"]:
    places = rng.integers(num_series, size=(num_resamples, num_series)) + num_series * np.arange(num_resamples)[:, None]
    return (
        np.bincount(places.ravel(), minlength=num_resamples * num_series)
        .reshape(num_resamples, num_series)
        .astype(np.float64)
    )


def _draw_window_counts(
    rng: np.random.Generator, num_windows: int, block_length: int, num_resamples: int
) -> Float64[np.ndarray, "draw window"]:
    starts = rng.integers(num_windows, size=(num_resamples, -(-num_windows // block_length)))
    places = ((starts[:, :, None] + np.arange(block_length)) % num_windows).reshape(num_resamples, -1)[:, :num_windows]
    rows = num_windows * np.arange(num_resamples)[:, None]
    return (
        np.bincount((places + rows).ravel(), minlength=num_resamples * num_windows)
        .reshape(num_resamples, num_windows)
        .astype(np.float64)
    )


def _chunk_sizes(total: int, chunk_size: int) -> Iterator[int]:
    for first in range(0, total, chunk_size):
        yield min(chunk_size, total - first)


def _student_t_quantile(confidence: float, degrees: int) -> float:
    """Student's quantile, by bisection of its tail."""
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_t_tail(middle, degrees) / 2 > 1 - confidence else (low, middle)
    return high

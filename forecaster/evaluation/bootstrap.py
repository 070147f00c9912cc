"""How much better one forecaster is than another, and how far chance moves that: series and blocks of windows are redrawn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from forecaster.evaluation.significance import student_tail
from forecaster.metrics import nanmean
from forecaster.shapes import Float64

DRAWS = 999
_AT_ONCE = 1 << 22  # numbers of a resampling held in memory

Errors = Float64[np.ndarray, "series window"]


class Gain(NamedTuple):
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
    redrawn: str
    draws: Float64[np.ndarray, "draw"]


def paired_gain(
    ours: Errors, theirs: Errors, *, block: int, least: int, confidence: float, seed: int = 0, draws: int = DRAWS
) -> Gain:
    """Compares mean errors (of each series over its windows, then over series) on the windows that both have.

    Series are redrawn with replacement, and so are circular blocks of successive windows, the same for all series: windows
    of one series depend on each other, and series at one time do (Politis and Romano 1992; both at once is Owen's pigeonhole
    bootstrap of 2007, which errs on the side of caution). Of an axis with fewer than `least` units, series or blocks, little
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
    there = np.isfinite(ours) & np.isfinite(theirs)
    rows, columns = there.any(axis=1), there.any(axis=0)
    ours, theirs = (np.where(there, errors, np.nan)[rows][:, columns] for errors in (ours, theirs))
    series, windows = ours.shape
    found = _gain(float(nanmean(nanmean(ours, axis=1))), float(nanmean(nanmean(theirs, axis=1))))
    block = max(1, min(block, windows))
    units = {"series": series, "blocks of windows": windows // block}
    many = [axis for axis, count in units.items() if count >= least]
    some_windows = ["blocks of windows"] if windows >= least and units["blocks of windows"] > 1 else []
    redrawn = many or some_windows or [axis for axis, count in units.items() if count > 1]
    if not redrawn or math.isnan(found):
        return Gain(found, math.nan, math.nan, series, windows, "nothing", np.empty(0))
    draw = np.random.default_rng(seed)
    some = np.concatenate(
        [
            _redrawn(
                ours,
                theirs,
                _times_each_series(draw, series, count) if "series" in redrawn else np.ones((count, series)),
                _times_each_window(draw, windows, block, count) if len(redrawn) > ("series" in redrawn) else None,
            )
            for count in _chunks(draws, max(1, _AT_ONCE // series))
        ]
    )
    fewest = min(units[axis] for axis in redrawn)
    error = float(np.nanstd(some)) * math.sqrt(fewest / (fewest - 1))
    words = " and ".join(f"{units[axis]} {axis}" for axis in redrawn)
    if error <= 1e-12 * max(1.0, abs(found)):  # the same everywhere: no chance in it
        return Gain(found, found, 0.0 if found > 0 else 1.0, series, windows, words, some)
    tail = student_tail(found / error, fewest - 1) / 2
    low = found - _quantile(confidence, fewest - 1) * error
    return Gain(found, low, tail if found > 0 else 1 - tail, series, windows, words, some)


def block_of(*, windows: int, horizon: int, stride: int) -> int:
    """How many successive windows depend on each other: those that overlap, and the cube root of all for what lingers."""
    return max(-(-horizon // stride), round(math.cbrt(windows)))


def _gain(ours: float, theirs: float) -> float:
    if math.isnan(ours) or math.isnan(theirs):
        return math.nan
    if theirs == 0:  # nothing is better than no error
        return 0.0 if ours == 0 else -math.inf
    return 1 - ours / theirs


def _redrawn(
    ours: Errors,
    theirs: Errors,
    times: Float64[np.ndarray, "draw series"],
    windows: Float64[np.ndarray, "draw window"] | None,
) -> Float64[np.ndarray, "draw"]:
    """The gain when every series and window counts as often as it was drawn."""
    there = np.isfinite(ours)
    if windows is None:
        counted = np.ones((len(times), len(ours)), dtype=bool)
        means = [np.broadcast_to(nanmean(errors, axis=1), counted.shape) for errors in (ours, theirs)]
    else:
        weight = windows @ there.T.astype(np.float64)
        counted = weight > 0
        share = np.where(counted, weight, 1.0)
        means = [windows @ np.where(there, errors, 0.0).T / share for errors in (ours, theirs)]
    totals = [np.where(counted, times * mean, 0.0).sum(axis=1) for mean in means]
    return np.asarray(1 - np.divide(totals[0], totals[1], out=np.full(len(times), np.nan), where=totals[1] > 0))


def _times_each_series(draw: np.random.Generator, series: int, count: int) -> Float64[np.ndarray, "draw series"]:
    places = draw.integers(series, size=(count, series)) + series * np.arange(count)[:, None]
    return np.bincount(places.ravel(), minlength=count * series).reshape(count, series).astype(np.float64)


def _times_each_window(
    draw: np.random.Generator, windows: int, block: int, count: int
) -> Float64[np.ndarray, "draw window"]:
    starts = draw.integers(windows, size=(count, -(-windows // block)))
    places = ((starts[:, :, None] + np.arange(block)) % windows).reshape(count, -1)[:, :windows]
    rows = windows * np.arange(count)[:, None]
    return np.bincount((places + rows).ravel(), minlength=count * windows).reshape(count, windows).astype(np.float64)


def _chunks(draws: int, at_once: int) -> Iterator[int]:
    for first in range(0, draws, at_once):
        yield min(at_once, draws - first)


def _quantile(confidence: float, degrees: int) -> float:
    """Student's quantile, by bisection of its tail."""
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, degrees) / 2 > 1 - confidence else (low, middle)
    return high

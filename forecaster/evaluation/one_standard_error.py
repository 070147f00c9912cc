"""The choice of the simplest candidate whose errors are not clearly larger than the lowest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from forecaster.metrics import nanmean
from forecaster.shapes import Float64

MIN_SERIES = 10  # series from which their spread says how uncertain a mean over series is
MIN_WINDOWS = 5.0  # windows without overlap from which their spread says how uncertain a mean over windows is
MAX_EXCESS = 0.5  # share of the lowest error; what exceeds it by more is clearly worse

ErrorsByWindow = Float64[np.ndarray, "series window"]


class PairedDifference(NamedTuple):
    """How much larger the errors of a candidate are than those of the best one, on the same series and windows.

    Attributes:
        mean: The mean difference; infinite for a candidate without a forecast.
        standard_error: Its standard error; 0 if there is a single error.
        units: What the standard error was computed over, in words.
    """

    mean: float
    standard_error: float
    units: str


class SimplestChoice(NamedTuple):
    """The choice among candidates that are ordered from the simplest to the richest.

    Attributes:
        chosen: Index of the chosen candidate.
        best: Index of the candidate with the lowest mean error; among equal ones the simplest.
        means: The mean error of every candidate: over the windows of each series, then over series.
        differences: For every candidate, the difference of its errors from those of the best.
    """

    chosen: int
    best: int
    means: tuple[float, ...]
    differences: tuple[PairedDifference, ...]


def choose_simplest(errors: Sequence[ErrorsByWindow | None], *, overlap: float = 1.0) -> SimplestChoice:
    """Chooses the first candidate that is not clearly worse than the best: the one-standard-error rule.

    Breiman, Friedman, Olshen and Stone (1984, section 3.4.3) take the simplest tree whose cross-validated error is within one
    standard error of the lowest, because the lowest of several errors is lowest by luck too. Candidates that were measured
    on the same series and windows are compared in pairs, so the standard error is that of the mean difference d from the best:

        d_s = mean over windows of (error - error of the best),  SE = sd(d_s) / sqrt(number of series)

    and likewise with the mean over series of each window. Series differ in which candidate suits them, and share the luck of a
    window: the larger of the two is used. Fewer than MIN_SERIES series, or MIN_WINDOWS windows, have too uncertain a spread to
    be used; if there are few of both, the standard error is that over all pairs of a series and a window.

    One diverged forecast gives a mean difference and a standard error of the same size. A candidate whose mean error exceeds the
    lowest by more than MAX_EXCESS is therefore clearly worse in any case.

    Args:
        errors: The errors of each candidate, the simplest first, of the same series and windows; NaN where not measured, None
            for a candidate without any forecast. Only what all have counts.
        overlap: How many successive windows overlap: the horizon over the stride, at least 1. Windows that overlap are counted
            as those that fit beside each other.
    """
    measured = [values for values in errors if values is not None]
    if not measured:
        nothing = PairedDifference(math.inf, 0.0, "nothing")
        return SimplestChoice(0, 0, (math.inf,) * len(errors), (nothing,) * len(errors))
    shared = np.logical_and.reduce([np.isfinite(values) for values in measured])
    masked = [None if values is None else np.where(shared, values, np.nan) for values in errors]
    means = tuple(math.inf if values is None else _mean_over_series(values) for values in masked)
    best = int(np.argmin(means))
    best_errors = masked[best]
    assert best_errors is not None
    differences = tuple(
        PairedDifference(math.inf, 0.0, "nothing")
        if values is None
        else measure_difference(values - best_errors, overlap=overlap)
        for values in masked
    )
    is_clearly_worse = [
        difference.mean > difference.standard_error or mean > (1 + MAX_EXCESS) * means[best]
        for difference, mean in zip(differences, means, strict=True)
    ]
    return SimplestChoice(is_clearly_worse.index(False), best, means, differences)


def measure_difference(differences: ErrorsByWindow, *, overlap: float = 1.0) -> PairedDifference:
    """Returns the mean of paired differences, over windows and then over series, and its standard error (`choose_simplest`)."""
    by_series, by_window = nanmean(differences, axis=1), nanmean(differences, axis=0)
    by_series, by_window = by_series[np.isfinite(by_series)], by_window[np.isfinite(by_window)]
    num_series, num_windows = len(by_series), 1 + (len(by_window) - 1) / overlap
    estimates: list[tuple[float, str]] = []
    if num_series >= MIN_SERIES:
        estimates.append((_standard_error(by_series, float(num_series)), f"{num_series} series"))
    if num_windows >= MIN_WINDOWS:
        estimates.append((_standard_error(by_window, num_windows), f"{len(by_window)} windows"))
    if not estimates:
        cells = differences[np.isfinite(differences)]
        count = len(cells) * num_windows / max(1, len(by_window))
        estimates.append((_standard_error(cells, count), f"{len(by_window)} windows of {num_series} series"))
    error, units = max(estimates)
    return PairedDifference(_mean_over_series(differences), error, units)


def _mean_over_series(values: ErrorsByWindow) -> float:
    return float(nanmean(nanmean(values, axis=1)))


def _standard_error(values: Float64[np.ndarray, "unit"], count: float) -> float:
    """Returns the standard error of a mean of values that count as `count` independent ones; 0 for a single value."""
    return float(values.std(ddof=1)) / math.sqrt(count) if len(values) > 1 else 0.0

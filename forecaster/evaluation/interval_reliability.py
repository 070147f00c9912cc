"""Where intervals hold and where they do not: their coverage by predicted width and by volatility of the series.

An overall coverage of 80 % can hide intervals that cover 95 % of calm series and 50 % of volatile ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from forecaster.errors import InputError, LevelOutOfRange
from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.bootstrap import MAX_VALUES_AT_ONCE, NUM_RESAMPLES, chunk_sizes, draw_series_counts
from forecaster.evaluation.rolling_origins import ForecastArray
from forecaster.evaluation.scores import interval_bounds, interval_levels
from forecaster.metrics import nanmean
from forecaster.shapes import Float64

COVERAGE_CONFIDENCE = 0.95
"""Confidence of the bootstrap interval of a coverage."""
NUM_DECILES = 10
COLUMNS = ("forecaster", "share", "by", "decile", "low", "high", "n", "coverage", "coverage_lo", "coverage_hi")

DecileVariable = Literal["width", "volatility"]
CountArray = Float64[np.ndarray, "series group"]


def coverage_by_decile(
    result: Backtest,
    name: str,
    *,
    share: float,
    by: DecileVariable,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> pd.DataFrame:
    """Returns the coverage of central intervals in deciles of their width or of the volatility of their series.

    By `width`, every interval has a value of its own: its width over the series' scale of MASE. By `volatility`, all intervals
    of a series have one value: the scale of MASE over the mean absolute value of the history before the first cutoff. Both
    are known when the forecast is made, so intervals that hold for every kind of series have their nominal coverage in every
    decile.

    The bounds of the coverage are percentiles of a bootstrap in which whole series are drawn with replacement, as the intervals
    of one series depend on each other (Davison and Hinkley 1997, section 3.8). Series that move together carry less information
    than their number suggests, and the bounds are then too narrow.

    Args:
        result: The backtest; only windows with a forecast of every forecaster count.
        name: A forecaster with quantiles at the bounds of the intervals.
        share: Nominal coverage, such as 0.8.
        by: What the deciles are formed of.
        seed: Seed of the resampling.
        num_resamples: Number of resamplings.
    Returns:
        One row per decile: `forecaster, share, by, decile` (from 1), `low, high` (of the variable), `n` (observed steps),
        `coverage, coverage_lo, coverage_hi` (NaN with fewer than two series). Equal values are in one decile, so that some
        may be absent; series without a scale, or without a level in the case of volatility, are left out.
    Raises:
        InputError: the forecaster has no quantiles, or `by` is unknown.
        LevelOutOfRange: the backtest lacks the levels of this share.
    """
    return _build_decile_table(
        name, [_count_deciles(result, name, share=share, by=by)], seed=seed, num_resamples=num_resamples
    )


def reliability_table(
    result: Backtest, name: str, *, shares: Sequence[float], seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> pd.DataFrame:
    """Returns `coverage_by_decile` of several shares by both variables, one below the other."""
    variables: tuple[DecileVariable, ...] = ("width", "volatility")
    counts = [_count_deciles(result, name, share=share, by=by) for share in shares for by in variables]
    return _build_decile_table(name, counts, seed=seed, num_resamples=num_resamples)


def coverage_by_share(
    result: Backtest, name: str, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> pd.DataFrame:
    """Returns the coverage and the width of the central intervals of every share that the levels of a backtest give.

    Args:
        result: The backtest; only windows with a forecast of every forecaster count.
        name: A forecaster with quantiles.
        seed: Seed of the bootstrap over series, which is that of `coverage_by_decile`.
        num_resamples: Number of resamplings.
    Returns:
        One row per share, ascending: `forecaster, share, n, coverage, coverage_lo, coverage_hi, width`. `width` is the mean
        width over the scale of MASE, of each series first and then over the series with a scale.
    """
    shares = central_shares(result.levels)
    totals, hits, widths = [], [], []
    observed = result.comparable_mask()[:, :, None] & np.isfinite(result.actual)
    for share in shares:
        low, high = interval_bounds(result, name, share=share)
        valid = observed & np.isfinite(low) & np.isfinite(high)
        totals.append(valid.sum(axis=(1, 2)))
        hits.append((valid & (low <= result.actual) & (result.actual <= high)).sum(axis=(1, 2)))
        scaled = np.where(valid, (high - low) / result.scale[:, None, None], np.nan)
        widths.append(float(nanmean(nanmean(scaled, axis=(1, 2)))))
    if not shares:
        return pd.DataFrame(columns=["forecaster", "share", "n", "coverage", "coverage_lo", "coverage_hi", "width"])
    total, hit = (np.stack(counts, axis=1).astype(np.float64) for counts in (totals, hits))
    low_bounds, high_bounds = _bootstrap_coverage(total, hit, seed=seed, num_resamples=num_resamples)
    counts = total.sum(axis=0)
    coverage = np.divide(hit.sum(axis=0), counts, out=np.full(len(shares), np.nan), where=counts > 0)
    return pd.DataFrame(
        {
            "forecaster": name,
            "share": shares,
            "n": counts.astype(np.int64),
            "coverage": coverage,
            "coverage_lo": low_bounds,
            "coverage_hi": high_bounds,
            "width": widths,
        }
    )


def central_shares(levels: Sequence[float]) -> list[float]:
    """Returns the nominal coverages of all central intervals between two of the levels, ascending."""
    below = [level for level in levels if level < 0.5]
    shares = sorted(round(1 - 2 * level, 6) for level in below)
    return [share for share in shares if set(interval_levels(share)) <= set(levels)]


class _DecileCounts(NamedTuple):
    """The intervals of one share in the deciles of one variable: its range in each, and steps of each series."""

    share: float
    by: DecileVariable
    low: Float64[np.ndarray, "decile"]
    high: Float64[np.ndarray, "decile"]
    totals: Float64[np.ndarray, "series decile"]
    hits: Float64[np.ndarray, "series decile"]


def _count_deciles(result: Backtest, name: str, *, share: float, by: DecileVariable) -> _DecileCounts:
    _validate(result, name, share=share, by=by)
    low, high = interval_bounds(result, name, share=share)
    value = _measure_widths(result, low, high) if by == "width" else _measure_volatility(result)
    valid = (
        result.comparable_mask()[:, :, None]
        & np.isfinite(result.actual)
        & np.isfinite(low)
        & np.isfinite(high)
        & np.isfinite(value)
    )
    # Deciles of volatility are those of the series, so that each has as many series.
    ranked = value[valid] if by == "width" else value[valid.any(axis=(1, 2)), 0, 0]
    inner_edges = np.quantile(ranked, np.arange(1, NUM_DECILES) / NUM_DECILES) if len(ranked) else np.zeros(0)
    deciles = np.searchsorted(inner_edges, value, side="left")
    inside = valid & (low <= result.actual) & (result.actual <= high)
    masks = [valid & (deciles == decile) for decile in range(NUM_DECILES)]
    return _DecileCounts(
        share,
        by,
        low=np.array([np.min(value[mask], initial=np.inf) for mask in masks]),
        high=np.array([np.max(value[mask], initial=-np.inf) for mask in masks]),
        totals=np.stack([mask.sum(axis=(1, 2)) for mask in masks], axis=1).astype(np.float64),
        hits=np.stack([(mask & inside).sum(axis=(1, 2)) for mask in masks], axis=1).astype(np.float64),
    )


def _build_decile_table(
    name: str, all_counts: Sequence[_DecileCounts], *, seed: int, num_resamples: int
) -> pd.DataFrame:
    """Builds the table of `coverage_by_decile`; all shares and variables are resampled together, which is faster."""
    totals, hits = (
        np.concatenate([getattr(counts, part) for counts in all_counts], axis=1) for part in ("totals", "hits")
    )
    coverage_lo, coverage_hi = _bootstrap_coverage(totals, hits, seed=seed, num_resamples=num_resamples)
    rows = []
    for group in np.flatnonzero(totals.sum(axis=0)).tolist():
        index, decile = divmod(group, NUM_DECILES)
        counts, num_steps = all_counts[index], int(totals[:, group].sum())
        coverage = float(hits[:, group].sum() / num_steps)
        limits = (float(counts.low[decile]), float(counts.high[decile]))
        bounds = (float(coverage_lo[group]), float(coverage_hi[group]))
        rows.append((name, counts.share, counts.by, decile + 1, *limits, num_steps, coverage, *bounds))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _validate(result: Backtest, name: str, *, share: float, by: str) -> None:
    if name not in result.quantiles:
        found = ", ".join(result.quantiles) or "none"
        raise InputError(
            f"Expected a forecaster with quantiles; found {name!r}, and quantiles of: {found}. Add them to the backtest with "
            "`add_quantiles`.",
            where="name",
        )
    if by not in ("width", "volatility"):
        raise InputError(f"Expected deciles of 'width' or 'volatility'; found {by!r}. Use one of them.", where="by")
    if not 0 < share < 1 or not set(interval_levels(share)) <= set(result.levels):
        levels = ", ".join(f"{level:g}" for level in result.levels)
        raise LevelOutOfRange(
            f"Expected a share between 0 and 1 whose interval lies between two levels of the backtest; found {share}, and the "
            f"levels {levels}. Add the levels (1 - share) / 2 and (1 + share) / 2 with `add_quantiles`.",
            where="share",
        )


def _measure_widths(result: Backtest, low: ForecastArray, high: ForecastArray) -> ForecastArray:
    """Returns the width of every interval over the scale of its series."""
    return np.asarray((high - low) / result.scale[:, None, None])


def _measure_volatility(result: Backtest) -> ForecastArray:
    """Returns the scale of each series over the mean absolute value of its history, repeated for all its steps.

    The division makes series of different units comparable. A history of zeros has no level, and gives NaN.
    """
    held_out = max(result.origin_offsets, default=0)
    levels = np.array([float(nanmean(np.abs(item.y[: len(item) - held_out]))) for item in result.series])
    volatility = result.scale / np.where(levels > 0, levels, np.nan)
    return np.broadcast_to(volatility[:, None, None], result.actual.shape).copy()


def _bootstrap_coverage(
    totals: CountArray, hits: CountArray, *, seed: int, num_resamples: int
) -> tuple[Float64[np.ndarray, "group"], Float64[np.ndarray, "group"]]:
    """Returns the bounds of the coverage of each group of intervals; NaN with fewer than two series in it."""
    rng, num_series = np.random.default_rng(seed), len(totals)
    resampled = []
    for count in chunk_sizes(num_resamples, max(1, MAX_VALUES_AT_ONCE // num_series)):
        counts = draw_series_counts(rng, num_series, count)
        drawn = counts @ totals
        resampled.append(np.divide(counts @ hits, drawn, out=np.full(drawn.shape, np.nan), where=drawn > 0))
    shares = np.concatenate(resampled)
    bounds = np.full((2, totals.shape[1]), np.nan)
    tail = (1 - COVERAGE_CONFIDENCE) / 2
    for group in np.flatnonzero((totals > 0).sum(axis=0) > 1):
        bounds[:, group] = np.nanquantile(shares[:, group], [tail, 1 - tail])
    return bounds[0], bounds[1]

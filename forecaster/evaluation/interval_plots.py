"""Matplotlib figures of intervals: how reliable and how wide they are, and the bands of single series."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from forecaster.evaluation.interval_reliability import coverage_by_share
from forecaster.evaluation.plots import (
    BASELINE_COLOR,
    FORECASTER_COLORS,
    GRID_COLOR,
    plot_window,
    shade_nested_intervals,
    shorten,
    style_axes,
    time_title,
)
from forecaster.evaluation.scores import INTERVALS, MSIS_SHARE, interval_bounds, interval_levels
from forecaster.metrics import nanmean, winkler_score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from forecaster.evaluation.backtest import Backtest
    from forecaster.shapes import Float64


def plot_reliability(result: Backtest) -> Figure:
    """Plots the coverage of central intervals against their nominal share, and beside it their mean width.

    Reliable intervals lie on the diagonal; of two reliable forecasters the one with narrower intervals is better. The error
    bars are the 95 % bounds of a bootstrap over series, with at least two of them.
    """
    figure = Figure(figsize=(10.5, 4.9), dpi=110)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.08, right=0.97, bottom=0.12, top=0.93, wspace=0.22)  # faster than measured positions
    for axes, title in ((left, "Reliability"), (right, "Sharpness")):
        style_axes(axes, title)
        axes.grid(axis="x", color=GRID_COLOR, linewidth=0.6)
        axes.set(xlim=(0, 1), xlabel="nominal share of the interval")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    left.plot([0, 1], [0, 1], color=BASELINE_COLOR, linewidth=1.0, linestyle="--", label="reliable")
    for index, name in enumerate(result.quantiles):
        _plot_shares(left, right, result, name, color=FORECASTER_COLORS[index % len(FORECASTER_COLORS)])
    left.yaxis.set_major_formatter(PercentFormatter(1.0))
    left.set(ylim=(0, 1), aspect="equal", ylabel="observed share of actuals within the interval")
    right.set_ylabel("mean width over the scale of MASE")
    right.set_ylim(bottom=0)
    left.legend(frameon=False, loc="upper left")
    return figure


def _plot_shares(left: Axes, right: Axes, result: Backtest, name: str, *, color: str) -> None:
    table = coverage_by_share(result, name)
    share, coverage = table["share"].to_numpy(np.float64), table["coverage"].to_numpy(np.float64)
    bounds = np.stack([coverage - table["coverage_lo"], table["coverage_hi"] - coverage])
    left.errorbar(
        share,
        coverage,
        yerr=np.maximum(bounds, 0),
        color=color,
        linewidth=1.4,
        marker="o",
        markersize=4,
        capsize=3,
        label=name,
    )
    right.plot(share, table["width"], color=color, linewidth=1.4, marker="o", markersize=4, label=name)


def plot_interval_bands(result: Backtest, name: str) -> Figure:
    """Plots the last window of the series with the best, the median and the worst intervals: 80 % and 95 % bands.

    Intervals are ranked by their score in that window (MSIS at 95 %, see `forecaster.metrics.msis`), which rewards narrow bands
    and penalises actuals outside. Without a series with a scale the score is in units of the data.
    """
    scores, unit = _score_last_window(result, name)
    order = [int(row) for row in np.argsort(scores, kind="stable")[: int(np.isfinite(scores).sum())]]
    panels = _choose_panels(order)
    figure = Figure(figsize=(max(4.4 * len(panels) + 0.4, 7.0), 3.9), dpi=110, layout="constrained")  # 7 for the legend
    figure.suptitle(f"{name}: intervals in the last window", x=0.01, ha="left", fontsize=11)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (series, label) in zip(grid, panels.items(), strict=True):
        plot_window(axes, result, name, series, shares=INTERVALS)
        score = f", {unit} {scores[series]:.3g}" if order else ""
        axes.set_title(f"{label}{shorten(result.series[series].id)}{score}", loc="left", fontsize=9)
        axes.set_xlabel(time_title(result.series[series]), fontsize=8)
    grid[0].set_ylabel("value", fontsize=8)
    handles, labels = shade_nested_intervals(grid[0])
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(labels))
    return figure


def _choose_panels(order: Sequence[int]) -> dict[int, str]:
    """Returns the indices of the series to draw and the beginnings of their titles, given all from best to worst."""
    if not order:
        return {0: "without actuals: "}
    if len(order) == 1:
        return {order[0]: ""}
    median = {order[(len(order) - 1) // 2]: "median: "} if len(order) > 2 else {}
    return {order[0]: "best: ", **median, order[-1]: "worst: "}


def _score_last_window(result: Backtest, name: str) -> tuple[Float64[np.ndarray, "series"], str]:
    """Returns the mean interval score of each series in the last window, and its name."""
    if not set(interval_levels(MSIS_SHARE)) <= set(result.levels):
        return np.full(len(result.series), np.nan), ""
    low, high = (bound[:, -1] for bound in interval_bounds(result, name, share=MSIS_SHARE))
    scores = nanmean(winkler_score(result.actual[:, -1], low, high, level=MSIS_SHARE), axis=1)
    scaled = scores / result.scale
    return (scaled, "MSIS") if np.isfinite(scaled).any() else (scores, "interval score")

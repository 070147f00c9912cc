"""Plots of a hyperparameter search, in the style of forecaster.evaluation.plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from forecaster.evaluation.plots import BASELINE_COLOR, FORECAST_COLOR, GRID_COLOR, MEASURE_COLOR

_Y_LIMIT_FACTOR = 1.3  # upper limit over the largest of the baselines and the first value; worse trials are cut off


def plot_optimization_history(
    trials: Sequence[tuple[int, float, bool]], *, baseline_values: Mapping[str, float], title: str
) -> Figure:
    """Plots the value of every trial, the best value so far, and the values of the baselines.

    Args:
        trials: Per trial its number from 1, its value (the last one if it was pruned), and whether it completed. A pruned
            trial cannot be the best.
        baseline_values: The values of the baselines on the same windows, by label.
        title: Title of the figure.
    """
    figure, axes = _create_axes(title, height=4)
    number, value, is_completed = (np.array(column) for column in zip(*trials, strict=True))
    for (label, baseline), line_style in zip(baseline_values.items(), ("--", ":", "-."), strict=False):
        axes.axhline(baseline, color=BASELINE_COLOR, linewidth=1.2, linestyle=line_style, label=label)
    if is_completed.any():
        best = np.minimum.accumulate(np.where(is_completed, value, np.inf))
        axes.step(number, best, where="post", color=FORECAST_COLOR, linewidth=1.6, label="best so far")
        axes.scatter(number[is_completed], value[is_completed], color=MEASURE_COLOR, s=24, label="completed", zorder=3)
    if not is_completed.all():
        axes.scatter(
            number[~is_completed],
            value[~is_completed],
            color=MEASURE_COLOR,
            s=24,
            marker="x",
            label="stopped early",
            zorder=3,
        )
    references = list(baseline_values.values())
    highest = _Y_LIMIT_FACTOR * max([*references, *value[is_completed][:1]])
    lowest, top = min([*references, *value]), min(max([*references, *value]), highest)
    margin = 0.05 * (top - lowest) or 0.05 * abs(top) or 1.0
    axes.set_ylim(lowest - margin, top + 4 * margin)  # room for the legend
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel("free-running error on validation windows (MASE)")
    axes.grid(axis="y", color=GRID_COLOR, linewidth=0.6)
    axes.legend(frameon=False, loc="upper right", ncols=5)
    return figure


def plot_param_importances(importances: Mapping[str, float], *, title: str) -> Figure:
    """Plots the importance of each field, the largest on top, as shares that sum to one."""
    figure, axes = _create_axes(title, height=0.8 + 0.3 * len(importances))
    names, shares = list(importances)[::-1], list(importances.values())[::-1]
    axes.barh(names, shares, color=MEASURE_COLOR, height=0.6)
    axes.set_xlabel("share of the importance")
    axes.set_ylabel("field of the specification")
    axes.grid(axis="x", color=GRID_COLOR, linewidth=0.6)
    return figure


def _create_axes(title: str, *, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(10, height), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes

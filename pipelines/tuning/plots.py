"""Pictures of a search, in the manner of forecaster.evaluation.plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from forecaster.evaluation.plots import ACTUAL_COLOR, BASELINE_COLOR, FORECAST_COLOR, HISTORY_COLOR

_Y_LIMIT_FACTOR = 1.3  # of the larger of seasonal naive and the first value; what is worse is drawn at the upper edge


def plot_optimization_history(
    trials: Sequence[tuple[int, float, bool]], *, seasonal_naive_value: float, title: str
) -> Figure:
    """The value of every trial, the best so far, and that of seasonal naive.

    Args:
        trials: Of each its count from 1, its value (where it was pruned, its last), and whether it came to its end. One that
            did not is no best.
        naive: Seasonal naive's value on the same windows.
        title: Above the picture.
    """
    figure, axes = _create_axes(title, height=4)
    number, value, ended = (np.array(column) for column in zip(*trials, strict=True))
    axes.axhline(seasonal_naive_value, color=BASELINE_COLOR, linewidth=1.2, linestyle="--", label="seasonal naive")
    if ended.any():
        best = np.minimum.accumulate(np.where(ended, value, np.inf))
        axes.step(number, best, where="post", color=FORECAST_COLOR, linewidth=1.6, label="best so far")
        axes.scatter(number[ended], value[ended], color=ACTUAL_COLOR, s=24, label="done", zorder=3)
    if not ended.all():
        axes.scatter(number[~ended], value[~ended], color=HISTORY_COLOR, s=24, marker="x", label="pruned", zorder=3)
    highest = _Y_LIMIT_FACTOR * max([seasonal_naive_value, *value[ended][:1]])
    lowest, top = min([seasonal_naive_value, *value]), min(max([seasonal_naive_value, *value]), highest)
    margin = 0.05 * (top - lowest) or 0.05 * abs(top) or 1.0
    axes.set_ylim(lowest - margin, top + 4 * margin)  # the legend is above
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel("rollout on validation windows (MASE)")
    axes.grid(axis="y", color="#e3e5e8", linewidth=0.6)
    axes.legend(frameon=False, loc="upper right", ncols=4)
    return figure


def plot_param_importances(importances: Mapping[str, float], *, title: str) -> Figure:
    """How much each field decided, most on top; shares of one."""
    figure, axes = _create_axes(title, height=0.8 + 0.3 * len(importances))
    names, shares = list(importances)[::-1], list(importances.values())[::-1]
    axes.barh(names, shares, color=ACTUAL_COLOR, height=0.6)
    axes.set_xlabel("share of the importance")
    axes.grid(axis="x", color="#e3e5e8", linewidth=0.6)
    return figure


def _create_axes(title: str, *, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(10, height), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes

"""The figures of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from forecaster.evaluation.plots import ACTUAL_COLOR, BASELINE_COLOR, FORECAST_COLOR, HISTORY_COLOR, style_axes
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64


class DrawnForecast(NamedTuple):
    """A forecast with its history, its actuals and a title."""

    title: str
    history: Series
    forecast: Forecast
    actual: Float64[np.ndarray, "_"]


def plot_side_by_side(
    drawn: Sequence[DrawnForecast], *, history_steps: int, title: str, labels: tuple[str, str], share_y: bool = False
) -> Figure:
    """Plots forecasts side by side, each with its history, its interval and its actuals.

    Args:
        drawn: The forecasts.
        history_steps: Steps of the history that are shown.
        title: Title of the figure.
        labels: Labels of the horizontal and the vertical axis.
        share_y: Whether all have the same vertical axis.
    """
    figure = Figure(figsize=(4.2 * len(drawn) if len(drawn) > 2 else 12, 4), dpi=110, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    row = figure.subplots(1, len(drawn), sharey=share_y, squeeze=False)[0]
    for axes, item in zip(row, drawn, strict=True):
        _plot_forecast(axes, item, history_steps)
        axes.set_xlabel(labels[0])
    row[0].set_ylabel(labels[1])
    handles, names = row[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, loc="outside lower center", ncols=len(names))
    return figure


def _plot_forecast(axes: Axes, item: DrawnForecast, history_steps: int) -> None:
    history, forecast = item.history, item.forecast
    timestamps, y = history.timestamps[-history_steps:], history.y[-history_steps:]
    future = timestamps[-1:].append(forecast.ds)  # lines join where the history ends
    style_axes(axes, item.title)
    axes.plot(timestamps, y, color=HISTORY_COLOR, linewidth=1.1, label="history")
    axes.plot(future, np.append(y[-1], item.actual), color=ACTUAL_COLOR, linewidth=1.3, label="actuals")
    if forecast.quantiles:
        low, high = (forecast.quantiles[level] for level in (min(forecast.quantiles), max(forecast.quantiles)))
        axes.fill_between(forecast.ds, low, high, color=FORECAST_COLOR, alpha=0.15, linewidth=0, label="80 % interval")
    axes.plot(future, np.append(y[-1], forecast.mean), color=FORECAST_COLOR, linewidth=1.6, label="forecast")
    axes.axvline(axes.convert_xunits(timestamps[-1]), color=BASELINE_COLOR, linewidth=0.8, linestyle=":")  # type: ignore[no-untyped-call]
    locator: Any = AutoDateLocator(minticks=3, maxticks=6)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))  # type: ignore[no-untyped-call]
    axes.margins(y=0.1)

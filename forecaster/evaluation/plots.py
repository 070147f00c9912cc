"""Pictures for people who would rather look than read. Figures are made without pyplot: no global state, any thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from forecaster.evaluation.backtest import Backtest
    from forecaster.frequency import Stamp
    from forecaster.series import Forecast, Series
    from forecaster.shapes import Float64

HISTORY, FORECAST, TRUTH, BASELINE = "#4a4e57", "#c2410c", "#1d6fa5", "#8a8f98"


def forecast_plot(
    history: Series,
    forecast: Forecast,
    *,
    actual: Float64[np.ndarray, "_"] | None = None,
    title: str,
    shown: int = 200,
) -> Figure:
    """History, forecast and, where it is known, what came; the last `shown` steps of the history."""
    figure, axes = _axes(title)
    stamps, y = history.stamps[-shown:], history.y[-shown:]
    ahead = stamps[-1:].append(forecast.ds)  # lines join where the history ends
    axes.plot(stamps, y, color=HISTORY, linewidth=1.2, label="history")
    if actual is not None:
        axes.plot(ahead, np.append(y[-1], actual), color=TRUTH, linewidth=1.2, label="what came")
    levels = sorted(forecast.quantiles)
    for lower, upper in zip(levels[: len(levels) // 2], levels[::-1], strict=False):
        low, high = (np.append(y[-1], forecast.quantiles[level]) for level in (lower, upper))
        label = f"{100 * (upper - lower):.0f} % interval"
        axes.fill_between(ahead, low, high, color=FORECAST, alpha=0.15, linewidth=0, label=label)
    axes.plot(ahead, np.append(y[-1], forecast.mean), color=FORECAST, linewidth=1.6, label="forecast")
    axes.axvline(_place(axes, stamps[-1]), color=BASELINE, linewidth=0.8, linestyle=":")
    axes.legend(frameon=False, loc="upper left", ncols=4)
    axes.margins(y=0.2)
    return figure


def origins_plot(result: Backtest, name: str, *, series: int = 0) -> Figure:
    """The truth of one series over all its windows, with the forecast from each cutoff."""
    one = result.series[series]
    figure, axes = _axes(
        f"{name}: {one.id}, {result.actual.shape[1]} window{'s' * (result.actual.shape[1] > 1)} of {result.horizon} steps"
    )
    windows = max(result.lefts, default=0)
    shown = max(2 * windows, windows + 60)
    axes.plot(one.stamps[-shown:], one.y[-shown:], color=HISTORY, linewidth=1.0, label="what came")
    for window, cutoff in enumerate(result.cutoffs[series]):
        ahead = one.stamps[one.stamps > cutoff][: result.horizon]
        label = "forecast" if window == 0 else None
        axes.plot(ahead, result.forecasts[name][series, window], color=FORECAST, linewidth=1.4, label=label)
        axes.axvline(_place(axes, cutoff), color=BASELINE, linewidth=0.6, linestyle=":")
    axes.legend(frameon=False, loc="upper left", ncols=2)
    axes.margins(y=0.2)
    return figure


def error_by_horizon(result: Backtest) -> Figure:
    """MASE of every forecaster at each step ahead."""
    figure, axes = _axes("Error by step ahead")
    colors = [FORECAST, TRUTH, "#5b7f3a", "#7a4fa3"]
    steps = np.arange(1, result.horizon + 1)
    named = [name for name in result.forecasts if name != "seasonal_naive"]
    for number, name in enumerate(named):
        axes.plot(steps, result.mase_by_step(name), color=colors[number % len(colors)], linewidth=1.6, label=name)
    if "seasonal_naive" in result.forecasts:
        axes.plot(
            steps,
            result.mase_by_step("seasonal_naive"),
            color=BASELINE,
            linewidth=1.2,
            linestyle="--",
            label="seasonal naive",
        )
    axes.set_xlabel("step ahead")
    axes.set_ylabel("MASE")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _place(axes: Axes, stamp: Stamp) -> float:
    """Where a stamp lies on an axis that has stamps of its kind."""
    return float(axes.convert_xunits(stamp))  # type: ignore[no-untyped-call]


def _axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e3e5e8", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes

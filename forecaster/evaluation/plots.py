"""Pictures for people who would rather look than read. Figures are made without pyplot: no global state, any thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.layout_engine import LayoutEngine
from matplotlib.ticker import MaxNLocator
from pandas import DatetimeIndex, concat

from forecaster.evaluation.baselines import SEASONAL_NAIVE
from forecaster.metrics import nanmean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from pandas import DataFrame

    from forecaster.evaluation.backtest import Backtest
    from forecaster.frequency import Timestamp
    from forecaster.series import Forecast, Series
    from forecaster.shapes import Float64

HISTORY_COLOR, FORECAST_COLOR, ACTUAL_COLOR, BASELINE_COLOR, GRID_COLOR = (
    "#4a4e57",
    "#c2410c",
    "#1d6fa5",
    "#8a8f98",
    "#e3e5e8",
)
FORECASTER_COLORS = (
    FORECAST_COLOR,
    ACTUAL_COLOR,
    "#5b7f3a",
    "#7a4fa3",
    "#b8860b",
    "#0f766e",
    "#9d174d",
)  # forecasters beside each other


_MARGIN, _DATE_WIDTH, _TITLE_HEIGHT, _LABEL_HEIGHT, _TICK_HEIGHT = (
    0.13,
    0.35,
    0.3,
    0.23,
    0.12,
)  # inches: an edge, half a date, what stands about axes


class MarginLayout(LayoutEngine):
    """Room about one pair of axes, for its labels and a legend of the figure to its right, each measured once.

    The constrained layout measures everything twice, which takes longer than to draw it.
    """

    _adjust_compatible = True
    _colorbar_gridspec = True

    def __init__(self, *, right: float = _MARGIN) -> None:
        super().__init__()
        self._right = right  # inches, beside a legend

    def execute(self, fig: Figure) -> None:
        """Places the axes of a figure, its title and its labels."""
        (axes,) = fig.axes
        width, height = fig.get_size_inches()
        bottom = (
            _MARGIN + _LABEL_HEIGHT + _TICK_HEIGHT + 0.06
        )  # a label, or what all dates share, is below those of the ticks
        tall = height - bottom - _TITLE_HEIGHT
        axes.set_position((0.1, bottom / height, 0.8, tall / height))
        longest = max(axes.get_yticklabels(), key=lambda label: len(label.get_text()))
        above = 0.17 if axes.yaxis.get_major_formatter().get_offset() else 0.0  # such as 1e6, where the title would be
        labelled = _LABEL_HEIGHT if axes.get_ylabel() else 0.0
        left = _MARGIN / 2 + labelled + longest.get_window_extent().width / fig.dpi + _TICK_HEIGHT
        beside = sum(legend.get_window_extent().width / fig.dpi for legend in fig.legends)
        wide = max(width - left - beside - self._right, width / 4)
        tall -= above
        axes.set_position((left / width, bottom / height, wide / width, tall / height))
        # Given a place, they are not measured again to find one.
        axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=11, y=1 + above / tall)
        axes.xaxis.set_label_coords(0.5, -(bottom - _LABEL_HEIGHT) / tall)
        axes.yaxis.set_label_coords(-(left - _MARGIN / 2 - _LABEL_HEIGHT) / wide, 0.5)


def plot_forecast(
    history: Series,
    forecast: Forecast,
    *,
    actual: Float64[np.ndarray, "_"] | None = None,
    title: str,
    history_steps: int = 200,
) -> Figure:
    """History, forecast and, where it is known, what came; the last `shown` steps of the history."""
    figure, axes = _create_axes(title)
    stamps, y = history.timestamps[-history_steps:], history.y[-history_steps:]
    ahead = stamps[-1:].append(forecast.ds)  # lines join where the history ends
    axes.plot(stamps, y, color=HISTORY_COLOR, linewidth=1.2, label="history")
    if actual is not None:
        axes.plot(ahead, np.append(y[-1], actual), color=ACTUAL_COLOR, linewidth=1.2, label="what came")
    levels = sorted(forecast.quantiles)
    for lower, upper in zip(levels[: len(levels) // 2], levels[::-1], strict=False):
        low, high = (np.append(y[-1], forecast.quantiles[level]) for level in (lower, upper))
        label = f"{100 * (upper - lower):.0f} % interval"
        axes.fill_between(ahead, low, high, color=FORECAST_COLOR, alpha=0.15, linewidth=0, label=label)
    axes.plot(ahead, np.append(y[-1], forecast.mean), color=FORECAST_COLOR, linewidth=1.6, label="forecast")
    axes.axvline(_axis_position(axes, stamps[-1]), color=BASELINE_COLOR, linewidth=0.8, linestyle=":")
    axes.legend(frameon=False, loc="upper left", ncols=4)
    axes.margins(y=0.2)
    return figure


def plot_origins(result: Backtest, name: str, *, series: int = 0) -> Figure:
    """The truth of one series over all its windows, with the forecast from each cutoff."""
    one = result.series[series]
    figure, axes = _create_axes(
        f"{name}: {one.id}, {result.actual.shape[1]} window{'s' * (result.actual.shape[1] > 1)} of {result.horizon} steps"
    )
    windows = max(result.origin_offsets, default=0)
    shown = max(2 * windows, windows + 60)
    axes.plot(one.timestamps[-shown:], one.y[-shown:], color=HISTORY_COLOR, linewidth=1.0, label="what came")
    for window, cutoff in enumerate(result.cutoffs[series]):
        ahead = one.timestamps[one.timestamps > cutoff][: result.horizon]
        label = "forecast" if window == 0 else None
        axes.plot(ahead, result.forecasts[name][series, window], color=FORECAST_COLOR, linewidth=1.4, label=label)
        axes.axvline(_axis_position(axes, cutoff), color=BASELINE_COLOR, linewidth=0.6, linestyle=":")
    axes.legend(frameon=False, loc="upper left", ncols=2)
    axes.margins(y=0.2)
    return figure


def plot_error_by_step(result: Backtest) -> Figure:
    """MASE of every forecaster at each step ahead."""
    figure, axes = _create_axes("Error by step ahead")
    figure.set_layout_engine(MarginLayout())
    steps = np.arange(1, result.horizon + 1)
    marker = "o" if result.horizon == 1 else None  # a line through one point cannot be seen
    named = [name for name in result.forecasts if name != SEASONAL_NAIVE]
    for number, name in enumerate(named):
        color = FORECASTER_COLORS[number % len(FORECASTER_COLORS)]
        order = 3 - number / len(named)  # the first lies on top
        axes.plot(steps, result.mase_by_step(name), color=color, linewidth=1.6, marker=marker, label=name, zorder=order)
    if SEASONAL_NAIVE in result.forecasts:
        naive = result.mase_by_step(SEASONAL_NAIVE)
        axes.plot(
            steps,
            naive,
            color=BASELINE_COLOR,
            linewidth=1.2,
            linestyle="--",
            marker=marker,
            label=SEASONAL_NAIVE.replace("_", " "),
        )
    axes.set_xlabel("step ahead")
    axes.set_ylabel("MASE")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(frameon=False, loc="upper right")
    return figure


def plot_forecast_overlay(
    history: DataFrame, forecasts: DataFrame, forecasters: Sequence[str], *, title: str, baseline: str | None = None
) -> Figure:
    """What several forecasters said of one series from the same cutoffs, over what came.

    Args:
        history: `ds, y`, before the first cutoff.
        shown: `cutoff, ds, y` and a column for each forecaster.
        names: Those columns, the first on top.
        title: Above the picture.
        baseline: A further column, drawn as one.
    """
    figure, axes = _create_axes(title)
    figure.set_layout_engine("constrained")  # for the legend below
    axes.plot(history["ds"], history["y"], color=HISTORY_COLOR, linewidth=1.2, label="history")
    came = concat([history[["ds", "y"]].tail(1), forecasts[["ds", "y"]].drop_duplicates("ds")])  # lines join there
    axes.plot(came["ds"], came["y"], color=ACTUAL_COLOR, linewidth=1.4, label="what came")
    colors = [color for color in FORECASTER_COLORS if color != ACTUAL_COLOR]
    for window, (_, rows) in enumerate(forecasts.groupby("cutoff", sort=True)):
        for number, name in enumerate(forecasters):
            label = name if window == 0 else None
            color = colors[number % len(colors)]
            order = 3 - number / len(forecasters)
            axes.plot(rows["ds"], rows[name], color=color, linewidth=1.5, label=label, zorder=order)
        if baseline is not None:
            label = baseline.replace("_", " ") if window == 0 else None
            axes.plot(rows["ds"], rows[baseline], color=BASELINE_COLOR, linewidth=1.0, linestyle="--", label=label)
        axes.axvline(rows["cutoff"].iloc[0], color=BASELINE_COLOR, linewidth=0.6, linestyle=":")
    axes.margins(y=0.1)
    figure.legend(frameon=False, loc="outside lower center", ncols=4)
    return figure


def plot_calibration(result: Backtest) -> Figure:
    """The share of what came that lies below each quantile, against its level: on the diagonal where they agree.

    Pooled over series, windows and steps, those that every forecaster answered.
    """
    figure = Figure(figsize=(5.5, 5.5), dpi=110, layout=MarginLayout())
    axes = style_axes(figure.add_subplot(), "Calibration")
    axes.grid(axis="x", color=GRID_COLOR, linewidth=0.6)
    axes.plot([0, 1], [0, 1], color=BASELINE_COLOR, linewidth=1.0, linestyle="--", label="as it should be")
    actual = np.where(result.comparable_mask()[:, :, None], result.actual, np.nan)[..., None]
    for number, (name, quantiles) in enumerate(result.quantiles.items()):
        below = np.where(np.isnan(actual) | np.isnan(quantiles), np.nan, actual <= quantiles)
        shares = nanmean(below, axis=(0, 1, 2))
        color = FORECASTER_COLORS[number % len(FORECASTER_COLORS)]
        axes.plot(result.levels, shares, color=color, linewidth=1.4, marker="o", markersize=4, label=name)
    axes.set_xlabel("level of the quantile")
    axes.set_ylabel("share of what came at or below it")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(frameon=False, loc="upper left")
    return figure


def plot_best_and_worst(result: Backtest, name: str, *, columns: int = 3) -> Figure:
    """The last window of the series that a forecaster did best on (first row) and worst (second), by their MASE."""
    errors = nanmean(result.scaled_errors(name), axis=(1, 2))
    order = [int(row) for row in np.argsort(errors, kind="stable")[: int(np.isfinite(errors).sum())]]
    columns = min(columns, max(1, len(order) // 2))
    rows = [("best", order[:columns]), ("worst", order[::-1][:columns])][: 2 if len(order) > 1 else 1]
    figure = Figure(figsize=(4 * columns + 1, 2.8 * len(rows) + 0.6), dpi=110, layout="constrained")
    figure.suptitle(f"{name}: the series it did best and worst on", x=0.01, ha="left", fontsize=11)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_of_row, (which, some) in zip(grid, rows, strict=True):
        for axes, series in zip(axes_of_row, some, strict=False):
            _plot_window(axes, result, name, series)
            axes.set_title(
                f"{which}: {_shorten(result.series[series].id)}, MASE {errors[series]:.2f}", loc="left", fontsize=9
            )
        for axes in axes_of_row[len(some) :]:
            axes.set_axis_off()
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), frameon=False, loc="outside lower center", ncols=len(handles))
    return figure


def _plot_window(axes: Axes, result: Backtest, name: str, series: int) -> None:
    """The last window of one series: some of the history, what came, the forecast and the band about it."""
    one, horizon = result.series[series], result.horizon
    cut = len(one) - horizon
    first = max(0, cut - max(3 * horizon, 24))
    stamps, y, said = one.timestamps, one.y, result.forecasts[name][series, -1]
    style_axes(axes, "")
    axes.plot(stamps[first:cut], y[first:cut], color=HISTORY_COLOR, linewidth=1.0, label="history")
    ahead = stamps[cut - 1 :]
    axes.plot(ahead, y[cut - 1 :], color=ACTUAL_COLOR, linewidth=1.2, label="what came")
    if name in result.quantiles and {0.1, 0.9} <= set(result.levels):
        levels = list(result.levels)
        low, high = (result.quantiles[name][series, -1, :, levels.index(level)] for level in (0.1, 0.9))
        axes.fill_between(ahead[1:], low, high, color=FORECAST_COLOR, alpha=0.15, linewidth=0, label="80 % interval")
    axes.plot(ahead[1:], said, color=FORECAST_COLOR, linewidth=1.4, label="forecast")
    axes.tick_params(labelsize=8)
    axes.xaxis.get_offset_text().set_fontsize(8)
    if isinstance(stamps, DatetimeIndex):
        locator: Any = AutoDateLocator(minticks=2, maxticks=5)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def _shorten(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _axis_position(axes: Axes, timestamp: Timestamp) -> float:
    """Where a stamp lies on an axis that has stamps of its kind."""
    return float(axes.convert_xunits(timestamp))  # type: ignore[no-untyped-call]


def _create_axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(10, 4), dpi=110, layout=MarginLayout(right=_DATE_WIDTH))
    return figure, style_axes(figure.add_subplot(), title)


def style_axes(axes: Axes, title: str) -> Axes:
    """Axes as all our pictures have them."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID_COLOR, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes

"""Matplotlib figures of forecasts and backtests. They are built without pyplot: no global state, safe in any thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.layout_engine import LayoutEngine
from matplotlib.ticker import MaxNLocator
from pandas import DatetimeIndex, concat
from pandas.api.types import is_datetime64_any_dtype

from forecaster.evaluation.baselines import BASELINES
from forecaster.evaluation.scores import interval_bounds, interval_levels
from forecaster.metrics import nanmean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from pandas import DataFrame

    from forecaster.evaluation.backtest import Backtest
    from forecaster.frequency.timestamps import Timestamp
    from forecaster.series import Forecast, Series
    from forecaster.shapes import Float64

INTERVAL_LABEL = " % interval"  # the end of the label of an interval
# Each color has one meaning in all figures.
HISTORY_COLOR = "#4a4e57"  # observed before the cutoff
ACTUAL_COLOR = "#1d6fa5"  # observed after the cutoff
FORECAST_COLOR = "#c2410c"  # the model
BASELINE_COLOR = "#8a8f98"  # the baselines, and other lines to compare with
MEASURE_COLOR = "#64748b"  # a quantity that belongs to no forecaster
GRID_COLOR = "#e3e5e8"
FORECASTER_COLORS = (
    FORECAST_COLOR,
    "#5b7f3a",
    "#7a4fa3",
    "#b8860b",
    "#0f766e",
    "#9d174d",
)
"""Line colors of several forecasters in one figure, the model first."""
_BASELINE_STYLES = ("--", ":", "-.")  # in the order of BASELINES

# In inches: the outer margin, half a date label, and the labels around the axes.
_MARGIN, _DATE_WIDTH, _TITLE_HEIGHT, _LABEL_HEIGHT, _TICK_HEIGHT = 0.13, 0.35, 0.3, 0.23, 0.12


class MarginLayout(LayoutEngine):
    """Reserves room around one pair of axes for its labels, and for a figure legend to its right; each is measured once.

    The constrained layout measures everything twice, which takes longer than drawing it.
    """

    _adjust_compatible = True
    _colorbar_gridspec = True

    def __init__(self, *, right: float = _MARGIN) -> None:
        super().__init__()
        self._right = right  # inches, next to a legend

    def execute(self, fig: Figure) -> None:
        """Positions the axes of a figure, its title and its labels."""
        (axes,) = fig.axes
        width, height = fig.get_size_inches()
        # The axis label, or the part that all dates share, is below the tick labels.
        bottom = _MARGIN + _LABEL_HEIGHT + _TICK_HEIGHT + 0.06
        axes_height = height - bottom - _TITLE_HEIGHT
        axes.set_position((0.1, bottom / height, 0.8, axes_height / height))
        longest_label = max(axes.get_yticklabels(), key=lambda label: len(label.get_text()))
        # An offset, such as 1e6, has the position of the title.
        offset_height = 0.17 if axes.yaxis.get_major_formatter().get_offset() else 0.0
        label_height = _LABEL_HEIGHT if axes.get_ylabel() else 0.0
        left = _MARGIN / 2 + label_height + longest_label.get_window_extent().width / fig.dpi + _TICK_HEIGHT
        legend_width = sum(legend.get_window_extent().width / fig.dpi for legend in fig.legends)
        axes_width = max(width - left - legend_width - self._right, width / 4)
        axes_height -= offset_height
        axes.set_position((left / width, bottom / height, axes_width / width, axes_height / height))
        # With explicit positions, the labels are not measured again.
        axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=11, y=1 + offset_height / axes_height)
        axes.xaxis.set_label_coords(0.5, -(bottom - _LABEL_HEIGHT) / axes_height)
        axes.yaxis.set_label_coords(-(left - _MARGIN / 2 - _LABEL_HEIGHT) / axes_width, 0.5)


def shade_nested_intervals(axes: Axes) -> tuple[list[Any], list[str]]:
    """Returns the handles and labels of a legend in which each interval is as dark as in the axes.

    The intervals are transparent and drawn from the widest to the narrowest, so that a narrow one lies on all wider ones.
    """
    handles: list[Any] = []
    intervals: tuple[Any, ...] = ()
    drawn, labels = axes.get_legend_handles_labels()
    for handle, label in zip(drawn, labels, strict=True):
        if label.endswith(INTERVAL_LABEL):
            intervals = (*intervals, handle)
            handles.append(intervals)  # the legend draws them over each other
        else:
            handles.append(handle)
    return handles, labels


def plot_forecast(
    history: Series,
    forecast: Forecast,
    *,
    actual: Float64[np.ndarray, "_"] | None = None,
    title: str,
    history_steps: int = 200,
) -> Figure:
    """Plots the last `history_steps` steps of the history, the forecast and, where given, the actuals."""
    figure, axes = _create_axes(title)
    timestamps, y = history.timestamps[-history_steps:], history.y[-history_steps:]
    future_timestamps = timestamps[-1:].append(forecast.ds)  # lines join where the history ends
    axes.plot(timestamps, y, color=HISTORY_COLOR, linewidth=1.2, label="history")
    if actual is not None:
        axes.plot(future_timestamps, np.append(y[-1], actual), color=ACTUAL_COLOR, linewidth=1.2, label="actuals")
    levels = sorted(forecast.quantiles)
    for lower, upper in zip(levels[: len(levels) // 2], levels[::-1], strict=False):
        low, high = (np.append(y[-1], forecast.quantiles[level]) for level in (lower, upper))
        label = f"{100 * (upper - lower):.0f}{INTERVAL_LABEL}"
        axes.fill_between(future_timestamps, low, high, color=FORECAST_COLOR, alpha=0.15, linewidth=0, label=label)
    axes.plot(future_timestamps, np.append(y[-1], forecast.mean), color=FORECAST_COLOR, linewidth=1.6, label="forecast")
    axes.axvline(_axis_position(axes, timestamps[-1]), color=BASELINE_COLOR, linewidth=0.8, linestyle=":")
    _label_series_axes(axes, history)
    axes.legend(*shade_nested_intervals(axes), frameon=False, loc="upper left", ncols=4)
    axes.margins(y=0.2)
    return figure


def plot_origins(result: Backtest, name: str, *, series: int = 0) -> Figure:
    """Plots the history and the actuals of one series over all its windows, with the forecast from each cutoff."""
    item = result.series[series]
    figure, axes = _create_axes(
        f"{name}: {item.id}, {result.actual.shape[1]} window{'s' * (result.actual.shape[1] > 1)} of {result.horizon} steps"
    )
    window_steps = max(result.origin_offsets, default=0)
    num_steps = max(2 * window_steps, window_steps + 60)
    first, cut = max(0, len(item) - num_steps), len(item) - window_steps
    axes.plot(item.timestamps[first:cut], item.y[first:cut], color=HISTORY_COLOR, linewidth=1.0, label="history")
    first_actual = max(0, cut - 1)  # the lines join where the history ends
    axes.plot(item.timestamps[first_actual:], item.y[first_actual:], color=ACTUAL_COLOR, linewidth=1.0, label="actuals")
    for window, cutoff in enumerate(result.cutoffs[series]):
        future_timestamps = item.timestamps[item.timestamps > cutoff][: result.horizon]
        label = "forecast" if window == 0 else None
        axes.plot(
            future_timestamps, result.forecasts[name][series, window], color=FORECAST_COLOR, linewidth=1.4, label=label
        )
        axes.axvline(_axis_position(axes, cutoff), color=BASELINE_COLOR, linewidth=0.6, linestyle=":")
    _label_series_axes(axes, item)
    axes.legend(frameon=False, loc="upper left", ncols=3)
    axes.margins(y=0.2)
    return figure


def plot_error_by_step(result: Backtest) -> Figure:
    """Plots the MASE of every forecaster at each step ahead."""
    figure, axes = _create_axes("Error by step ahead")
    figure.set_layout_engine(MarginLayout())
    steps = np.arange(1, result.horizon + 1)
    marker = "o" if result.horizon == 1 else None  # a line through one point is invisible
    names = [name for name in result.forecasts if name not in BASELINES]
    for index, name in enumerate(names):
        color = FORECASTER_COLORS[index % len(FORECASTER_COLORS)]
        zorder = 3 - index / len(names)  # the first one is on top
        axes.plot(
            steps, result.mase_by_step(name), color=color, linewidth=1.6, marker=marker, label=name, zorder=zorder
        )
    for name, line_style in zip(BASELINES, _BASELINE_STYLES, strict=False):
        if name in result.forecasts:
            axes.plot(
                steps,
                result.mase_by_step(name),
                color=BASELINE_COLOR,
                linewidth=1.2,
                linestyle=line_style,
                marker=marker,
                label=name.replace("_", " "),
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
    """Plots the forecasts of several forecasters for one series from the same cutoffs, over the actuals.

    Args:
        history: `ds, y`, before the first cutoff.
        forecasts: `cutoff, ds, y` and a column for each forecaster.
        forecasters: Those columns, the first on top.
        title: Title of the figure.
        baseline: A further column, drawn as the baseline.
    """
    figure, axes = _create_axes(title)
    figure.set_layout_engine("constrained")  # for the legend below
    axes.plot(history["ds"], history["y"], color=HISTORY_COLOR, linewidth=1.2, label="history")
    actuals = concat(
        [history[["ds", "y"]].tail(1), forecasts[["ds", "y"]].drop_duplicates("ds")]
    )  # the lines join there
    axes.plot(actuals["ds"], actuals["y"], color=ACTUAL_COLOR, linewidth=1.4, label="actuals")
    for window, (_, rows) in enumerate(forecasts.groupby("cutoff", sort=True)):
        for index, name in enumerate(forecasters):
            label = name if window == 0 else None
            color = FORECASTER_COLORS[index % len(FORECASTER_COLORS)]
            zorder = 3 - index / len(forecasters)
            axes.plot(rows["ds"], rows[name], color=color, linewidth=1.5, label=label, zorder=zorder)
        if baseline is not None:
            label = baseline.replace("_", " ") if window == 0 else None
            axes.plot(rows["ds"], rows[baseline], color=BASELINE_COLOR, linewidth=1.0, linestyle="--", label=label)
        axes.axvline(rows["cutoff"].iloc[0], color=BASELINE_COLOR, linewidth=0.6, linestyle=":")
    axes.set(xlabel="time" if is_datetime64_any_dtype(actuals["ds"]) else "step", ylabel="value")
    if not is_datetime64_any_dtype(actuals["ds"]):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.1)
    figure.legend(frameon=False, loc="outside lower center", ncols=4)
    return figure


def plot_calibration(result: Backtest) -> Figure:
    """Plots the share of actuals below each quantile against its level: calibrated quantiles lie on the diagonal.

    Pooled over series, windows and steps with a forecast of every forecaster.
    """
    figure = Figure(figsize=(5.5, 5.5), dpi=110, layout=MarginLayout())
    axes = style_axes(figure.add_subplot(), "Calibration")
    axes.grid(axis="x", color=GRID_COLOR, linewidth=0.6)
    axes.plot([0, 1], [0, 1], color=BASELINE_COLOR, linewidth=1.0, linestyle="--", label="calibrated")
    actual = np.where(result.comparable_mask()[:, :, None], result.actual, np.nan)[..., None]
    for index, (name, quantiles) in enumerate(result.quantiles.items()):
        is_below = np.where(np.isnan(actual) | np.isnan(quantiles), np.nan, actual <= quantiles)
        shares = nanmean(is_below, axis=(0, 1, 2))
        color = FORECASTER_COLORS[index % len(FORECASTER_COLORS)]
        axes.plot(result.levels, shares, color=color, linewidth=1.4, marker="o", markersize=4, label=name)
    axes.set_xlabel("quantile level")
    axes.set_ylabel("share of actuals at or below the quantile")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(frameon=False, loc="upper left")
    return figure


def plot_best_and_worst(result: Backtest, name: str, *, columns: int = 3) -> Figure:
    """Plots the last window of the series with a forecaster's best MASE (first row) and worst MASE (second row)."""
    errors = nanmean(result.scaled_errors(name), axis=(1, 2))
    order = [int(row) for row in np.argsort(errors, kind="stable")[: int(np.isfinite(errors).sum())]]
    columns = min(columns, max(1, len(order) // 2))
    rows = [("best", order[:columns]), ("worst", order[::-1][:columns])][: 2 if len(order) > 1 else 1]
    figure = Figure(figsize=(4 * columns + 1, 2.8 * len(rows) + 0.6), dpi=110, layout="constrained")
    figure.suptitle(f"{name}: series with the lowest and the highest error", x=0.01, ha="left", fontsize=11)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_of_row, (label, row_series) in zip(grid, rows, strict=True):
        for axes, series in zip(axes_of_row, row_series, strict=False):
            plot_window(axes, result, name, series)
            axes.set_title(
                f"{label}: {shorten(result.series[series].id)}, MASE {errors[series]:.2f}", loc="left", fontsize=9
            )
        for axes in axes_of_row[len(row_series) :]:
            axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("value", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel(time_title(result.series[0]), fontsize=8)
    handles = {
        name: handle for axes in grid.flat for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), frameon=False, loc="outside lower center", ncols=len(handles))
    return figure


def plot_panels(
    panels: Mapping[str, Sequence[Series]], *, title: str, columns: int = 4, series_per_panel: int = 3
) -> Figure:
    """Plots the first series of several panels, one pair of axes per panel.

    Each series is drawn at a range of its own, above the previous one, because the units of generated series have no meaning.
    """
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 1.9 * rows + 0.5), dpi=110, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (name, panel) in zip(grid.flat, panels.items(), strict=False):
        style_axes(axes, "")
        axes.set_title(name, loc="left", fontsize=9)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        for index, series in enumerate(panel[:series_per_panel]):
            y = series.y - np.nanmin(series.y)
            color = FORECASTER_COLORS[index % len(FORECASTER_COLORS)]
            axes.plot(y / (np.nanmax(y) or 1.0) - 1.15 * index, color=color, linewidth=0.9)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    return figure


def plot_window(axes: Axes, result: Backtest, name: str, series: int, *, shares: Sequence[float] = (0.8,)) -> None:
    """Plots the last window of one series: history, actuals, forecast, and its intervals of these shares."""
    item, horizon = result.series[series], result.horizon
    cut = len(item) - horizon
    first = max(0, cut - max(3 * horizon, 24))
    timestamps, y, forecast = item.timestamps, item.y, result.forecasts[name][series, -1]
    style_axes(axes, "")
    axes.plot(timestamps[first:cut], y[first:cut], color=HISTORY_COLOR, linewidth=1.0, label="history")
    window_timestamps = timestamps[cut - 1 :]
    axes.plot(window_timestamps, y[cut - 1 :], color=ACTUAL_COLOR, linewidth=1.2, label="actuals")
    for share in sorted(shares, reverse=True):
        if name in result.quantiles and set(interval_levels(share)) <= set(result.levels):
            low, high = (bound[series, -1] for bound in interval_bounds(result, name, share=share))
            label = f"{100 * share:g}{INTERVAL_LABEL}"
            axes.fill_between(
                window_timestamps[1:], low, high, color=FORECAST_COLOR, alpha=0.15, linewidth=0, label=label
            )
    axes.plot(window_timestamps[1:], forecast, color=FORECAST_COLOR, linewidth=1.4, label="forecast")
    axes.tick_params(labelsize=8)
    axes.xaxis.get_offset_text().set_fontsize(8)
    if isinstance(timestamps, DatetimeIndex):
        locator: Any = AutoDateLocator(minticks=2, maxticks=5)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def shorten(name: str) -> str:
    """Returns the name of a series, cut to the width of a small plot."""
    return name if len(name) <= 24 else f"{name[:23]}…"


def _axis_position(axes: Axes, timestamp: Timestamp) -> float:
    """Returns the position of a timestamp on an axis of such timestamps."""
    return float(axes.convert_xunits(timestamp))  # type: ignore[no-untyped-call]


def _label_series_axes(axes: Axes, series: Series) -> None:
    """Adds the titles of the axes of a series; integer steps get whole ticks."""
    axes.set(xlabel=time_title(series), ylabel="value")
    if not isinstance(series.timestamps, DatetimeIndex):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def time_title(series: Series) -> str:
    """Returns the title of the time axis of a series."""
    return "time" if isinstance(series.timestamps, DatetimeIndex) else "step"


def _create_axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(10, 4), dpi=110, layout=MarginLayout(right=_DATE_WIDTH))
    return figure, style_axes(figure.add_subplot(), title)


def style_axes(axes: Axes, title: str) -> Axes:
    """Applies the common style of all figures."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID_COLOR, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes

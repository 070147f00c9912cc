"""Plots of the states of a network: the decay of its memory, the atlas of its units, and similar stretches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from forecaster.evaluation.plots import (
    BASELINE_COLOR,
    FORECAST_COLOR,
    FORECASTER_COLORS,
    GRID_COLOR,
    HISTORY_COLOR,
    MEASURE_COLOR,
    shorten,
    style_axes,
)
from forecaster.explain.signals import compute_series_signals
from forecaster.explain.states import StateTrace, UnitName, list_units

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from forecaster.explain.atlas import Atlas
    from forecaster.explain.memory import MemoryDecay
    from forecaster.explain.similar import SimilarStretches
    from forecaster.series import Series

MAX_ROWS = 40  # units in the picture of an atlas
_MAX_FOLLOWERS = 4  # units that are drawn beside the signal that they follow
_SHARES = LinearSegmentedColormap.from_list("share", ["#ffffff", "#f2b591", FORECAST_COLOR])


def plot_memory(decays: Sequence[MemoryDecay], *, season: int, context: int) -> Figure:
    """Plots the decay of influence by lag, of every unit and overall, and the half-lives of the units in order.

    Args:
        decays: Those of all members for one series.
        season: Steps of a season, which is marked.
        context: Steps of history that the network was trained on, which are marked.
    """
    figure = Figure(figsize=(10, 4.1), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    style_axes(left, "influence of the state at each lag on the final state")
    window = max(decay.window for decay in decays)
    for number, decay in enumerate(decays):
        lags = decay.segment * np.arange(decay.influence.shape[2])
        color = FORECASTER_COLORS[number % len(FORECASTER_COLORS)]
        units = decay.influence.reshape(-1, len(lags))
        left.plot(lags, units.T, color=MEASURE_COLOR, linewidth=0.5, alpha=min(0.6, max(0.15, 12 / len(units))))
        label = "all units" if len(decays) == 1 else f"all units of member {decay.member}"
        left.plot(lags, decay.overall_influence, color=color, linewidth=2, label=label)
        finite = np.sort(np.minimum(decay.half_lives.reshape(-1), 1.08 * window))
        right.plot(np.arange(1, len(finite) + 1), finite, color=color, marker=".", markersize=4, linewidth=0)
    left.axhline(0.5, color=BASELINE_COLOR, linewidth=1, linestyle="--", label="one half")
    _mark(left.axvline, season=season, context=context, window=window)
    left.set_yscale("log")
    largest = max(float(decay.influence.max()) for decay in decays)
    left.set_ylim(1e-3, max(2.0, 1.3 * largest))
    left.set_xlim(0, window)
    left.set(xlabel="lag, steps", ylabel="influence")
    style_axes(right, "half-life of each unit")
    right.axhline(window, color=GRID_COLOR, linewidth=6, label="beyond the window")
    _mark(right.axhline, season=season, context=context, window=window)
    right.set_yscale("symlog", linthresh=1)
    right.set_ylim(0, 1.25 * window)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(xlabel="unit, in order", ylabel="steps")
    handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    handles |= dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles.keys(), frameon=False, fontsize=8, loc="outside lower center", ncols=len(handles)
    )
    return figure


def _mark(draw: Any, *, season: int, context: int, window: int) -> None:
    """Draws lines at the season and the context, as far as they lie within the window."""
    for name, steps, style in (("season", season, ":"), ("context", context, "-.")):
        if 1 < steps <= window:
            draw(steps, color=HISTORY_COLOR, linewidth=1, linestyle=style, label=name)


def plot_atlas(atlas: Atlas) -> Figure:
    """Plots the share of each unit's variance that each signal explains; a dot marks an association beyond chance.

    Units are sorted by the signal that they follow and by their share. At most MAX_ROWS units are drawn, from each signal in
    proportion to the number that follow it.
    """
    table = atlas.table.copy()
    table["row"] = pd.Series(list(table[["member", "layer", "unit"]].itertuples(index=False, name=None)), dtype=object)
    signals = list(dict.fromkeys(table["signal"]))
    shares = table.pivot(index="row", columns="signal", values="share")[signals]
    significant = table.pivot(index="row", columns="signal", values="p_adjusted")[signals] <= atlas.rate
    order = _order_units(table, signals)
    drawn = [order[index] for index in np.unique(np.linspace(0, len(order) - 1, MAX_ROWS).round().astype(int))]
    values, dots = shares.loc[drawn].to_numpy(dtype=float), significant.loc[drawn].to_numpy()
    figure = Figure(figsize=(10, 1.6 + 0.2 * len(drawn)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor(GRID_COLOR)
    image = axes.imshow(np.ma.masked_invalid(values), cmap=_SHARES, vmin=0, vmax=1, aspect="auto")
    rows, columns = np.nonzero(dots)
    axes.scatter(columns, rows, s=14, color=HISTORY_COLOR)
    axes.set_xticks(range(len(signals)), signals)
    axes.xaxis.tick_top()
    many = table["member"].nunique() > 1
    labels = [f"{f'm{row[0]} ' if many else ''}layer {row[1]} unit {row[2]}" for row in drawn]
    axes.set_yticks(range(len(drawn)), labels, fontsize=7)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="share of the unit's variance", shrink=0.6, aspect=30)
    return figure


def _order_units(table: pd.DataFrame, signals: Sequence[str]) -> list[Any]:
    """Returns the units in the order of the signals that they follow, then those that follow none."""
    followed = table[table["follows"]].sort_values(
        ["signal", "share"],
        key=lambda column: column.map(signals.index) if column.name == "signal" else -column,
        kind="stable",
    )
    first = followed["row"].tolist()
    return [*first, *(row for row in dict.fromkeys(table["row"]) if row not in set(first))]


def plot_followers(atlas: Atlas, traces: Sequence[StateTrace], unique_id: str, *, season: int) -> Figure | None:
    """Plots the unit that follows each signal most closely, over one series; None if no unit follows any.

    Unit and signal are standardised, and the signal is turned around where the unit falls when it rises. Of a cycle of the
    calendar, only the unit is drawn.
    """
    followed = atlas.table[atlas.table["follows"]].sort_values("share", ascending=False, kind="stable")
    best = followed.drop_duplicates("signal").head(_MAX_FOLLOWERS)
    if best.empty:
        return None
    figure = Figure(figsize=(10, 1.7 * len(best) + 0.6), dpi=110, layout="constrained")
    panels = figure.subplots(len(best), 1, sharex=True, squeeze=False)[:, 0]
    for axes, row in zip(panels, best.to_dict("records"), strict=True):
        trace = next(item for item in traces if item.id == unique_id and item.member == row["member"])
        position = list_units(trace).index(UnitName(row["layer"], row["unit"]))
        style_axes(axes, "")
        title = f"layer {row['layer']} unit {row['unit']} follows {row['signal']} (share {row['share']:.2f})"
        axes.set_title(title, loc="left", fontsize=9)
        signals = compute_series_signals(trace, season=season) | {"time": np.arange(len(trace.indices), dtype=float)}
        if row["signal"] in signals:
            signal = row["sign"] * _standardise(signals[row["signal"]])
            label = row["signal"] if row["sign"] > 0 else f"{row['signal']}, turned around"
            axes.plot(trace.ds, signal, color=BASELINE_COLOR, linewidth=1.2, linestyle="--", label=label)
        axes.plot(trace.ds, _standardise(trace.hidden[:, position]), color=FORECAST_COLOR, linewidth=1.2, label="state")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes.set_ylabel("deviations", fontsize=8)
    _format_dates(panels[-1], traces[0].series)
    return figure


def plot_similar(found: SimilarStretches, *, max_matches: int = 5) -> Figure:
    """Plots the selected stretch and its closest matches, each within its series."""
    rows = [(found.series, found.first, found.stop, f"selected: {shorten(found.series.id)}")]
    rows += [
        (
            match.series,
            match.first,
            match.stop,
            f"{shorten(match.series.id)}: {match.shared} of {len(found.selected)} units, {match.extra} others",
        )
        for match in found.matches[:max_matches]
    ]
    columns = 2 if len(rows) > 1 else 1
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(10, 1.9 * lines + 0.4), dpi=110, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for index, (axes, (series, first, stop, title)) in enumerate(zip(grid, rows, strict=False)):
        margin = max(3 * (stop - first), 12)
        begin, end = max(0, first - margin), min(len(series), stop + margin)
        ds = series.timestamps
        style_axes(axes, "")
        axes.set_title(title, loc="left", fontsize=9)
        axes.plot(ds[begin:end], series.y[begin:end], color=HISTORY_COLOR, linewidth=1)
        axes.plot(ds[first:stop], series.y[first:stop], color=FORECAST_COLOR, linewidth=2, marker=".", markersize=4)
        axes.axvspan(ds[first], ds[stop - 1], color=FORECAST_COLOR if index == 0 else BASELINE_COLOR, alpha=0.15)
        _format_dates(axes, series)
    for axes in grid[len(rows) :]:
        axes.set_axis_off()
    return figure


def _standardise(values: np.ndarray) -> np.ndarray:
    deviation = np.nanstd(values)
    scores: np.ndarray = (values - np.nanmean(values)) / (deviation if deviation > 0 else 1.0)
    return scores


def _format_dates(axes: Axes, series: Series) -> None:
    axes.tick_params(labelsize=8)
    if isinstance(series.timestamps, pd.DatetimeIndex):
        locator: Any = AutoDateLocator(minticks=2, maxticks=6)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        axes.xaxis.get_offset_text().set_fontsize(8)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))

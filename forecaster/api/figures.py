"""Figures of histories and forecasts."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from forecaster.api.frames import read_future
from forecaster.data.forecast_table import MODEL_COLUMN
from forecaster.data.frames.rows import ColumnNames
from forecaster.errors import MissingColumn
from forecaster.installation import require_package
from forecaster.series import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOWER_BOUND = re.compile(re.escape(MODEL_COLUMN) + r"-lo-(.+)")


def read_forecast(forecast: Any, names: ColumnNames) -> pd.DataFrame:
    """Reads a result of `predict` into the columns `unique_id` (as text), `ds`, `forecaster` and others.

    Raises MissingColumn for another frame.
    """
    rows = read_future(forecast, names, argument="forecast")
    required = (names.unique_id, names.ds, MODEL_COLUMN)
    missing = [name for name in required if name not in rows]
    if missing:
        raise MissingColumn(
            f"Expected the columns {', '.join(required)} in `forecast`; {', '.join(missing)} not found. Pass the result of "
            "`predict`.",
            where="forecast",
        )
    rows = rows.rename(columns=dict(zip(names, ColumnNames(), strict=True)))
    return rows.assign(unique_id=rows["unique_id"].map(str))


def plot_forecasts(
    panel: Panel, forecasts: pd.DataFrame, ids: Sequence[str], *, history_steps: int, label: str
) -> Figure:
    """Plots histories with their forecasts and intervals, one pair of axes for each series.

    Args:
        panel: The histories.
        forecasts: The columns `unique_id` (as text), `ds`, `forecaster`, and bounds such as `forecaster-lo-80`.
        ids: The series to plot.
        history_steps: The most steps of each history.
        label: The label of the values.
    """
    require_package("matplotlib", purpose="plots")
    from matplotlib.figure import Figure

    from forecaster.evaluation.plots import (
        FORECAST_COLOR,
        HISTORY_COLOR,
        INTERVAL_LABEL,
        shade_nested_intervals,
        style_axes,
    )

    series_by_id = {series.id: series for series in panel.series}
    columns = 1 if len(ids) == 1 else 2
    rows = -(-len(ids) // columns)
    figure = Figure(figsize=(10, 1 + 2.9 * rows), dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    levels = sorted((match[1] for match in map(_LOWER_BOUND.fullmatch, forecasts.columns) if match), key=float)
    for axes, series_id in zip(grid, ids, strict=False):
        series, rows_of_id = series_by_id[series_id], forecasts[forecasts["unique_id"] == series_id]
        style_axes(axes, series_id)
        axes.plot(
            series.timestamps[-history_steps:],
            series.y[-history_steps:],
            color=HISTORY_COLOR,
            linewidth=1.2,
            label="history",
        )
        for level in reversed(levels):
            bounds = (rows_of_id[f"{MODEL_COLUMN}-{side}-{level}"] for side in ("lo", "hi"))
            axes.fill_between(
                rows_of_id["ds"],
                *bounds,
                color=FORECAST_COLOR,
                alpha=0.15,
                linewidth=0,
                label=f"{level}{INTERVAL_LABEL}",
            )
        marker = "o" if len(rows_of_id) == 1 else None  # a line through one point is invisible
        axes.plot(
            rows_of_id["ds"],
            rows_of_id[MODEL_COLUMN],
            color=FORECAST_COLOR,
            linewidth=1.6,
            marker=marker,
            label="forecast",
        )
        axes.set_ylabel(label)
        axes.tick_params(axis="x", labelrotation=20)
    for axes in grid[len(ids) :]:
        axes.set_axis_off()
    handles, labels = shade_nested_intervals(grid[0])
    figure.legend(handles, labels, frameon=False, loc="outside upper right", ncols=len(labels))
    return show_in_notebooks(figure)


def show_in_notebooks(figure: Figure) -> Figure:
    """Lets a notebook show a figure that was made without pyplot."""

    def render() -> bytes:
        content = io.BytesIO()
        figure.savefig(content, format="png")
        return content.getvalue()

    figure.__dict__["_repr_png_"] = render
    return figure

"""Figures of frames and forecasts, and the explanation of one forecast."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from forecaster.api.frames import FrameStyle
from forecaster.data.forecast_table import MODEL_COLUMN
from forecaster.data.frames.rows import ColumnNames
from forecaster.errors import InputError, MissingColumn
from forecaster.installation import require_package
from forecaster.series import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from forecaster.explain.attribution import Explanation

_LOWER_BOUND = re.compile(re.escape(MODEL_COLUMN) + r"-lo-(.+)")


@dataclass(frozen=True, eq=False)
class ForecastExplanation:
    """Why a forecast is as it is: the effect of each observed value, and the memory of the network.

    Attributes:
        explanation: All results (`forecaster.explain.attribution`); its `notes` say what they cover.
    """

    explanation: Explanation
    _style: FrameStyle

    def to_frame(self) -> Any:
        """Returns one row per step: `ds, y, attribution`, those of other columns, `influence`, gates and norm of each layer."""
        from forecaster.explain.plots import build_explanation_table

        return self._style.convert(build_explanation_table(self.explanation))

    def plot(self) -> Figure:
        """Plots the history, the attribution of its values, the influence of each step, the gates and the faithfulness."""
        require_package("matplotlib", purpose="plots")
        from forecaster.explain.plots import plot_explanation

        return _show_in_notebooks(plot_explanation(self.explanation, title=self.explanation.id))

    def __repr__(self) -> str:
        from forecaster.explain.faithfulness import OURS

        explained = self.explanation
        half_life = "none" if explained.half_life is None else f"{explained.half_life:.3g} steps"
        measured = explained.faithfulness
        faithfulness = ""
        if measured is not None:
            faithfulness = (
                f"faithfulness (AOPCR): {measured.aopcr[OURS]:.3g}, of a random order {measured.aopcr['random']:.3g}; "
            )
        return (
            f"ForecastExplanation of {explained.id!r}: the mean of the next {explained.horizon} steps is "
            f"{explained.forecast:.4g} = {explained.baseline:.4g} + the attributions of {len(explained.y)} values; "
            f"{faithfulness}half-life of the memory: {half_life}. Use .plot() and .to_frame()."
        )


def select_ids(available: Sequence[str], ids: Any, *, max_ids: int, argument: str = "ids") -> list[str]:
    """Returns the text of the requested ids, one or several, by default of the first.

    Raises InputError, which names the argument, for an id that the data lack and for an empty list.
    """
    if ids is None:
        return list(available[:max_ids])
    wanted = [str(item) for item in ([ids] if isinstance(ids, str) or not isinstance(ids, Iterable) else ids)]
    missing = [series_id for series_id in wanted if series_id not in available]
    if missing or not wanted:
        raise InputError(
            f"Expected ids of the data in `{argument}`; found {repr(missing[0]) if missing else 'none'}. The data have "
            f"{', '.join(map(repr, available[:5]))}{' and more' if len(available) > 5 else ''}. Choose among them.",
            where=argument,
        )
    return wanted


def validate_forecast_columns(rows: pd.DataFrame, names: ColumnNames) -> None:
    """Raises MissingColumn for a frame that is no result of `predict`."""
    required = (names.unique_id, names.ds, MODEL_COLUMN)
    missing = [name for name in required if name not in rows]
    if missing:
        raise MissingColumn(
            f"Expected the columns {', '.join(required)} in `forecast`; {', '.join(missing)} not found. Pass the result of "
            "`predict`.",
            where="forecast",
        )


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
    return _show_in_notebooks(figure)


def _show_in_notebooks(figure: Figure) -> Figure:
    """Lets a notebook show a figure that was made without pyplot."""

    def render() -> bytes:
        content = io.BytesIO()
        figure.savefig(content, format="png")
        return content.getvalue()

    figure.__dict__["_repr_png_"] = render
    return figure

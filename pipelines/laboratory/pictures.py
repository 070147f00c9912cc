"""Axes and colors of the pictures of the laboratory. Each cell has one color in all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from forecaster.evaluation.plots import FORECAST_COLOR, GRID_COLOR, MEASURE_COLOR
from pipelines.laboratory.records import Trial

CELL_COLORS = {
    "lstm": FORECAST_COLOR,
    "gru": "#1d6fa5",
    "elman": "#5b7f3a",
    "relu": "#7a4fa3",
}


def create_axes(*, columns: int, rows: int = 1, width: float = 11.0, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """Returns a figure and its axes, row by row; sizes are in inches, the height is that of one row."""
    figure = Figure(figsize=(width, height * rows), dpi=85, layout="constrained")
    all_axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=GRID_COLOR, linewidth=0.6)
    return figure, all_axes


def color_of(cell: str) -> str:
    """Returns the color of a cell; names such as `lstm, 2 layers` have that of their kind."""
    return CELL_COLORS.get(cell.split(",")[0].split(" ")[0], MEASURE_COLOR)


def draw_curves(
    axes: Axes,
    trials: Sequence[Trial],
    name: str,
    *,
    x: str | None = None,
    cells: Sequence[str] = (),
    linestyle: str = "-",
    label: str = "{}",
) -> None:
    """Draws a curve of each cell: the median of the trials as a line and their range as a band.

    Args:
        axes: Where to draw.
        trials: The trials.
        name: Name of the curve.
        x: Name of the curve with the abscissas; by default 0, 1, 2 and so on.
        cells: Cells to draw; by default all.
        linestyle: Style of the lines.
        label: Label of a line, with `{}` in place of the cell.
    """
    for cell in cells or list(trials[0].curves):
        curves = [
            np.array(trial.curves[cell][name], dtype=np.float64) for trial in trials if name in trial.curves[cell]
        ]
        if not curves:
            continue
        values = np.stack(curves)
        abscissas = np.arange(values.shape[1]) if x is None else np.array(trials[0].curves[cell][x])
        color = color_of(cell)
        axes.plot(abscissas, np.median(values, axis=0), linestyle, color=color, linewidth=1.6, label=label.format(cell))
        if len(values) > 1:
            axes.fill_between(abscissas, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)


def label_axes(axes: Axes, *, title: str, x: str, y: str) -> None:
    """Sets the title and the labels of axes."""
    axes.set_title(title, loc="left", fontsize=10.5)
    axes.set_xlabel(x)
    axes.set_ylabel(y)

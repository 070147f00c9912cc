"""A picture and a table of an explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from forecaster.evaluation.plots import BASELINE_COLOR, FORECAST_COLOR, FORECASTER_COLORS, HISTORY_COLOR, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from forecaster.explain.attribution import Explanation


def build_explanation_table(explanation: Explanation) -> pd.DataFrame:
    """A row a step: `ds, y, attribution`, the same of every channel, `influence`, and gates and norm of each layer."""
    columns = {"ds": explanation.ds, "y": explanation.y, "attribution": explanation.attribution}
    columns |= {f"attribution.{name}": values for name, values in explanation.channels.items()}
    columns["influence"] = explanation.influence
    for number, layer in enumerate(explanation.layers, start=1):
        columns |= {f"layer{number}.{name}": values for name, values in layer.gates.items()}
        columns[f"layer{number}.norm"] = layer.norm
    return pd.DataFrame(columns)


def plot_explanation(explanation: Explanation, *, title: str) -> Figure:
    """The history, what each of its values adds to the forecast, how far back the state remembers, gates and states."""
    gated = any(layer.gates for layer in explanation.layers)
    rows = 5 if gated else 4
    figure = Figure(figsize=(10, 2.1 * rows), dpi=110, layout="constrained")
    parts: list[Axes] = list(figure.subplots(rows, 1, sharex=True))
    memory = (
        "nothing moves the state" if explanation.half_life is None else f"half-life {explanation.half_life:.3g} steps"
    )
    headings = [
        f"{title}: history",
        f"what each value adds to the mean forecast of the next {explanation.horizon} steps "
        f"({explanation.baseline:.4g} + … = {explanation.forecast:.4g})",
        f"share of each step in what moves the last state ({memory})",
        *(["gates, mean over units"] if gated else []),
        "size of the hidden state",
    ]
    for axes, heading in zip(parts, headings, strict=True):
        style_axes(axes, heading)
    parts[0].plot(explanation.ds, explanation.y, color=HISTORY_COLOR, linewidth=1.2)
    _plot_attributions(parts[1], explanation)
    parts[2].fill_between(
        explanation.ds, 0.0, explanation.influence, color=HISTORY_COLOR, alpha=0.35, linewidth=0, step="mid"
    )
    parts[2].set_ylim(bottom=0)
    for number, layer in enumerate(explanation.layers):
        suffix = f" {number + 1}" if len(explanation.layers) > 1 else ""
        for place, (name, values) in enumerate(layer.gates.items()):
            color = FORECASTER_COLORS[(number * len(layer.gates) + place) % len(FORECASTER_COLORS)]
            parts[3].plot(explanation.ds, values, color=color, linewidth=1.2, label=f"{name}{suffix}")
        parts[-1].plot(
            explanation.ds,
            layer.norm,
            color=FORECASTER_COLORS[number % len(FORECASTER_COLORS)],
            linewidth=1.2,
            label=f"layer {number + 1}",
        )
    if gated:
        parts[3].set_ylim(0, 1)
        _add_legend(parts[3])
    if len(explanation.layers) > 1:
        _add_legend(parts[-1])
    return figure


def _plot_attributions(axes: Axes, explanation: Explanation) -> None:
    """Attributions as lines from zero: y, and beside it the channels."""
    axes.axhline(0.0, color=BASELINE_COLOR, linewidth=0.8)
    axes.vlines(explanation.ds, 0.0, explanation.attribution, color=FORECAST_COLOR, linewidth=1.4, label="y")
    for number, (name, values) in enumerate(explanation.channels.items(), start=1):
        axes.plot(
            explanation.ds, values, color=FORECASTER_COLORS[number % len(FORECASTER_COLORS)], linewidth=1.0, label=name
        )
    if explanation.channels:
        _add_legend(axes)


def _add_legend(axes: Axes) -> None:
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

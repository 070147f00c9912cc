"""Plot and table of an explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from forecaster.evaluation.plots import BASELINE_COLOR, FORECAST_COLOR, FORECASTER_COLORS, HISTORY_COLOR, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from forecaster.explain.attribution import Explanation


def build_explanation_table(explanation: Explanation) -> pd.DataFrame:
    """One row per step: `ds, y, attribution`, the attribution of every channel, `influence`, gates and norm of each layer."""
    columns = {"ds": explanation.ds, "y": explanation.y, "attribution": explanation.attribution}
    columns |= {f"attribution.{name}": values for name, values in explanation.channels.items()}
    columns["influence"] = explanation.influence
    for index, layer in enumerate(explanation.layers, start=1):
        columns |= {f"layer{index}.{name}": values for name, values in layer.gates.items()}
        columns[f"layer{index}.norm"] = layer.norm
    return pd.DataFrame(columns)


def plot_explanation(explanation: Explanation, *, title: str) -> Figure:
    """Plots the history, the attribution of its values, the influence of each step, gates and hidden states."""
    has_gates = any(layer.gates for layer in explanation.layers)
    rows = 5 if has_gates else 4
    figure = Figure(figsize=(10, 2.1 * rows), dpi=110, layout="constrained")
    panels: list[Axes] = list(figure.subplots(rows, 1, sharex=True))
    half_life_text = (
        "the state is not influenced"
        if explanation.half_life is None
        else f"half-life {explanation.half_life:.3g} steps"
    )
    headings = [
        f"{title}: history",
        f"attribution of each value to the mean forecast of the next {explanation.horizon} steps "
        f"({explanation.baseline:.4g} + … = {explanation.forecast:.4g})",
        f"share of each step in the influence on the final state ({half_life_text})",
        *(["gates, mean over units"] if has_gates else []),
        "norm of the hidden state",
    ]
    for axes, heading in zip(panels, headings, strict=True):
        style_axes(axes, heading)
    panels[0].plot(explanation.ds, explanation.y, color=HISTORY_COLOR, linewidth=1.2)
    _plot_attributions(panels[1], explanation)
    panels[2].fill_between(
        explanation.ds, 0.0, explanation.influence, color=HISTORY_COLOR, alpha=0.35, linewidth=0, step="mid"
    )
    panels[2].set_ylim(bottom=0)
    for layer_index, layer in enumerate(explanation.layers):
        suffix = f" {layer_index + 1}" if len(explanation.layers) > 1 else ""
        for gate_index, (name, values) in enumerate(layer.gates.items()):
            color = FORECASTER_COLORS[(layer_index * len(layer.gates) + gate_index) % len(FORECASTER_COLORS)]
            panels[3].plot(explanation.ds, values, color=color, linewidth=1.2, label=f"{name}{suffix}")
        panels[-1].plot(
            explanation.ds,
            layer.norm,
            color=FORECASTER_COLORS[layer_index % len(FORECASTER_COLORS)],
            linewidth=1.2,
            label=f"layer {layer_index + 1}",
        )
    if has_gates:
        panels[3].set_ylim(0, 1)
        _add_legend(panels[3])
    if len(explanation.layers) > 1:
        _add_legend(panels[-1])
    return figure


def _plot_attributions(axes: Axes, explanation: Explanation) -> None:
    """Draws the attributions of y as vertical lines from zero, and those of the channels as curves."""
    axes.axhline(0.0, color=BASELINE_COLOR, linewidth=0.8)
    axes.vlines(explanation.ds, 0.0, explanation.attribution, color=FORECAST_COLOR, linewidth=1.4, label="y")
    for index, (name, values) in enumerate(explanation.channels.items(), start=1):
        axes.plot(
            explanation.ds, values, color=FORECASTER_COLORS[index % len(FORECASTER_COLORS)], linewidth=1.0, label=name
        )
    if explanation.channels:
        _add_legend(axes)


def _add_legend(axes: Axes) -> None:
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

"""Plot and table of an explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from forecaster.evaluation.plots import BASELINE_COLOR, FORECAST_COLOR, HISTORY_COLOR, MEASURE_COLOR, style_axes
from forecaster.explain.faithfulness import METHOD_LABELS, OURS
from forecaster.explain.trace import RETENTION_GATE
from forecaster.shapes import Float64, Int

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from forecaster.explain.attribution import Explanation
    from forecaster.explain.faithfulness import Faithfulness

_GATE_COLORS = {"reset": "#7a4fa3", "input": "#7a4fa3", "update": "#0f766e", "forget": "#0f766e", "output": "#b8860b"}
_CHANNEL_COLORS = ("#5b7f3a", "#9d174d", "#1d6fa5", "#7c2d12")
_METHOD_COLORS = {
    OURS: FORECAST_COLOR,
    "input_x_gradient": "#b8860b",
    "occlusion": "#0f766e",
    "random": BASELINE_COLOR,
}
_LAYER_STYLES = ("-", "--", ":", "-.")


def build_explanation_table(explanation: Explanation) -> pd.DataFrame:
    """One row per step: `ds, y, attribution`, those of every channel and covariate, `influence`, gates and norm of each layer.

    The attributions of covariates at the steps of the horizon are in `explanation.covariates`.
    """
    columns = {"ds": explanation.ds, "y": explanation.y, "attribution": explanation.attribution}
    steps = len(explanation.ds)
    columns |= {f"attribution.{name}": values for name, values in explanation.channels.items()}
    columns |= {f"attribution.{name}": values[:steps] for name, values in explanation.covariates.items()}
    columns["influence"] = explanation.influence
    for index, layer in enumerate(explanation.layers, start=1):
        columns |= {f"layer{index}.{name}": values for name, values in layer.gates.items()}
        columns[f"layer{index}.norm"] = layer.norm
    return pd.DataFrame(columns)


def plot_explanation(explanation: Explanation, *, title: str) -> Figure:
    """Plots the history, the attribution of its values, the influence of each step, gates and hidden states.

    Influence, gates and states are constant within a segment and drawn so. A text below says how to read the panels.
    """
    has_gates = any(layer.gates for layer in explanation.layers)
    rows, is_measured = 5 if has_gates else 4, explanation.faithfulness is not None
    figure = Figure(figsize=(10, 2.1 * (rows + is_measured) + 0.8), dpi=110, layout="constrained")
    grid = figure.add_gridspec(rows + is_measured, 1)
    panels: list[Axes] = []
    for row in range(rows):
        panels.append(figure.add_subplot(grid[row], sharex=panels[0] if panels else None))
        panels[-1].tick_params(labelbottom=row == rows - 1)
    for axes, (heading, y_title) in zip(panels, _describe_panels(explanation, title, has_gates=has_gates), strict=True):
        style_axes(axes, heading)
        axes.set_ylabel(y_title)
    panels[0].plot(explanation.ds, explanation.y, color=HISTORY_COLOR, linewidth=1.2)
    segments = _Segments.from_explanation(explanation, panels[0])
    _plot_attributions(panels[1], explanation)
    shares = np.add.reduceat(np.nan_to_num(explanation.influence), segments.starts)
    panels[2].stairs(shares, segments.edges, color=MEASURE_COLOR, alpha=0.5, fill=True)
    panels[2].set_ylim(bottom=0)
    for layer_index, layer in enumerate(explanation.layers):
        suffix = f", layer {layer_index + 1}" if len(explanation.layers) > 1 else ""
        line_style = _LAYER_STYLES[layer_index % len(_LAYER_STYLES)]
        for name, values in layer.gates.items():
            segments.plot(panels[3], values, color=_GATE_COLORS[name], linestyle=line_style, label=f"{name}{suffix}")
        segments.plot(
            panels[-1], layer.norm, color=MEASURE_COLOR, linestyle=line_style, label=f"layer {layer_index + 1}"
        )
    if has_gates:
        panels[3].set_ylim(0, 1)
        _add_legend(panels[3])
    if len(explanation.layers) > 1:
        _add_legend(panels[-1])
    if not isinstance(explanation.ds, pd.DatetimeIndex):
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlabel("time" if isinstance(explanation.ds, pd.DatetimeIndex) else "step")
    if explanation.faithfulness is not None:
        panels.append(figure.add_subplot(grid[rows]))
        _plot_faithfulness(panels[-1], explanation.faithfulness)
    figure.align_ylabels(panels)
    figure.supxlabel("\n".join(describe_reading(explanation)), x=0.01, ha="left", fontsize=8, color=HISTORY_COLOR)
    return figure


def describe_reading(explanation: Explanation) -> list[str]:
    """Describes how to read an explanation, one line per quantity."""
    unit = "step" if explanation.segment == 1 else f"segment of {explanation.segment} steps, which is read at once,"
    lines = [
        "contribution: how much a value raised (above 0) or lowered the mean forecast; baseline and contributions add up to it",
        f"influence: the share of each {unit} in the state from which the forecast starts, half of it within the half-life",
    ]
    gates = {name for layer in explanation.layers for name in layer.gates}
    kept = next((gate for gate in RETENTION_GATE.values() if gate in gates), None)
    if kept is not None:
        lines.append(f"gates: 0 is closed, 1 is open; the {kept} gate is the share of the previous state that is kept")
    lines.append("norm: the size of the hidden state of a layer")
    if explanation.faithfulness is not None:
        lines.append(
            "faithfulness: change of the forecast when the values ranked first are replaced; AOPCR is the mean, larger is better"
        )
    return lines


def _describe_panels(explanation: Explanation, title: str, *, has_gates: bool) -> list[tuple[str, str]]:
    """Returns the headings of the panels and the titles of their y axes."""
    unit = "step" if explanation.segment == 1 else f"segment of {explanation.segment} steps"
    half_life = (
        "the state is not influenced"
        if explanation.half_life is None
        else f"half-life {explanation.half_life:.3g} steps"
    )
    return [
        (f"{title}: history", "value"),
        (
            f"contribution of each value to the mean forecast of the next {explanation.horizon} steps "
            f"({explanation.baseline:.4g} + … = {explanation.forecast:.4g})",
            "contribution",
        ),
        (f"influence of each {unit} on the final state ({half_life})", "share"),
        *([(f"gates at each {unit}, mean over units", "mean gate")] if has_gates else []),
        (f"norm of the hidden state at each {unit}", "norm"),
    ]


class _Segments(NamedTuple):
    """The segments of an explanation on the time axis.

    Attributes:
        starts: Index of the first step of each segment.
        edges: Bounds of the segments, on the axis.
        steps: Positions of the steps, on the axis.
    """

    starts: Int[np.ndarray, "segment"]
    edges: Float64[np.ndarray, "edge"]
    steps: Float64[np.ndarray, "step"]

    @classmethod
    def from_explanation(cls, explanation: Explanation, axes: Axes) -> Self:
        """Returns the segments; the last one ends with the history, the first one may be shorter than the others."""
        count, segment = len(explanation.ds), explanation.segment
        starts = np.arange(count)[(count - np.arange(count)) % segment == 0]
        starts = np.unique(np.append(0, starts))
        steps = np.asarray(axes.convert_xunits(explanation.ds), dtype=np.float64)  # type: ignore[no-untyped-call]
        middles = (steps[1:] + steps[:-1]) / 2
        first, last = (middles[0], middles[-1]) if count > 1 else (steps[0] - 0.5, steps[0] + 0.5)
        bounds = np.concatenate([[2 * steps[0] - first], middles, [2 * steps[-1] - last]])
        return cls(starts, np.append(bounds[starts], bounds[-1]), steps)

    def plot(self, axes: Axes, values: Float64[np.ndarray, "step"], *, color: str, linestyle: str, label: str) -> None:
        """Draws one value per segment: a curve through single steps, a level line over longer segments."""
        if len(self.starts) == len(self.steps):
            axes.plot(self.steps, values, color=color, linestyle=linestyle, linewidth=1.2, label=label)
        else:
            axes.stairs(
                values[self.starts],
                self.edges,
                baseline=None,
                color=color,
                linestyle=linestyle,
                linewidth=1.2,
                label=label,
            )


def _plot_faithfulness(axes: Axes, faithfulness: Faithfulness) -> None:
    """Draws the change of the forecast by share of replaced values, one curve for each ranking."""
    style_axes(axes, "faithfulness: change of the forecast when the values that matter most are replaced by the mean")
    shares = 100 * np.concatenate([[0.0], faithfulness.shares])
    for name, label in METHOD_LABELS.items():
        change = (faithfulness.drops[name] + faithfulness.rises[name]) / 2
        axes.plot(
            shares,
            np.concatenate([[0.0], change]),
            color=_METHOD_COLORS[name],
            linewidth=1.8 if name == OURS else 1.1,
            linestyle="-" if name == OURS else "--",
            label=f"{label} ({faithfulness.aopcr[name]:.3g})",
        )
    axes.set_xlabel("replaced values, %")
    axes.set_ylabel("change")
    _add_legend(axes)


def _plot_attributions(axes: Axes, explanation: Explanation) -> None:
    """Draws the attributions of y as vertical lines from zero, and those of channels and covariates as curves."""
    axes.axhline(0.0, color=BASELINE_COLOR, linewidth=0.8)
    axes.vlines(explanation.ds, 0.0, explanation.attribution, color=FORECAST_COLOR, linewidth=1.4, label="y")
    others = [(name, explanation.ds, values) for name, values in explanation.channels.items()]
    if explanation.covariates and explanation.future_ds is not None:
        all_steps = explanation.ds.append(explanation.future_ds)
        others += [(name, all_steps, values) for name, values in explanation.covariates.items()]
    for index, (name, timestamps, values) in enumerate(others):
        axes.plot(timestamps, values, color=_CHANNEL_COLORS[index % len(_CHANNEL_COLORS)], linewidth=1.0, label=name)
    if others:
        _add_legend(axes)


def _add_legend(axes: Axes) -> None:
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

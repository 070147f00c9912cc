"""A picture and a table of an explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from forecaster.evaluation.plots import BASELINE, FORECAST, HISTORY, OTHERS, dressed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from forecaster.explain.attribution import Explanation


def explanation_table(told: Explanation) -> pd.DataFrame:
    """A row a step: `ds, y, attribution`, the same of every channel, `influence`, and gates and norm of each layer."""
    columns = {"ds": told.ds, "y": told.y, "attribution": told.attribution}
    columns |= {f"attribution.{name}": values for name, values in told.channels.items()}
    columns["influence"] = told.influence
    for number, layer in enumerate(told.layers, start=1):
        columns |= {f"layer{number}.{name}": values for name, values in layer.gates.items()}
        columns[f"layer{number}.norm"] = layer.norm
    return pd.DataFrame(columns)


def explanation_plot(told: Explanation, *, title: str) -> Figure:
    """The history, what each of its values adds to the forecast, how far back the state remembers, gates and states."""
    gated = any(layer.gates for layer in told.layers)
    rows = 5 if gated else 4
    figure = Figure(figsize=(10, 2.1 * rows), dpi=110, layout="constrained")
    parts: list[Axes] = list(figure.subplots(rows, 1, sharex=True))
    memory = "nothing moves the state" if told.half_life is None else f"half-life {told.half_life:.3g} steps"
    headings = [
        f"{title}: history",
        f"what each value adds to the mean forecast of the next {told.horizon} steps "
        f"({told.baseline:.4g} + … = {told.forecast:.4g})",
        f"share of each step in what moves the last state ({memory})",
        *(["gates, mean over units"] if gated else []),
        "size of the hidden state",
    ]
    for axes, heading in zip(parts, headings, strict=True):
        dressed(axes, heading)
    parts[0].plot(told.ds, told.y, color=HISTORY, linewidth=1.2)
    _stems(parts[1], told)
    parts[2].fill_between(told.ds, 0.0, told.influence, color=HISTORY, alpha=0.35, linewidth=0, step="mid")
    parts[2].set_ylim(bottom=0)
    for number, layer in enumerate(told.layers):
        suffix = f" {number + 1}" if len(told.layers) > 1 else ""
        for place, (name, values) in enumerate(layer.gates.items()):
            color = OTHERS[(number * len(layer.gates) + place) % len(OTHERS)]
            parts[3].plot(told.ds, values, color=color, linewidth=1.2, label=f"{name}{suffix}")
        parts[-1].plot(
            told.ds, layer.norm, color=OTHERS[number % len(OTHERS)], linewidth=1.2, label=f"layer {number + 1}"
        )
    if gated:
        parts[3].set_ylim(0, 1)
        _named(parts[3])
    if len(told.layers) > 1:
        _named(parts[-1])
    return figure


def _stems(axes: Axes, told: Explanation) -> None:
    """Attributions as lines from zero: y, and beside it the channels."""
    axes.axhline(0.0, color=BASELINE, linewidth=0.8)
    axes.vlines(told.ds, 0.0, told.attribution, color=FORECAST, linewidth=1.4, label="y")
    for number, (name, values) in enumerate(told.channels.items(), start=1):
        axes.plot(told.ds, values, color=OTHERS[number % len(OTHERS)], linewidth=1.0, label=name)
    if told.channels:
        _named(axes)


def _named(axes: Axes) -> None:
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

"""Renders a verdict of the gate as JSON and as a self-contained HTML report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.baselines import SEASONAL_NAIVE
from forecaster.evaluation.plots import (
    BASELINE_COLOR,
    FORECAST_COLOR,
    GRID_COLOR,
    MEASURE_COLOR,
    plot_error_by_step,
    plot_origins,
)
from forecaster.registry.registry import CHALLENGER
from pipelines.html_page import render_figure, render_page
from pipelines.promotion.policy import Policy
from pipelines.promotion.verdict import Check, Verdict

_OUTCOME_LABELS = {True: "passed", False: "failed", None: "not applicable"}
_MAX_GROUPS = 30  # in the figure, the worst first


class ParsedVerdict(NamedTuple):
    """A verdict read from its JSON, and the number of the champion it was compared with (None if there was none)."""

    verdict: Verdict
    champion_number: str | None


def render_verdict_json(verdict: Verdict, *, title: str, policy: Policy, champion_number: str | None = None) -> str:
    """Renders every check with its value, bound and reason as JSON; a number that is not finite becomes null."""
    fields = {
        "model": title,
        "against": champion_number,
        "promote": verdict.should_promote,
        "checks": [
            check._asdict() | {"value": _to_json_number(check.value), "bound": _to_json_number(check.bound)}
            for check in verdict.checks
        ],
        "groups": [group._asdict() | {"gain": _to_json_number(group.gain)} for group in verdict.groups],
        "policy": policy.model_dump(),
    }
    return json.dumps(fields, indent=1)


def parse_verdict_json(text: str) -> ParsedVerdict | None:
    """Parses the output of `render_verdict_json`, without groups and resampled gains; returns None for any other text."""
    try:
        fields = json.loads(text)
        return ParsedVerdict(Verdict(tuple(Check(**check) for check in fields["checks"])), fields["against"])
    except (ValueError, TypeError, KeyError):
        return None


def render_verdict_html(verdict: Verdict, result: Backtest, *, title: str) -> str:
    """Renders the report: the decision, every check and figures of the errors. The page loads nothing from elsewhere."""
    decision = "Promote" if verdict.should_promote else "Keep the current model"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="{_OUTCOME_LABELS[verdict.should_promote]}">{decision}: {escape("; ".join(verdict.reasons))}.</p>',
        "<table><tr><th>Check</th><th>Outcome</th><th>Value</th><th>Limit</th><th>Reason</th></tr>",
        *map(_render_check_row, verdict.checks),
        "</table>",
        *(render_figure(heading, figure) for heading, figure in _draw_figures(verdict, result)),
    ]
    return render_page(f"{title}: {decision.lower()}", parts)


def _render_check_row(check: Check) -> str:
    outcome = _OUTCOME_LABELS[check.passed]
    return (
        f'<tr><td>{escape(check.name.replace("_", " "))}</td><td class="{outcome.split()[0]}">{outcome}</td>'
        f'<td class="number">{_format_number(check.value)}</td><td class="number">{_format_number(check.bound)}</td>'
        f"<td>{escape(check.reason)}</td></tr>"
    )


def _draw_figures(verdict: Verdict, result: Backtest) -> Iterator[tuple[str, Figure]]:
    if verdict.gain is not None and np.isfinite(verdict.gain.resampled_gains).any():
        yield "Gain over the champion, resampled", _plot_gain_distribution(verdict)
    if verdict.groups:
        yield "Gain over the champion by group", _plot_group_gains(verdict)
    if np.isfinite(result.mase_by_step(SEASONAL_NAIVE)).any():
        yield "Error by step ahead", plot_error_by_step(result)
    if result.series:
        yield "Forecasts of the first series", plot_origins(result, CHALLENGER)


def _plot_gain_distribution(verdict: Verdict) -> Figure:
    assert verdict.gain is not None
    gain, figure = verdict.gain, Figure(figsize=(10, 3.2), dpi=110, layout="constrained")
    axes = style_axes(figure.add_subplot())
    resampled_gains = 100 * gain.resampled_gains[np.isfinite(gain.resampled_gains)]
    axes.hist(resampled_gains, bins=40, color=MEASURE_COLOR, alpha=0.7)
    axes.axvline(0, color=BASELINE_COLOR, linewidth=1.2, label="no gain")
    axes.axvline(100 * gain.gain, color=FORECAST_COLOR, linewidth=1.6, label="measured gain")
    if math.isfinite(gain.low):
        axes.axvline(
            100 * gain.low, color=FORECAST_COLOR, linewidth=1.2, linestyle="--", label="lower confidence bound"
        )
    axes.set_xlabel("gain over the champion, %")
    axes.set_ylabel("number of resamples")
    axes.legend(frameon=False)
    return figure


def _plot_group_gains(verdict: Verdict) -> Figure:
    worst = sorted((group for group in verdict.groups if math.isfinite(group.gain)), key=lambda group: group.gain)
    worst = worst[:_MAX_GROUPS]
    figure = Figure(figsize=(10, 1.2 + 0.3 * len(worst)), dpi=110, layout="constrained")
    axes = style_axes(figure.add_subplot())
    gains = [100 * group.gain for group in worst]
    axes.barh([f"{group.name} ({group.series})" for group in worst], gains, color=MEASURE_COLOR, height=0.6)
    axes.axvline(0, color=BASELINE_COLOR, linewidth=1.0)
    axes.set_xlabel("gain over the champion, % (negative: worse)")
    axes.set_ylabel("group (number of series)")
    return figure


def style_axes(axes: Axes) -> Axes:
    """Applies the style that the figures of all reports share, and returns the axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color=GRID_COLOR, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _to_json_number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _format_number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"

"""A verdict for people and for machines: JSON, and one HTML page that holds its own pictures."""

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
from forecaster.evaluation.plots import BASELINE, FORECAST, GRID, TRUTH, error_by_horizon, origins_plot
from forecaster.registry.registry import CHALLENGER
from pipelines.html_page import page, picture
from pipelines.promotion.gate import SEASONAL_NAIVE, Check, Verdict
from pipelines.promotion.policy import Policy

_OUTCOMES = {True: "passed", False: "failed", None: "not applicable"}
_MOST_GROUPS = 30  # drawn, the worst first


class Kept(NamedTuple):
    """A verdict as it was kept: its checks, and the number of the champion that it is against, if there was one."""

    verdict: Verdict
    against: str | None


def as_json(verdict: Verdict, *, title: str, policy: Policy, against: str | None = None) -> str:
    """Every check with its number, bound and reason; null for what is no number."""
    told = {
        "model": title,
        "against": against,
        "promote": verdict.promote,
        "checks": [
            one._asdict() | {"value": _number(one.value), "bound": _number(one.bound)} for one in verdict.checks
        ],
        "groups": [one._asdict() | {"gain": _number(one.gain)} for one in verdict.groups],
        "policy": policy.model_dump(),
    }
    return json.dumps(told, indent=1)


def from_json(text: str) -> Kept | None:
    """What `as_json` wrote, groups and redrawn gains left out; None for any other text."""
    try:
        told = json.loads(text)
        return Kept(Verdict(tuple(Check(**one) for one in told["checks"])), told["against"])
    except (ValueError, TypeError, KeyError):
        return None


def as_html(verdict: Verdict, result: Backtest, *, title: str) -> str:
    """The page: what was decided, every check, and pictures of the errors behind it. It loads nothing from elsewhere."""
    word = "Promote" if verdict.promote else "Keep what there is"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="{_OUTCOMES[verdict.promote]}">{word}: {escape("; ".join(verdict.reasons))}.</p>',
        "<table><tr><th>Check</th><th>Outcome</th><th>Found</th><th>Bound</th><th>What it says</th></tr>",
        *map(_row, verdict.checks),
        "</table>",
        *(picture(heading, figure) for heading, figure in _pictures(verdict, result)),
    ]
    return page(f"{title}: {word.lower()}", parts)


def _row(check: Check) -> str:
    outcome = _OUTCOMES[check.passed]
    return (
        f'<tr><td>{escape(check.name.replace("_", " "))}</td><td class="{outcome.split()[0]}">{outcome}</td>'
        f'<td class="number">{_said(check.value)}</td><td class="number">{_said(check.bound)}</td>'
        f"<td>{escape(check.reason)}</td></tr>"
    )


def _pictures(verdict: Verdict, result: Backtest) -> Iterator[tuple[str, Figure]]:
    if verdict.gain is not None and np.isfinite(verdict.gain.draws).any():
        yield "Gain over the champion, as redrawn", _gains(verdict)
    if verdict.groups:
        yield "Gain over the champion by group", _by_group(verdict)
    if np.isfinite(result.mase_by_step(SEASONAL_NAIVE)).any():
        yield "Error by step ahead", error_by_horizon(result)
    if result.series:
        yield "The first series", origins_plot(result, CHALLENGER)


def _gains(verdict: Verdict) -> Figure:
    assert verdict.gain is not None
    gain, figure = verdict.gain, Figure(figsize=(10, 3.2), dpi=110, layout="constrained")
    axes = dressed(figure.add_subplot())
    draws = 100 * gain.draws[np.isfinite(gain.draws)]
    axes.hist(draws, bins=40, color=TRUTH, alpha=0.7)
    axes.axvline(0, color=BASELINE, linewidth=1.2, label="no better")
    axes.axvline(100 * gain.gain, color=FORECAST, linewidth=1.6, label="found")
    if math.isfinite(gain.low):
        axes.axvline(100 * gain.low, color=FORECAST, linewidth=1.2, linestyle="--", label="surely above")
    axes.set_xlabel("gain, %")
    axes.set_ylabel("resamplings")
    axes.legend(frameon=False)
    return figure


def _by_group(verdict: Verdict) -> Figure:
    worst = sorted((one for one in verdict.groups if math.isfinite(one.gain)), key=lambda one: one.gain)[:_MOST_GROUPS]
    figure = Figure(figsize=(10, 1.2 + 0.3 * len(worst)), dpi=110, layout="constrained")
    axes = dressed(figure.add_subplot())
    shares = [100 * one.gain for one in worst]
    colors = [TRUTH if share >= 0 else FORECAST for share in shares]
    axes.barh([f"{one.name} ({one.series})" for one in worst], shares, color=colors, height=0.6)
    axes.axvline(0, color=BASELINE, linewidth=1.0)
    axes.set_xlabel("gain, % (below 0 is worse); in brackets the series")
    return figure


def dressed(axes: Axes) -> Axes:
    """Axes as all our reports have them."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _said(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"

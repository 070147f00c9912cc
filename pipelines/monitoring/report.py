"""What a look at a model in use came to: as JSON, as an HTML page that holds its own pictures, and for Prometheus."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from forecaster.evaluation.plots import ACTUAL_COLOR, BASELINE_COLOR, FORECAST_COLOR
from forecaster.ledger.accuracy import AccuracyScore
from pipelines.html_page import STYLE, encode_data_uri
from pipelines.monitoring.monitor import NOMINAL_COVERAGE, Finding, MonitoredChart, MonitoringReport
from pipelines.promotion.report import style_axes

_OUTCOME_LABELS = {True: "failed", False: "passed", None: "not applicable"}
_MAX_GROUPS = 30  # told, the worst first


def render_report_json(report: MonitoringReport) -> str:
    """Every finding with its number, bound and reason, and the figures behind them; null for what is no number."""
    told = {
        "model": report.model._asdict(),
        "at": _format_time(report.created_at),
        "since": _format_time(report.span.first),
        "until": _format_time(report.span.last),
        "action": bool(report.reasons),
        "reasons": report.reasons,
        "findings": [one._asdict() for one in report.findings],
        "forecasts": report.span.forecasts,
        "scored": report.accuracy.scored,
        "overall": _score_to_dict(report.accuracy.overall),
        "by_horizon": [{"step": step, **_score_to_dict(one)} for step, one in sorted(report.accuracy.by_step.items())],
        "by_group": [{"group": name, **_score_to_dict(one)} for name, one in sorted(report.accuracy.by_group.items())],
        "charts": {
            name: {"k": one.chart.k, "h": one.chart.h, "alarm": one.chart.alarm, "points": len(one.points)}
            for name, one in report.charts.items()
        },
        "inputs": {name: one._asdict() for name, one in report.input_shifts.items()},
    }
    return json.dumps(_replace_nonfinite(told), indent=1)


def render_report_html(report: MonitoringReport) -> str:
    """The page: whether action is needed, every finding, and pictures of what is behind them. It loads nothing."""
    word = "Action is needed" if report.reasons else "Nothing calls for action"
    title = f"{report.model.name} version {report.model.version}"
    between = f"Forecasts from {_format_time(report.span.first) or '-'} to {_format_time(report.span.last) or '-'}"
    overall, reasons = report.accuracy.overall, ["; ".join(report.reasons)] if report.reasons else []
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}: {word.lower()}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="{_OUTCOME_LABELS[bool(report.reasons)]}">{escape(": ".join([word, *reasons]))}.</p>',
        f"<p>{between}: {report.span.forecasts}, of which {report.accuracy.scored} can be scored at {overall.n} steps.</p>",
        "<table><tr><th>Looked at</th><th>Outcome</th><th>Found</th><th>Bound</th><th>What it says</th></tr>",
        *map(_render_finding_row, report.findings),
        "</table>",
        *_render_score_table(
            "By step ahead", "step", [(str(step), one) for step, one in sorted(report.accuracy.by_step.items())]
        ),
        *_render_score_table("By group", "group", _select_worst_groups(report)),
    ]
    for heading, figure in _draw_figures(report):
        parts.append(f'<h2>{escape(heading)}</h2><img alt="{escape(heading)}" src="{encode_data_uri(figure)}">')
    return "\n".join([*parts, "</body></html>", ""])


def render_report_prometheus(report: MonitoringReport) -> str:
    """The figures in Prometheus' text format, for a node exporter's folder of text files."""
    names = {"model": report.model.name, "version": report.model.version}
    lines: list[str] = []

    def gauge(name: str, told: str, values: list[tuple[dict[str, str], float | None]]) -> None:
        known = [(labels, value) for labels, value in values if value is not None and math.isfinite(value)]
        if known:
            lines.extend([f"# HELP forecaster_live_{name} {told}", f"# TYPE forecaster_live_{name} gauge"])
            lines.extend(f"forecaster_live_{name}{_format_labels(names | labels)} {value!r}" for labels, value in known)

    overall, steps = report.accuracy.overall, sorted(report.accuracy.by_step.items())
    gauge("action", "1 where action is needed", [({}, float(bool(report.reasons)))])
    gauge("forecasts", "Served forecasts that were kept", [({}, float(report.span.forecasts))])
    gauge("scored", "Served forecasts of which something is known", [({}, float(report.accuracy.scored))])
    gauge("mae", "Mean absolute error", [({}, overall.mae)])
    gauge("bias", "Mean of forecast less actual", [({}, overall.bias)])
    gauge("mase", "Mean absolute error over that of seasonal naive", [({}, overall.mase)])
    gauge("step_mae", "Mean absolute error by step ahead", [({"step": str(step)}, one.mae) for step, one in steps])
    gauge(
        "coverage",
        "Share of actuals within an interval, by its nominal share",
        [({"interval": str(share)}, value) for share, value in overall.coverage.items()],
    )
    gauge(
        "finding",
        "What was looked at",
        [({"finding": one.name}, one.value) for one in report.findings],
    )
    gauge("checked_at_seconds", "When it was looked, in seconds since 1970", [({}, report.created_at)])
    return "\n".join([*lines, ""])


def build_run_metrics(report: MonitoringReport) -> dict[str, float]:
    """What a tracked run of it records."""
    overall = report.accuracy.overall
    told = {"mae": overall.mae, "bias": overall.bias, "mase": overall.mase}
    told |= {f"coverage_{round(100 * share)}": value for share, value in overall.coverage.items()}
    told |= {"forecasts": float(report.span.forecasts), "scored": float(report.accuracy.scored)}
    told |= {
        one.name.replace(" ", "_"): one.value for one in report.findings if one.name.startswith(("change", "input"))
    }
    return {
        f"live/{_sanitize_metric_name(name)}": value
        for name, value in told.items()
        if value is not None and math.isfinite(value)
    }


def _sanitize_metric_name(name: str) -> str:
    """MLflow takes few signs in a name."""
    return "".join(sign if sign.isascii() and (sign.isalnum() or sign in "_-. /") else "_" for sign in name)[:200]


def _render_finding_row(finding: Finding) -> str:
    outcome = _OUTCOME_LABELS[finding.calls]
    return (
        f'<tr><td>{escape(finding.name)}</td><td class="{outcome.split()[0]}">{outcome}</td>'
        f'<td class="number">{_format_number(finding.value)}</td><td class="number">{_format_number(finding.bound)}</td>'
        f"<td>{escape(finding.reason)}</td></tr>"
    )


def _render_score_table(heading: str, column: str, rows: list[tuple[str, AccuracyScore]]) -> Iterator[str]:
    if not rows:
        return
    names = ("n", "MAE", "bias", "MASE", "within 80 %", "within 95 %")
    yield f"<h2>{heading}</h2><table><tr><th>{column}</th>{''.join(f'<th>{name}</th>' for name in names)}</tr>"
    for name, one in rows:
        told = (one.n, one.mae, one.bias, one.mase, one.coverage.get(NOMINAL_COVERAGE), one.coverage.get(0.95))
        yield (
            f"<tr><td>{escape(name)}</td>"
            + "".join(f'<td class="number">{_format_number(value)}</td>' for value in told)
            + "</tr>"
        )
    yield "</table>"


def _select_worst_groups(report: MonitoringReport) -> list[tuple[str, AccuracyScore]]:
    return sorted(report.accuracy.by_group.items(), key=lambda pair: -(pair[1].mase or pair[1].mae or 0.0))[
        :_MAX_GROUPS
    ]


def _draw_figures(report: MonitoringReport) -> Iterator[tuple[str, Figure]]:
    steps = sorted(report.accuracy.by_step.items())
    shares = [(step, one.coverage[NOMINAL_COVERAGE]) for step, one in steps if NOMINAL_COVERAGE in one.coverage]
    if shares:
        yield "Coverage of the 80 % intervals by step ahead", _plot_coverage(shares)
    for name, watched in list(report.charts.items())[:_MAX_GROUPS]:
        yield f"CUSUM of one-step errors: {name}", _plot_chart(watched)


def _plot_coverage(coverage_by_step: list[tuple[int, float]]) -> Figure:
    figure = Figure(figsize=(10, 3.2), dpi=110, layout="constrained")
    axes = style_axes(figure.add_subplot())
    axes.plot(*zip(*coverage_by_step, strict=True), color=ACTUAL_COLOR, marker="o", markersize=3)
    axes.axhline(NOMINAL_COVERAGE, color=BASELINE_COLOR, linewidth=1.2, label="meant")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("steps ahead")
    axes.legend(frameon=False)
    return figure


def _plot_chart(monitored_chart: MonitoredChart) -> Figure:
    figure = Figure(figsize=(10, 3.2), dpi=110, layout="constrained")
    axes = style_axes(figure.add_subplot())
    chart, places = monitored_chart.chart, np.arange(len(monitored_chart.points))
    axes.plot(places, chart.upper, color=FORECAST_COLOR, label="above what was foretold")
    axes.plot(places, -chart.lower, color=ACTUAL_COLOR, label="below")
    for bound in (chart.h, -chart.h):
        axes.axhline(bound, color=BASELINE_COLOR, linewidth=1.2, linestyle="--")
    axes.set_xlabel("stamps, oldest first")
    axes.legend(frameon=False)
    return figure


def _score_to_dict(score: AccuracyScore) -> dict[str, Any]:
    told = score._asdict()
    return told | {name: {str(share): value for share, value in told[name].items()} for name in ("coverage", "width")}


def _replace_nonfinite(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _replace_nonfinite(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_replace_nonfinite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _format_labels(labels: dict[str, str]) -> str:
    told = [
        (name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in labels.items()
    ]
    return "{" + ",".join(f'{name}="{value}"' for name, value in told) + "}"


def _format_number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"


def _format_time(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")

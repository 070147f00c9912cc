"""Renders a monitoring report as JSON, as a self-contained HTML page and in Prometheus' text format."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from forecaster.evaluation.plots import BASELINE_COLOR, FORECAST_COLOR, FORECASTER_COLORS
from forecaster.ledger.accuracy import AccuracyScore
from pipelines.html_page import STYLE, encode_data_uri
from pipelines.monitoring.monitor import NOMINAL_COVERAGE, Finding, MonitoredChart, MonitoringReport
from pipelines.promotion.report import style_axes

_OUTCOME_LABELS = {True: "failed", False: "passed", None: "not applicable"}
_MAX_GROUPS = 30  # in the report, the worst first
_ABOVE_COLOR, _BELOW_COLOR = FORECASTER_COLORS[2], FORECASTER_COLORS[3]  # no other forecaster is in the report


def render_report_json(report: MonitoringReport) -> str:
    """Renders every finding with its value, bound and reason, and all scores, as JSON; null for values that are not finite."""
    fields = {
        "model": report.model._asdict(),
        "at": _format_time(report.created_at),
        "since": _format_time(report.span.first),
        "until": _format_time(report.span.last),
        "action": bool(report.reasons),
        "reasons": report.reasons,
        "findings": [finding._asdict() for finding in report.findings],
        "forecasts": report.span.forecasts,
        "scored": report.accuracy.scored,
        "overall": _score_to_dict(report.accuracy.overall),
        "by_horizon": [
            {"step": step, **_score_to_dict(score)} for step, score in sorted(report.accuracy.by_step.items())
        ],
        "by_group": [
            {"group": name, **_score_to_dict(score)} for name, score in sorted(report.accuracy.by_group.items())
        ],
        "charts": {
            name: {"k": chart.k, "h": chart.h, "alarm": chart.alarm, "points": len(points)}
            for name, (chart, _, points) in report.charts.items()
        },
        "inputs": {name: shift._asdict() for name, shift in report.input_shifts.items()},
    }
    return json.dumps(_replace_nonfinite(fields), indent=1)


def render_report_html(report: MonitoringReport) -> str:
    """Renders the page: whether action is needed, every finding, scores and figures. It loads nothing from elsewhere."""
    conclusion = "Action is needed" if report.reasons else "No action is needed"
    title = f"{report.model.name} version {report.model.version}"
    period = f"Forecasts from {_format_time(report.span.first) or '-'} to {_format_time(report.span.last) or '-'}"
    overall, reasons = report.accuracy.overall, ["; ".join(report.reasons)] if report.reasons else []
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}: {conclusion.lower()}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="{_OUTCOME_LABELS[bool(report.reasons)]}">{escape(": ".join([conclusion, *reasons]))}.</p>',
        f"<p>{period}: {report.span.forecasts}, of which {report.accuracy.scored} have actuals, at {overall.n} steps.</p>",
        "<table><tr><th>Check</th><th>Outcome</th><th>Value</th><th>Limit</th><th>Reason</th></tr>",
        *map(_render_finding_row, report.findings),
        "</table>",
        *_render_score_table(
            "By step ahead", "step", [(str(step), score) for step, score in sorted(report.accuracy.by_step.items())]
        ),
        *_render_score_table("By group", "group", _select_worst_groups(report)),
    ]
    for heading, figure in _draw_figures(report):
        parts.append(f'<h2>{escape(heading)}</h2><img alt="{escape(heading)}" src="{encode_data_uri(figure)}">')
    return "\n".join([*parts, "</body></html>", ""])


def render_report_prometheus(report: MonitoringReport) -> str:
    """Renders the scores in Prometheus' text format, for the textfile collector of the node exporter."""
    model_labels = {"model": report.model.name, "version": report.model.version}
    lines: list[str] = []

    def add_gauge(name: str, description: str, values: list[tuple[dict[str, str], float | None]]) -> None:
        finite = [(labels, value) for labels, value in values if value is not None and math.isfinite(value)]
        if finite:
            lines.extend([f"# HELP forecaster_live_{name} {description}", f"# TYPE forecaster_live_{name} gauge"])
            lines.extend(
                f"forecaster_live_{name}{_format_labels(model_labels | labels)} {value!r}" for labels, value in finite
            )

    overall, steps = report.accuracy.overall, sorted(report.accuracy.by_step.items())
    add_gauge("action", "1 where action is needed", [({}, float(bool(report.reasons)))])
    add_gauge("forecasts", "Served forecasts in the ledger", [({}, float(report.span.forecasts))])
    add_gauge("scored", "Served forecasts with actuals", [({}, float(report.accuracy.scored))])
    add_gauge("mae", "Mean absolute error", [({}, overall.mae)])
    add_gauge("bias", "Mean of forecast minus actual", [({}, overall.bias)])
    add_gauge("mase", "Mean absolute error divided by that of seasonal naive", [({}, overall.mase)])
    add_gauge("wql_recorded", "Weighted quantile loss over the recorded levels", [({}, overall.wql_recorded)])
    add_gauge("msis_95", "Mean scaled interval score of the 95 % intervals", [({}, overall.msis_95)])
    add_gauge(
        "step_mae", "Mean absolute error by step ahead", [({"step": str(step)}, score.mae) for step, score in steps]
    )
    add_gauge(
        "coverage",
        "Share of actuals within an interval, by its nominal coverage",
        [({"interval": str(share)}, value) for share, value in overall.coverage.items()],
    )
    add_gauge(
        "finding",
        "Value of a monitoring check",
        [({"finding": finding.name}, finding.value) for finding in report.findings],
    )
    add_gauge("checked_at_seconds", "Time of the report, in seconds since 1970", [({}, report.created_at)])
    return "\n".join([*lines, ""])


def build_run_metrics(report: MonitoringReport) -> dict[str, float]:
    """Returns the metrics of the report that are recorded in an MLflow run."""
    overall = report.accuracy.overall
    values = {
        "mae": overall.mae,
        "bias": overall.bias,
        "mase": overall.mase,
        "wql_recorded": overall.wql_recorded,
        "msis_95": overall.msis_95,
    }
    values |= {f"coverage_{round(100 * share)}": value for share, value in overall.coverage.items()}
    values |= {"forecasts": float(report.span.forecasts), "scored": float(report.accuracy.scored)}
    values |= {
        finding.name.replace(" ", "_"): finding.value
        for finding in report.findings
        if finding.name.startswith(("change", "input"))
    }
    return {
        f"live/{_sanitize_metric_name(name)}": value
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    }


def _sanitize_metric_name(name: str) -> str:
    """Replaces characters that MLflow rejects in metric names, and limits the length."""
    allowed = (char if char.isascii() and (char.isalnum() or char in "_-. /") else "_" for char in name)
    return "".join(allowed)[:200]


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
    names = ("n", "MAE", "bias", "MASE", "within 80 %", "within 95 %", "WQL of 5 levels", "MSIS")
    yield f"<h2>{heading}</h2><table><tr><th>{column}</th>{''.join(f'<th>{name}</th>' for name in names)}</tr>"
    for name, score in rows:
        coverage = (score.coverage.get(NOMINAL_COVERAGE), score.coverage.get(0.95))
        values = (score.n, score.mae, score.bias, score.mase, *coverage, score.wql_recorded, score.msis_95)
        yield (
            f"<tr><td>{escape(name)}</td>"
            + "".join(f'<td class="number">{_format_number(value)}</td>' for value in values)
            + "</tr>"
        )
    yield "</table>"


def _select_worst_groups(report: MonitoringReport) -> list[tuple[str, AccuracyScore]]:
    return sorted(report.accuracy.by_group.items(), key=lambda pair: -(pair[1].mase or pair[1].mae or 0.0))[
        :_MAX_GROUPS
    ]


def _draw_figures(report: MonitoringReport) -> Iterator[tuple[str, Figure]]:
    steps = sorted(report.accuracy.by_step.items())
    shares = [(step, score.coverage[NOMINAL_COVERAGE]) for step, score in steps if NOMINAL_COVERAGE in score.coverage]
    if shares:
        yield "Coverage of the 80 % intervals by step ahead", _plot_coverage(shares)
    for name, monitored_chart in list(report.charts.items())[:_MAX_GROUPS]:
        yield f"CUSUM of one-step errors: {name}", _plot_chart(monitored_chart)


def _plot_coverage(coverage_by_step: list[tuple[int, float]]) -> Figure:
    figure = Figure(figsize=(10, 3.2), dpi=110, layout="constrained")
    axes = style_axes(figure.add_subplot())
    axes.plot(*zip(*coverage_by_step, strict=True), color=FORECAST_COLOR, marker="o", markersize=3, label="coverage")
    axes.axhline(NOMINAL_COVERAGE, color=BASELINE_COLOR, linewidth=1.2, linestyle="--", label="nominal coverage")
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step ahead")
    axes.set_ylabel("share of actuals")
    axes.legend(frameon=False)
    return figure


def _plot_chart(monitored_chart: MonitoredChart) -> Figure:
    figure = Figure(figsize=(10, 3.2), dpi=110, layout="constrained")
    axes = style_axes(figure.add_subplot())
    chart, indices = monitored_chart.chart, np.arange(len(monitored_chart.points))
    axes.plot(indices, chart.upper, color=_ABOVE_COLOR, label="actuals above the forecasts")
    axes.plot(indices, -chart.lower, color=_BELOW_COLOR, label="actuals below the forecasts")
    for bound, label in ((chart.h, "limit of the alarm"), (-chart.h, None)):
        axes.axhline(bound, color=BASELINE_COLOR, linewidth=1.2, linestyle="--", label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("forecast, oldest first")
    axes.set_ylabel("accumulated error")
    axes.legend(frameon=False)
    return figure


def _score_to_dict(score: AccuracyScore) -> dict[str, Any]:
    fields = score._asdict()
    return fields | {
        name: {str(share): value for share, value in fields[name].items()} for name in ("coverage", "width")
    }


def _replace_nonfinite(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _replace_nonfinite(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_replace_nonfinite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _format_labels(labels: dict[str, str]) -> str:
    escaped = [
        (name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in labels.items()
    ]
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


def _format_number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"


def _format_time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

"""A comparison of runs for people and for machines: a table for the terminal, JSON, and one HTML page with pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from html import escape

from forecaster.evaluation.significance import SignificanceResult
from pipelines.comparison.compare import MetricRow, RunComparison, plot_error_by_horizon, plot_overlay
from pipelines.html_page import render_figure, render_page

_MISSING = "-"


def render_comparison_lines(comparison: RunComparison) -> Iterator[str]:
    """The comparison for a terminal: a row for each metric, the best marked by a star, and what differs."""
    labels = comparison.labels
    width = max(len(row.metric) for row in comparison.rows) + 2 if comparison.rows else 12
    columns = [max(len(label), 10) + 2 for label in labels]
    yield f"{'':{width}}" + "".join(f"{label:>{column}}" for label, column in zip(labels, columns, strict=True))
    for row in comparison.rows:
        cells = [
            f"{_format_number(value)}{'*' if place in row.best else ' '}" for place, value in enumerate(row.values)
        ]
        yield (f"{row.metric:{width}}" + "".join(f"{c:>{n}}" for c, n in zip(cells, columns, strict=True))).rstrip()
    if comparison.comparisons:
        assert comparison.shared_backtest is not None
        shared = int(comparison.shared_backtest.comparable_mask().sum())
        yield f"\non the {shared} windows of {len(comparison.series_ids)} series that all of them forecast:"
        yield from (
            f"  {_describe_test(comparison.labels[0], label, one)}" for label, one in comparison.comparisons.items()
        )
    if comparison.spec_differences:
        yield "\nspecifications differ in"
        long = max(len(one.field) for one in comparison.spec_differences) + 2
        for one in comparison.spec_differences:
            cells = [_truncate(_MISSING if value is None else value, 24) for value in one.values]
            yield f"  {one.field:{long}}" + "".join(
                f"{cell:>{max(n, 26)}}" for cell, n in zip(cells, columns, strict=True)
            )
    else:
        yield "\nspecifications are the same"


def render_comparison_json(comparison: RunComparison) -> str:
    """Everything as JSON; null for what a run has not, or what is no number."""
    told = {
        "runs": [
            {"label": one.label, "run_id": one.run_id, "name": one.name, "tags": dict(one.tags)}
            for one in comparison.runs
        ],
        "metrics": [
            {
                "metric": row.metric,
                "values": _to_json_numbers(row.values),
                "differences": _to_json_numbers(row.differences),
                "best": [comparison.labels[place] for place in row.best],
            }
            for row in comparison.rows
        ],
        "against": {
            label: {
                name: value if isinstance(value, str) else _to_json_number(value)
                for name, value in one._asdict().items()
            }
            for label, one in comparison.comparisons.items()
        },
        "windows": None
        if comparison.shared_backtest is None
        else int(comparison.shared_backtest.comparable_mask().sum()),
        "series": None if comparison.shared_backtest is None else len(comparison.series_ids),
        "specification": [{"field": one.field, "values": list(one.values)} for one in comparison.spec_differences],
        "told": list(comparison.messages),
    }
    return json.dumps(told, indent=1, ensure_ascii=False)


def render_comparison_html(comparison: RunComparison, *, series: str | None = None) -> str:
    """The page: metrics, tests, differences of the specifications, and pictures. It loads nothing from elsewhere."""
    title = "Comparison: " + ", ".join(comparison.labels)
    parts = [
        "<h1>Comparison of runs</h1>",
        *(f'<p class="failed">{escape(line)}</p>' for line in comparison.messages),
        *_render_runs(comparison),
        *_render_metrics(comparison),
        *_render_tests(comparison),
        *_render_spec_differences(comparison),
    ]
    if comparison.shared_backtest is not None:
        parts += [
            render_figure("Error by step ahead", plot_error_by_horizon(comparison)),
            render_figure("One series", plot_overlay(comparison, series)),
        ]
    return render_page(title, parts)


def _render_runs(comparison: RunComparison) -> Iterator[str]:
    yield '<div class="wide"><table><tr><th>Run</th><th>Name</th><th>Id</th><th>Data up to</th><th>Trigger</th></tr>'
    for one in comparison.runs:
        cells = (one.label, one.name, one.run_id, one.tags.get("cutoff", _MISSING), one.tags.get("trigger", _MISSING))
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table></div>"


def _render_metrics(comparison: RunComparison) -> Iterator[str]:
    yield "<h2>Metrics</h2><p>Bold: the best. In brackets: how far from the first run.</p>"
    yield _render_table_head("Metric", comparison.labels, is_numeric=True)
    for row in comparison.rows:
        yield f"<tr><td><code>{escape(row.metric)}</code></td>" + "".join(_render_cells(row)) + "</tr>"
    yield "</table></div>"


def _render_cells(row: MetricRow) -> Iterator[str]:
    for place, (value, difference) in enumerate(zip(row.values, row.differences, strict=True)):
        apart = f" ({difference:+.3g})" if place and difference is not None and math.isfinite(difference) else ""
        yield f'<td class="number{" best" if place in row.best else ""}">{_format_number(value)}{apart}</td>'


def _render_tests(comparison: RunComparison) -> Iterator[str]:
    if not comparison.comparisons:
        return
    assert comparison.shared_backtest is not None
    windows = int(comparison.shared_backtest.comparable_mask().sum())
    yield f"<h2>Is the difference real?</h2><p>On the {windows} windows of {len(comparison.series_ids)} series that all runs forecast.</p>"
    for label, one in comparison.comparisons.items():
        yield f"<p>{escape(_describe_test(comparison.labels[0], label, one))}</p>"
    yield "<p>Series, or origins of a single one, are taken for independent; a p value near 0.05 is no proof.</p>"


def _render_spec_differences(comparison: RunComparison) -> Iterator[str]:
    yield "<h2>Specification</h2>"
    if not comparison.spec_differences:
        yield "<p>The same.</p>"
        return
    yield _render_table_head("Field", comparison.labels, is_numeric=False)
    for one in comparison.spec_differences:
        cells = "".join(f"<td>{escape(_MISSING if value is None else value)}</td>" for value in one.values)
        yield f"<tr><td><code>{escape(one.field)}</code></td>{cells}</tr>"
    yield "</table></div>"


def _render_table_head(first_heading: str, labels: Sequence[str], *, is_numeric: bool) -> str:
    kind = ' class="number"' if is_numeric else ""
    heads = "".join(f"<th{kind}>{escape(label)}</th>" for label in labels)
    return f'<div class="wide"><table><tr><th>{first_heading}</th>{heads}</tr>'


def _describe_test(first_label: str, other_label: str, test: SignificanceResult) -> str:
    """The test in words; a difference above 0 says that the first run has smaller errors."""
    if not math.isfinite(test.difference):
        return f"{other_label}: no error that could be held against {first_label}'s"
    whose = "smaller" if test.difference < 0 else "larger"
    if test.difference == 0:
        return f"{other_label}: the same mean error as {first_label}"
    within = f", 95 % interval {test.low:+.3g} to {test.high:+.3g}" if math.isfinite(test.low) else ""
    if not math.isfinite(test.p):
        return f"{other_label}: errors {whose} than {first_label}'s by {abs(test.difference):.3g}; {test.test} to test"
    p = "p < 0.001" if test.p < 0.001 else f"p = {test.p:.3f}"
    return f"{other_label}: errors (MASE) {whose} than {first_label}'s by {abs(test.difference):.3g}{within}; {p} ({test.test})"


def _format_number(value: float | None) -> str:
    return _MISSING if value is None or not math.isfinite(value) else f"{value:.4g}"


def _truncate(text: str, max_length: int) -> str:
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def _to_json_numbers(values: Sequence[float | None]) -> list[float | None]:
    return [_to_json_number(value) for value in values]


def _to_json_number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

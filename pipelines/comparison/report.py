"""Renders a comparison of runs as a table for the terminal, as JSON and as a self-contained HTML report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape

from forecaster.evaluation.significance import SignificanceResult
from pipelines.comparison.compare import MetricRow, RunComparison, plot_error_by_horizon, plot_overlay
from pipelines.html_page import render_figure, render_page

_MISSING = "-"
TableFormat = Callable[[Sequence[str], Sequence[tuple[str, Sequence[str]]]], Iterable[str]]
"""Formats the headings and the named rows of a table as lines."""


def render_comparison_lines(comparison: RunComparison, *, format_table: TableFormat) -> Iterator[str]:
    """Renders the comparison for a terminal: a row per metric with the best marked by a star, tests and differences."""
    labels = comparison.labels
    rows = [
        (
            row.metric,
            [f"{_format_number(value)}{'*' if index in row.best else ' '}" for index, value in enumerate(row.values)],
        )
        for row in comparison.rows
    ]
    yield from format_table(labels, rows)
    if comparison.comparisons:
        assert comparison.shared_backtest is not None
        n_windows = int(comparison.shared_backtest.comparable_mask().sum())
        yield f"\non the {n_windows} windows of {len(comparison.series_ids)} series that all runs forecast:"
        yield from (
            f"  {_describe_test(comparison.labels[0], label, test)}" for label, test in comparison.comparisons.items()
        )
    if comparison.spec_differences:
        yield "\nthe specifications differ in"
        yield from format_table(
            labels,
            [
                (
                    f"  {difference.field}",
                    [_truncate(_MISSING if value is None else value, 24) for value in difference.values],
                )
                for difference in comparison.spec_differences
            ],
        )
    else:
        yield "\nthe specifications are the same"


def render_comparison_json(comparison: RunComparison) -> str:
    """Renders the whole comparison as JSON; null for a value that is missing or not finite."""
    fields = {
        "runs": [
            {"label": run.label, "run_id": run.run_id, "name": run.name, "tags": dict(run.tags)}
            for run in comparison.runs
        ],
        "metrics": [
            {
                "metric": row.metric,
                "values": _to_json_numbers(row.values),
                "differences": _to_json_numbers(row.differences),
                "best": [comparison.labels[index] for index in row.best],
            }
            for row in comparison.rows
        ],
        "against": {
            label: {
                name: value if isinstance(value, str) else _to_json_number(value)
                for name, value in test._asdict().items()
            }
            for label, test in comparison.comparisons.items()
        },
        "windows": None
        if comparison.shared_backtest is None
        else int(comparison.shared_backtest.comparable_mask().sum()),
        "series": None if comparison.shared_backtest is None else len(comparison.series_ids),
        "specification": [
            {"field": difference.field, "values": list(difference.values)} for difference in comparison.spec_differences
        ],
        "told": list(comparison.messages),
    }
    return json.dumps(fields, indent=1, ensure_ascii=False)


def render_comparison_html(comparison: RunComparison, *, series: str | None = None) -> str:
    """Renders the report: metrics, tests, differences of the specifications and figures. It loads nothing from elsewhere."""
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
            render_figure("Forecasts of one series", plot_overlay(comparison, series)),
        ]
    return render_page(title, parts)


def _render_runs(comparison: RunComparison) -> Iterator[str]:
    yield '<div class="wide"><table><tr><th>Run</th><th>Name</th><th>Id</th><th>Data up to</th><th>Trigger</th></tr>'
    for run in comparison.runs:
        cells = (run.label, run.name, run.run_id, run.tags.get("cutoff", _MISSING), run.tags.get("trigger", _MISSING))
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table></div>"


def _render_metrics(comparison: RunComparison) -> Iterator[str]:
    yield "<h2>Metrics</h2><p>The best values are in bold; differences from the first run are in parentheses.</p>"
    yield _render_table_head("Metric", comparison.labels, is_numeric=True)
    for row in comparison.rows:
        yield f"<tr><td><code>{escape(row.metric)}</code></td>" + "".join(_render_cells(row)) + "</tr>"
    yield "</table></div>"


def _render_cells(row: MetricRow) -> Iterator[str]:
    for index, (value, difference) in enumerate(zip(row.values, row.differences, strict=True)):
        suffix = f" ({difference:+.3g})" if index and difference is not None and math.isfinite(difference) else ""
        yield f'<td class="number{" best" if index in row.best else ""}">{_format_number(value)}{suffix}</td>'


def _render_tests(comparison: RunComparison) -> Iterator[str]:
    if not comparison.comparisons:
        return
    assert comparison.shared_backtest is not None
    n_windows = int(comparison.shared_backtest.comparable_mask().sum())
    yield "<h2>Significance of the differences</h2>"
    yield f"<p>On the {n_windows} windows of {len(comparison.series_ids)} series that all runs forecast.</p>"
    for label, test in comparison.comparisons.items():
        yield f"<p>{escape(_describe_test(comparison.labels[0], label, test))}</p>"
    yield (
        "<p>The test assumes that series, or the cutoffs of a single series, are independent; a p value near 0.05 is weak "
        "evidence.</p>"
    )


def _render_spec_differences(comparison: RunComparison) -> Iterator[str]:
    yield "<h2>Differences of the specifications</h2>"
    if not comparison.spec_differences:
        yield "<p>There are none.</p>"
        return
    yield _render_table_head("Field", comparison.labels, is_numeric=False)
    for difference in comparison.spec_differences:
        cells = "".join(f"<td>{escape(_MISSING if value is None else value)}</td>" for value in difference.values)
        yield f"<tr><td><code>{escape(difference.field)}</code></td>{cells}</tr>"
    yield "</table></div>"


def _render_table_head(first_heading: str, labels: Sequence[str], *, is_numeric: bool) -> str:
    css_class = ' class="number"' if is_numeric else ""
    headings = "".join(f"<th{css_class}>{escape(label)}</th>" for label in labels)
    return f'<div class="wide"><table><tr><th>{first_heading}</th>{headings}</tr>'


def _describe_test(first_label: str, other_label: str, test: SignificanceResult) -> str:
    """Describes a test in one sentence; a difference above 0 means that the first run has smaller errors."""
    if not math.isfinite(test.difference):
        return f"{other_label}: no error can be compared with that of {first_label}"
    direction = "smaller" if test.difference < 0 else "larger"
    if test.difference == 0:
        return f"{other_label}: the same mean error as {first_label}"
    difference = f"{other_label}: MASE {direction} than that of {first_label} by {abs(test.difference):.3g}"
    interval = f", 95 % interval {test.low:+.3g} to {test.high:+.3g}" if math.isfinite(test.low) else ""
    if not math.isfinite(test.p):
        return f"{difference}; not tested ({test.test})"
    p_value = "p < 0.001" if test.p < 0.001 else f"p = {test.p:.3f}"
    return f"{difference}{interval}; {p_value} ({test.test})"


def _format_number(value: float | None) -> str:
    return _MISSING if value is None or not math.isfinite(value) else f"{value:.4g}"


def _truncate(text: str, max_length: int) -> str:
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def _to_json_numbers(values: Sequence[float | None]) -> list[float | None]:
    return [_to_json_number(value) for value in values]


def _to_json_number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

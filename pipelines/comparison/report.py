"""A comparison of runs for people and for machines: a table for the terminal, JSON, and one HTML page with pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from html import escape

from forecaster.evaluation.significance import Comparison
from pipelines.comparison.compare import Compared, Row, by_horizon, overlay
from pipelines.html_page import page, picture

_NONE = "-"


def as_lines(found: Compared) -> Iterator[str]:
    """The comparison for a terminal: a row for each metric, the best marked by a star, and what differs."""
    labels = found.labels
    width = max(len(row.metric) for row in found.rows) + 2 if found.rows else 12
    columns = [max(len(label), 10) + 2 for label in labels]
    yield f"{'':{width}}" + "".join(f"{label:>{column}}" for label, column in zip(labels, columns, strict=True))
    for row in found.rows:
        cells = [f"{_said(value)}{'*' if place in row.best else ' '}" for place, value in enumerate(row.values)]
        yield (f"{row.metric:{width}}" + "".join(f"{c:>{n}}" for c, n in zip(cells, columns, strict=True))).rstrip()
    if found.against:
        assert found.shared is not None
        shared = int(found.shared.comparable().sum())
        yield f"\non the {shared} windows of {len(found.ids)} series that all of them forecast:"
        yield from (f"  {_sentence(found.labels[0], label, one)}" for label, one in found.against.items())
    if found.specs:
        yield "\nspecifications differ in"
        long = max(len(one.field) for one in found.specs) + 2
        for one in found.specs:
            cells = [_cut(_NONE if value is None else value, 24) for value in one.values]
            yield f"  {one.field:{long}}" + "".join(
                f"{cell:>{max(n, 26)}}" for cell, n in zip(cells, columns, strict=True)
            )
    else:
        yield "\nspecifications are the same"


def as_json(found: Compared) -> str:
    """Everything as JSON; null for what a run has not, or what is no number."""
    told = {
        "runs": [
            {"label": one.label, "run_id": one.run_id, "name": one.name, "tags": dict(one.tags)} for one in found.runs
        ],
        "metrics": [
            {
                "metric": row.metric,
                "values": _numbers(row.values),
                "differences": _numbers(row.differences),
                "best": [found.labels[place] for place in row.best],
            }
            for row in found.rows
        ],
        "against": {
            label: {name: value if isinstance(value, str) else _number(value) for name, value in one._asdict().items()}
            for label, one in found.against.items()
        },
        "windows": None if found.shared is None else int(found.shared.comparable().sum()),
        "series": None if found.shared is None else len(found.ids),
        "specification": [{"field": one.field, "values": list(one.values)} for one in found.specs],
        "told": list(found.told),
    }
    return json.dumps(told, indent=1, ensure_ascii=False)


def as_html(found: Compared, *, series: str | None = None) -> str:
    """The page: metrics, tests, differences of the specifications, and pictures. It loads nothing from elsewhere."""
    title = "Comparison: " + ", ".join(found.labels)
    parts = [
        "<h1>Comparison of runs</h1>",
        *(f'<p class="failed">{escape(line)}</p>' for line in found.told),
        *_runs(found),
        *_metrics(found),
        *_tests(found),
        *_specification(found),
    ]
    if found.shared is not None:
        parts += [picture("Error by step ahead", by_horizon(found)), picture("One series", overlay(found, series))]
    return page(title, parts)


def _runs(found: Compared) -> Iterator[str]:
    yield '<div class="wide"><table><tr><th>Run</th><th>Name</th><th>Id</th><th>Data up to</th><th>Trigger</th></tr>'
    for one in found.runs:
        cells = (one.label, one.name, one.run_id, one.tags.get("cutoff", _NONE), one.tags.get("trigger", _NONE))
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table></div>"


def _metrics(found: Compared) -> Iterator[str]:
    yield "<h2>Metrics</h2><p>Bold: the best. In brackets: how far from the first run.</p>"
    yield _head("Metric", found.labels, number=True)
    for row in found.rows:
        yield f"<tr><td><code>{escape(row.metric)}</code></td>" + "".join(_cells(row)) + "</tr>"
    yield "</table></div>"


def _cells(row: Row) -> Iterator[str]:
    for place, (value, difference) in enumerate(zip(row.values, row.differences, strict=True)):
        apart = f" ({difference:+.3g})" if place and difference is not None and math.isfinite(difference) else ""
        yield f'<td class="number{" best" if place in row.best else ""}">{_said(value)}{apart}</td>'


def _tests(found: Compared) -> Iterator[str]:
    if not found.against:
        return
    assert found.shared is not None
    windows = int(found.shared.comparable().sum())
    yield f"<h2>Is the difference real?</h2><p>On the {windows} windows of {len(found.ids)} series that all runs forecast.</p>"
    for label, one in found.against.items():
        yield f"<p>{escape(_sentence(found.labels[0], label, one))}</p>"
    yield "<p>Series, or origins of a single one, are taken for independent; a p value near 0.05 is no proof.</p>"


def _specification(found: Compared) -> Iterator[str]:
    yield "<h2>Specification</h2>"
    if not found.specs:
        yield "<p>The same.</p>"
        return
    yield _head("Field", found.labels, number=False)
    for one in found.specs:
        cells = "".join(f"<td>{escape(_NONE if value is None else value)}</td>" for value in one.values)
        yield f"<tr><td><code>{escape(one.field)}</code></td>{cells}</tr>"
    yield "</table></div>"


def _head(first: str, labels: Sequence[str], *, number: bool) -> str:
    kind = ' class="number"' if number else ""
    heads = "".join(f"<th{kind}>{escape(label)}</th>" for label in labels)
    return f'<div class="wide"><table><tr><th>{first}</th>{heads}</tr>'


def _sentence(ours: str, theirs: str, one: Comparison) -> str:
    """The test in words; a difference above 0 says that the first run has smaller errors."""
    if not math.isfinite(one.difference):
        return f"{theirs}: no error that could be held against {ours}'s"
    whose = "smaller" if one.difference < 0 else "larger"
    if one.difference == 0:
        return f"{theirs}: the same mean error as {ours}"
    within = f", 95 % interval {one.low:+.3g} to {one.high:+.3g}" if math.isfinite(one.low) else ""
    if not math.isfinite(one.p):
        return f"{theirs}: errors {whose} than {ours}'s by {abs(one.difference):.3g}; {one.test} to test"
    p = "p < 0.001" if one.p < 0.001 else f"p = {one.p:.3f}"
    return f"{theirs}: errors (MASE) {whose} than {ours}'s by {abs(one.difference):.3g}{within}; {p} ({one.test})"


def _said(value: float | None) -> str:
    return _NONE if value is None or not math.isfinite(value) else f"{value:.4g}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _numbers(values: Sequence[float | None]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

"""The summary of the demo: a table for the terminal, and one self-contained page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

from matplotlib.figure import Figure

from pipelines.demo.series_choice import RULE
from pipelines.html_page import encode_data_uri, render_page

SCORE_HEADINGS = {"mase": "MASE", "rmsse": "RMSSE", "smape": "sMAPE", "mae": "MAE", "coverage_80": "in 80 %"}


class TrainingSummary(NamedTuple):
    """A model that the demo trained, for the table of the page."""

    name: str
    data: str
    recipe: str
    result: str


class DemoReport(NamedTuple):
    """What the demo has done.

    Attributes:
        models: The models that were trained.
        scores: The scores of the champion and the baselines in the held-out year, by forecaster, then by metric.
        num_series: The series that the scores cover.
        hospital_figure: The forecasts of the chosen series.
        sine_figure: The forecasts of the sine by both recipes.
        sine_text: What the second figure shows, with both errors.
        commands: Commands to try next, with what each does.
    """

    models: Sequence[TrainingSummary]
    scores: Mapping[str, Mapping[str, float]]
    num_series: int
    hospital_figure: Figure
    sine_figure: Figure
    sine_text: str
    commands: Mapping[str, str]


def render_score_lines(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Renders the scores as lines of text, one forecaster per line."""
    width = max(map(len, scores)) + 2
    head = f"{'':{width}}" + "".join(f"{heading:>9}" for heading in SCORE_HEADINGS.values())
    return [
        head,
        *(
            f"{name:{width}}" + "".join(f"{_format_score(metric, values):>9}" for metric in SCORE_HEADINGS)
            for name, values in scores.items()
        ),
    ]


def render_demo_page(report: DemoReport) -> str:
    """Renders the page; it loads nothing from elsewhere."""
    body = [
        "<h1>What the demo did</h1>",
        "<p>It trained the models below, passed one through the promotion gate, served it, requested forecasts over HTTP and "
        "compared them with what happened.</p>",
        *_render_scores(report),
        *_render_figure(
            "Forecasts of a year that the model has not seen",
            "Monthly patient counts, forecast over HTTP for twelve months. A rule has chosen the series, not a person: they "
            f"are, {RULE}.",
            report.hospital_figure,
        ),
        *_render_figure("The sine with a trend, by two recipes", report.sine_text, report.sine_figure),
        *_render_models(report.models),
        *_render_commands(report.commands),
    ]
    return render_page("The demo of forecaster", body)


def _render_scores(report: DemoReport) -> Iterator[str]:
    yield (
        f"<h2>Scores in the held-out year</h2><p>Means over {report.num_series} series; MASE below 1 is better than seasonal "
        "naive was within the history. The last column is the share of actuals within the 80 % interval.</p>"
    )
    headings = "".join(f'<th class="number">{escape(heading)}</th>' for heading in SCORE_HEADINGS.values())
    yield f'<div class="wide"><table><tr><th>Forecaster</th>{headings}</tr>'
    lowest = {
        metric: min((values[metric] for values in report.scores.values() if metric in values), default=math.nan)
        for metric in SCORE_HEADINGS
    }
    for name, values in report.scores.items():
        cells = "".join(
            f'<td class="number{" best" if metric != "coverage_80" and values.get(metric) == lowest[metric] else ""}">'
            f"{_format_score(metric, values)}</td>"
            for metric in SCORE_HEADINGS
        )
        yield f"<tr><td>{escape(name)}</td>{cells}</tr>"
    yield "</table></div>"


def _render_figure(heading: str, text: str, figure: Figure) -> Iterator[str]:
    yield f"<h2>{escape(heading)}</h2><p>{escape(text)}</p>"
    yield f'<img alt="{escape(heading)}" src="{encode_data_uri(figure)}">'


def _render_models(models: Sequence[TrainingSummary]) -> Iterator[str]:
    yield "<h2>What was trained</h2>"
    yield '<div class="wide"><table><tr><th>Model</th><th>Data</th><th>Recipe</th><th>Result</th></tr>'
    for model in models:
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in model) + "</tr>"
    yield "</table></div>"


def _render_commands(commands: Mapping[str, str]) -> Iterator[str]:
    yield "<h2>What to try next</h2><div class=wide><table>"
    for command, text in commands.items():
        yield f"<tr><td><code>{escape(command)}</code></td><td>{escape(text)}</td></tr>"
    yield "</table></div>"


def _format_score(metric: str, values: Mapping[str, float]) -> str:
    value = values.get(metric, math.nan)
    if not math.isfinite(value):
        return "-"
    return f"{100 * value:.0f} %" if metric == "coverage_80" else f"{value:.3f}" if value < 100 else f"{value:.1f}"

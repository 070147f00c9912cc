"""Renders the report of `forecaster inspect --html`: one self-contained page about one forecast and the network behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from forecaster.evaluation.plots import plot_forecast
from forecaster.explain.faithfulness import METHOD_LABELS
from forecaster.explain.inspection import Inspection
from forecaster.explain.memory import describe_half_life
from forecaster.explain.plots import plot_explanation
from forecaster.explain.signals import MEANINGS
from forecaster.explain.similar import timestamp_after
from forecaster.explain.state_plots import plot_atlas, plot_followers, plot_memory, plot_similar
from forecaster.frequency.timestamps import format_timestamp, timestamp_at
from pipelines.html_page import encode_data_uri, render_page


class _Picture(NamedTuple):
    """A figure with the text that replaces it, what it shows and when it misleads."""

    figure: Figure
    alternative: str
    meaning: str
    caution: str


def render_inspection_html(inspection: Inspection) -> str:
    """Renders the page: forecast, contributions, faithfulness, memory, atlas and similar stretches. It loads nothing."""
    sections = [
        ("forecast", "Forecast", _render_forecast(inspection)),
        ("contributions", "Contributions", _render_contributions(inspection)),
        ("faithfulness", "Faithfulness", _render_faithfulness(inspection)),
        ("memory", "Memory", _render_memory(inspection)),
        ("atlas", "What the units follow", _render_atlas(inspection)),
    ]
    if inspection.similar is not None:
        sections.append(("similar", "Similar stretches", _render_similar(inspection)))
    title = f"{inspection.model.spec.name}: {inspection.series.id}"
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections)
    parts = [
        '<a class="skip" href="#main">Skip to the report</a>',
        f'<header><h1>{escape(title)}</h1><nav aria-label="Sections">{links}</nav></header><main id="main">',
    ]
    for name, heading, lines in sections:
        parts += [f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(heading)}</h2>', *lines, "</section>"]
    return render_page(f"{title}: inspection", [*parts, "</main>"])


def _render_forecast(inspection: Inspection) -> Iterator[str]:
    forecast, series = inspection.forecast, inspection.series
    yield from (f'<p class="failed">{escape(warning)}</p>' for warning in forecast.warnings)
    first, last = format_timestamp(timestamp_at(forecast.ds, 0)), format_timestamp(timestamp_at(forecast.ds, -1))
    yield _render_picture(
        _Picture(
            plot_forecast(series, forecast, title=f"{series.id}: history and forecast"),
            f"History of {series.id} and its forecast from {first} to {last}: it begins at {forecast.mean[0]:.4g} and ends "
            f"at {forecast.mean[-1]:.4g}.",
            f"The forecast of {len(forecast.mean)} steps that the service would return"
            + (", with its 80 % and 95 % intervals." if forecast.quantiles else "; the model has no intervals."),
            "One forecast says little about the model. A backtest shows how large its errors are, and whether intervals hold.",
        )
    )


def _render_contributions(inspection: Inspection) -> Iterator[str]:
    explanation = inspection.explanation
    yield from (f"<p>{escape(note)}</p>" for note in explanation.notes)
    largest = int(np.argmax(np.abs(explanation.attribution)))
    yield _render_picture(
        _Picture(
            plot_explanation(explanation, title=explanation.id),
            f"Contributions of {len(explanation.ds)} values to the mean forecast. The largest is "
            f"{explanation.attribution[largest]:+.4g}, of the value {explanation.y[largest]:.4g} at "
            f"{format_timestamp(timestamp_at(explanation.ds, largest))}. Below: influence, gates and norm of the state.",
            f"Baseline {explanation.baseline:.4g} plus all contributions is the mean forecast {explanation.forecast:.4g} over "
            f"{explanation.horizon} steps. Gates and norms are means over the units of a layer.",
            "The baseline, the forecast of a history without news, is a choice: another one gives other contributions. They "
            "describe the network, not the cause of the data. A mean gate hides units that do the opposite.",
        )
    )


def _render_faithfulness(inspection: Inspection) -> Iterator[str]:
    explanation = inspection.explanation
    yield (
        f"<p>The contributions add up to forecast minus baseline, {explanation.forecast - explanation.baseline:.4g}, up to "
        f"{explanation.completeness_error:.2%}.</p>"
    )
    if explanation.faithfulness is not None:
        areas = explanation.faithfulness.aopcr
        yield _render_table(
            ("Ranking of the values", "Area over the perturbation curve"),
            [(label, f"{areas[name]:.4g}") for name, label in METHOD_LABELS.items()],
        )
        yield (
            "<p><strong>How to read it.</strong> How much the forecast really changes when the values that a ranking puts first "
            "are replaced by the mean of the history, on average over shares of replaced values. Random orders are near zero; "
            "the larger, the more faithful.</p>"
        )
    yield (
        "<p><strong>When it misleads.</strong> Contributions that add up need not be those that matter: adding up is necessary "
        "for a faithful explanation, not sufficient. Replaced values make histories that the network has never seen.</p>"
    )


def _render_memory(inspection: Inspection) -> Iterator[str]:
    decays, model = inspection.decays, inspection.model
    overall = "; ".join(describe_half_life(decay) for decay in decays)
    yield _render_table(
        ("Quantity", "Steps"),
        [
            ("half-life of the memory, all units", overall),
            *(
                (f"median half-life of layer {number}", _describe_steps(float(np.median(lives)), decays[0].window))
                for number, lives in enumerate(np.concatenate([decay.half_lives for decay in decays], axis=1), start=1)
            ),
            ("units whose influence does not halve within the window", str(_count_endless(inspection))),
            ("window over which it was measured", str(decays[0].window)),
            ("season", str(model.season)),
            ("context of the training", str(model.spec.context)),
        ],
    )
    yield _render_picture(
        _Picture(
            plot_memory(decays, season=model.season, context=model.spec.context),
            f"Influence of earlier states on the final state, by lag, and the half-life of each unit. Overall half-life: "
            f"{overall}; season {model.season}, context {model.spec.context} steps.",
            "At lag k: by how much each unit changes at the end if the state k steps before the end is changed a little, in the "
            "direction that matters most to it. The half-life is the lag from which on this stays below one half.",
            "It is the memory of the recurrence alone. Lags, seasonal features, level and scale reach further back past it, so a "
            "half-life far below the season does not mean that the model knows no season. It is measured along this history; "
            "large changes, and other histories, may be remembered longer or shorter.",
        )
    )


def _render_atlas(inspection: Inspection) -> Iterator[str]:
    atlas = inspection.atlas
    yield (
        f"<p>{inspection.num_traced} of {inspection.num_available} series, {atlas.num_units} units. Counted is what is "
        f"beyond chance: the probability that anything at all is reported by chance is about {atlas.rate:.0%}.</p>"
    )
    yield from (f"<p>{escape(note)}</p>" for note in atlas.notes)
    tested = atlas.table.groupby("signal", sort=False)["p"].apply(lambda values: bool(values.notna().any()))
    significant, followers = atlas.count_significant(), atlas.count_followers()
    rows = [
        (
            name,
            MEANINGS[name],
            *((str(significant[name]), str(followers.get(name, 0))) if tested[name] else ("not tested", "-")),
        )
        for name in tested.index
    ]
    yield _render_table(("Signal", "Meaning", "Units beyond chance", "Units that follow it most"), rows)
    yield _render_picture(
        _Picture(
            plot_atlas(atlas),
            "Share of each unit's variance that each signal explains. Units that follow a signal most: "
            + (", ".join(f"{name} {count}" for name, count in followers.items()) or "none")
            + f", of {atlas.num_units} units.",
            "A row is a unit, a column a signal. The color is the share of the variance of the unit's state within the series "
            "that the signal explains, with one coefficient for all series (of a cycle, with the phase of each). A dot marks "
            "what is beyond chance, against a baseline with the same autocorrelation. Grey was not tested.",
            "To follow is not to cause: an untrained network follows its inputs too, and signals that move together, such as "
            "level and trend, share their followers. Shares of one unit do not add up. A unit that follows values follows their "
            "season too, without any memory of it. Time since the start shows in every unit that starts from an empty state, and "
            "in all that follow a trend which the series share.",
        )
    )
    figure = plot_followers(atlas, inspection.traces, inspection.series.id, season=inspection.model.season)
    if figure is not None:
        yield _render_picture(
            _Picture(
                figure,
                f"States of the closest followers over {inspection.series.id}, each beside its signal.",
                "The unit that follows each signal most closely over all series, and that signal, over the explained series.",
                "These are the best of many units. In this series they may follow more or less closely than over all.",
            )
        )


def _render_similar(inspection: Inspection) -> Iterator[str]:
    found = inspection.similar
    assert found is not None
    start, end = (format_timestamp(timestamp_after(found.series, index)) for index in (found.first, found.stop))
    shown = ", ".join(found.selected[:12]) + (" and more" if len(found.selected) > 12 else "")
    yield (
        f"<p>From {start} to before {end}, {len(found.selected)} units are on throughout: {escape(shown)}. The same units "
        f"were looked for in {inspection.num_traced} series.</p>"
    )
    yield _render_table(
        ("Series", "From", "To before", "Units shared", "Other units on", "Chance"),
        [
            (
                match.series.id,
                format_timestamp(match.series.timestamp_at(match.first)),
                format_timestamp(timestamp_after(match.series, match.stop)),
                f"{match.shared} of {len(found.selected)}",
                str(match.extra),
                f"{match.chance:.2%}",
            )
            for match in found.matches
        ],
    )
    closest = found.matches[0].series.id if found.matches else "none"
    yield _render_picture(
        _Picture(
            plot_similar(found),
            f"The selected stretch of {found.series.id} and the stretches most like it; the closest is in {closest}.",
            "A unit is on if its state is more than half a standard deviation above (high) or below (low) its mean over all "
            "series. Matches share most of the units that are on throughout the selection (Strobelt et al. 2018). Chance is the "
            "share of all stretches of this length that share as many.",
            "The network treats these stretches alike; their values may look different. With few selected units, or a chance of "
            "several percent, a match says little. Stretches of another length are not found.",
        )
    )


def _render_picture(picture: _Picture) -> str:
    return (
        f'<figure><img alt="{escape(picture.alternative)}" src="{encode_data_uri(picture.figure)}"><figcaption>'
        f"<p><strong>What it shows.</strong> {escape(picture.meaning)}</p>"
        f"<p><strong>When it misleads.</strong> {escape(picture.caution)}</p></figcaption></figure>"
    )


def _render_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Renders a table, which the keyboard can scroll where it is wider than the page."""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    label = escape(headings[0])
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="Table: {label}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _count_endless(inspection: Inspection) -> int:
    return sum(int(np.isinf(decay.half_lives).sum()) for decay in inspection.decays)


def _describe_steps(half_life: float, window: int) -> str:
    return f"{half_life:.3g}" if np.isfinite(half_life) else f"more than {window}"

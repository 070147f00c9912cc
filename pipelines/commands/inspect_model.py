"""The command `forecaster inspect`: explains a forecast."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from forecaster.errors import BadId, InputError
from pipelines.commands.console import warn, write_table
from pipelines.commands.model_options import SeasonOptions, resolve_bundle
from pipelines.commands.options import (
    DataOptions,
    RootOptions,
    validate_counts,
    validate_output_paths,
    validate_table_paths,
)

if TYPE_CHECKING:
    from forecaster.explain.attribution import Explanation
    from forecaster.explain.inspection import Stretch
    from forecaster.explain.memory import MemoryDecay
    from forecaster.explain.similar import SimilarStretches
    from forecaster.prediction.fitted_model import FittedModel
    from forecaster.series import Series

_ROOT_OPTIONS, _DATA_OPTIONS, _SEASON_OPTIONS = RootOptions(), DataOptions(), SeasonOptions()
_MAX_ATTRIBUTIONS = 5  # attributions that are printed
_MAX_UNITS = 5  # names of units that are printed


def inspect(
    model: str,
    data: str | None = None,
    *,
    series: str | None = None,
    horizon: int | None = None,
    steps: int = 256,
    plot: Path | None = None,
    out: Path | None = None,
    html: Path | None = None,
    like: str | None = None,
    data_options: DataOptions = _DATA_OPTIONS,
    season_options: SeasonOptions = _SEASON_OPTIONS,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Explains a forecast: the half-life of the recurrent state, its gates, and the attribution of the forecast to its inputs.

    The attributions are followed by their faithfulness: how much the forecast changes when the values that they rank highest are
    replaced, beside other rankings.

    Parameters
    ----------
    model
        A bundle folder, a registered model as NAME or NAME@ALIAS, or `base` for the pretrained network.
    data
        Input data, as for train.
    series
        The id of the series; by default the first.
    horizon
        Steps ahead whose mean is explained; by default the model's horizon.
    steps
        Number of latest steps to explain, at most 1024.
    plot
        A file (x.png, .svg or .pdf) for a plot of the explanation.
    out
        File for a table with one row per step (CSV or Parquet).
    html
        File for a self-contained report: the forecast, its explanation, the memory of the network, what its units follow over
        the series of the data, and the stretches of --like.
    like
        A stretch START..END of the series (END is not part of it): the moments of other series at which the same units are on.
    """
    from forecaster.bundle import artifact
    from forecaster.bundle.pretrained.base import BASE_FOLDER, specialize_to_panel
    from forecaster.data.symbols import refuse_symbols
    from forecaster.explain.attribution import MAX_STEPS, explain
    from forecaster.explain.memory import measure_memory
    from forecaster.prediction.bounds import Bounds
    from pipelines.sources import read_panel

    validate_counts(horizon=horizon)
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(
            f"Expected --steps from 1 to {MAX_STEPS}; found {steps}. Use a number in this range.", where="steps"
        )
    validate_table_paths(out=out)
    validate_output_paths(plot=plot, html=html)
    source = data_options.to_data_source(data)
    folder, now = resolve_bundle(model, root_options), datetime.now(UTC)
    season_options.validate([folder])
    if folder == BASE_FOLDER:
        panel = read_panel(source._replace(values_only=True), now=now)
        fitted = specialize_to_panel(panel, horizon=horizon, season=season_options.season).to_fitted_model()
    else:
        fitted = artifact.load_bundle(folder)
        refuse_symbols(fitted.spec, what="an explanation", advice="Forecast with it: forecaster forecast MODEL DATA.")
        panel = read_panel(source.for_model(fitted.spec, fitted.encoding), now=now)
    for repair in panel.repairs:
        warn(repair)
    matches = [candidate for candidate in panel.series if series is None or candidate.id == series]
    if not matches:
        raise BadId(
            f"Expected --series with the id of a series in the data; found {series!r}. Use another id.", where="series"
        )
    stretch = None if like is None else _parse_stretch(like, matches[0])
    explanation = explain(fitted, matches[0], horizon=horizon, steps=steps, faithfulness=True)
    for note in explanation.notes:
        warn(note)
    _print_explanation(explanation)
    _print_memory(measure_memory(fitted, matches[0]), fitted)
    print(f"{'bounds':14}{Bounds.from_facts(fitted.spec, fitted.facts).describe()}")
    if plot is not None or out is not None:
        from forecaster.explain.plots import build_explanation_table, plot_explanation

        write_table(out, lambda: build_explanation_table(explanation))
        if plot is not None:
            plot_explanation(explanation, title=f"{fitted.spec.name}: {explanation.id}").savefig(plot)
    if html is not None:
        from forecaster.explain.inspection import inspect_forecast
        from pipelines.commands.inspect_report import render_inspection_html

        inspection = inspect_forecast(fitted, panel.series, matches[0], explanation, stretch=stretch)
        if inspection.similar is not None:
            _print_similar(inspection.similar)
        html.write_text(render_inspection_html(inspection), encoding="utf-8")
    elif stretch is not None:
        _print_similar(_find_similar(fitted, panel.series, matches[0], stretch))


def _parse_stretch(text: str, series: Series) -> Stretch:
    """Parses START..END as timestamps of a series; raises InputError."""
    from forecaster.explain.inspection import Stretch
    from forecaster.explain.similar import parse_bounds

    start, separator, end = text.partition("..")
    if not separator:
        raise InputError(
            f"Expected --like START..END, two timestamps of the series with two dots between them; found {text!r}. Write, for "
            "instance, --like 2024-01-01..2024-02-01.",
            where="like",
        )
    return Stretch(*parse_bounds(series, start, end))


def _find_similar(
    model: FittedModel, available: Sequence[Series], series: Series, stretch: Stretch
) -> SimilarStretches:
    from forecaster.explain.inspection import select_series
    from forecaster.explain.similar import find_similar
    from forecaster.explain.states import trace_states

    traces = trace_states(model, select_series(model, available, series), whole_history=True)
    return find_similar(traces, series.id, start=stretch.start, end=stretch.end)


def _print_memory(decays: Sequence[MemoryDecay], model: FittedModel) -> None:
    """Prints the half-life of the memory of each member beside the season and the context."""
    import numpy as np

    from forecaster.explain.memory import describe_half_life

    for decay in decays:
        name = "memory" if len(decays) == 1 else f"memory {decay.member}"
        lives = decay.half_lives
        endless = int(np.isinf(lives).sum())
        beyond = f", {endless} of {lives.size} units beyond the window of {decay.window} steps" if endless else ""
        print(
            f"{name:14}half-life of the state {describe_half_life(decay)} (median unit {np.median(lives):.3g}{beyond}); season "
            f"{model.season}, context {model.spec.context}"
        )


def _print_similar(found: SimilarStretches) -> None:
    from forecaster.explain.similar import build_match_table

    shown = ", ".join(found.selected[:_MAX_UNITS]) + (" and others" if len(found.selected) > _MAX_UNITS else "")
    print(f"{'selected':14}{len(found.selected)} units are on throughout: {shown}")
    print(build_match_table(found).to_string(index=False))


def _print_explanation(explanation: Explanation) -> None:
    import numpy as np

    from forecaster.explain.plots import describe_reading

    half_life = "the state does not depend on the history"
    if explanation.half_life is not None:
        half_life = f"{explanation.half_life:.4g} steps"
    print(f"{'series':14}{explanation.id}, {len(explanation.ds)} steps up to {explanation.ds[-1]}")
    print(f"{'half-life':14}{half_life}")
    for number, layer in enumerate(explanation.layers, start=1):
        gates = [f"{name} gate {np.nanmean(values):.3g}" for name, values in layer.gates.items()]
        gate_half_life = [] if layer.half_life is None else [f"half-life of the gate alone {layer.half_life:.4g} steps"]
        parts = [*gates, *gate_half_life, f"norm of the state {np.nanmean(layer.norm):.3g}"]
        print(f"{f'layer {number}':14}{', '.join(parts)}")
    print(f"{'forecast':14}{explanation.forecast:.6g}, the mean over {explanation.horizon} steps")
    print(
        f"{'baseline':14}{explanation.baseline:.6g}, the same if every value were nearly the mean, {explanation.reference:.6g}"
    )
    print(
        f"{'integration':14}{explanation.integration_points} gradients; the contributions miss "
        f"{explanation.completeness_error:.2%} of forecast minus baseline"
    )
    order = np.argsort(-np.abs(explanation.attribution), kind="stable")[:_MAX_ATTRIBUTIONS]
    for position, index in enumerate(sorted(int(step) for step in order if explanation.attribution[step])):
        heading = "contributions" if position == 0 else ""
        value = f"{explanation.attribution[index]:+.4g}"
        print(f"{heading:14}{value:10} of the value {explanation.y[index]:.6g} at {explanation.ds[index]}")
    for name, values in {**explanation.channels, **explanation.covariates}.items():
        print(f"{'':14}{values.sum():<+10.4g} of all values of {name}")
    if explanation.faithfulness is not None:
        for position, line in enumerate(explanation.faithfulness.describe()):
            print(f"{'faithfulness' if position == 0 else '':14}{line}")
    for line in describe_reading(explanation):
        name, _, meaning = line.partition(": ")
        print(f"{'how to read' if name == 'contribution' else '':14}{name}: {meaning}")

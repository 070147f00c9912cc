"""The command `forecaster forecast`: forecasts of a local model or of a service."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from cyclopts import Parameter

from forecaster.errors import ForecasterError, InputError
from pipelines.commands.console import name_options, warn, write_table
from pipelines.commands.options import (
    DataOptions,
    RootOptions,
    resolve_bundle,
    validate_counts,
    validate_output_paths,
    validate_table_paths,
)

if TYPE_CHECKING:
    from forecaster.series import Forecast, Panel

_ROOT_OPTIONS, _DATA_OPTIONS = RootOptions(), DataOptions()
_MAX_MESSAGES = 10  # errors of single series that are reported individually


class _ForecastResult(NamedTuple):
    """The outcomes of a model for the series of a panel."""

    model_name: str
    panel: Panel
    outcomes: list[Forecast | ForecasterError]


def forecast(
    model: str | None = None,
    data: str | None = None,
    *,
    url: str | None = None,
    horizon: int | None = None,
    levels: Annotated[tuple[float, ...], Parameter(negative="", show_default=False)] = (),
    out: Path | None = None,
    plot: Path | None = None,
    data_options: DataOptions = _DATA_OPTIONS,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Forecasts the series of the data, as a table with the columns `unique_id, ds, mean` and one column per level.

    Parameters
    ----------
    model
        A bundle folder, or a registered model as NAME or NAME@ALIAS; leave it out with --url.
    data
        Input data, as for train.
    url
        A service to use instead of MODEL (http://HOST:PORT); its API key, if it needs one, is read from FORECASTER_KEY.
    horizon
        Steps ahead; by default the model's horizon.
    levels
        The level of a calibrated quantile; may be repeated: `--levels 0.1 --levels 0.9` are the bounds of an 80 % interval.
    out
        File for the table (CSV or Parquet); by default CSV is printed.
    plot
        A file (x.png, .svg or .pdf) for a plot of the first series.
    """
    from forecaster.data.forecast_table import build_forecast_table
    from forecaster.series import Forecast

    validate_counts(horizon=horizon)
    validate_table_paths(out=out)
    validate_output_paths(plot=plot)
    if url is None and model is None:
        raise InputError("Expected MODEL or --url SERVICE; found neither. Give one of them.", where="model")
    if url is not None and data is not None:
        raise InputError(
            f"Expected only DATA with --url, because the service has the model; found {model} {data}. Leave the model out.",
            where="model",
        )
    if url is None:
        assert model is not None
        result = _forecast_locally(model, data, horizon, levels, data_options, root_options)
    else:  # with --url the first argument is the data
        result = _forecast_over_http(url, model, horizon, levels, data_options)
    forecasts = [outcome for outcome in result.outcomes if isinstance(outcome, Forecast)]
    _print_messages(result, forecasts)
    table = build_forecast_table(forecasts, levels)
    if out is None:
        table.to_csv(sys.stdout, index=False)
    write_table(out, lambda: table)
    if plot is not None:
        from forecaster.evaluation.plots import plot_forecast

        history = next(series for series in result.panel.series if series.id == forecasts[0].id)
        plot_forecast(history, forecasts[0], title=f"{result.model_name}: forecast of {history.id}").savefig(plot)


def _forecast_locally(
    reference: str,
    data: str | None,
    horizon: int | None,
    levels: tuple[float, ...],
    data_options: DataOptions,
    root_options: RootOptions,
) -> _ForecastResult:
    from forecaster.bundle import artifact
    from forecaster.data.summary import describe_size
    from forecaster.progress.display import LOG_INTERVAL_S, create_display
    from forecaster.statistical.blend import format_blend_weights
    from pipelines.sources import read_panel

    source, now = data_options.to_data_source(data), datetime.now(UTC)
    predictor = artifact.load_predictor(resolve_bundle(reference, root_options), clock=lambda: now)
    model = predictor.fitted_model
    if model.blend_weights:
        warn(f"{model.spec.name} is a blend: {format_blend_weights(model.blend_weights)}")
    progress = create_display(min_phase_s=LOG_INTERVAL_S)
    panel = read_panel(source.for_model(model.spec, model.encoding), now=now, progress=progress)
    with progress.phase("forecast"):
        progress.update(0, describe_size(panel))
        outcomes = predictor.forecast_batch(panel.series, horizon or model.spec.horizon, levels=levels)
    return _ForecastResult(model.spec.name, panel, outcomes)


def _forecast_over_http(
    url: str, data: str | None, horizon: int | None, levels: tuple[float, ...], data_options: DataOptions
) -> _ForecastResult:
    from forecaster.client import Client
    from forecaster.spec import Spec
    from forecaster.statistical.blend import format_blend_weights
    from pipelines.sources import read_panel

    with Client(url) as client:
        model = client.get_model()
        spec = Spec.parse(model["spec"], where="the specification of the service's model")
        if model["model"].get("blend"):
            warn(f"{spec.name} is a blend: {format_blend_weights(model['model']['blend'])}")
        source = data_options.to_data_source(data).for_spec(spec)
        text_covariates = model.get("text_covariates")  # absent from services of earlier versions
        panel = read_panel(
            source._replace(text_covariates=None if text_covariates is None else tuple(text_covariates)),
            now=datetime.now(UTC),
        )
        batch = client.forecast_batch(panel.series, horizon or spec.horizon, levels=levels)
    if len(batch.models) > 1:
        names = " and ".join(f"{version['name']} version {version['version']}" for version in batch.models)
        warn(f"the service changed its model during the request; the forecasts are from {names}")
    return _ForecastResult(spec.name, panel, batch.outcomes)


def _print_messages(result: _ForecastResult, forecasts: list[Forecast]) -> None:
    """Prints repairs, errors and warnings, one line each; raises the first error if no series has a forecast."""
    errors = [outcome for outcome in result.outcomes if isinstance(outcome, ForecasterError)]
    for repair in result.panel.repairs:
        warn(repair)
    for error in errors[: _MAX_MESSAGES if forecasts else 0]:
        warn(name_options(error.message))
    for series_forecast in forecasts:
        for warning in series_forecast.warnings:
            warn(f"series {series_forecast.id!r}: {warning}")
    if not forecasts:
        warn(f"none of {len(result.outcomes)} series has a forecast; the error of the first follows")
        raise errors[0]
    if errors:
        shown = f"; the first {_MAX_MESSAGES} errors are shown above" if len(errors) > _MAX_MESSAGES else ""
        warn(f"{len(errors)} of {len(result.outcomes)} series have no forecast{shown}")

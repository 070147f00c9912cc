"""The command `forecaster forecast`: forecasts of a local model or of a service."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from cyclopts import Parameter

from forecaster.errors import ForecasterError, InputError
from pipelines.commands.console import iterate_csv, name_options, warn, write_table
from pipelines.commands.model_options import SeasonOptions, resolve_bundle
from pipelines.commands.options import (
    DataOptions,
    RootOptions,
    validate_counts,
    validate_output_paths,
    validate_table_paths,
)

if TYPE_CHECKING:
    from forecaster.prediction.predictor import Predictor
    from forecaster.series import Forecast, Panel

_ROOT_OPTIONS, _DATA_OPTIONS, _SEASON_OPTIONS = RootOptions(), DataOptions(), SeasonOptions()
_MAX_MESSAGES = 10  # errors of single series that are reported individually


class _Levels(NamedTuple):
    """The levels of quantiles, and whether they bound whole paths."""

    values: tuple[float, ...]
    joint: bool


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
    joint: Annotated[bool, Parameter(negative="")] = False,
    out: Path | None = None,
    plot: Path | None = None,
    data_options: DataOptions = _DATA_OPTIONS,
    season_options: SeasonOptions = _SEASON_OPTIONS,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Forecasts the series of the data, as a table with the columns `unique_id, ds, mean` and one column per level.

    With DATA alone, the pretrained network forecasts them: `forecaster forecast data.csv --horizon 12` needs no training.

    Parameters
    ----------
    model
        A bundle folder, or a registered model as NAME or NAME@ALIAS; leave it out for the pretrained network, and with --url.
    data
        Input data, as for train.
    url
        A service to use instead of MODEL (http://HOST:PORT); its API key, if it needs one, is read from FORECASTER_KEY.
    horizon
        Steps ahead; by default the model's horizon, of the pretrained network the usual one of the frequency.
    levels
        The level of a quantile; may be repeated: `--levels 0.1 --levels 0.9` are the bounds of an 80 % interval.
    joint
        Whether the quantiles bound whole paths: all steps together lie between those of 0.1 and 0.9 with 80 %.
    out
        File for the table (CSV or Parquet); by default CSV is printed.
    plot
        A file (x.png, .svg or .pdf) for a plot of the first series.
    """
    from forecaster.bundle.pretrained.base import BASE_FOLDER
    from forecaster.data.forecast_table import build_forecast_table
    from forecaster.series import Forecast

    validate_counts(horizon=horizon)
    validate_table_paths(out=out)
    validate_output_paths(plot=plot)
    if url is None and model is None and data_options.sql is None:
        raise InputError(
            "Expected DATA for the pretrained network, MODEL and DATA, or --url SERVICE; found none. Give one of them.",
            where="model",
        )
    if url is None and data is None and data_options.sql is None:
        _refuse_model_alone(model)
        model, data = None, model
    if url is not None and data is not None:
        raise InputError(
            f"Expected only DATA with --url, because the service has the model; found {model} {data}. Leave the model out.",
            where="model",
        )
    if url is None:
        folder = BASE_FOLDER if model is None else resolve_bundle(model, root_options)
        season_options.validate([folder])
        result = _forecast_locally(folder, data, horizon, _Levels(levels, joint), data_options, season_options)
    else:  # with --url the first argument is the data
        season_options.validate([])
        result = _forecast_over_http(url, model, horizon, _Levels(levels, joint), data_options)
    forecasts = [outcome for outcome in result.outcomes if isinstance(outcome, Forecast)]
    _print_messages(result, forecasts)
    table = build_forecast_table(forecasts, levels)
    if out is None:
        sys.stdout.writelines(iterate_csv(table))
    write_table(out, lambda: table)
    if plot is not None:
        from forecaster.evaluation.plots import plot_forecast

        history = next(series for series in result.panel.series if series.id == forecasts[0].id)
        plot_forecast(history, forecasts[0], title=f"{result.model_name}: forecast of {history.id}").savefig(plot)


def _refuse_model_alone(argument: str | None) -> None:
    """Raises InputError if the only argument cannot be data: without MODEL it is DATA, which the pretrained network forecasts."""
    from forecaster.bundle.files import MANIFEST_FILE
    from pipelines.sources import BUILT_IN_DATASETS, is_table_name

    if argument is None or argument in BUILT_IN_DATASETS or "://" in argument or is_table_name(argument):
        return
    path = Path(argument)
    if not path.exists() or (path / MANIFEST_FILE).is_file():
        found = "a bundle" if path.exists() else "no data of that name"
        raise InputError(
            f"Expected MODEL and DATA, or DATA alone for the pretrained network; found only {argument!r}, {found}. Give the data "
            "too, or correct the path.",
            where="data",
        )


def _forecast_locally(
    folder: Path,
    data: str | None,
    horizon: int | None,
    levels: _Levels,
    data_options: DataOptions,
    season_options: SeasonOptions,
) -> _ForecastResult:
    from forecaster.bundle import artifact
    from forecaster.bundle.pretrained.base import BASE_FOLDER
    from forecaster.data.summary import describe_size
    from forecaster.engines.statistical.blend import format_blend_weights
    from forecaster.progress.display import LOG_INTERVAL_S, create_display
    from pipelines.sources import read_panel

    source, now = data_options.to_data_source(data), datetime.now(UTC)
    progress = create_display(min_phase_s=LOG_INTERVAL_S)
    if folder == BASE_FOLDER:
        panel = read_panel(source._replace(values_only=True), now=now, progress=progress)
        predictor = _build_pretrained(panel, horizon, season_options, now)
    else:
        predictor = artifact.load_predictor(folder, clock=lambda: now)
        model = predictor.fitted_model
        if model.blend_weights:
            warn(f"{model.spec.name} is a blend: {format_blend_weights(model.blend_weights)}")
        panel = read_panel(source.for_model(model.spec, model.encoding), now=now, progress=progress)
    spec = predictor.fitted_model.spec
    with progress.phase("forecast"):
        progress.update(0, describe_size(panel))
        outcomes = predictor.forecast_batch(
            panel.series, horizon or spec.horizon, levels=levels.values, joint=levels.joint
        )
    return _ForecastResult(spec.name, panel, outcomes)


def _build_pretrained(panel: Panel, horizon: int | None, options: SeasonOptions, now: datetime) -> Predictor:
    """Returns the pretrained network for the data of a panel, and says on standard error that it is used."""
    from forecaster.bundle.pretrained.base import specialize_to_panel
    from forecaster.prediction.predictor import Predictor

    model = specialize_to_panel(panel, horizon=horizon, season=options.season)
    warn(
        f"forecast by the pretrained network {model.spec.name!r}, which has not seen these data (frequency {model.freq}, season "
        f"{model.season}); a model of your own: forecaster train DATA --horizon {model.spec.horizon}"
    )
    return Predictor(model, clock=lambda: now)


def _forecast_over_http(
    url: str, data: str | None, horizon: int | None, levels: _Levels, data_options: DataOptions
) -> _ForecastResult:
    from forecaster.client import Client
    from forecaster.engines.statistical.blend import format_blend_weights
    from forecaster.spec import Spec
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
        batch = client.forecast_batch(panel.series, horizon or spec.horizon, levels=levels.values, joint=levels.joint)
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

"""`forecaster forecast`: what comes after the data, from a bundle here or from a service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from forecaster.errors import ForecasterError, InputError
from pipelines.commands.console import warn, write_table
from pipelines.commands.options import DataOptions, RootOptions, resolve_bundle, validate_counts, validate_output_paths

if TYPE_CHECKING:
    from forecaster.series import Forecast, Panel

_ROOT_OPTIONS, _DATA_OPTIONS = RootOptions(), DataOptions()
_MAX_MESSAGES = 10  # faults of single series that are told one by one


class _ForecastResult(NamedTuple):
    """What a model said of data."""

    model_name: str
    panel: Panel
    outcomes: list[Forecast | ForecasterError]


def forecast(
    model: str | None = None,
    data: str | None = None,
    *,
    url: str | None = None,
    horizon: int | None = None,
    levels: tuple[float, ...] = (),
    out: Path | None = None,
    plot: Path | None = None,
    reading: DataOptions = _DATA_OPTIONS,
    where: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Forecasts what comes after the data, as a table `unique_id, ds, mean` and a column for each level.

    Parameters
    ----------
    model
        A bundle folder, or a registered model as NAME or NAME@ALIAS; left out where a service is asked.
    data
        As for train.
    url
        A service to ask instead (http://HOST:PORT), with the key in FORECASTER_KEY, if it has keys.
    horizon
        Steps ahead; the model's own, if not given.
    levels
        Of calibrated quantiles: `--levels 0.1 --levels 0.9` bound an interval that holds 80 % of what comes.
    out
        Where to write the table (CSV or Parquet); without it, CSV goes to the terminal.
    plot
        Where to draw the first series (PNG).
    """
    from forecaster.data.forecast_table import build_forecast_table
    from forecaster.series import Forecast

    validate_counts(horizon=horizon)
    validate_output_paths(out=out, plot=plot)
    if url is None and model is None:
        raise InputError("Expected MODEL, or --url SERVICE; found neither. Name one of them.", where="model")
    if url is not None and data is not None:
        raise InputError(
            f"Expected DATA alone, for the service has the model; found {model} {data}. Leave the model out.",
            where="model",
        )
    if url is None:
        assert model is not None
        told = _forecast_locally(model, data, horizon, levels, reading, where)
    else:  # the first argument is then the data
        told = _forecast_over_http(url, model, horizon, levels, reading)
    good = [outcome for outcome in told.outcomes if isinstance(outcome, Forecast)]
    _print_messages(told, good)
    made = build_forecast_table(good, levels)
    if out is None:
        made.to_csv(sys.stdout, index=False)
    write_table(out, lambda: made)
    if plot is not None:
        from forecaster.evaluation.plots import plot_forecast

        history = next(one for one in told.panel.series if one.id == good[0].id)
        plot_forecast(history, good[0], title=f"{told.model_name}: {history.id}").savefig(plot)


def _forecast_locally(
    model: str,
    data: str | None,
    horizon: int | None,
    levels: tuple[float, ...],
    reading: DataOptions,
    where: RootOptions,
) -> _ForecastResult:
    from forecaster.bundle import artifact
    from forecaster.prediction.predictor import Predictor
    from forecaster.statistical.blend import format_blend_weights
    from pipelines.sources import read_panel

    source = reading.to_data_source(data)
    forecaster = artifact.load_bundle(resolve_bundle(model, where))
    if forecaster.blend_weights:
        warn(f"{forecaster.spec.name} is a blend: {format_blend_weights(forecaster.blend_weights)}")
    panel = read_panel(source.for_spec(forecaster.spec))
    outcomes = Predictor(forecaster).forecast_batch(panel.series, horizon or forecaster.spec.horizon, levels=levels)
    return _ForecastResult(forecaster.spec.name, panel, outcomes)


def _forecast_over_http(
    url: str, data: str | None, horizon: int | None, levels: tuple[float, ...], reading: DataOptions
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
        panel = read_panel(reading.to_data_source(data).for_spec(spec))
        told = client.forecast_batch(panel.series, horizon or spec.horizon, levels=levels)
    if len(told.models) > 1:
        names = " and ".join(f"{one['name']} version {one['version']}" for one in told.models)
        warn(f"the service changed its model meanwhile: the forecasts are of {names}")
    return _ForecastResult(spec.name, panel, told.outcomes)


def _print_messages(result: _ForecastResult, forecasts: list[Forecast]) -> None:
    """What people should know, a line each; raises the first fault where no series has a forecast."""
    bad = [outcome for outcome in result.outcomes if isinstance(outcome, ForecasterError)]
    for repair in result.panel.repairs:
        warn(repair)
    for fault in bad[: _MAX_MESSAGES if forecasts else 0]:
        warn(fault.message)
    for one in forecasts:
        for warning in one.warnings:
            warn(f"series {one.id!r}: {warning}")
    if not forecasts:
        warn(f"none of {len(result.outcomes)} series has a forecast; the first says why")
        raise bad[0]
    if bad:
        further = f", the first {_MAX_MESSAGES} are told above" if len(bad) > _MAX_MESSAGES else ""
        warn(f"{len(bad)} of {len(result.outcomes)} series have no forecast{further}")

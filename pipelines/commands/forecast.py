"""`forecaster forecast`: what comes after the data, from a bundle here or from a service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from forecaster.errors import ForecasterError, InputError
from pipelines.commands.console import warn, write_table
from pipelines.commands.options import Reading, Where, bundle_of, can_be_written, in_range

if TYPE_CHECKING:
    from forecaster.series import Forecast, Panel

_WHERE, _READING = Where(), Reading()
_TOLD = 10  # faults of single series that are told one by one


class _Told(NamedTuple):
    """What a model said of data."""

    name: str
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
    reading: Reading = _READING,
    where: Where = _WHERE,
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
    from forecaster.data.forecast_table import table
    from forecaster.series import Forecast

    in_range(horizon=horizon)
    can_be_written(out=out, plot=plot)
    if url is None and model is None:
        raise InputError("Expected MODEL, or --url SERVICE; found neither. Name one of them.", where="model")
    if url is not None and data is not None:
        raise InputError(
            f"Expected DATA alone, for the service has the model; found {model} {data}. Leave the model out.",
            where="model",
        )
    if url is None:
        assert model is not None
        told = _here(model, data, horizon, levels, reading, where)
    else:  # the first argument is then the data
        told = _over_http(url, model, horizon, levels, reading)
    good = [outcome for outcome in told.outcomes if isinstance(outcome, Forecast)]
    _tell(told, good)
    made = table(good, levels)
    if out is None:
        made.to_csv(sys.stdout, index=False)
    write_table(out, lambda: made)
    if plot is not None:
        from forecaster.evaluation.plots import forecast_plot

        history = next(one for one in told.panel.series if one.id == good[0].id)
        forecast_plot(history, good[0], title=f"{told.name}: {history.id}").savefig(plot)


def _here(
    model: str, data: str | None, horizon: int | None, levels: tuple[float, ...], reading: Reading, where: Where
) -> _Told:
    from forecaster.bundle import artifact
    from forecaster.prediction.predictor import Predictor
    from forecaster.statistical.blend import tell
    from pipelines.sources import read

    source = reading.of(data)
    forecaster = artifact.load(bundle_of(model, where))
    if forecaster.blend:
        warn(f"{forecaster.spec.name} is a blend: {tell(forecaster.blend)}")
    panel = read(source.for_spec(forecaster.spec))
    outcomes = Predictor(forecaster).forecast_each(panel.series, horizon or forecaster.spec.horizon, levels=levels)
    return _Told(forecaster.spec.name, panel, outcomes)


def _over_http(url: str, data: str | None, horizon: int | None, levels: tuple[float, ...], reading: Reading) -> _Told:
    from forecaster.client import Client
    from forecaster.spec import Spec
    from forecaster.statistical.blend import tell
    from pipelines.sources import read

    with Client(url) as client:
        model = client.model()
        spec = Spec.parse(model["spec"], where="the specification of the service's model")
        if model["model"].get("blend"):
            warn(f"{spec.name} is a blend: {tell(model['model']['blend'])}")
        panel = read(reading.of(data).for_spec(spec))
        told = client.forecast_each(panel.series, horizon or spec.horizon, levels=levels)
    if len(told.models) > 1:
        names = " and ".join(f"{one['name']} version {one['version']}" for one in told.models)
        warn(f"the service changed its model meanwhile: the forecasts are of {names}")
    return _Told(spec.name, panel, told.outcomes)


def _tell(told: _Told, good: list[Forecast]) -> None:
    """What people should know, a line each; raises the first fault where no series has a forecast."""
    bad = [outcome for outcome in told.outcomes if isinstance(outcome, ForecasterError)]
    for repair in told.panel.repairs:
        warn(repair)
    for fault in bad[: _TOLD if good else 0]:
        warn(fault.message)
    for one in good:
        for warning in one.warnings:
            warn(f"series {one.id!r}: {warning}")
    if not good:
        warn(f"none of {len(told.outcomes)} series has a forecast; the first says why")
        raise bad[0]
    if bad:
        further = f", the first {_TOLD} are told above" if len(bad) > _TOLD else ""
        warn(f"{len(bad)} of {len(told.outcomes)} series have no forecast{further}")

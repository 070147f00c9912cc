"""From series to requests and from answers to forecasts: columns of JSON, in parts that a service takes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from forecaster.client.transport import Call, Patience, Talk, ask
from forecaster.data.forecast_table import table
from forecaster.data.frames.panel import Columns, to_panel
from forecaster.errors import (
    ForecasterError,
    FrequencyUnknown,
    HorizonOutOfRange,
    InputError,
    IrregularStamps,
    RequestRefused,
    SeriesRefused,
    ServiceError,
)
from forecaster.series import Forecast, Panel, Series

Errors = Literal["raise", "return"]
MODEL = Call("GET", "/v1/model")
READY = Call("GET", "/readyz")
# Of one request; where a service takes less, a part is halved until it fits.
MOST_SERIES, MOST_VALUES, MOST_ANSWERED = 1000, 400_000, 1_000_000
_TOO_MUCH = ("too_many_series", "request_too_large", "answer_too_large", "body_too_large")


class Wanted(NamedTuple):
    """What is asked of every series.

    Attributes:
        horizon: Steps ahead.
        levels: Of quantiles.
        timeout_s: How long an answer is waited for; the service gives up after as long.
    """

    horizon: int
    levels: tuple[float, ...]
    timeout_s: float


class Told(NamedTuple):
    """What a service said.

    Attributes:
        outcomes: One for each series, in order.
        models: Which model said it: name, version, digest; several, if another took its place between two parts.
    """

    outcomes: list[Forecast | ForecasterError]
    models: list[dict[str, Any]]


class Forecasts(NamedTuple):
    """What became of a frame.

    Attributes:
        table: `unique_id, ds, mean`, and a column for each level.
        faults: By series, why it has no forecast.
        warnings: By series, what a reader should know of its forecast.
        models: As of `Told`.
    """

    table: pd.DataFrame
    faults: Mapping[str, ForecasterError]
    warnings: Mapping[str, tuple[str, ...]]
    models: list[dict[str, Any]]


def forecast_frame(
    frame: pd.DataFrame,
    *,
    horizon: int | None,
    levels: Sequence[float],
    freq: str | int | None,
    columns: Columns | None,
    zone: str | None,
    timeout_s: float,
    patience: Patience,
) -> Talk[Forecasts]:
    """The forecasts of a frame; see `Client.forecast`."""
    names = columns or Columns()
    model: dict[str, Any] = {}
    if horizon is None or set(frame.columns) - set(names):
        model = yield from ask(MODEL, patience)
    panel = _panel(frame, names, freq, zone, model)
    if panel is None:
        model = yield from ask(MODEL, patience)
        panel = _panel(frame, names, model["freq"], zone, model)
        assert panel is not None, "a declared frequency is none to be inferred"
    wanted = Wanted(model["spec"]["horizon"] if horizon is None else horizon, tuple(levels), timeout_s)
    told = yield from forecast_each(panel.series, wanted, patience)
    return _gathered(panel, told, wanted.levels)


def forecast_each(series: Sequence[Series], wanted: Wanted, patience: Patience) -> Talk[Told]:
    """One outcome for each series, in order; asked in parts."""
    if wanted.horizon < 1:
        raise HorizonOutOfRange(f"Expected a horizon of at least 1 step; found {wanted.horizon}.", where="horizon")
    outcomes: list[Forecast | ForecasterError] = []
    models: list[dict[str, Any]] = []
    waiting = list(_parts(series, wanted))[::-1]
    while waiting:
        part = waiting.pop()
        try:
            answer = yield from ask(Call("POST", "/v1/forecast", _body(part, wanted)), patience)
        except RequestRefused as refused:
            if refused.code in _TOO_MUCH and len(part) > 1:
                half = len(part) // 2
                waiting += [part[half:], part[:half]]
                continue
            if len(part) > 1 or refused.where != part[0].id:
                raise
            outcomes.append(_fault(refused.code, refused.message, refused.where))  # the only series of a request
            continue
        told = _read(answer, part, wanted)
        outcomes += told.outcomes
        models += [model for model in told.models if model not in models]
    return Told(outcomes, models)


def raised(found: Forecasts) -> Forecasts:
    """The same, if all have a forecast; else raises SeriesRefused."""
    if found.faults:
        raise SeriesRefused(list(found.faults.values()), answered=found.table["unique_id"].nunique())
    return found


def _panel(
    frame: pd.DataFrame, names: Columns, freq: str | int | None, zone: str | None, model: Mapping[str, Any]
) -> Panel | None:
    """The frame as series, with the columns that the model reads; None where the frequency must be asked for."""
    spec = model.get("spec", {})
    group = [spec["group"]] if spec.get("group") in frame.columns and spec["group"] not in spec["static"] else []
    try:
        return to_panel(
            frame,
            freq=freq,
            columns=names,
            zone=zone,
            covariates=spec.get("covariates", ()),
            static=[*spec.get("static", ()), *group],
            channels=spec.get("channels", ()),
        )
    except (FrequencyUnknown, IrregularStamps):
        if freq is not None:
            raise
        return None


def _gathered(panel: Panel, told: Told, levels: Sequence[float]) -> Forecasts:
    pairs = list(zip(panel.series, told.outcomes, strict=True))
    good = [outcome for _, outcome in pairs if isinstance(outcome, Forecast)]
    return Forecasts(
        table(good, levels),
        {one.id: outcome for one, outcome in pairs if isinstance(outcome, ForecasterError)},
        {one.id: one.warnings for one in good if one.warnings},
        told.models,
    )


def _parts(series: Sequence[Series], wanted: Wanted) -> Iterator[Sequence[Series]]:
    """As many series at a time as fit into a request, one at the least."""
    most = max(1, min(MOST_SERIES, MOST_ANSWERED // (wanted.horizon * (1 + len(wanted.levels)))))
    first = values = 0
    for place, one in enumerate(series):
        size = len(one) * (1 + len(one.channels)) + (len(one) + one.ahead) * len(one.covariates)
        if place > first and (values + size > MOST_VALUES or place - first == most):
            yield series[first:place]
            first, values = place, 0
        values += size
    if len(series):
        yield series[first:]


def _body(series: Sequence[Series], wanted: Wanted) -> bytes:
    """A ColumnsRequest; all its series have the frequency, and the columns, of the first."""
    first = series[0]
    columns: dict[str, Any] = {
        "id": [one.id for one in series],
        "start": [one.start if isinstance(one.start, int) else one.start.isoformat() for one in series],
        "freq": first.freq,
        "y": [_numbers(one.y) for one in series],
    }
    if first.covariates:
        reach = [len(one) + min(one.ahead, wanted.horizon + _ROOM) for one in series]
        columns["covariates"] = {
            name: [_cells(one.covariates[name][:steps]) for one, steps in zip(series, reach, strict=True)]
            for name in first.covariates
        }
    if first.static:
        columns["static"] = {name: [one.static[name] for one in series] for name in first.static}
    if first.channels:
        columns["channels"] = {name: [_numbers(one.channels[name]) for one in series] for name in first.channels}
    asked = {"columns": columns, "horizon": wanted.horizon, "levels": list(wanted.levels)}
    return json.dumps({**asked, "deadline_ms": max(1, int(wanted.timeout_s * 1000))}, allow_nan=False).encode()


_ROOM = 1000  # steps of covariates beyond the horizon: a network reads them up to the end of its block


def _cells(values: np.ndarray) -> list[Any]:
    return values.tolist() if values.dtype == object else _numbers(values)


def _numbers(values: np.ndarray) -> list[float | None]:
    """Numbers as JSON has them: null was not observed."""
    if not np.isfinite(values).all():
        if np.isinf(values).any():
            raise InputError("Expected finite values; found an infinite one. Correct it, or leave it out.")
        return [None if value != value else value for value in values.tolist()]
    return list(values.tolist())


def _read(answer: Any, series: Sequence[Series], wanted: Wanted) -> Told:
    """What an answer says, in the stamps of the series themselves: those know their time zone."""
    try:
        told, quantiles = answer["columns"], answer["columns"].get("quantiles", {})
        model = dict(answer["model"])
        found: list[Forecast | ForecasterError] = []
        for place, one in enumerate(series):
            error = told["error"][place]
            if error is not None:
                found.append(_fault(error["code"], error["message"], error["where"]))
                continue
            bands = {level: _array(quantiles[repr(float(level))][place], wanted) for level in sorted(wanted.levels)}
            mean, ahead = _array(told["mean"][place], wanted), one.stamps_ahead(wanted.horizon)
            found.append(Forecast(one.id, ahead, mean, tuple(told["warnings"][place]), bands))
    except (AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
        raise ServiceError(
            f"Expected columns with a place for each of {len(series)} series; the answer has another shape "
            f"({type(error).__name__}). Is the service of the same version as this client?"
        ) from error
    return Told(found, [model])


def _array(values: Any, wanted: Wanted) -> np.ndarray:
    array = np.array(values, dtype=np.float64)
    if array.shape != (wanted.horizon,):
        raise ValueError(f"{array.shape} values for {wanted.horizon} steps")
    return array


def _fault(code: str, message: str, where: str | None) -> ForecasterError:
    """The error of a series as one of our own tree, where it has the code."""
    kind = _kinds(InputError).get(code)
    return RequestRefused(message, code=code, where=where) if kind is None else kind(message, where=where)


def _kinds(root: type[ForecasterError]) -> dict[str, type[ForecasterError]]:
    found = {root.code: root}
    for kind in root.__subclasses__():
        if kind is not SeriesRefused:
            found |= _kinds(kind)
    return found

"""From series to requests and from answers to forecasts: columns of JSON, in parts that a service takes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from forecaster.client.transport import Exchange, HttpRequest, RetryPolicy, request_json
from forecaster.data.forecast_table import build_forecast_table
from forecaster.data.frames.panel import ColumnNames, to_panel
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

ErrorMode = Literal["raise", "return"]
MODEL_REQUEST = HttpRequest("GET", "/v1/model")
READY_REQUEST = HttpRequest("GET", "/readyz")
# Of one request; where a service takes less, a part is halved until it fits.
MAX_SERIES, MAX_VALUES, MAX_FORECAST_VALUES = 1000, 400_000, 1_000_000
_TOO_LARGE_CODES = ("too_many_series", "request_too_large", "answer_too_large", "body_too_large")


class ForecastQuery(NamedTuple):
    """What is asked of every series.

    Attributes:
        horizon: Steps ahead.
        levels: Of quantiles.
        timeout_s: How long an answer is waited for; the service gives up after as long.
    """

    horizon: int
    levels: tuple[float, ...]
    timeout_s: float


class ServiceOutcomes(NamedTuple):
    """What a service said.

    Attributes:
        outcomes: One for each series, in order.
        models: Which model said it: name, version, digest; several, if another took its place between two parts.
    """

    outcomes: list[Forecast | ForecasterError]
    models: list[dict[str, Any]]


class FrameForecast(NamedTuple):
    """What became of a frame.

    Attributes:
        table: `unique_id, ds, mean`, and a column for each level.
        faults: By series, why it has no forecast.
        warnings: By series, what a reader should know of its forecast.
        models: As of `ServiceOutcomes`.
    """

    table: pd.DataFrame
    errors: Mapping[str, ForecasterError]
    warnings: Mapping[str, tuple[str, ...]]
    models: list[dict[str, Any]]


def forecast_frame(
    frame: pd.DataFrame,
    *,
    horizon: int | None,
    levels: Sequence[float],
    freq: str | int | None,
    columns: ColumnNames | None,
    zone: str | None,
    timeout_s: float,
    retry_policy: RetryPolicy,
) -> Exchange[FrameForecast]:
    """The forecasts of a frame; see `AppClient.forecast`."""
    names = columns or ColumnNames()
    model: dict[str, Any] = {}
    if horizon is None or set(frame.columns) - set(names):
        model = yield from request_json(MODEL_REQUEST, retry_policy)
    panel = _build_panel(frame, names, freq, zone, model)
    if panel is None:
        model = yield from request_json(MODEL_REQUEST, retry_policy)
        panel = _build_panel(frame, names, model["freq"], zone, model)
        assert panel is not None, "a declared frequency is none to be inferred"
    wanted = ForecastQuery(model["spec"]["horizon"] if horizon is None else horizon, tuple(levels), timeout_s)
    told = yield from forecast_batch(panel.series, wanted, retry_policy)
    return _collect_result(panel, told, wanted.levels)


def forecast_batch(
    series: Sequence[Series], query: ForecastQuery, retry_policy: RetryPolicy
) -> Exchange[ServiceOutcomes]:
    """One outcome for each series, in order; asked in parts."""
    if query.horizon < 1:
        raise HorizonOutOfRange(f"Expected a horizon of at least 1 step; found {query.horizon}.", where="horizon")
    outcomes: list[Forecast | ForecasterError] = []
    models: list[dict[str, Any]] = []
    waiting = list(_split_series(series, query))[::-1]
    while waiting:
        part = waiting.pop()
        try:
            answer = yield from request_json(
                HttpRequest("POST", "/v1/forecast", _encode_request(part, query)), retry_policy
            )
        except RequestRefused as refused:
            if refused.code in _TOO_LARGE_CODES and len(part) > 1:
                half = len(part) // 2
                waiting += [part[half:], part[:half]]
                continue
            if len(part) > 1 or refused.where != part[0].id:
                raise
            outcomes.append(_build_error(refused.code, refused.message, refused.where))  # the only series of a request
            continue
        told = _decode_response(answer, part, query)
        outcomes += told.outcomes
        models += [model for model in told.models if model not in models]
    return ServiceOutcomes(outcomes, models)


def raise_for_errors(result: FrameForecast) -> FrameForecast:
    """The same, if all have a forecast; else raises SeriesRefused."""
    if result.errors:
        raise SeriesRefused(list(result.errors.values()), forecast_count=result.table["unique_id"].nunique())
    return result


def _build_panel(
    frame: pd.DataFrame, columns: ColumnNames, freq: str | int | None, zone: str | None, model: Mapping[str, Any]
) -> Panel | None:
    """The frame as series, with the columns that the model reads; None where the frequency must be asked for."""
    spec = model.get("spec", {})
    group = [spec["group"]] if spec.get("group") in frame.columns and spec["group"] not in spec["static"] else []
    try:
        return to_panel(
            frame,
            freq=freq,
            columns=columns,
            zone=zone,
            covariates=spec.get("covariates", ()),
            static=[*spec.get("static", ()), *group],
            channels=spec.get("channels", ()),
        )
    except (FrequencyUnknown, IrregularStamps):
        if freq is not None:
            raise
        return None


def _collect_result(panel: Panel, service_outcomes: ServiceOutcomes, levels: Sequence[float]) -> FrameForecast:
    pairs = list(zip(panel.series, service_outcomes.outcomes, strict=True))
    good = [outcome for _, outcome in pairs if isinstance(outcome, Forecast)]
    return FrameForecast(
        build_forecast_table(good, levels),
        {one.id: outcome for one, outcome in pairs if isinstance(outcome, ForecasterError)},
        {one.id: one.warnings for one in good if one.warnings},
        service_outcomes.models,
    )


def _split_series(series: Sequence[Series], query: ForecastQuery) -> Iterator[Sequence[Series]]:
    """As many series at a time as fit into a request, one at the least."""
    most = max(1, min(MAX_SERIES, MAX_FORECAST_VALUES // (query.horizon * (1 + len(query.levels)))))
    first = values = 0
    for place, one in enumerate(series):
        size = len(one) * (1 + len(one.channels)) + (len(one) + one.covariate_horizon) * len(one.covariates)
        if place > first and (values + size > MAX_VALUES or place - first == most):
            yield series[first:place]
            first, values = place, 0
        values += size
    if len(series):
        yield series[first:]


def _encode_request(series: Sequence[Series], query: ForecastQuery) -> bytes:
    """A ColumnsRequest; all its series have the frequency, and the columns, of the first."""
    first = series[0]
    columns: dict[str, Any] = {
        "id": [one.id for one in series],
        "start": [one.start if isinstance(one.start, int) else one.start.isoformat() for one in series],
        "freq": first.freq,
        "y": [_encode_numbers(one.y) for one in series],
    }
    if first.covariates:
        reach = [len(one) + min(one.covariate_horizon, query.horizon + _EXTRA_COVARIATE_STEPS) for one in series]
        columns["covariates"] = {
            name: [_encode_values(one.covariates[name][:steps]) for one, steps in zip(series, reach, strict=True)]
            for name in first.covariates
        }
    if first.static:
        columns["static"] = {name: [one.static[name] for one in series] for name in first.static}
    if first.channels:
        columns["channels"] = {name: [_encode_numbers(one.channels[name]) for one in series] for name in first.channels}
    asked = {"columns": columns, "horizon": query.horizon, "levels": list(query.levels)}
    return json.dumps({**asked, "deadline_ms": max(1, int(query.timeout_s * 1000))}, allow_nan=False).encode()


_EXTRA_COVARIATE_STEPS = 1000  # steps of covariates beyond the horizon: a network reads them up to the end of its block


def _encode_values(values: np.ndarray) -> list[Any]:
    return values.tolist() if values.dtype == object else _encode_numbers(values)


def _encode_numbers(values: np.ndarray) -> list[float | None]:
    """Numbers as JSON has them: null was not observed."""
    if not np.isfinite(values).all():
        if np.isinf(values).any():
            raise InputError("Expected finite values; found an infinite one. Correct it, or leave it out.")
        return [None if value != value else value for value in values.tolist()]
    return list(values.tolist())


def _decode_response(payload: Any, series: Sequence[Series], query: ForecastQuery) -> ServiceOutcomes:
    """What an answer says, in the stamps of the series themselves: those know their time zone."""
    try:
        told, quantiles = payload["columns"], payload["columns"].get("quantiles", {})
        model = dict(payload["model"])
        found: list[Forecast | ForecasterError] = []
        for place, one in enumerate(series):
            error = told["error"][place]
            if error is not None:
                found.append(_build_error(error["code"], error["message"], error["where"]))
                continue
            bands = {
                level: _decode_array(quantiles[repr(float(level))][place], query) for level in sorted(query.levels)
            }
            mean, ahead = _decode_array(told["mean"][place], query), one.future_timestamps(query.horizon)
            found.append(Forecast(one.id, ahead, mean, tuple(told["warnings"][place]), bands))
    except (AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
        raise ServiceError(
            f"Expected columns with a place for each of {len(series)} series; the answer has another shape "
            f"({type(error).__name__}). Is the service of the same version as this client?"
        ) from error
    return ServiceOutcomes(found, [model])


def _decode_array(values: Any, query: ForecastQuery) -> np.ndarray:
    array = np.array(values, dtype=np.float64)
    if array.shape != (query.horizon,):
        raise ValueError(f"{array.shape} values for {query.horizon} steps")
    return array


def _build_error(code: str, message: str, where: str | None) -> ForecasterError:
    """The error of a series as one of our own tree, where it has the code."""
    kind = _errors_by_code(InputError).get(code)
    return RequestRefused(message, code=code, where=where) if kind is None else kind(message, where=where)


def _errors_by_code(root: type[ForecasterError]) -> dict[str, type[ForecasterError]]:
    found = {root.code: root}
    for kind in root.__subclasses__():
        if kind is not SeriesRefused:
            found |= _errors_by_code(kind)
    return found

"""Converts series to requests and responses to forecasts: JSON, in batches that the service accepts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.client.transport import Exchange, HttpRequest, RetryPolicy, request_json
from forecaster.data.calendar import default_horizon
from forecaster.data.forecast_table import build_forecast_table
from forecaster.data.frames.columns import is_symbol_column
from forecaster.data.frames.panel import to_panel
from forecaster.data.frames.rows import ColumnNames
from forecaster.data.symbols import decode_symbols, encode_symbols
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

MODEL_REQUEST = HttpRequest("GET", "/v1/model")
READY_REQUEST = HttpRequest("GET", "/readyz")
# Limits of one request; a batch that the service rejects as too large is halved until it fits.
MAX_SERIES, MAX_VALUES, MAX_FORECAST_VALUES = 1000, 200_000, 1_000_000
_TOO_LARGE_CODES = ("too_many_series", "request_too_large", "answer_too_large", "body_too_large")


class ForecastQuery(NamedTuple):
    """The parameters of a request, the same for every series.

    Attributes:
        horizon: Steps ahead.
        levels: Levels of the quantiles.
        timeout_s: How long to wait for a response; the service gives up after the same time.
        season: Steps of a season; None: the model's, or the usual one of the frequency.
        joint: Whether the quantiles bound whole paths.
        vocabulary: The vocabulary of a model of symbols, in whose codes the values of series and forecasts are; () for numbers.
    """

    horizon: int
    levels: tuple[float, ...]
    timeout_s: float
    season: int | None = None
    joint: bool = False
    vocabulary: tuple[str, ...] = ()


class FrameQuery(NamedTuple):
    """The parameters of the forecast of a frame; all but the timeout are arguments of `Client.forecast`."""

    horizon: int | None
    levels: tuple[float, ...]
    freq: str | int | None
    columns: ColumnNames | None
    zone: str | None
    timeout_s: float
    season: int | None = None
    joint: bool = False


class ExplanationQuery(NamedTuple):
    """The parameters of an explanation; all but the timeout are arguments of `Client.explain`."""

    horizon: int | None
    steps: int
    faithfulness: bool
    timeout_s: float


class ServiceOutcomes(NamedTuple):
    """The outcomes of all requests.

    Attributes:
        outcomes: One for each series, in order.
        models: The models that made the forecasts: name, version, digest; several, if one was replaced between two batches.
    """

    outcomes: list[Forecast | ForecasterError]
    models: list[dict[str, Any]]


class FrameForecast(NamedTuple):
    """The result of forecasting a frame.

    Attributes:
        table: `unique_id, ds, mean`, and a column for each level; `unique_id, ds, symbol` of a model of symbols.
        errors: By series, why it has no forecast.
        warnings: By series, the warnings of its forecast.
        models: As of `ServiceOutcomes`.
    """

    table: pd.DataFrame
    errors: Mapping[str, ForecasterError]
    warnings: Mapping[str, tuple[str, ...]]
    models: list[dict[str, Any]]


def forecast_frame(frame: pd.DataFrame, query: FrameQuery, retry_policy: RetryPolicy) -> Exchange[FrameForecast]:
    """Forecasts a frame; see `Client.forecast`."""
    names = query.columns or ColumnNames()
    model: dict[str, Any] = {}
    if query.horizon is None or set(frame.columns) - set(names) or _has_symbols(frame, names):
        model = yield from request_json(MODEL_REQUEST, retry_policy)
    panel = _build_panel(frame, names, query.freq, query.zone, model)
    if panel is None:
        model = yield from request_json(MODEL_REQUEST, retry_policy)
        panel = _build_panel(frame, names, model["freq"], query.zone, model, needs_freq=False)
        assert panel is not None, "without a fallback the error is raised"
    batch_query = ForecastQuery(
        _default_horizon(panel, model) if query.horizon is None else query.horizon,
        query.levels,
        query.timeout_s,
        query.season,
        query.joint,
        panel.vocabulary,
    )
    outcomes = yield from _send_batches(panel.series, batch_query, retry_policy)
    return _collect_result(panel, outcomes, query.levels)


def forecast_batch(
    series: Sequence[Series], query: ForecastQuery, retry_policy: RetryPolicy
) -> Exchange[ServiceOutcomes]:
    """Returns one outcome for each series, in order; the series are sent in batches, with the columns that the model reads."""
    if any(item.covariates or item.static or item.channels for item in series):
        model = yield from request_json(MODEL_REQUEST, retry_policy)
        series = [_keep_known_columns(item, model["spec"]) for item in series]
    return (yield from _send_batches(series, query, retry_policy))


def explain_series(series: Series, query: ExplanationQuery, retry_policy: RetryPolicy) -> Exchange[dict[str, Any]]:
    """Returns the explanation of the forecast of one series; see `Client.explain`."""
    if series.covariates or series.static or series.channels:
        model = yield from request_json(MODEL_REQUEST, retry_policy)
        series = _keep_known_columns(series, model["spec"])
    fields = {
        "series": _encode_series(series, ForecastQuery(query.horizon or len(series), (), query.timeout_s)),
        "steps": query.steps,
        "faithfulness": query.faithfulness,
        "deadline_ms": max(1, int(query.timeout_s * 1000)),
        **({} if query.horizon is None else {"horizon": query.horizon}),
    }
    explanation: dict[str, Any] = yield from request_json(
        HttpRequest("POST", "/v1/explain", json.dumps(fields, allow_nan=False).encode()), retry_policy
    )
    return explanation


def _send_batches(
    series: Sequence[Series], query: ForecastQuery, retry_policy: RetryPolicy
) -> Exchange[ServiceOutcomes]:
    if query.horizon < 1:
        raise HorizonOutOfRange(
            f"Expected a horizon of at least 1 step; found {query.horizon}. Use a positive horizon.", where="horizon"
        )
    outcomes: list[Forecast | ForecasterError] = []
    models: list[dict[str, Any]] = []
    pending = list(_split_series(series, query))[::-1]
    while pending:
        batch = pending.pop()
        try:
            response = yield from request_json(
                HttpRequest("POST", "/v1/forecast", _encode_request(batch, query)), retry_policy
            )
        except RequestRefused as error:
            if error.code in _TOO_LARGE_CODES and len(batch) > 1:
                half = len(batch) // 2
                pending += [batch[half:], batch[:half]]
                continue
            if len(batch) > 1 or error.where != batch[0].id:
                raise
            outcomes.append(_build_error(error.code, error.message, error.where))  # the error of a single series
            continue
        batch_outcomes = _decode_response(response, batch, query)
        outcomes += batch_outcomes.outcomes
        models += [model for model in batch_outcomes.models if model not in models]
    return ServiceOutcomes(outcomes, models)


def raise_for_errors(result: FrameForecast) -> FrameForecast:
    """Returns the result, if all series have a forecast; otherwise raises SeriesRefused."""
    if result.errors:
        raise SeriesRefused(list(result.errors.values()), forecast_count=result.table["unique_id"].nunique())
    return result


def _default_horizon(panel: Panel, model: Mapping[str, Any]) -> int:
    """Returns the horizon of the model; the usual one of the frequency for the pretrained network, which takes any."""
    return default_horizon(panel.freq) if model["freq"] is None else int(model["spec"]["horizon"])


def _build_panel(
    frame: pd.DataFrame,
    columns: ColumnNames,
    freq: str | int | None,
    zone: str | None,
    model: Mapping[str, Any],
    *,
    needs_freq: bool = True,
) -> Panel | None:
    """Returns the frame as series with the columns that the model reads; None where the model's frequency is needed first."""
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
            text_covariates=model.get("text_covariates"),  # absent from services of earlier versions
            vocabulary=_find_vocabulary(spec),
        )
    except (FrequencyUnknown, IrregularStamps):
        if freq is not None or not needs_freq:
            raise
        return None


def _has_symbols(frame: pd.DataFrame, names: ColumnNames) -> bool:
    return list(frame.columns).count(names.y) == 1 and is_symbol_column(frame[names.y])


def _find_vocabulary(spec: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Returns the vocabulary of a model of symbols; None for a model of numbers."""
    head = spec.get("head", {})
    return tuple(head["vocabulary"]) if head.get("kind") == "symbols" else None


def _keep_known_columns(series: Series, spec: Mapping[str, Any]) -> Series:
    """Returns the series with the columns that a model reads; the service rejects others."""

    def keep(columns: Mapping[str, Any], names: Sequence[str | None]) -> dict[str, Any]:
        return {name: values for name, values in columns.items() if name in names}

    return replace(
        series,
        covariates=keep(series.covariates, spec.get("covariates", ())),
        static=keep(series.static, (*spec.get("static", ()), spec.get("group"))),
        channels=keep(series.channels, spec.get("channels", ())),
    )


def _collect_result(panel: Panel, service_outcomes: ServiceOutcomes, levels: Sequence[float]) -> FrameForecast:
    pairs = list(zip(panel.series, service_outcomes.outcomes, strict=True))
    forecasts = [outcome for _, outcome in pairs if isinstance(outcome, Forecast)]
    return FrameForecast(
        build_forecast_table(forecasts, levels, vocabulary=panel.vocabulary),
        {series.id: outcome for series, outcome in pairs if isinstance(outcome, ForecasterError)},
        {forecast.id: forecast.warnings for forecast in forecasts if forecast.warnings},
        service_outcomes.models,
    )


def _split_series(series: Sequence[Series], query: ForecastQuery) -> Iterator[Sequence[Series]]:
    """Yields as many series at a time as fit into a request, at least one."""
    max_series = max(1, min(MAX_SERIES, MAX_FORECAST_VALUES // (query.horizon * (1 + len(query.levels)))))
    first = values = 0
    for index, item in enumerate(series):
        size = len(item) * (1 + len(item.channels)) + (len(item) + item.covariate_horizon) * len(item.covariates)
        if index > first and (values + size > MAX_VALUES or index - first == max_series):
            yield series[first:index]
            first, values = index, 0
        values += size
    if len(series):
        yield series[first:]


def _encode_request(series: Sequence[Series], query: ForecastQuery) -> bytes:
    """Encodes a ForecastRequest."""
    request = {"series": [_encode_series(item, query) for item in series], "horizon": query.horizon}
    request |= {"levels": list(query.levels), "deadline_ms": max(1, int(query.timeout_s * 1000))}
    if query.joint:  # services of earlier versions refuse the field
        request["joint"] = True
    try:
        return json.dumps(request, allow_nan=False).encode()
    except ValueError as error:  # `_encode_numbers` replaced NaN
        raise InputError("Expected finite values; found an infinite one. Correct it, or leave it out.") from error


def _encode_series(series: Series, query: ForecastQuery) -> dict[str, Any]:
    covariate_steps = len(series) + min(series.covariate_horizon, query.horizon + _EXTRA_COVARIATE_STEPS)
    covariates = {name: _encode_values(values[:covariate_steps]) for name, values in series.covariates.items()}
    channels = {name: _encode_numbers(values) for name, values in series.channels.items()}
    optional = {"covariates": covariates, "static": dict(series.static), "channels": channels}
    return {
        "id": series.id,
        "start": series.start if isinstance(series.start, int) else series.start.isoformat(),
        "freq": series.freq,
        **({} if query.season is None else {"season": query.season}),
        **(
            {"symbols": decode_symbols(series.y, query.vocabulary)}
            if query.vocabulary
            else {"y": _encode_numbers(series.y)}
        ),
        **{name: values for name, values in optional.items() if values},
    }


_EXTRA_COVARIATE_STEPS = 1000  # covariate steps beyond the horizon, as a network reads them up to the end of its block


def _encode_values(values: np.ndarray) -> list[Any]:
    return values.tolist() if values.dtype == object else _encode_numbers(values)


def _encode_numbers(values: np.ndarray) -> list[float | None]:
    """Encodes numbers for JSON: null where nothing was observed."""
    numbers: list[float | None] = values.tolist()
    for index in np.flatnonzero(np.isnan(values)).tolist():
        numbers[index] = None
    return numbers


def _decode_response(payload: Any, series: Sequence[Series], query: ForecastQuery) -> ServiceOutcomes:
    """Decodes the outcomes of a response, with timestamps derived from the series, which have the time zone."""
    try:
        model = dict(payload["model"])
        outcomes = [
            _decode_outcome(fields, item, query) for fields, item in zip(payload["forecasts"], series, strict=True)
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ServiceError(
            f"Expected one forecast or error for each of {len(series)} series; the response has another shape "
            f"({type(error).__name__}). Check that the service has the version of this client."
        ) from error
    return ServiceOutcomes(outcomes, [model])


def _decode_outcome(fields: dict[str, Any], series: Series, query: ForecastQuery) -> Forecast | ForecasterError:
    if "error" in fields:
        error = fields["error"]
        return _build_error(error["code"], error["message"], error["where"])
    quantiles = {level: _decode_array(fields["quantiles"][repr(float(level))], query) for level in sorted(query.levels)}
    if query.vocabulary:
        fields = {**fields, "mean": encode_symbols(fields["symbols"], query.vocabulary)}
    mean, timestamps = _decode_array(fields["mean"], query), series.future_timestamps(query.horizon)
    return Forecast(series.id, timestamps, mean, tuple(fields["warnings"]), quantiles)


def _decode_array(values: Any, query: ForecastQuery) -> np.ndarray:
    array = np.array(values, dtype=np.float64)
    if array.shape != (query.horizon,):
        raise ValueError(f"{array.shape} values for {query.horizon} steps")
    return array


def _build_error(code: str, message: str, where: str | None) -> ForecasterError:
    """Builds the error of a series, of the class that has the code if there is one."""
    error_class = _errors_by_code(InputError).get(code)
    return RequestRefused(message, code=code, where=where) if error_class is None else error_class(message, where=where)


def _errors_by_code(root: type[ForecasterError]) -> dict[str, type[ForecasterError]]:
    classes = {root.code: root}
    for error_class in root.__subclasses__():
        if error_class is not SeriesRefused:
            classes |= _errors_by_code(error_class)
    return classes

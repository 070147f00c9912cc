"""Requests and responses as JSON, one object per series: a single document, or newline-delimited JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from forecaster.data.symbols import decode_symbols
from forecaster.errors import ForecasterError
from forecaster.frequency.timestamps import Timestamps
from serving.asgi.bodies import Body
from serving.errors import ApiError
from serving.formats import parsing, schema
from serving.formats.outcome import SeriesOutcome
from serving.formats.schema import ForecastOptions, ForecastRequest, SeriesInput
from serving.formats.timestamps import IntegerStyle, TimestampStyle


def decode_rows(body: Body) -> tuple[ForecastOptions, Sequence[SeriesInput]]:
    """Returns the forecast options and the histories of a ForecastRequest; raises ApiError (400, 422)."""
    fields = parsing.parse_json(body)
    if isinstance(fields, dict) and "columns" in fields:
        raise ApiError(
            "invalid_request",
            "Expected `series`, a list with one object for each series; found `columns`, which are not supported any more. Send "
            "rows, or NDJSON or Arrow for many series.",
            where="columns",
        )
    request = parsing.validate_fields(ForecastRequest, fields)
    return request, request.series


class TimestampFormatter:
    """Formats timestamps; series that end at the same step share an index, which is formatted once."""

    def __init__(self) -> None:
        self._cache: dict[tuple[int, TimestampStyle | IntegerStyle], tuple[Timestamps, list[str] | list[int]]] = {}

    def format(self, timestamps: Timestamps, style: TimestampStyle | IntegerStyle) -> list[str] | list[int]:
        """Returns the timestamps in the given style."""
        key = (id(timestamps), style)
        if key not in self._cache:
            # The cache holds a reference to the index, so that no other object gets its id.
            self._cache[key] = (timestamps, style.format(timestamps))
        return self._cache[key][1]


def outcome_fields(outcome: SeriesOutcome, formatter: TimestampFormatter) -> dict[str, Any]:
    """Returns an outcome as the fields of a SeriesForecast or a SeriesError."""
    if isinstance(outcome.result, ForecasterError):
        return schema.error_fields(outcome.id, outcome.result)
    forecast, style, paths, warnings, has_fewer_paths, state_token, vocabulary, probabilities = outcome.result
    fields: dict[str, Any] = {"id": forecast.id, "ds": formatter.format(forecast.ds, style)}
    if vocabulary:
        fields["symbols"] = decode_symbols(forecast.mean, vocabulary)
    else:
        fields["mean"] = forecast.mean
    if probabilities is not None:
        fields["probabilities"] = dict(zip(vocabulary, np.ascontiguousarray(probabilities.T), strict=True))
    if forecast.quantiles:
        fields["quantiles"] = {repr(float(level)): values for level, values in forecast.quantiles.items()}
    if paths is not None:
        fields["samples"] = [decode_symbols(path, vocabulary) for path in paths] if vocabulary else paths
    if paths is not None and has_fewer_paths:
        fields["samples_used"] = len(paths)
    if state_token is not None:
        fields["state"] = state_token
    fields["warnings"] = warnings
    return fields


def encode_rows(model_info: dict[str, Any], outcomes: Sequence[SeriesOutcome], _: ForecastOptions) -> bytes:
    """Encodes the outcomes as a ForecastResponse, one by one, so that other threads can run while a large one is written."""
    formatter = TimestampFormatter()
    rows = [_encode_fields(outcome_fields(outcome, formatter)) for outcome in outcomes]
    rows[0] = b'{"model":%b,"forecasts":[%b' % (orjson.dumps(model_info), rows[0])
    rows[-1] += b"]}"
    return b",".join(rows)


def encode_ndjson(outcomes: Sequence[SeriesOutcome]) -> bytes:
    """Encodes the outcomes as newline-delimited JSON, one line per series."""
    formatter = TimestampFormatter()
    return b"".join([_encode_fields(outcome_fields(outcome, formatter)) + b"\n" for outcome in outcomes])


def _encode_fields(fields: dict[str, Any]) -> bytes:
    """Encodes the fields of one series. Sample paths are encoded one by one, so that other threads can run meanwhile."""
    paths = fields.pop("samples", None)
    encoded = orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)
    if paths is None:
        return encoded
    rows = b",".join([orjson.dumps(path, option=orjson.OPT_SERIALIZE_NUMPY) for path in paths])
    return b'%b,"samples":[%b]}' % (encoded[:-1], rows)

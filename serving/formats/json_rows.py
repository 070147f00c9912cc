"""The form of rows, one object for each series: what `POST /v1/forecast` answers, as one document or as lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from forecaster.errors import ForecasterError
from forecaster.frequency import Timestamps
from serving.formats import chunked_json, schema
from serving.formats.outcome import SeriesOutcome
from serving.formats.timestamps import IntegerStyle, TimestampStyle


class TimestampFormatter:
    """Writes stamps; series that end together share them, and they are written once."""

    def __init__(self) -> None:
        self._cache: dict[tuple[int, TimestampStyle | IntegerStyle], tuple[Timestamps, list[str] | list[int]]] = {}

    def format(self, timestamps: Timestamps, style: TimestampStyle | IntegerStyle) -> list[str] | list[int]:
        """The stamps in their style."""
        key = (id(timestamps), style)
        if key not in self._cache:
            self._cache[key] = (timestamps, style.format(timestamps))  # held, so that no other gets its id
        return self._cache[key][1]


def outcome_fields(outcome: SeriesOutcome, formatter: TimestampFormatter) -> dict[str, Any]:
    """An outcome as the fields of a SeriesForecast or a SeriesError."""
    if isinstance(outcome.result, ForecasterError):
        return schema.error_fields(outcome.id, outcome.result)
    forecast, style, paths, warnings, fewer, state = outcome.result
    told: dict[str, Any] = {"id": forecast.id, "ds": formatter.format(forecast.ds, style), "mean": forecast.mean}
    if forecast.quantiles:
        told["quantiles"] = {repr(float(level)): values for level, values in forecast.quantiles.items()}
    if paths is not None:
        told["samples"] = paths
    if paths is not None and fewer:
        told["samples_used"] = len(paths)
    if state is not None:
        told["state"] = state
    told["warnings"] = warnings
    return told


def encode_rows(model_info: dict[str, Any], outcomes: Sequence[SeriesOutcome]) -> bytes:
    """A ForecastAnswer; outcome by outcome, so that other threads get their turns while a large one is written."""
    stamper = TimestampFormatter()
    told = [_encode_fields(outcome_fields(one, stamper)) for one in outcomes]
    told[0] = b'{"model":%b,"forecasts":[%b' % (orjson.dumps(model_info), told[0])
    told[-1] += b"]}"
    return b",".join(told)


def encode_ndjson(outcomes: Sequence[SeriesOutcome]) -> bytes:
    """Outcomes, one a line."""
    stamper = TimestampFormatter()
    return b"".join([_encode_fields(outcome_fields(one, stamper)) + b"\n" for one in outcomes])


def _encode_fields(fields: dict[str, Any]) -> bytes:
    return (
        chunked_json.dumps(fields) if "samples" in fields else orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)
    )

"""The form of rows, one object for each series: what `POST /v1/forecast` answers, as one document or as lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from forecaster.errors import ForecasterError
from forecaster.frequency import Stamps
from serving.formats import chunked_json, schema
from serving.formats.outcome import Outcome
from serving.formats.timestamps import Numbers, Style


class Stamper:
    """Writes stamps; series that end together share them, and they are written once."""

    def __init__(self) -> None:
        self._written: dict[tuple[int, Style | Numbers], tuple[Stamps, list[str] | list[int]]] = {}

    def write(self, stamps: Stamps, style: Style | Numbers) -> list[str] | list[int]:
        """The stamps in their style."""
        key = (id(stamps), style)
        if key not in self._written:
            self._written[key] = (stamps, style.write(stamps))  # held, so that no other gets its id
        return self._written[key][1]


def fields(one: Outcome, stamper: Stamper) -> dict[str, Any]:
    """An outcome as the fields of a SeriesForecast or a SeriesError."""
    if isinstance(one.found, ForecasterError):
        return schema.from_error(one.id, one.found)
    forecast, style, paths, warnings, fewer, state = one.found
    told: dict[str, Any] = {"id": forecast.id, "ds": stamper.write(forecast.ds, style), "mean": forecast.mean}
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


def write(model: dict[str, Any], done: Sequence[Outcome]) -> bytes:
    """A ForecastAnswer; outcome by outcome, so that other threads get their turns while a large one is written."""
    stamper = Stamper()
    told = [_dumps(fields(one, stamper)) for one in done]
    told[0] = b'{"model":%b,"forecasts":[%b' % (orjson.dumps(model), told[0])
    told[-1] += b"]}"
    return b",".join(told)


def write_lines(done: Sequence[Outcome]) -> bytes:
    """Outcomes, one a line."""
    stamper = Stamper()
    return b"".join([_dumps(fields(one, stamper)) + b"\n" for one in done])


def _dumps(told: dict[str, Any]) -> bytes:
    return chunked_json.dumps(told) if "samples" in told else orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)

"""Forecasts in NDJSON, for many series: the first line holds the options, each further line a series. Responses are alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from forecaster.errors import ForecasterError
from serving.asgi.bodies import Body
from serving.deadline import Deadline
from serving.deployment.slot import DeployedModel
from serving.errors import ApiError
from serving.forecasting.outcomes import GRID_STEPS, compute_outcomes, require_model
from serving.formats import json_rows, limits, parsing
from serving.formats.outcome import SeriesOutcome
from serving.formats.schema import ForecastOptions, ForecastRequest, ModelInfo, SeriesField, SeriesInput, StrictModel
from serving.formats.state_token import TokenSigner
from serving.settings import Settings

MEDIA_TYPE = "application/x-ndjson"
_LINES_PER_CHUNK = 256
_SERIES_ADAPTER: TypeAdapter[SeriesInput] = TypeAdapter(SeriesField)


class NdjsonHeader(StrictModel):
    """The first line of a response."""

    model: ModelInfo


class NdjsonTrailer(StrictModel):
    """The last line of a complete response. If it is missing, or an error without an id, the response is incomplete."""

    forecast: int = Field(description="number of series with a forecast")
    refused: int = Field(description="number of series with an error")


class InvalidLine(ForecasterError):
    """A line that is not a valid series. Like an invalid series, it does not affect the other lines."""

    def __init__(self, error: ApiError, *, where: str) -> None:
        super().__init__(error.message, where=where)
        self.code = error.code  # type: ignore[misc]  # the code that the line would get as a request of its own


class NdjsonForecast:
    """An NDJSON request in progress: an iterator over the chunks of its response, each computed on demand.

    Attributes:
        options: The options of the first line.
        chunk_steps: The approximate size of the work for one chunk, in steps.
        forecast_count: Series with a forecast so far.
        refused_count: Series with an error so far.
    """

    def __init__(self, body: Body, model: DeployedModel | None, deadline: Deadline, settings: Settings) -> None:
        """Parses the first line; raises ApiError if it is invalid, or if there are too many lines."""
        first, _, rest = bytes(body).partition(b"\n")
        limits.validate_json_size(len(first), settings)
        self.options = parsing.validate_fields(ForecastOptions, parsing.parse_json(first))
        count = rest.count(b"\n") + (not rest.endswith(b"\n"))
        limits.validate_response_size(self.options, min(_LINES_PER_CHUNK, count), settings)
        if count > settings.max_lines:
            raise ApiError(
                "too_many_series",
                f"Expected at most {settings.max_lines} series; found {count} lines. Send several requests.",
                where="series",
            )
        self._lines = enumerate(rest.split(b"\n"), 2)
        self._model = model
        self._deadline = deadline.capped(self.options.deadline_ms)
        self._settings = settings
        self._chunks = self._iter_chunks()
        history_steps = len(rest) // max(1, count) // limits.BYTES_PER_STEP
        forecast_steps = self.options.horizon * (1 + len(self.options.levels) + self.options.samples)
        # Before they are parsed, each line may have a frequency of its own.
        grid_steps = GRID_STEPS if model is not None and model.is_pretrained else 0
        self.chunk_steps = min(_LINES_PER_CHUNK, count) * (history_steps + forecast_steps + grid_steps)
        self.forecast_count = self.refused_count = 0

    def next_chunk(self) -> bytes | None:
        """Computes the next chunk; None after the last. Raises ApiError: 503 without a model, and like `compute_outcomes`."""
        return next(self._chunks, None)

    def _iter_chunks(self) -> Iterator[bytes]:
        model = require_model(self._model)
        chunk = self._forecast_chunk(model)
        yield orjson.dumps({"model": model.info}, option=orjson.OPT_APPEND_NEWLINE) + chunk
        while chunk:
            chunk = self._forecast_chunk(model)
            yield chunk
        trailer = {"forecast": self.forecast_count, "refused": self.refused_count}
        yield orjson.dumps(trailer, option=orjson.OPT_APPEND_NEWLINE)

    def _forecast_chunk(self, model: DeployedModel) -> bytes:
        """Forecasts the next lines; empty at the end."""
        self._deadline.check()
        parsed: list[SeriesInput | SeriesOutcome] = []
        for number, line in self._lines:
            if line.strip():
                parsed.append(self._parse_series(line, number))
            if len(parsed) == _LINES_PER_CHUNK:
                break
        series = [item for item in parsed if not isinstance(item, SeriesOutcome)]
        vocabulary = model.predictor.fitted_model.spec.head.vocabulary
        limits.validate_probability_size(self.options, len(series), len(vocabulary), self._settings)
        signer = TokenSigner.from_settings(self._settings)
        [valid_outcomes] = compute_outcomes([series], self.options, model, self._deadline, signer)
        remaining = iter(valid_outcomes)
        outcomes = [item if isinstance(item, SeriesOutcome) else next(remaining) for item in parsed]
        refused_count = sum(isinstance(outcome.result, ForecasterError) for outcome in outcomes)
        self.refused_count += refused_count
        self.forecast_count += len(outcomes) - refused_count
        return json_rows.encode_ndjson(outcomes)

    def _parse_series(self, line: bytes, number: int) -> SeriesInput | SeriesOutcome:
        """Parses one line; returns an outcome with an InvalidLine if it is not a valid series."""
        fields: Any = None
        try:
            limits.validate_json_size(len(line), self._settings)
            fields = parsing.parse_json(line)
            series = _SERIES_ADAPTER.validate_python(fields)
            limits.validate_history_size([series], self._settings)
        except (ApiError, ValidationError) as error:
            api_error = (
                parsing.validation_error(error, ForecastRequest, single_series=True)
                if isinstance(error, ValidationError)
                else error
            )
            series_id = fields.get("id") if isinstance(fields, dict) else None
            return SeriesOutcome(
                series_id[:200] if isinstance(series_id, str) else "",
                InvalidLine(api_error, where=f"line.{number}.{api_error.where or 'body'}".removesuffix(".body")),
            )
        return series

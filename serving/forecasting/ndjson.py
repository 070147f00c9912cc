"""The form of lines (NDJSON), for many series: the first says what is asked, each further one is a series; so is the answer."""

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
from serving.forecasting.outcomes import compute_outcomes
from serving.formats import json_rows, limits, parsing
from serving.formats.outcome import SeriesOutcome
from serving.formats.schema import ForecastOptions, ModelInfo, SeriesField, SeriesInput, StrictModel
from serving.formats.state_token import TokenSigner
from serving.settings import Settings

MEDIA_TYPE = "application/x-ndjson"
_LINES_PER_CHUNK = 256  # lines that become a piece of the answer
_SERIES_ADAPTER: TypeAdapter[SeriesInput] = TypeAdapter(SeriesField)


class NdjsonHeader(StrictModel):
    """The first line of an answer."""

    model: ModelInfo


class NdjsonTrailer(StrictModel):
    """The last line of a whole answer; where it is missing, or is an error without an id, the answer is not whole."""

    forecast: int = Field(description="series that got a forecast")
    refused: int = Field(description="series that got an error")


class InvalidLine(ForecasterError):
    """A line that is no series: refused, as a bad series is, beside its good neighbours."""

    def __init__(self, error: ApiError, *, where: str) -> None:
        super().__init__(error.message, where=where)
        self.code = error.code  # type: ignore[misc]  # that of the whole request it would have been


class NdjsonForecast:
    """A request of lines under way; what it remembers is how far it has come.

    Attributes:
        ask: What the first line asks.
        forecast: Series that got a forecast so far.
        refused: Series that got an error so far.
    """

    def __init__(self, body: Body, settings: Settings) -> None:
        """Raises Problem if the first line is none, or there are too many."""
        first, _, rest = bytes(body).partition(b"\n")
        self.options = parsing.validate_fields(ForecastOptions, parsing.parse_json(first))
        count = rest.count(b"\n") + (not rest.endswith(b"\n"))
        limits.validate_response_size(self.options, min(_LINES_PER_CHUNK, count), settings)
        if count > settings.max_lines:
            raise ApiError(
                "too_many_series",
                f"Expected at most {settings.max_lines} lines. Send several requests.",
                where="series",
            )
        self._lines = enumerate(rest.split(b"\n"), 2)
        self._settings = settings
        self.forecast_count = self.refused_count = 0

    def iter_chunks(self, model: DeployedModel | None, deadline: Deadline) -> Iterator[bytes]:
        """The answer, some lines at a time; each is computed when it is asked for. Raises Problem as `compute_outcomes` does."""
        deadline = deadline.capped(self.options.deadline_ms)
        piece = self._forecast_chunk(model, deadline)
        assert model is not None, "no outcome without one"
        yield orjson.dumps({"model": model.info}, option=orjson.OPT_APPEND_NEWLINE) + piece
        while piece:
            piece = self._forecast_chunk(model, deadline)
            yield piece
        end = {"forecast": self.forecast_count, "refused": self.refused_count}
        yield orjson.dumps(end, option=orjson.OPT_APPEND_NEWLINE)

    def _forecast_chunk(self, model: DeployedModel | None, deadline: Deadline) -> bytes:
        deadline.check()
        read: list[SeriesInput | SeriesOutcome] = []
        for number, line in self._lines:
            if line.strip():
                read.append(self._parse_series(line, number))
            if len(read) == _LINES_PER_CHUNK:
                break
        good = [one for one in read if not isinstance(one, SeriesOutcome)]
        forecasts = iter(
            compute_outcomes(good, self.options, model, deadline, TokenSigner.from_settings(self._settings))
        )
        done = [one if isinstance(one, SeriesOutcome) else next(forecasts) for one in read]
        refused = sum(isinstance(one.result, ForecasterError) for one in done)
        self.refused_count += refused
        self.forecast_count += len(done) - refused
        return json_rows.encode_ndjson(done)

    def _parse_series(self, line: bytes, number: int) -> SeriesInput | SeriesOutcome:
        fields: Any = None
        try:
            told = parsing.parse_json(line)
            fields = told.value
            one = _SERIES_ADAPTER.validate_python(fields)
            told.release()
            limits.validate_history_size([one], self._settings)
        except (ApiError, ValidationError) as error:
            problem = (
                parsing.validation_problem(error, single_series=True) if isinstance(error, ValidationError) else error
            )
            name = fields.get("id") if isinstance(fields, dict) else None
            return SeriesOutcome(
                name[:200] if isinstance(name, str) else "",
                InvalidLine(problem, where=f"line.{number}.{problem.where or 'body'}".removesuffix(".body")),
            )
        return one

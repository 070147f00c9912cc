"""From the bytes of a request to the bytes of its answer: plain, synchronous, and the same for the same model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

from forecaster.errors import ForecasterError, StateOfOtherModel
from serving.asgi import compression
from serving.asgi.bodies import Body
from serving.deadline import Deadline
from serving.deployment.slot import DeployedModel
from serving.errors import ApiError
from serving.forecasting.ndjson import NdjsonForecast
from serving.forecasting.outcomes import compute_outcomes
from serving.formats import arrow, json_columns, json_rows, limits, parsing
from serving.formats.json_columns import ColumnsRequest
from serving.formats.outcome import SeriesOutcome
from serving.formats.schema import ForecastOptions, ForecastRequest, SeriesInput
from serving.formats.state_token import TokenSigner
from serving.settings import Settings


class EncodedResponse(NamedTuple):
    """An answer and what it took.

    Attributes:
        body: As it is sent.
        forecast: Series that got a forecast.
        refused: Series that did not.
        seconds: By what they were spent on.
        packed: Whether the body is in gzip.
    """

    body: bytes
    forecast_count: int
    refused_count: int
    seconds_by_stage: dict[str, float]
    is_compressed: bool = False


class RawRequest(NamedTuple):
    """A request to be answered.

    Attributes:
        body: As it came.
        media_type: Of the body, and of the answer.
        model: In use when it came; None if there was none.
        deadline: Until when it is waited for.
        pack: Whether the answer may be in gzip.
    """

    body: Body
    media_type: str
    model: DeployedModel | None
    deadline: Deadline
    accepts_gzip: bool = False


class ParsedRequest(NamedTuple):
    """A request that was read: what it asks, of which series, the seconds that took, and what states are signed with."""

    request: RawRequest
    options: ForecastOptions
    series: Sequence[SeriesInput]
    parse_seconds: float
    signer: TokenSigner


def run_forecast(request: RawRequest, settings: Settings) -> EncodedResponse:
    """Answers `POST /v1/forecast_count`, in the form in which it was asked: rows or columns of JSON, or Arrow.

    Raises Problem if the request as a whole cannot be used (levels that the model cannot give are such), if no model is
    in use, if the deadline passes, if the only series of a request in JSON is refused (so a client that sends one
    series and looks at the status alone learns of it), or if every series came with a state of another model (409).
    """
    return compute_response(parse_request(request, settings))


def parse_request(request: RawRequest, settings: Settings) -> ParsedRequest:
    """A request, read and within its limits. Raises Problem as `run_forecast` does."""
    request.deadline.check()  # it may have waited for a thread
    began = perf_counter()
    ask, series = _decode_body(request.body, request.media_type)
    limits.validate_request_size(ask, series, settings)
    return ParsedRequest(request, ask, series, perf_counter() - began, TokenSigner.from_settings(settings))


def compute_response(parsed: ParsedRequest) -> EncodedResponse:
    """Its answer. Raises Problem as `run_forecast` does."""
    began, asked = perf_counter(), parsed.request
    done = compute_outcomes(
        parsed.series, parsed.options, asked.model, asked.deadline.capped(parsed.options.deadline_ms), parsed.signer
    )
    return encode_response(parsed, done, perf_counter() - began)


def encode_response(
    parsed: ParsedRequest, outcomes: Sequence[SeriesOutcome], forecast_seconds: float
) -> EncodedResponse:
    """The answer with these outcomes, which took so long. Raises Problem where there is one alone, and it is refused."""
    began, model, media_type = perf_counter(), parsed.request.model, parsed.request.media_type
    assert model is not None, "no outcome without one"
    refused = [each.result for each in outcomes if isinstance(each.result, ForecasterError)]
    if len(refused) == len(outcomes) and all(isinstance(each, StateOfOtherModel) for each in refused):
        raise ApiError.from_forecaster_error(refused[0])
    if len(outcomes) == 1 and refused and media_type != arrow.MEDIA_TYPE:
        raise ApiError.from_forecaster_error(refused[0])
    whole = _encode_body(model, outcomes, parsed.options, media_type)
    packed = parsed.request.accepts_gzip and len(whole) >= compression.MIN_COMPRESSED_BYTES
    whole = compression.compress(whole) if packed else whole
    spent = {"read": parsed.parse_seconds, "forecast": forecast_seconds, "write": perf_counter() - began}
    return EncodedResponse(whole, len(outcomes) - len(refused), len(refused), spent, packed)


def next_chunk(chunks: Iterator[bytes]) -> bytes | None:
    """The next piece of a streamed answer; None after the last."""
    return next(chunks, None)


def start_ndjson(
    body: Body, model: DeployedModel | None, settings: Settings, deadline: Deadline
) -> tuple[NdjsonForecast, Iterator[bytes], bytes]:
    """A streamed answer to a request of lines, and its first piece. Raises Problem as `run_forecast` does."""
    deadline.check()
    lines = NdjsonForecast(body, settings)
    pieces = lines.iter_chunks(model, deadline)
    return lines, pieces, next(pieces)


def _decode_body(body: Body, media_type: str) -> tuple[ForecastOptions, Sequence[SeriesInput]]:
    if media_type == arrow.MEDIA_TYPE:
        return arrow.decode_arrow(bytes(body))
    fields = parsing.parse_json(body)
    if isinstance(fields.value, dict) and "columns" in fields.value:
        asked = parsing.validate_fields(ColumnsRequest, fields)
        return asked, asked.to_series_inputs()
    request = parsing.validate_fields(ForecastRequest, fields)
    return request, request.series


def _encode_body(
    model: DeployedModel, outcomes: Sequence[SeriesOutcome], options: ForecastOptions, media_type: str
) -> bytes:
    if media_type == arrow.MEDIA_TYPE:
        return arrow.encode_arrow(model.info, outcomes, options)
    if isinstance(options, ColumnsRequest):
        return json_columns.encode_columns(model.info, outcomes, options)
    return json_rows.encode_rows(model.info, outcomes)

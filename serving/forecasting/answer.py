"""From the bytes of a forecast request to the bytes of its response: synchronous, and deterministic for a given model."""

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
    """An encoded response and its statistics.

    Attributes:
        body: The response body.
        forecast_count: Series with a forecast.
        refused_count: Series with an error.
        seconds_by_stage: Seconds spent, by stage ("read", "forecast", "write").
        is_compressed: Whether the body is in gzip.
    """

    body: bytes
    forecast_count: int
    refused_count: int
    seconds_by_stage: dict[str, float]
    is_compressed: bool = False


class RawRequest(NamedTuple):
    """A request before parsing.

    Attributes:
        body: The request body.
        media_type: The media type of the body and of the response.
        model: The model in use when the request arrived; None if there was none.
        deadline: The deadline of the response.
        accepts_gzip: Whether the response may be in gzip.
    """

    body: Body
    media_type: str
    model: DeployedModel | None
    deadline: Deadline
    accepts_gzip: bool = False


class ParsedRequest(NamedTuple):
    """A parsed request: its options and series, the seconds of parsing, and the signer of its states."""

    request: RawRequest
    options: ForecastOptions
    series: Sequence[SeriesInput]
    parse_seconds: float
    signer: TokenSigner


def run_forecast(request: RawRequest, settings: Settings) -> EncodedResponse:
    """Handles `POST /v1/forecast`; the response has the format of the request: rows or columns of JSON, or Arrow.

    Raises ApiError if the whole request is invalid (including levels that the model does not support), if no model is deployed,
    after the deadline, or if every series has a state of another model (409). The error of the only series of a JSON request
    is raised too, so that a client that sends one series can rely on the status alone.
    """
    return compute_response(parse_request(request, settings))


def parse_request(request: RawRequest, settings: Settings) -> ParsedRequest:
    """Parses a request and validates its size. Raises ApiError like `run_forecast`."""
    request.deadline.check()  # the request may have waited for a thread
    started_at = perf_counter()
    options, series = _decode_body(request.body, request.media_type)
    limits.validate_request_size(options, series, settings)
    return ParsedRequest(request, options, series, perf_counter() - started_at, TokenSigner.from_settings(settings))


def compute_response(parsed: ParsedRequest) -> EncodedResponse:
    """Computes the response to a parsed request. Raises ApiError like `run_forecast`."""
    started_at, request = perf_counter(), parsed.request
    deadline = request.deadline.capped(parsed.options.deadline_ms)
    outcomes = compute_outcomes(parsed.series, parsed.options, request.model, deadline, parsed.signer)
    return encode_response(parsed, outcomes, perf_counter() - started_at)


def encode_response(
    parsed: ParsedRequest, outcomes: Sequence[SeriesOutcome], forecast_seconds: float
) -> EncodedResponse:
    """Encodes outcomes, whose computation took `forecast_seconds`.

    Raises ApiError if no series has a forecast, either for a single JSON series or because all states are of another model.
    """
    started_at, model, media_type = perf_counter(), parsed.request.model, parsed.request.media_type
    assert model is not None, "outcomes need a model"
    errors = [outcome.result for outcome in outcomes if isinstance(outcome.result, ForecasterError)]
    if len(errors) == len(outcomes) and all(isinstance(error, StateOfOtherModel) for error in errors):
        raise ApiError.from_forecaster_error(errors[0])
    if len(outcomes) == 1 and errors and media_type != arrow.MEDIA_TYPE:
        raise ApiError.from_forecaster_error(errors[0])
    body = _encode_body(model, outcomes, parsed.options, media_type)
    is_compressed = parsed.request.accepts_gzip and len(body) >= compression.MIN_COMPRESSED_BYTES
    body = compression.compress(body) if is_compressed else body
    seconds = {"read": parsed.parse_seconds, "forecast": forecast_seconds, "write": perf_counter() - started_at}
    return EncodedResponse(body, len(outcomes) - len(errors), len(errors), seconds, is_compressed)


def next_chunk(chunks: Iterator[bytes]) -> bytes | None:
    """Returns the next chunk of a streamed response; None after the last."""
    return next(chunks, None)


def start_ndjson(
    body: Body, model: DeployedModel | None, settings: Settings, deadline: Deadline
) -> tuple[NdjsonForecast, Iterator[bytes], bytes]:
    """Starts the streamed response to an NDJSON request: the request, its chunks and the first of them.

    Raises ApiError like `run_forecast`.
    """
    deadline.check()
    request = NdjsonForecast(body, settings)
    chunks = request.iter_chunks(model, deadline)
    return request, chunks, next(chunks)


def _decode_body(body: Body, media_type: str) -> tuple[ForecastOptions, Sequence[SeriesInput]]:
    if media_type == arrow.MEDIA_TYPE:
        return arrow.decode_arrow(bytes(body))
    fields = parsing.parse_json(body)
    if isinstance(fields.value, dict) and "columns" in fields.value:
        columns_request = parsing.validate_fields(ColumnsRequest, fields)
        return columns_request, columns_request.to_series_inputs()
    rows_request = parsing.validate_fields(ForecastRequest, fields)
    return rows_request, rows_request.series


def _encode_body(
    model: DeployedModel, outcomes: Sequence[SeriesOutcome], options: ForecastOptions, media_type: str
) -> bytes:
    if media_type == arrow.MEDIA_TYPE:
        return arrow.encode_arrow(model.info, outcomes, options)
    if isinstance(options, ColumnsRequest):
        return json_columns.encode_columns(model.info, outcomes, options)
    return json_rows.encode_rows(model.info, outcomes)

"""Batches small requests that are queued while a worker computes: a batch takes hardly longer than a single request.

Every request keeps its own task in the thread pool, its capacity and its deadline. The task that runs first computes all queued
requests, and the later tasks find their results. No request waits for a batch to fill: an idle worker starts immediately.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter, thread_time

from serving.deployment.slot import DeployedModel
from serving.forecasting.answer import (
    EncodedResponse,
    ParsedRequest,
    RawRequest,
    compute_response,
    encode_response,
    parse_request,
    run_forecast,
)
from serving.forecasting.outcomes import compute_outcomes_together
from serving.formats.schema import ContinuedSeries
from serving.settings import Settings

MAX_BATCH_REQUESTS = 32
MAX_BATCHED_BYTES = 64_000  # of one body; larger requests are computed alone
# Steps of history and horizon of one request. A full batch stays below the steps computed between two checks of a deadline.
MAX_BATCHED_STEPS = 1 << 14
MAX_IMMEDIATE_BYTES = 8_000  # of a body that may be handled in the event loop
MAX_IMMEDIATE_S = 0.004  # for which the event loop may be blocked
_MAX_LATENCY_KEYS = 256  # kinds of requests with a latency estimate
_JSON = "application/json"  # decoders of other formats may have to be imported first


class PendingRequest:
    """A queued request, its parsed form if it was parsed early, and its outcome once it was computed."""

    def __init__(self, request: RawRequest) -> None:
        self.request = request
        self.parsed: ParsedRequest | None = None
        self.outcome: EncodedResponse | Exception | None = None

    def get_response(self) -> EncodedResponse:
        """Returns the response, or raises the error of the request."""
        assert self.outcome is not None, "the request has not been computed"
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class Batcher:
    """The queue of requests to batch. It stays empty with several computing threads, which would wait for each other."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = thread_time) -> None:
        """Creates an empty queue; `clock` returns the CPU seconds of the calling thread."""
        self._settings = settings
        self._clock = clock
        self._queue: deque[PendingRequest] = deque()
        self._latency = LatencyEstimator()

    def try_immediately(self, pending: PendingRequest) -> EncodedResponse | None:
        """Returns the response to a small request if its estimated latency is at most `MAX_IMMEDIATE_S`, else None.

        Raises ApiError like `serving.forecasting.answer.run_forecast`.
        """
        if pending.request.media_type != _JSON or len(pending.request.body) > MAX_IMMEDIATE_BYTES:
            return None
        pending.parsed = parse_request(pending.request, self._settings)
        if not _is_plain_forecast(pending.parsed) or self._latency.estimate(pending.parsed) > MAX_IMMEDIATE_S:
            return None
        started_at = self._clock()
        response = compute_response(pending.parsed)
        self._latency.observe(pending.parsed, self._clock() - started_at)
        return response

    def enqueue(self, pending: PendingRequest) -> None:
        """Adds an admitted request to the queue. A large request is not queued and is computed alone."""
        if self._settings.rollouts == 1 and len(pending.request.body) <= MAX_BATCHED_BYTES:
            self._queue.append(pending)

    def respond(self, pending: PendingRequest) -> EncodedResponse:
        """Computes a request, and all queued ones with it, unless another call has done so, and returns its response.

        Raises ApiError like `serving.forecasting.answer.run_forecast`.
        """
        if pending.outcome is None:
            self._compute_batch(pending)
        return pending.get_response()

    def _compute_batch(self, first: PendingRequest) -> None:
        batch = [first]
        while self._queue and len(first.request.body) <= MAX_BATCHED_BYTES and len(batch) < MAX_BATCH_REQUESTS:
            pending = self._queue.popleft()
            # A request past its deadline is skipped; its own task raises the error.
            if pending is not first and pending.outcome is None and not pending.request.deadline.is_over:
                batch.append(pending)
        started_at = self._clock()
        outcomes = respond_to_batch([pending.parsed or pending.request for pending in batch], self._settings)
        for pending, outcome in zip(batch, outcomes, strict=True):
            pending.outcome = outcome
        if len(batch) == 1 and first.parsed is not None and _is_plain_forecast(first.parsed):
            self._latency.observe(first.parsed, self._clock() - started_at)


class LatencyEstimator:
    """Estimates the latency of small requests from earlier similar requests. It rises at once and falls gradually.

    Latency is CPU time of the thread, because wall-clock time on a busy machine says nothing about a request.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[object, ...], float] = {}

    def estimate(self, parsed: ParsedRequest) -> float:
        """Returns the estimated CPU seconds of a request; infinity without an earlier similar one."""
        return self._seconds.get(_latency_key(parsed), math.inf)

    def observe(self, parsed: ParsedRequest, seconds: float) -> None:
        """Updates the estimate. All estimates are cleared when there are too many kinds of requests."""
        key = _latency_key(parsed)
        previous = self._seconds.get(key, seconds)
        if len(self._seconds) >= _MAX_LATENCY_KEYS and key not in self._seconds:
            self._seconds.clear()
        self._seconds[key] = max(seconds, (seconds + previous) / 2)


def respond_to_batch(
    requests: Sequence[RawRequest | ParsedRequest], settings: Settings
) -> list[EncodedResponse | Exception]:
    """Returns the response or the error of each request, the same as if each were computed alone."""
    if len(requests) == 1:
        return [_respond_to_single(requests[0], settings)]
    responses: list[EncodedResponse | Exception | None] = []
    groups: dict[tuple[object, ...], list[tuple[int, ParsedRequest]]] = {}
    for index, request in enumerate(requests):
        try:
            parsed = request if isinstance(request, ParsedRequest) else parse_request(request, settings)
            if _is_batchable(parsed):
                groups.setdefault(_batch_key(parsed), []).append((index, parsed))
                responses.append(None)
            else:
                responses.append(compute_response(parsed))
        except Exception as error:  # the error of one request does not affect the others
            responses.append(error)
    for group in groups.values():
        for (index, _), response in zip(group, _respond_to_group([parsed for _, parsed in group]), strict=True):
            responses[index] = response
    return [response for response in responses if response is not None]


def _is_batchable(parsed: ParsedRequest) -> bool:
    """Whether a request is small, without samples and for a network alone; statistical models are fitted per series."""
    model, options = parsed.request.model, parsed.options
    if model is None or model.predictor.fitted_model.blend_weights or options.samples:
        return False
    return sum(len(series.y) + options.horizon for series in parsed.series) <= MAX_BATCHED_STEPS


def _is_plain_forecast(parsed: ParsedRequest) -> bool:
    """Whether a request uses no states, whose code may not be imported yet."""
    return (
        _is_batchable(parsed)
        and not parsed.options.return_state
        and not any(isinstance(series, ContinuedSeries) for series in parsed.series)
    )


def _latency_key(parsed: ParsedRequest) -> tuple[object, ...]:
    """Returns what determines the latency: model, number of series, rough number of steps, horizon, number of levels."""
    model, options = parsed.request.model, parsed.options
    assert isinstance(model, DeployedModel), "only a request with a model is plain"
    steps = sum(len(series.y) for series in parsed.series)
    return model.release.digest, len(parsed.series), steps.bit_length(), options.horizon, len(options.levels)


def _batch_key(parsed: ParsedRequest) -> tuple[object, ...]:
    """Returns what the requests of a group share: model, adaptive state, horizon, levels, and whether states are returned."""
    model, options = parsed.request.model, parsed.options
    assert isinstance(model, DeployedModel), "only a request with a model is batchable"
    adaptive_id = id(model.adaptive_state)  # unique, because queued requests hold a reference to the object
    return (
        model.release,
        id(model.predictor),
        adaptive_id,
        options.horizon,
        tuple(options.levels),
        options.return_state,
    )


def _respond_to_group(group: Sequence[ParsedRequest]) -> list[EncodedResponse | Exception]:
    if len(group) == 1:
        return [_try_compute(group[0])]
    started_at, first = perf_counter(), group[0]
    deadline = max((parsed.request.deadline for parsed in group), key=lambda each: each.remaining_s)
    model = first.request.model
    assert isinstance(model, DeployedModel), "only a request with a model is batchable"
    try:
        outcomes_by_request = compute_outcomes_together(
            [parsed.series for parsed in group], first.options, model, deadline, first.signer
        )
    except Exception:  # computed one by one, so that each request gets its own error
        return [_try_compute(parsed) for parsed in group]
    seconds = perf_counter() - started_at
    responses: list[EncodedResponse | Exception] = []
    for parsed, outcomes in zip(group, outcomes_by_request, strict=True):
        try:
            parsed.request.deadline.capped(parsed.options.deadline_ms).check()
            responses.append(encode_response(parsed, outcomes, seconds))
        except Exception as error:
            responses.append(error)
    return responses


def _try_compute(parsed: ParsedRequest) -> EncodedResponse | Exception:
    try:
        return compute_response(parsed)
    except Exception as error:
        return error


def _respond_to_single(request: RawRequest | ParsedRequest, settings: Settings) -> EncodedResponse | Exception:
    try:
        return compute_response(request) if isinstance(request, ParsedRequest) else run_forecast(request, settings)
    except Exception as error:
        return error

"""Small requests that wait while a worker computes are rolled together: a batch takes hardly longer than one of them.

Each request still has its turn in the queue of the threads, its place, its deadline. Whoever's turn comes first takes those
that wait along, so that nobody waits for company: an idle worker begins at once. Their own turns then find the answer there.
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

MAX_BATCH_REQUESTS = 32  # that are rolled together
MAX_BATCHED_BYTES = 64_000  # of the body of one; larger ones fill a batch alone
MAX_BATCHED_STEPS = (
    1 << 14
)  # known and foretold, of one; the batch then stays below what is rolled between looks at a deadline
MAX_IMMEDIATE_BYTES = 8_000  # of the body of one that may be answered where it came in
MAX_IMMEDIATE_S = 0.004  # that everyone else waits for that
_MAX_LATENCY_KEYS = 256  # of requests that are remembered
_JSON = "application/json"  # other forms may have to load what reads them


class PendingRequest:
    """A request; what was read of it, where that was done before its turn; and, once it was computed, what became of it."""

    def __init__(self, request: RawRequest) -> None:
        self.request = request
        self.parsed: ParsedRequest | None = None
        self.outcome: EncodedResponse | Exception | None = None

    def get_response(self) -> EncodedResponse:
        """Its answer; raises what stood in its way."""
        assert self.outcome is not None, "it was computed"
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class Batcher:
    """Those that wait; nobody, where several threads compute at a time: they would wait for each other."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = thread_time) -> None:
        """Nobody waits yet; the clock tells the seconds that the thread which asks has worked."""
        self._settings = settings
        self._clock = clock
        self._queue: deque[PendingRequest] = deque()
        self._latency = LatencyEstimator()

    def try_immediately(self, pending: PendingRequest) -> EncodedResponse | None:
        """The answer to a request that is alone, if it is certain to take no more than a moment; None if it has to wait.

        Raises Problem as `serving.forecasting.run_forecast.run_forecast` does.
        """
        if pending.request.media_type != _JSON or len(pending.request.body) > MAX_IMMEDIATE_BYTES:
            return None
        pending.parsed = parse_request(pending.request, self._settings)
        if not _is_plain_forecast(pending.parsed) or self._latency.estimate(pending.parsed) > MAX_IMMEDIATE_S:
            return None
        began = self._clock()
        found = compute_response(pending.parsed)
        self._latency.observe(pending.parsed, self._clock() - began)
        return found

    def enqueue(self, pending: PendingRequest) -> None:
        """A request that was admitted waits for its turn. A large one is answered alone."""
        if self._settings.rollouts == 1 and len(pending.request.body) <= MAX_BATCHED_BYTES:
            self._queue.append(pending)

    def respond(self, pending: PendingRequest) -> EncodedResponse:
        """Its turn: answers it, and all that wait by now. Raises Problem as `serving.forecasting.run_forecast.run_forecast` does."""
        if pending.outcome is None:
            self._compute_batch(pending)
        return pending.get_response()

    def _compute_batch(self, first: PendingRequest) -> None:
        those = [first]
        while self._queue and len(first.request.body) <= MAX_BATCHED_BYTES and len(those) < MAX_BATCH_REQUESTS:
            other = self._queue.popleft()
            # Who has left, or was told that it is too late, is passed by: its own turn finds out.
            if other is not first and other.outcome is None and not other.request.deadline.is_over:
                those.append(other)
        began = self._clock()
        for one, found in zip(
            those, respond_to_batch([one.parsed or one.request for one in those], self._settings), strict=True
        ):
            one.outcome = found
        if len(those) == 1 and first.parsed is not None and _is_plain_forecast(first.parsed):
            self._latency.observe(first.parsed, self._clock() - began)


class LatencyEstimator:
    """How long small requests took that were answered alone, by what they ask. Slow ones are believed at once, fast ones later.

    In seconds that the thread has worked: that a machine is busy says nothing of a request.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[object, ...], float] = {}

    def estimate(self, parsed: ParsedRequest) -> float:
        """Those of one like this; infinity where there was none."""
        return self._seconds.get(_latency_key(parsed), math.inf)

    def observe(self, parsed: ParsedRequest, seconds: float) -> None:
        """Remembers what it took; everything is forgotten where the kinds are too many."""
        sort = _latency_key(parsed)
        before = self._seconds.get(sort, seconds)
        if len(self._seconds) >= _MAX_LATENCY_KEYS and sort not in self._seconds:
            self._seconds.clear()
        self._seconds[sort] = max(seconds, (seconds + before) / 2)


def respond_to_batch(
    requests: Sequence[RawRequest | ParsedRequest], settings: Settings
) -> list[EncodedResponse | Exception]:
    """The answer to each request, or what stands in its way; that of one is no other in company."""
    if len(requests) == 1:
        return [_respond_to_single(requests[0], settings)]
    found: list[EncodedResponse | Exception | None] = []
    groups: dict[tuple[object, ...], list[tuple[int, ParsedRequest]]] = {}
    for place, asked in enumerate(requests):
        try:
            one = asked if isinstance(asked, ParsedRequest) else parse_request(asked, settings)
            if _is_batchable(one):
                groups.setdefault(_batch_key(one), []).append((place, one))
                found.append(None)
            else:
                found.append(compute_response(one))
        except Exception as error:  # whatever becomes of one, the others are answered
            found.append(error)
    for group in groups.values():
        for (place, _), told in zip(group, _respond_to_group([one for _, one in group]), strict=True):
            found[place] = told
    return [one for one in found if one is not None]


def _is_batchable(parsed: ParsedRequest) -> bool:
    """Whether it is small and plain enough to be rolled with others; statistical models are fitted to each series alone."""
    model, ask = parsed.request.model, parsed.options
    if model is None or model.predictor.fitted_model.blend_weights or ask.samples:
        return False
    return sum(len(series.y) + ask.horizon for series in parsed.series) <= MAX_BATCHED_STEPS


def _is_plain_forecast(parsed: ParsedRequest) -> bool:
    """Whether it asks for nothing but forecasts of whole histories; states may need what is not loaded yet."""
    return (
        _is_batchable(parsed)
        and not parsed.options.return_state
        and not any(isinstance(each, ContinuedSeries) for each in parsed.series)
    )


def _latency_key(parsed: ParsedRequest) -> tuple[object, ...]:
    """What tells how long it takes: the model, how many series, how long about, how far ahead, how many levels."""
    model, ask = parsed.request.model, parsed.options
    assert isinstance(model, DeployedModel), "it would not be plain"
    steps = sum(len(series.y) for series in parsed.series)
    return model.release.digest, len(parsed.series), steps.bit_length(), ask.horizon, len(ask.levels)


def _batch_key(parsed: ParsedRequest) -> tuple[object, ...]:
    """What must agree: the model, and what late actuals have taught about it; the horizon; the levels; states or none."""
    model, ask = parsed.request.model, parsed.options
    assert isinstance(model, DeployedModel), "it would not have joined"
    taught = id(model.adaptive_state)  # held by those that wait, so no other gets its id
    return model.release, id(model.predictor), taught, ask.horizon, tuple(ask.levels), ask.return_state


def _respond_to_group(group: Sequence[ParsedRequest]) -> list[EncodedResponse | Exception]:
    if len(group) == 1:
        return [_try_compute(group[0])]
    began, first = perf_counter(), group[0]
    patient = max((one.request.deadline for one in group), key=lambda deadline: deadline.remaining_s)
    model = first.request.model
    assert isinstance(model, DeployedModel), "they would not have joined"
    try:
        done = compute_outcomes_together([one.series for one in group], first.options, model, patient, first.signer)
    except Exception:  # one of them, or all: each learns for itself
        return [_try_compute(one) for one in group]
    seconds = perf_counter() - began
    told: list[EncodedResponse | Exception] = []
    for one, outcomes in zip(group, done, strict=True):
        try:
            one.request.deadline.capped(one.options.deadline_ms).check()
            told.append(encode_response(one, outcomes, seconds))
        except Exception as error:
            told.append(error)
    return told


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

"""The exchange between a client and the service, without I/O: a driver sends its requests and waits for its delays.

An exchange is a generator, so the blocking and the asynchronous client are two short drivers of the same code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import SystemRandom
from typing import Any, NamedTuple, TypeVar

from forecaster.errors import (
    AnswerTooLate,
    KeyRefused,
    RequestRefused,
    ServiceBusy,
    ServiceError,
    ServiceNotReady,
    Unreachable,
)

T = TypeVar("T")
_BUSY, _NOT_READY = 429, 503
_ERRORS_BY_STATUS: dict[int, type[ServiceError]] = {
    401: KeyRefused,
    403: KeyRefused,
    _BUSY: ServiceBusy,
    _NOT_READY: ServiceNotReady,
    504: AnswerTooLate,
}
_MAX_MESSAGE_LENGTH = 500  # characters of a response that is not the service's own
_RANDOM = SystemRandom()


class HttpRequest(NamedTuple):
    """A request. None changes any state, so a lost one can be sent again."""

    method: str
    path: str
    body: bytes | None = None


class Delay(NamedTuple):
    """A time to wait before the next request, in seconds."""

    seconds: float


class HttpResponse(NamedTuple):
    """A response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NoResponse(NamedTuple):
    """A request without a response.

    Attributes:
        reason: In words.
        timed_out: Whether it took too long; the service may still be working on it, so it is not retried.
    """

    reason: str
    timed_out: bool


Exchange = Generator[HttpRequest | Delay, HttpResponse | NoResponse | None, T]


class RetryPolicy(NamedTuple):
    """How often a request is retried, and after which delay.

    Attributes:
        retries: Largest number of retries.
        initial_delay_s: Before the first retry; it doubles for each further one, with a random extra of up to a quarter, so that
            many clients do not retry at the same moment.
        max_delay_s: If the service requests a longer delay than this, the request is not retried.
    """

    retries: int = 3
    initial_delay_s: float = 0.5
    max_delay_s: float = 60.0

    def delay_before_retry(self, attempts: int, response: HttpResponse | NoResponse) -> float | None:
        """Returns the seconds to wait after this many attempts; None where there is no retry."""
        is_lost = isinstance(response, NoResponse) and not response.timed_out
        is_rejected = isinstance(response, HttpResponse) and response.status in (_BUSY, _NOT_READY)
        if attempts > self.retries or not (is_lost or is_rejected):
            return None
        requested_delay = _retry_after(response.headers) if isinstance(response, HttpResponse) else 0.0
        if requested_delay > self.max_delay_s:
            return None
        backoff = min(self.max_delay_s, self.initial_delay_s * 2.0 ** (attempts - 1))
        return float(max(requested_delay, backoff) * (1 + _RANDOM.random() / 4))


DEFAULT_RETRY_POLICY, NO_RETRY = RetryPolicy(), RetryPolicy(retries=0)


def request_json(request: HttpRequest, retry_policy: RetryPolicy) -> Exchange[Any]:
    """Returns the JSON of the response. Raises kinds of ServiceError, with code, message, location, status and request id."""
    attempts = 0
    while True:
        response = yield request
        attempts += 1
        assert response is not None, "a driver answers each request with a response or NoResponse"
        if isinstance(response, HttpResponse) and response.status == 200:
            return _parse_json(response)
        delay = retry_policy.delay_before_retry(attempts, response)
        if delay is None:
            raise error_from_response(response)
        yield Delay(delay)


def error_from_response(response: HttpResponse | NoResponse) -> ServiceError:
    """Returns the error of a failed request."""
    if isinstance(response, NoResponse):
        if response.timed_out:
            return AnswerTooLate(
                f"Expected a response within the timeout; found none ({response.reason}). Request less, or raise the timeout."
            )
        return Unreachable(
            f"Expected a response of the service; found none ({response.reason}). Check that it is running at this address."
        )
    error_class = _ERRORS_BY_STATUS.get(
        response.status, RequestRefused if 400 <= response.status < 500 else ServiceError
    )
    error = _parse_error(response.body)
    if error is None:  # from a proxy in front of the service
        text = " ".join(response.body[:_MAX_MESSAGE_LENGTH].decode("utf-8", "replace").split())
        return error_class(
            f"Expected a response of the service; found status {response.status}: {text or 'no text'}. Check the address.",
            status=response.status,
            request_id=response.headers.get("x-request-id"),
        )
    return error_class(
        error["message"],
        code=error["code"],
        where=error["where"],
        status=response.status,
        request_id=response.headers.get("x-request-id"),
    )


def _parse_json(response: HttpResponse) -> Any:
    try:
        return json.loads(response.body)
    except ValueError as error:
        raise ServiceError(
            "Expected JSON from the service; found something else. Check that a forecaster service runs at this address.",
            status=response.status,
            request_id=response.headers.get("x-request-id"),
        ) from error


def _parse_error(body: bytes) -> dict[str, Any] | None:
    """Returns the fields of an error in the service's format; None for any other body."""
    try:
        fields = json.loads(body)["error"]
        code, message, where = fields["code"], fields["message"], fields["where"]
    except (ValueError, TypeError, KeyError):
        return None
    is_valid = isinstance(code, str) and isinstance(message, str) and (where is None or isinstance(where, str))
    return {"code": code, "message": message, "where": where} if is_valid else None


def _retry_after(headers: Mapping[str, str]) -> float:
    """Returns the delay requested by the service, from seconds or a date (RFC 9110, section 10.2.3); 0 if there is none."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        aware_date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
        seconds = (aware_date - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0

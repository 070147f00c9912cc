"""What is said between a client and the service, without a network: whoever drives a talk sends its calls and waits its pauses.

A talk is a generator. So the synchronous and the asynchronous client are two short drivers of one and the same thing.
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
_MAX_MESSAGE_LENGTH = 500  # characters of a message that is not of ours
_RANDOM = SystemRandom()


class HttpRequest(NamedTuple):
    """A request. All that we send only asks: where it was lost, it may be sent again."""

    method: str
    path: str
    body: bytes | None = None


class Delay(NamedTuple):
    """To be waited, in seconds."""

    seconds: float


class HttpResponse(NamedTuple):
    """What came back; the names of headers in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NoResponse(NamedTuple):
    """Nothing came back.

    Attributes:
        why: In words.
        late: Whether it took too long; then the service may be at it still, and is not asked again.
    """

    reason: str
    timed_out: bool


Exchange = Generator[HttpRequest | Delay, HttpResponse | NoResponse | None, T]


class RetryPolicy(NamedTuple):
    """How often a call is made again, and after how long.

    Attributes:
        retries: Times at the most.
        first_s: Before the first; twice as long before each further one, and up to a quarter more by chance, so that many
            clients do not come back at once.
        longest_s: A service that asks for a longer pause than this is not waited for.
    """

    retries: int = 3
    initial_delay_s: float = 0.5
    max_delay_s: float = 60.0

    def delay_before_retry(self, attempts: int, response: HttpResponse | NoResponse) -> float | None:
        """Seconds to wait after so many calls; None where it is not to be made again."""
        lost = isinstance(response, NoResponse) and not response.timed_out
        sent_away = isinstance(response, HttpResponse) and response.status in (_BUSY, _NOT_READY)
        if attempts > self.retries or not (lost or sent_away):
            return None
        told = _retry_after(response.headers) if isinstance(response, HttpResponse) else 0.0
        if told > self.max_delay_s:
            return None
        own = min(self.max_delay_s, self.initial_delay_s * 2.0 ** (attempts - 1))
        return float(max(told, own) * (1 + _RANDOM.random() / 4))


def request_json(request: HttpRequest, retry_policy: RetryPolicy) -> Exchange[Any]:
    """The JSON of the answer. Raises ServiceError's kinds, with code, message, place, status and request id."""
    made = 0
    while True:
        reply = yield request
        made += 1
        assert reply is not None, "a call has a reply or none, and says which"
        if isinstance(reply, HttpResponse) and reply.status == 200:
            return _parse_json(reply)
        pause = retry_policy.delay_before_retry(made, reply)
        if pause is None:
            raise error_from_response(reply)
        yield Delay(pause)


def error_from_response(response: HttpResponse | NoResponse) -> ServiceError:
    """Why there is no answer."""
    if isinstance(response, NoResponse):
        if response.timed_out:
            return AnswerTooLate(
                f"Expected an answer within the timeout; none came ({response.reason}). Ask for less, or wait longer."
            )
        return Unreachable(
            f"Expected an answer of the service; none came ({response.reason}). Is it running, at this address?"
        )
    kind = _ERRORS_BY_STATUS.get(response.status, RequestRefused if 400 <= response.status < 500 else ServiceError)
    told = _parse_error(response.body)
    if told is None:  # something in front of the service
        text = " ".join(response.body[:_MAX_MESSAGE_LENGTH].decode("utf-8", "replace").split())
        return kind(
            f"Expected an answer of the service; found status {response.status}: {text or 'and nothing else'}.",
            status=response.status,
            request_id=response.headers.get("x-request-id"),
        )
    return kind(
        told["message"],
        code=told["code"],
        where=told["where"],
        status=response.status,
        request_id=response.headers.get("x-request-id"),
    )


def _parse_json(response: HttpResponse) -> Any:
    try:
        return json.loads(response.body)
    except ValueError as error:
        raise ServiceError(
            "Expected JSON of the service; found something else. Is a forecaster at this address?",
            status=response.status,
            request_id=response.headers.get("x-request-id"),
        ) from error


def _parse_error(body: bytes) -> dict[str, Any] | None:
    """The fields of an error in the one shape of the service's; None for any other."""
    try:
        told = json.loads(body)["error"]
        code, message, where = told["code"], told["message"], told["where"]
    except (ValueError, TypeError, KeyError):
        return None
    good = isinstance(code, str) and isinstance(message, str) and (where is None or isinstance(where, str))
    return {"code": code, "message": message, "where": where} if good else None


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the service asks to wait, told as such or as a moment (RFC 9110, section 10.2.3); 0 if it says nothing."""
    told = headers.get("retry-after", "")
    try:
        seconds = float(told)
    except ValueError:
        try:
            moment = parsedate_to_datetime(told)
        except ValueError:
            return 0.0
        aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        seconds = (aware - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0

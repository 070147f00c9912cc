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
_KINDS: dict[int, type[ServiceError]] = {
    401: KeyRefused,
    403: KeyRefused,
    _BUSY: ServiceBusy,
    _NOT_READY: ServiceNotReady,
    504: AnswerTooLate,
}
_LONGEST = 500  # characters of a message that is not of ours
_CHANCE = SystemRandom()


class Call(NamedTuple):
    """A request. All that we send only asks: where it was lost, it may be sent again."""

    method: str
    path: str
    body: bytes | None = None


class Pause(NamedTuple):
    """To be waited, in seconds."""

    seconds: float


class Reply(NamedTuple):
    """What came back; the names of headers in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Silence(NamedTuple):
    """Nothing came back.

    Attributes:
        why: In words.
        late: Whether it took too long; then the service may be at it still, and is not asked again.
    """

    why: str
    late: bool


Talk = Generator[Call | Pause, Reply | Silence | None, T]


class Patience(NamedTuple):
    """How often a call is made again, and after how long.

    Attributes:
        retries: Times at the most.
        first_s: Before the first; twice as long before each further one, and up to a quarter more by chance, so that many
            clients do not come back at once.
        longest_s: A service that asks for a longer pause than this is not waited for.
    """

    retries: int = 3
    first_s: float = 0.5
    longest_s: float = 60.0

    def pause(self, made: int, reply: Reply | Silence) -> float | None:
        """Seconds to wait after so many calls; None where it is not to be made again."""
        lost = isinstance(reply, Silence) and not reply.late
        sent_away = isinstance(reply, Reply) and reply.status in (_BUSY, _NOT_READY)
        if made > self.retries or not (lost or sent_away):
            return None
        told = _retry_after(reply.headers) if isinstance(reply, Reply) else 0.0
        if told > self.longest_s:
            return None
        own = min(self.longest_s, self.first_s * 2.0 ** (made - 1))
        return float(max(told, own) * (1 + _CHANCE.random() / 4))


def ask(call: Call, patience: Patience) -> Talk[Any]:
    """The JSON of the answer. Raises ServiceError's kinds, with code, message, place, status and request id."""
    made = 0
    while True:
        reply = yield call
        made += 1
        assert reply is not None, "a call has a reply or none, and says which"
        if isinstance(reply, Reply) and reply.status == 200:
            return _content(reply)
        pause = patience.pause(made, reply)
        if pause is None:
            raise fault(reply)
        yield Pause(pause)


def fault(reply: Reply | Silence) -> ServiceError:
    """Why there is no answer."""
    if isinstance(reply, Silence):
        if reply.late:
            return AnswerTooLate(
                f"Expected an answer within the timeout; none came ({reply.why}). Ask for less, or wait longer."
            )
        return Unreachable(
            f"Expected an answer of the service; none came ({reply.why}). Is it running, at this address?"
        )
    kind = _KINDS.get(reply.status, RequestRefused if 400 <= reply.status < 500 else ServiceError)
    told = _error_of(reply.body)
    if told is None:  # something in front of the service
        text = " ".join(reply.body[:_LONGEST].decode("utf-8", "replace").split())
        return kind(
            f"Expected an answer of the service; found status {reply.status}: {text or 'and nothing else'}.",
            status=reply.status,
            request_id=reply.headers.get("x-request-id"),
        )
    return kind(
        told["message"],
        code=told["code"],
        where=told["where"],
        status=reply.status,
        request_id=reply.headers.get("x-request-id"),
    )


def _content(reply: Reply) -> Any:
    try:
        return json.loads(reply.body)
    except ValueError as error:
        raise ServiceError(
            "Expected JSON of the service; found something else. Is a forecaster at this address?",
            status=reply.status,
            request_id=reply.headers.get("x-request-id"),
        ) from error


def _error_of(body: bytes) -> dict[str, Any] | None:
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

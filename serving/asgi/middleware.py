"""What stands in front of every request: its key, limits on body, type and path; a request id, one log line, one error shape."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.asgi.bodies import LARGE, Turn, Turns
from serving.asgi.compression import unpack
from serving.errors import CLIENT_LEFT, Problem

Observe = Callable[[str, int, float], None]  # path, status, seconds
Admit = Callable[[str, Mapping[bytes, bytes]], str | None]  # path, headers -> name of the key; raises Problem
Pairs = Sequence[tuple[bytes, bytes]]  # headers

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_TYPE = re.compile(rb"([a-z0-9.+/-]+)\s*(;\s*charset\s*=\s*\"?utf-8\"?\s*)?", re.IGNORECASE)
_JSON = "application/json"
_ALWAYS = [(b"x-content-type-options", b"nosniff")]
_UNLESS_TOLD = (b"cache-control", b"no-store")

log = logging.getLogger(__name__)
access_log = logging.getLogger("serving.access")


class Guard:
    """An ASGI application around another."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body: int,
        observe: Observe = lambda *_: None,
        admit: Admit = lambda *_: None,
        takes: Mapping[str, Collection[str]] | None = None,
        stamp: Callable[[], Pairs] = lambda: (),
    ) -> None:
        """An application is let alone with requests that passed.

        Args:
            app: What answers them.
            max_body: Most bytes of a body, as it is sent and as it is unpacked.
            observe: Told of every answer.
            admit: Says who comes, or refuses.
            takes: By path, the media types of a body; of other paths JSON alone.
            stamp: Headers of answers that do not say themselves which model gave them.
        """
        self._app = app
        self._max_body = max_body
        self._observe = observe
        self._admit = admit
        self._takes = takes or {}
        self._stamp = stamp
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        headers = dict(scope["headers"])
        answer = _Answer(send, request_id=_request_id(headers), started=started, stamp=self._stamp)
        body: list[bytes] | None = []
        key: str | None = None
        try:
            _check_path(scope["path"])
            key = self._admit(scope["path"], headers)  # before a byte of the body is read
            length = _length(headers, max_body=self._max_body)
            body = await _read(receive, length=length, max_body=self._max_body, turns=self._turns)
            if body is not None:
                _check_type(body, headers, takes=self._takes.get(scope["path"], (_JSON,)))
                plain = body
                if body and b"content-encoding" in headers:
                    packing = headers[b"content-encoding"]
                    plain = [await asyncio.to_thread(unpack, b"".join(body), packing, most=self._max_body)]
                await self._app(scope, _replay(plain, receive), answer)
        except Problem as problem:
            await answer.tell(problem)
        except Exception:
            log.exception("request %s failed", answer.request_id)
            if answer.started and not answer.finished:
                raise  # half an answer is out: the server must cut the connection
            if not answer.started:
                await answer.tell(
                    Problem("internal_error", f"The server failed; its log says more under {answer.request_id}.")
                )
        finally:
            seconds = perf_counter() - started
            status = answer.status or CLIENT_LEFT
            self._observe(scope["path"], status, seconds)
            access_log.info(_line(scope, answer.request_id, status, seconds, key=key, size=sum(map(len, body or []))))


class _Answer:
    """The way back: adds our headers to the answer and remembers its status."""

    def __init__(self, send: Send, *, request_id: str, started: float, stamp: Callable[[], Pairs]) -> None:
        self._send = send
        self._started = started
        self._stamp = stamp
        self.request_id = request_id
        self.status = 0
        self.finished = False

    @property
    def started(self) -> bool:
        return self.status != 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            theirs = list(message.get("headers", ()))
            total = f"total;dur={(perf_counter() - self._started) * 1000:.2f}"
            ours = [(b"x-request-id", self.request_id.encode()), (b"server-timing", total.encode()), *_ALWAYS]
            if all(name != b"x-model" for name, _ in theirs):
                ours += self._stamp()
            if all(name != _UNLESS_TOLD[0] for name, _ in theirs):
                ours.append(_UNLESS_TOLD)
            message = {**message, "headers": [*theirs, *ours]}
        elif message["type"] == "http.response.body":
            self.finished = not message.get("more_body", False)
        await self._send(message)

    async def tell(self, problem: Problem) -> None:
        body = problem.body()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers}
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": problem.status, "headers": pairs})
        await self({"type": "http.response.body", "body": body})


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def _check_path(path: str) -> None:
    if _CONTROL.search(path):
        raise Problem("bad_path", "Expected a path without control characters. Correct the address.")


def _length(headers: dict[bytes, bytes], *, max_body: int) -> int:
    """That which is announced."""
    length = headers.get(b"content-length", b"0")
    if not length.isdigit():
        raise Problem("bad_length", "Expected a number in the Content-Length header. Correct the request.")
    if len(length) > 18 or int(length) > max_body:
        raise _too_large(max_body)
    return int(length)


def _check_type(body: Sequence[bytes], headers: dict[bytes, bytes], *, takes: Collection[str]) -> None:
    if not body:
        return  # nothing was sent that could be of a wrong type
    match = _TYPE.fullmatch(headers.get(b"content-type", b"").strip())
    if match is None or match[1].decode().lower() not in takes:
        raise Problem(
            "unsupported_media_type",
            f"Expected a body of Content-Type {' or '.join(takes)}, in UTF-8.",
            where="content-type",
        )


async def _read(receive: Receive, *, length: int, max_body: int, turns: Turns) -> list[bytes] | None:
    """The whole body in parts, counted as they come in (a chunked body announces no length); None if the client left."""
    parts: list[bytes] = []
    size = 0
    turn: Turn | None = None
    try:
        while True:
            if turn is None and max(length, size) >= LARGE:
                turn = await turns.take()
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > max_body:
                raise _too_large(max_body)
            if part:
                parts.append(part)
            if not message.get("more_body", False):
                return parts
    finally:
        if turn is not None:
            turn.end()


def _replay(body: Sequence[bytes], receive: Receive) -> Receive:
    """A `receive` that gives the body as it came, and after that what the server says."""
    waiting: list[Message] = [{"type": "http.request", "body": part, "more_body": True} for part in reversed(body)]
    waiting = waiting or [{"type": "http.request", "body": b""}]
    waiting[0]["more_body"] = False  # the last

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _too_large(max_body: int) -> Problem:
    # The rest of the body is not read, so the connection cannot be used again.
    message = f"Expected a body of at most {max_body} bytes. Send fewer series, or shorter histories."
    return Problem("body_too_large", message, headers={"connection": "close"})


def _line(scope: Scope, request_id: str, status: int, seconds: float, *, key: str | None, size: int) -> str:
    """One line of JSON, without headers and query. All but printable ASCII is escaped, so nobody can write a line of ours."""
    client = scope.get("client")
    return json.dumps(
        {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": request_id,
            "client": client[0] if client else None,
            "key": key,
            "method": scope["method"],
            "path": scope["path"][:300],
            "status": status,
            "ms": round(seconds * 1000, 3),
            "bytes": size,
        }
    )

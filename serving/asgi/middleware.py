"""The middleware of every request: API key, limits on path, body and media type, request id, access log, error shape."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.asgi.bodies import LARGE_BODY_BYTES, UploadLimiter, UploadPermit
from serving.asgi.compression import decompress
from serving.errors import CLIENT_CLOSED_REQUEST, ApiError

ObserveResponse = Callable[[str, int, float], None]  # path, status, seconds
Authorize = Callable[[str, Mapping[bytes, bytes]], str | None]  # path, headers -> name of the key; raises ApiError
HeaderList = Sequence[tuple[bytes, bytes]]

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_REQUEST_ID_PATTERN = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_CONTENT_TYPE_PATTERN = re.compile(rb"([a-z0-9.+/-]+)\s*(;\s*charset\s*=\s*\"?utf-8\"?\s*)?", re.IGNORECASE)
_JSON = "application/json"
_PATHS_OF_ANY_HOST = ("/livez", "/readyz", "/metrics")  # probes address a container by its IP address
_SECURITY_HEADERS = [(b"x-content-type-options", b"nosniff")]
_DEFAULT_CACHE_CONTROL = (b"cache-control", b"no-store")

log = logging.getLogger(__name__)
access_log = logging.getLogger("serving.access")


class RequestMiddleware:
    """An ASGI middleware that validates requests before they reach the application and logs every response."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        observe: ObserveResponse = lambda *_: None,
        authorize: Authorize = lambda *_: None,
        media_types: Mapping[str, Collection[str]] | None = None,
        model_headers: Callable[[], HeaderList] = lambda: (),
        allowed_hosts: Collection[str] | None = None,
    ) -> None:
        """Wraps an application.

        Args:
            app: The application that receives valid requests.
            max_body_bytes: Limit of a body, both as sent and decompressed.
            observe: Called with path, status and seconds of every response.
            authorize: Returns the name of the API key, or raises ApiError.
            media_types: The accepted media types of a body, by path; other paths accept only JSON.
            model_headers: Headers for responses that do not name their model themselves.
            allowed_hosts: The names in the Host header that are served; None for all.
        """
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._observe = observe
        self._authorize = authorize
        self._media_types = media_types or {}
        self._model_headers = model_headers
        self._allowed_hosts = allowed_hosts
        self._upload_limiter = UploadLimiter()
        self._decompressor = ThreadPoolExecutor(1, thread_name_prefix="decompress")  # bounds the CPU of hostile bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection; websockets are rejected."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve_http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        headers = dict(scope["headers"])
        response = _ResponseSender(
            send, request_id=_choose_request_id(headers), started_at=started, model_headers=self._model_headers
        )
        body: list[bytes] | None = []
        key: str | None = None
        try:
            _validate_path(scope["path"])
            if self._allowed_hosts is not None and scope["path"] not in _PATHS_OF_ANY_HOST:
                _validate_host(headers, self._allowed_hosts)
            key = self._authorize(scope["path"], headers)  # before any of the body is read
            length = _parse_content_length(headers, max_body_bytes=self._max_body_bytes)
            body = await _receive_body(
                receive, content_length=length, max_body_bytes=self._max_body_bytes, upload_limiter=self._upload_limiter
            )
            if body is not None:
                _validate_content_type(body, headers, media_types=self._media_types.get(scope["path"], (_JSON,)))
                chunks = body
                if body and b"content-encoding" in headers:
                    encoding = headers[b"content-encoding"]
                    content = partial(decompress, b"".join(body), encoding, max_bytes=self._max_body_bytes)
                    chunks = [await asyncio.get_running_loop().run_in_executor(self._decompressor, content)]
                await self._app(scope, _replay_body(chunks, receive), response)
        except ApiError as error:
            await response.send_error(error)
        except Exception:
            log.exception("request %s failed", response.request_id)
            if response.is_started and not response.is_finished:
                raise  # part of the response has been sent: the server must close the connection
            if not response.is_started:
                await response.send_error(
                    ApiError(
                        "internal_error", f"The server failed; its log has the details under {response.request_id}."
                    )
                )
        finally:
            seconds = perf_counter() - started
            status = response.status or CLIENT_CLOSED_REQUEST
            self._observe(scope["path"], status, seconds)
            size = sum(map(len, body or []))
            access_log.info(_format_access_line(scope, response.request_id, status, seconds, key=key, size=size))


class _ResponseSender:
    """An ASGI `send` that adds our headers to the response and remembers its status."""

    def __init__(
        self, send: Send, *, request_id: str, started_at: float, model_headers: Callable[[], HeaderList]
    ) -> None:
        self._send = send
        self._started_at = started_at
        self._model_headers = model_headers
        self.request_id = request_id
        self.status = 0
        self.is_finished = False

    @property
    def is_started(self) -> bool:
        return self.status != 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            names = {name for name, _ in headers}
            total = f"total;dur={(perf_counter() - self._started_at) * 1000:.2f}"
            headers += [(b"x-request-id", self.request_id.encode()), (b"server-timing", total.encode())]
            headers += _SECURITY_HEADERS
            if b"x-model" not in names:
                headers += self._model_headers()
            if _DEFAULT_CACHE_CONTROL[0] not in names:
                headers.append(_DEFAULT_CACHE_CONTROL)
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            self.is_finished = not message.get("more_body", False)
        await self._send(message)

    async def send_error(self, error: ApiError) -> None:
        body = error.to_json()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": error.status, "headers": pairs})
        await self({"type": "http.response.body", "body": body})


def _choose_request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID_PATTERN.fullmatch(given) else secrets.token_hex(8)


def _validate_path(path: str) -> None:
    if _CONTROL_CHARACTERS.search(path):
        raise ApiError("bad_path", "Expected a path without control characters. Correct the address.")


def _validate_host(headers: Mapping[bytes, bytes], allowed_hosts: Collection[str]) -> None:
    """Raises ApiError (421) unless the name in the Host header is allowed; the port does not matter."""
    host = headers.get(b"host", b"").decode("latin-1").strip().lower()
    name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
    if name not in allowed_hosts:
        raise ApiError(
            "unknown_host",
            f"Expected one of the hosts {', '.join(sorted(allowed_hosts))} in the Host header; found {name[:100]!r}. Use one of "
            "them, or set FORECASTER_SERVING_ALLOWED_HOSTS.",
            where="host",
        )


def _parse_content_length(headers: dict[bytes, bytes], *, max_body_bytes: int) -> int:
    """Returns the announced length of the body, 0 if it is not announced; raises ApiError (400, 413)."""
    length = headers.get(b"content-length", b"0")
    if not length.isdigit():
        raise ApiError("bad_length", "Expected a number in the Content-Length header. Correct the request.")
    if len(length) > 18 or int(length) > max_body_bytes:
        raise _body_too_large_error(max_body_bytes)
    return int(length)


def _validate_content_type(body: Sequence[bytes], headers: dict[bytes, bytes], *, media_types: Collection[str]) -> None:
    if not body:
        return  # an empty body has no type
    match = _CONTENT_TYPE_PATTERN.fullmatch(headers.get(b"content-type", b"").strip())
    if match is None or match[1].decode().lower() not in media_types:
        raise ApiError(
            "unsupported_media_type",
            f"Expected a body of Content-Type {' or '.join(media_types)}, in UTF-8. Correct the header.",
            where="content-type",
        )


async def _receive_body(
    receive: Receive, *, content_length: int, max_body_bytes: int, upload_limiter: UploadLimiter
) -> list[bytes] | None:
    """Returns the chunks of the whole body; None if the client disconnected.

    Bytes are counted as they arrive because a body in chunked transfer encoding announces no length.
    """
    chunks: list[bytes] = []
    size = 0
    permit: UploadPermit | None = None
    try:
        while True:
            if permit is None and max(content_length, size) >= LARGE_BODY_BYTES:
                permit = await upload_limiter.acquire()
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > max_body_bytes:
                raise _body_too_large_error(max_body_bytes)
            if chunk:
                chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks
    finally:
        if permit is not None:
            permit.release()


def _replay_body(body: Sequence[bytes], receive: Receive) -> Receive:
    """Returns an ASGI `receive` that yields the chunks of the body, and then the messages of the server."""
    messages: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in reversed(body)]
    messages = messages or [{"type": "http.request", "body": b""}]
    messages[0]["more_body"] = False  # messages are popped from the end, so the first item is the last chunk

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _body_too_large_error(max_body_bytes: int) -> ApiError:
    # The rest of the body is not read, so the connection cannot be reused.
    message = f"Expected a body of at most {max_body_bytes} bytes. Send fewer series, or shorter histories."
    return ApiError("body_too_large", message, headers={"connection": "close"})


def _format_access_line(
    scope: Scope, request_id: str, status: int, seconds: float, *, key: str | None, size: int
) -> str:
    """Returns one line of JSON, without headers and query. All but printable ASCII is escaped, so no client can forge a line."""
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

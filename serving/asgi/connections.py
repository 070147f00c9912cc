"""HTTP connections within limits: number, size of heads, transfer rates and idle time. uvicorn itself limits none of them.

A reverse proxy in front may be stricter; these limits keep one client from locking out the others without any.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.errors import ApiError

MAX_HEAD_BYTES = 1 << 16  # request line and headers; also what a body may hold between two pieces of content
MAX_HEADERS = 100
HEAD_TIMEOUT_S = 10.0  # for a complete head, from the connection or the first byte of the request
RATE_GRACE_S = 10.0  # before the transfer rate of a body counts
MIN_BYTES_PER_S = 1024  # of a body that is received
SEND_TIMEOUT_S = 30.0  # without the client having read what was sent; 256 KiB at most are sent ahead
SWEEP_INTERVAL_S = 1.0
_RESERVED_DESCRIPTORS = 64  # for files, the slot, the ledger and the event loop
_HEAD_PIECE_BYTES = 1 << 12  # a head is parsed in pieces, because the parser joins the pieces of a value
_MAX_OVERHEAD_PER_BYTE = 8  # of chunked transfer encoding, for each byte of content

CountClosed = Callable[[str], object]  # reason -> None


class ConnectionLimits:
    """The open connections of one worker, and the timer that closes those that make no progress."""

    def __init__(self, max_connections: int, *, count_closed: CountClosed = lambda _: None) -> None:
        """Creates empty limits.

        Args:
            max_connections: Largest number of open connections; fewer if the process may not open as many files.
            count_closed: Called with the reason whenever a connection is closed by a limit.
        """
        soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.max_connections = max(1, min(max_connections, soft_limit - _RESERVED_DESCRIPTORS))
        self.count_closed = count_closed
        self.connections: dict[LimitedProtocol, None] = {}  # in the order of arrival
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: LimitedProtocol, loop: asyncio.AbstractEventLoop) -> bool:
        """Adds a connection; at the limit, the oldest one without a request makes room. Returns whether there was room."""
        if len(self.connections) >= self.max_connections:
            idle = next((each for each in self.connections if each.is_waiting_for_head), None)
            if idle is None:
                return False
            idle.close_for("too many connections")
        self.connections[connection] = None
        if self._timer is None:
            self._timer = loop.call_later(SWEEP_INTERVAL_S, self._sweep, loop)
        return True

    def remove(self, connection: LimitedProtocol) -> None:
        """Removes a closed connection."""
        self.connections.pop(connection, None)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        for connection in list(self.connections):
            connection.enforce_rates(now)
        self._timer = loop.call_later(SWEEP_INTERVAL_S, self._sweep, loop) if self.connections else None


class LimitedProtocol(HttpToolsProtocol):
    """A connection of uvicorn that is closed when it exceeds a limit."""

    limits: ConnectionLimits  # set by `limit_connections`

    def connection_made(self, transport: Any) -> None:
        """Starts the connection, or rejects it with 503 at the limit."""
        super().connection_made(transport)
        self._writing_paused_at = self._swept_at = time.monotonic()
        self._received_bytes = self._bytes_without_content = self._content_bytes = self._header_count = 0
        self._start_head()
        if not self.limits.add(self, self.loop):
            self._reject(ApiError("too_many_requests", "Too many connections are open. Try again later.", status=503))

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the connection."""
        self.limits.remove(self)
        super().connection_lost(exc)

    @property
    def is_waiting_for_head(self) -> bool:
        """Whether no request is in progress: its head has not arrived completely."""
        return self._is_head and (self.cycle is None or self.cycle.response_complete)

    def data_received(self, data: bytes) -> None:
        """Parses received bytes, the head in small pieces."""
        view = memoryview(data)
        self._is_receiving = True  # also blank lines before a request, for which the parser calls nothing
        while len(view) and self.parser is not None and not self.transport.is_closing():
            piece = view[:_HEAD_PIECE_BYTES] if self._is_head else view
            view = view[len(piece) :]
            self._received_bytes += len(piece)
            self._bytes_without_content += len(piece)
            super().data_received(bytes(piece))
            if not self.transport.is_closing():
                self._enforce_sizes()

    def on_message_begin(self) -> None:
        """Starts a request."""
        super().on_message_begin()
        if not self._is_head:
            self._start_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Adds a header or a trailer; those above the limit are not stored."""
        self._header_count += 1
        if self._header_count <= MAX_HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Ends the head. A request above the limits does not reach the application."""
        self._is_head = False
        self._read_seconds, self._received_bytes, self._bytes_without_content = 0.0, 0, 0
        if self._header_count <= MAX_HEADERS:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Adds a part of the body."""
        self._content_bytes += len(body)
        self._bytes_without_content = 0
        if self._header_count <= MAX_HEADERS:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends the request."""
        if self._header_count <= MAX_HEADERS:
            super().on_message_complete()
        self._is_message_complete, self._is_receiving = True, False
        if self.cycle is not None and self.cycle.response_complete:
            self._start_head(is_receiving=False)

    def on_response_complete(self) -> None:
        """Waits for the next request of the connection."""
        if self._is_message_complete:  # else the rest of the body is still received
            self._start_head(is_receiving=False)  # uvicorn closes an idle connection
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Rejects what is not HTTP, in the error format of the service."""
        self._reject(ApiError("malformed_http", f"Expected an HTTP request; found something else. {msg} Correct it."))

    def pause_writing(self) -> None:
        """Begins the time in which the client has to read what was sent."""
        self._writing_paused_at = time.monotonic()
        super().pause_writing()

    def enforce_rates(self, now: float) -> None:
        """Closes the connection if its head, its body or the client's reading makes too little progress."""
        seconds, self._swept_at = now - self._swept_at, now
        if self.transport.is_closing():
            return
        if self.flow.write_paused and now - self._writing_paused_at > SEND_TIMEOUT_S:
            self.close_for("slow reader")
            return
        if not self._is_receiving or self.flow.read_paused:
            return
        self._read_seconds += seconds
        if self._is_head:
            if self._read_seconds > HEAD_TIMEOUT_S:
                self.close_for("slow head")
        elif self._received_bytes < (self._read_seconds - RATE_GRACE_S) * MIN_BYTES_PER_S:
            self.close_for("slow body")

    def close_for(self, reason: str) -> None:
        """Closes the connection without a response, and counts the reason."""
        self.limits.count_closed(reason)
        self.limits.remove(self)
        self.transport.abort()

    def _start_head(self, *, is_receiving: bool = True) -> None:
        self._is_head, self._is_receiving, self._is_message_complete = True, is_receiving, False
        self._received_bytes = self._bytes_without_content = self._content_bytes = self._header_count = 0
        self._read_seconds = 0.0

    def _enforce_sizes(self) -> None:
        if self._header_count > MAX_HEADERS or (self._is_head and self._received_bytes > MAX_HEAD_BYTES):
            self._reject(
                ApiError(
                    "head_too_large",
                    f"Expected at most {MAX_HEAD_BYTES} bytes of headers in at most {MAX_HEADERS} lines; found more. Send fewer.",
                )
            )
        elif not self._is_head and (
            self._bytes_without_content > MAX_HEAD_BYTES
            or self._received_bytes > MAX_HEAD_BYTES + _MAX_OVERHEAD_PER_BYTE * self._content_bytes
        ):
            self._reject(
                ApiError(
                    "malformed_http", "Expected chunks of content; found long extensions or trailers. Remove them."
                )
            )

    def _reject(self, error: ApiError) -> None:
        """Sends an error, unless a response has started, and closes the connection."""
        self.limits.count_closed(error.code.replace("_", " "))
        cycle = self.cycle
        if cycle is None or not cycle.response_started or (cycle.response_complete and self._is_head):
            body = error.to_json()
            head = f"HTTP/1.1 {error.status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()


def limit_connections(limits: ConnectionLimits) -> type[LimitedProtocol]:
    """Returns the protocol class of a worker with these limits."""
    return type("WorkerProtocol", (LimitedProtocol,), {"limits": limits})

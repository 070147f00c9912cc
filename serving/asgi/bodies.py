"""Large bodies on their way: taken in by turns, kept as they come in until a thread reads them, and sent slice by slice.

To put ten megabytes together, or to hand them over, takes milliseconds for which every connection would wait; and clients that
send at the same time are done at the same time.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

CHUNK_BYTES = 1 << 18  # bytes
LARGE_BODY_BYTES = 1 << 18  # bytes of a body from which on it is taken in by turns
MAX_LARGE_UPLOADS = 2  # of those
UPLOAD_PERMIT_S = 0.5  # that a turn lasts at the most


class Body(Protocol):
    """The body of a request: bytes, or what becomes bytes in the thread that asks for them."""

    def __len__(self) -> int:
        """Bytes."""

    def __bytes__(self) -> bytes:
        """All of them."""


class UploadLimiter:
    """Large bodies that are sent at the same time are taken in a few at a time: no round of the event loop has them all.

    Who sends slowly burdens no round, and gives its turn to the next after a moment; it goes on without one.
    """

    def __init__(self, limit: int = MAX_LARGE_UPLOADS) -> None:
        self._semaphore = asyncio.Semaphore(limit)

    async def acquire(self) -> UploadPermit:
        """One, as soon as it is free."""
        await self._semaphore.acquire()
        return UploadPermit(self._semaphore)


class UploadPermit:
    """That of one body."""

    def __init__(self, semaphore: asyncio.Semaphore) -> None:
        self._semaphore = semaphore
        self._released = False
        self._timer = asyncio.get_running_loop().call_later(UPLOAD_PERMIT_S, self.release)

    def release(self) -> None:
        """Gives it to the next, once."""
        if not self._released:
            self._released = True
            self._timer.cancel()
            self._semaphore.release()


class ChunkedBody:
    """A body as it came in."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks
        self._size = sum(map(len, chunks))

    def __len__(self) -> int:
        """Bytes."""
        return self._size

    def __bytes__(self) -> bytes:
        """All of them, put together once; to join a megabyte or more, Python lets go of its lock."""
        self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]


async def read_body(request: Request) -> Body:
    """Its body; raises ClientDisconnect where it does not come."""
    parts: list[bytes] = []
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else ChunkedBody(parts)


class ChunkedResponse(Response):
    """An answer whose next slice follows when the connection takes it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        if len(self.body) <= CHUNK_BYTES:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for first in range(0, len(self.body), CHUNK_BYTES):
            more = first + CHUNK_BYTES < len(self.body)
            await send(
                {"type": "http.response.body", "body": self.body[first : first + CHUNK_BYTES], "more_body": more}
            )

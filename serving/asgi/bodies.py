"""Large bodies: few are received at a time, chunks are joined in a worker thread, and responses are sent in chunks.

Joining or sending ten megabytes in the event loop takes milliseconds, during which every connection would wait. Clients that
send at the same time would also finish at the same time.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

CHUNK_BYTES = 1 << 18
LARGE_BODY_BYTES = 1 << 18  # receiving a body of this size or more needs a permit
MAX_LARGE_UPLOADS = 2  # large bodies received at the same time
UPLOAD_PERMIT_S = 0.5  # longest duration of a permit


class Body(Protocol):
    """The body of a request: bytes, or chunks that are joined in the thread that reads them."""

    def __len__(self) -> int:
        """Returns the size in bytes."""

    def __bytes__(self) -> bytes:
        """Returns the whole body."""


class UploadLimiter:
    """Limits how many large bodies are received at the same time, so that no iteration of the event loop handles all of them.

    A slow upload is no burden to the event loop: it loses its permit after `UPLOAD_PERMIT_S` and continues without one.
    """

    def __init__(self, limit: int = MAX_LARGE_UPLOADS) -> None:
        self._semaphore = asyncio.Semaphore(limit)

    async def acquire(self) -> UploadPermit:
        """Waits for a free permit."""
        await self._semaphore.acquire()
        return UploadPermit(self._semaphore)


class UploadPermit:
    """The permit to receive one large body; it expires by itself."""

    def __init__(self, semaphore: asyncio.Semaphore) -> None:
        self._semaphore = semaphore
        self._released = False
        self._timer = asyncio.get_running_loop().call_later(UPLOAD_PERMIT_S, self.release)

    def release(self) -> None:
        """Returns the permit; further calls have no effect."""
        if not self._released:
            self._released = True
            self._timer.cancel()
            self._semaphore.release()


class ChunkedBody:
    """A body in the chunks in which it was received."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks
        self._size = sum(map(len, chunks))

    def __len__(self) -> int:
        """Returns the size in bytes."""
        return self._size

    def __bytes__(self) -> bytes:
        """Returns the whole body. Chunks are joined once; to join a megabyte or more, Python releases the GIL."""
        self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]


async def read_body(request: Request) -> Body:
    """Receives the body of a request; raises ClientDisconnect if it does not arrive completely."""
    chunks: list[bytes] = []
    has_more = True
    while has_more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        has_more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else ChunkedBody(chunks)


class ChunkedResponse(Response):
    """A response that sends its next chunk when the connection accepts it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        if len(self.body) <= CHUNK_BYTES:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for first in range(0, len(self.body), CHUNK_BYTES):
            has_more = first + CHUNK_BYTES < len(self.body)
            await send(
                {"type": "http.response.body", "body": self.body[first : first + CHUNK_BYTES], "more_body": has_more}
            )

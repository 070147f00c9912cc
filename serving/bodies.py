"""Large bodies on their way: kept as they come in until a thread reads them, and sent slice by slice.

To put ten megabytes together, or to hand them over, takes milliseconds for which every connection would wait; and clients that
send at the same time are done at the same time.
"""

from __future__ import annotations

from typing import Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

SLICE = 1 << 18  # bytes


class Body(Protocol):
    """The body of a request: bytes, or what becomes bytes in the thread that asks for them."""

    def __len__(self) -> int:
        """Bytes."""

    def __bytes__(self) -> bytes:
        """All of them."""


class InParts:
    """A body as it came in."""

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts
        self._size = sum(map(len, parts))

    def __len__(self) -> int:
        """Bytes."""
        return self._size

    def __bytes__(self) -> bytes:
        """All of them, put together once; to join a megabyte or more, Python lets go of its lock."""
        self._parts = [b"".join(self._parts)]
        return self._parts[0]


async def gather(request: Request) -> Body:
    """Its body; raises ClientDisconnect where it does not come."""
    parts: list[bytes] = []
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else InParts(parts)


class Sliced(Response):
    """An answer whose next slice follows when the connection takes it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        if len(self.body) <= SLICE:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for first in range(0, len(self.body), SLICE):
            more = first + SLICE < len(self.body)
            await send({"type": "http.response.body", "body": self.body[first : first + SLICE], "more_body": more})

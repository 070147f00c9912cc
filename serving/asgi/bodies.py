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

SLICE = 1 << 18  # bytes
LARGE = 1 << 18  # bytes of a body from which on it is taken in by turns
AT_A_TIME = 2  # of those
PATIENCE_S = 0.5  # that a turn lasts at the most


class Body(Protocol):
    """The body of a request: bytes, or what becomes bytes in the thread that asks for them."""

    def __len__(self) -> int:
        """Bytes."""

    def __bytes__(self) -> bytes:
        """All of them."""


class Turns:
    """Large bodies that are sent at the same time are taken in a few at a time: no round of the event loop has them all.

    Who sends slowly burdens no round, and gives its turn to the next after a moment; it goes on without one.
    """

    def __init__(self, most: int = AT_A_TIME) -> None:
        self._free = asyncio.Semaphore(most)

    async def take(self) -> Turn:
        """One, as soon as it is free."""
        await self._free.acquire()
        return Turn(self._free)


class Turn:
    """That of one body."""

    def __init__(self, free: asyncio.Semaphore) -> None:
        self._free = free
        self._ended = False
        self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self.end)

    def end(self) -> None:
        """Gives it to the next, once."""
        if not self._ended:
            self._ended = True
            self._timer.cancel()
            self._free.release()


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

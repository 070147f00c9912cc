"""The load, in a process of its own: cheap connections that ask over and over, or at a fixed rate, and what they were told.

    python -m benchmarks.service.load_generator < job.json > told.json

A job is the fields of `LoadJob`, its body in a file; what is told is the fields of `LoadResult`. Nothing here knows what a forecast is.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_BODIES = 100  # different ones, that are told apart
_RECONNECT_DELAY_S = 0.02  # before a connection that was lost is made again


@dataclass(frozen=True)
class LoadJob:
    """What to ask.

    Attributes:
        port: Of 127.0.0.1.
        path: Of the request.
        body: A file with it; none is a GET.
        headers: Beside host and length.
        connections: At the same time.
        seconds: How long.
        count: Or how many in all.
        rate: Requests a second in all, whatever becomes of those before; 0: each connection asks again when it was told.
        bodies: Whether different answers are counted.
        patience_s: After which an answer counts as lost.
    """

    port: int
    path: str
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    connections: int = 1
    seconds: float = 5.0
    count: int = 0
    rate: float = 0.0
    count_bodies: bool = False
    timeout_s: float = 60.0


@dataclass
class LoadResult:
    """What came back.

    Attributes:
        seconds: From the first request to the last answer.
        statuses: Answers by status.
        lost: Requests without an answer: the connection was refused or cut, or patience was over.
        took: Seconds of each answer, in order of their coming.
        ended: When each came, in seconds from the start.
        bodies: How often each different answer came; of the first hundred.
    """

    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    latencies: list[float] = field(default_factory=list)
    finished_at: list[float] = field(default_factory=list)
    bodies: Counter[str] = field(default_factory=Counter)


class HttpConnection(asyncio.Protocol):
    """One connection, one request at a time; reads as much of HTTP as a server of ours or of others writes."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._buffer = bytearray()
        self._waiting: asyncio.Future[tuple[str, bytes]] | None = None

    def connection_made(self, transport: Any) -> None:
        """Takes what to write to."""
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        """Whoever waits for an answer gets none."""
        self._transport = None
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionResetError())

    @property
    def is_usable(self) -> bool:
        """Whether it may be asked again."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Ends it."""
        if self._transport is not None:
            self._transport.close()

    async def send(self, request: bytes) -> tuple[str, bytes]:
        """The status and the body of the answer."""
        self._buffer.clear()
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiting

    def data_received(self, data: bytes) -> None:
        """Takes a part of an answer."""
        self._buffer += data
        found = parse_response(self._buffer)
        if found is not None and self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(found)


def parse_response(buffer: bytearray) -> tuple[str, bytes] | None:
    """The status and the body of an answer that is there from end to end; None if more must come."""
    head = buffer.find(b"\r\n\r\n")
    if head < 0:
        return None
    lines = bytes(buffer[:head]).lower()
    place = lines.find(b"\r\ncontent-length:")
    if place >= 0:
        length = int(lines[place + 17 :].split(b"\r\n", 1)[0])
        body = bytes(buffer[head + 4 : head + 4 + length])
        return (lines[9:12].decode(), body) if len(body) == length else None
    if b"chunked" in lines:
        return (lines[9:12].decode(), bytes(buffer[head + 4 :])) if buffer.endswith(b"0\r\n\r\n") else None
    raise ValueError(f"Expected an answer with a length; found {lines[:300]!r}.")


class LoadGenerator:
    """A job under way."""

    def __init__(self, job: LoadJob) -> None:
        body = b"" if job.body is None else Path(job.body).read_bytes()
        lines = [f"{'GET' if job.body is None else 'POST'} {job.path} HTTP/1.1", f"host: 127.0.0.1:{job.port}"]
        lines += [f"{name}: {value}" for name, value in job.headers.items()] + [f"content-length: {len(body)}"]
        self._request = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        self._job, self._told = job, LoadResult()
        self._began = 0.0
        self._left = job.count or sys.maxsize

    async def run(self) -> LoadResult:
        """All of it."""
        self._began = time.perf_counter()
        await (self._run_at_rate() if self._job.rate else self._run_closed_loop())
        self._told.seconds = time.perf_counter() - self._began
        return self._told

    @property
    def _is_finished(self) -> bool:
        return self._left <= 0 or (not self._job.count and time.perf_counter() - self._began >= self._job.seconds)

    async def _run_closed_loop(self) -> None:
        await asyncio.gather(*(self._run_client() for _ in range(self._job.connections)))

    async def _run_client(self) -> None:
        connection: HttpConnection | None = None
        while not self._is_finished:
            self._left -= 1
            connection = await self._send_once(connection)
        if connection is not None:
            connection.close()

    async def _run_at_rate(self) -> None:
        """Each at its moment, on a connection of its own: so each is answered by whichever process takes it."""
        tasks = []
        for number in range(int(self._job.rate * self._job.seconds)):
            await asyncio.sleep(max(0.0, self._began + number / self._job.rate - time.perf_counter()))
            tasks.append(asyncio.create_task(self._send_on_new_connection()))
        await asyncio.gather(*tasks)

    async def _send_on_new_connection(self) -> None:
        connection = await self._send_once(None)
        if connection is not None:
            connection.close()

    async def _send_once(self, connection: HttpConnection | None) -> HttpConnection | None:
        """One request; answers the connection that may be used again."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._job.timeout_s):
                if connection is None or not connection.is_usable:
                    connection = await self._connect()
                status, body = await connection.send(self._request)
        except (OSError, TimeoutError):
            self._told.lost += 1
            if connection is not None:
                connection.close()
            await asyncio.sleep(_RECONNECT_DELAY_S)
            return None
        now = time.perf_counter()
        self._told.latencies.append(now - began)
        self._told.finished_at.append(now - self._began)
        self._told.statuses[status] += 1
        if self._job.count_bodies and (len(self._told.bodies) < MAX_BODIES or body.decode() in self._told.bodies):
            self._told.bodies[body.decode()] += 1
        return connection

    async def _connect(self) -> HttpConnection:
        connect: Callable[..., Any] = asyncio.get_running_loop().create_connection
        _, connection = await connect(HttpConnection, "127.0.0.1", self._job.port)
        made: HttpConnection = connection
        return made


def main() -> None:
    """Reads a job and writes what came back."""
    job = LoadJob(**json.load(sys.stdin))
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    json.dump(vars(run(LoadGenerator(job).run())), sys.stdout)


if __name__ == "__main__":
    main()

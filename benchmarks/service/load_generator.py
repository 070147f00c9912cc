"""Load generator in a separate process: cheap connections that send requests repeatedly or at a fixed rate.

    python -m benchmarks.service.load_generator < job.json > result.json

The job has the fields of `LoadJob`, with the body in a file; the result has the fields of `LoadResult`. The module knows
nothing about forecasts.
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

MAX_BODIES = 100  # number of different bodies that are counted
_RECONNECT_DELAY_S = 0.02  # pause before a lost connection is replaced


@dataclass(frozen=True)
class LoadJob:
    """The requests to send.

    Attributes:
        port: Port on 127.0.0.1.
        path: Path of the request.
        body: File with the body; the request is a GET if None.
        headers: Headers besides host and length.
        connections: Number of concurrent connections.
        seconds: Duration of the load.
        count: Total number of requests; replaces the duration if not 0.
        rate: Requests per second in total, independent of the responses. If 0, each connection sends again after each response.
        count_bodies: Whether to count different response bodies.
        timeout_s: Seconds after which a response counts as lost.
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
    """The responses.

    Attributes:
        seconds: From the first request to the last response.
        statuses: Number of responses by status.
        lost: Requests without a response: the connection was refused or closed, or the request timed out.
        latencies: Seconds of each response, in order of arrival.
        finished_at: Arrival of each response, in seconds from the start.
        bodies: How often each different body was received; limited to the first `MAX_BODIES` bodies.
    """

    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    latencies: list[float] = field(default_factory=list)
    finished_at: list[float] = field(default_factory=list)
    bodies: Counter[str] = field(default_factory=Counter)


class HttpConnection(asyncio.Protocol):
    """A connection with one request at a time; parses as much of HTTP as the measured servers send."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._buffer = bytearray()
        self._pending: asyncio.Future[tuple[str, bytes]] | None = None

    def connection_made(self, transport: Any) -> None:
        """Stores the transport."""
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        """Fails the pending request."""
        self._transport = None
        if self._pending is not None and not self._pending.done():
            self._pending.set_exception(ConnectionResetError())

    @property
    def is_usable(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Closes the connection."""
        if self._transport is not None:
            self._transport.close()

    async def send(self, request: bytes) -> tuple[str, bytes]:
        """Sends a request; returns the status and the body of the response."""
        self._buffer.clear()
        self._pending = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._pending

    def data_received(self, data: bytes) -> None:
        """Adds a part of a response."""
        self._buffer += data
        response = parse_response(self._buffer)
        if response is not None and self._pending is not None and not self._pending.done():
            self._pending.set_result(response)


def parse_response(buffer: bytearray) -> tuple[str, bytes] | None:
    """Returns the status and the body of a complete response; None if it is incomplete."""
    head_end = buffer.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    lines = bytes(buffer[:head_end]).lower()
    length_start = lines.find(b"\r\ncontent-length:")
    if length_start >= 0:
        length = int(lines[length_start + 17 :].split(b"\r\n", 1)[0])
        body = bytes(buffer[head_end + 4 : head_end + 4 + length])
        return (lines[9:12].decode(), body) if len(body) == length else None
    if b"chunked" in lines:
        return (lines[9:12].decode(), bytes(buffer[head_end + 4 :])) if buffer.endswith(b"0\r\n\r\n") else None
    raise ValueError(f"Expected a response with a length; found {lines[:300]!r}.")


class LoadGenerator:
    """Runs a job."""

    def __init__(self, job: LoadJob) -> None:
        body = b"" if job.body is None else Path(job.body).read_bytes()
        lines = [f"{'GET' if job.body is None else 'POST'} {job.path} HTTP/1.1", f"host: 127.0.0.1:{job.port}"]
        lines += [f"{name}: {value}" for name, value in job.headers.items()] + [f"content-length: {len(body)}"]
        self._request = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        self._job, self._result = job, LoadResult()
        self._started_at = 0.0
        self._left = job.count or sys.maxsize

    async def run(self) -> LoadResult:
        """Runs the job to its end."""
        self._started_at = time.perf_counter()
        await (self._run_at_rate() if self._job.rate else self._run_closed_loop())
        self._result.seconds = time.perf_counter() - self._started_at
        return self._result

    @property
    def _is_finished(self) -> bool:
        return self._left <= 0 or (not self._job.count and time.perf_counter() - self._started_at >= self._job.seconds)

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
        """Sends each request at its time on a new connection, so that any worker process may accept it."""
        tasks = []
        for number in range(int(self._job.rate * self._job.seconds)):
            await asyncio.sleep(max(0.0, self._started_at + number / self._job.rate - time.perf_counter()))
            tasks.append(asyncio.create_task(self._send_on_new_connection()))
        await asyncio.gather(*tasks)

    async def _send_on_new_connection(self) -> None:
        connection = await self._send_once(None)
        if connection is not None:
            connection.close()

    async def _send_once(self, connection: HttpConnection | None) -> HttpConnection | None:
        """Sends one request; returns the connection if it is reusable."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._job.timeout_s):
                if connection is None or not connection.is_usable:
                    connection = await self._connect()
                status, body = await connection.send(self._request)
        except (OSError, TimeoutError):
            self._result.lost += 1
            if connection is not None:
                connection.close()
            await asyncio.sleep(_RECONNECT_DELAY_S)
            return None
        now = time.perf_counter()
        self._result.latencies.append(now - started)
        self._result.finished_at.append(now - self._started_at)
        self._result.statuses[status] += 1
        if self._job.count_bodies and (len(self._result.bodies) < MAX_BODIES or body.decode() in self._result.bodies):
            self._result.bodies[body.decode()] += 1
        return connection

    async def _connect(self) -> HttpConnection:
        connect: Callable[..., Any] = asyncio.get_running_loop().create_connection
        _, connection = await connect(HttpConnection, "127.0.0.1", self._job.port)
        typed_connection: HttpConnection = connection
        return typed_connection


def main() -> None:
    """Reads a job and writes its result."""
    job = LoadJob(**json.load(sys.stdin))
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    json.dump(vars(run(LoadGenerator(job).run())), sys.stdout)


if __name__ == "__main__":
    main()

"""Connections within limits: heads, bodies and readers without progress are closed, and nobody is locked out."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from serving.asgi import connections
from serving.asgi.connections import ConnectionLimits, limit_connections


class LimitedServer(NamedTuple):
    """A server with limits, in a thread, and the reasons for which it closed connections."""

    port: int
    limits: ConnectionLimits
    reasons: Counter[str]

    def connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        client.settimeout(10)
        return client

    def exchange(self, data: bytes) -> bytes:
        """Sends bytes on a new connection and returns what is received until it is closed."""
        with self.connect() as client:
            with suppress(OSError):
                client.sendall(data)
            return receive_all(client)


def receive_all(client: socket.socket) -> bytes:
    received = bytearray()
    with suppress(ConnectionError):
        while data := client.recv(1 << 20):
            received += data
    return bytes(received)


async def echo_application(scope: Scope, receive: Receive, send: Send) -> None:
    """Responds with the size of the body; /large responds with 64 MiB, and /early before it reads the body."""
    if scope["type"] != "http":
        return
    size, more_body = 0, scope["path"] != "/early"
    while more_body:
        message = await receive()
        size, more_body = size + len(message.get("body", b"")), message.get("more_body", False)
    content = bytes(1 << 26) if scope["path"] == "/large" else str(size).encode()
    headers = [(b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for first in range(0, len(content), 1 << 18):
        body = content[first : first + (1 << 18)]
        await send({"type": "http.response.body", "body": body, "more_body": first + (1 << 18) < len(content)})


@pytest.fixture
def start_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LimitedServer]]:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.3)
    monkeypatch.setattr(connections, "RATE_GRACE_S", 0.3)
    monkeypatch.setattr(connections, "SEND_TIMEOUT_S", 0.3)
    monkeypatch.setattr(connections, "SWEEP_INTERVAL_S", 0.05)
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(max_connections: int = 100) -> LimitedServer:
        reasons: Counter[str] = Counter()
        limits = ConnectionLimits(max_connections, count_closed=lambda reason: reasons.update([reason]))
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            echo_application, http=limit_connections(limits), lifespan="off", log_config=None, timeout_keep_alive=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        servers.append((server, thread))
        return LimitedServer(listener.getsockname()[1], limits, reasons)

    yield start
    for server, thread in servers:
        server.should_exit = server.force_exit = True
        thread.join(10)
        assert not thread.is_alive()


def request(path: str = "/", *headers: str, body: bytes = b"", close: bool = True) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", *headers]
    lines += (
        [] if any(header.startswith("transfer-encoding") for header in headers) else [f"content-length: {len(body)}"]
    )
    lines += ["connection: close"] if close else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def parse_response(response: bytes) -> tuple[int, Any]:
    head, _, body = response.partition(b"\r\n\r\n")
    return int(head[9:12]), json.loads(body)


CHUNKED = "transfer-encoding: chunked"


MALFORMED_REQUESTS = [
    (request("/", "x: " + "a" * 70_000), 431, "head_too_large"),
    (b"GET / HTTP/1.1\r\nx: " + b"a" * 3_000_000, 431, "head_too_large"),
    (request("/" + "a" * 70_000), 431, "head_too_large"),
    (request("/", *(f"x{number}: 1" for number in range(101))), 431, "head_too_large"),
    (b"GET / HTTP/1.1\r\n" + b"x: 1\r\n" * 9_000, 431, "head_too_large"),
    (b"nonsense\r\n\r\n", 400, "malformed_http"),
    (b"\x16\x03\x01\x02\x00\x01\x00", 400, "malformed_http"),
    (request("/", CHUNKED, body=b"1;x=" + b"a" * 300_000 + b"\r\na\r\n0\r\n\r\n"), 400, "malformed_http"),
    (request("/", CHUNKED, body=b"0\r\nx: " + b"a" * 300_000 + b"\r\n\r\n"), 400, "malformed_http"),
    (request("/", CHUNKED, body=(b"1;" + b"x" * 90 + b"\r\na\r\n") * 3_000 + b"0\r\n\r\n"), 400, "malformed_http"),
]


@pytest.mark.parametrize(
    ("data", "status", "code"),
    MALFORMED_REQUESTS,
    ids=lambda value: value[:20].decode("latin-1") if isinstance(value, bytes) else str(value),
)
def test_what_is_too_large_or_malformed_is_rejected_in_the_error_format(
    start_server: Callable[..., LimitedServer], data: bytes, status: int, code: str
) -> None:
    server = start_server()
    received_status, fields = parse_response(server.exchange(data))
    assert (received_status, fields["error"]["code"]) == (status, code)
    assert set(fields["error"]) == {"code", "message", "where"}
    assert server.reasons == {code.replace("_", " "): 1}
    assert parse_response(server.exchange(request())) == (200, 0), "the next client is served"


@pytest.mark.parametrize(
    "data",
    [
        request(body=b"a" * 1_000_000),
        request("/", *(f"x{number}: {'a' * 600}" for number in range(90)), body=b"a" * 1_000_000),
        request("/", CHUNKED, body=b"1\r\na\r\n" * 1_000_000 + b"0\r\n\r\n"),
        b"\r\n\r\n" + request(body=b"a" * 1_000_000),
    ],
    ids=["a large body", "large headers", "chunks of one byte", "blank lines first"],
)
def test_unusual_requests_within_the_limits_are_served(start_server: Callable[..., LimitedServer], data: bytes) -> None:
    assert parse_response(start_server().exchange(data)) == (200, 1_000_000)


def test_several_requests_share_a_connection(start_server: Callable[..., LimitedServer]) -> None:
    server = start_server()
    responses = server.exchange(
        request(close=False) * 2 + request("/early", body=b"a" * 300_000, close=False) + request()
    )
    assert responses.count(b"HTTP/1.1 200") == 4
    assert server.reasons == {}


@pytest.mark.parametrize(
    ("start", "drip", "reason"),
    [
        (b"", b"", "slow head"),
        (b"GET / HT", b"", "slow head"),
        (b"GET / HTTP/1.1\r\n", b"x: 1\r\n", "slow head"),
        (b"", b"\r\n", "slow head"),
        (request(body=b"a" * 1000)[:-900], b"a", "slow body"),
    ],
    ids=["nothing", "part of a line", "headers", "blank lines", "a body"],
)
def test_a_connection_without_progress_is_closed(
    start_server: Callable[..., LimitedServer], start: bytes, drip: bytes, reason: str
) -> None:
    server = start_server()
    with server.connect() as client, suppress(ConnectionError):
        client.sendall(start)
        started_at = time.monotonic()
        while not server.reasons and time.monotonic() - started_at < 10:
            time.sleep(0.05)
            client.sendall(drip)
    assert server.reasons == {reason: 1}


def test_a_client_that_does_not_read_is_disconnected(start_server: Callable[..., LimitedServer]) -> None:
    server = start_server()
    with server.connect() as client:
        client.sendall(request("/large"))
        started_at = time.monotonic()
        while not server.reasons and time.monotonic() - started_at < 10:
            time.sleep(0.05)
    assert server.reasons == {"slow reader": 1}
    assert len(server.exchange(request("/large"))) > 1 << 26, "a client that reads receives everything"


def test_idle_connections_make_room_and_requests_in_progress_keep_theirs(
    start_server: Callable[..., LimitedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 60.0)
    monkeypatch.setattr(connections, "RATE_GRACE_S", 60.0)
    server = start_server(max_connections=3)
    idle = [server.connect() for _ in range(3)]
    time.sleep(0.2)
    assert parse_response(server.exchange(request())) == (200, 0)
    assert receive_all(idle[0]) == b"", "the oldest idle connection was closed"
    active = [server.connect() for _ in range(3)]
    for client in active:
        client.sendall(request(body=b"a" * 10)[:-1])
    time.sleep(0.2)
    status, fields = parse_response(server.exchange(b""))
    assert (status, fields["error"]["code"]) == (503, "too_many_requests")
    for client in active:
        client.sendall(b"a")
        assert parse_response(receive_all(client)) == (200, 10)
    for client in (*idle, *active):
        client.close()
    assert server.reasons["too many connections"] == 3


def test_the_number_of_connections_leaves_descriptors_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (256, 256))
    assert ConnectionLimits(1000).max_connections == 192
    assert ConnectionLimits(100).max_connections == 100

"""Hostile bytes instead of HTTP, against a server process: rejected in the error format, or the connection is closed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.serving.asgi.test_connections import MALFORMED_REQUESTS, request
from tests.system.hostile.target import GOOD_BODY, Target

pytestmark = pytest.mark.integration

CHUNKED = "transfer-encoding: chunked"
_STATUS_LINE = re.compile(rb"^HTTP/1\.1 (\d{3})", re.MULTILINE)


def check_rejected(response: bytes) -> None:
    """A rejection is a 4xx, or no response at all."""
    statuses = [int(status) for status in _STATUS_LINE.findall(response)]
    assert all(400 <= status < 500 for status in statuses), response[:300]
    if statuses and b"application/json" in response:
        assert set(json.loads(response.rpartition(b"\r\n\r\n")[2])["error"]) == {"code", "message", "where"}


@pytest.mark.parametrize(("data", "status", "code"), MALFORMED_REQUESTS)
def test_what_the_protocol_rejects_blocks_nobody(target: Target, data: bytes, status: int, code: str) -> None:
    with target.watched():
        response = target.exchange(data)
    assert response.startswith(f"HTTP/1.1 {status}".encode())
    assert json.loads(response.partition(b"\r\n\r\n")[2])["error"]["code"] == code


HUGE_HEADS: dict[str, Callable[[], bytes]] = {
    "60 MB in one header": lambda: b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 60_000_000 + b"\r\n\r\n",
    "100,000 headers": lambda: b"GET /livez HTTP/1.1\r\nhost: localhost\r\n" + b"x: 1\r\n" * 100_000 + b"\r\n",
    "a path of 20 MB": lambda: b"GET /" + b"a" * 20_000_000 + b" HTTP/1.1\r\n\r\n",
    "a query of 20 MB": lambda: b"GET /livez?" + b"a=1&" * 5_000_000 + b" HTTP/1.1\r\n\r\n",
    "a method of 20 MB": lambda: b"G" * 20_000_000,
    "20 MB of blank lines": lambda: b"\r\n" * 10_000_000,
    "a chunk extension of 20 MB": lambda: request("/v1/forecast", CHUNKED, body=b"1;x=" + b"a" * 20_000_000),
    "a trailer of 20 MB": lambda: request("/v1/forecast", CHUNKED, body=b"0\r\nx: " + b"a" * 20_000_000),
    "100,000 trailers": lambda: request("/v1/forecast", CHUNKED, body=b"0\r\n" + b"x: 1\r\n" * 100_000 + b"\r\n"),
    "extensions of 200,000 chunks": lambda: request(
        "/v1/forecast", CHUNKED, body=(b"1;" + b"x" * 90 + b"\r\n \r\n") * 200_000
    ),
    "chunks of one byte": lambda: request("/v1/forecast", CHUNKED, body=b"1\r\n \r\n" * 3_000_000),
    "a chunk size of 16 digits": lambda: request("/v1/forecast", CHUNKED, body=b"f" * 16 + b"\r\n" + b" " * 20_000_000),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if index < 2 else pytest.mark.nightly) for index, name in enumerate(HUGE_HEADS)],
)
def test_huge_heads_and_overheads_block_nobody(target: Target, name: str) -> None:
    data = HUGE_HEADS[name]()
    with target.watched():
        check_rejected(target.exchange(data))


@pytest.mark.parametrize(
    "data",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET\t/livez\tHTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost : localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx\x00y: 1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: \x00\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\n folded: 1\r\n\r\n",
        b"\x00" * 100_000,
        b"POST /v1/forecast HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/forecast HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"POST /v1/forecast HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/forecast HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/forecast HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/forecast HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip, nonsense\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET http://evil.example/v1/model HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n",
        b"GET /v1/model HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n",
        b"GET /v1/model HTTP/1.1\r\nconnection: close\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    ],
    ids=range(20),
)
def test_malformed_or_foreign_requests_are_rejected(target: Target, data: bytes) -> None:
    with target.watched():
        check_rejected(target.exchange(data))


def test_thousands_of_requests_on_one_connection_block_nobody(target: Target) -> None:
    pipelined = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n" * 3000
    last = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    with target.watched():
        response = target.exchange(pipelined + last)
    assert response.count(b"HTTP/1.1 200") == 3001


@pytest.mark.nightly
def test_thousands_of_short_connections_block_nobody(target: Target) -> None:
    """Clients that connect and leave: at once, within the head, within the body, or before the response."""
    body = request("/v1/forecast", "content-type: application/json", body=GOOD_BODY, close=False)
    with target.watched():
        ends_at = time.monotonic() + 5
        while time.monotonic() < ends_at:
            for data in (b"", body[:20], body[:-10], body):
                with target.connect() as client, suppress(OSError):
                    client.sendall(data)

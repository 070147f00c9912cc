"""Clients that send or read slowly, or nothing, against a server process with 256 descriptors."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import pytest

from serving.asgi import connections
from tests.serving.asgi.test_connections import request
from tests.system.hostile.target import GOOD_BODY, MAX_DESCRIPTORS, SERIES, Target
from tests.system.processes import wait_until

pytestmark = pytest.mark.integration

CONNECTION_COUNT = 300  # more than the server has descriptors


def open_connections(stack: ExitStack, target: Target, count: int, first: bytes) -> list[socket.socket]:
    """Opens connections that send some bytes; they are closed with the stack."""
    clients = []
    for _ in range(count):
        client = stack.enter_context(target.connect())
        with suppress(OSError):
            client.sendall(first)
        clients.append(client)
    return clients


def is_closed(client: socket.socket) -> bool:
    """Reads what a connection has received, and returns whether the server has closed it."""
    client.setblocking(False)
    try:
        while client.recv(1 << 16):
            pass
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def count_open(clients: Sequence[socket.socket]) -> int:
    return sum(not is_closed(client) for client in clients)


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"GET /livez HTTP/1.1\r\nx: ",
        pytest.param(
            request("/v1/forecast", "content-type: application/json", body=GOOD_BODY, close=False)[:-1],
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["nothing", "part of a head", "part of a body"],
)
def test_more_connections_than_descriptors_lock_nobody_out(target: Target, first: bytes) -> None:
    with ExitStack() as stack:
        clients = open_connections(stack, target, CONNECTION_COUNT, first)
        if b"POST" not in first:  # requests in progress keep their connections until the rate limit closes them
            with target.watched():
                for _ in range(5):
                    assert target.forecast().status == 200
        wait_until(lambda: count_open(clients) < MAX_DESCRIPTORS, seconds=5)
    time.sleep(0.2)
    with target.watched():
        assert target.forecast().status == 200


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("first", "drip", "reason"),
    [
        (b"", b"", "slow head"),
        (b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: ", b"a", "slow head"),
        (b"", b"\r\n", "slow head"),
        (request("/v1/forecast", body=b" " * 100_000, close=False)[:-99_990], b" ", "slow body"),
        (request("/v1/forecast", "transfer-encoding: chunked", body=b"1\r\n \r\n"), b"1\r\n \r\n", "slow body"),
    ],
    ids=["nothing", "a header", "blank lines", "a body", "chunks"],
)
def test_connections_that_drip_are_closed(target: Target, first: bytes, drip: bytes, reason: str) -> None:
    before = target.count_closed(reason)
    with ExitStack() as stack, target.watched():
        clients = open_connections(stack, target, 100, first)
        ends_at = time.monotonic() + 2 * (connections.HEAD_TIMEOUT_S + connections.SWEEP_INTERVAL_S)
        while count_open(clients) and time.monotonic() < ends_at:
            for client in clients:
                with suppress(OSError):
                    client.sendall(drip)
            assert target.forecast().status == 200
            time.sleep(0.5)
        assert count_open(clients) == 0
    assert target.count_closed(reason) - before == 100


@pytest.mark.nightly
def test_clients_that_do_not_read_hold_no_memory_for_long(target: Target) -> None:
    series = [{**SERIES, "id": str(number)} for number in range(1000)]
    body = json.dumps({"series": series, "horizon": 400}).encode()  # a response of 17 MB
    for _ in range(3):  # what the allocator keeps of such a response is kept once, not for every client
        assert target.request("/v1/forecast", body=body).status == 200
    before, memory = target.count_closed("slow reader"), target.worker.memory_info().rss
    with ExitStack() as stack, target.watched():
        data = request("/v1/forecast", "content-type: application/json", body=body, close=False)
        clients = open_connections(stack, target, 10, data)
        ends_at = time.monotonic() + 2 * connections.SEND_TIMEOUT_S + 30
        while target.count_closed("slow reader") - before < len(clients) and time.monotonic() < ends_at:
            assert target.forecast().status == 200
            time.sleep(1)
    assert target.count_closed("slow reader") - before == len(clients)
    assert target.worker.memory_info().rss - memory < 200e6

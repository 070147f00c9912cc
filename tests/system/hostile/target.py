"""A server process under attack, and a probe that measures its `/livez` from other connections all the while."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from serving.settings import Settings
from tests.serving.test_service import publish_random_model
from tests.system.processes import free_port, process_tree, start_process, wait_until

MAX_LIVEZ_S = 1.0
MAX_DESCRIPTORS = 256  # a common limit of a process; 300 connections exceed it
JSON_HEADERS = {"content-type": "application/json"}
SERIES = {"id": "a", "start": "2026-01-01T00:00:00Z", "freq": "h", "y": [float(value) for value in range(24)]}
GOOD_BODY = json.dumps({"series": [SERIES], "horizon": 2}).encode()
_MAX_PEAK_BYTES = 1 << 30  # of one worker during an attack; three megabytes of errors once took four gigabytes
_SERVER = (
    "import resource, runpy, sys; sys.argv = ['serving']; "
    f"resource.setrlimit(resource.RLIMIT_NOFILE, ({MAX_DESCRIPTORS}, {MAX_DESCRIPTORS})); "
    "runpy.run_module('serving', run_name='__main__')"
)


class Reply(NamedTuple):
    """A response: its status, and its body if that is JSON."""

    status: int
    fields: Any


class Target(NamedTuple):
    """A running server with one worker, its slot and its log."""

    port: int
    slot: Path
    log: Path
    pid: int

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def exchange(self, data: bytes) -> bytes:
        """Sends bytes on a new connection, and returns what is received until it is closed or silent for two seconds."""
        received = bytearray()
        with self.connect() as client:
            with suppress(OSError):  # the server may close the connection before it has read everything
                client.sendall(data)
            client.settimeout(2)
            with suppress(OSError):
                while data := client.recv(1 << 16):
                    received += data
        return bytes(received)

    def request(self, path: str, body: bytes | None = None, headers: Mapping[str, str] = JSON_HEADERS) -> Reply:
        """Sends a request on a new connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET" if body is None else "POST", path, body=body, headers=dict(headers))
            return _read_reply(connection)
        finally:
            connection.close()

    def forecast(self) -> Reply:
        """Sends a small request, as a client that attacks nobody."""
        return self.request("/v1/forecast", GOOD_BODY)

    @property
    def metrics(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def count_closed(self, reason: str) -> float:
        """Returns how many connections the worker closed for a reason."""
        prefix = f'forecaster_connections_closed_total{{reason="{reason}"}} '
        return sum(float(line.removeprefix(prefix)) for line in self.metrics.splitlines() if line.startswith(prefix))

    @property
    def worker(self) -> psutil.Process:
        return next(
            process
            for process in process_tree(self.pid)
            if "_bentoml_impl.worker.service" in " ".join(process.cmdline())
        )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block, `/livez` responds within a second; afterwards a forecast succeeds, and memory was bounded."""
        durations: list[float] = []
        errors: list[str] = []
        stop = threading.Event()
        Path(f"/proc/{self.worker.pid}/clear_refs").write_text("5")  # the peak counts from here

        def probe() -> None:
            while not stop.is_set():
                started_at = time.monotonic()
                try:
                    status = self.request("/livez").status
                    errors.extend([] if status == 200 else [f"status {status}"])
                except OSError as error:
                    errors.append(repr(error))
                durations.append(time.monotonic() - started_at)
                stop.wait(0.02)

        thread = threading.Thread(target=probe, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(60)
        assert errors == []
        assert durations
        assert max(durations) < MAX_LIVEZ_S, f"/livez took {max(durations):.2f} s"
        assert self.forecast().status == 200
        assert _read_peak_bytes(self.worker.pid) < _MAX_PEAK_BYTES


def _read_reply(connection: http.client.HTTPConnection) -> Reply:
    response = connection.getresponse()
    content = response.read()
    return Reply(response.status, json.loads(content) if content.startswith(b"{") and b"\n{" not in content else None)


def _read_peak_bytes(pid: int) -> int:
    """Returns the largest memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@contextmanager
def running_target(folder: Path, **fields: Any) -> Iterator[Target]:
    """Runs a server with a small network, and checks that it stops by itself on SIGTERM and that it logged no traceback."""
    slot, log = folder / "slot", folder / "server.log"
    publish_random_model(slot, version="1", seed=1)
    settings = Settings(slot=slot, port=free_port(), reload_s=0.1, grace_s=3, **fields)
    with start_process(["-c", _SERVER], folder, log=log, **settings.to_environment()) as process:
        target = Target(settings.port, slot, log, process.pid)

        def is_ready() -> bool:
            assert process.poll() is None, log.read_text()[-3000:]
            with suppress(OSError):
                return target.request("/readyz").status == 200
            return False

        wait_until(is_ready, seconds=60, pause=0.1)
        yield target
        process.terminate()
        assert process.wait(20) == 0
    # The worker logs why a slot cannot be checked, with the traceback; nothing else may raise.
    lines = [
        line for line in log.read_text().splitlines() if "Traceback" in line and "serving.deployment.slot" not in line
    ]
    assert not lines, lines[0][:3000]

"""Slots, registries and ledgers that are damaged, refuse, hang or send single bytes: forecasts go on, and commands end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.slow_servers import dripping_server, silent_server
from tests.system.hostile.target import Target, running_target
from tests.system.processes import free_port, run_forecaster, wait_until

pytestmark = pytest.mark.integration

COMMAND_LIMIT_S = 15.0
_START_S = 10.0  # of an interpreter and MLflow, on a busy machine


@contextmanager
def slow_store(kind: str) -> Iterator[str]:
    """Yields the address of a store on this machine that refuses, hangs or drips."""
    scheme = "postgresql+psycopg://test:test" if kind.startswith("PostgreSQL") else "http://"
    separator, path = ("@", "/mlflow") if scheme.startswith("postgresql") else ("", "")
    if kind.endswith("drips"):
        with dripping_server() as address:
            yield f"{scheme}{separator}{address.removeprefix('http://')}{path}"
    elif kind.endswith("hangs"):
        with silent_server() as port:
            yield f"{scheme}{separator}127.0.0.1:{port}{path}"
    else:
        yield f"{scheme}{separator}127.0.0.1:{free_port()}{path}"


def test_a_loop_of_links_in_the_slot_stops_nobody(target: Target) -> None:
    link, right = target.slot / "current", str((target.slot / "current").readlink())

    def replace_link(destination: str) -> None:
        draft = target.slot / ".draft"
        draft.symlink_to(destination)
        draft.replace(link)

    with target.watched():
        replace_link("current")
        wait_until(lambda: target.request("/readyz").fields["slot"]["error"], seconds=10)
        assert target.forecast().status == 200
        replace_link(right)
        wait_until(lambda: target.request("/readyz").fields["slot"]["error"] is None, seconds=10)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["HTTP refuses", "HTTP hangs", "HTTP drips", "PostgreSQL hangs"])
def test_a_slow_registry_delays_no_forecast(kind: str, tmp_path: Path) -> None:
    with (
        slow_store(kind) as address,
        running_target(tmp_path, registry=address, model="tiny", poll_s=0.5) as target,
        target.watched(),
    ):

        def is_reported() -> bool:
            assert target.forecast().status == 200
            behind = target.request("/readyz").fields["follower"]["behind"]
            return behind.startswith("the registry could not be followed")

        wait_until(is_reported, seconds=60, pause=0.2)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["PostgreSQL refuses", "PostgreSQL hangs", "PostgreSQL drips"])
def test_a_slow_ledger_delays_no_forecast(kind: str, tmp_path: Path) -> None:
    with slow_store(kind) as address, running_target(tmp_path, ledger=address) as target, target.watched():
        for _ in range(50):
            started_at = time.monotonic()
            assert target.forecast().status == 200
            assert time.monotonic() - started_at < 1.0
            time.sleep(0.1)


@pytest.mark.nightly
@pytest.mark.parametrize("command", [("rollback", "small"), ("audit", "small"), ("promote", "small")])
@pytest.mark.parametrize("kind", ["HTTP refuses", "HTTP hangs", "HTTP drips", "PostgreSQL refuses", "PostgreSQL hangs"])
def test_a_command_on_a_slow_store_ends_in_one_line(kind: str, command: tuple[str, ...], tmp_path: Path) -> None:
    with slow_store(kind) as address:
        scheme, _, rest = address.rpartition("test:test@")
        started_at = time.monotonic()
        extra = {"PGUSER": "test", "PGPASSWORD": "test"} if rest != address else {}
        completed = run_forecaster(
            *command, "--tracking-uri", f"{scheme}{rest}", "--root", tmp_path / "root", folder=tmp_path, **extra
        )
        seconds = time.monotonic() - started_at
    assert completed.returncode == 1, completed.stderr
    lines = completed.stderr.splitlines()
    # `rollback` first names the command that does without the registry.
    assert len(lines) == (2 if command[0] == "rollback" else 1), completed.stderr
    assert all(line.startswith("forecaster: ") for line in lines), completed.stderr
    assert seconds < COMMAND_LIMIT_S + _START_S


@pytest.mark.nightly
def test_a_server_under_attack_stops_on_sigterm(tmp_path: Path) -> None:
    with running_target(tmp_path) as target:
        body = b" " * 4_000_000
        stop = threading.Event()

        def attack() -> None:
            while not stop.is_set():
                try:
                    target.request("/v1/forecast", body)
                except OSError:
                    stop.wait(0.1)

        threads = [threading.Thread(target=attack, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        started_at = time.monotonic()
        os.kill(target.pid, signal.SIGTERM)
        wait_until(lambda: not is_listening(target), seconds=20)
        assert time.monotonic() - started_at < 15
        stop.set()


def is_listening(target: Target) -> bool:
    try:
        target.connect().close()
    except OSError:
        return False
    return True

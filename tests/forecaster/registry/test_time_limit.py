"""The time limit of calls to stores on other machines."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from forecaster.errors import RegistryError
from forecaster.registry.download import download_file
from forecaster.registry.time_limit import MIN_BYTES_PER_S, RemoteClient, limit_time, measure_call_limit
from tests.slow_servers import dripping_server


def test_a_dripping_response_ends_at_the_limit() -> None:
    started = time.perf_counter()
    with (
        dripping_server() as address,
        pytest.raises(RegistryError, match="Expected the store 'x' to respond within 0 s"),
        limit_time("the store 'x'", limit_s=0.2),
    ):
        urlopen(address, timeout=5.0).read()
    assert time.perf_counter() - started < 2.0
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_library_that_catches_every_exception_does_not_hide_the_limit() -> None:
    def repeat_forever() -> None:
        while True:
            with contextlib.suppress(Exception):  # as MLflow does, before it tries again
                time.sleep(5.0)

    with pytest.raises(RegistryError), limit_time("the store", limit_s=0.05):
        repeat_forever()


def test_an_error_of_the_cleanup_does_not_replace_the_message() -> None:
    def close_a_busy_connection() -> None:
        try:
            time.sleep(5.0)
        finally:
            raise ValueError("the connection is busy")

    with pytest.raises(RegistryError, match="Expected the store to respond"), limit_time("the store", limit_s=0.05):
        close_a_busy_connection()
    with pytest.raises(ValueError, match="busy"), limit_time("the store", limit_s=5.0):
        raise ValueError("the connection is busy")


def test_a_block_within_the_limit_and_one_in_another_thread_are_not_interrupted() -> None:
    finished: list[str] = []

    def wait() -> None:
        with limit_time("the store", limit_s=0.01):
            time.sleep(0.05)
        finished.append("thread")

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    with limit_time("the store", limit_s=5.0), limit_time("the store", limit_s=0.01):  # the outer limit applies
        time.sleep(0.05)
    assert finished == ["thread"]


def test_the_limit_is_12_s_unless_the_user_allows_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.delenv(name, raising=False)
    assert measure_call_limit() == 12.0
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    assert measure_call_limit() == 122.0
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    assert measure_call_limit() == 12.0


def test_the_calls_of_a_remote_client_are_limited_and_uploads_get_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowClient:
        tracking_uri = "http://store"

        def log_artifacts(self, run_id: str, folder: str) -> float:
            return signal.getitimer(signal.ITIMER_REAL)[0]

        def get_run(self, run_id: str) -> None:
            left, right = socket.socketpair()
            with left, right:
                left.recv(1)

    monkeypatch.setattr("forecaster.registry.time_limit.measure_call_limit", lambda: 0.1)
    client = RemoteClient(SlowClient(), "the store")
    assert client.tracking_uri == "http://store"
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(20 * MIN_BYTES_PER_S)
    assert 15.0 < client.log_artifacts("run", str(tmp_path)) < 21.0
    with pytest.raises(RegistryError, match="the store"):
        client.get_run("run")


def test_a_download_runs_in_the_thread_that_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waits for a byte would keep the process from ending."""

    class SlowRepository:
        def _download_file(self, name: str, target: str) -> None:
            assert threading.current_thread() is threading.main_thread()
            time.sleep(5.0)

    monkeypatch.setattr("forecaster.registry.download._open_repository", lambda *_: SlowRepository())
    monkeypatch.setattr("forecaster.registry.time_limit.measure_call_limit", lambda: 0.05)
    with pytest.raises(RegistryError, match=r"Expected the store of the file 'verdict\.json' to respond"):
        download_file("http://store", "verdict.json", tmp_path / "text", uri="http://store", num_bytes=10)

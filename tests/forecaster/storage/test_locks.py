"""Lock files: one holder at a time, also when files are inherited or deleted."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from forecaster.storage.locks import open_locked


def test_a_lock_has_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "key.lock"
    with open_locked(path):
        started = time.monotonic()
        for timeout_s in (0.0, 0.05):
            with pytest.raises(BlockingIOError):
                open_locked(path, timeout_s=timeout_s)
        assert time.monotonic() - started >= 0.05
    with open_locked(path):
        pass


@pytest.mark.parametrize("timeout_s", [None, 10.0])
@pytest.mark.parametrize("deletes", [False, True])
def test_a_waiting_call_locks_the_file_that_then_exists(deletes: bool, timeout_s: float | None, tmp_path: Path) -> None:
    path, order, started = tmp_path / "key.lock", [], threading.Event()

    def wait_for_lock() -> None:
        started.set()
        with open_locked(path, timeout_s=timeout_s) as file:
            order.append("second")
            assert os.fstat(file.fileno()).st_ino == path.stat().st_ino

    thread = threading.Thread(target=wait_for_lock)
    with open_locked(path):
        thread.start()
        started.wait()
        thread.join(0.05)
        order.append("first")
        if deletes:
            path.unlink()
    thread.join()
    assert order == ["first", "second"]


def test_who_inherits_the_open_file_holds_the_lock_too(tmp_path: Path) -> None:
    path = tmp_path / "key.lock"
    with open_locked(path) as file:
        inherited = os.dup(file.fileno())  # as a child process does
    with pytest.raises(BlockingIOError):
        open_locked(path)
    os.close(inherited)
    open_locked(path).close()


def test_a_locked_file_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"one\n")
    with open_locked(path) as file:
        file.write(b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"

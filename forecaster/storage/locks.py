"""Locks among the processes of one machine, each held by an open file; the kernel releases a lock when its last holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import BinaryIO

_POLL_INTERVAL_S = 0.02


def open_locked(path: Path, *, timeout_s: float | None = 0.0) -> BinaryIO:
    """Opens a file for appending, creates it if it is missing, and holds its exclusive lock until the file is closed.

    A process that inherits the open file holds the lock too. A holder may delete the file: those that wait then lock a new one.

    Args:
        path: The file; its folder is created if it is missing.
        timeout_s: How long to wait for the lock; None waits without limit.
    Raises:
        BlockingIOError: Another process, or another call in this one, still holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        file = path.open("ab")
        try:
            _lock(file, deadline)
        except BaseException:
            file.close()
            raise
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # the previous holder deleted it, so its lock excludes nobody


def _lock(file: BinaryIO, deadline: float | None) -> None:
    if deadline is None:
        fcntl.flock(file, fcntl.LOCK_EX)
        return
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_POLL_INTERVAL_S)
        else:
            return

"""Ends the processes of a server whose launcher (`python -m serving`) was killed, so that they do not keep its port."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path

LAUNCHER_VARIABLE = "FORECASTER_LAUNCHER"  # process id, set by the launcher for its children
_POLL_INTERVAL_S = 1.0
_PROCESSES = Path("/proc")


def end_with_launcher(environ: Mapping[str, str], *, grace_s: float) -> None:
    """Watches the launcher that the environment names, in a background thread.

    Does nothing if the environment names none, or where there is no /proc to look it up in.

    When the launcher is gone, the process group of the caller gets SIGTERM, and SIGKILL after `grace_s` seconds. So does the
    server whose worker the caller is: it is the caller's parent, in a group of its own.
    """
    pid = environ.get(LAUNCHER_VARIABLE)
    if pid is not None and (_PROCESSES / "self/stat").exists():
        parent = os.getppid()
        arguments = (int(pid), _read_start_time(int(pid)), None if parent == int(pid) else parent, grace_s)
        threading.Thread(target=_watch, args=arguments, name="launcher", daemon=True).start()


def _watch(pid: int, started_at: str | None, server: int | None, grace_s: float) -> None:
    while started_at is not None and _read_start_time(pid) == started_at:
        time.sleep(_POLL_INTERVAL_S)
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        if server is not None and os.getppid() == server:
            os.kill(server, signal_number)
        os.killpg(os.getpgrp(), signal_number)
        time.sleep(grace_s)


def _read_start_time(pid: int) -> str | None:
    """Returns when a process started, in clock ticks since boot, because its id may be used again; None if it has ended."""
    try:
        fields = (_PROCESSES / f"{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    is_zombie = fields[0] == "Z"
    return None if is_zombie else fields[19]

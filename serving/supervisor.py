"""Starts the server and, where a registry is followed, the follower; ends both together. See `python -m serving`."""

from __future__ import annotations

import logging
import os
import signal
import site
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from serving.settings import Settings

_POLL_INTERVAL_S = 0.5  # between looks at the children
_RESTART_DELAY_S = 5.0  # before a follower that died is started again

log = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT, or until the server ends by itself; the exit code is 0 or the server's.

    Must be called in the main thread. The follower is started again whenever it dies: the server does not need it.
    """
    with tempfile.TemporaryDirectory(prefix="forecaster-serving-") as home, _stop_event_on_signals() as stop:
        server = _start_process(_server_command(settings), _server_environment(settings, Path(home)), Path(home))
        follower = _start_follower(settings)
        died: float | None = None
        try:
            while server.poll() is None and not stop.wait(_POLL_INTERVAL_S):
                if follower is None or follower.poll() is None:
                    continue
                if died is None:
                    died = time.monotonic()
                    log.warning("the follower ended with %s; the server goes on", follower.returncode)
                elif time.monotonic() - died > _RESTART_DELAY_S:
                    follower, died = _start_follower(settings), None
        finally:
            children = [child for child in (server, follower) if child is not None]
            _stop_processes(children, grace_s=settings.grace_s + 5.0)
        return 0 if stop.is_set() else server.returncode or 0


def _server_command(settings: Settings) -> list[str]:
    options = {"--host": settings.host, "--port": settings.port, "--timeout-graceful-shutdown": settings.grace_s}
    told = [str(part) for option in options.items() for part in option]
    return [sys.executable, "-m", "bentoml", "serve", "serving.service:ForecastService", *told]


def _start_follower(settings: Settings) -> subprocess.Popen[bytes] | None:
    if not settings.follows_registry:
        return None
    # In our working directory: the registry's address may be a relative path.
    return _start_process(
        [sys.executable, "-m", "serving.deployment.follower"], {**os.environ, **settings.to_environment()}, Path.cwd()
    )


def _start_process(
    command: list[str], environment: Mapping[str, str], working_directory: Path
) -> subprocess.Popen[bytes]:
    # In a session of its own, so that Ctrl-C reaches us alone, and what is left of it can be killed as a group.
    return subprocess.Popen(command, env=environment, cwd=working_directory, start_new_session=True)  # noqa: S603


def _server_environment(settings: Settings, bentoml_home: Path) -> dict[str, str]:
    """What the server's processes see.

    BentoML gets a home of its own, because it empties <home>/prometheus_multiproc_dir when it starts: two servers with
    one home would wipe each other's counters. It is its working directory too, so that neither a `serving` nor a
    `bentofile.yaml` that lies about is taken for ours.
    """
    ours = {
        **settings.with_state_key().to_environment(),
        "BENTOML_HOME": str(bentoml_home),
        "BENTOML_DO_NOT_TRACK": "true",
    }
    package = Path(__file__).resolve().parents[1]
    if str(package) not in [*site.getsitepackages(), site.getusersitepackages()]:  # a checkout
        ours["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **ours}


@contextmanager
def _stop_event_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    asked = threading.Event()

    def note(_: int, __: FrameType | None) -> None:
        asked.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _stop_processes(processes: list[subprocess.Popen[bytes]], *, grace_s: float) -> None:
    for child in processes:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + grace_s
    for child in processes:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("process %s did not end in time and is killed", child.pid)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # workers whose supervisor is gone
        child.wait()

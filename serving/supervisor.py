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

_LOOK_S = 0.5  # between looks at the children
_RESTART_S = 5.0  # before a follower that died is started again

log = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT, or until the server ends by itself; the exit code is 0 or the server's.

    Must be called in the main thread. The follower is started again whenever it dies: the server does not need it.
    """
    with tempfile.TemporaryDirectory(prefix="forecaster-serving-") as home, _asked_to_stop() as stop:
        server = _start(_server_command(settings), _environment(settings, Path(home)), Path(home))
        follower = _start_follower(settings)
        died: float | None = None
        try:
            while server.poll() is None and not stop.wait(_LOOK_S):
                if follower is None or follower.poll() is None:
                    continue
                if died is None:
                    died = time.monotonic()
                    log.warning("the follower ended with %s; the server goes on", follower.returncode)
                elif time.monotonic() - died > _RESTART_S:
                    follower, died = _start_follower(settings), None
        finally:
            children = [child for child in (server, follower) if child is not None]
            _end(children, grace_s=settings.grace_s + 5.0)
        return 0 if stop.is_set() else server.returncode or 0


def _server_command(settings: Settings) -> list[str]:
    options = {"--host": settings.host, "--port": settings.port, "--timeout-graceful-shutdown": settings.grace_s}
    told = [str(part) for option in options.items() for part in option]
    return [sys.executable, "-m", "bentoml", "serve", "serving.service:Forecasting", *told]


def _start_follower(settings: Settings) -> subprocess.Popen[bytes] | None:
    if not settings.follows:
        return None
    # In our working directory: the registry's address may be a relative path.
    return _start(
        [sys.executable, "-m", "serving.deployment.follower"], {**os.environ, **settings.environment()}, Path.cwd()
    )


def _start(command: list[str], environment: Mapping[str, str], folder: Path) -> subprocess.Popen[bytes]:
    # In a session of its own, so that Ctrl-C reaches us alone, and what is left of it can be killed as a group.
    return subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True)  # noqa: S603


def _environment(settings: Settings, home: Path) -> dict[str, str]:
    """What the server's processes see.

    BentoML gets a home of its own, because it empties <home>/prometheus_multiproc_dir when it starts: two servers with
    one home would wipe each other's counters. It is its working directory too, so that neither a `serving` nor a
    `bentofile.yaml` that lies about is taken for ours.
    """
    ours = {**settings.with_state_key().environment(), "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "true"}
    package = Path(__file__).resolve().parents[1]
    if str(package) not in [*site.getsitepackages(), site.getusersitepackages()]:  # a checkout
        ours["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **ours}


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
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


def _end(children: list[subprocess.Popen[bytes]], *, grace_s: float) -> None:
    for child in children:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + grace_s
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("process %s did not end in time and is killed", child.pid)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # workers whose supervisor is gone
        child.wait()

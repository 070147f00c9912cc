"""Starts the server and, if a registry is followed, the follower; stops both together. See `python -m serving`."""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import site
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from serving.deployment.launcher import LAUNCHER_VARIABLE
from serving.settings import Settings

_POLL_INTERVAL_S = 0.5  # between checks of the child processes
_RESTART_DELAY_S = 5.0  # before a follower that exited is restarted

log = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT, or until the server exits; returns 0 or the server's exit code.

    Must be called in the main thread. The follower is restarted whenever it exits; the server runs on without it.
    """
    with tempfile.TemporaryDirectory(prefix="forecaster-serving-") as home, stop_request_on_signals() as stop:
        server = _start_process(_server_command(settings), _server_environment(settings, Path(home)), Path(home))
        follower = _start_follower(settings)
        exited_at: float | None = None
        try:
            while server.poll() is None and not stop.wait(_POLL_INTERVAL_S):
                if follower is None or follower.poll() is None:
                    continue
                if exited_at is None:
                    exited_at = time.monotonic()
                    log.warning("the follower exited with %s; the server continues", follower.returncode)
                elif time.monotonic() - exited_at > _RESTART_DELAY_S:
                    follower, exited_at = _start_follower(settings), None
        finally:
            children = [child for child in (server, follower) if child is not None]
            _stop_processes(children, grace_s=settings.grace_s + 5.0)
        return 0 if stop.is_set() else server.returncode or 0


def describe_port_error(settings: Settings) -> str | None:
    """Describes in one line why the server cannot listen on its address and port; None if it can."""
    family = socket.AF_INET if settings.host.version == 4 else socket.AF_INET6
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a restart need not wait
        try:
            listener.bind((str(settings.host), settings.port))
            listener.listen()
        except OSError as error:
            return _describe_listen_error(error, str(settings.host), settings.port)
    return None


def _describe_listen_error(error: OSError, host: str, port: int) -> str:
    another_port = port + 1 if 1024 <= port < 65535 else 3000
    advice = f"use another port: forecaster serve --port {another_port}, or FORECASTER_SERVING_PORT={another_port}"
    if error.errno == errno.EADDRINUSE:
        return f"Expected a free port; found another program listening on port {port} of {host}. Stop it, or {advice}."
    if error.errno == errno.EACCES:
        return f"Expected a port that this user may open; found port {port}. Run as a user who may, or {advice}."
    return f"Expected an address of this machine to listen on; found {host} ({error.strerror}). Use another --host."


def _server_command(settings: Settings) -> list[str]:
    options = {"--host": settings.host, "--port": settings.port, "--timeout-graceful-shutdown": settings.grace_s}
    arguments = [str(part) for option in options.items() for part in option]
    return [sys.executable, "-m", "bentoml", "serve", "serving.service:ForecastService", *arguments]


def _start_follower(settings: Settings) -> subprocess.Popen[bytes] | None:
    if not settings.follows_registry or not settings.follower:
        return None
    # The follower runs in our working directory because the registry's address may be a relative path.
    return _start_process(
        [sys.executable, "-m", "serving.deployment.follower"], {**os.environ, **settings.to_environment()}, Path.cwd()
    )


def _start_process(
    command: list[str], environment: Mapping[str, str], working_directory: Path
) -> subprocess.Popen[bytes]:
    # A new session: Ctrl-C reaches only this process, and leftover children can be killed as a group.
    environment = {**environment, LAUNCHER_VARIABLE: str(os.getpid())}
    return subprocess.Popen(command, env=environment, cwd=working_directory, start_new_session=True)  # noqa: S603


def _server_environment(settings: Settings, bentoml_home: Path) -> dict[str, str]:
    """Returns the environment of the server's processes.

    BentoML gets its own home because it empties <home>/prometheus_multiproc_dir at start: two servers that share a home
    would delete each other's counters. The home is also its working directory, so that it does not pick up a `serving` package
    or a `bentofile.yaml` from the caller's directory.
    """
    overrides = {
        **settings.with_state_key().to_environment(),
        "BENTOML_HOME": str(bentoml_home),
        "BENTOML_DO_NOT_TRACK": "true",
    }
    package = Path(__file__).resolve().parents[1]
    if str(package) not in [*site.getsitepackages(), site.getusersitepackages()]:  # a checkout
        overrides["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **overrides}


class _StopRequest:
    """Whether a signal asked the process to stop.

    The handler may interrupt the main thread anywhere, also another call of itself. So it takes no lock: `threading.Event.set`
    has one, and blocked for ever where two signals came at once. It writes to a pipe, which is never read.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def on_signal(self, _: int, __: FrameType | None) -> None:
        with suppress(BlockingIOError):  # the pipe is full
            os.write(self._writer, b"x")

    def wait(self, timeout_s: float) -> bool:
        return bool(select.select([self._reader], [], [], timeout_s)[0])

    def is_set(self) -> bool:
        return self.wait(0.0)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


@contextmanager
def stop_request_on_signals() -> Iterator[_StopRequest]:
    """Yields a request that SIGTERM and SIGINT set; restores the previous signal handlers."""
    stop = _StopRequest()
    previous = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        stop.close()


def _stop_processes(processes: list[subprocess.Popen[bytes]], *, grace_s: float) -> None:
    for child in processes:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + grace_s
    for child in processes:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("process %s did not exit in time and is killed", child.pid)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # workers that outlived their parent
        child.wait()

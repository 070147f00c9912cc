"""Time limits for calls to stores on other machines, which may accept a connection and then send almost nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from forecaster.errors import RegistryError

MIN_BYTES_PER_S = 64 * 1024  # the slowest transfer that is still progress
_HTTP_TIMEOUT_S, _HTTP_RETRIES, _MARGIN_S = 5.0, 1, 2.0  # give a call of MLflow, which retries its request, 12 s
_REPEAT_S = 1.0  # the signal is repeated, because an exception in a destructor is lost

# A server that is down must cost seconds, not MLflow's minutes. Variables set by the user are not changed.
STORE_VARIABLES = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(_HTTP_RETRIES),
    "MLFLOW_HTTP_REQUEST_TIMEOUT": f"{_HTTP_TIMEOUT_S:.0f}",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "PGCONNECT_TIMEOUT": f"{_HTTP_TIMEOUT_S:.0f}",
}


class _NoProgress(BaseException):
    """Ends a call that takes too long. It is no Exception, so that libraries neither wrap it nor repeat the call."""


def measure_call_limit() -> float:
    """Returns the seconds that one call may take: 12, or more if the user set longer timeouts or more retries of MLflow."""
    timeout_s = _read_number("MLFLOW_HTTP_REQUEST_TIMEOUT", _HTTP_TIMEOUT_S)
    retries = _read_number("MLFLOW_HTTP_REQUEST_MAX_RETRIES", float(_HTTP_RETRIES))
    return max(timeout_s * (retries + 1), _HTTP_TIMEOUT_S * (_HTTP_RETRIES + 1)) + _MARGIN_S


@contextlib.contextmanager
def limit_time(where: str, *, num_bytes: int = 0, limit_s: float | None = None) -> Iterator[None]:
    """Raises RegistryError if the block takes longer than one call may; works in the main thread, and does nothing in others.

    The timeouts of connections do not end a response of which a byte arrives every few seconds; a timer signal does. In other
    threads, and if the process uses that signal itself, only the timeouts of connections apply. Of nested limits, the outer one
    applies.

    Args:
        where: The store, for the message.
        num_bytes: The size of a transfer, which gets more time: as much as it takes at `MIN_BYTES_PER_S`.
        limit_s: Another limit than `measure_call_limit()`.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGALRM) not in (signal.SIG_DFL, signal.SIG_IGN):
        yield
        return
    seconds = (measure_call_limit() if limit_s is None else limit_s) + num_bytes / MIN_BYTES_PER_S
    expired = False

    def raise_no_progress(_: int, __: FrameType | None) -> None:
        nonlocal expired
        expired = True
        raise _NoProgress

    previous = signal.signal(signal.SIGALRM, raise_no_progress)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, _REPEAT_S)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, previous)
    except (Exception, _NoProgress):
        if not expired:
            raise
        # An error of the driver that closes the interrupted connection may have replaced _NoProgress.
        raise RegistryError(
            f"Expected {where} to respond within {seconds:.0f} s; it accepted the connection and did not complete its response. "
            "Check the store and the network, or set MLFLOW_HTTP_REQUEST_TIMEOUT to more seconds.",
            where=where,
        ) from None


class RemoteClient:
    """Calls the methods of an MLflow client of a store on another machine, each within the time limit."""

    def __init__(self, client: object, where: str) -> None:
        self._client = client
        self._where = where

    def __getattr__(self, name: str) -> Any:
        """Returns an attribute of the client; a method with the time limit around it."""
        attribute = getattr(self._client, name)
        return self._limit(attribute) if callable(attribute) else attribute

    def _limit(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with limit_time(self._where, num_bytes=sum(map(_measure_upload, args[1:]))):
                return method(*args, **kwargs)

        return call


def _measure_upload(argument: object) -> int:
    """Returns the bytes of an argument that names a local file or folder, such as the second one of `log_artifacts`."""
    if not isinstance(argument, str) or not argument.startswith(os.sep):
        return 0
    path = Path(argument)
    try:
        files = path.rglob("*") if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files if file.is_file())
    except OSError:  # such as a name that is too long: it is no path
        return 0


def _read_number(variable: str, default: float) -> float:
    try:
        return float(os.environ.get(variable) or default)
    except ValueError:
        return default

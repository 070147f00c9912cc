"""The lock that serialises the processes of one machine that change a registry."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from forecaster.errors import RegistryError
from forecaster.storage.locks import open_locked

_DATABASE_TIMEOUT_S = 60.0
_SERVER_TIMEOUT_S = 300.0  # a bundle may be uploaded while the lock is held


@contextlib.contextmanager
def lock_database(uri: str) -> Iterator[None]:
    """Locks a SQLite database by a lock file next to it; for any other store the block runs without a lock."""
    database = _sqlite_path(uri)
    if database is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            lock_path = database.parent / f"{database.name}.lock"
            stack.enter_context(_lock_file(lock_path, _DATABASE_TIMEOUT_S, where=str(database)))
            # MLflow would try for minutes to open a file that it cannot open.
            probe = stack.enter_context(contextlib.closing(sqlite3.connect(database, timeout=20.0)))
            probe.execute("PRAGMA schema_version")
        except (OSError, sqlite3.Error) as error:
            raise RegistryError(
                f"The registry needs a writable SQLite database; {database} cannot be opened: {error}. "
                "Check the path and its permissions.",
                where=str(database),
            ) from error
        yield


@contextlib.contextmanager
def lock_registry(uri: str) -> Iterator[None]:
    """Locks a store among the processes of this machine; processes on other machines are not excluded.

    A SQLite database is locked by `lock_database`, any other store by a file in the machine's folder for temporary files, which
    the processes of one user share.
    """
    if _sqlite_path(uri) is not None:
        with lock_database(uri):
            yield
        return
    digest = hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:16]  # an address may contain a password
    lock_path = Path(tempfile.gettempdir()) / f"forecaster-{os.getuid()}-{digest}.lock"
    with _lock_file(lock_path, _SERVER_TIMEOUT_S, where="the registry"):
        yield


@contextlib.contextmanager
def _lock_file(path: Path, timeout_s: float, *, where: str) -> Iterator[None]:
    try:
        file = open_locked(path, timeout_s=timeout_s)
    except BlockingIOError as error:
        raise RegistryError(
            f"The lock on {where} should be free within {timeout_s:.0f} s; another process still holds it ({path}). "
            "End that process, or try again.",
            where=where,
        ) from error
    with file:
        yield


def _sqlite_path(uri: str) -> Path | None:
    scheme, separator, path = uri.partition(":///")
    if not separator or scheme.partition("+")[0] != "sqlite" or path in ("", ":memory:"):
        return None
    return Path(path.partition("?")[0])

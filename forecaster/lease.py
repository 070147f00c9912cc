"""One process at a time changes a registry on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from forecaster.errors import RegistryError

_PATIENCE_S = 60.0


@contextlib.contextmanager
def lease(uri: str) -> Iterator[None]:
    """One process at a time, by a lock file beside a SQLite database; the kernel frees it when its holder dies.

    Any other store has none: the block runs at once.
    """
    database = _sqlite_file(uri)
    if database is None:
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context((database.parent / f"{database.name}.lock").open("a"))
            _lock(file.fileno(), database)
            # MLflow would try for minutes to open a file that it cannot open.
            probe = held.enter_context(contextlib.closing(sqlite3.connect(database, timeout=20.0)))
            probe.execute("PRAGMA schema_version")
        except (OSError, sqlite3.Error) as error:
            raise RegistryError(
                f"The registry needs a SQLite database it can write; {database} cannot be opened: {error}. "
                "Check the path and its permissions.",
                where=str(database),
            ) from error
        yield


def _lock(file: int, database: Path) -> None:
    patience = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > patience:
                raise RegistryError(
                    f"The lease on {database} should be free within {_PATIENCE_S:.0f} s; another process still holds "
                    "it. End that process, or try again.",
                    where=str(database),
                ) from error
            time.sleep(0.02)


def _sqlite_file(uri: str) -> Path | None:
    scheme, found, path = uri.partition(":///")
    if not found or scheme.partition("+")[0] != "sqlite" or path in ("", ":memory:"):
        return None
    return Path(path.partition("?")[0])

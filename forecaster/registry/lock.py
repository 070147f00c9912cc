"""One process at a time changes a registry: by a lock file on one machine, by a queue of notes in the registry on several."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from forecaster.errors import RegistryError
from forecaster.storage.failpoints import point

Confirm = Callable[[], None]
"""Raises RegistryError where the lease is no longer held; to be asked just before what nobody else may do meanwhile."""

NOTE = "lease."  # how the keys of notes begin

_PATIENCE_S = 60.0
_log = logging.getLogger(__name__)


@runtime_checkable
class Board(Protocol):
    """Notes that everybody sees, each under a key that one alone writes: all that a queue needs of a store."""

    def read(self) -> Mapping[str, str]:
        """All notes, as they were at one moment."""

    def write(self, key: str, value: str) -> None:
        """Puts up a note, in place of what was there under its key."""

    def erase(self, key: str) -> None:
        """Takes a note away; one that is not there is no error."""


class Pace(NamedTuple):
    """How a queue passes its time, in seconds.

    Attributes:
        life: A note that has not changed for so long is of somebody who died.
        poll: Between two looks at the board while others are ahead.
        patience: How long to wait for one's turn.
    """

    life: float = 30.0
    poll: float = 0.25
    patience: float = 300.0


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


@contextlib.contextmanager
def lease_of(uri: str, board: Board, *, where: str) -> Iterator[Confirm]:
    """One process at a time among all that use a store: of a SQLite database by `lease`, of any other by `queue`."""
    if _sqlite_file(uri) is None:
        with queue(board, where=where) as confirm:
            yield confirm
    else:
        with lease(uri):
            yield lambda: None  # the kernel holds it for us


@contextlib.contextmanager
def queue(board: Board, *, where: str, pace: Pace | None = None) -> Iterator[Confirm]:
    """One process at a time, on as many machines as see the board: Lamport's bakery (1974), with notes that die.

    It needs of the store no more than that a note that was put up is seen by whoever reads later: no transaction and no
    compare-and-set. Everybody who comes takes a number above all that are up, and waits for those with lower ones.
    A note is renewed from a thread; one that has stood still for its life, by the clock of who waits, is taken away, so
    machines' clocks are never compared. Who was taken for dead though merely asleep finds that out by `Confirm`, which
    also refuses when less than half of the note's life is left for what is to be done.

    Args:
        board: Where the notes are.
        where: What is leased, for messages.
        pace: Times; those of `Pace`, if not given.
    """
    place = _Place(board, where, pace or Pace())
    try:
        place.take_number()
        with place.kept_alive():
            place.wait()
            point("lease.held")
            yield place.confirm
    finally:
        place.leave()


class _Place:
    """One's own place in a queue."""

    def __init__(self, board: Board, where: str, pace: Pace) -> None:
        self.key = f"{NOTE}{uuid.uuid4().hex}"
        self._board, self._where, self._pace = board, where, pace
        self._who = f"{socket.gethostname()}:{os.getpid()}"
        self._number = 0  # being chosen
        self._beats = 0
        self._renewed = _now()

    def take_number(self) -> None:
        self._renew()
        point("lease.choosing")
        taken = [_number(note) for note in self._notes().values()]
        self._number = 1 + max(taken, default=0)
        self._renew()
        point("lease.numbered")

    def wait(self) -> None:
        """Until all that are ahead have gone or died; raises RegistryError when that takes too long."""
        still: dict[str, tuple[str, float]] = {}  # notes as they were last seen to change, and when
        patience = _now() + self._pace.patience
        while True:
            notes = self._present()
            ahead = {key: note for key, note in notes.items() if key != self.key and self._is_ahead(key, note)}
            if not ahead:
                return
            for key, note in ahead.items():
                if key not in still or still[key][0] != note:
                    still[key] = (note, _now())
                elif _now() - still[key][1] > self._pace.life:
                    _log.warning(
                        "The lease on %s was held by %s, which died; it is taken from it.", self._where, _who(note)
                    )
                    self._board.erase(key)
            if _now() > patience:
                holder = _who(min(ahead.values(), key=_number))
                raise RegistryError(
                    f"The lease on {self._where} should be free within {self._pace.patience:.0f} s; {holder} still holds it. "
                    "End that process, or try again.",
                    where=self._where,
                )
            time.sleep(self._pace.poll)

    def confirm(self) -> None:
        notes = self._present()
        others = [(_number(note), key) for key, note in notes.items() if key != self.key and _number(note)]
        late = _now() - self._renewed > self._pace.life / 2
        if late or min(others, default=(self._number + 1, "")) < (self._number, self.key):
            raise self._lost()

    def leave(self) -> None:
        if not self._beats:
            return  # the first note could not be put up
        try:
            self._board.erase(self.key)
        except RegistryError as error:  # what was to be done is done; the note dies by itself
            _log.warning("The lease on %s could not be given back, and ends by itself: %s", self._where, error)

    @contextlib.contextmanager
    def kept_alive(self) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=self._renew_until, args=(ended,), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()  # a note put up after it was taken away would hold up everybody

    def _renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(self._pace.life / 6):
            if _now() - self._renewed > self._pace.life * 3 / 4:
                return  # others may have taken it away: it must not come back
            try:
                self._renew()
            except RegistryError as error:
                _log.warning("The lease on %s could not be renewed: %s", self._where, error)

    def _renew(self) -> None:
        before = _now()  # others count from when they see it, which is later
        self._board.write(self.key, f"{self._number} {self._beats + 1} {self._who}")
        self._beats += 1
        self._renewed = before

    def _notes(self) -> dict[str, str]:
        return {key: note for key, note in self._board.read().items() if key.startswith(NOTE)}

    def _present(self) -> dict[str, str]:
        notes = self._notes()
        if self.key not in notes:
            raise self._lost()
        return notes

    def _is_ahead(self, key: str, note: str) -> bool:
        """Whoever is choosing may come to be ahead: it read the board before our number was up, perhaps."""
        number = _number(note)
        return not number or (number, key) < (self._number, self.key)

    def _lost(self) -> RegistryError:
        return RegistryError(
            f"The lease on {self._where} should still be held; it was lost, because this process stood still or the store could "
            "not be reached for too long. Nothing was changed; try again.",
            where=self._where,
        )


def _number(note: str) -> int:
    """The number of a note; 0 while it is being chosen, and of what is no note of ours."""
    first = note.partition(" ")[0]
    return int(first) if first.isdecimal() else 0


def _who(note: str) -> str:
    return note.split(" ", 2)[-1]


def _now() -> float:
    """Seconds of a clock that goes on while the machine sleeps, as the clocks of others do."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


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

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
from forecaster.storage.failpoints import fail_point

LockCheck = Callable[[], None]
"""Raises RegistryError where the lease is no longer held; to be asked just before what nobody else may do meanwhile."""

NOTE_PREFIX = "lease."  # how the keys of notes begin

_LOCK_TIMEOUT_S = 60.0
logger = logging.getLogger(__name__)


@runtime_checkable
class NoteStore(Protocol):
    """Notes that everybody sees, each under a key that one alone writes: all that a queue needs of a store."""

    def read_notes(self) -> Mapping[str, str]:
        """All notes, as they were at one moment."""

    def write_note(self, key: str, value: str) -> None:
        """Puts up a note, in place of what was there under its key."""

    def delete_note(self, key: str) -> None:
        """Takes a note away; one that is not there is no error."""


class QueueTiming(NamedTuple):
    """How a queue passes its time, in seconds.

    Attributes:
        life: A note that has not changed for so long is of somebody who died.
        poll: Between two looks at the board while others are ahead.
        patience: How long to wait for one's turn.
    """

    lifetime: float = 30.0
    poll_interval: float = 0.25
    timeout: float = 300.0


@contextlib.contextmanager
def lock_database(uri: str) -> Iterator[None]:
    """One process at a time, by a lock file beside a SQLite database; the kernel frees it when its holder dies.

    Any other store has none: the block runs at once.
    """
    database = _sqlite_path(uri)
    if database is None:
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context((database.parent / f"{database.name}.lock").open("a"))
            _acquire_file_lock(file.fileno(), database)
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
def lock_registry(uri: str, notes: NoteStore, *, where: str) -> Iterator[LockCheck]:
    """One process at a time among all that use a store: of a SQLite database by `lock_database`, of any other by `lock_by_queue`."""
    if _sqlite_path(uri) is None:
        with lock_by_queue(notes, where=where) as confirm:
            yield confirm
    else:
        with lock_database(uri):
            yield lambda: None  # the kernel holds it for us


@contextlib.contextmanager
def lock_by_queue(notes: NoteStore, *, where: str, timing: QueueTiming | None = None) -> Iterator[LockCheck]:
    """One process at a time, on as many machines as see the board: Lamport's bakery (1974), with notes that die.

    It needs of the store no more than that a note that was put up is seen by whoever reads later: no transaction and no
    compare-and-set. Everybody who comes takes a number above all that are up, and waits for those with lower ones.
    A note is renewed from a thread; one that has stood still for its life, by the clock of who waits, is taken away, so
    machines' clocks are never compared. Who was taken for dead though merely asleep finds that out by `LockCheck`, which
    also refuses when less than half of the note's life is left for what is to be done.

    Args:
        board: Where the notes are.
        where: What is leased, for messages.
        pace: Times; those of `QueueTiming`, if not given.
    """
    place = _QueueEntry(notes, where, timing or QueueTiming())
    try:
        place.take_number()
        with place.keep_alive():
            place.wait()
            fail_point("lease.held")
            yield place.check_held
    finally:
        place.leave()


class _QueueEntry:
    """One's own place in a queue."""

    def __init__(self, notes: NoteStore, where: str, timing: QueueTiming) -> None:
        self.key = f"{NOTE_PREFIX}{uuid.uuid4().hex}"
        self._store, self._where, self._timing = notes, where, timing
        self._holder = f"{socket.gethostname()}:{os.getpid()}"
        self._number = 0  # being chosen
        self._renewals = 0
        self._renewed_at = _boot_time()

    def take_number(self) -> None:
        self._renew()
        fail_point("lease.choosing")
        taken = [_note_number(note) for note in self._read_notes().values()]
        self._number = 1 + max(taken, default=0)
        self._renew()
        fail_point("lease.numbered")

    def wait(self) -> None:
        """Until all that are ahead have gone or died; raises RegistryError when that takes too long."""
        still: dict[str, tuple[str, float]] = {}  # notes as they were last seen to change, and when
        patience = _boot_time() + self._timing.timeout
        while True:
            notes = self._read_notes_with_own()
            ahead = {key: note for key, note in notes.items() if key != self.key and self._is_ahead(key, note)}
            if not ahead:
                return
            for key, note in ahead.items():
                if key not in still or still[key][0] != note:
                    still[key] = (note, _boot_time())
                elif _boot_time() - still[key][1] > self._timing.lifetime:
                    logger.warning(
                        "The lease on %s was held by %s, which died; it is taken from it.",
                        self._where,
                        _note_holder(note),
                    )
                    self._store.delete_note(key)
            if _boot_time() > patience:
                holder = _note_holder(min(ahead.values(), key=_note_number))
                raise RegistryError(
                    f"The lease on {self._where} should be free within {self._timing.timeout:.0f} s; {holder} still holds it. "
                    "End that process, or try again.",
                    where=self._where,
                )
            time.sleep(self._timing.poll_interval)

    def check_held(self) -> None:
        notes = self._read_notes_with_own()
        others = [(_note_number(note), key) for key, note in notes.items() if key != self.key and _note_number(note)]
        late = _boot_time() - self._renewed_at > self._timing.lifetime / 2
        if late or min(others, default=(self._number + 1, "")) < (self._number, self.key):
            raise self._lock_lost_error()

    def leave(self) -> None:
        if not self._renewals:
            return  # the first note could not be put up
        try:
            self._store.delete_note(self.key)
        except RegistryError as error:  # what was to be done is done; the note dies by itself
            logger.warning("The lease on %s could not be given back, and ends by itself: %s", self._where, error)

    @contextlib.contextmanager
    def keep_alive(self) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=self._renew_periodically, args=(ended,), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()  # a note put up after it was taken away would hold up everybody

    def _renew_periodically(self, stopped: threading.Event) -> None:
        while not stopped.wait(self._timing.lifetime / 6):
            if _boot_time() - self._renewed_at > self._timing.lifetime * 3 / 4:
                return  # others may have taken it away: it must not come back
            try:
                self._renew()
            except RegistryError as error:
                logger.warning("The lease on %s could not be renewed: %s", self._where, error)

    def _renew(self) -> None:
        before = _boot_time()  # others count from when they see it, which is later
        self._store.write_note(self.key, f"{self._number} {self._renewals + 1} {self._holder}")
        self._renewals += 1
        self._renewed_at = before

    def _read_notes(self) -> dict[str, str]:
        return {key: note for key, note in self._store.read_notes().items() if key.startswith(NOTE_PREFIX)}

    def _read_notes_with_own(self) -> dict[str, str]:
        notes = self._read_notes()
        if self.key not in notes:
            raise self._lock_lost_error()
        return notes

    def _is_ahead(self, key: str, note: str) -> bool:
        """Whoever is choosing may come to be ahead: it read the board before our number was up, perhaps."""
        number = _note_number(note)
        return not number or (number, key) < (self._number, self.key)

    def _lock_lost_error(self) -> RegistryError:
        return RegistryError(
            f"The lease on {self._where} should still be held; it was lost, because this process stood still or the store could "
            "not be reached for too long. Nothing was changed; try again.",
            where=self._where,
        )


def _note_number(note: str) -> int:
    """The number of a note; 0 while it is being chosen, and of what is no note of ours."""
    first = note.partition(" ")[0]
    return int(first) if first.isdecimal() else 0


def _note_holder(note: str) -> str:
    return note.split(" ", 2)[-1]


def _boot_time() -> float:
    """Seconds of a clock that goes on while the machine sleeps, as the clocks of others do."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _acquire_file_lock(file: int, database: Path) -> None:
    patience = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > patience:
                raise RegistryError(
                    f"The lease on {database} should be free within {_LOCK_TIMEOUT_S:.0f} s; another process still holds "
                    "it. End that process, or try again.",
                    where=str(database),
                ) from error
            time.sleep(0.02)


def _sqlite_path(uri: str) -> Path | None:
    scheme, found, path = uri.partition(":///")
    if not found or scheme.partition("+")[0] != "sqlite" or path in ("", ":memory:"):
        return None
    return Path(path.partition("?")[0])

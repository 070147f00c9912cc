"""Exclusive access to a registry: by a lock file on one machine, by a queue of notes in the registry on several."""

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
"""Raises RegistryError where the lock is no longer held; to be called right before an exclusive operation."""

NOTE_PREFIX = "lease."  # prefix of the keys of notes

_LOCK_TIMEOUT_S = 60.0
logger = logging.getLogger(__name__)


@runtime_checkable
class NoteStore(Protocol):
    """Shared notes, each under a key that only one process writes: all that the queue needs of a store."""

    def read_notes(self) -> Mapping[str, str]:
        """Returns all notes, as of one moment."""

    def write_note(self, key: str, value: str) -> None:
        """Writes a note, and replaces the one under its key."""

    def delete_note(self, key: str) -> None:
        """Deletes a note; a missing one is no error."""


class QueueTiming(NamedTuple):
    """Times of a queue, in seconds.

    Attributes:
        lifetime: A note that has not changed for this long belongs to a dead process.
        poll_interval: Between two reads of the notes while others are ahead.
        timeout: How long to wait for the lock.
    """

    lifetime: float = 30.0
    poll_interval: float = 0.25
    timeout: float = 300.0


@contextlib.contextmanager
def lock_database(uri: str) -> Iterator[None]:
    """Locks a SQLite database by a lock file next to it; the kernel releases it when the holder dies.

    For any other store the block runs without a lock.
    """
    database = _sqlite_path(uri)
    if database is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((database.parent / f"{database.name}.lock").open("a"))
            _acquire_file_lock(file.fileno(), database)
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
def lock_registry(uri: str, notes: NoteStore, *, where: str) -> Iterator[LockCheck]:
    """Locks a store among all processes that use it.

    A SQLite database is locked by `lock_database`, any other store by `lock_by_queue`.
    """
    if _sqlite_path(uri) is None:
        with lock_by_queue(notes, where=where) as check_held:
            yield check_held
    else:
        with lock_database(uri):
            yield lambda: None  # the kernel guarantees the lock


@contextlib.contextmanager
def lock_by_queue(notes: NoteStore, *, where: str, timing: QueueTiming | None = None) -> Iterator[LockCheck]:
    """Locks across all machines that read the same notes: Lamport's bakery algorithm (1974), with notes that expire.

    It only needs a store in which a written note is seen by every later read: no transactions and no compare-and-set. Each
    process takes a number above all current ones, and waits for those with lower numbers. A thread renews the note; one that has
    not changed for its lifetime, by the clock of a waiting process, is deleted, so machines' clocks are never compared. A process
    that was only suspended and lost its note learns so by `LockCheck`, which also fails when less than half of the note's
    lifetime is left for the exclusive operation.

    Args:
        notes: The shared notes.
        where: Name of the locked resource, for messages.
        timing: Defaults to `QueueTiming()`.
    """
    entry = _QueueEntry(notes, where, timing or QueueTiming())
    try:
        entry.take_number()
        with entry.keep_alive():
            entry.wait()
            fail_point("lease.held")
            yield entry.check_held
    finally:
        entry.leave()


class _QueueEntry:
    """The queue entry of this process."""

    def __init__(self, notes: NoteStore, where: str, timing: QueueTiming) -> None:
        self.key = f"{NOTE_PREFIX}{uuid.uuid4().hex}"
        self._store, self._where, self._timing = notes, where, timing
        self._holder = f"{socket.gethostname()}:{os.getpid()}"
        self._number = 0  # 0 while it is being chosen
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
        """Waits until all entries ahead are released or expired; raises RegistryError at the timeout."""
        unchanged: dict[str, tuple[str, float]] = {}  # notes, and when they were last seen to change
        deadline = _boot_time() + self._timing.timeout
        while True:
            notes = self._read_notes_with_own()
            ahead = {key: note for key, note in notes.items() if key != self.key and self._is_ahead(key, note)}
            if not ahead:
                return
            for key, note in ahead.items():
                if key not in unchanged or unchanged[key][0] != note:
                    unchanged[key] = (note, _boot_time())
                elif _boot_time() - unchanged[key][1] > self._timing.lifetime:
                    logger.warning(
                        "The lock on %s was held by %s, which died; its lock is removed.",
                        self._where,
                        _note_holder(note),
                    )
                    self._store.delete_note(key)
            if _boot_time() > deadline:
                holder = _note_holder(min(ahead.values(), key=_note_number))
                raise RegistryError(
                    f"The lock on {self._where} should be free within {self._timing.timeout:.0f} s; {holder} still holds it. "
                    "End that process, or try again.",
                    where=self._where,
                )
            time.sleep(self._timing.poll_interval)

    def check_held(self) -> None:
        notes = self._read_notes_with_own()
        other_entries = [
            (_note_number(note), key) for key, note in notes.items() if key != self.key and _note_number(note)
        ]
        is_late = _boot_time() - self._renewed_at > self._timing.lifetime / 2
        if is_late or min(other_entries, default=(self._number + 1, "")) < (self._number, self.key):
            raise self._lock_lost_error()

    def leave(self) -> None:
        if not self._renewals:
            return  # the first note was not written
        try:
            self._store.delete_note(self.key)
        except RegistryError as error:  # the exclusive operation is complete; the note expires
            logger.warning("The lock on %s could not be released, and expires by itself: %s", self._where, error)

    @contextlib.contextmanager
    def keep_alive(self) -> Iterator[None]:
        stopped = threading.Event()
        thread = threading.Thread(target=self._renew_periodically, args=(stopped,), name="registry-lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()  # a note written after its deletion would block all others

    def _renew_periodically(self, stopped: threading.Event) -> None:
        while not stopped.wait(self._timing.lifetime / 6):
            if _boot_time() - self._renewed_at > self._timing.lifetime * 3 / 4:
                return  # others may have deleted the note: it must not reappear
            try:
                self._renew()
            except RegistryError as error:
                logger.warning("The lock on %s could not be renewed: %s", self._where, error)

    def _renew(self) -> None:
        renewed_at = _boot_time()  # others count from when they read the note, which is later
        self._store.write_note(self.key, f"{self._number} {self._renewals + 1} {self._holder}")
        self._renewals += 1
        self._renewed_at = renewed_at

    def _read_notes(self) -> dict[str, str]:
        return {key: note for key, note in self._store.read_notes().items() if key.startswith(NOTE_PREFIX)}

    def _read_notes_with_own(self) -> dict[str, str]:
        notes = self._read_notes()
        if self.key not in notes:
            raise self._lock_lost_error()
        return notes

    def _is_ahead(self, key: str, note: str) -> bool:
        """Returns whether an entry is ahead.

        One that is choosing its number may be, as it may have read the notes before ours was written.
        """
        number = _note_number(note)
        return not number or (number, key) < (self._number, self.key)

    def _lock_lost_error(self) -> RegistryError:
        return RegistryError(
            f"The lock on {self._where} should still be held; it was lost, because this process was suspended or the store was "
            "unreachable for too long. Nothing was changed; try again.",
            where=self._where,
        )


def _note_number(note: str) -> int:
    """Returns the number of a note; 0 while it is being chosen, and for a note of another format."""
    first = note.partition(" ")[0]
    return int(first) if first.isdecimal() else 0


def _note_holder(note: str) -> str:
    return note.split(" ", 2)[-1]


def _boot_time() -> float:
    """Returns the seconds of a clock that includes the time a machine is suspended, as the clocks of others do."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _acquire_file_lock(file: int, database: Path) -> None:
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise RegistryError(
                    f"The lock on {database} should be free within {_LOCK_TIMEOUT_S:.0f} s; another process still holds "
                    "it. End that process, or try again.",
                    where=str(database),
                ) from error
            time.sleep(0.02)


def _sqlite_path(uri: str) -> Path | None:
    scheme, separator, path = uri.partition(":///")
    if not separator or scheme.partition("+")[0] != "sqlite" or path in ("", ":memory:"):
        return None
    return Path(path.partition("?")[0])

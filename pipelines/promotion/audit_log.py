"""The audit log records every promotion and rollback: the version, the time and the reason.

It is an append-only file of JSON lines; each line holds a SHA-256 seal over its content and the seal of the line before.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from forecaster.registry.registry import BundleVersion, PromotionCallback
from forecaster.storage.atomic import sync_folder
from forecaster.storage.locks import open_locked

_INITIAL_SEAL = "0" * 64  # the seal before the first line
_LOCAL_ROLLBACK = "rollback-local"
_LOCAL_ROLLBACK_UNDONE = "rollback-local-undone"


def _now() -> datetime:
    return datetime.now(UTC)


class AuditEntry(NamedTuple):
    """One line of the log.

    Attributes:
        number: The line number, counted from 1.
        at: Time of the event, ISO 8601 in UTC.
        event: "promote" or "rollback"; "rollback-local" or "rollback-local-undone" if only one server was affected.
        name: Name of the registered model.
        version: Number of the version that became champion, or that the server now uses.
        digest: Digest of the version's bundle.
        before: Number of the previous version; None if there was none.
        reason: Why the event happened.
        previous: The seal of the line before.
        seal: SHA-256 of all other fields of this line.
    """

    number: int
    at: str
    event: str
    name: str
    version: str
    digest: str
    before: str | None
    reason: str
    previous: str
    seal: str

    @property
    def is_local(self) -> bool:
        """Whether the event concerns a single server and leaves the champion unchanged."""
        return self.event in (_LOCAL_ROLLBACK, _LOCAL_ROLLBACK_UNDONE)

    def __str__(self) -> str:
        before = f", before {self.before}" if self.before else ""
        event = f"{self.event} {self.name} version {self.version} ({self.digest[:12]}){before}"
        return f"{self.number}  {self.at}  {event}: {self.reason}"


class AuditReport(NamedTuple):
    """The entries of a log, and a message for every fault that was found in it."""

    entries: tuple[AuditEntry, ...]
    faults: tuple[str, ...]


class AuditLog:
    """The audit log in one file; several processes may append to it.

    A line is synced to disk before the promotion is reported as done. A line truncated by a kill was therefore never
    reported; the next append overwrites it.
    """

    def __init__(self, path: Path, *, now: Callable[[], datetime] = _now) -> None:
        self.path = path
        self._now = now

    def make_promotion_recorder(self, version: BundleVersion, reason: str) -> PromotionCallback:
        """Returns a callback that records the promotion of `version` once, also if it is called again."""

        def record(champion: BundleVersion, previous_champion: BundleVersion | None) -> None:
            assert champion == version
            self._append("promote", champion, previous_champion, reason)

        return record

    def record_rollback(self, version: BundleVersion, previous_champion: BundleVersion | None) -> None:
        """Records a rollback once, also if it is called again."""
        self._append("rollback", version, previous_champion, "manual")

    def record_local_rollback(
        self, version: BundleVersion, previous_version: BundleVersion, *, since: str, is_undo: bool = False
    ) -> None:
        """Records once that a server was rolled back locally at `since` without the registry, or that this was undone."""
        self._append(
            _LOCAL_ROLLBACK_UNDONE if is_undo else _LOCAL_ROLLBACK,
            version,
            previous_version,
            f"manual; pinned at {since}",
        )

    def read_entries(self) -> AuditReport:
        """Reads all lines, and reports each one that is damaged, altered, missing or out of order, and each lost update."""
        content = self.path.read_bytes() if self.path.exists() else b""
        whole, _, torn = content.rpartition(b"\n")
        entries: list[AuditEntry] = []
        faults = ["the last line is truncated; the next promotion overwrites it"] if torn else []
        previous, number = _INITIAL_SEAL, 0
        for line_number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            entry = _parse_entry(line)
            if entry is None:
                faults.append(f"line {line_number} is altered: its content does not match its seal")
                continue
            if entry.previous != previous or entry.number != number + 1:
                faults.append(f"lines before line {line_number} (entry number {entry.number}) are missing or altered")
            previous, number = entry.seal, entry.number
            entries.append(entry)
        return AuditReport(tuple(entries), (*faults, *find_lost_updates(entries)))

    def _append(self, event: str, version: BundleVersion, previous_version: BundleVersion | None, reason: str) -> None:
        with self._open_exclusively() as file:
            entries = self.read_entries().entries
            model_entries = [entry for entry in entries if entry.name == version.name]
            champions = [entry for entry in model_entries if not entry.is_local]
            if previous_version is None and champions and champions[-1].version == version.number:
                return  # recorded before the promotion was interrupted
            if (
                event in (_LOCAL_ROLLBACK, _LOCAL_ROLLBACK_UNDONE)
                and model_entries
                and (model_entries[-1].event, model_entries[-1].reason) == (event, reason)
            ):
                return  # recorded before the rollback was interrupted
            last = entries[-1] if entries else None
            fields = {
                "number": 1 if last is None else last.number + 1,
                "at": self._now().isoformat(timespec="seconds"),
                "event": event,
                "name": version.name,
                "version": version.number,
                "digest": version.digest,
                "before": None if previous_version is None else previous_version.number,
                "reason": reason,
                "previous": _INITIAL_SEAL if last is None else last.seal,
            }
            line = json.dumps(fields | {"seal": _compute_seal(fields)}, ensure_ascii=False).encode() + b"\n"
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            sync_folder(self.path.parent)

    @contextmanager
    def _open_exclusively(self) -> Iterator[BinaryIO]:
        """Opens the file with an exclusive lock and removes a truncated last line."""
        with open_locked(self.path, timeout_s=None) as file:
            content = self.path.read_bytes()
            if content and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
            yield file


def find_lost_updates(entries: Sequence[AuditEntry]) -> list[str]:
    """Describes each entry whose version replaced a champion that, by the entries before it, had been replaced already.

    Two processes that promote at the same moment on two machines leave this: the version of one was champion for a moment, and
    the other was never compared with it.
    """
    lost_updates: list[str] = []
    latest: dict[str, AuditEntry] = {}
    replacements: dict[
        tuple[str, str], AuditEntry
    ] = {}  # by model and replaced version; none once it is champion again
    for entry in entries:
        if entry.is_local:
            continue
        replacement = None if entry.before is None else replacements.get((entry.name, entry.before))
        if replacement is not None:
            lost_updates.append(
                f"'{entry.name}' version {entry.version} (line {entry.number}) replaced version {entry.before}, which version "
                f"{replacement.version} (line {replacement.number}) had replaced already: two processes promoted at once and an "
                f"update was lost, or this log lacks a change. The champion before line {entry.number} was version "
                f"{latest[entry.name].version}; compare it with version {entry.version}"
            )
        if entry.before is not None:
            replacements[entry.name, entry.before] = entry
        replacements.pop((entry.name, entry.version), None)
        latest[entry.name] = entry
    return lost_updates


def _parse_entry(line: bytes) -> AuditEntry | None:
    try:
        fields = json.loads(line)
        entry = AuditEntry(**fields)
    except (ValueError, TypeError):
        return None
    unsealed_fields = {name: value for name, value in fields.items() if name != "seal"}
    return entry if _compute_seal(unsealed_fields) == entry.seal else None


def _compute_seal(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

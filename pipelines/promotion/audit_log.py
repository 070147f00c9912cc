"""The audit log: who was made champion, when and why. Lines of JSON that are only ever added, each sealed with the one before."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from forecaster.registry.registry import BundleVersion, PromotionCallback
from forecaster.storage.atomic import sync_folder

_INITIAL_SEAL = "0" * 64  # the seal before the first line
_LOCAL_ROLLBACK = "rollback-local"
_LOCAL_ROLLBACK_UNDONE = "rollback-local-undone"


def _now() -> datetime:
    return datetime.now(UTC)


class AuditEntry(NamedTuple):
    """One line.

    Attributes:
        number: Counts up from 1.
        at: When, in UTC.
        event: promote or rollback; or, of one server alone, rollback-local or rollback-local-undone.
        name: The registered model.
        version: The number of the version that became champion, or answers on that server.
        digest: Of its bundle.
        before: The number of the champion before, if there was one.
        reason: Why.
        previous: The seal of the line before.
        seal: sha256 of all the rest of this line.
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
        """Whether it is of one server, and of no champion."""
        return self.event in (_LOCAL_ROLLBACK, _LOCAL_ROLLBACK_UNDONE)

    def __str__(self) -> str:
        before = f", before {self.before}" if self.before else ""
        what = f"{self.event} {self.name} version {self.version} ({self.digest[:12]}){before}"
        return f"{self.number}  {self.at}  {what}: {self.reason}"


class AuditReport(NamedTuple):
    """A log as it was read, and what is wrong with it."""

    entries: tuple[AuditEntry, ...]
    faults: tuple[str, ...]


class AuditLog:
    """The log in one file; several processes may add to it.

    A line is on disk before anyone is told that a promotion is done. A line that a kill cut short was never told: the next
    one takes its place.
    """

    def __init__(self, path: Path, *, now: Callable[[], datetime] = _now) -> None:
        self.path = path
        self._now = now

    def make_promotion_recorder(self, version: BundleVersion, reason: str) -> PromotionCallback:
        """Records the promotion of a version, once, however often it is told."""

        def record(champion: BundleVersion, before: BundleVersion | None) -> None:
            assert champion == version
            self._append("promote", champion, before, reason)

        return record

    def record_rollback(self, version: BundleVersion, previous_champion: BundleVersion | None) -> None:
        """Records a rollback, once, however often it is told."""
        self._append("rollback", version, previous_champion, "asked for")

    def record_local_rollback(
        self, version: BundleVersion, previous_version: BundleVersion, *, since: str, is_undo: bool = False
    ) -> None:
        """Records that one server was moved without the registry at `since`, or that this was undone; once, if told again."""
        self._append(
            _LOCAL_ROLLBACK_UNDONE if is_undo else _LOCAL_ROLLBACK,
            version,
            previous_version,
            f"asked for; pinned at {since}",
        )

    def read_entries(self) -> AuditReport:
        """All lines, and every one that is damaged, altered, missing or out of its place."""
        content = self.path.read_bytes() if self.path.exists() else b""
        whole, _, torn = content.rpartition(b"\n")
        entries: list[AuditEntry] = []
        faults = ["the last line was cut short; the next promotion takes its place"] if torn else []
        previous, number = _INITIAL_SEAL, 0
        for place, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            entry = _parse_entry(line)
            if entry is None:
                faults.append(f"line {place} is altered: it is not what was sealed")
                continue
            if entry.previous != previous or entry.number != number + 1:
                faults.append(f"before line {place}, number {entry.number}, lines are missing or altered")
            previous, number = entry.seal, entry.number
            entries.append(entry)
        return AuditReport(tuple(entries), tuple(faults))

    def _append(self, event: str, version: BundleVersion, previous_version: BundleVersion | None, reason: str) -> None:
        with self._open_exclusively() as file:
            lines = self.read_entries().entries
            ours = [one for one in lines if one.name == version.name]
            champions = [one for one in ours if not one.is_local]
            if previous_version is None and champions and champions[-1].version == version.number:
                return  # recorded before it was cut short
            if (
                event in (_LOCAL_ROLLBACK, _LOCAL_ROLLBACK_UNDONE)
                and ours
                and (ours[-1].event, ours[-1].reason) == (event, reason)
            ):
                return  # likewise
            last = lines[-1] if lines else None
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
        """The file, for this process alone, without what a kill left of a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            content = self.path.read_bytes()
            if content and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
            yield file


def _parse_entry(line: bytes) -> AuditEntry | None:
    try:
        fields = json.loads(line)
        entry = AuditEntry(**fields)
    except (ValueError, TypeError):
        return None
    rest = {name: value for name, value in fields.items() if name != "seal"}
    return entry if _compute_seal(rest) == entry.seal else None


def _compute_seal(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

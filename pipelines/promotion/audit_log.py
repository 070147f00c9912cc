"""The audit log records every promotion and rollback: the version, the time and the reason.

It is an append-only file of JSON lines; each line holds a SHA-256 seal over its content and the seal of the line before. The
registry keeps the seal of the last line of each model, as a tag of the model: so that lines missing at the end are noticed too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from forecaster.registry.registry import BundleVersion, PromotionCallback
from forecaster.storage.atomic import sync_folder
from forecaster.storage.failpoints import fail_point
from forecaster.storage.locks import open_locked

SEAL_TAG = "audit_seal"  # the tag of a registered model: number and seal of the last line of its log
_INITIAL_SEAL = "0" * 64  # the seal before the first line
_FORMAT = 2  # of a line; the seals of lines of format 1, which have no `format`, were not stored in the registry
_ADOPT = "adopt"
_LOCAL_ROLLBACK = "rollback-local"
_LOCAL_ROLLBACK_UNDONE = "rollback-local-undone"


def _now() -> datetime:
    return datetime.now(UTC)


class SealStore(Protocol):
    """The part of `Registry` that keeps seals."""

    def get_model_tag(self, name: str, key: str) -> str | None:
        """Returns a tag of a model."""

    def set_model_tag(self, name: str, key: str, value: str) -> None:
        """Sets a tag of a model."""


class RegistrySeal(NamedTuple):
    """The last line of a model's log according to the registry: its number and its seal."""

    number: int
    seal: str

    @classmethod
    def parse(cls, tag: str | None) -> RegistrySeal | None:
        """Parses the tag of a model; an altered tag is the seal of no line."""
        if tag is None:
            return None
        number, _, seal = tag.partition(" ")
        return cls(int(number), seal) if number.isdecimal() and len(number) < 10 else cls(0, tag[:100])

    def __str__(self) -> str:
        return f"{self.number} {self.seal}"


class AuditEntry(NamedTuple):
    """One line of the log.

    Attributes:
        number: The line number, counted from 1.
        at: Time of the event, ISO 8601 in UTC.
        event: "promote" or "rollback"; "adopt" if the log starts with a champion that it did not record; "rollback-local" or
            "rollback-local-undone" if only one server was affected.
        name: Name of the registered model.
        version: Number of the version that became champion, or that the server now uses.
        digest: Digest of the version's bundle.
        before: Number of the previous version; None if there was none.
        reason: Why the event happened.
        previous: The seal of the line before.
        seal: SHA-256 of all other fields of this line.
        format: 2, or 1 for lines of earlier versions.
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
    format: int = 1

    @property
    def is_local(self) -> bool:
        """Whether the event concerns a single server and leaves the champion unchanged."""
        return self.event in (_LOCAL_ROLLBACK, _LOCAL_ROLLBACK_UNDONE)

    def __str__(self) -> str:
        before = f", before {self.before}" if self.before else ""
        event = f"{self.event} {self.name} version {self.version} ({self.digest[:12]}){before}"
        return f"{self.number}  {self.at}  {event}: {self.reason}"


class AuditReport(NamedTuple):
    """The entries of a log, a message for every fault that was found in it, and notes that are no faults."""

    entries: tuple[AuditEntry, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...] = ()


class AuditLog:
    """The audit log in one file; several processes may append to it.

    A line is synced to disk before the promotion is reported as done. A line truncated by a kill was therefore never
    reported; the next append overwrites it. The registry gets the seal of the line afterwards. Without `seals`, as in a local
    rollback that must not need the registry, the seal is stored with the next line.
    """

    def __init__(self, path: Path, seals: SealStore | None = None, *, now: Callable[[], datetime] = _now) -> None:
        self.path = path
        self._seals = seals
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

    def adopt(self, champion: BundleVersion) -> None:
        """Starts the log of a model whose champion it did not record, or that the registry has no seal of."""
        self._append(_ADOPT, champion, None, "adopted: the registry had no seal of this log")

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
        previous, number, has_gap = _INITIAL_SEAL, 0, False
        champions: dict[str, str] = {}
        for line_number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            entry = _parse_entry(line)
            if entry is None:
                faults.append(f"line {line_number} is altered: its content does not match its seal")
                champions, has_gap = {}, True
                continue
            if entry.previous != previous or entry.number != number + 1:
                faults.append(f"lines before line {line_number} (entry number {entry.number}) are missing or altered")
                champions, has_gap = {}, True
            fault = _find_lost_update(entry, entries, champions, has_gap=has_gap)
            faults += [] if fault is None else [fault]
            if not entry.is_local:
                champions[entry.name] = entry.version
            previous, number = entry.seal, entry.number
            entries.append(entry)
        return AuditReport(tuple(entries), tuple(faults))

    def _append(self, event: str, version: BundleVersion, previous_version: BundleVersion | None, reason: str) -> None:
        with self._open_exclusively() as file:
            entries = self.read_entries().entries
            model_entries = [entry for entry in entries if entry.name == version.name]
            champions = [entry for entry in model_entries if not entry.is_local]
            registry_seal = self._read_seal(version.name)
            is_recorded = previous_version is None and champions and champions[-1].version == version.number
            if is_recorded and event != _ADOPT:  # before the promotion was interrupted
                if registry_seal is None or registry_seal.seal in {entry.seal for entry in champions}:
                    self._store_seal(champions[-1])
                return
            if (
                event in (_LOCAL_ROLLBACK, _LOCAL_ROLLBACK_UNDONE)
                and model_entries
                and (model_entries[-1].event, model_entries[-1].reason) == (event, reason)
            ):
                return  # recorded before the rollback was interrupted
            before = champions[-1].version if previous_version is None and champions else None
            number, previous = _find_line_before(entries, registry_seal)
            fields: dict[str, Any] = {
                "number": number + 1,
                "at": self._now().isoformat(timespec="seconds"),
                "event": event,
                "name": version.name,
                "version": version.number,
                "digest": version.digest,
                "before": before if previous_version is None else previous_version.number,
                "reason": reason,
                "previous": previous,
                "format": _FORMAT,
            }
            entry = AuditEntry(**fields, seal=_compute_seal(fields))
            file.write(json.dumps(entry._asdict(), ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            sync_folder(self.path.parent)
            if (step := event) in ("promote", "rollback"):
                fail_point(f"{step}.logged")
            if not entry.is_local:
                self._store_seal(entry)

    def _read_seal(self, name: str) -> RegistrySeal | None:
        return None if self._seals is None else RegistrySeal.parse(self._seals.get_model_tag(name, SEAL_TAG))

    def _store_seal(self, entry: AuditEntry) -> None:
        if self._seals is not None:
            self._seals.set_model_tag(entry.name, SEAL_TAG, str(RegistrySeal(entry.number, entry.seal)))

    @contextmanager
    def _open_exclusively(self) -> Iterator[BinaryIO]:
        """Opens the file with an exclusive lock and removes a truncated last line."""
        with open_locked(self.path, timeout_s=None) as file:
            content = self.path.read_bytes()
            if content and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
            yield file


def find_seal_fault(entries: Sequence[AuditEntry], name: str, registry_seal: RegistrySeal | None) -> str | None:
    """Compares the log of a model with the seal in the registry; returns the fault, or None."""
    champions = [entry for entry in entries if entry.name == name and not entry.is_local]
    seals = [entry.seal for entry in champions]
    if registry_seal is None:
        is_sealed = any(entry.format >= _FORMAT for entry in champions)
        return f"the registry has no seal of '{name}', but the log has lines that were sealed" if is_sealed else None
    if registry_seal.seal not in seals:
        return f"the registry has the seal of line {registry_seal.number} of '{name}', which is missing or altered in the log"
    later = len(seals) - 1 - seals.index(registry_seal.seal)
    if later:
        return (
            f"the log has {later} lines of '{name}' after the last one that the registry has a seal of: they were added, or a "
            "command was interrupted and should be repeated"
        )
    return None


def _find_line_before(entries: Sequence[AuditEntry], registry_seal: RegistrySeal | None) -> tuple[int, str]:
    """Returns number and seal of the line before a new one.

    That is the last line of the file. If the registry has the seal of a line that is missing there, it is the missing line: the
    log then shows forever that it has a gap.
    """
    number, seal = (entries[-1].number, entries[-1].seal) if entries else (0, _INITIAL_SEAL)
    if registry_seal is None or registry_seal.seal in {entry.seal for entry in entries}:
        return number, seal
    return max(number, registry_seal.number), registry_seal.seal


def _find_lost_update(
    entry: AuditEntry, earlier: Sequence[AuditEntry], champions: Mapping[str, str], *, has_gap: bool
) -> str | None:
    """Returns a fault if `before` is not the champion of the lines before; else None.

    Two processes that promote at the same moment on two machines leave this: the version of one was champion for a moment, and
    the other was never compared with it. After a gap, which is a fault already, the champion is unknown until the next line of
    the model.
    """
    champion = champions.get(entry.name)
    # Earlier versions did not know the champion before when they completed an interrupted promotion.
    is_unknown = (has_gap and champion is None) or (entry.before is None and entry.format < _FORMAT)
    if entry.is_local or entry.before == champion or is_unknown:
        return None
    replaced = (
        f"'{entry.name}' version {entry.version} (line {entry.number}) replaced {_describe_champion(entry.before)}"
    )
    replacements = [
        other for other in earlier if (other.name, other.before) == (entry.name, entry.before) and not other.is_local
    ]
    if entry.before is None or not replacements:
        return f"{replaced}, but according to the lines before there was {_describe_champion(champion)}: this log lacks a change"
    return (
        f"{replaced}, which version {replacements[-1].version} (line {replacements[-1].number}) had replaced already: two "
        "processes promoted at once and an update was lost, or this log lacks a change. The champion before line "
        f"{entry.number} was version {champion}; compare it with version {entry.version}"
    )


def _describe_champion(number: str | None) -> str:
    return "no champion" if number is None else f"version {number}"


def _parse_entry(line: bytes) -> AuditEntry | None:
    try:
        fields = json.loads(line)
        entry = AuditEntry(**fields)
    except (ValueError, TypeError, RecursionError):
        return None
    texts = [value for name, value in fields.items() if name not in ("number", "format", "before")]
    if not all(isinstance(text, str) for text in texts) or not isinstance(entry.before, str | None):
        return None
    if type(entry.number) is not int or type(entry.format) is not int:
        return None
    unsealed_fields = {name: value for name, value in fields.items() if name != "seal"}
    return entry if _compute_seal(unsealed_fields) == entry.seal else None


def _compute_seal(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

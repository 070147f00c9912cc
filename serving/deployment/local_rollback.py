"""A rollback of one server without the registry: `python -m serving.deployment.local_rollback NAME SLOT [--undo | --lift]`.

The rollback restores the previous release and writes `pinned.json` to the slot. That file keeps the follower from deploying the
version that the registry still names. The rollback ends when the registry names another version.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from forecaster.errors import ForecasterError, NoSuchModel
from forecaster.storage import atomic
from forecaster.storage.failpoints import fail_point
from serving.deployment import releases
from serving.deployment.releases import Release

if TYPE_CHECKING:
    from serving.deployment.slot import LoadPredictor

_FILE_NAME = "pinned.json"


class LocalRollback(BaseModel):
    """The rollback of a slot, as stored in `pinned.json`.

    Attributes:
        release: The restored release.
        instead_of: The release it replaced, which the registry named at the time.
        at: The time of the rollback, in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    release: Release
    instead_of: Release
    at: str

    @property
    def description(self) -> str:
        """Why the slot differs from the registry."""
        return f"rolled back here, from version {self.instead_of.version} to {self.release.version}"


def read_rollback(slot: Path) -> LocalRollback | None:
    """Returns the rollback of a slot; None if there is none that can be read."""
    try:
        return LocalRollback.model_validate_json(releases.read_slot_file(slot, _FILE_NAME))
    except (OSError, ValidationError):
        return None


def remove_rollback(slot: Path) -> None:
    """Removes the rollback of a slot, if there is one; the follower then follows the registry again."""
    (slot / _FILE_NAME).unlink(missing_ok=True)
    atomic.sync_folder(slot)


def _load_bundle(folder: Path) -> Any:
    from serving.deployment.slot import load_bundle  # the follower, which reads rollbacks, does not need numpy

    return load_bundle(folder)


def roll_back(slot: Path, name: str, *, at: str, load: LoadPredictor = _load_bundle) -> LocalRollback:
    """Restores the previous release. A repeated call completes an interrupted rollback, and changes nothing otherwise.

    Args:
        slot: The slot's folder.
        name: The name of the model.
        at: The time to record, in UTC.
        load: Loads the bundle to restore, as a worker does.

    Raises NoSuchModel if the slot has no previous release, BundleError if that is invalid, or MissingPackage.
    """
    rollback, current = read_rollback(slot), releases.current_release(slot)
    if current is None or current.name != name or (rollback is not None and rollback.release.name != name):
        raise NoSuchModel(
            f"Expected a server of '{name}' with the slot {slot}; found "
            f"{'an empty slot' if current is None else repr(current.name)}. Correct the name, or pass the --root of the server.",
            where=name,
        )
    if rollback is None:
        release = releases.previous_release(slot, name)
        if release is None:
            raise NoSuchModel(
                f"Expected a release of '{name}' in the slot {slot} besides the one in use; found none. Roll back in the "
                f"registry: forecaster rollback {name}.",
                where=name,
            )
        from serving.deployment.slot import validate_release

        validate_release(slot, release, load)
        rollback = LocalRollback(release=release, instead_of=current, at=at)
        # Written before the release is restored, so that the follower does not revert it.
        atomic.write_text(slot / _FILE_NAME, rollback.model_dump_json())
        fail_point("local.pinned")
    if current != rollback.release:
        releases.restore_release(slot, rollback.release)
    fail_point("local.linked")
    return rollback


def undo_rollback(slot: Path, name: str) -> LocalRollback:
    """Restores the replaced release, if the slot still has it. The follower follows the registry after `remove_rollback`.

    Raises NoSuchModel if the slot has no rollback of this model.
    """
    rollback = read_rollback(slot)
    if rollback is None or rollback.release.name != name:
        raise NoSuchModel(
            f"Expected '{name}' to be rolled back in the slot {slot}; it is not. There is nothing to undo.", where=name
        )
    if releases.bundle_path(slot, rollback.instead_of).exists():
        releases.restore_release(slot, rollback.instead_of)
    fail_point("local.restored")
    return rollback


def main(argv: Sequence[str]) -> int:
    """Rolls back and prints the rollback as JSON.

    `--undo` restores the replaced release but keeps `pinned.json`, so that the caller can report it first. `--lift` removes that
    file.
    """
    option = argv[2] if len(argv) == 3 else None
    if len(argv) not in (2, 3) or option not in (None, "--undo", "--lift"):
        sys.stderr.write("usage: python -m serving.deployment.local_rollback NAME SLOT [--undo | --lift]\n")
        return 2
    name, slot = argv[0], Path(argv[1])
    try:
        if option == "--lift":
            remove_rollback(slot)
            return 0
        rollback = undo_rollback(slot, name) if option else roll_back(slot, name, at=datetime.now(UTC).isoformat())
    except ForecasterError as error:
        sys.stderr.write(f"forecaster: {error}\n")
        return error.exit_code
    except OSError as error:  # the slot is not writable
        sys.stderr.write(f"forecaster: {error}\n")
        return 1
    sys.stdout.write(rollback.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

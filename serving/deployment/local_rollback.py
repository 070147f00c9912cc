"""A rollback of one server that asks no registry: `python -m serving.deployment.local_rollback RELEASE SLOT [--undo_rollback | --remove_rollback]`.

The release that was in use before is put back, and `pinned.json` in the slot tells the follower what it must not bring back: the
version that the registry still names. The pin ends when the registry names another.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from forecaster.errors import ForecasterError, NoSuchModel
from forecaster.storage import atomic
from forecaster.storage.failpoints import fail_point
from serving.deployment import slot as slots
from serving.deployment.slot import LoadPredictor, Release

_FILE_NAME = "pinned.json"


class LocalRollback(BaseModel):
    """What is held in a slot.

    Attributes:
        release: What is in use.
        instead_of: What it was put back for, and what the registry named then.
        at: When, in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    release: Release
    instead_of: Release
    at: str

    @property
    def description(self) -> str:
        """Why the slot is not what the registry says."""
        return f"rolled back here, from version {self.instead_of.version} to {self.release.version}"


def read_rollback(slot: Path) -> LocalRollback | None:
    """The pin of a slot, if there is one that can be read."""
    try:
        return LocalRollback.model_validate_json((slot / _FILE_NAME).read_bytes())
    except (OSError, ValidationError):
        return None


def remove_rollback(slot: Path) -> None:
    """Takes the pin away; none is no error."""
    (slot / _FILE_NAME).unlink(missing_ok=True)
    atomic.sync_folder(slot)


def roll_back(slot: Path, name: str, *, at: str, load: LoadPredictor = slots.load_bundle) -> LocalRollback:
    """Puts the release before back in use and pins it; repeated, it completes what was cut short, and changes nothing else.

    Raises NoSuchModel where the slot has nothing to go back to, BundleError where that must not be served, or MissingPackage.
    """
    found, current = read_rollback(slot), slots.current_release(slot)
    if current is None or current.name != name or (found is not None and found.release.name != name):
        raise NoSuchModel(
            f"Expected a server of '{name}' with the slot {slot}; it has "
            f"{'nothing' if current is None else repr(current.name)}. Correct the name, or name the --root of the server.",
            where=name,
        )
    if found is None:
        release = slots.previous_release(slot, name)
        if release is None:
            raise NoSuchModel(
                f"Expected a release of '{name}' in the slot {slot} besides the one in use; found none. Roll back in the "
                f"registry: forecaster rollback {name}.",
                where=name,
            )
        slots.validate_release(slot, release, load)
        found = LocalRollback(release=release, instead_of=current, at=at)
        atomic.write_text(
            slot / _FILE_NAME, found.model_dump_json()
        )  # first: the follower must not undo what comes now
        fail_point("local.pinned")
    if current != found.release:
        slots.restore_release(slot, found.release)
    fail_point("local.linked")
    return found


def undo_rollback(slot: Path, name: str) -> LocalRollback:
    """Puts what was left in use again, if it is still here; the registry is followed once the pin is lifted.

    Raises NoSuchModel where nothing is pinned.
    """
    found = read_rollback(slot)
    if found is None or found.release.name != name:
        raise NoSuchModel(
            f"Expected '{name}' to be rolled back in the slot {slot}; it is not. There is nothing to undo.", where=name
        )
    if slots.bundle_path(slot, found.instead_of).exists():
        slots.restore_release(slot, found.instead_of)
    fail_point("local.restored")
    return found


def main(argv: Sequence[str]) -> int:
    """Does it, and prints the pin as JSON. `--undo_rollback` leaves the pin, so that it may be told of; `--remove_rollback` takes it away."""
    option = argv[2] if len(argv) == 3 else None
    if len(argv) not in (2, 3) or option not in (None, "--undo", "--lift"):
        sys.stderr.write("usage: python -m serving.deployment.local_rollback NAME SLOT [--undo | --lift]\n")
        return 2
    name, slot = argv[0], Path(argv[1])
    try:
        if option == "--lift":
            remove_rollback(slot)
            return 0
        found = undo_rollback(slot, name) if option else roll_back(slot, name, at=datetime.now(UTC).isoformat())
    except ForecasterError as error:
        sys.stderr.write(f"forecaster: {error}\n")
        return error.exit_code
    except OSError as error:  # a slot that cannot be written
        sys.stderr.write(f"forecaster: {error}\n")
        return 1
    sys.stdout.write(found.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The release folders of a slot: staging, publishing, restoring and pruning releases, each atomic.

A slot holds `releases/DIGEST/` with a bundle and `release.json`, and `current`, a link to one of them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forecaster.errors import BundleDamaged
from forecaster.storage import atomic
from forecaster.storage.failpoints import fail_point
from forecaster.storage.regular_files import read_regular_file

_MAX_FILE_BYTES = 1 << 20


class Release(BaseModel):
    """Name, version and digest of the model in a release folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    name: str
    version: str
    digest: str = Field(pattern="^[0-9a-f]{64}$")  # also the name of the folder

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads the release of a release folder; raises BundleDamaged."""
        try:
            return cls.model_validate_json(read_slot_file(folder, "release.json"))
        except (OSError, ValidationError) as error:
            raise BundleDamaged(
                f"Expected a release in {folder}; its release.json cannot be read ({error}). Publish it again.",
                where=str(folder),
            ) from error


def read_slot_file(folder: Path, name: str) -> bytes:
    """Reads a small file that describes the slot; raises OSError if it is no regular file or too large."""
    return read_regular_file(folder, name, max_bytes=_MAX_FILE_BYTES)


@contextmanager
def staging(slot: Path) -> Iterator[Path]:
    """Yields a temporary folder inside the slot to fetch a bundle into; it is removed afterwards."""
    releases = slot / "releases"
    releases.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=releases, prefix=".staging-") as folder:
        yield Path(folder)


def publish(slot: Path, bundle: Path, release: Release) -> None:
    """Makes a verified bundle the current release, atomically: a kill leaves the old or the new release current.

    Args:
        slot: The slot's folder.
        bundle: A folder inside `staging(slot)`; it is moved.
        release: The release of the bundle; raises BundleDamaged if the bundle has another digest.
    """
    validate_digest(bundle, release)
    folder = slot / "releases" / release.digest
    if not (folder / "release.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        with atomic.create_folder(folder) as draft:
            bundle.rename(draft / "bundle")
            (draft / "release.json").write_text(release.model_dump_json())
    else:  # the slot still has these files, perhaps under another version
        atomic.write_text(folder / "release.json", release.model_dump_json())
    _switch_current(slot, folder)


def restore_release(slot: Path, release: Release) -> None:
    """Makes a release that the slot still has current, atomically: a kill leaves the old or the new release current."""
    folder = slot / "releases" / release.digest
    # Updates the modification time, by which `prune_releases` finds the least recently used releases.
    atomic.write_text(folder / "release.json", release.model_dump_json())
    _switch_current(slot, folder)


def _switch_current(slot: Path, folder: Path) -> None:
    link = slot / f".current-{folder.name[:16]}"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.relative_to(slot))
    fail_point("reload.staged")
    link.replace(slot / "current")
    fail_point("reload.linked")
    atomic.sync_folder(slot)


def current_folder(slot: Path) -> Path:
    """Returns the folder of the current release; raises OSError if the link leads nowhere or to itself."""
    return Path(os.path.realpath(slot / "current", strict=True))  # Path.resolve raises RuntimeError for a loop of links


def current_release(slot: Path) -> Release | None:
    """Returns the current release of a slot; None if there is none that can be read."""
    try:
        return Release.load(current_folder(slot))
    except (OSError, BundleDamaged):
        return None


def bundle_path(slot: Path, release: Release) -> Path:
    """Returns the bundle folder of a release in the slot; in a slot that is a packaged model, `current` is the only release."""
    folder = slot / "releases" / release.digest
    return (folder if (slot / "releases").exists() else slot / "current") / "bundle"


def prune_releases(slot: Path, *, keep: int) -> None:
    """Removes all but `keep` releases: the current one and the most recently used."""
    for folder in _inactive_releases(slot)[keep - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)


def previous_release(slot: Path, name: str) -> Release | None:
    """Returns the release of this model that was current before; None if the slot has none."""
    for folder in _inactive_releases(slot):
        try:
            release = Release.load(folder)
        except BundleDamaged:
            continue
        if release.name == name and release.digest == folder.name:
            return release
    return None


def _inactive_releases(slot: Path) -> list[Path]:
    """Returns the folders of releases that are not current, the most recently used first."""
    current = Path(os.path.realpath(slot / "current"))
    folders = [
        folder
        for folder in (slot / "releases").glob("[!.]*")
        if folder.is_dir() and folder != current and (folder / "release.json").exists()
    ]
    return sorted(folders, key=lambda folder: (folder / "release.json").stat().st_mtime_ns, reverse=True)


def validate_digest(bundle: Path, release: Release) -> None:
    """Raises BundleDamaged unless the bundle has the digest of the release."""
    from forecaster.bundle import artifact

    digest = artifact.compute_bundle_digest(bundle)
    if digest != release.digest:
        raise BundleDamaged(
            f"Expected the bundle {release.digest} in {bundle}; found {digest}. Publish it again.", where=str(bundle)
        )

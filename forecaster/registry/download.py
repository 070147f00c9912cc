"""Downloads the bundle of a version: first the list of its files and the manifest, then the files, if their sizes agree.

The store may be filled by somebody else: a file that is too large, that the manifest does not name, or that is a link is found
before it is copied.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forecaster.errors import BundleDamaged
from forecaster.registry.logged_model import BUNDLE_FOLDER
from forecaster.registry.time_limit import limit_time
from forecaster.storage import regular_files
from forecaster.storage.limits import MAX_BUNDLE_BYTES, MAX_FILE_BYTES, MAX_FILES, MAX_TEXT_BYTES

_MANIFEST = "manifest.json"
# Errors of a file that must not be in a bundle; any other error is one of the store.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.EFBIG)

Sizes = Mapping[str, int | None]  # of each file in bytes; None where the store does not report it


class BundleDownload:
    """The bundle in the artifacts of one version."""

    def __init__(self, location: str, *, uri: str, where: str) -> None:
        """Opens the artifacts of a version.

        Args:
            location: The URI of the artifacts.
            uri: The URI of the MLflow store.
            where: The version, for the messages of errors.
        """
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        repository = _open_repository(location, uri)
        self._repository, self._where = repository, where
        folder = repository.artifact_dir if issubclass(type(repository), LocalArtifactRepository) else None
        self._folder = None if folder is None else Path(folder) / BUNDLE_FOLDER

    def fetch_manifest(self, destination: Path, *, digest: str) -> Path:
        """Copies the manifest to `destination`/bundle, and returns that folder; raises BundleDamaged if it has another digest."""
        return self._fetch_manifest(destination, digest, self._list_sizes())

    def fetch(self, destination: Path, *, digest: str) -> Path:
        """Copies the bundle to `destination`/bundle, and returns that folder.

        Raises BundleDamaged before it copies more than the manifest, if the files are not exactly those that the manifest names.
        """
        sizes = self._list_sizes()
        bundle = self._fetch_manifest(destination, digest, sizes)
        declared = _declared_sizes((bundle / _MANIFEST).read_bytes())
        found = {name: size for name, size in sizes.items() if name != _MANIFEST}
        different = [name for name in sorted({*declared, *found}) if not _agree(name, declared, found)]
        if different:
            name = different[0]
            raise self._damaged(
                f"{name[:100]!r} has {found.get(name, 'no')} bytes in the store and {declared.get(name, 'no')} in the manifest"
            )
        total = sum(declared.values())
        if max(declared.values(), default=0) > MAX_FILE_BYTES or total > MAX_BUNDLE_BYTES:
            raise self._damaged(f"the files have {total} bytes, and at most {MAX_BUNDLE_BYTES} are allowed")
        self._copy(sorted(declared), bundle, declared)
        return bundle

    def _fetch_manifest(self, destination: Path, digest: str, sizes: Sizes) -> Path:
        size = sizes.get(_MANIFEST, 0)
        if size is not None and size > MAX_TEXT_BYTES:
            raise self._damaged(f"{_MANIFEST} has {size} bytes, and at most {MAX_TEXT_BYTES} are allowed")
        bundle = destination / BUNDLE_FOLDER
        bundle.mkdir()
        self._copy([_MANIFEST], bundle, {_MANIFEST: MAX_TEXT_BYTES if size is None else size})
        check_manifest(bundle, digest, where=self._where)
        return bundle

    def _list_sizes(self) -> dict[str, int | None]:
        if self._folder is not None:
            with self._damage_translated():
                names = regular_files.list_folder(self._folder, max_entries=MAX_FILES)
                return {name: regular_files.measure_regular_file(self._folder, name) for name in names}
        with limit_time(f"the store of the files of {self._where}"):
            infos = list(self._repository.list_artifacts(BUNDLE_FOLDER))
        names = [str(info.path).removeprefix(f"{BUNDLE_FOLDER}/") for info in infos]
        if len(infos) > MAX_FILES or any(info.is_dir for info in infos) or any("/" in name for name in names):
            raise self._damaged(f"there are {len(infos)} entries, of which some are folders or too many")
        return {name: info.file_size for name, info in zip(names, infos, strict=True)}

    def _copy(self, names: list[str], bundle: Path, sizes: Mapping[str, int]) -> None:
        if self._folder is None:
            for name in names:
                where = f"the store of the file '{name}' of {self._where}"
                _download_file(
                    self._repository, f"{BUNDLE_FOLDER}/{name}", bundle / name, num_bytes=sizes[name], where=where
                )
            return
        with self._damage_translated():
            for name in names:
                regular_files.copy_regular_file(self._folder, name, bundle / name, max_bytes=sizes[name])

    @contextmanager
    def _damage_translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _DAMAGE:
                raise
            raise self._damaged(f"{error.filename}: {error.strerror}") from error

    def _damaged(self, cause: str) -> BundleDamaged:
        return BundleDamaged(
            f"The bundle of {self._where} should consist of the files of its manifest; {cause}. "
            "Register it again from an unaltered copy.",
            where=self._where,
        )


def download_file(location: str, name: str, target: Path, *, uri: str, num_bytes: int) -> None:
    """Downloads one file of the artifacts at a location, in the time that its size allows.

    Args:
        location: The URI of the artifacts.
        name: The path of the file in them.
        target: The file to write.
        uri: The URI of the MLflow store.
        num_bytes: The size of the file.
    """
    _download_file(
        _open_repository(location, uri), name, target, num_bytes=num_bytes, where=f"the store of the file '{name}'"
    )


def _open_repository(location: str, uri: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(location, tracking_uri=uri, registry_uri=uri)


def _download_file(repository: Any, name: str, target: Path, *, num_bytes: int, where: str) -> None:
    """Downloads one file in this thread; `download_artifacts` uses another one, which the interpreter waits for at its end."""
    with limit_time(where, num_bytes=num_bytes):
        repository._download_file(name, str(target))


def check_manifest(bundle: Path, digest: str, *, where: str) -> None:
    """Raises BundleDamaged unless the manifest of a bundle can be read and has this digest."""
    try:
        content = regular_files.read_regular_file(bundle, _MANIFEST, max_bytes=MAX_TEXT_BYTES)
    except OSError as error:
        raise BundleDamaged(
            f"The bundle of {where} needs a readable manifest.json: {error.strerror}. "
            "Register it again from an unaltered copy.",
            where=where,
        ) from error
    actual_digest = hashlib.sha256(content).hexdigest()
    if actual_digest != digest:
        raise BundleDamaged(
            f"The manifest of {where} should have the digest {digest}; it has {actual_digest}. "
            "Register the bundle again from an unaltered copy.",
            where=where,
        )


def _declared_sizes(manifest: bytes) -> dict[str, int]:
    """Returns the size of each file that a manifest names; empty where it is no manifest, which the loader reports."""
    try:
        entries = json.loads(manifest)["files"]
        return {str(name): int(entry["size"]) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _agree(name: str, declared: Mapping[str, int], found: Sizes) -> bool:
    return name in declared and name in found and found[name] in (None, declared[name])

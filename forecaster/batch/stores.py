"""Folders on this machine or, through fsspec, in an object store: files appear whole or not at all."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from forecaster.errors import ForecasterError, InputError, MissingPackage, SourceNotFound, SourceUnavailable
from forecaster.installation import DISTRIBUTION
from forecaster.storage.addresses import redact_addresses
from forecaster.storage.atomic import write_file
from forecaster.storage.locks import open_locked

_DIGEST_CHUNK_BYTES = 1 << 20


class StoredFile(NamedTuple):
    """The SHA-256 digest, in hexadecimal digits, and the size of a file in bytes."""

    sha256: str
    size: int


class _StoreReader(io.RawIOBase):
    """A file of a store, whose errors are translated while it is read too: the store may stop responding in its middle."""

    def __init__(self, file: Any, translate_errors: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self._file, self._translate_errors = file, translate_errors

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Returns the position."""
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Changes the position, without a request."""
        return int(self._file.seek(offset, whence))

    def read(self, size: int = -1, /) -> bytes:
        """Reads bytes; raises SourceUnavailable."""
        with self._translate_errors():
            content: bytes = self._file.read(size)
        return content

    def readinto(self, buffer: Any, /) -> int:
        """Reads bytes into a buffer; raises SourceUnavailable."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Closes the file."""
        if not self.closed:
            self._file.close()
        super().close()


class Store:
    """A folder of files with relative names (`as_of=2026-01-31/part-00000.parquet`).

    On this machine a file is written to a draft, synced and renamed. An object of a store appears when its upload is complete.

    Args:
        location: A path, or a URL with a scheme such as `s3://bucket/folder`.
    Raises:
        MissingPackage: The package of the store is not installed.
        SourceUnavailable: The store cannot be opened.
    """

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/") or "/"
        self.is_local = "://" not in location
        self._folder = Path(location)
        self._filesystem: Any = None
        self._root = ""
        if not self.is_local:
            with self._translate_errors():
                import fsspec

                self._filesystem, root = fsspec.core.url_to_fs(self.location)
                self._root = root.rstrip("/")

    @property
    def shown_location(self) -> str:
        """The location without secrets, for messages."""
        return redact_addresses(self.location)

    @property
    def is_shared(self) -> bool:
        """Whether other processes can read the folder; a store in the memory of this one they cannot."""
        return not self.location.startswith("memory://")

    def list_files(self, below: str = "") -> dict[str, int]:
        """Returns the size of every file below the folder, or one in it, by its name relative to the folder; sorted by name."""
        if self.is_local:
            paths = [path for path in (self._folder / below).rglob("*") if path.is_file()]
            sizes = {path.relative_to(self._folder).as_posix(): path.stat().st_size for path in paths}
        else:
            with self._translate_errors(below):
                self._filesystem.invalidate_cache()
                found = self._filesystem.find(self._path(below), detail=True)
            sizes = {path[len(self._root) :].lstrip("/"): int(entry["size"]) for path, entry in found.items()}
        return {name: sizes[name] for name in sorted(sizes) if name}

    def is_file(self) -> bool:
        """Whether the location itself is a file rather than a folder."""
        if self.is_local:
            return self._folder.is_file()
        with self._translate_errors():
            return bool(self._filesystem.isfile(self._root))

    def open_filesystem(self, names: Sequence[str]) -> tuple[Any, list[str]]:
        """Returns the file system of the store for `pyarrow.dataset`, None for this machine's, and the paths of files in it."""
        if self.is_local:
            return None, [str(self._folder / name) for name in names]
        return self._filesystem, [self._path(name) for name in names]

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        if self.is_local:
            return (self._folder / name).is_file()
        with self._translate_errors():
            self._filesystem.invalidate_cache()
            return bool(self._filesystem.isfile(self._path(name)))

    def open_file(self, name: str) -> Any:
        """Opens a file for reading, with random access; raises SourceNotFound, and SourceUnavailable while it is read."""
        with self._translate_errors(name):
            if self.is_local:
                return (self._folder / name).open("rb")
            file = self._filesystem.open(self._path(name), "rb")
        return _StoreReader(file, partial(self._translate_errors, name))

    def read_bytes(self, name: str) -> bytes:
        """Reads a whole file; raises SourceNotFound."""
        with self._translate_errors(name):
            return (self._folder / name).read_bytes() if self.is_local else self._filesystem.cat_file(self._path(name))

    def write_bytes(self, name: str, content: Any) -> StoredFile:
        """Writes a file whole, in place of an earlier one; returns its digest and size."""
        view = memoryview(content)
        if self.is_local:
            write_file(self._folder / name, lambda file: file.write(view))
            (self._folder / name).chmod(0o644)
        else:
            with self._translate_errors(name, is_write=True):
                self._filesystem.pipe_file(self._path(name), bytes(view))
        return StoredFile(hashlib.sha256(view).hexdigest(), view.nbytes)

    def compute_digest(self, name: str) -> StoredFile:
        """Reads a file and returns its digest and size; raises SourceNotFound."""
        digest, size = hashlib.sha256(), 0
        if not self.is_local:  # another machine may have replaced it since it was listed
            self._filesystem.invalidate_cache(self._path(name))
        with self.open_file(name) as file:
            while chunk := file.read(_DIGEST_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        return StoredFile(digest.hexdigest(), size)

    @contextmanager
    def hold_lock(self, name: str) -> Iterator[None]:
        """Holds a lock among the processes of this machine while the block runs; stores have none.

        Raises InputError if another process holds it. A killed process holds no lock.
        """
        if not self.is_local:
            yield
            return
        try:
            file = open_locked(self._folder / name)
        except BlockingIOError:
            raise InputError(
                f"Expected no other process of this batch; one is running in {self.shown_location}. Wait for it, or "
                "stop it first.",
                where=self.shown_location,
            ) from None
        with file:
            yield

    def contains(self, other: Store) -> bool:
        """Whether another location lies in this folder, or is the same."""
        if self.is_local and other.is_local:
            return other._folder.resolve().is_relative_to(self._folder.resolve())
        return f"{other.location}/".startswith(f"{self.location}/")

    def remove_drafts(self, folder: str) -> None:
        """Removes what killed processes left of files that they did not finish; on this machine only, since stores have none."""
        if self.is_local:
            for path in (self._folder / folder).rglob(".*"):
                path.unlink(missing_ok=True)

    def remove_folder(self, name: str) -> None:
        """Removes a folder with all its files, if it exists, and the folders around it that become empty."""
        if self.is_local:
            shutil.rmtree(self._folder / name, ignore_errors=True)
            for folder in (self._folder / name).parents:
                if folder == self._folder or not folder.is_dir() or any(folder.iterdir()):
                    break
                folder.rmdir()
            return
        with self._translate_errors(name):
            self._filesystem.invalidate_cache()
            if self._filesystem.isdir(self._path(name)):
                self._filesystem.rm(self._path(name), recursive=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _translate_errors(self, name: str = "", *, is_write: bool = False) -> Iterator[None]:
        """Translates the exceptions of a store, which may be of any class; those of this machine's files stay OSErrors."""
        shown = f"{self.shown_location}/{name}" if name else self.shown_location
        try:
            yield
        except ForecasterError:
            raise
        except ImportError as error:
            raise MissingPackage(
                f"Expected the packages that read {self.location.split('://')[0]}://; {error}. Install {DISTRIBUTION}[sources], "
                "and the package of the store (s3fs, gcsfs, adlfs).",
                where=shown,
            ) from error
        except FileNotFoundError as error:
            if is_write and not self.is_local:
                raise SourceNotFound(
                    f"Expected a bucket for {shown}; found none. Create it, or correct the URL.", where=shown
                ) from error
            raise SourceNotFound(f"Expected a file at {shown}; found none. Check the path.", where=shown) from error
        except Exception as error:  # each store has its own exception classes
            if self.is_local:
                raise
            raise SourceUnavailable(
                f"Expected a response for {shown}; the store failed with {type(error).__name__}. Check the URL, the keys in the "
                "environment and that the store is running, then run the same command again.",
                where=shown,
            ) from None

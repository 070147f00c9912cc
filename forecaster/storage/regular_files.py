"""Regular files of folders that somebody else may have filled: no link is followed, and never more than a limit is read.

The path of the folder itself may contain links. Everything in it that is not a regular file raises OSError before it is opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CHUNK_BYTES = 1 << 20


def list_folder(folder: Path, *, max_entries: int) -> list[str]:
    """Returns the sorted names in a folder; raises OSError if there are more than `max_entries`."""
    names: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if len(names) == max_entries:
                raise OSError(errno.EFBIG, f"the folder has more than {max_entries} entries", str(folder))
            names.append(entry.name)
    return sorted(names)


def measure_regular_file(folder: Path, name: str) -> int:
    """Returns the size of a regular file without opening it; raises OSError for anything else."""
    with _open_folder(folder) as folder_fd:
        return _check_regular(os.stat(name, dir_fd=folder_fd, follow_symlinks=False), folder / name)


def read_regular_file(folder: Path, name: str, *, max_bytes: int) -> bytes:
    """Returns the content of a regular file; raises OSError for anything else, and for more than `max_bytes`."""
    return b"".join(_iter_chunks(folder, name, max_bytes))


def copy_regular_file(folder: Path, name: str, destination: Path, *, max_bytes: int) -> None:
    """Copies the content of a regular file to a new file; raises OSError as `read_regular_file` does."""
    with destination.open("xb") as file:
        for chunk in _iter_chunks(folder, name, max_bytes):
            file.write(chunk)


def _iter_chunks(folder: Path, name: str, max_bytes: int) -> Iterator[bytes]:
    path = folder / name
    with _open_folder(folder) as folder_fd:
        # Opening a device can have side effects, so its kind is checked first; and once more, because it may have been replaced.
        _check_regular(os.stat(name, dir_fd=folder_fd, follow_symlinks=False), path)
        # Without O_NONBLOCK, opening a FIFO would wait for a writer.
        file_fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
    with os.fdopen(file_fd, "rb", buffering=0) as file:
        size = _check_regular(os.fstat(file_fd), path)
        remaining = max_bytes
        if size > max_bytes:
            raise _too_large(path, max_bytes, size)
        while chunk := file.read(min(_CHUNK_BYTES, remaining + 1)):
            remaining -= len(chunk)
            if remaining < 0:  # the file has grown since
                raise _too_large(path, max_bytes, None)
            yield chunk


@contextmanager
def _open_folder(folder: Path) -> Iterator[int]:
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield folder_fd
    finally:
        os.close(folder_fd)


def _check_regular(status: os.stat_result, path: Path) -> int:
    """Returns the size of a regular file; raises OSError for anything else."""
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return status.st_size


def _too_large(path: Path, max_bytes: int, size: int | None) -> OSError:
    found = "more" if size is None else f"{size}"
    return OSError(errno.EFBIG, f"expected at most {max_bytes} bytes, found {found}", str(path))

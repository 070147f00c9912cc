"""Files and folders that a kill or a power cut leaves old or new, never partial: written to a draft, synced, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def write_file(path: Path, write_content: Callable[[IO[bytes]], object]) -> None:
    """Calls `write_content` with a temporary file of the same folder, syncs it, and renames it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write_content(file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    write_file(path, lambda file: file.write(text.encode()))


@contextmanager
def create_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder to fill, which becomes `path` when the block succeeds; `path` must be absent or empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield draft
        for folder, _, names in os.walk(draft):
            for name in names:
                _fsync(Path(folder) / name)
            sync_folder(Path(folder))
        draft.chmod(0o755)
        draft.rename(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes the entries of a folder durable across a power cut."""
    _fsync(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

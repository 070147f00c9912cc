"""What an interrupted training keeps, and the checkpoints of the variants that it tries."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from forecaster.errors import TrainingError
from forecaster.series import Panel
from forecaster.storage.locks import open_locked
from pipelines.settings import Root


@contextmanager
def explain_interrupt(folder: Path, what: str) -> Iterator[None]:
    """Adds a note to an interrupt that says what is kept; only if the folder has a checkpoint, and no other note was added.

    Args:
        folder: Folder of the checkpoints.
        what: What is kept there, such as "finished epochs".
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if any(folder.glob("*.ckpt")) and not getattr(interrupt, "__notes__", ()):
            interrupt.add_note(f"The {what} are kept in {folder}; the same command continues after them.")
        raise


@contextmanager
def lock_checkpoint_folder(folder: Path) -> Iterator[Path]:
    """Creates and locks the checkpoint folder of one fit; raises TrainingError if another process holds the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    lock_path = folder.with_name(f"{folder.name}.lock")
    try:
        lock = open_locked(lock_path)
    except BlockingIOError as error:
        raise TrainingError(
            f"Expected no other process to run this training; it is already running (lock {lock_path}). Wait for it to "
            "finish, or change its options.",
            where=str(folder),
        ) from error
    with lock:
        yield folder


def read_run_id(folder: Path) -> str | None:
    """Returns the id of the run that an interrupted training opened; None if it opened none."""
    path = folder / "run_id"
    return path.read_text() if path.exists() else None


@contextmanager
def keep_variant_checkpoints(
    panel: Panel,
    root: Root,
    *,
    name: str,
    horizon: int,
    preset: str | None,
    season: int | None = None,
    test_windows: int,
) -> Iterator[Path]:
    """Provides the folder for the checkpoints of a preset's variants; it is removed when the block ends without an error.

    If another process selects among the same variants at that moment, it removes the folder at its own end. The training of the
    selected variant belongs into the block too: if it is interrupted, the next one does not select again.
    """
    arguments = f"{panel.digest}{name}{horizon}{preset}{test_windows}{'' if season is None else f' {season}'}"
    folder = root.checkpoints / f"variants-{hashlib.sha256(arguments.encode()).hexdigest()[:16]}"
    with explain_interrupt(folder, "finished variants and epochs"):
        yield folder
    with suppress(BlockingIOError), lock_variants(folder, timeout_s=0.0):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def lock_variants(folder: Path, *, timeout_s: float | None = None) -> Iterator[None]:
    """Lets one process at a time select among the variants of a folder; others wait, and then find them finished.

    Raises BlockingIOError if the lock is not free after `timeout_s`; None waits without limit.
    """
    lock_path = folder.with_name(f"{folder.name}.lock")
    with open_locked(lock_path, timeout_s=timeout_s):
        try:
            yield
        finally:
            lock_path.unlink(missing_ok=True)

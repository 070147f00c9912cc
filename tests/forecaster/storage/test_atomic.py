"""Atomic writes leave the old or the new content, never a partial one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from forecaster.storage import atomic


def test_a_written_file_has_the_written_content(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    atomic.write_text(path, "one\n")
    atomic.write_text(path, "zwei ä\n")
    assert path.read_text() == "zwei ä\n"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_file(
    tmp_path: Path, fault: type[BaseException]
) -> None:
    path = tmp_path / "file"
    atomic.write_text(path, "old")

    def fill(file: IO[bytes]) -> None:
        file.write(b"half of the n")
        raise fault

    with pytest.raises(fault):
        atomic.write_file(path, fill)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, syncs = tmp_path / "file", []
    original_fsync = os.fsync

    def fsync(handle: int) -> None:
        syncs.append((os.fstat(handle).st_ino, path.exists()))
        original_fsync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    atomic.write_text(path, "new")
    assert syncs == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_a_folder_appears_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with atomic.create_folder(path) as draft:
        (draft / "inside").mkdir()
        (draft / "inside" / "file").write_text("x")
        assert not path.exists()
    assert (path / "inside" / "file").read_text() == "x"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_whose_write_fails_never_appears(tmp_path: Path) -> None:
    def write_interrupted() -> None:
        with atomic.create_folder(tmp_path / "folder") as draft:
            (draft / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_non_empty_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(OSError), atomic.create_folder(tmp_path / "folder") as draft:
        (draft / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "old"]


KILL_PROGRAM = """
import os, signal, sys
from pathlib import Path
from forecaster.storage import atomic

folder = Path(sys.argv[1])
atomic.write_text(folder / "file", "old")
original_fsync, calls = os.fsync, []

def fsync(handle):
    calls.append(handle)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    original_fsync(handle)

os.fsync = fsync
with atomic.create_folder(folder / "folder") as draft:
    (draft / "one").write_text("1")
    (draft / "two").write_text("2")
atomic.write_text(folder / "file", "new")
"""


# The number of the sync: file one, file two, their folder, the parent folder; 99 lets the program finish.
@pytest.mark.integration
@pytest.mark.parametrize("moment", [1, 2, 3, 5, 99])
def test_a_killed_write_leaves_the_old_or_the_new_content(tmp_path: Path, moment: int) -> None:
    completed = subprocess.run([sys.executable, "-c", KILL_PROGRAM, str(tmp_path), str(moment)], check=False)
    assert completed.returncode == (0 if moment == 99 else -signal.SIGKILL)
    visible = {path.name: path for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert visible["file"].read_text() == ("new" if moment == 99 else "old")
    assert ("folder" in visible) == (moment > 3)
    if "folder" in visible:
        assert {path.name: path.read_text() for path in visible["folder"].iterdir()} == {"one": "1", "two": "2"}

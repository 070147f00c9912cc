"""What is said after Ctrl-C, and how long the checkpoints of variants are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from forecaster.storage.locks import open_locked
from pipelines import cli
from pipelines.settings import Root
from pipelines.training.interruptions import explain_interrupt, keep_variant_checkpoints, lock_variants
from tests.factories import make_panel, make_wave

PANEL = make_panel(make_wave(30))


def interrupt_with_notes(folder: Path, *outer_folders: Path) -> list[str]:
    """Interrupts a block within those of all folders, and returns the notes."""
    with pytest.raises(KeyboardInterrupt) as caught:
        raise_within([folder, *outer_folders])
    return getattr(caught.value, "__notes__", [])


def raise_within(folders: list[Path]) -> None:
    if not folders:
        raise KeyboardInterrupt
    *inner_folders, outer_folder = folders
    with explain_interrupt(outer_folder, f"checkpoints of {outer_folder.name}"):
        raise_within(inner_folders)


def test_an_interrupt_says_what_is_kept_only_if_something_is(tmp_path: Path) -> None:
    fit, variants = tmp_path / "fit", tmp_path / "variants"
    assert interrupt_with_notes(fit, variants) == []
    variants.mkdir()
    (variants / "1.ckpt").touch()
    note = "The checkpoints of {} are kept in {}; the same command continues after them."
    assert interrupt_with_notes(fit, variants) == [note.format("variants", variants)]
    fit.mkdir()
    (fit / "last.ckpt").touch()
    assert interrupt_with_notes(fit, variants) == [note.format("fit", fit)], "one note is enough"


def hold_variants(root: Root, preset: str | None = None) -> Path:
    """Writes a checkpoint of a variant in a block that succeeds; returns the folder."""
    with keep_variant_checkpoints(PANEL, root, name="any", horizon=3, preset=preset, test_windows=1) as folder:
        with lock_variants(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "1.ckpt").touch()
        assert [path.name for path in folder.parent.iterdir()] == [folder.name], "the lock file is deleted"
    return folder


def test_checkpoints_of_variants_are_kept_until_the_training_succeeds(tmp_path: Path) -> None:
    root = Root(tmp_path)
    folder = hold_variants(root)
    assert not folder.exists()
    with pytest.raises(OSError, match="full"):
        fail_with_checkpoint(root)
    assert (folder / "2.ckpt").exists()
    assert hold_variants(root) == folder, "the same command finds the same folder"
    assert hold_variants(root, preset="monthly") != folder


def test_the_folder_of_variants_is_kept_while_another_process_selects_among_them(tmp_path: Path) -> None:
    root = Root(tmp_path)
    with keep_variant_checkpoints(PANEL, root, name="any", horizon=3, preset=None, test_windows=1) as folder:
        folder.mkdir(parents=True)
        lock = open_locked(folder.with_name(f"{folder.name}.lock"))
    with lock:
        assert folder.exists(), "a fit writes its checkpoints there"
    assert hold_variants(root) == folder
    assert not folder.exists()


def fail_with_checkpoint(root: Root) -> None:
    with keep_variant_checkpoints(PANEL, root, name="any", horizon=3, preset=None, test_windows=1) as folder:
        folder.mkdir(parents=True)
        (folder / "2.ckpt").touch()
        raise OSError("The disk is full.")


@pytest.mark.parametrize(
    ("notes", "line"),
    [
        ((), "forecaster: interrupted"),
        (("The finished epochs are kept in x.",), "forecaster: interrupted. The finished epochs are kept in x."),
    ],
)
def test_an_interrupted_command_prints_its_notes_and_exits_with_130(
    notes: tuple[str, ...], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_command(*_: object, **__: object) -> None:
        interrupt = KeyboardInterrupt()
        for note in notes:
            interrupt.add_note(note)
        raise interrupt

    monkeypatch.setattr(cli, "app", run_command)
    with pytest.raises(SystemExit) as caught:
        cli.main(["train"])
    assert caught.value.code == 130
    assert capsys.readouterr().err == f"{line}\n"


def test_the_command_line_does_not_swallow_interrupts() -> None:
    assert not cli.app.suppress_keyboard_interrupt

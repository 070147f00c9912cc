"""Tables that commands write: in the format of their suffix, completely or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from forecaster.errors import InputError
from pipelines.cli import main
from pipelines.commands.console import write_table
from pipelines.commands.options import validate_table_paths

TABLE = pd.DataFrame({"unique_id": ["a", "b"], "mean": [1.0, 2.5]})


@pytest.mark.parametrize("name", ["f.csv", "f.CSV", "f.csv.gz", "f.parquet"])
def test_a_table_has_the_format_of_its_suffix(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    validate_table_paths(out=path)
    write_table(path, lambda: TABLE)
    read = pd.read_parquet(path) if name.endswith("parquet") else pd.read_csv(path)
    pd.testing.assert_frame_equal(read, TABLE, check_dtype=False)
    assert [each.name for each in tmp_path.iterdir()] == [name]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["f.xlsx", "f.json", "f.tsv", "f.txt", "f", "f.gz", "f.parquet.csv.zip"])
def test_an_unknown_suffix_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--scores with a name ending in \.csv, \.csv\.gz, \.parquet; found") as error:
        validate_table_paths(out=None, scores=tmp_path / name)
    assert error.value.where == "scores"


@pytest.mark.parametrize("name", ["f.csv", "f.parquet"])
def test_a_full_disk_leaves_the_previous_file_and_no_draft(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / name
    path.write_text("previous")
    monkeypatch.setattr("os.fsync", fill_disk)
    with pytest.raises(OSError, match="No space left"):
        write_table(path, lambda: TABLE)
    assert path.read_text() == "previous"
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_a_full_disk_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.cli.app", fail)
    with pytest.raises(SystemExit) as stopped:
        main(["lab", "sine"])
    assert stopped.value.code == 1
    assert "Expected free space on the disk; the system reports: No space left on device." in capsys.readouterr().err

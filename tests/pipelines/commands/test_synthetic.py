"""The command `forecaster synthetic`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from forecaster.errors import InputError
from forecaster.synthetic.generation import FAMILIES
from pipelines.commands.synthetic import synthetic


def test_without_a_file_the_families_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    synthetic()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(FAMILIES)
    synthetic(season=5)
    assert "calendar " not in capsys.readouterr().out


def test_series_and_plot_are_written_and_repeatable(tmp_path: Path) -> None:
    tables = []
    for name in ("a.csv", "b.csv"):
        synthetic(families=("counts", "promotions"), series=2, length=30, out=tmp_path / name, plot=tmp_path / "a.png")
        tables.append(pd.read_csv(tmp_path / name))
    pd.testing.assert_frame_equal(*tables)
    assert list(tables[0].columns) == ["unique_id", "ds", "y", "promotion"]
    assert tables[0].groupby("unique_id").size().to_dict() == dict.fromkeys(
        ("counts_0", "counts_1", "promotions_0", "promotions_1"), 30
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_invalid_options_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for options in ({"families": ("walk",)}, {"series": 0}, {"season": 0}, {"plot": tmp_path / "a.txt"}):
        with pytest.raises(InputError):
            synthetic(**{"out": tmp_path / "a.csv", **options})
    assert list(tmp_path.iterdir()) == []

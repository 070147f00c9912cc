"""Folders of data drops, on disk and in object stores: later drops correct earlier ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest

from forecaster.errors import (
    BadStamp,
    DuplicateStamp,
    InputError,
    MissingColumn,
    MissingPackage,
    NoData,
    NotANumber,
    SourceNotFound,
    SourceUnavailable,
)
from pipelines.sources import DataSource, read_panel
from pipelines.sources.drops import is_incomplete, sort_by_name
from tests.pipelines.conftest import make_noise_frame

DAYS = pd.date_range("2026-01-01", periods=4, freq="D").strftime("%Y-%m-%d")


def make_rows(y: Sequence[object], *, days: Sequence[str] = tuple(DAYS), name: str = "a") -> str:
    return "unique_id,ds,y\n" + "".join(f"{name},{day},{value}\n" for day, value in zip(days, y, strict=False))


def write_folder(tmp_path: Path, **files: str) -> DataSource:
    folder = tmp_path / "drops"
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return DataSource(str(folder), freq="D")


def values_of(data: DataSource) -> list[float]:
    return read_panel(data).series[0].y.tolist()


def test_files_of_every_format_form_one_panel(tmp_path: Path) -> None:
    frame = make_noise_frame(3, steps=30)
    ds = frame["ds"]
    folder = tmp_path / "drops"
    folder.mkdir()
    frame[ds < "2026-01-01T10"].to_csv(folder / "1.csv", index=False)
    frame[(ds >= "2026-01-01T10") & (ds < "2026-01-01T20")].to_parquet(folder / "2.parquet")
    frame[ds >= "2026-01-01T20"].to_csv(folder / "3.csv.gz", index=False)
    frame.to_csv(tmp_path / "complete.csv", index=False)
    drops, complete = read_panel(DataSource(str(folder))), read_panel(DataSource(str(tmp_path / "complete.csv")))
    assert drops.digest == complete.digest
    assert drops.repairs == complete.repairs == ()
    assert DataSource(str(folder)).name == "drops"


def test_a_later_file_corrects_an_earlier_one_and_is_reported(tmp_path: Path) -> None:
    data = write_folder(tmp_path, day1__csv=make_rows([1, 2, 3, 4]), day2__csv=make_rows([20, 3, ""], days=DAYS[1:]))
    panel = read_panel(data)
    np.testing.assert_array_equal(panel.series[0].y, [1, 20, 3, np.nan])
    messages = " ".join(panel.repairs)
    assert "later drops corrected 2 rows of earlier ones, 1 of them withdrawn" in messages
    assert "series 'a' at 2026-01-02T00:00:00, 2.0 became 20.0 in day2.csv" in messages
    assert "later drops repeated 1 rows unchanged" in messages


def test_files_are_ordered_by_name_and_not_by_time(tmp_path: Path) -> None:
    data = write_folder(tmp_path, drop_2__csv=make_rows([2, 2, 2, 2]), drop_10__csv=make_rows([10, 10, 10, 10]))
    os.utime(Path(data.source) / "drop_2.csv")  # the newest modification time
    assert values_of(data) == [10] * 4
    assert sort_by_name(["b", "a10", "a9", "a010", "a"]) == ["a", "a9", "a010", "a10", "b"]
    assert sort_by_name(["2026-01-02.csv", "2026-01-01.csv"]) == ["2026-01-01.csv", "2026-01-02.csv"]


def test_the_last_of_three_files_wins_and_a_correction_is_counted_once(tmp_path: Path) -> None:
    data = write_folder(tmp_path, a__csv=make_rows([1, 1, 1, 1]), b__csv=make_rows([2, 2]), c__csv=make_rows([3, 2]))
    panel = read_panel(data)
    assert panel.series[0].y.tolist() == [3, 2, 1, 1]
    assert any("corrected 1 rows" in line for line in panel.repairs)
    assert any("repeated 1 rows unchanged" in line for line in panel.repairs)


@pytest.mark.parametrize("name", [".x.csv", "_x.csv", "~x.csv", "x.tmp.csv", "x.PART.parquet", ".x.csv.abc123"])
def test_a_partially_written_file_is_skipped_and_reported(name: str, tmp_path: Path) -> None:
    assert is_incomplete(name)
    data = write_folder(tmp_path, a__csv=make_rows([1, 2, 3, 4]))
    (Path(data.source) / name).write_text("unique_id,ds")
    panel = read_panel(data)
    assert panel.series[0].y.tolist() == [1, 2, 3, 4]
    assert any(name in line and "skipped" in line for line in panel.repairs)


@pytest.mark.parametrize("name", ["x.csv.tmp", "part-0001.csv", "temperature.csv", "2026.csv"])
def test_only_whole_words_mark_a_partially_written_file(name: str) -> None:
    assert not is_incomplete(name)


@pytest.mark.parametrize(
    ("text", "error_class", "match"),
    [
        ("unique_id,ds\na,2026-01-01\n", MissingColumn, "y not found"),
        (make_rows([1, "x"]), NotANumber, "'x'"),
        (make_rows([1, 2], days=["2026-01-01", "31.31.2026"]), BadStamp, "31.31"),
        ("", InputError, "readable"),
        ("unique_id,ds,y\n", NoData, "row"),
        (make_rows([1, 2], days=["2026-01-01T00:00Z", "2026-01-02T00:00Z"]), BadStamp, "declare the zone"),
    ],
)
def test_an_invalid_file_is_named_in_the_error(
    text: str, error_class: type[InputError], match: str, tmp_path: Path
) -> None:
    data = write_folder(tmp_path, good__csv=make_rows([1, 2, 3, 4]), invalid__csv=text)
    with pytest.raises(error_class, match=match) as raised:
        read_panel(data)
    assert "invalid.csv" in raised.value.message
    assert raised.value.where == str(Path(data.source) / "invalid.csv")


def test_conflicting_values_within_one_file_are_rejected(tmp_path: Path) -> None:
    duplicated = make_rows([1, 2, 3, 4]) + "a,2026-01-01,5\n"
    with pytest.raises(DuplicateStamp, match="2026-01-01"):
        read_panel(write_folder(tmp_path, a__csv=make_rows([0, 0]), b__csv=duplicated))


def test_files_can_have_covariates_static_features_and_channels(tmp_path: Path) -> None:
    header = "unique_id,ds,y,promo,region,visits\n"
    first = header + "".join(f"007,{day},{n},0,north,{n}\n" for n, day in enumerate(DAYS))
    later = header + f"007,{DAYS[3]},9,1,north,8\n007,2026-01-05,,1,north,\n"
    data = write_folder(tmp_path, a__csv=first, b__csv=later)._replace(
        covariates=("promo",), static=("region",), channels=("visits",)
    )
    series = read_panel(data).series[0]
    assert (series.id, series.static["region"], series.y.tolist()) == ("007", "north", [0, 1, 2, 9])
    assert series.covariates["promo"].tolist() == [0, 0, 0, 1, 1]
    assert series.channels["visits"].tolist() == [0, 1, 2, 8]


def test_files_can_have_integer_steps(tmp_path: Path) -> None:
    first = "unique_id,ds,y\na,1,1\na,2,2\na,3,3\n"
    data = write_folder(tmp_path, a__csv=first, b__csv="unique_id,ds,y\na,3,30\na,4,4\n")._replace(freq=1)
    assert values_of(data) == [1, 2, 30, 4]


# Late data: rows are selected by their timestamp, not by their arrival.


def test_rows_after_the_cutoff_are_ignored_and_late_rows_before_it_are_included(tmp_path: Path) -> None:
    data = write_folder(tmp_path, a__csv=make_rows([1, 2, "", 4]), b__csv=make_rows([30], days=[DAYS[2]]))
    panel = read_panel(data._replace(cutoff=DAYS[2]))
    assert panel.series[0].y.tolist() == [1, 2, 30]
    assert any("ignored 1 rows after the cutoff 2026-01-03" in line for line in panel.repairs)
    assert str(panel.cutoff.date()) == DAYS[2]  # type: ignore[union-attr]


def test_known_covariates_remain_after_a_cutoff(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("unique_id,ds,y,promo,visits\n" + "".join(f"a,{day},{n},{n},{n}\n" for n, day in enumerate(DAYS)))
    data = DataSource(str(path), freq="D", covariates=("promo",), channels=("visits",), cutoff=DAYS[1])
    series = read_panel(data).series[0]
    assert series.y.tolist() == series.channels["visits"].tolist() == [0, 1]
    assert series.covariates["promo"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("timestamps", "zone", "cutoff", "remaining"),
    [
        (["2026-01-01T00:00Z", "2026-01-01T01:00Z"], None, "2026-01-01T02:00+02:00", 1),
        (["2026-01-01T00:00Z", "2026-01-01T01:00Z"], None, "2026-01-01", 1),
        (["2026-01-01T00:00", "2026-01-01T01:00"], "Europe/Berlin", "2025-12-31T23:30Z", 1),
        (["2026-01-01T00:00", "2026-01-01T01:00"], None, "2026-01-01T01:00", 2),
    ],
)
def test_a_cutoff_uses_the_time_zone_of_the_timestamps(
    timestamps: list[str], zone: str | None, cutoff: str, remaining: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(make_rows([1, 2], days=timestamps))
    assert len(read_panel(DataSource(str(path), freq="h", zone=zone, cutoff=cutoff)).series[0]) == remaining


@pytest.mark.parametrize(
    ("cutoff", "error_class"),
    [("yesterday", BadStamp), ("2026-01-02T00:00Z", BadStamp), ("2025-01-01", NoData), ("17", BadStamp)],
)
def test_an_invalid_cutoff_is_rejected(cutoff: str, error_class: type[InputError], tmp_path: Path) -> None:
    with pytest.raises(error_class, match="cutoff"):
        read_panel(write_folder(tmp_path, a__csv=make_rows([1, 2, 3, 4]))._replace(cutoff=cutoff))


# Object stores


def test_an_object_store_is_read_like_a_local_folder(tmp_path: Path) -> None:
    frame = make_noise_frame(2, steps=30)
    store = fsspec.filesystem("memory")
    frame.to_csv(tmp_path / "1.csv", index=False)
    frame.tail(5).to_parquet(tmp_path / "2.parquet")
    frame.to_csv(tmp_path / "3.csv.gz", index=False)
    try:
        for path in tmp_path.iterdir():
            store.pipe(f"/bucket/drops/{path.name}", path.read_bytes())
        expected = read_panel(DataSource(str(tmp_path)))
        for source in ("memory://bucket/drops", "memory://bucket/drops/", f"file://{tmp_path}"):
            panel = read_panel(DataSource(source))
            assert panel.digest == expected.digest
            assert panel.repairs == expected.repairs != ()
        for path in tmp_path.iterdir():
            assert read_panel(DataSource(f"memory://bucket/drops/{path.name}", freq="h")).freq == "h"
        with pytest.raises(SourceNotFound, match=r"memory://bucket/none\.csv"):
            read_panel(DataSource("memory://bucket/none.csv"))
        store.pipe("/bucket/drops/4.csv", b"unique_id,ds\n")
        with pytest.raises(InputError, match=r"memory://bucket/drops/4\.csv"):
            read_panel(DataSource("memory://bucket/drops"))
    finally:
        store.rm("/bucket", recursive=True)


def test_an_unknown_scheme_or_a_password_in_a_url_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceNotFound, match="nosuch"):
        read_panel(DataSource("nosuch://bucket/a.csv"))
    for source in ("s3://key:planted-secret@bucket/a.csv", "simplecache::s3://key:planted-secret@bucket/a.csv"):
        with pytest.raises(InputError, match="environment") as raised:
            read_panel(DataSource(source))
        assert "planted-secret" not in f"{raised.value} {raised.value.where}"
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingPackage, match="s3fs"):
        read_panel(DataSource("s3://bucket/a.csv"))


def test_an_object_store_error_is_reported_without_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")

    def fail(*_: object) -> None:
        raise RuntimeError("no answer to planted-secret")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "isdir", fail)
    with pytest.raises(SourceUnavailable, match=r"memory://bucket/a\.csv") as raised:
        read_panel(DataSource("memory://bucket/a.csv"))
    assert "planted-secret" not in str(raised.value)
    assert raised.value.exit_code == 1, "it can be retried"

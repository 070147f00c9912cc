"""Folders of drops and stores of objects: later drops correct earlier ones, the same wherever they lie."""

from __future__ import annotations

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
from pipelines.sources import Data, read
from pipelines.sources.drops import in_order, is_under_way
from tests.pipelines.conftest import noise

DAYS = pd.date_range("2026-01-01", periods=4, freq="D").strftime("%Y-%m-%d")


def rows(y: Sequence[object], *, days: Sequence[str] = tuple(DAYS), name: str = "a") -> str:
    return "unique_id,ds,y\n" + "".join(f"{name},{day},{value}\n" for day, value in zip(days, y, strict=False))


def folder(tmp_path: Path, **drops: str) -> Data:
    place = tmp_path / "drops"
    place.mkdir()
    for name, text in drops.items():
        (place / name.replace("__", ".")).write_text(text)
    return Data(str(place), freq="D")


def y_of(data: Data) -> list[float]:
    return read(data).series[0].y.tolist()


def test_drops_of_every_kind_are_one_panel(tmp_path: Path) -> None:
    frame = noise(3, steps=30)
    stamps = frame["ds"]
    place = tmp_path / "drops"
    place.mkdir()
    frame[stamps < "2026-01-01T10"].to_csv(place / "1.csv", index=False)
    frame[(stamps >= "2026-01-01T10") & (stamps < "2026-01-01T20")].to_parquet(place / "2.parquet")
    frame[stamps >= "2026-01-01T20"].to_csv(place / "3.csv.gz", index=False)
    frame.to_csv(tmp_path / "whole.csv", index=False)
    drops, whole = read(Data(str(place))), read(Data(str(tmp_path / "whole.csv")))
    assert drops.digest() == whole.digest()
    assert drops.repairs == whole.repairs == ()
    assert Data(str(place)).name == "drops"


def test_a_later_drop_corrects_an_earlier_one_and_is_told(tmp_path: Path) -> None:
    data = folder(tmp_path, day1__csv=rows([1, 2, 3, 4]), day2__csv=rows([20, 3, ""], days=DAYS[1:]))
    panel = read(data)
    np.testing.assert_array_equal(panel.series[0].y, [1, 20, 3, np.nan])
    told = " ".join(panel.repairs)
    assert "later drops corrected 2 rows of earlier ones, 1 of them taken back" in told
    assert "series 'a' at 2026-01-02T00:00:00, 2.0 became 20.0 in day2.csv" in told
    assert "1 rows came again unchanged" in told


def test_the_order_of_drops_is_that_of_their_names_not_of_their_times(tmp_path: Path) -> None:
    data = folder(tmp_path, drop_2__csv=rows([2, 2, 2, 2]), drop_10__csv=rows([10, 10, 10, 10]))
    import os

    os.utime(Path(data.source) / "drop_2.csv")  # copied last
    assert y_of(data) == [10] * 4
    assert in_order(["b", "a10", "a9", "a010", "a"]) == ["a", "a9", "a010", "a10", "b"]
    assert in_order(["2026-01-02.csv", "2026-01-01.csv"]) == ["2026-01-01.csv", "2026-01-02.csv"]


def test_of_three_drops_the_last_counts_and_a_correction_is_counted_once(tmp_path: Path) -> None:
    data = folder(tmp_path, a__csv=rows([1, 1, 1, 1]), b__csv=rows([2, 2]), c__csv=rows([3, 2]))
    panel = read(data)
    assert panel.series[0].y.tolist() == [3, 2, 1, 1]
    assert any("corrected 1 rows" in line for line in panel.repairs)
    assert any("1 rows came again unchanged" in line for line in panel.repairs)


@pytest.mark.parametrize("name", [".x.csv", "_x.csv", "~x.csv", "x.tmp.csv", "x.PART.parquet", ".x.csv.abc123"])
def test_what_is_named_as_half_written_is_left_aside_and_told(name: str, tmp_path: Path) -> None:
    assert is_under_way(name)
    data = folder(tmp_path, a__csv=rows([1, 2, 3, 4]))
    (Path(data.source) / name).write_text("unique_id,ds")
    panel = read(data)
    assert panel.series[0].y.tolist() == [1, 2, 3, 4]
    assert any(name in line and "left aside" in line for line in panel.repairs)


@pytest.mark.parametrize("name", ["x.csv.tmp", "part-0001.csv", "temperature.csv", "2026.csv"])
def test_only_whole_words_are_marks_of_a_half_written_file(name: str) -> None:
    assert not is_under_way(name)


@pytest.mark.parametrize(
    ("text", "kind", "match"),
    [
        ("unique_id,ds\na,2026-01-01\n", MissingColumn, "y not found"),
        (rows([1, "x"]), NotANumber, "'x'"),
        (rows([1, 2], days=["2026-01-01", "31.31.2026"]), BadStamp, "31.31"),
        ("", InputError, "readable"),
        ("unique_id,ds,y\n", NoData, "row"),
        (rows([1, 2], days=["2026-01-01T00:00Z", "2026-01-02T00:00Z"]), BadStamp, "declare the zone"),
    ],
)
def test_a_bad_drop_names_itself(text: str, kind: type[InputError], match: str, tmp_path: Path) -> None:
    data = folder(tmp_path, good__csv=rows([1, 2, 3, 4]), odd__csv=text)
    with pytest.raises(kind, match=match) as raised:
        read(data)
    assert "odd.csv" in raised.value.message
    assert raised.value.where == str(Path(data.source) / "odd.csv")


def test_two_values_of_one_moment_within_a_drop_are_still_refused(tmp_path: Path) -> None:
    twice = rows([1, 2, 3, 4]) + "a,2026-01-01,5\n"
    with pytest.raises(DuplicateStamp, match="2026-01-01"):
        read(folder(tmp_path, a__csv=rows([0, 0]), b__csv=twice))


def test_drops_carry_covariates_static_columns_and_channels(tmp_path: Path) -> None:
    head = "unique_id,ds,y,promo,region,seen\n"
    first = head + "".join(f"007,{day},{n},0,north,{n}\n" for n, day in enumerate(DAYS))
    later = head + f"007,{DAYS[3]},9,1,north,8\n007,2026-01-05,,1,north,\n"
    data = folder(tmp_path, a__csv=first, b__csv=later)._replace(
        covariates=("promo",), static=("region",), channels=("seen",)
    )
    one = read(data).series[0]
    assert (one.id, one.static["region"], one.y.tolist()) == ("007", "north", [0, 1, 2, 9])
    assert one.covariates["promo"].tolist() == [0, 0, 0, 1, 1]
    assert one.channels["seen"].tolist() == [0, 1, 2, 8]


def test_drops_with_numbered_steps(tmp_path: Path) -> None:
    first = "unique_id,ds,y\na,1,1\na,2,2\na,3,3\n"
    data = folder(tmp_path, a__csv=first, b__csv="unique_id,ds,y\na,3,30\na,4,4\n")._replace(freq=1)
    assert y_of(data) == [1, 2, 30, 4]


# Late data: what counts is when it was, not when it came.


def test_rows_after_the_cutoff_are_ignored_and_late_ones_before_it_are_in(tmp_path: Path) -> None:
    data = folder(tmp_path, a__csv=rows([1, 2, "", 4]), b__csv=rows([30], days=[DAYS[2]]))
    panel = read(data._replace(cutoff=DAYS[2]))
    assert panel.series[0].y.tolist() == [1, 2, 30]
    assert any("1 rows after the cutoff 2026-01-03" in line for line in panel.repairs)
    assert str(panel.cutoff.date()) == DAYS[2]  # type: ignore[union-attr]


def test_what_is_known_ahead_stays_known_after_a_cutoff(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("unique_id,ds,y,promo,seen\n" + "".join(f"a,{day},{n},{n},{n}\n" for n, day in enumerate(DAYS)))
    data = Data(str(path), freq="D", covariates=("promo",), channels=("seen",), cutoff=DAYS[1])
    one = read(data).series[0]
    assert one.y.tolist() == one.channels["seen"].tolist() == [0, 1]
    assert one.covariates["promo"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("stamps", "zone", "cutoff", "left"),
    [
        (["2026-01-01T00:00Z", "2026-01-01T01:00Z"], None, "2026-01-01T02:00+02:00", 1),
        (["2026-01-01T00:00Z", "2026-01-01T01:00Z"], None, "2026-01-01", 1),
        (["2026-01-01T00:00", "2026-01-01T01:00"], "Europe/Berlin", "2025-12-31T23:30Z", 1),
        (["2026-01-01T00:00", "2026-01-01T01:00"], None, "2026-01-01T01:00", 2),
    ],
)
def test_a_cutoff_is_of_the_zone_of_the_stamps(
    stamps: list[str], zone: str | None, cutoff: str, left: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(rows([1, 2], days=stamps))
    assert len(read(Data(str(path), freq="h", zone=zone, cutoff=cutoff)).series[0]) == left


@pytest.mark.parametrize(
    ("cutoff", "kind"),
    [("yesterday", BadStamp), ("2026-01-02T00:00Z", BadStamp), ("2025-01-01", NoData), ("17", BadStamp)],
)
def test_a_cutoff_that_cannot_be_meant_is_refused(cutoff: str, kind: type[InputError], tmp_path: Path) -> None:
    with pytest.raises(kind, match="cutoff"):
        read(folder(tmp_path, a__csv=rows([1, 2, 3, 4]))._replace(cutoff=cutoff))


# Stores


def test_a_store_is_read_as_a_folder_here_is(tmp_path: Path) -> None:
    frame = noise(2, steps=30)
    store = fsspec.filesystem("memory")
    frame.to_csv(tmp_path / "1.csv", index=False)
    frame.tail(5).to_parquet(tmp_path / "2.parquet")
    frame.to_csv(tmp_path / "3.csv.gz", index=False)
    try:
        for path in tmp_path.iterdir():
            store.pipe(f"/bucket/drops/{path.name}", path.read_bytes())
        expected = read(Data(str(tmp_path)))
        for source in ("memory://bucket/drops", "memory://bucket/drops/", f"file://{tmp_path}"):
            found = read(Data(source))
            assert found.digest() == expected.digest()
            assert found.repairs == expected.repairs != ()
        for path in tmp_path.iterdir():
            assert read(Data(f"memory://bucket/drops/{path.name}", freq="h")).freq == "h"
        with pytest.raises(SourceNotFound, match=r"memory://bucket/none\.csv"):
            read(Data("memory://bucket/none.csv"))
        store.pipe("/bucket/drops/4.csv", b"unique_id,ds\n")
        with pytest.raises(InputError, match=r"memory://bucket/drops/4\.csv"):
            read(Data("memory://bucket/drops"))
    finally:
        store.rm("/bucket", recursive=True)


def test_an_unknown_scheme_and_a_password_in_an_address_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceNotFound, match="nosuch"):
        read(Data("nosuch://bucket/a.csv"))
    for source in ("s3://key:planted-secret@bucket/a.csv", "simplecache::s3://key:planted-secret@bucket/a.csv"):
        with pytest.raises(InputError, match="environment") as raised:
            read(Data(source))
        assert "planted-secret" not in f"{raised.value} {raised.value.where}"
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingPackage, match="s3fs"):
        read(Data("s3://bucket/a.csv"))


def test_a_store_that_fails_is_told_without_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")

    def fail(*_: object) -> None:
        raise RuntimeError("no answer to planted-secret")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "isdir", fail)
    with pytest.raises(SourceUnavailable, match=r"memory://bucket/a\.csv") as raised:
        read(Data("memory://bucket/a.csv"))
    assert "planted-secret" not in str(raised.value)
    assert raised.value.exit_code == 1, "it may be tried again"

"""Sources of data and of specifications."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.data.frames.rows import ColumnNames
from forecaster.errors import InputError, MissingColumn, NoData, SourceNotFound
from pipelines.sources import BUILT_IN_DATASETS, DataSource, derive_model_name, read_panel, read_spec
from tests.pipelines.conftest import make_noise_frame

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_every_file_format_gives_the_same_panel(suffix: str, tmp_path: Path) -> None:
    frame, path = make_noise_frame(3), tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)
    panel = read_panel(DataSource(str(path)))
    assert [series.id for series in panel.series] == [f"meter_{number}" for number in range(3)]
    assert panel.freq == "h"
    np.testing.assert_array_equal(np.concatenate([series.y for series in panel.series]), frame["y"])


@pytest.mark.parametrize("name", BUILT_IN_DATASETS)
def test_the_bundled_data_sets_are_read_by_name(name: str) -> None:
    panel = read_panel(DataSource(name))
    assert all(np.isfinite(series.y).all() for series in panel.series)
    assert len(panel.series) == {"hospital": 767, "sine_trend": 1}[name]


def test_incomplete_last_periods_are_dropped_on_request_only(tmp_path: Path) -> None:
    frame = make_noise_frame(8)
    frame.loc[frame["ds"] == frame["ds"].max(), "y"] /= 4
    frame.to_csv(tmp_path / "a.csv", index=False)
    source = DataSource(str(tmp_path / "a.csv"))
    assert read_panel(source).dropped_partial is None
    panel = read_panel(source._replace(drop_partial=True))
    assert panel.dropped_partial == tuple(f"meter_{number}" for number in range(8))
    assert all(np.isnan(series.y[-1]) for series in panel.series)
    in_january = datetime(2026, 1, 3, 11, 30, tzinfo=UTC)
    frame["y"] = np.arange(len(frame), 0.0, -1.0)  # no fall, but each hour below the one before and the day before
    frame.to_csv(tmp_path / "b.csv", index=False)
    running = read_panel(DataSource(str(tmp_path / "b.csv"), drop_partial=True), now=in_january)
    assert len(running.dropped_partial or ()) == 8
    assert read_panel(DataSource("hospital", drop_partial=True)).dropped_partial == ()


def test_columns_can_be_renamed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    make_noise_frame(3).rename(columns={"unique_id": "meter", "ds": "at", "y": "kWh"}).to_csv(path, index=False)
    assert len(read_panel(DataSource(str(path), columns=ColumnNames("meter", "at", "kWh"))).series) == 3


def test_rows_without_ids_are_one_series_and_a_repeated_timestamp_shows_that_they_are_several(tmp_path: Path) -> None:
    path, frame = tmp_path / "a.csv", make_noise_frame(1).drop(columns="unique_id")
    frame.rename(columns={"y": "kWh"}).to_csv(path, index=False)
    panel = read_panel(DataSource(str(path), columns=ColumnNames(y="kWh")))
    assert [series.id for series in panel.series] == ["kWh"]
    assert panel.repairs == ("there is no column 'unique_id': all rows are one series, 'kWh'",)
    pd.concat([frame, frame]).to_csv(path, index=False)
    with pytest.raises(MissingColumn, match=r"a\.csv: Expected the columns unique_id, ds, y; .* several series"):
        read_panel(DataSource(str(path)))


def test_ids_keep_their_spelling(tmp_path: Path) -> None:
    path, ids = tmp_path / "a.csv", ["007", "07", "1e3", "NA", "nan"]
    timestamps = pd.date_range("2026-01-01", periods=5, freq="D").strftime("%Y-%m-%d")
    rows = [f"{name},{timestamp},{number}" for name in ids for number, timestamp in enumerate(timestamps)]
    path.write_text("unique_id,ds,y\n" + "\n".join(rows))
    assert sorted(series.id for series in read_panel(DataSource(str(path))).series) == sorted(ids)


@pytest.mark.parametrize("marker", ["", "NA", "NaN", "nan", "null", "None", "#N/A"])
def test_common_missing_value_markers_are_read_as_not_observed(marker: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"unique_id,ds,y\na,2026-01-01,1\na,2026-01-02,{marker}\na,2026-01-03,3\na,2026-01-04,4\n")
    np.testing.assert_array_equal(read_panel(DataSource(str(path), freq="D")).series[0].y, [1, np.nan, 3, 4])


def test_a_truncated_archive_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(make_noise_frame().to_csv(index=False).encode())[:-200])
    with pytest.raises(InputError, match=r"a\.csv\.gz"):
        read_panel(DataSource(str(path)))


def test_a_folder_is_distinguished_from_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(NoData, match=r"files ending in .* found none"):
        read_panel(DataSource(str(tmp_path / "a.csv")))
    with pytest.raises(SourceNotFound, match="found none"):
        read_panel(DataSource(str(tmp_path / "b.csv")))


@pytest.mark.parametrize(
    ("name", "model_name"),
    [
        ("meters", "meters"),
        ("été 2026", "t__2026"),
        ("_hidden", "hidden"),
        ("-", "forecaster"),
        ("", "forecaster"),
        ("x" * 100, "x" * 64),
        ("日本", "forecaster"),
        ("a/b\nc", "a_b_c"),
    ],
)
def test_any_file_name_gives_a_valid_model_name(name: str, model_name: str) -> None:
    assert derive_model_name(name) == model_name


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_bundled_config_is_valid_and_has_its_file_name(config: Path) -> None:
    assert read_spec(config).name == config.stem


def test_bundled_configs_exist() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} >= {"hospital", "sine"}

"""Tests of real data files, and of the command `data check`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.data.frames.panel import to_frame, to_panel
from pipelines import cli
from tests.forecaster.data.frames.long_frames import SHARED, channel_frame, drop_rows, series_frame
from tests.partial_panels import make_yearly_panel

pytestmark = pytest.mark.integration


def read_shared_file(name: str) -> pd.DataFrame:
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not in ../shared/data next to the checkout")
    return pd.read_parquet(SHARED / name)


def test_gaps_in_real_data_are_found_and_counted() -> None:
    panel = to_panel(read_shared_file("pedestrian_with_gaps.parquet"))
    assert panel.freq == "h"
    assert [int(np.isnan(series.y).sum()) for series in panel.series] == [2978, 2, 26, 5]
    (repair,) = panel.repairs
    assert "3011 absent rows in 4 of 4" in repair


def test_missing_values_in_real_data_stay_missing() -> None:
    frame = read_shared_file("air_quality_with_missing.parquet")
    panel = to_panel(frame)
    missing = frame["y"].isna().groupby(frame["unique_id"], sort=False).sum()
    assert {series.id: int(np.isnan(series.y).sum()) for series in panel.series} == missing.to_dict()
    assert (missing.min(), missing.max()) == (272, 3269)
    assert not panel.repairs


def test_a_real_series_in_utc_is_reported_in_its_zone_with_covariates() -> None:
    frame = read_shared_file("vic_elec.parquet")
    frame["ds"] = frame["ds"].dt.tz_localize("UTC")
    frame.loc[frame.index[-48:], "y"] = np.nan
    panel = to_panel(frame, zone="Australia/Melbourne", covariates=("temperature", "holiday"))
    (series,) = panel.series
    assert (panel.freq, len(series), series.covariate_horizon) == ("30min", 52608 - 48, 48)
    assert str(series.start) == "2012-01-01 00:00:00+11:00"
    assert series.future_timestamps(48)[-1] == frame["ds"].iloc[-1]
    local_days = pd.DatetimeIndex([*series.timestamps, *series.future_timestamps(48)]).date
    assert (
        pd.Series(series.covariates["holiday"]).groupby(local_days).nunique() == 1
    ).all()  # a holiday is a local day


# Command line


def write_csv(path: Path, frame: pd.DataFrame) -> str:
    frame.to_csv(path, index=False)
    return str(path)


def run_data_check(*arguments: str) -> int:
    try:
        cli.main(["data", "check", *arguments])
    except SystemExit as exit_request:
        return int(exit_request.code or 0)
    return 0


def test_data_check_describes_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "x.csv", drop_rows(series_frame(y=[1.0, 2.0, 3.0, 3.0], unique_id="007"), 2))
    assert run_data_check(path, "--freq", "D") == 0
    output = capsys.readouterr().out
    for line in [
        "can be used, as repaired",
        "frequency   D",
        "missing     1 of 4",
        "season 7",
        "1 absent rows",
        "'007'",
    ]:
        assert line in output


def test_data_check_exits_with_2_for_unusable_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_data_check(write_csv(tmp_path / "x.csv", series_frame(y=["1", "many"]))) == 2
    captured = capsys.readouterr()
    assert "cannot be used (not_a_number)" in captured.out
    assert "row 1 holds 'many'" in captured.err


def test_data_check_reports_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "x.csv", channel_frame([4.0, np.nan, 6.0], np.arange(3.0), wind=1.0))
    assert run_data_check(path, "--freq", "D", "--channel", "rain", "--channel", "wind") == 0
    assert "channels    rain (1 missing), wind (0 missing)" in capsys.readouterr().out
    assert run_data_check(path, "--freq", "D", "--channel", "snow") == 2
    assert "snow not found among" in capsys.readouterr().err


def test_numeric_ids_in_a_csv_stay_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.concat([series_frame(y=np.ones(3), unique_id="007"), series_frame(y=np.ones(3), unique_id="NA")])
    assert run_data_check(write_csv(tmp_path / "x.csv", frame), "--freq", "D") == 0
    assert "2 (first: '007')" in capsys.readouterr().out


def test_incomplete_last_periods_are_reported_or_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "x.csv", to_frame(make_yearly_panel(num_series=12).panel))
    assert run_data_check(path) == 0
    captured = capsys.readouterr()
    assert "2 of 12 series looks incomplete" in captured.err
    assert "'region_0', 'region_6' at 2006-01-01" in captured.err
    assert "--drop-partial" in captured.err
    assert "missing     0 of" in captured.out
    assert run_data_check(path, "--drop-partial") == 0
    captured = capsys.readouterr()
    assert "--drop-partial" not in captured.err
    assert "can be used, as repaired" in captured.out
    assert "missing     2 of" in captured.out
    assert "treated as missing, as requested" in captured.out


def test_a_last_day_that_contains_the_present_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    today = pd.Timestamp.now("UTC").tz_localize(None).normalize()
    path = write_csv(tmp_path / "x.csv", series_frame(ds=pd.date_range(end=today, periods=20, freq="D")))
    assert run_data_check(path) == 0
    assert "1 of 1 series contains the present" in capsys.readouterr().err


def test_timestamps_after_the_present_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "future.csv"
    series_frame(ds=pd.date_range("2226-01-01", periods=12, freq="D")).to_csv(path, index=False)
    assert run_data_check(str(path)) == 0
    assert "days after the present" in capsys.readouterr().err

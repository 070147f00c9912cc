"""Tests of calendar features: sines and cosines of local time, and holidays."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.data.calendar import compute_calendar_features, list_calendar_columns, validate_calendar_features
from forecaster.errors import (
    BadSpec,
    MissingPackage,
)
from tests.forecaster.data.frames.long_frames import BERLIN, make_days, make_timestamps

ROOT = Path(__file__).parents[3]


def test_the_documentation_lists_every_calendar_feature() -> None:
    page = (ROOT / "docs/data.md").read_text().split("## Calendar features")[1]
    highest_orders = dict(re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", page, flags=re.MULTILINE))
    for name, highest in highest_orders.items():
        list_calendar_columns([f"{name}:{highest}"])
        with pytest.raises(BadSpec, match=f"1 to {highest}"):
            list_calendar_columns([f"{name}:{int(highest) + 1}"])
    with pytest.raises(BadSpec, match=f"one of {', '.join(highest_orders)}, with"):
        list_calendar_columns(["fortnight"])


def test_features_follow_local_time_and_not_utc() -> None:
    local = make_timestamps("2026-07-01", "h", 48, BERLIN)
    names = ["minute", "hour:2", "weekday", "monthday", "month", "yearday:3"]
    np.testing.assert_array_equal(
        compute_calendar_features(local, names), compute_calendar_features(local.tz_localize(None), names)
    )
    assert not np.allclose(
        compute_calendar_features(local, names), compute_calendar_features(local.tz_convert("UTC"), names)
    )
    assert compute_calendar_features(local, names).shape == (48, len(list_calendar_columns(names)))


def test_features_are_sines_and_cosines_of_the_position_in_the_cycle() -> None:
    features = compute_calendar_features(
        pd.DatetimeIndex(["2026-01-01 00:00", "2026-01-01 06:00", "2026-01-01 12:00"]), ["hour:2"]
    )
    np.testing.assert_allclose(features, [[0, 1, 0, 1], [1, 0, 0, -1], [0, -1, 0, 1]], atol=1e-12)
    assert list_calendar_columns(["hour:2"]) == ("hour sin 1", "hour cos 1", "hour sin 2", "hour cos 2")


def test_features_of_a_timestamp_do_not_depend_on_its_neighbours() -> None:
    timestamps = make_timestamps("2023-11-05", "D", 500)
    names = ["weekday:3", "monthday", "yearday:4"]
    np.testing.assert_array_equal(
        compute_calendar_features(timestamps, names)[100:110], compute_calendar_features(timestamps[100:110], names)
    )
    assert compute_calendar_features(timestamps, []).shape == (500, 0)


@pytest.mark.parametrize("names", [["hour"], ["weekday", "yearday:3"], ["holiday:US"]])
def test_integer_steps_have_no_calendar_features(names: list[str]) -> None:
    with pytest.raises(BadSpec, match="are integers"):
        compute_calendar_features(pd.RangeIndex(3), names)
    with pytest.raises(BadSpec, match=", ".join(names)):
        validate_calendar_features(names, freq="1")
    validate_calendar_features(names, freq="D")
    validate_calendar_features([], freq="1")


@pytest.mark.parametrize(
    "names", [["fortnight"], ["hour:0"], ["hour:99"], ["hour:x"], ["hour", "hour:2"], ["holiday"], ["holiday:"], [""]]
)
def test_unknown_features_are_rejected(names: list[str]) -> None:
    with pytest.raises(BadSpec):
        compute_calendar_features(make_days(3), names)


def test_the_error_for_an_unknown_feature_lists_the_known_ones() -> None:
    with pytest.raises(BadSpec, match=r"minute, hour, weekday, monthday, month, yearday.*holiday:COUNTRY"):
        list_calendar_columns(["fortnight"])


def test_holidays_without_their_package_name_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "holidays", None)
    with pytest.raises(MissingPackage, match=r"recurrent-forecaster\[train\]"):
        compute_calendar_features(make_days(3), ["holiday:US"])


def test_holidays_are_one_on_the_local_day() -> None:
    pytest.importorskip("holidays", reason="the package holidays is not installed")
    hours = make_timestamps("2026-07-03 00:00", "h", 48, "America/New_York")
    indicator = compute_calendar_features(hours, ["holiday:US"])[:, 0]
    assert indicator.tolist() == [1.0] * 24 + [1.0] * 24  # the 4th is a Saturday, so the 3rd is observed
    assert compute_calendar_features(make_timestamps("2026-07-06", "D", 2), ["holiday:US"]).tolist() == [[0.0], [0.0]]
    with pytest.raises(BadSpec, match="XX"):
        compute_calendar_features(hours, ["holiday:XX"])

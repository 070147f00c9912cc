"""Calendar features: sines and cosines of the wall clock, and holidays."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.data.calendar import check_calendar, feature_columns, features
from forecaster.errors import (
    BadSpec,
    MissingPackage,
)
from tests.forecaster.data.frames.long_frames import BERLIN, days, stamps

ROOT = Path(__file__).parents[3]


def test_the_page_tells_every_calendar_feature() -> None:
    page = (ROOT / "docs/data.md").read_text().split("## Calendar features")[1]
    told = dict(re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", page, flags=re.MULTILINE))
    for name, highest in told.items():
        feature_columns([f"{name}:{highest}"])
        with pytest.raises(BadSpec, match=f"1 to {highest}"):
            feature_columns([f"{name}:{int(highest) + 1}"])
    with pytest.raises(BadSpec, match=f"one of {', '.join(told)}, with"):
        feature_columns(["fortnight"])


def test_features_follow_the_wall_and_not_utc() -> None:
    local = stamps("2026-07-01", "h", 48, BERLIN)
    names = ["minute", "hour:2", "weekday", "monthday", "month", "yearday:3"]
    np.testing.assert_array_equal(features(local, names), features(local.tz_localize(None), names))
    assert not np.allclose(features(local, names), features(local.tz_convert("UTC"), names))
    assert features(local, names).shape == (48, len(feature_columns(names)))


def test_features_are_sines_and_cosines_of_the_place_in_the_cycle() -> None:
    found = features(pd.DatetimeIndex(["2026-01-01 00:00", "2026-01-01 06:00", "2026-01-01 12:00"]), ["hour:2"])
    np.testing.assert_allclose(found, [[0, 1, 0, 1], [1, 0, 0, -1], [0, -1, 0, 1]], atol=1e-12)
    assert feature_columns(["hour:2"]) == ("hour sin 1", "hour cos 1", "hour sin 2", "hour cos 2")


def test_features_of_a_stamp_do_not_depend_on_the_stamps_beside_it() -> None:
    every = stamps("2023-11-05", "D", 500)
    names = ["weekday:3", "monthday", "yearday:4"]
    np.testing.assert_array_equal(features(every, names)[100:110], features(every[100:110], names))
    assert features(every, []).shape == (500, 0)


@pytest.mark.parametrize("names", [["hour"], ["weekday", "yearday:3"], ["holiday:US"]])
def test_numbered_steps_have_no_calendar(names: list[str]) -> None:
    with pytest.raises(BadSpec, match="numbered"):
        features(pd.RangeIndex(3), names)
    with pytest.raises(BadSpec, match=", ".join(names)):
        check_calendar(names, freq="1")
    check_calendar(names, freq="D")
    check_calendar([], freq="1")


@pytest.mark.parametrize(
    "names", [["fortnight"], ["hour:0"], ["hour:99"], ["hour:x"], ["hour", "hour:2"], ["holiday"], ["holiday:"], [""]]
)
def test_unknown_features_are_refused(names: list[str]) -> None:
    with pytest.raises(BadSpec):
        features(days(3), names)


def test_features_refused_for_their_name_list_the_known_ones() -> None:
    with pytest.raises(BadSpec, match=r"minute, hour, weekday, monthday, month, yearday.*holiday:COUNTRY"):
        feature_columns(["fortnight"])


def test_holidays_without_their_package_say_which_extra_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "holidays", None)
    with pytest.raises(MissingPackage, match=r"forecaster\[train\]"):
        features(days(3), ["holiday:US"])


def test_holidays_are_ones_on_the_local_day() -> None:
    pytest.importorskip("holidays", reason="the package holidays is not installed")
    hours = stamps("2026-07-03 00:00", "h", 48, "America/New_York")
    found = features(hours, ["holiday:US"])[:, 0]
    assert found.tolist() == [1.0] * 24 + [1.0] * 24  # the 4th is a Saturday, so the 3rd is observed
    assert features(stamps("2026-07-06", "D", 2), ["holiday:US"]).tolist() == [[0.0], [0.0]]
    with pytest.raises(BadSpec, match="XX"):
        features(hours, ["holiday:XX"])

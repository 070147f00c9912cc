"""The future of covariates as text is read as the histories are, also with a time zone."""

from __future__ import annotations

import pandas as pd
import pytest

from forecaster.data.frames.future import append_future
from forecaster.data.frames.panel import to_panel
from forecaster.data.frames.rows import ColumnNames


@pytest.mark.parametrize("has_offset", [False, True], ids=["naive histories", "histories with an offset"])
@pytest.mark.parametrize("is_text", [False, True], ids=["timestamps", "text"])
def test_a_future_without_offsets_has_the_zone_of_the_histories(*, has_offset: bool, is_text: bool) -> None:
    times = pd.date_range("2026-03-28 20:00", periods=4, freq="h")
    rows = pd.DataFrame({"unique_id": "a", "ds": times, "y": 1.0, "heat": 2.0})
    later = pd.DataFrame({"unique_id": "a", "ds": times + pd.Timedelta(4, "h"), "heat": 3.0})
    if has_offset:
        rows["ds"] = rows["ds"].dt.tz_localize("Europe/Berlin")
    if is_text:
        later["ds"] = later["ds"].astype(str)
    elif has_offset:
        later["ds"] = later["ds"].dt.tz_localize("Europe/Berlin", nonexistent="shift_forward")
    later = later.drop(index=2)  # 02:00 does not exist on this day
    both = append_future(rows, later, ColumnNames(), covariates=("heat",), static=(), zone="Europe/Berlin")
    [series] = to_panel(both, freq="h", zone="Europe/Berlin", covariates=("heat",)).series
    assert len(series.y) == 4
    assert series.covariates["heat"].tolist() == [2.0] * 4 + [3.0] * 3

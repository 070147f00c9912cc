"""Custom business days: weeks of any working days, with holidays, keep what is in them in their text form."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.data.calendar import default_horizon, default_season
from forecaster.data.frames.panel import to_panel
from forecaster.errors import FrequencyUnknown
from forecaster.frequency.business_days import MAX_HOLIDAYS, parse_custom_business_days
from forecaster.frequency.timestamps import build_timestamps, next_timestamps, normalize_frequency, parse_frequency
from forecaster.series import Series

OFFSETS = pd.offsets
HOLIDAYS = ["2024-01-15", "2024-02-19", "2024-04-08", "2024-04-09"]
START = pd.Timestamp("2024-01-02")


@pytest.mark.parametrize(
    ("offset", "name"),
    [
        (OFFSETS.CustomBusinessDay(weekmask="Mon Tue Wed Thu Fri Sat"), "C-1111110"),
        (OFFSETS.CustomBusinessDay(weekmask="Sun Mon Tue Wed Thu"), "C-1111001"),
        (OFFSETS.CustomBusinessDay(weekmask="1111001"), "C-1111001"),
        (OFFSETS.CustomBusinessDay(2, weekmask=[1, 1, 1, 1, 1, 1, 0]), "2C-1111110"),
        (OFFSETS.CustomBusinessDay(holidays=HOLIDAYS), "C-1111100-20240115-20240219-20240408-20240409"),
        (OFFSETS.Week(), "7D"),
        (OFFSETS.Week(2), "14D"),
        (OFFSETS.Week(weekday=2), "W-WED"),
        (OFFSETS.QuarterEnd(startingMonth=2), "QE-FEB"),
        (OFFSETS.BusinessHour(), "bh"),
        (timedelta(minutes=15), "15min"),
    ],
)
def test_the_name_of_an_offset_keeps_everything_in_it(offset: Any, name: str) -> None:
    assert normalize_frequency(offset, where="freq") == name
    timestamps = pd.date_range(START, periods=60, freq=offset)
    panel = to_panel(pd.DataFrame({"unique_id": "a", "ds": timestamps[:50], "y": np.arange(50.0)}), freq=offset)
    assert panel.repairs == ()
    assert panel.series[0].future_timestamps(10).equals(timestamps[50:])


@pytest.mark.parametrize(
    ("offset", "kind"),
    [
        (OFFSETS.BusinessHour(start="10:00", end="18:00"), "BusinessHour"),
        (OFFSETS.CustomBusinessHour(holidays=["2024-05-31"]), "CustomBusinessHour"),
        (OFFSETS.CustomBusinessMonthEnd(holidays=["2024-05-31"]), "CustomBusinessMonthEnd"),
        (OFFSETS.CustomBusinessMonthBegin(weekmask="Sun Mon Tue Wed Thu"), "CustomBusinessMonthBegin"),
        (OFFSETS.BDay(offset=pd.Timedelta(hours=2)), "BusinessDay"),
        (OFFSETS.CustomBusinessDay(offset=timedelta(hours=2)), "CustomBusinessDay"),
        (OFFSETS.MonthBegin(normalize=True), "MonthBegin"),
        (pd.DateOffset(months=1), "DateOffset"),
        (OFFSETS.Easter(), "Easter"),
    ],
)
def test_an_offset_that_its_name_does_not_describe_is_refused_by_name(offset: Any, kind: str) -> None:
    with pytest.raises(FrequencyUnknown, match=f"{kind} is written .* would lose") as error:
        normalize_frequency(offset, where="freq")
    assert error.value.where == "freq"


def test_too_many_holidays_are_refused_with_the_advice_to_name_the_country() -> None:
    days = pd.date_range("2000-01-03", periods=MAX_HOLIDAYS + 1, freq="7D")
    with pytest.raises(FrequencyUnknown, match=r"found 201.*C-1111100-US"):
        normalize_frequency(OFFSETS.CustomBusinessDay(holidays=days.tolist()), where="freq")
    with pytest.raises(FrequencyUnknown, match="found 201 holidays"):
        parse_frequency("-".join(["C-1111100", *days.strftime("%Y%m%d")]))


@pytest.mark.parametrize(
    ("freq", "name"),
    [
        ("C-1111110", "C-1111110"),
        ("C-MonTueWedThuFriSat", "C-1111110"),
        ("3C-sunmon", "3C-1000001"),
        ("C-1111100-US", "C-1111100-US"),
        ("C-1111110-DE-BY-20261231-20261224-20261224", "C-1111110-DE-BY-20261224-20261231"),
    ],
)
def test_the_text_of_custom_business_days_has_a_canonical_form(freq: str, name: str) -> None:
    parsed = parse_custom_business_days(freq)
    assert parsed is not None
    assert parsed.name == name
    assert parse_custom_business_days(name) == parsed


@pytest.mark.parametrize("freq", ["C-0000000", "C-1111100-20260230", "C-1111100-XX", "C-111", "C-1111100-"])
def test_invalid_custom_business_days_are_not_a_frequency(freq: str) -> None:
    with pytest.raises(FrequencyUnknown):
        parse_frequency(freq)


def test_the_holidays_of_a_country_are_no_working_days() -> None:
    days = build_timestamps(pd.Timestamp("2026-12-23"), freq="C-1111100-DE-BY", steps=4)
    assert [str(day.date()) for day in days] == ["2026-12-23", "2026-12-24", "2026-12-28", "2026-12-29"]


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin", "America/Santiago"])
@pytest.mark.parametrize("freq", ["C-1111110", "2C-1111001", "C-1111110-20230905", "C-0100100"])
def test_custom_business_days_equal_those_of_pandas(freq: str, zone: str | None) -> None:
    start = pd.date_range("2023-08-25", periods=1, freq=parse_frequency(freq))[0] + pd.Timedelta(hours=9)
    expected = pd.date_range(start, periods=60, freq=parse_frequency(freq)).tz_localize(zone)
    start = start.tz_localize(zone)
    assert build_timestamps(start, freq=freq, steps=60).equals(expected)
    assert next_timestamps(start, freq=freq, steps=59).equals(expected[1:])
    series = Series("a", start, freq, np.zeros(50))
    assert [series.timestamp_at(index) for index in range(50)] == list(expected[:50])
    rows = expected[:50].delete([5, 17])
    panel = to_panel(pd.DataFrame({"unique_id": "a", "ds": rows, "y": 1.0}), freq=freq)
    assert np.flatnonzero(np.isnan(panel.series[0].y)).tolist() == [5, 17]
    assert panel.series[0].future_timestamps(10).equals(expected[50:])


@pytest.mark.parametrize(("freq", "season"), [("C-1111110", 6), ("2C-1111110", 3), ("C-1111001", 5), ("4C-1111110", 1)])
def test_the_season_of_working_days_is_their_week(freq: str, season: int) -> None:
    assert default_season(freq) == season
    assert default_horizon(freq) == 2 * season

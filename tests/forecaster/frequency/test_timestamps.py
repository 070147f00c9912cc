"""Tests of frequencies and timestamps: datetimes step on the calendar, integers by an integer, and the two never mix."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.errors import BadStamp, FrequencyUnknown
from forecaster.frequency.clock import compute_days_ahead
from forecaster.frequency.timestamps import (
    MAX_INTEGER_TIMESTAMP,
    Timestamp,
    add_steps,
    build_timestamps,
    build_unchecked_timestamps,
    describe_upper_limit,
    format_frequency,
    format_timestamp,
    is_earlier,
    is_integer_frequency,
    next_timestamps,
    parse_frequency,
    parse_timestamp,
    synthetic_start,
    timestamp_at,
    timestamps_to_int64,
)
from forecaster.series import Panel, Series

BERLIN = "Europe/Berlin"
DAY = pd.Timestamp("2026-01-01")


@pytest.mark.parametrize(("freq", "size"), [("1", 1), ("10", 10), ("9" * 18, 10**18 - 1)])
def test_a_positive_integer_is_a_step(freq: str, size: int) -> None:
    assert is_integer_frequency(freq)
    assert parse_frequency(freq) == size
    assert format_frequency(parse_frequency(freq)) == freq


@pytest.mark.parametrize(
    "freq", ["0", "-1", "-0", "01", "1.0", "+1", " 1", "1 ", "1_000", "1e3", "٣", "³", "9" * 19, ""]
)
def test_a_non_positive_or_non_integer_number_is_not_a_frequency(freq: str) -> None:
    with pytest.raises(FrequencyUnknown, match="expected") as error:
        parse_frequency(freq, where="a")
    assert error.value.where == "a"


@pytest.mark.parametrize("freq", ["h", "MS", "15min", "W-WED", "1D"])
def test_a_calendar_frequency_is_not_an_integer(freq: str) -> None:
    assert not is_integer_frequency(freq)
    assert not isinstance(parse_frequency(freq), int)


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize(
    ("start", "size"), [(0, 1), (-30, 10), (MAX_INTEGER_TIMESTAMP - 6, 1), (-MAX_INTEGER_TIMESTAMP, 10**18 - 1)]
)
def test_integer_timestamps_form_a_range(start: int, size: int, steps: int) -> None:
    timestamps = build_timestamps(start, freq=str(size), steps=steps)
    assert list(timestamps) == [start + index * size for index in range(steps)]
    assert timestamps.dtype == np.int64
    assert timestamps_to_int64(timestamps).tolist() == list(timestamps)
    for index in range(steps):
        assert timestamp_at(timestamps, index) == add_steps(start, str(size), index) == start + index * size
        assert type(timestamp_at(timestamps, index)) is int


@pytest.mark.parametrize(
    ("start", "freq", "steps"),
    [
        (MAX_INTEGER_TIMESTAMP - 6, "1", 8),
        (0, "9" * 18, 6),
        (0, "1", 2**63),
        (2**63, "1", 1),
        (-MAX_INTEGER_TIMESTAMP - 1, "1", 1),
    ],
)
def test_a_range_beyond_the_largest_integer_is_rejected_without_building_it(start: int, freq: str, steps: int) -> None:
    with pytest.raises(
        BadStamp, match=f"up to {MAX_INTEGER_TIMESTAMP}; {steps} steps of '{freq}' from {start} exceed it"
    ):
        build_timestamps(start, freq=freq, steps=steps)
    with pytest.raises(OverflowError):
        build_unchecked_timestamps(start, freq=freq, steps=steps)


@pytest.mark.parametrize(
    ("timestamp", "freq"),
    [
        (0, "1"),
        (-17, "10"),
        (MAX_INTEGER_TIMESTAMP, "1"),
        (DAY, "D"),
        (DAY.tz_localize("UTC"), "h"),
        (DAY.tz_localize(BERLIN), "h"),
    ],
)
def test_a_formatted_timestamp_parses_to_the_same_timestamp(timestamp: Timestamp, freq: str) -> None:
    parsed: Any = parse_timestamp(format_timestamp(timestamp), freq=freq)
    assert parsed == timestamp
    assert type(parsed) is type(timestamp)


def test_dates_and_integers_are_not_confused_when_parsed() -> None:
    with pytest.raises(ValueError, match="2026"):
        parse_timestamp("2026-01-01", freq="1")


def test_timestamps_are_ordered_within_one_kind_only() -> None:
    utc = DAY.tz_localize("UTC")
    later, later_utc = DAY + pd.Timedelta("1D"), utc + pd.Timedelta("1D")
    assert is_earlier(1, 2)
    assert is_earlier(DAY, later)
    assert is_earlier(utc, later_utc)
    for first, second in [(2, 1), (1, 1), (later, DAY), (1, DAY), (DAY, 1), (DAY, later_utc), (utc, later)]:
        assert not is_earlier(first, second)


def test_the_first_and_last_timestamps_are_formatted() -> None:
    assert describe_upper_limit(0) == str(2**62 - 1)
    assert describe_upper_limit(DAY) == "the year 9999"
    assert (synthetic_start("5"), synthetic_start("h")) == (0, pd.Timestamp("2001-01-01"))


@pytest.mark.parametrize(
    ("freq", "hint"), [("M", "ME"), ("H", "h"), ("Q", "QE"), ("T", "min"), ("w", "W"), ("BM", "BME")]
)
def test_an_outdated_alias_is_refused_with_the_hint_of_pandas(freq: str, hint: str) -> None:
    with pytest.raises(FrequencyUnknown, match=f"Did you mean '{hint}'"):
        parse_frequency(freq)


MIDNIGHTS_SKIPPED = {
    "America/Santiago": "2023-09-03",
    "America/Sao_Paulo": "2018-11-04",
    "Africa/Cairo": "2024-04-26",
    "Asia/Beirut": "2023-03-26",
    "America/Havana": "2024-03-10",
    "America/Asuncion": "2023-10-01",
    "Asia/Amman": "2021-03-26",
    "Asia/Damascus": "2021-03-26",
    "Asia/Tehran": "2021-03-22",
}


@pytest.mark.parametrize(("zone", "day"), MIDNIGHTS_SKIPPED.items())
@pytest.mark.parametrize("freq", ["D", "2D", "7D", "B", "C-1111111"])
def test_days_without_midnight_start_at_their_first_moment_from_any_start(zone: str, day: str, freq: str) -> None:
    first = pd.Timestamp(day) - (20 if freq != "7D" else 21) * pd.Timedelta(days=1)
    local: Any = pd.date_range(first, periods=40, freq=parse_frequency(freq))
    expected = local.tz_localize(zone, ambiguous=np.ones(40, dtype=bool), nonexistent="shift_forward")
    for index in range(25):
        start, steps = expected[index], 40 - index
        assert build_timestamps(start, freq=freq, steps=steps).equals(expected[index:])
        series = Series("a", start, freq, np.zeros(steps - 3))
        assert [series.timestamp_at(step) for step in range(steps - 3)] == list(expected[index:-3])
        assert series.future_timestamps(3).equals(expected[-3:])


@pytest.mark.parametrize(
    ("zone", "day"),
    [("Pacific/Apia", "2011-12-30"), ("Pacific/Kiritimati", "1994-12-31"), ("Pacific/Kwajalein", "1993-08-21")],
)
@pytest.mark.parametrize("freq", ["D", "2D", "7D", "W-SUN", "B", "C-1111110", "MS", "ME", "h"])
def test_a_zone_that_skips_a_whole_day_has_timestamps_in_order(zone: str, day: str, freq: str) -> None:
    skipped = pd.Timestamp(day)
    start = pd.date_range(skipped - pd.Timedelta(days=40), periods=1, freq=parse_frequency(freq))[0].tz_localize(zone)
    timestamps: Any = build_timestamps(start, freq=freq, steps=60)
    assert timestamps.is_monotonic_increasing
    assert timestamps.is_unique
    assert len(timestamps) == 60
    assert not (timestamps.tz_localize(None).normalize() == skipped).any()
    series = Series("a", start, freq, np.zeros(60))
    assert [series.timestamp_at(step) for step in range(60)] == list(timestamps)
    if freq == "D":
        assert set(np.diff(timestamps.asi8)) == {86_400_000_000}  # no day is counted that does not exist


@pytest.mark.parametrize("freq", ["1", "10", "7"])
def test_an_integer_series_has_the_timestamps_of_its_positions(freq: str) -> None:
    series = Series("a", -3, freq, np.arange(5.0))
    size = int(freq)
    assert list(series.timestamps) == [-3 + index * size for index in range(5)]
    assert (series.end, type(series.end)) == (-3 + 4 * size, int)
    assert list(series.future_timestamps(3)) == [-3 + index * size for index in (5, 6, 7)]
    assert [series.timestamp_at(index) for index in range(5)] == list(series.timestamps)
    assert series.take_first(2).end == series.timestamp_at(1)


@pytest.mark.parametrize("zone", [None, "UTC", BERLIN, "America/Sao_Paulo"])
@pytest.mark.parametrize("freq", ["h", "D", "7D", "B", "MS", "QE-MAR"])
def test_the_timestamp_at_an_index_equals_that_of_the_range(freq: str, zone: str | None) -> None:
    start = pd.date_range("2018-10-25", periods=1, freq=freq, tz=zone)[0]
    series = Series("a", start, freq, np.zeros(40))
    assert [series.timestamp_at(index) for index in range(40)] == list(series.timestamps)


def test_integers_do_not_use_calendar_steps_and_dates_do_not_use_integer_steps() -> None:
    with pytest.raises(
        BadStamp, match=r"timestamps, since the frequency is 'h'; series 'a' has the whole number 3\."
    ) as error:
        Series("a", 3, "h", np.zeros(2))
    assert error.value.where == "a"
    with pytest.raises(BadStamp, match=r"whole numbers .* '10'; series 'a' has 2026-01-01T00:00:00\."):
        Series("a", DAY, "10", np.zeros(2))


def test_integer_panels_have_their_own_cutoff_and_digest() -> None:
    def make_numbered_panel(start: Timestamp, freq: str) -> Panel:
        return Panel([Series("a", start, freq, np.arange(3.0)), Series("b", start, freq, np.arange(2.0))], freq)

    panels = [
        make_numbered_panel(0, "1"),
        make_numbered_panel(1, "1"),
        make_numbered_panel(0, "2"),
        make_numbered_panel(DAY, "D"),
    ]
    assert [panel.cutoff for panel in panels] == [2, 3, 4, DAY + pd.Timedelta("2D")]
    assert len({panel.digest for panel in panels}) == 4
    assert make_numbered_panel(0, "1").digest == panels[0].digest


@pytest.mark.parametrize("zone", [None, "UTC", BERLIN])
@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_timestamps_keep_zone_and_unit_independent_of_earlier_calls(zone: str | None, unit: str) -> None:
    """Datetimes of different zones or units compare equal, so a cache must distinguish them."""
    for other_zone in (None, "UTC", BERLIN):
        for other_unit in ("s", "us", "ns"):
            if (other_zone is None) == (zone is None):
                build_timestamps(make_timestamp(other_zone, other_unit), freq="h", steps=3)
                next_timestamps(make_timestamp(other_zone, other_unit), freq="h", steps=2)
                add_steps(make_timestamp(other_zone, other_unit), "D", 3)
    start = make_timestamp(zone, unit)
    timestamps, later = build_timestamps(start, freq="h", steps=3), add_steps(start, "D", 3)
    assert isinstance(timestamps, pd.DatetimeIndex)
    assert isinstance(later, pd.Timestamp)
    pd.testing.assert_index_equal(next_timestamps(start, freq="h", steps=2), timestamps[1:])
    assert [str(timestamps.tz), str(later.tz)] == [str(start.tz)] * 2
    assert [timestamps.unit, later.unit] == [
        pd.date_range(start, periods=3, freq="h").unit,
        (start + pd.offsets.Day(3)).unit,
    ]
    assert later == (start.tz_localize(None) + pd.Timedelta(days=3)).tz_localize(start.tz)


def make_timestamp(zone: str | None, unit: str) -> pd.Timestamp:
    noon = pd.Timestamp("2026-03-28T12:00").as_unit(unit)
    return noon if zone is None else noon.tz_localize("UTC").tz_convert(zone)


@pytest.mark.parametrize(
    ("timestamp", "freq", "days"),
    [
        ("2026-03-10 12:00", "h", 0.0),
        ("2026-03-10 13:00", "h", 0.0),
        ("2026-03-31", "ME", 0.0),  # the end of the current month
        ("2026-12-31", "YE", 0.0),
        ("2026-04-01", "MS", 0.0),
        ("2026-03-12", "D", 0.5),
        ("2026-03-11 21:00+09:00", "h", 23 / 24),
        ("2226-03-11 13:00", "h", 73049.0),
        ("0001-01-01", "MS", 0.0),
    ],
)
def test_days_ahead_count_from_the_present_to_the_begin_of_the_last_step(
    timestamp: str, freq: str, days: float
) -> None:
    now = datetime(2026, 3, 10, 13, tzinfo=timezone(timedelta(hours=1)))  # noon in UTC
    assert compute_days_ahead(pd.Timestamp(timestamp), freq, now) == pytest.approx(days)
    assert compute_days_ahead(10**9, "1", now) is None

"""How stamps step: moments on the calendar, numbers by a number, and never the one by the other's step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.errors import BadStamp, FrequencyUnknown
from forecaster.frequency import (
    LAST_NUMBER,
    Stamp,
    after,
    alias,
    at,
    counts,
    earlier,
    is_numbered,
    ladder,
    last,
    offset,
    origin,
    regular,
    tell,
    untell,
)
from forecaster.series import Panel, Series

BERLIN = "Europe/Berlin"
DAY = pd.Timestamp("2026-01-01")


@pytest.mark.parametrize(("freq", "size"), [("1", 1), ("10", 10), ("9" * 18, 10**18 - 1)])
def test_a_whole_number_is_a_step(freq: str, size: int) -> None:
    assert is_numbered(freq)
    assert offset(freq) == size
    assert alias(offset(freq)) == freq


@pytest.mark.parametrize(
    "freq", ["0", "-1", "-0", "01", "1.0", "+1", " 1", "1 ", "1_000", "1e3", "٣", "³", "9" * 19, ""]
)
def test_what_is_no_whole_number_forward_is_no_frequency(freq: str) -> None:
    with pytest.raises(FrequencyUnknown, match="expected") as error:
        offset(freq, where="a")
    assert error.value.where == "a"


@pytest.mark.parametrize("freq", ["h", "MS", "15min", "W-WED", "1D"])
def test_a_frequency_of_the_calendar_is_no_number(freq: str) -> None:
    assert not is_numbered(freq)
    assert not isinstance(offset(freq), int)


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize(("start", "size"), [(0, 1), (-30, 10), (LAST_NUMBER - 6, 1), (-LAST_NUMBER, 10**18 - 1)])
def test_numbers_are_a_ladder(start: int, size: int, steps: int) -> None:
    rungs = regular(start, freq=str(size), steps=steps)
    assert list(rungs) == [start + place * size for place in range(steps)]
    assert rungs.dtype == np.int64
    assert counts(rungs).tolist() == list(rungs)
    for place in range(steps):
        assert at(rungs, place) == after(start, str(size), place) == start + place * size
        assert type(at(rungs, place)) is int


@pytest.mark.parametrize(
    ("start", "freq", "steps"),
    [(LAST_NUMBER - 6, "1", 8), (0, "9" * 18, 6), (0, "1", 2**63), (2**63, "1", 1), (-LAST_NUMBER - 1, "1", 1)],
)
def test_a_ladder_beyond_the_last_number_is_refused_without_building_it(start: int, freq: str, steps: int) -> None:
    with pytest.raises(BadStamp, match=f"up to {LAST_NUMBER}; {steps} steps of '{freq}' from {start} pass it"):
        regular(start, freq=freq, steps=steps)
    with pytest.raises(OverflowError):
        ladder(start, freq=freq, steps=steps)


@pytest.mark.parametrize(
    ("stamp", "freq"),
    [
        (0, "1"),
        (-17, "10"),
        (LAST_NUMBER, "1"),
        (DAY, "D"),
        (DAY.tz_localize("UTC"), "h"),
        (DAY.tz_localize(BERLIN), "h"),
    ],
)
def test_a_stamp_that_was_told_is_read_again(stamp: Stamp, freq: str) -> None:
    again: Any = untell(tell(stamp), freq=freq)
    assert again == stamp
    assert type(again) is type(stamp)


def test_a_moment_cannot_be_told_from_digits_nor_a_number_from_a_date() -> None:
    with pytest.raises(ValueError, match="2026"):
        untell("2026-01-01", freq="1")


def test_what_is_earlier_is_known_within_a_kind_alone() -> None:
    utc = DAY.tz_localize("UTC")
    later, later_utc = DAY + pd.Timedelta("1D"), utc + pd.Timedelta("1D")
    assert earlier(1, 2)
    assert earlier(DAY, later)
    assert earlier(utc, later_utc)
    for one, other in [(2, 1), (1, 1), (later, DAY), (1, DAY), (DAY, 1), (DAY, later_utc), (utc, later)]:
        assert not earlier(one, other)


def test_the_ends_of_stamps_are_told() -> None:
    assert last(0) == str(2**62 - 1)
    assert last(DAY) == "the year 9999"
    assert (origin("5"), origin("h")) == (0, pd.Timestamp("2001-01-01"))


@pytest.mark.parametrize("freq", ["1", "10", "7"])
def test_a_numbered_series_has_the_stamps_that_its_places_say(freq: str) -> None:
    one = Series("a", -3, freq, np.arange(5.0))
    size = int(freq)
    assert list(one.stamps) == [-3 + place * size for place in range(5)]
    assert (one.end, type(one.end)) == (-3 + 4 * size, int)
    assert list(one.stamps_ahead(3)) == [-3 + place * size for place in (5, 6, 7)]
    assert [one.stamp(place) for place in range(5)] == list(one.stamps)
    assert one.until(2).end == one.stamp(1)


@pytest.mark.parametrize("zone", [None, "UTC", BERLIN, "America/Sao_Paulo"])
@pytest.mark.parametrize("freq", ["h", "D", "7D", "B", "MS", "QE-MAR"])
def test_the_stamp_of_a_place_is_that_of_the_range(freq: str, zone: str | None) -> None:
    start = pd.date_range("2018-10-25", periods=1, freq=freq, tz=zone)[0]
    one = Series("a", start, freq, np.zeros(40))
    assert [one.stamp(place) for place in range(40)] == list(one.stamps)


def test_numbers_do_not_step_on_the_calendar_nor_moments_by_a_number() -> None:
    with pytest.raises(
        BadStamp, match=r"time stamps, since the frequency is 'h'; series 'a' has the whole number 3\."
    ) as error:
        Series("a", 3, "h", np.zeros(2))
    assert error.value.where == "a"
    with pytest.raises(BadStamp, match=r"whole numbers .* '10'; series 'a' has 2026-01-01T00:00:00\."):
        Series("a", DAY, "10", np.zeros(2))


def test_numbered_panels_have_a_cutoff_and_digests_of_their_own() -> None:
    def panel(start: Stamp, freq: str) -> Panel:
        return Panel([Series("a", start, freq, np.arange(3.0)), Series("b", start, freq, np.arange(2.0))], freq)

    panels = [panel(0, "1"), panel(1, "1"), panel(0, "2"), panel(DAY, "D")]
    assert [one.cutoff for one in panels] == [2, 3, 4, DAY + pd.Timedelta("2D")]
    assert len({one.digest() for one in panels}) == 4
    assert panel(0, "1").digest() == panels[0].digest()


@pytest.mark.parametrize("zone", [None, "UTC", BERLIN])
@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_stamps_keep_their_own_zone_and_unit_whatever_was_asked_before(zone: str | None, unit: str) -> None:
    """Moments of two zones, or of two units, are equal."""
    for other_zone in (None, "UTC", BERLIN):
        for other in ("s", "us", "ns"):
            if (other_zone is None) == (zone is None):
                regular(moment(other_zone, other), freq="h", steps=3)
                after(moment(other_zone, other), "D", 3)
    start = moment(zone, unit)
    stamps, later = regular(start, freq="h", steps=3), after(start, "D", 3)
    assert isinstance(stamps, pd.DatetimeIndex)
    assert isinstance(later, pd.Timestamp)
    assert [str(stamps.tz), str(later.tz)] == [str(start.tz)] * 2
    assert [stamps.unit, later.unit] == [
        pd.date_range(start, periods=3, freq="h").unit,
        (start + pd.offsets.Day(3)).unit,
    ]
    assert later == (start.tz_localize(None) + pd.Timedelta(days=3)).tz_localize(start.tz)


def moment(zone: str | None, unit: str) -> pd.Timestamp:
    noon = pd.Timestamp("2026-03-28T12:00").as_unit(unit)
    return noon if zone is None else noon.tz_localize("UTC").tz_convert(zone)

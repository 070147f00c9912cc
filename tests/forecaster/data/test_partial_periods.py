"""Incomplete last periods, found by a fall of many series at once and by the clock."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.data.partial_periods import (
    MIN_SCORE,
    EndClock,
    check_partial_periods,
    describe_partial_end,
    describe_partial_periods,
    drop_partial_periods,
    find_last_drop,
    find_partial_periods,
    is_last_period_running,
)
from forecaster.errors import NoData
from forecaster.frequency.clock import find_period_end, is_period_running
from forecaster.metrics import nanmean
from forecaster.series import Panel, Series
from tests.factories import make_panel, make_series
from tests.partial_panels import make_daily_panel, make_yearly_panel


def list_ids(panel: Panel, indices: tuple[int, ...]) -> list[str]:
    return [panel.series[index].id for index in indices]


def make_yearly_series(*values: float) -> Series:
    return Series("a", pd.Timestamp("2000-01-01"), "YS-JAN", np.array(values, dtype=np.float64))


STEADY = (100.0, 104.0, 99.0, 103.0, 108.0, 105.0, 110.0, 112.0)


# Falls of the values


def test_years_with_four_months_are_found_among_complete_ones() -> None:
    panel, partial_ids, _ = make_yearly_panel()
    partial = find_partial_periods(panel)
    assert partial.by_clock == ()
    assert set(list_ids(panel, partial.by_drop)) == set(partial_ids)


@pytest.mark.parametrize("seed", range(3))
def test_complete_years_are_not_reported(seed: int) -> None:
    panel = make_yearly_panel(months=12, seed=seed).panel
    assert find_partial_periods(panel).by_drop == ()


def test_a_day_that_ended_early_is_incomplete_in_all_series_if_most_have_fallen() -> None:
    panel, ids, _ = make_daily_panel()
    busy = replace(panel.series[0], y=np.append(panel.series[0].y[:-1], panel.series[0].y.max()))
    panel = replace(panel, series=[busy, *panel.series[1:]])
    assert tuple(list_ids(panel, find_partial_periods(panel).by_drop)) == ids


def test_one_fall_among_many_series_is_chance_and_one_alone_is_not() -> None:
    panel = make_yearly_panel(num_series=30, one_in=30).panel
    assert find_partial_periods(panel).by_drop == ()
    alone = replace(panel, series=panel.series[:1])
    assert find_partial_periods(alone).by_drop == (0,)


def test_falls_at_different_timestamps_do_not_support_each_other() -> None:
    panel = make_yearly_panel(num_series=30, one_in=10).panel
    assert len(find_partial_periods(panel).by_drop) == 3
    shifted = [
        item if index else replace(item, start=item.start + pd.DateOffset(years=1))  # type: ignore[operator]
        for index, item in enumerate(panel.series)
    ]
    assert find_partial_periods(replace(panel, series=shifted)).by_drop == ()


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((*STEADY, 37.0), True),
        ((*STEADY, 0.0), True),  # a fall to zero, which never happened before
        ((*STEADY, 90.0), False),  # 80 % of the value before
        ((*STEADY, 300.0), False),
        ((*STEADY, np.nan), False),
        ((*STEADY[:-1], np.nan, 37.0), False),  # without the value before it
        ((100.0, 30.0, 110.0, 35.0, 90.0, 28.0, 120.0, 100.0, 37.0), False),  # such falls are usual here
        ((5.0, 0.0, 6.0, 4.0, 0.0, 5.0, 6.0, 4.0, 0.0), False),  # intermittent
        ((0.0,) * 9, False),
        ((*(-value for value in STEADY), -300.0), False),  # no total
        ((-1.0, *STEADY, 37.0), False),
        ((100.0, 104.0, 99.0, 37.0), False),  # too few changes
        ((37.0,), False),
    ],
)
def test_a_fall_counts_only_if_the_series_never_had_such_a_one(values: tuple[float, ...], found: bool) -> None:
    assert (find_last_drop(np.array(values), 1) is not None) is found


def test_the_fall_of_a_season_is_usual() -> None:
    week = np.tile([100.0, 102.0, 98.0, 101.0, 140.0, 150.0, 20.0], 10) * np.linspace(1, 1.2, 70)
    assert find_last_drop(week, 7) is None
    assert find_last_drop(week[:-3], 7) is None
    half_day = np.append(week[:-1], week[-1] / 3)
    drop = find_last_drop(half_day, 7)
    assert drop is not None
    assert drop.share == pytest.approx(1 / 3, rel=0.1)
    assert drop.score > MIN_SCORE


# The clock


@pytest.mark.parametrize(
    ("timestamp", "freq", "end"),
    [
        ("2026-03-01", "MS", "2026-04-01"),
        ("2026-03-31", "ME", "2026-04-01"),
        ("2026-01-01", "QS-JAN", "2026-04-01"),
        ("2026-03-31", "QE-DEC", "2026-04-01"),
        ("2026-01-01", "YS-JAN", "2027-01-01"),
        ("2026-03-16", "7D", "2026-03-23"),  # a Monday: the week begins
        ("2026-03-22", "7D", "2026-03-23"),  # a Sunday: the week ends
        ("2026-03-20", "B", "2026-03-21"),  # a Friday: not only on Monday
        ("2026-03-20", "C-1111100", "2026-03-21"),
        ("2026-03-20", "D", "2026-03-21"),
        ("2026-03-20 10:00", "h", "2026-03-20 11:00"),
        ("2026-03-20 16:00", "bh", "2026-03-20 17:00"),
    ],
)
def test_a_period_ends_where_the_next_begins_or_with_the_day_that_marks_it(timestamp: str, freq: str, end: str) -> None:
    assert find_period_end(pd.Timestamp(timestamp), freq) == pd.Timestamp(end)
    moment = pd.Timestamp(end, tz="UTC")
    assert is_period_running(pd.Timestamp(timestamp), freq, (moment - pd.Timedelta(minutes=1)).to_pydatetime())
    assert not is_period_running(pd.Timestamp(timestamp), freq, moment.to_pydatetime())


@pytest.mark.parametrize(
    ("timestamp", "zone", "end"),
    [
        ("2018-11-03", "America/Sao_Paulo", "2018-11-04 01:00"),  # there is no midnight
        ("2024-03-30 02:30", "Europe/Berlin", "2024-03-31 03:00"),
        ("2024-10-26 02:30", "Europe/Berlin", "2024-10-27 02:30+02:00"),
        ("2011-12-29", "Pacific/Apia", "2011-12-31"),
    ],
)
def test_a_period_may_end_at_a_local_time_that_does_not_exist_or_exists_twice(
    timestamp: str, zone: str, end: str
) -> None:
    found = find_period_end(pd.Timestamp(timestamp, tz=zone), "D")
    assert found is not None
    assert found.isoformat(" ", "minutes").startswith(end)


def test_days_end_in_their_time_zone_and_integers_never() -> None:
    day, evening = pd.Timestamp("2026-03-20", tz="America/New_York"), datetime(2026, 3, 21, 3, tzinfo=UTC)
    assert is_period_running(day, "D", evening)
    assert not is_period_running(day, "D", datetime(2026, 3, 21, 4, tzinfo=UTC))
    assert not is_period_running(pd.Timestamp("2226-03-20"), "D", evening), "planned or wrong, but not running"
    assert find_period_end(7, "1") is None
    assert not is_period_running(7, "1", evening)


def test_the_day_that_contains_the_present_is_reported_without_a_fall() -> None:
    panel = make_daily_panel(share=1.0).panel
    noon, night = datetime(2026, 1, 31, 12, tzinfo=UTC), datetime(2026, 2, 1, 1, tzinfo=UTC)
    assert find_partial_periods(panel, now=noon).by_clock == tuple(range(8))
    assert find_partial_periods(panel, now=night) == ((), ())


def test_hours_that_run_are_reported_only_below_the_usual_values() -> None:
    hours = np.tile(np.arange(24.0), 4)[:-4] + 10  # the last value is at 19:00
    now = datetime(2026, 1, 4, 19, 30, tzinfo=UTC)
    assert not is_last_period_running(make_series(hours), 24, EndClock(now))
    assert is_last_period_running(make_series(np.append(hours[:-1], 15.0)), 24, EndClock(now))
    assert not is_last_period_running(make_series(np.append(hours[:-1], -1.0)), 24, EndClock(now))
    assert not is_last_period_running(make_series(np.append(hours[:-1], np.nan)), 24, EndClock(now))


# Dropping


def test_dropped_values_are_missing_and_reported_and_the_forecasts_of_seasonal_naive_improve() -> None:
    panel, partial_ids, actual = make_yearly_panel()
    treated, warnings = check_partial_periods(panel, now=None, drop=True)
    assert not warnings
    assert [series.id for series in treated.series if np.isnan(series.y[-1])] == list(partial_ids)
    assert treated.dropped_partial == partial_ids
    assert treated.digest != panel.digest
    (repair,) = treated.repairs
    assert "10 of 60 series" in repair
    assert "as requested" in repair

    def score_last_value(data: Panel) -> float:
        scales = [np.nanmean(np.abs(np.diff(series.y))) for series in data.series]
        last = [series.y[~np.isnan(series.y)][-1] for series in data.series]
        return float(nanmean(np.abs(actual - np.array(last)[:, None]) / np.array(scales)[:, None], axis=(0, 1)))

    assert score_last_value(treated) < 0.8 * score_last_value(panel)


def test_without_the_request_the_panel_stays_and_the_message_lists_at_most_five_ids() -> None:
    panel = make_yearly_panel().panel
    same, (warning,) = check_partial_periods(panel, now=None, drop=False)
    assert same is panel
    assert same.dropped_partial is None
    assert "10 of 60 series" in warning
    assert "'region_0', 'region_6', 'region_12', 'region_18', 'region_24' at 2006-01-01" in warning
    assert warning.endswith("and 5 more")


def test_a_request_without_a_finding_is_recorded() -> None:
    panel = make_yearly_panel(months=12).panel
    treated, _ = check_partial_periods(panel, now=None, drop=True)
    assert treated.dropped_partial == ()
    assert (treated.repairs, treated.digest) == (panel.repairs, panel.digest)


def test_channels_of_a_dropped_step_are_missing_too_and_covariates_stay() -> None:
    series = Series(
        "a",
        pd.Timestamp("2026-01-01"),
        "D",
        np.arange(3.0),
        covariates={"price": np.arange(5.0)},
        channels={"visits": np.arange(3.0)},
    )
    panel = Panel([series], "D")
    partial = find_partial_periods(panel, now=datetime(2026, 1, 3, 9, tzinfo=UTC))
    (dropped,) = drop_partial_periods(panel, partial).series
    np.testing.assert_array_equal(dropped.y, [0, 1, np.nan])
    np.testing.assert_array_equal(dropped.channels["visits"], [0, 1, np.nan])
    np.testing.assert_array_equal(dropped.covariates["price"], np.arange(5.0))
    assert series.y[-1] == 2


def test_a_series_whose_only_value_is_incomplete_is_left_out() -> None:
    now = datetime(2026, 1, 1, 9, tzinfo=UTC)
    new, old = make_series(np.array([5.0]), name="new", freq="D"), make_yearly_series(*STEADY)
    old = replace(old, freq="D", start=pd.Timestamp("2025-12-01"))
    panel = Panel([new, old], "D")
    treated = drop_partial_periods(panel, find_partial_periods(panel, now=now))
    assert [series.id for series in treated.series] == ["a"]
    assert "1 series without any other observed value" in treated.repairs[-1]
    only = Panel([new], "D")
    partial = find_partial_periods(only, now=now)
    with pytest.raises(NoData, match="'new'"):
        drop_partial_periods(only, partial)


def test_a_panel_of_many_series_counts_chance_without_overflow() -> None:
    steady, fallen = np.array([*STEADY, 111.0]), np.array([*STEADY, 37.0])
    panel = make_panel(*[steady] * 985, *[fallen] * 15)
    assert find_partial_periods(panel).by_drop == ()
    panel = make_panel(*[steady] * 960, *[fallen] * 40)
    assert find_partial_periods(panel).by_drop == tuple(range(960, 1000))


# One series, as in the service


@pytest.mark.parametrize(
    ("y", "now", "parts"),
    [
        ((*STEADY, 37.0), None, ["37 at 2008-01-01", "33%", "null"]),
        ((*STEADY, 115.0), datetime(2008, 5, 1, tzinfo=UTC), ["contains the present"]),
        ((*STEADY, 37.0), datetime(2008, 5, 1, tzinfo=UTC), ["contains the present and it is 33%"]),
        ((*STEADY, 115.0), datetime(2009, 1, 1, tzinfo=UTC), None),
        ((*STEADY, 115.0), None, None),
    ],
)
def test_a_single_series_is_described_by_its_own_evidence(
    y: tuple[float, ...], now: Any, parts: list[str] | None
) -> None:
    warning = describe_partial_end(make_yearly_series(*y), 1, None if now is None else EndClock(now))
    if parts is None:
        assert warning is None
    else:
        assert warning is not None
        assert all(part in warning for part in parts)


def test_the_messages_name_each_kind_of_evidence() -> None:
    panel, _, _ = make_daily_panel()
    by_clock = describe_partial_periods(panel, find_partial_periods(panel, now=datetime(2026, 1, 31, 9, tzinfo=UTC)))
    by_drop = describe_partial_periods(panel, find_partial_periods(panel))
    assert [len(by_clock), len(by_drop)] == [1, 1]
    assert "contains the present" in by_clock[0]
    assert "fallen as never before" in by_drop[0]
    assert describe_partial_periods(panel, find_partial_periods(make_daily_panel(share=1.0).panel)) == []

"""Tests of series, their timestamps, and splits by time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from forecaster.data.split import hold_out, rolling_origins
from forecaster.errors import HistoryTooShort
from forecaster.series import Panel, Series
from tests.factories import make_panel, make_series, make_wave

FREQUENCIES = ["100ms", "s", "15min", "h", "5h", "D", "2D", "7D", "W", "W-WED", "B", "2B", "MS", "ME", "2MS", "BMS"]
FREQUENCIES += ["QS", "QS-FEB", "QE-MAR", "YS", "YE-JUN", "2YS"]


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
@pytest.mark.parametrize("freq", FREQUENCIES)
def test_history_and_future_timestamps_form_one_range(freq: str, zone: str | None) -> None:
    start = pd.date_range("2026-03-20", periods=1, freq=freq, tz=zone)[0]
    for steps in (1, 2, 13):
        series = Series("a", start, freq, np.zeros(steps))
        timestamps = pd.date_range(start, periods=steps + 9, freq=freq)
        assert series.timestamps.equals(timestamps[:steps])
        assert series.end == timestamps[steps - 1]
        assert series.future_timestamps(9).equals(timestamps[steps:])
        assert str(series.future_timestamps(2).tz) == str(zone)


def test_a_history_ends_at_its_cutoff() -> None:
    series = make_series(make_wave(10))
    history = series.take_first(4)
    assert (history.id, history.start, history.freq) == (series.id, series.start, series.freq)
    assert history.y.tolist() == series.y[:4].tolist()
    assert history.end == series.timestamps[3]
    for steps in (0, 11):
        with pytest.raises(AssertionError):
            series.take_first(steps)


def test_held_out_steps_are_the_last_of_every_long_enough_series() -> None:
    panel = Panel(make_panel(make_wave(20), make_wave(9), make_wave(10)).series, "h", ("sorted",))
    split = hold_out(panel, 6, min_history=4)
    assert split.excluded_ids == ("series_1",)
    for part in (split.history, split.full):
        assert [series.id for series in part.series] == ["series_0", "series_2"]
    for history, full in zip(split.history.series, split.full.series, strict=True):
        assert history.y.tolist() == full.y[:-6].tolist()
    assert split.history.repairs == split.full.repairs == ("sorted",)
    assert split.history.cutoff == panel.series[0].timestamps[13]


def test_holding_out_zero_steps_keeps_all() -> None:
    split = hold_out(make_panel(make_wave(5)), 0)
    assert split.history.series[0].y.tolist() == make_wave(5).tolist()


def test_the_error_for_a_too_short_panel_names_its_longest_series_and_a_fix() -> None:
    with pytest.raises(HistoryTooShort, match="needs a series of 13 steps; the longest, 'series_1', has 9") as error:
        hold_out(make_panel(make_wave(5), make_wave(9)), 10, min_history=3)
    assert error.value.where == "series_1"
    assert "Send a longer history" in error.value.message


def test_origins_are_one_horizon_apart_and_end_before_the_last_horizon() -> None:
    assert list(rolling_origins(windows=3, horizon=4)) == [12, 8, 4]
    assert list(rolling_origins(windows=0, horizon=4)) == []


def test_origins_can_have_any_stride() -> None:
    assert list(rolling_origins(windows=3, horizon=4, stride=1)) == [6, 5, 4]
    assert list(rolling_origins(windows=2, horizon=4, stride=7)) == [11, 4]

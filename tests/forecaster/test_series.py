"""A series and its stamps, and cutting it by time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from forecaster.data.split import hold_out, origins
from forecaster.errors import HistoryTooShort
from forecaster.series import Panel, Series
from tests.factories import one_series, panel_of, wave

FREQS = ["100ms", "s", "15min", "h", "5h", "D", "2D", "7D", "W", "W-WED", "B", "2B", "MS", "ME", "2MS", "BMS"]
FREQS += ["QS", "QS-FEB", "QE-MAR", "YS", "YE-JUN", "2YS"]


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
@pytest.mark.parametrize("freq", FREQS)
def test_the_stamps_of_a_series_and_those_ahead_are_one_range(freq: str, zone: str | None) -> None:
    start = pd.date_range("2026-03-20", periods=1, freq=freq, tz=zone)[0]
    for steps in (1, 2, 13):
        one = Series("a", start, freq, np.zeros(steps))
        whole = pd.date_range(start, periods=steps + 9, freq=freq)
        assert one.stamps.equals(whole[:steps])
        assert one.end == whole[steps - 1]
        assert one.stamps_ahead(9).equals(whole[steps:])
        assert str(one.stamps_ahead(2).tz) == str(zone)


def test_a_history_is_what_was_known_then() -> None:
    one = one_series(wave(10))
    history = one.until(4)
    assert (history.id, history.start, history.freq) == (one.id, one.start, one.freq)
    assert history.y.tolist() == one.y[:4].tolist()
    assert history.end == one.stamps[3]
    for steps in (0, 11):
        with pytest.raises(AssertionError):
            one.until(steps)


def test_held_out_steps_are_the_last_of_every_series_that_is_long_enough() -> None:
    panel = Panel(panel_of(wave(20), wave(9), wave(10)).series, "h", ("sorted",))
    split = hold_out(panel, 6, keep=4)
    assert split.left_out == ("series_1",)
    assert [one.id for one in split.known.series] == [one.id for one in split.whole.series] == ["series_0", "series_2"]
    for known, whole in zip(split.known.series, split.whole.series, strict=True):
        assert known.y.tolist() == whole.y[:-6].tolist()
    assert split.known.repairs == split.whole.repairs == ("sorted",)
    assert split.known.cutoff == panel.series[0].stamps[13]


def test_holding_out_nothing_leaves_all() -> None:
    split = hold_out(panel_of(wave(5)), 0)
    assert split.known.series[0].y.tolist() == wave(5).tolist()


def test_a_panel_too_short_to_cut_names_its_longest_series_and_the_advice() -> None:
    with pytest.raises(HistoryTooShort, match="needs a series of 13 steps; the longest, 'series_1', has 9") as error:
        hold_out(panel_of(wave(5), wave(9)), 10, keep=3)
    assert error.value.where == "series_1"
    assert "Send a longer history" in error.value.message


def test_origins_lie_a_horizon_apart_and_leave_the_last_horizon() -> None:
    assert list(origins(windows=3, horizon=4)) == [12, 8, 4]
    assert list(origins(windows=0, horizon=4)) == []


def test_origins_may_lie_closer_or_further_apart() -> None:
    assert list(origins(windows=3, horizon=4, stride=1)) == [6, 5, 4]
    assert list(origins(windows=2, horizon=4, stride=7)) == [11, 4]

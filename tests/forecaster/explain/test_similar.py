"""Similar stretches: planted copies are found, and ordered by the units that they share."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from forecaster.errors import BadId, InputError
from forecaster.explain.similar import SimilarStretches, build_match_table, find_similar, parse_bounds
from forecaster.explain.state_plots import plot_similar
from forecaster.explain.states import StateTrace
from tests.factories import START, make_series
from tests.forecaster.explain.test_atlas import make_trace


def hours(count: int) -> pd.Timestamp:
    return START + pd.Timedelta(hours=count)


def make_traces(count: int = 4, *, segment: int = 1) -> list[StateTrace]:
    """States of noise; in steps 10 to 14 of the first series units 1 to 3 are high and unit 4 is low."""
    rng = np.random.default_rng(0)
    traces = []
    for number in range(count):
        states = 0.1 * rng.normal(size=(60, 8))
        if number == 0:
            states[10:15] += [3, 3, 3, -3, 0, 0, 0, 0]
        if number == 2:
            states[30:35] += [3, 3, 3, -3, 0, 0, 0, 0]  # the same
            states[45:50] += [3, 3, 3, -3, 0, 0, 0, 3]  # and another unit
        if number == 3:
            states[20:25] += [3, 3, 0, -3, 0, 0, 0, 0]  # one unit less
            states[40:45] += [3, 3, 3, 3, 0, 0, 0, 0]  # one unit on the other side
        traces.append(make_trace(np.arange(60.0 * segment), states, name=f"s{number}", segment=segment))
    return traces


def find(traces: list[StateTrace], unique_id: str = "s0", first: int = 10, stop: int = 15) -> SimilarStretches:
    return find_similar(traces, unique_id, start=hours(first), end=hours(stop))


def test_stretches_at_which_the_same_units_are_on_come_first() -> None:
    found = find(make_traces())
    names = ("layer 1 unit 1 high", "layer 1 unit 2 high", "layer 1 unit 3 high", "layer 1 unit 4 low")
    assert found.selected == names
    table = build_match_table(found)
    assert table["unique_id"].tolist()[:2] == ["s2", "s2"]
    assert table["start"].tolist()[:2] == [hours(30), hours(45)], "fewer other units come first"
    assert table["end"].tolist()[:2] == [hours(35), hours(50)]
    assert table["shared"].tolist()[:4] == [4, 4, 3, 3]
    assert table["extra"].tolist()[:4] == [0, 1, 0, 1]
    assert set(table["start"][2:4]) == {hours(20), hours(40)}
    assert table["chance"][0] == pytest.approx(2 / (3 * 56))
    assert "s0" not in set(table["unique_id"]), "other series are searched"
    assert len(plot_similar(found, max_matches=2).axes) == 4


def test_a_single_series_is_searched_outside_of_the_selection() -> None:
    trace = make_traces()[2]
    found = find([trace], "s2", 30, 35)
    best = found.matches[0]
    assert (best.first, best.stop) == (45, 50)
    assert all(abs(match.first - 30) >= 5 for match in found.matches)


def test_a_match_lies_within_one_window_of_the_network() -> None:
    traces = make_traces()
    traces[2].windows[32:] = 1  # a new window begins in the middle of the copy
    assert find(traces).matches[0].first == 45


def test_segments_are_matched_as_whole_time_points() -> None:
    found = find_similar(make_traces(segment=3), "s0", start=hours(30), end=hours(45))
    assert (found.first, found.stop) == (30, 45)
    assert (found.matches[0].first, found.matches[0].stop) == (90, 105)


def test_a_selection_without_units_or_steps_is_refused() -> None:
    traces = make_traces()
    with pytest.raises(InputError, match="lower threshold"):
        find(traces, first=0, stop=40)
    with pytest.raises(InputError, match="has none"):
        find(traces, first=100, stop=120)
    with pytest.raises(BadId, match="'other'"):
        find(traces, "other")


def test_bounds_are_read_in_the_zone_of_the_series() -> None:
    local = make_series(np.arange(9.0))
    assert parse_bounds(local, "2026-01-01 02:00", hours(4)) == (hours(2), hours(4))
    for start, end in (("today or so", hours(4)), (hours(4), hours(2)), (None, hours(2))):
        with pytest.raises(InputError, match="first timestamp of a stretch"):
            parse_bounds(local, start, end)

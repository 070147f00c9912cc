"""Equal grids are one frequency: it has one canonical name, and frequencies are compared by their timestamps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from forecaster.data.frames.panel import to_panel
from forecaster.errors import FrequencyUnknown
from forecaster.frequency.names import are_same_grid, canonical_frequency
from forecaster.frequency.timestamps import build_timestamps

SAME_GRIDS = [
    ("QS-JAN", "QS-APR", "2026-04-01"),
    ("QS", "QS-OCT", "2026-04-01"),
    ("QE-MAR", "QE-JUN", "2026-03-31"),
    ("QE", "QE-JUN", "2026-03-31"),
    ("BQE-MAR", "3BME", "2026-03-31"),
    ("BQS-JAN", "3BMS", "2026-04-01"),
    ("7D", "W-SUN", "2026-01-04"),
    ("14D", "2W-MON", "2026-01-05"),
    ("5B", "W-MON", "2026-01-05"),
    ("3MS", "QS-APR", "2026-04-01"),
    ("12MS", "YS-APR", "2026-04-01"),
    ("4QE-MAR", "YE-MAR", "2026-03-31"),
    ("6ME", "2QE-SEP", "2026-03-31"),
    ("60min", "h", "2026-01-01"),
    ("24h", "D", "2026-01-01"),
    ("24h", "D", "2026-01-01T00:00Z"),
    ("C-1111100", "B", "2026-01-05"),
    ("C-MonTueWedThuFriSat", "C-1111110", "2026-01-05"),
    ("C", "B", "2026-01-05"),
    ("6C-1111110", "7D", "2026-01-05"),
]
DIFFERENT_GRIDS = [
    ("QS-JAN", "QS-FEB", "2026-01-01"),
    ("QE-MAR", "QE-APR", "2026-03-31"),
    ("W-SUN", "W-MON", "2026-01-04"),
    ("7D", "W-SUN", "2026-01-05"),
    ("24h", "D", "2026-01-01T00:00+01:00[Europe/Berlin]"),
    ("MS", "BMS", "2026-01-01"),
    ("D", "B", "2026-01-01"),
    ("C-1111110", "C-1111110-20260106", "2026-01-05"),
    ("h", "2h", "2026-01-01"),
]


def parse_start(text: str) -> pd.Timestamp:
    moment, _, zone = text.partition("[")
    return pd.Timestamp(moment).tz_convert(zone[:-1]) if zone else pd.Timestamp(moment)


@pytest.mark.parametrize(("first", "second", "start"), SAME_GRIDS)
def test_equal_grids_are_one_frequency_with_one_name(first: str, second: str, start: str) -> None:
    timestamp = parse_start(start)
    grid = build_timestamps(timestamp, freq=first, steps=60)
    assert grid.equals(build_timestamps(timestamp, freq=second, steps=60))
    assert are_same_grid(first, second, [timestamp])
    assert are_same_grid(second, first, [timestamp])
    name = canonical_frequency(first, grid[:1])
    assert name == canonical_frequency(second, grid[:1])
    assert canonical_frequency(name, grid[:1]) == name
    assert build_timestamps(timestamp, freq=name, steps=60).equals(grid)


@pytest.mark.parametrize(("first", "second", "start"), DIFFERENT_GRIDS)
def test_different_grids_are_different_frequencies(first: str, second: str, start: str) -> None:
    assert not are_same_grid(first, second, [parse_start(start)])
    assert not are_same_grid(second, first, [parse_start(start)])


def test_integers_and_dates_have_no_common_grid() -> None:
    assert are_same_grid("10", "10", [3])
    assert not are_same_grid("1", "10", [3])
    assert not are_same_grid("1", "D", [pd.Timestamp("2026-01-01")])
    with pytest.raises(FrequencyUnknown) as error:
        are_same_grid("fortnight", "D", [pd.Timestamp("2026-01-01")], where="a")
    assert error.value.where == "a"


@pytest.mark.parametrize(
    ("freq", "starts", "name"),
    [
        ("QS-APR", [], "QS-JAN"),
        ("QE", [], "QE-DEC"),
        ("QE-JAN", [], "QE-OCT"),
        ("YS-APR", [], "YS-APR"),
        ("3MS", [], "3MS"),
        ("3MS", ["2026-02-01"], "QS-FEB"),
        ("3MS", ["2026-02-01", "2026-03-01"], "3MS"),
        ("3MS", ["2026-02-01", "2026-08-01"], "QS-FEB"),
        ("12MS", ["2026-02-01", "2025-02-01"], "YS-FEB"),
        ("24MS", ["2026-02-01"], "2YS-FEB"),
        ("2MS", ["2026-02-01"], "2MS"),
        ("90s", [], "90s"),
        ("1000us", [], "ms"),
        ("SMS", [], "SMS-15"),
        ("bh", [], "bh"),
        ("C-1111100-US", [], "C-1111100-US"),
        ("10", [], "10"),
    ],
)
def test_the_canonical_name_of_a_frequency(freq: str, starts: list[str], name: str) -> None:
    assert canonical_frequency(freq, pd.DatetimeIndex(starts) if starts else None) == name


@pytest.mark.parametrize(
    ("freqs", "start"),
    [
        ([None, "QE", "QE-MAR", "QE-JUN", "3ME"], "2008-03-31"),
        ([None, "QE", "QE-MAR", "QE-JUN", "3ME"], "2008-06-30"),
        ([None, "W-SUN", "7D", "W"], "2022-01-02"),
        ([None, "QS", "QS-APR", "3MS"], "2022-04-01"),
        ([None, "h", "60min"], "2022-04-01"),
    ],
)
def test_a_panel_has_the_canonical_name_whatever_was_declared(freqs: list[str | None], start: str) -> None:
    """The same data have the same digest, and a quarter later the same frequency."""
    declared = freqs[1]
    assert declared is not None
    ds = pd.date_range(start, periods=40, freq=declared)
    panels = [to_panel(pd.DataFrame({"unique_id": "a", "ds": ds, "y": np.arange(40.0)}), freq=freq) for freq in freqs]
    assert len({panel.digest for panel in panels}) == 1
    later = to_panel(pd.DataFrame({"unique_id": "a", "ds": ds[1:], "y": np.arange(39.0)}))
    assert {panel.freq for panel in [*panels, later]} == {panels[0].series[0].freq}

"""The fast ways of reading many series have the results of slow, obvious ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from forecaster.data.frames import grid
from forecaster.data.frames.columns import parse_ids
from forecaster.data.frames.panel import to_panel
from forecaster.data.frames.rows import natural_key, order_ids
from forecaster.series import Series
from tests.forecaster.data.frames.long_frames import BERLIN, FREQUENCIES, make_timestamps

ALWAYS_FAST = {"us", "15min", "h", "36h", "D", "3D", "B", "W-SUN", "MS", "2ME", "SMS", "QS-FEB", "BQE", "YS", "BYE-MAR"}


def read_slowly(frame: pd.DataFrame, freq: str) -> list[Series]:
    """Reads one series after another: sorted, without rows that repeat, on the grid from its first to its last timestamp."""
    series = []
    for series_id in sorted(frame["unique_id"].unique(), key=natural_key):
        rows = frame[frame["unique_id"] == series_id].drop_duplicates().set_index("ds")["y"].sort_index()
        if rows.notna().any():
            steps = pd.date_range(rows.index[0], rows.index[-1], freq=freq)
            series.append(Series(series_id, rows.index[0].as_unit("us"), freq, rows.reindex(steps).to_numpy()))
    return series


@pytest.mark.parametrize("freq", ["h", "D", "W-SUN", "MS", "B"])
@pytest.mark.parametrize("shape", ["regular", "gaps", "shuffled"])
def test_a_panel_is_that_of_a_loop_over_series(freq: str, shape: str) -> None:
    rng = np.random.default_rng(11)
    ids = ["s10", "s9", "s1", "empty", "late", "ß"]
    frames = [
        pd.DataFrame({"unique_id": name, "ds": make_timestamps(f"2021-0{1 + index}-01", freq, 30 - index)})
        for index, name in enumerate(ids)
    ]
    frame = pd.concat(frames, ignore_index=True)
    frame["y"] = rng.normal(size=len(frame))
    frame.loc[rng.random(len(frame)) < 0.1, "y"] = np.nan
    frame.loc[frame["unique_id"] == "empty", "y"] = np.nan
    frame.loc[frame.groupby("unique_id").tail(2).index, "y"] = np.nan
    if shape != "regular":
        frame = frame.drop(frame.groupby("unique_id").nth([5, 6, 20]).index)
    if shape == "shuffled":
        frame = pd.concat([frame, frame.iloc[::7]]).sample(frac=1.0, random_state=3)
    panel = to_panel(frame, freq=freq)
    expected = read_slowly(frame, freq)
    assert [(item.id, item.start) for item in panel.series] == [(item.id, item.start) for item in expected]
    for item, other in zip(panel.series, expected, strict=True):
        np.testing.assert_array_equal(item.y, other.y)


@pytest.mark.parametrize("zone", [None, BERLIN])
@pytest.mark.parametrize("freq", [*FREQUENCIES, "1", "10"])
def test_a_regular_grid_is_one_without_gaps_or_rows_beside_it(
    freq: str, zone: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "_ROWS_AT_ONCE", 25)
    is_number = freq.isdecimal()
    ds = pd.Index(np.arange(3, 3 + 20 * int(freq), int(freq))) if is_number else make_timestamps("2021-01-31", freq, 20)
    if not is_number:
        ds = ds.as_unit("us").tz_localize(zone)  # type: ignore[attr-defined]
    bounds = np.array([0, 20, 30, 31, 51])
    regular = ds.append([ds[5:15], ds[:1], ds])

    def is_regular_slowly(timestamps: pd.Index) -> bool:
        positions = grid.compute_grid_positions(timestamps, freq, np.repeat(bounds[:-1], np.diff(bounds)))
        within = np.concatenate([np.arange(size) for size in np.diff(bounds)])
        return not positions.is_off_grid.any() and (positions.step == within).all()

    assert is_regular_slowly(regular)
    if freq in ALWAYS_FAST and zone is None:
        assert grid.is_regular(regular, freq, bounds)
    for row in (1, 19, 24, 50):  # a later timestamp, and one beside the grid
        for change in (1, 40) if is_number else (pd.Timedelta("1h"), pd.Timedelta("400D")):
            changed = regular.to_series().reset_index(drop=True)
            changed.iloc[row] = changed.iloc[row] + change
            if grid.is_regular(pd.Index(changed), freq, bounds):
                assert is_regular_slowly(pd.Index(changed))


@pytest.mark.parametrize("kind", ["str", "object", "category", "int64", "interleaved"])
def test_ids_are_numbered_in_order_of_appearance(kind: str) -> None:
    values = [3, 3, 1, 1, 1, 2, 3, 3, 2] if kind != "interleaved" else [3, 1, 2, 3, 1, 2, 2, 1, 3]
    column = pd.Series(values) if kind == "int64" else pd.Series([str(value) for value in values])
    column = column.astype("str" if kind == "interleaved" else kind)
    ids = parse_ids(column, column="unique_id")
    assert [ids.ids[code] for code in ids.codes] == [str(value) for value in values]
    assert list(ids.ids) == list(dict.fromkeys(str(value) for value in values))


@pytest.mark.parametrize(
    "ids", [["s2", "s1"], ["s10", "s9"], ["a1b2", "a1b1", "a0b9"], ["1a", "a1"], ["é1", "e2"], ["x"]]
)
def test_ids_with_digits_at_the_same_places_have_their_natural_order(ids: list[str]) -> None:
    assert [ids[index] for index in order_ids(ids)] == sorted(ids, key=natural_key)

"""A long frame in, a panel out; or an error that says where and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster import errors
from forecaster.data.datasets import evaluate_sine_trend, load_hospital, make_sine_trend
from forecaster.data.frames.panel import to_frame, to_panel
from forecaster.data.frames.rows import ColumnNames
from forecaster.series import Panel

DAYS = pd.date_range("2026-01-01", periods=6)  # over a weekend: D and nothing else


def frame(ds: Sequence[Any], y: Any = None, *, unique_id: Any = "a") -> pd.DataFrame:
    values = np.arange(len(ds), dtype=np.float64) if y is None else y
    return pd.DataFrame({"unique_id": unique_id, "ds": list(ds), "y": values})


def change_row(row: int, value: Any) -> list[Any]:
    y: list[Any] = [float(number) for number in range(len(DAYS))]
    y[row] = value
    return y


def assert_equal_panels(first: Panel, second: Panel) -> None:
    assert first.digest == second.digest
    assert [(each.id, each.start, each.freq) for each in first.series] == [
        (each.id, each.start, each.freq) for each in second.series
    ]


INVALID_FRAMES: dict[str, tuple[pd.DataFrame, str | None, type[errors.InputError], str, list[str]]] = {
    "no column y": (
        frame(DAYS).rename(columns={"y": "target"}),
        None,
        errors.MissingColumn,
        "y",
        ["unique_id, ds, y", "y not found among: unique_id, ds, target", "declare their names (`columns`)"],
    ),
    "other names": (
        frame(DAYS).drop(columns="unique_id").rename(columns={"ds": "date", "y": "value"}),
        None,
        errors.MissingColumn,
        "unique_id",
        ["unique_id, ds, y not found among: date, value", "unique_id may be absent if all rows are one series"],
    ),
    "two columns y": (
        pd.DataFrame([["a", "2026-01-01", 1.0, 2.0]], columns=["unique_id", "ds", "y", "y"]),
        "D",
        errors.DuplicateColumn,
        "y",
        ["one column 'y'", "rename one"],
    ),
    "no rows": (frame([]), None, errors.NoData, "y", ["at least one row", "Send a history"]),
    "no id": (
        frame(DAYS, unique_id=["a", "a", None, "a", "a", "a"]),
        None,
        errors.BadId,
        "unique_id",
        ["'unique_id' is empty in row 2", "Name the series"],
    ),
    "text in y": (
        frame(DAYS, change_row(4, "many")),
        None,
        errors.NotANumber,
        "y",
        ["row 4 holds 'many'", "Correct it, or leave it empty"],
    ),
    "a bool among numbers": (
        frame(DAYS, pd.Series(change_row(3, True), dtype=object)),
        None,
        errors.NotANumber,
        "y",
        ["row 3 holds True"],
    ),
    "bools": (frame(DAYS, [True, False] * 3), None, errors.NotANumber, "y", ["row 0 holds", "True"]),
    "complex numbers": (frame(DAYS, change_row(3, 1j)), None, errors.NotANumber, "y", ["row 0 holds 0j"]),
    "stamps in y": (frame(DAYS, DAYS), None, errors.NotANumber, "y", ["row 0 holds Timestamp"]),
    "infinity": (
        frame(DAYS, change_row(2, -np.inf)),
        None,
        errors.NotANumber,
        "y",
        ["finite", "row 2 is infinite", "leave it empty"],
    ),
    "infinity as text": (frame(DAYS, change_row(2, "inf")), None, errors.NotANumber, "y", ["row 2 is infinite"]),
    "numbers as timestamps": (
        frame(np.arange(6.0)),
        None,
        errors.BadStamp,
        "ds",
        ["numbers such as 0.0 that are not integers", "ISO 8601", "integers in every row"],
    ),
    "a timestamp that is missing": (
        frame(["2026-01-01", "yesterday"]),
        None,
        errors.BadStamp,
        "ds",
        ["row 1 holds 'yesterday'", "ISO 8601"],
    ),
    "an ambiguous date": (
        frame(["01/02/2026", "02/02/2026"]),
        None,
        errors.BadStamp,
        "ds",
        ["row 0 holds '01/02/2026'"],
    ),
    "an empty stamp": (frame(["2026-01-01", None]), None, errors.BadStamp, "ds", ["'ds' is empty in row 1"]),
    "timestamps with and without a zone": (
        frame(["2026-01-01T00:00Z", "2026-01-01T01:00"]),
        None,
        errors.BadStamp,
        "ds",
        ["row 1 has none and others have one", "in UTC"],
    ),
    "duplicates that disagree": (
        frame(["2026-01-01", "2026-01-02", "2026-01-02"], [1.0, 2.0, 5.0]),
        "D",
        errors.DuplicateStamp,
        "a",
        ["'a' has [2.0, 5.0] at 2026-01-02T00:00:00", "Keep one of them"],
    ),
    "a value and a gap at one stamp": (
        frame(["2026-01-01", "2026-01-02", "2026-01-02"], [1.0, 2.0, np.nan]),
        "D",
        errors.DuplicateStamp,
        "a",
        ["[2.0, nan] at 2026-01-02"],
    ),
    "a gap without a declared frequency": (
        frame(DAYS.delete(3)),
        None,
        errors.IrregularStamps,
        "a",
        ["'a' goes from 2026-01-03T00:00:00 to 2026-01-05T00:00:00", "declare the frequency"],
    ),
    "a stamp beside the grid": (
        frame(["2026-01-01", "2026-02-02", "2026-03-01"]),
        "MS",
        errors.IrregularStamps,
        "a",
        ["a timestamp at 2026-02-02T00:00:00, which is not on that grid"],
    ),
    "a frequency nobody knows": (frame(DAYS), "day", errors.FrequencyUnknown, "freq", ["'day' is not known", "'MS'"]),
    "a frequency that goes back": (frame(DAYS), "-1D", errors.FrequencyUnknown, "freq", ["does not step forward"]),
    "a grid without bounds": (
        frame(["0001-01-01", "9999-01-01"]),
        "MS",
        errors.IrregularStamps,
        "a",
        ["rows for only 2", "declare a coarser one"],
    ),
}


@pytest.mark.parametrize("case", INVALID_FRAMES)
def test_an_input_error_names_its_location_and_a_fix(case: str) -> None:
    given, freq, kind, where, parts = INVALID_FRAMES[case]
    before = given.copy()
    with pytest.raises(errors.InputError) as found:
        to_panel(given, freq=freq)
    assert type(found.value) is kind
    assert str(found.value.where) == where
    for part in parts:
        assert part in found.value.message
    pd.testing.assert_frame_equal(given, before)


def test_an_error_in_the_second_series_names_that_series() -> None:
    good, bad = frame(DAYS, unique_id="good"), frame(DAYS.delete(2), unique_id="bad")
    with pytest.raises(errors.IrregularStamps, match="series 'bad' goes from 2026-01-02T00:00:00") as found:
        to_panel(pd.concat([good, bad]))
    assert found.value.where == "bad"


def test_a_panel_round_trips_through_a_frame() -> None:
    y = np.array([1.0, np.nan, 3.0, 4.0, 5.0, np.nan])
    whole = pd.concat([frame(DAYS, y, unique_id="b"), frame(DAYS[2:], unique_id="a")])
    panel = to_panel(whole)
    assert [(one.id, one.start, len(one)) for one in panel.series] == [("a", DAYS[2], 4), ("b", DAYS[0], 6)]
    assert panel.freq == "D"
    assert [repair.split(" count as")[0] for repair in panel.repairs] == [
        "1 rows without `y` at the end of 1 of 2 series"
    ]
    assert panel.cutoff == DAYS[-1]
    np.testing.assert_array_equal(panel.series[1].y, y)
    assert_equal_panels(to_panel(to_frame(panel)), panel)


def test_unsorted_rows_are_sorted_with_a_warning() -> None:
    whole = pd.concat([frame(DAYS, unique_id="a"), frame(DAYS, unique_id="b")])
    shuffled = whole.sample(frac=1, random_state=3)
    panel = to_panel(shuffled)
    assert_equal_panels(panel, to_panel(whole))
    [told] = panel.repairs
    assert told.startswith("rows were not in order: sorted by series and timestamp")


def test_scattered_rows_of_a_series_are_joined() -> None:
    parts = [
        frame(DAYS[:3], unique_id="a"),
        frame(DAYS, unique_id="b"),
        frame(DAYS[3:], [3.0, 4.0, 5.0], unique_id="a"),
    ]
    panel = to_panel(pd.concat(parts))
    assert [one.id for one in panel.series] == ["a", "b"]
    assert panel.series[0].y.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert len(panel.repairs) == 1


def test_duplicate_rows_are_dropped_and_counted() -> None:
    y = change_row(2, np.nan)
    panel = to_panel(pd.concat([frame(DAYS, y), frame(DAYS[1:4], y[1:4])]))
    assert_equal_panels(panel, to_panel(frame(DAYS, y)))
    assert any("3 repeated rows were dropped" in repair for repair in panel.repairs)


def test_columns_can_be_renamed_by_options() -> None:
    names = ColumnNames(unique_id="shop", ds="day", y="sold")
    given = frame(DAYS).rename(columns={"unique_id": "shop", "ds": "day", "y": "sold"}).assign(price=3.0, y="no number")
    assert_equal_panels(to_panel(given, columns=names), to_panel(frame(DAYS)))


def test_numeric_ids_become_text_and_are_sorted_by_value() -> None:
    panel = to_panel(pd.concat([frame(DAYS, unique_id=10), frame(DAYS, unique_id=9)]))
    assert [one.id for one in panel.series] == ["9", "10"]
    assert panel.repairs == ()


@pytest.mark.parametrize(
    "y",
    [[1, 2, 3], ["1", "2.0", "3e0"], pd.array([1, 2, 3], dtype="Int64"), np.array([1, 2, 3], dtype=np.float32)],
    ids=["integers", "text", "nullable", "float32"],
)
def test_numbers_of_any_kind_become_float64(y: Any) -> None:
    [one] = to_panel(frame(DAYS[:3], y), freq="D").series
    assert one.y.dtype == np.float64
    assert one.y.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("y", [[1, None, 3], ["1", None, "3"], pd.array([1, None, 3], dtype="Int64")])
def test_missing_value_markers_are_read_as_not_observed(y: Any) -> None:
    [one] = to_panel(frame(DAYS[:3], y), freq="D").series
    np.testing.assert_array_equal(one.y, [1.0, np.nan, 3.0])


@pytest.mark.parametrize(
    ("freq", "start"),
    [("D", "2026-03-27"), ("h", "2026-03-28"), ("15min", "2026-10-25"), ("W-MON", "2026-03-16"), ("MS", "2026-01-01")],
)
def test_timestamps_with_a_zone_are_regular_across_a_clock_change(freq: str, start: str) -> None:
    stamps = pd.date_range(start, periods=40, freq=freq, tz="Europe/Berlin")
    [one] = to_panel(frame(stamps), freq=freq).series
    assert one.start == stamps[0]
    assert str(one.start.tz) == "Europe/Berlin"
    assert one.timestamps.equals(stamps)
    inferred = to_panel(frame(stamps))
    assert inferred.series[0].timestamps.equals(stamps)


def test_days_of_24_hours_are_not_calendar_days_where_the_clock_changes() -> None:
    stamps = pd.date_range("2026-03-27", periods=6, freq="24h", tz="Europe/Berlin")
    with pytest.raises(errors.IrregularStamps):
        to_panel(frame(stamps), freq="D")
    assert to_panel(frame(stamps), freq="24h").series[0].timestamps.equals(stamps)


def test_utc_timestamps_are_parsed_from_text() -> None:
    [one] = to_panel(frame(["2026-01-01T00:00Z", "2026-01-01T01:00Z", "2026-01-01T02:00Z"])).series
    assert one.start == pd.Timestamp("2026-01-01", tz="UTC")


@pytest.mark.parametrize("freq", ["2MS", "2QS", "3B"])
def test_series_with_a_multiple_of_a_calendar_step_may_differ_in_phase(freq: str) -> None:
    single = freq[1:]
    stamps = pd.date_range("2026-01-01", periods=8, freq=single)
    step = int(freq[0])
    panel = to_panel(
        pd.concat([frame(stamps[::step], unique_id="a"), frame(stamps[1::step], unique_id="b")]), freq=freq
    )
    assert [one.start for one in panel.series] == [stamps[0], stamps[1]]
    with pytest.raises(errors.IrregularStamps):
        to_panel(frame(stamps), freq=freq)


def test_the_bundled_data_sets_are_regular() -> None:
    sine = to_panel(make_sine_trend(30.0), freq="100ms")
    assert len(sine.series[0]) == 300
    t = 1.7
    expected = t * np.sin(t) / 3 + 2 * np.sin(5 * t)
    assert sine.series[0].y[17] == pytest.approx(expected)
    assert evaluate_sine_trend(np.array([t]))[0] == pytest.approx(expected)
    hospitals = to_panel(load_hospital())
    assert (len(hospitals.series), hospitals.freq, {len(one) for one in hospitals.series}) == (767, "MS", {84})


def test_the_digest_distinguishes_panels_by_all_their_content() -> None:
    panel = to_panel(frame(DAYS))
    others = [
        to_panel(frame(DAYS, change_row(5, 5.0 + 1e-12))),
        to_panel(frame(DAYS, change_row(5, np.nan))),
        to_panel(frame(DAYS, unique_id="b")),
        to_panel(frame(DAYS + pd.Timedelta(days=7))),
        to_panel(frame(DAYS[:-1]), freq="D"),
        Panel(panel.series, "24h"),
    ]
    digests = {each.digest for each in [panel, *others]}
    assert len(digests) == len(others) + 1
    assert to_panel(frame(DAYS)).digest == panel.digest


def test_the_order_of_the_rows_does_not_change_the_digest() -> None:
    ordered = pd.concat([frame(DAYS, unique_id=name) for name in ("a", "b", "c")], ignore_index=True)
    orders = [
        ordered,
        ordered.iloc[::-1],
        ordered.sample(frac=1, random_state=1),
        ordered.sort_values(["ds", "unique_id"]),
    ]
    orders.append(pd.concat([ordered[6:], ordered[:6]]))
    panels = [to_panel(each) for each in orders]
    assert len({panel.digest for panel in panels}) == 1
    assert [[series.id for series in panel.series] for panel in panels] == [["a", "b", "c"]] * len(orders)
    assert [bool(panel.repairs) for panel in panels] == [False, True, True, True, False]


def test_ids_without_blanks_and_in_one_form_are_not_reported() -> None:
    names = ["a", "A", "a-b", "ab", "\u00e9", "e"]
    assert to_panel(pd.concat([frame(DAYS, unique_id=name) for name in names])).repairs == ()


def test_numbers_in_ids_are_sorted_by_value() -> None:
    names = ["s1", "s2", "s10", "s10a", "s02", "t", "10", "9"]
    panel = to_panel(pd.concat([frame(DAYS, unique_id=name) for name in names]))
    assert [series.id for series in panel.series] == ["9", "10", "s1", "s02", "s2", "s10", "s10a", "t"]

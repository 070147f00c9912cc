"""Steps on a grid: of dates and of numbers, as far as memory and the calendar go."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.data.calendar import certain_frequency, offset, usual_horizon
from forecaster.data.frames import grid
from forecaster.data.frames.panel import to_frame, to_panel
from forecaster.data.split import hold_out
from forecaster.errors import (
    BadStamp,
    FrequencyUnknown,
    GridTooLarge,
    HistoryTooShort,
    InputError,
    IrregularStamps,
)
from forecaster.series import Panel, Series
from tests.forecaster.data.frames.long_frames import BERLIN, days, objects, series, stamps, with_covariates


@pytest.mark.parametrize("freq", ["s", "us", "bh", "C", "D", "B"])
def test_a_monstrous_grid_is_refused_fast_and_without_memory(freq: str) -> None:
    frame = series(ds=["0001-01-01", "9999-12-30T09:00"] if freq == "bh" else ["0001-01-01", "9999-12-31"])
    to_panel(series(), freq="D")  # imports are not timed
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises((GridTooLarge, IrregularStamps)):
        to_panel(frame, freq=freq)
    assert time.perf_counter() - started < 5
    assert tracemalloc.get_traced_memory()[1] < 300e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("ds", "freq", "refusal"),
    [
        ([0, 10**15], "1", GridTooLarge),
        ([-(2**62) + 1, 2**62 - 1], "1", GridTooLarge),
        ([-(2**62) + 1, 2**62 - 1], None, FrequencyUnknown),
        ([*range(40), 10**15], None, GridTooLarge),
        ([*range(40), 4000], None, IrregularStamps),
    ],
)
def test_a_monstrous_grid_of_numbers_is_refused_fast_and_without_memory(
    ds: list[int], freq: str | None, refusal: type[InputError]
) -> None:
    to_panel(series(), freq="D")  # imports are not timed
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(refusal):
        to_panel(series(ds=ds), freq=freq)
    assert time.perf_counter() - started < 1
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "column",
    [
        *(np.arange(100, 120).astype(kind) for kind in ("int8", "uint8", "int16", "uint32", "int64", "uint64")),
        pd.array(range(100, 120), dtype="Int32"),
        pd.array(range(100, 120), dtype="UInt64"),
        objects(*range(100, 120)),
        objects(*np.arange(100, 120)),
        pd.Categorical(range(100, 120)),
    ],
    ids=lambda column: str(column.dtype),
)
def test_integers_of_any_type_are_the_same_stamps(column: Any) -> None:
    panel = to_panel(series(ds=column))
    assert panel.digest() == to_panel(series(ds=np.arange(100, 120))).digest()
    assert (panel.freq, panel.series[0].start, panel.cutoff) == ("1", 100, 119)
    assert all(type(one) is int for one in (panel.series[0].start, panel.cutoff))


@pytest.mark.parametrize(
    ("column", "freq", "told"),
    [
        (objects(0, None, 2), None, "empty in row 1"),
        (pd.array([0, None, 2], dtype="Int64"), None, "empty in row 1"),
        (pd.Categorical([0, None, 2]), None, "empty in row 1"),
        (["0", None, "2"], "1", "empty in row 1"),
        (objects(None, None, None), "1", "empty in row 0"),
        (objects(0, True, 2), None, "whole numbers, throughout"),
        ([True, False, True], None, "whole numbers, throughout"),
        (objects(0, 1, 2.0), None, "whole numbers, throughout"),
        ([0.0, 1.0, np.nan], "1", "row 0 holds '0.0'"),
        (["0", "1", "2026-01-01"], "1", "row 2 holds '2026-01-01'"),
        (objects(0, True, 2), "1", "row 1 holds 'True'"),
        (["0", "1", "٢"], "1", "row 2 holds"),
        (["0", "1", "9" * 25], "1", f"row 2 holds {'9' * 25}"),
        (objects(0, 1, 10**30), None, f"row 2 holds {10**30}"),
        ([0, 1, -(2**62)], None, "row 2 holds"),
    ],
)
def test_what_is_no_column_of_whole_numbers_is_told_of_its_row(column: Any, freq: str | None, told: str) -> None:
    with pytest.raises(BadStamp, match=told):
        to_panel(series(ds=column), freq=freq)


def test_digits_as_text_and_as_integers_are_the_same_numbers() -> None:
    mixed = objects("-010", -9, "-8", "-7")
    assert to_panel(series(ds=mixed), freq=1).digest() == to_panel(series(ds=[-10, -9, -8, -7])).digest()


@pytest.mark.parametrize("numbers", [[0, 1, 1], [0, 1, 2, 3, 5]])
def test_numbers_repeated_and_out_of_order_are_as_moments_are(numbers: list[int]) -> None:
    shuffled = series(ds=numbers).sample(frac=1, random_state=1)
    dates = shuffled.assign(ds=days(1)[0] + pd.to_timedelta(shuffled["ds"].to_numpy(), unit="D"))
    with pytest.raises(InputError) as found:
        to_panel(shuffled, freq=None if len(numbers) > 3 else "1")
    with pytest.raises(type(found.value)):
        to_panel(dates, freq=None if len(numbers) > 3 else "D")


def test_places_of_numbers_are_those_of_seconds() -> None:
    draw = np.random.default_rng(0)
    numbers = np.sort(draw.choice(10_000, 500, replace=False)) * 7
    numbers[draw.random(500) < 0.05] += 1
    first = np.zeros(500, dtype=np.int64)
    found = grid.places(pd.Index(numbers), "14", first)
    same = grid.places(pd.DatetimeIndex(numbers * 1_000_000, dtype="M8[us]"), "14s", first)
    np.testing.assert_array_equal(found.off, same.off)
    np.testing.assert_array_equal(found.step, same.step)


@pytest.mark.parametrize(
    "numbers",
    [range(20260130, 20260132), [20261201, 20270101], [202601, 202612], [202612, 202701], [19000101, 20991231]],
)
def test_numbers_that_all_read_as_dates_are_not_counted_unless_that_is_said(numbers: Any) -> None:
    frame = series(ds=list(numbers))
    with pytest.raises(BadStamp, match=r"Write dates like 2026-01-31, or declare a whole number"):
        to_panel(frame)
    step = max(numbers) - min(numbers)
    assert to_panel(frame, freq=step).freq == str(step)


@pytest.mark.parametrize(
    "numbers", [[2020, 2021], [20261301, 20261302], [20260131, 20260132], [202600, 202601], [0, 1]]
)
def test_numbers_that_are_no_dates_are_counted(numbers: list[int]) -> None:
    assert to_panel(series(ds=numbers)).freq == "1"


@pytest.mark.parametrize(
    "freq",
    [
        "us",
        "15min",
        "h",
        "36h",
        "D",
        "3D",
        "B",
        "W-SUN",
        "MS",
        "2ME",
        "SMS",
        "QS-FEB",
        "BQE",
        "YS",
        "BYE-MAR",
        "WOM-2MON",
        "bh",
    ],
)
@pytest.mark.parametrize("zone", [None, "UTC", BERLIN])
def test_places_agree_with_the_stamps_that_pandas_counts(freq: str, zone: str | None) -> None:
    ladder = pd.date_range("2019-02-25 10:00", periods=80, freq=freq, tz=zone)
    kept = np.flatnonzero(np.random.default_rng(0).random(80) < 0.5)
    found = grid.places(ladder[kept], freq, np.zeros(len(kept), dtype=np.int64))
    assert not found.off.any()
    np.testing.assert_array_equal(found.step, kept - kept[0])


def test_a_panel_goes_to_a_frame_and_back() -> None:
    y = np.append(np.arange(10.0), [np.nan] * 3)
    rain = np.append([np.nan], np.append(np.arange(9.0), [np.nan] * 3))
    frame = series(
        stamps("2026-03-25", "D", 13, BERLIN), y, heat=np.arange(13.0), sky=["sun"] * 13, region="n", rain=rain
    )
    options: dict[str, Any] = {"covariates": ("heat", "sky"), "static": ("region",), "channels": ("rain",)}
    panel = to_panel(frame, **options)
    again = to_panel(to_frame(panel), **options)
    assert panel.digest() == again.digest()
    pd.testing.assert_frame_equal(to_frame(panel), frame, check_dtype=False, check_freq=False)


def test_covariates_stay_known_when_the_history_is_cut() -> None:
    frame = with_covariates(np.arange(13.0), np.append(np.arange(10.0), [np.nan] * 3))
    split = hold_out(to_panel(frame, covariates=("heat",)), 4)
    assert (len(split.known.series[0]), split.known.series[0].ahead) == (6, 7)


def test_the_digest_tells_covariates_and_static_apart_and_is_what_it_was_without() -> None:
    plain = Series("a", pd.Timestamp("2026-01-01"), "D", np.arange(3.0))
    assert Panel([plain], "D").digest() == "7dae75b2ddb7b39e74047a4326ab1246c5eddfe5fd65401c0dd4d7aed6981196"
    others = [{"covariates": {"x": np.arange(3.0)}}, {"covariates": {"z": np.arange(3.0)}}, {"static": {"x": "1"}}]
    digests = {Panel([Series("a", plain.start, "D", plain.y, **more)], "D").digest() for more in others}  # type: ignore[arg-type]
    assert len(digests | {Panel([plain], "D").digest()}) == 4


def test_a_series_too_short_to_hold_out_from_is_named_and_too_short_a_panel_refused() -> None:
    panel = to_panel(pd.concat([series(), series(y=[1.0, 2.0], of="short")]))
    assert hold_out(panel, 5).left_out == ("short",)
    with pytest.raises(HistoryTooShort, match="'a', has 20"):
        hold_out(panel, 50)


def test_stamps_ahead_that_leave_the_calendar_are_a_bad_stamp() -> None:
    with pytest.raises(BadStamp, match="9999"):
        Series("a", pd.Timestamp("9999-12-30"), "D", np.arange(2.0)).stamps_ahead(1)
    with pytest.raises(BadStamp, match=f"up to {2**62 - 1}; 3 steps of '1'"):
        Series("a", 2**62 - 3, "1", np.arange(2.0)).stamps_ahead(2)
    assert list(Series("a", 2**62 - 3, "1", np.arange(2.0)).stamps_ahead(1)) == [2**62 - 1]


def test_twenty_four_hours_are_not_a_day_where_clocks_change() -> None:
    around = stamps("2026-03-27", "24h", 20, BERLIN)
    assert certain_frequency(around) == "24h"
    assert certain_frequency(stamps("2026-03-27", "D", 20, BERLIN)) == "D"


@pytest.mark.parametrize(
    ("freq", "horizon"),
    [("h", 24), ("30min", 48), ("D", 14), ("B", 10), ("W-MON", 13), ("7D", 13), ("MS", 18), ("QS", 8), ("YS", 6)],
)
def test_the_usual_horizon(freq: str, horizon: int) -> None:
    assert usual_horizon(freq) == horizon


@pytest.mark.parametrize(
    ("freq", "start", "refusal"),
    [
        ("999999999999999h", "2026-01-01", IrregularStamps),
        ("9999999999D", "2026-01-01", IrregularStamps),
        ("999999999MS", "2026-01-01", IrregularStamps),
        ("bh", "0001-01-01", BadStamp),
    ],
)
def test_monstrous_steps_and_stamps_at_the_end_of_the_calendar_are_refused(
    freq: str, start: str, refusal: type[InputError]
) -> None:
    with pytest.raises(refusal):
        to_panel(series(ds=[start, f"{start[:4]}-02-01"]), freq=freq)


def test_an_offset_that_pandas_warns_of_is_refused_every_time() -> None:
    for _ in range(2):
        with pytest.raises(FrequencyUnknown):
            offset("d")

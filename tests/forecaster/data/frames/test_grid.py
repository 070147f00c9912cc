"""Steps on a grid: of dates and of numbers, as far as memory and the calendar go."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.data.calendar import default_horizon, infer_frequency, parse_frequency
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
from tests.forecaster.data.frames.long_frames import (
    BERLIN,
    covariates_frame,
    make_days,
    make_timestamps,
    object_series,
    series_frame,
)


@pytest.mark.parametrize("freq", ["s", "us", "bh", "C", "D", "B"])
def test_a_huge_date_grid_is_rejected_without_allocation(freq: str) -> None:
    frame = series_frame(ds=["0001-01-01", "9999-12-30T09:00"] if freq == "bh" else ["0001-01-01", "9999-12-31"])
    to_panel(series_frame(), freq="D")  # imports are not timed
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
def test_a_huge_integer_grid_is_rejected_without_allocation(
    ds: list[int], freq: str | None, refusal: type[InputError]
) -> None:
    to_panel(series_frame(), freq="D")  # imports are not timed
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(refusal):
        to_panel(series_frame(ds=ds), freq=freq)
    assert time.perf_counter() - started < 1
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "column",
    [
        *(np.arange(100, 120).astype(kind) for kind in ("int8", "uint8", "int16", "uint32", "int64", "uint64")),
        pd.array(range(100, 120), dtype="Int32"),
        pd.array(range(100, 120), dtype="UInt64"),
        object_series(*range(100, 120)),
        object_series(*np.arange(100, 120)),
        pd.Categorical(range(100, 120)),
    ],
    ids=lambda column: str(column.dtype),
)
def test_integers_of_any_dtype_give_the_same_timestamps(column: Any) -> None:
    panel = to_panel(series_frame(ds=column))
    assert panel.digest == to_panel(series_frame(ds=np.arange(100, 120))).digest
    assert (panel.freq, panel.series[0].start, panel.cutoff) == ("1", 100, 119)
    assert all(type(one) is int for one in (panel.series[0].start, panel.cutoff))


@pytest.mark.parametrize(
    ("column", "freq", "message"),
    [
        (object_series(0, None, 2), None, "empty in row 1"),
        (pd.array([0, None, 2], dtype="Int64"), None, "empty in row 1"),
        (pd.Categorical([0, None, 2]), None, "empty in row 1"),
        (["0", None, "2"], "1", "empty in row 1"),
        (object_series(None, None, None), "1", "empty in row 0"),
        (object_series(0, True, 2), None, "whole numbers, throughout"),
        ([True, False, True], None, "whole numbers, throughout"),
        (object_series(0, 1, 2.0), None, "whole numbers, throughout"),
        ([0.0, 1.0, np.nan], "1", "row 0 holds '0.0'"),
        (["0", "1", "2026-01-01"], "1", "row 2 holds '2026-01-01'"),
        (object_series(0, True, 2), "1", "row 1 holds 'True'"),
        (["0", "1", "٢"], "1", "row 2 holds"),
        (["0", "1", "9" * 25], "1", f"row 2 holds {'9' * 25}"),
        (object_series(0, 1, 10**30), None, f"row 2 holds {10**30}"),
        ([0, 1, -(2**62)], None, "row 2 holds"),
    ],
)
def test_a_non_integer_column_is_reported_with_its_row(column: Any, freq: str | None, message: str) -> None:
    with pytest.raises(BadStamp, match=message):
        to_panel(series_frame(ds=column), freq=freq)


def test_integers_as_text_and_as_numbers_are_equal() -> None:
    mixed = object_series("-010", -9, "-8", "-7")
    assert to_panel(series_frame(ds=mixed), freq=1).digest == to_panel(series_frame(ds=[-10, -9, -8, -7])).digest


@pytest.mark.parametrize("numbers", [[0, 1, 1], [0, 1, 2, 3, 5]])
def test_duplicate_and_unsorted_integers_are_treated_like_dates(numbers: list[int]) -> None:
    shuffled = series_frame(ds=numbers).sample(frac=1, random_state=1)
    dates = shuffled.assign(ds=make_days(1)[0] + pd.to_timedelta(shuffled["ds"].to_numpy(), unit="D"))
    with pytest.raises(InputError) as found:
        to_panel(shuffled, freq=None if len(numbers) > 3 else "1")
    with pytest.raises(type(found.value)):
        to_panel(dates, freq=None if len(numbers) > 3 else "D")


def test_positions_of_integers_equal_those_of_seconds() -> None:
    draw = np.random.default_rng(0)
    numbers = np.sort(draw.choice(10_000, 500, replace=False)) * 7
    numbers[draw.random(500) < 0.05] += 1
    first = np.zeros(500, dtype=np.int64)
    found = grid.compute_grid_positions(pd.Index(numbers), "14", first)
    same = grid.compute_grid_positions(pd.DatetimeIndex(numbers * 1_000_000, dtype="M8[us]"), "14s", first)
    np.testing.assert_array_equal(found.is_off_grid, same.is_off_grid)
    np.testing.assert_array_equal(found.step, same.step)


@pytest.mark.parametrize(
    "numbers",
    [range(20260130, 20260132), [20261201, 20270101], [202601, 202612], [202612, 202701], [19000101, 20991231]],
)
def test_integers_that_look_like_dates_require_an_explicit_frequency(numbers: Any) -> None:
    frame = series_frame(ds=list(numbers))
    with pytest.raises(BadStamp, match=r"Write dates like 2026-01-31, or declare a whole number"):
        to_panel(frame)
    step = max(numbers) - min(numbers)
    assert to_panel(frame, freq=step).freq == str(step)


@pytest.mark.parametrize(
    "numbers", [[2020, 2021], [20261301, 20261302], [20260131, 20260132], [202600, 202601], [0, 1]]
)
def test_integers_that_are_not_dates_are_integer_steps(numbers: list[int]) -> None:
    assert to_panel(series_frame(ds=numbers)).freq == "1"


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
def test_positions_equal_those_of_a_pandas_date_range(freq: str, zone: str | None) -> None:
    ladder = pd.date_range("2019-02-25 10:00", periods=80, freq=freq, tz=zone)
    kept = np.flatnonzero(np.random.default_rng(0).random(80) < 0.5)
    found = grid.compute_grid_positions(ladder[kept], freq, np.zeros(len(kept), dtype=np.int64))
    assert not found.is_off_grid.any()
    np.testing.assert_array_equal(found.step, kept - kept[0])


def test_a_panel_round_trips_through_a_frame() -> None:
    y = np.append(np.arange(10.0), [np.nan] * 3)
    rain = np.append([np.nan], np.append(np.arange(9.0), [np.nan] * 3))
    frame = series_frame(
        make_timestamps("2026-03-25", "D", 13, BERLIN), y, heat=np.arange(13.0), sky=["sun"] * 13, region="n", rain=rain
    )
    options: dict[str, Any] = {"covariates": ("heat", "sky"), "static": ("region",), "channels": ("rain",)}
    panel = to_panel(frame, **options)
    again = to_panel(to_frame(panel), **options)
    assert panel.digest == again.digest
    pd.testing.assert_frame_equal(to_frame(panel), frame, check_dtype=False, check_freq=False)


def test_covariates_remain_known_when_the_history_is_cut() -> None:
    frame = covariates_frame(np.arange(13.0), np.append(np.arange(10.0), [np.nan] * 3))
    split = hold_out(to_panel(frame, covariates=("heat",)), 4)
    assert (len(split.history.series[0]), split.history.series[0].covariate_horizon) == (6, 7)


def test_the_digest_depends_on_covariates_and_static_features_and_is_stable_without_them() -> None:
    plain = Series("a", pd.Timestamp("2026-01-01"), "D", np.arange(3.0))
    assert Panel([plain], "D").digest == "7dae75b2ddb7b39e74047a4326ab1246c5eddfe5fd65401c0dd4d7aed6981196"
    others = [{"covariates": {"x": np.arange(3.0)}}, {"covariates": {"z": np.arange(3.0)}}, {"static": {"x": "1"}}]
    digests = {Panel([Series("a", plain.start, "D", plain.y, **more)], "D").digest for more in others}  # type: ignore[arg-type]
    assert len(digests | {Panel([plain], "D").digest}) == 4


def test_series_too_short_to_hold_out_are_named_and_a_too_short_panel_is_rejected() -> None:
    panel = to_panel(pd.concat([series_frame(), series_frame(y=[1.0, 2.0], unique_id="short")]))
    assert hold_out(panel, 5).excluded_ids == ("short",)
    with pytest.raises(HistoryTooShort, match="'a', has 20"):
        hold_out(panel, 50)


def test_future_timestamps_beyond_the_calendar_are_an_invalid_timestamp() -> None:
    with pytest.raises(BadStamp, match="9999"):
        Series("a", pd.Timestamp("9999-12-30"), "D", np.arange(2.0)).future_timestamps(1)
    with pytest.raises(BadStamp, match=f"up to {2**62 - 1}; 3 steps of '1'"):
        Series("a", 2**62 - 3, "1", np.arange(2.0)).future_timestamps(2)
    assert list(Series("a", 2**62 - 3, "1", np.arange(2.0)).future_timestamps(1)) == [2**62 - 1]


def test_twenty_four_hours_are_not_a_day_where_clocks_change() -> None:
    around = make_timestamps("2026-03-27", "24h", 20, BERLIN)
    assert infer_frequency(around) == "24h"
    assert infer_frequency(make_timestamps("2026-03-27", "D", 20, BERLIN)) == "D"


@pytest.mark.parametrize(
    ("freq", "horizon"),
    [("h", 24), ("30min", 48), ("D", 14), ("B", 10), ("W-MON", 13), ("7D", 13), ("MS", 18), ("QS", 8), ("YS", 6)],
)
def test_the_default_horizon(freq: str, horizon: int) -> None:
    assert default_horizon(freq) == horizon


@pytest.mark.parametrize(
    ("freq", "start", "refusal"),
    [
        ("999999999999999h", "2026-01-01", IrregularStamps),
        ("9999999999D", "2026-01-01", IrregularStamps),
        ("999999999MS", "2026-01-01", IrregularStamps),
        ("bh", "0001-01-01", BadStamp),
    ],
)
def test_huge_steps_and_timestamps_at_the_calendar_limits_are_rejected(
    freq: str, start: str, refusal: type[InputError]
) -> None:
    with pytest.raises(refusal):
        to_panel(series_frame(ds=[start, f"{start[:4]}-02-01"]), freq=freq)


def test_an_offset_deprecated_by_pandas_is_rejected_every_time() -> None:
    for _ in range(2):
        with pytest.raises(FrequencyUnknown):
            parse_frequency("d")

"""Tests of inferred frequencies and default seasons."""

from __future__ import annotations

import pandas as pd
import pytest

from forecaster.data.calendar import default_season, infer_frequency, parse_frequency, step_seconds
from forecaster.errors import FrequencyUnknown


@pytest.mark.parametrize(
    ("freq", "start", "periods", "expected"),
    [
        ("15min", "2026-01-01", 3, "15min"),
        ("100ms", "2026-01-01", 3, "100ms"),
        ("h", "2026-01-01", 2, "h"),
        ("D", "2026-01-01", 6, "D"),
        ("W-WED", "2026-01-07", 3, "7D"),
        ("B", "2026-01-05", 6, "B"),
        ("MS", "2026-01-01", 3, "MS"),
        ("MS", "2026-07-01", 4, "MS"),
        ("ME", "2026-01-31", 3, "ME"),
        ("QS-JAN", "2026-01-01", 3, "QS-JAN"),
        ("QS-FEB", "2026-02-01", 4, "QS-FEB"),
        ("QE-MAR", "2026-03-31", 4, "QE-DEC"),
        ("YS-JAN", "2023-01-01", 4, "YS-JAN"),
        ("YE-DEC", "2023-12-31", 4, "YE-DEC"),
        ("YS-JUL", "2023-07-01", 4, "YS-JUL"),
        ("BME", "2026-01-30", 12, "BME"),
        ("BMS", "2026-01-01", 12, "BMS"),
        ("BQE", "2024-03-29", 8, "BQE-DEC"),
        ("BQS", "2023-01-02", 8, "BQS-JAN"),
        ("BYE", "2000-12-29", 8, "BYE-DEC"),
        ("2MS", "2026-01-01", 4, "2MS"),
        ("6MS", "2020-01-01", 4, "6MS"),
        ("2YS", "2020-01-01", 4, "2YS-JAN"),
        ("SMS", "2026-01-01", 4, "SMS-15"),
        ("SME", "2026-01-15", 6, "SME-15"),
        ("WOM-3FRI", "2026-01-16", 12, "WOM-3FRI"),
        ("LWOM-FRI", "2026-01-30", 12, "LWOM-FRI"),
        ("bh", "2026-01-05 09:00", 60, "bh"),
    ],
)
def test_a_frequency_is_inferred_when_it_is_unambiguous(freq: str, start: str, periods: int, expected: str) -> None:
    timestamps = pd.date_range(start, periods=periods, freq=freq)
    assert infer_frequency(timestamps) == expected
    assert pd.date_range(start, periods=periods, freq=expected).equals(timestamps)


@pytest.mark.parametrize(
    ("timestamps", "message"),
    [
        (["2026-07-01", "2026-08-01", "2026-09-01"], "31D and MS all fit"),
        (["2026-01-05", "2026-01-06", "2026-01-07", "2026-01-08", "2026-01-09"], "D and B all fit"),
        (["2026-01-01", "2026-01-02"], "D and B all fit"),
        (["2026-01-01", "2026-02-01"], "31D and MS all fit"),
        (["2025-01-01", "2026-01-01"], "365D and YS-JAN all fit"),
        (["2021-01-01", "2022-01-01", "2023-01-01"], "365D and YS-JAN all fit"),
        (["2026-01-01", "2026-03-01"], "59D and 2MS all fit"),
        (["2026-01-01"], "no regular frequency fits"),
    ],
)
def test_an_ambiguous_frequency_is_not_guessed(timestamps: list[str], message: str) -> None:
    with pytest.raises(FrequencyUnknown, match=message) as error:
        infer_frequency(pd.DatetimeIndex(timestamps), where="a")
    assert error.value.where == "a"
    assert f"from {len(timestamps)} timestamps" in error.value.message
    assert "Declare it" in error.value.message


@pytest.mark.parametrize(
    ("start", "months", "freq"), [("2026-01-15", 1, "MS"), ("2026-02-10", 3, "QS-FEB"), ("2026-03-20", 12, "YS-MAR")]
)
def test_the_advice_for_one_day_of_each_month_works_when_followed(start: str, months: int, freq: str) -> None:
    timestamps = pd.date_range(start, periods=20, freq=pd.DateOffset(months=months))
    first_of_month = pd.DatetimeIndex([timestamp.replace(day=1) for timestamp in timestamps])
    with pytest.raises(FrequencyUnknown, match=f"first of the month .{first_of_month[0].date()}., .*`freq`='{freq}'"):
        infer_frequency(timestamps)
    assert infer_frequency(first_of_month) == freq


@pytest.mark.parametrize(
    ("season", "freqs"),
    [
        (1, ["s", "100ms", "YS", "YE-JUN", "30D", "2D", "5h", "5MS", "2B", "3W", "SMS"]),
        (2, ["2QS", "12h", "6MS"]),
        (4, ["QS", "QE-MAR", "BQS", "3MS"]),
        (5, ["B"]),
        (6, ["4h"]),
        (7, ["D"]),
        (12, ["MS", "ME", "BMS", "2h"]),
        (13, ["4W-WED", "28D"]),
        (24, ["h", "60min"]),
        (48, ["30min"]),
        (52, ["W", "W-WED", "7D"]),
        (96, ["15min"]),
        (1440, ["min"]),
    ],
)
def test_the_default_season_of_a_frequency(season: int, freqs: list[str]) -> None:
    assert {freq: default_season(freq) for freq in freqs} == dict.fromkeys(freqs, season)


@pytest.mark.parametrize("freq", ["", "day", "H", "0D", "-1h", "3 potatoes"])
def test_a_step_that_is_not_forward_is_not_a_frequency(freq: str) -> None:
    with pytest.raises(FrequencyUnknown, match="expected") as error:
        parse_frequency(freq, where="a")
    assert error.value.where == "a"


@pytest.mark.parametrize(
    ("freq", "seconds"), [("15min", 900), ("D", 86400), ("2D", 172800), ("100ms", 0.1), ("MS", None), ("W-MON", None)]
)
def test_only_fixed_length_steps_have_seconds(freq: str, seconds: float | None) -> None:
    assert step_seconds(parse_frequency(freq)) == seconds

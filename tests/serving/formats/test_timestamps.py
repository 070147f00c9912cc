"""A single timestamp is parsed as a list of them is, and formatted in the style of the request, in any time zone."""

from __future__ import annotations

import pandas as pd
import pytest

from forecaster.errors import BadStamp, FrequencyUnknown, IrregularStamps
from forecaster.frequency.names import are_same_grid
from forecaster.frequency.timestamps import timestamp_at
from serving.formats import timestamps
from serving.formats.schema import GridSeries, TimestampedSeries
from serving.formats.series import parse_series
from tests.serving.conftest import StubModel

VALID_TIMESTAMPS = [
    "2026-01-01",
    "2026-01-01 10:00",
    "2026-01-01T10:00:30.25",
    "2026-01-01T00:00:00Z",
    "2026-07-01T00:00:00+02:00",
    "2026-01-01T00:00:00-11:30",
    "0001-01-01",
    "0001-01-02T00:00:00+02:00",
    "0001-01-01T00:00:00+02:00",
    "9999-12-31T23:59:59.123456Z",
    "9999-12-31T23:59:59-11:00",
    -7,
    0,
    2**40,
]
INVALID_TIMESTAMPS = ["", "yesterday", "2026-13-01", "2026-1-1", "2026-01-01T25:00", 2**62]


@pytest.mark.parametrize("text", VALID_TIMESTAMPS)
def test_parsing_one_timestamp_equals_parsing_many(text: str | int) -> None:
    timestamp, style = timestamps.parse_single_timestamp(text, where="a")
    parsed = timestamps.parse_timestamps([text], where="a")
    assert (timestamp, style if not isinstance(text, int) else None) == (
        timestamp_at(parsed.timestamps, 0),
        parsed.style if not isinstance(text, int) else None,
    )
    if isinstance(timestamp, pd.Timestamp):
        parsed_timestamp = timestamp_at(parsed.timestamps, 0)
        assert isinstance(parsed_timestamp, pd.Timestamp)
        assert (timestamp.tz, timestamp.unit) == (parsed_timestamp.tz, parsed_timestamp.unit)


@pytest.mark.parametrize("text", INVALID_TIMESTAMPS)
def test_a_timestamp_rejected_among_many_is_rejected_alone_with_the_same_message(text: str | int) -> None:
    messages = []
    for parse in (
        lambda: timestamps.parse_single_timestamp(text, where="a"),
        lambda: timestamps.parse_timestamps([text], where="a"),
    ):
        with pytest.raises(BadStamp) as error:
            parse()
        messages.append(error.value.message)
    assert messages[0] == messages[1]


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin", "Etc/GMT+5"])
def test_timestamps_are_formatted_in_local_time(zone: str | None) -> None:
    style = timestamps.parse_single_timestamp("2026-07-01T00:00:00Z" if zone else "2026-07-01T00:00:00", where="a")[1]
    index = pd.date_range("2026-07-01 10:00", periods=3, freq="h", tz=zone)
    texts = style.format(index)
    suffix = "Z" if zone else ""
    assert texts == [f"2026-07-01T{hour}:00:00{suffix}" for hour in (10, 11, 12)]


@pytest.mark.parametrize(
    ("freq", "model_freq", "start"),
    [
        ("QS-OCT", "QS-JAN", "2026-04-01"),
        ("3MS", "QS-JAN", "2026-04-01"),
        ("W-SUN", "7D", "2026-01-04"),
        ("24h", "D", "2026-01-01T00:00:00Z"),
        ("C-MonTueWedThuFriSat", "C-1111110", "2026-01-05"),
        ("C-1111100", "B", "2026-01-05"),
    ],
)
def test_another_name_of_the_models_frequency_is_accepted_and_its_start_is_checked(
    freq: str, model_freq: str, start: str
) -> None:
    history = GridSeries(id="a", start=start, freq=freq, y=[1.0, 2.0, 3.0])
    parsed = parse_series(history, model=StubModel(model_freq), horizon=2, start_cache={})
    assert are_same_grid(parsed.series.freq, model_freq, [parsed.series.start])
    texts = parsed.style.format(parsed.series.timestamps)
    timestamped = TimestampedSeries(id="a", ds=texts, freq=freq, y=[1.0, 2.0, 3.0])
    again = parse_series(timestamped, model=StubModel(model_freq), horizon=2, start_cache={})
    assert again.series.timestamps.equals(parsed.series.timestamps)


def test_a_start_off_the_declared_grid_is_rejected_under_another_name_too() -> None:
    history = GridSeries(id="a", start="2026-01-05", freq="W-SUN", y=[1.0])
    with pytest.raises(IrregularStamps, match="start on the grid of the frequency 'W-SUN'"):
        parse_series(history, model=StubModel("7D"), horizon=2, start_cache={})
    with pytest.raises(FrequencyUnknown, match="C-1111110"):
        timestamps.parse_step("C-111", where="a")

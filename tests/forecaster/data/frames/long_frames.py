"""Long frames to try a reader on, and what may be asked of the panel that came of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.errors import InputError
from forecaster.frequency.timestamps import parse_frequency
from forecaster.series import Panel

ROOT = Path(__file__).parents[4]
SHARED = ROOT.parent / "shared" / "data"
BERLIN, SAO_PAULO = "Europe/Berlin", "America/Sao_Paulo"
FREQUENCIES = "us 15min h 36h D 3D B W-SUN MS 2ME SMS QS-FEB BQE YS BYE-MAR WOM-2MON bh".split()  # noqa: SIM905
PanelCheck = Callable[[Panel], object]


def series_frame(ds: Any = None, y: Any = None, *, unique_id: Any = "a", **columns: Any) -> pd.DataFrame:
    """A long frame of one series: days from 2026-01-01, values 0, 1, 2... unless told otherwise."""
    steps = len(ds) if ds is not None else len(y) if y is not None else 20
    stamps = make_days(steps) if ds is None else ds
    return pd.DataFrame(
        {"unique_id": unique_id, "ds": stamps, "y": np.arange(float(steps)) if y is None else y, **columns}
    )


def make_days(steps: int, **options: Any) -> pd.DatetimeIndex:
    return pd.date_range("2026-01-01", periods=steps, freq="D", **options)


def make_timestamps(start: str, freq: str, steps: int = 20, tz: str | None = None) -> pd.DatetimeIndex:
    return pd.date_range(start, periods=steps, freq=parse_frequency(freq), tz=tz)


def drop_rows(frame: pd.DataFrame, *rows: int) -> pd.DataFrame:
    return frame.drop(index=list(rows))


def object_series(*values: Any) -> pd.Series:
    return pd.Series(list(values), dtype=object)


class FrameCase(NamedTuple):
    """A row of the table."""

    frame: Callable[[], pd.DataFrame]
    error: type[InputError] | None = None
    message: str = ""  # in the refusal, or in the repairs
    options: dict[str, Any] = {}  # noqa: RUF012
    check: PanelCheck = lambda panel: True


def has_values(*expected: float | None) -> PanelCheck:
    wanted = [np.nan if value is None else value for value in expected]
    return lambda panel: np.array_equal(panel.series[0].y, wanted, equal_nan=True)


def has_ids(*expected: str) -> PanelCheck:
    return lambda panel: [one.id for one in panel.series] == list(expected)


def has_freq(expected: str) -> PanelCheck:
    return lambda panel: panel.freq == expected


def continues_with(*expected: str) -> PanelCheck:
    """The stamps that follow, in the zone of the data."""
    return lambda panel: [str(one) for one in panel.series[0].future_timestamps(len(expected))] == list(expected)


def is_regular(panel: Panel) -> bool:
    return all(one.timestamps[-1] == one.end and len(one.timestamps) == len(one.y) for one in panel.series)


def hours_with_gap(tz: str | None = None) -> pd.DataFrame:
    return drop_rows(series_frame(make_timestamps("2026-01-01", "h", 40, tz)), 20)


def covariates_frame(heat: Any, y: Any) -> pd.DataFrame:
    return series_frame(y=y, heat=heat)


def channel_frame(rain: Any, y: Any, **columns: Any) -> pd.DataFrame:
    return series_frame(y=y, rain=rain, **columns)


def has_channel(*expected: float | None) -> PanelCheck:
    wanted = [np.nan if value is None else value for value in expected]
    return lambda panel: (
        np.array_equal(panel.series[0].channels["rain"], wanted, equal_nan=True)
        and len(panel.series[0].y) == len(wanted)
    )


CLOCK_CHANGE_TIMES = [
    "2026-10-25T00:30",
    "2026-10-25T01:30",
    "2026-10-25T02:30",
    "2026-10-25T02:30",
    "2026-10-25T03:30",
]
WEEKDAYS_WITH_GAPS = drop_rows(series_frame(make_timestamps("2026-01-01", "B", 60)), 17, 40)

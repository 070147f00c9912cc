"""Long frames to try a reader on, and what may be asked of the panel that came of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.errors import (
    InputError,
)
from forecaster.series import Panel

ROOT = Path(__file__).parents[4]
SHARED = ROOT.parent / "shared" / "data"
BERLIN, SAO_PAULO = "Europe/Berlin", "America/Sao_Paulo"
LADDERS = "us 15min h 36h D 3D B W-SUN MS 2ME SMS QS-FEB BQE YS BYE-MAR WOM-2MON bh".split()  # noqa: SIM905
Check = Callable[[Panel], object]


def series(ds: Any = None, y: Any = None, *, of: Any = "a", **more: Any) -> pd.DataFrame:
    """A long frame of one series: days from 2026-01-01, values 0, 1, 2... unless told otherwise."""
    steps = len(ds) if ds is not None else len(y) if y is not None else 20
    stamps = days(steps) if ds is None else ds
    return pd.DataFrame({"unique_id": of, "ds": stamps, "y": np.arange(float(steps)) if y is None else y, **more})


def days(steps: int, **where: Any) -> pd.DatetimeIndex:
    return pd.date_range("2026-01-01", periods=steps, freq="D", **where)


def stamps(start: str, freq: str, steps: int = 20, tz: str | None = None) -> pd.DatetimeIndex:
    return pd.date_range(start, periods=steps, freq=freq, tz=tz)


def without(frame: pd.DataFrame, *rows: int) -> pd.DataFrame:
    return frame.drop(index=list(rows))


def objects(*values: Any) -> pd.Series:
    return pd.Series(list(values), dtype=object)


class Case(NamedTuple):
    """A row of the table."""

    frame: Callable[[], pd.DataFrame]
    refused: type[InputError] | None = None
    says: str = ""  # in the refusal, or in the repairs
    options: dict[str, Any] = {}  # noqa: RUF012
    holds: Check = lambda panel: True


def values(*expected: float | None) -> Check:
    wanted = [np.nan if value is None else value for value in expected]
    return lambda panel: np.array_equal(panel.series[0].y, wanted, equal_nan=True)


def ids(*expected: str) -> Check:
    return lambda panel: [one.id for one in panel.series] == list(expected)


def freq(expected: str) -> Check:
    return lambda panel: panel.freq == expected


def goes_on(*expected: str) -> Check:
    """The stamps that follow, in the zone of the data."""
    return lambda panel: [str(one) for one in panel.series[0].stamps_ahead(len(expected))] == list(expected)


def regular(panel: Panel) -> bool:
    return all(one.stamps[-1] == one.end and len(one.stamps) == len(one.y) for one in panel.series)


def hours_without_one(tz: str | None = None) -> pd.DataFrame:
    return without(series(stamps("2026-01-01", "h", 40, tz)), 20)


def with_covariates(known: Any, y: Any) -> pd.DataFrame:
    return series(y=y, heat=known)


def with_channel(rain: Any, y: Any, **more: Any) -> pd.DataFrame:
    return series(y=y, rain=rain, **more)


def channel(*expected: float | None) -> Check:
    wanted = [np.nan if value is None else value for value in expected]
    return lambda panel: (
        np.array_equal(panel.series[0].channels["rain"], wanted, equal_nan=True)
        and len(panel.series[0].y) == len(wanted)
    )


AUTUMN = ["2026-10-25T00:30", "2026-10-25T01:30", "2026-10-25T02:30", "2026-10-25T02:30", "2026-10-25T03:30"]
WEEKDAYS_OFF = without(series(stamps("2026-01-01", "B", 60)), 17, 40)

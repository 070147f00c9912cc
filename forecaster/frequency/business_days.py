"""Custom business days: weeks of any working days, with holidays, as a frequency that has a text form.

The text is `C-` and the working days, Monday first: `C-1111110` is Monday to Saturday. Holidays follow: a country or a part
of it, dates, or both, as in `C-1111100-US`, `C-1111100-DE-BY` and `C-1111110-20261224-20261231`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd

from forecaster.errors import FrequencyUnknown, MissingPackage

MAX_HOLIDAYS = 200  # dates in the text of a frequency; more of them belong to a country
_HOLIDAY_YEARS = range(1970, 2101)  # for which holidays of countries are computed
_DAY_NAMES = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_PATTERN = re.compile(
    r"(?P<count>\d{0,6})C-(?P<days>[01]{7}|(?:(?i:mon|tue|wed|thu|fri|sat|sun)){1,7})"
    r"(?:-(?P<location>[A-Z]{2}(?:-[A-Z0-9]{1,3})?))?(?P<dates>(?:-\d{8})*)",
    re.ASCII,
)


@dataclass(frozen=True)
class CustomBusinessDays:
    """The parsed text of a custom business day frequency.

    Attributes:
        count: Working days per step.
        weekmask: Seven digits, Monday first; 1 for a working day.
        location: The country whose public holidays are no working days, or a subdivision of it; empty for none.
        dates: Further holidays as YYYYMMDD, sorted.
    """

    count: int
    weekmask: str
    location: str = ""
    dates: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The canonical text of the frequency."""
        count = "" if self.count == 1 else str(self.count)
        return "-".join([f"{count}C", self.weekmask, *([self.location] if self.location else []), *self.dates])

    def to_offset(self) -> pd.offsets.CustomBusinessDay:
        """Returns the pandas offset. Raises FrequencyUnknown for an unknown location, MissingPackage without `holidays`."""
        holidays = np.array([f"{date[:4]}-{date[4:6]}-{date[6:]}" for date in self.dates], dtype="datetime64[D]")
        if self.location:
            holidays = np.concatenate([holidays, _load_public_holidays(self.location)])
        return pd.offsets.CustomBusinessDay(
            self.count, weekmask=self.weekmask, holidays=np.unique(holidays).tolist() or None
        )


@lru_cache(maxsize=256)
def parse_custom_business_days(freq: str) -> CustomBusinessDays | None:
    """Parses the text of a custom business day frequency; returns None for other text.

    Raises FrequencyUnknown if the text has no working day, too many holidays or a date that does not exist.
    """
    match = _PATTERN.fullmatch(freq)
    if match is None:
        return None
    days, dates = match["days"], tuple(sorted(set(re.findall(r"\d{8}", match["dates"]))))
    if not days.isdecimal():
        working_days = {days[index : index + 3].capitalize() for index in range(0, len(days), 3)}
        days = "".join("1" if day in working_days else "0" for day in _DAY_NAMES)
    if "1" not in days or len(dates) > MAX_HOLIDAYS:
        found = f"{len(dates)} holidays" if "1" in days else "none"
        raise FrequencyUnknown(
            f"Expected at least one working day and at most {MAX_HOLIDAYS} holidays in frequency {freq[:60]!r}; found {found}. "
            "Write it like C-1111110 for Monday to Saturday, and declare many holidays by country (C-1111100-US).",
            where=freq[:60],
        )
    try:
        np.array([f"{date[:4]}-{date[4:6]}-{date[6:]}" for date in dates], dtype="datetime64[D]")
    except ValueError as error:
        raise FrequencyUnknown(
            f"Expected holidays as YYYYMMDD in frequency {freq[:60]!r}; a date in it does not exist ({error}). Correct it.",
            where=freq[:60],
        ) from error
    return CustomBusinessDays(int(match["count"] or 1), days, match["location"] or "", dates)


def describe_custom_offset(offset: pd.offsets.CustomBusinessDay) -> CustomBusinessDays:
    """Returns the weekmask and the holidays of a pandas offset; raises FrequencyUnknown for too many holidays."""
    weekdays = np.busdaycalendar(weekmask=offset.weekmask).weekmask  # pandas keeps the weekmask as it was written
    holidays = np.unique(np.asarray(offset.calendar.holidays, dtype="datetime64[D]"))
    dates = tuple(str(day).replace("-", "") for day in holidays)
    if len(dates) > MAX_HOLIDAYS:
        raise FrequencyUnknown(
            f"Expected at most {MAX_HOLIDAYS} holidays in a frequency; found {len(dates)}. Declare them by country, as in "
            "freq='C-1111100-US', or pass only those from the first timestamp to the last forecast.",
            where="freq",
        )
    return CustomBusinessDays(offset.n, "".join("1" if day else "0" for day in weekdays), "", dates)


@lru_cache(maxsize=32)
def _load_public_holidays(location: str) -> Any:
    try:
        package = import_module("holidays")
    except ImportError as error:
        raise MissingPackage(
            f"The holidays of {location!r} in a frequency need the package 'holidays', which is not installed. Install the extra "
            "that has it: pip install 'recurrent-forecaster[train]' (or [serve]).",
            where=location,
        ) from error
    country, _, region = location.partition("-")
    try:
        days = package.country_holidays(country, subdiv=region or None, years=_HOLIDAY_YEARS)
    except NotImplementedError as error:
        raise FrequencyUnknown(
            f"No holidays are known for {location!r} in a frequency; expected a country such as US or DE, or a subdivision such "
            "as DE-BY. Correct it, or write the holidays as dates (C-1111100-20261224).",
            where=location,
        ) from error
    return np.array(sorted(days), dtype="datetime64[D]")

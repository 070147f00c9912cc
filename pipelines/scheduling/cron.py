"""The fire times of a cron expression with five fields in one time zone, computed by cronsim."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from forecaster.errors import InputError, MissingPackage, ZoneUnknown

try:
    from cronsim import CronSim, CronSimError
except ImportError as error:
    raise MissingPackage(
        "Expected the package 'cronsim', which schedules need; found none. Install recurrent-forecaster[schedule].",
        where="cron",
    ) from error

_FIELD_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
_RANGE_PATTERN = re.compile(r"([0-9]{1,2})-([0-9]{1,2})(?:/([0-9]{1,4}))?")


class CronSchedule:
    """The minutes at which a cron expression fires.

    Daylight saving: a time that the clock skips fires at the next minute that exists; a time that the clock repeats fires the
    first time only. If the hour starts with `*`, the schedule fires as often as the clock shows a matching time. If both day of
    month and day of week are given, a match of either is enough.

    Raises InputError for an invalid expression or one that never fires, ZoneUnknown for an unknown time zone.
    """

    def __init__(self, expression: str, zone: str) -> None:
        fields = expression.split()
        if len(fields) != 5:
            raise _invalid_cron_error(expression, f"{len(fields)} fields")
        self.expression, self.zone = " ".join(fields), zone
        try:
            self._time_zone = ZoneInfo(zone)
        except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
            raise ZoneUnknown(
                f"Expected a time zone for the schedule; {zone!r} is unknown here. Use a name such as Europe/Berlin or UTC.",
                where="cron-zone",
            ) from error
        self._cronsim_expression = _translate(fields)
        try:
            self.next_after(datetime(2026, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            raise _invalid_cron_error(expression, f"a {str(error).lower()}") from error
        except ValueError as error:  # a number with thousands of digits
            raise _invalid_cron_error(expression, "an invalid number") from error

    def next_after(self, moment: datetime) -> datetime:
        """Returns the first fire time after a moment, in UTC."""
        for fire_time in self._iter_after(moment):
            return fire_time
        raise InputError(
            f"Expected a schedule that fires at some time; {self.expression!r} never does. Correct the day or the month.",
            where="cron",
        )

    def last_between(self, since: datetime, until: datetime) -> datetime | None:
        """Returns the last fire time after `since` and not after `until`, in UTC; None if there is none."""
        last = None
        for fire_time in self._iter_after(since):
            if fire_time > until:
                break
            last = fire_time
        return last

    def _iter_after(self, moment: datetime) -> Iterator[datetime]:
        for local_time in CronSim(self._cronsim_expression, moment.astimezone(self._time_zone)):
            fire_time = local_time.astimezone(UTC)
            # From the second occurrence of a repeated hour, cronsim starts in the first.
            if fire_time > moment:
                yield fire_time


def _translate(fields: list[str]) -> str:
    """Writes an expression so that cronsim reads it as this project does.

    cronsim follows the clock through a change if the minute starts with `*`, even if the hour is fixed. It rejects ranges that
    wrap (`22-2`) and reads `3-3/4` as `3-23/4`; jobs of version 0.1 may have both.
    """
    minute, hour, *days = fields
    if minute.startswith("*") and not hour.startswith("*"):
        minute = f"0-59{minute[1:]}"
    return " ".join(
        ",".join(_expand_range(item, low, high) for item in field.split(","))
        for field, (low, high) in zip((minute, hour, *days), _FIELD_RANGES, strict=True)
    )


def _expand_range(item: str, low: int, high: int) -> str:
    match = _RANGE_PATTERN.fullmatch(item)
    if match is None:
        return item
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
    if first == last and step:
        return match[1]
    if not low <= last < first <= max(high, 7) or step == 0:  # 7 is a Sunday, too
        return item
    values = [*range(first, high + 1), *range(low, last + 1)]
    return ",".join(map(str, values[::step]))


def _invalid_cron_error(expression: str, problem: str) -> InputError:
    return InputError(
        f"Expected a schedule as a cron expression of five fields, minute hour day month weekday; {expression!r} has "
        f"{problem}. Use for example '0 3 * * *' for 03:00 every night or '30 6 * * 1-5' for 06:30 on weekdays.",
        where="cron",
    )

"""Computes the fire times of a cron expression with five fields, parsed by huey, in one time zone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from forecaster.errors import InputError, MissingPackage, ZoneUnknown

_MINUTE, _DAY = timedelta(minutes=1), timedelta(days=1)
_MAX_DAYS_AHEAD = 366 * 9  # the next 29th of February may be eight years away
TimePredicate = Callable[[datetime], bool]


class CronSchedule:
    """The minutes at which a cron expression fires.

    Daylight saving: a time that the clock skips fires at the next minute that exists; a time that the clock repeats fires the
    first time only. If the hour contains `*`, the schedule fires as often as the clock shows a matching time. If both day of
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
        minute, hour, day, month, weekday = fields
        self._is_wildcard_hour = "*" in hour
        self._matches_time = _build_predicate(expression, minute=minute, hour=hour)
        if day.startswith("*") or weekday.startswith("*"):
            self._matches_day = [_build_predicate(expression, day=day, month=month, day_of_week=weekday)]
        else:
            self._matches_day = [
                _build_predicate(expression, day=day, month=month),
                _build_predicate(expression, month=month, day_of_week=weekday),
            ]
        self._fire_times = lru_cache(maxsize=16)(self._compute_fire_times)
        self.next_after(datetime(2026, 1, 1, tzinfo=UTC))

    def next_after(self, moment: datetime) -> datetime:
        """Returns the first fire time after a moment, in UTC."""
        first = self._to_local(moment).date()
        for days in range(_MAX_DAYS_AHEAD):
            for fire_time in self._fire_times(first + days * _DAY):
                if fire_time > moment:
                    return fire_time
        raise InputError(
            f"Expected a schedule that fires at some time; {self.expression!r} never does. Correct the day or the month.",
            where="cron",
        )

    def last_between(self, since: datetime, until: datetime) -> datetime | None:
        """Returns the last fire time after `since` and not after `until`, in UTC; None if there is none."""
        day = self._to_local(until).date()
        while day >= self._to_local(since).date():
            for fire_time in reversed(self._fire_times(day)):
                if fire_time <= until:
                    return fire_time if fire_time > since else None
            day -= _DAY
        return None

    def _to_local(self, moment: datetime) -> datetime:
        return moment.astimezone(self._time_zone)

    def _compute_fire_times(self, day: date) -> tuple[datetime, ...]:
        if not any(match(datetime.combine(day, time())) for match in self._matches_day):
            return ()
        return tuple(sorted(set(self._iter_fire_times(day))))

    def _iter_fire_times(self, day: date) -> Iterator[datetime]:
        moment, end = (
            datetime.combine(midnight, time(), tzinfo=self._time_zone).astimezone(UTC) for midnight in (day, day + _DAY)
        )
        previous = self._to_local(moment - _MINUTE).replace(tzinfo=None)
        while moment < end:
            local = self._to_local(moment)
            clock_time = local.replace(tzinfo=None)
            if self._matches_time(clock_time) and (self._is_wildcard_hour or not local.fold):
                yield moment
            skipped = max(previous + _MINUTE, datetime.combine(day, time()))
            while skipped < clock_time and not self._is_wildcard_hour:
                if self._matches_time(skipped):
                    yield moment
                skipped += _MINUTE
            previous, moment = clock_time, moment + _MINUTE


def _build_predicate(expression: str, **fields: str) -> TimePredicate:
    try:
        from huey import crontab
    except ImportError as error:
        raise MissingPackage(
            "Expected the package 'huey', which schedules need; found none. Install forecaster[schedule].",
            where="cron",
        ) from error
    try:
        match: TimePredicate = crontab(**fields, strict=True)
    except ValueError as error:
        raise _invalid_cron_error(expression, str(error)) from error
    return match


def _invalid_cron_error(expression: str, problem: str) -> InputError:
    return InputError(
        f"Expected a schedule as a cron expression of five numeric fields, minute hour day month weekday; {expression!r} has "
        f"{problem}. Use for example '0 3 * * *' for 03:00 every night or '30 6 * * 1-5' for 06:30 on weekdays.",
        where="cron",
    )

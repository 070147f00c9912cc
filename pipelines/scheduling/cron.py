"""When a schedule calls: five fields of cron, read by huey, on the clock of one time zone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from forecaster.errors import InputError, MissingPackage, ZoneUnknown

_MINUTE, _DAY = timedelta(minutes=1), timedelta(days=1)
_MAX_DAYS_AHEAD = 366 * 9  # a 29th of February may be eight years away
TimePredicate = Callable[[datetime], bool]


class CronSchedule:
    """The minutes at which a schedule calls.

    A call for an hour on the clock that it does not show, since it is put forward, comes with the next minute; one for an hour
    that it shows twice comes the first time. Where the hour is `*`, or every so many, it comes as often as the clock shows it.
    If day of month and day of week are both named, either calls.

    Raises InputError for an expression that is none, or that never calls; ZoneUnknown.
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
                f"Expected the time zone of a schedule; {zone!r} is not known here. Name it like Europe/Berlin or UTC.",
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
        """The first call after a moment, in UTC."""
        first = self._to_local(moment).date()
        for days in range(_MAX_DAYS_AHEAD):
            for call in self._fire_times(first + days * _DAY):
                if call > moment:
                    return call
        raise InputError(
            f"Expected a schedule that calls some day; {self.expression!r} never does. Correct the day or the month.",
            where="cron",
        )

    def last_between(self, since: datetime, until: datetime) -> datetime | None:
        """The last call after one moment and not after another, in UTC; None where there is none."""
        day = self._to_local(until).date()
        while day >= self._to_local(since).date():
            for call in reversed(self._fire_times(day)):
                if call <= until:
                    return call if call > since else None
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
            datetime.combine(one, time(), tzinfo=self._time_zone).astimezone(UTC) for one in (day, day + _DAY)
        )
        before = self._to_local(moment - _MINUTE).replace(tzinfo=None)
        while moment < end:
            local = self._to_local(moment)
            shown = local.replace(tzinfo=None)
            if self._matches_time(shown) and (self._is_wildcard_hour or not local.fold):
                yield moment
            skipped = max(before + _MINUTE, datetime.combine(day, time()))
            while skipped < shown and not self._is_wildcard_hour:
                if self._matches_time(skipped):
                    yield moment
                skipped += _MINUTE
            before, moment = shown, moment + _MINUTE


def _build_predicate(expression: str, **fields: str) -> TimePredicate:
    try:
        from huey import crontab
    except ImportError as error:
        raise MissingPackage(
            "Expected the package 'huey', which keeps schedules; found none. Install forecaster[schedule].",
            where="cron",
        ) from error
    try:
        match: TimePredicate = crontab(**fields, strict=True)
    except ValueError as error:
        raise _invalid_cron_error(expression, str(error)) from error
    return match


def _invalid_cron_error(expression: str, problem: str) -> InputError:
    return InputError(
        f"Expected a schedule as five fields of cron, minute hour day month weekday, in numbers; {expression!r} has {problem}. "
        "Write such as '0 3 * * *' for three every night, '30 6 * * 1-5' for weekdays.",
        where="cron",
    )

"""Fire times of cron expressions: the five fields, clock changes and missed times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from forecaster.errors import InputError, ZoneUnknown
from pipelines.scheduling.cron import CronSchedule


def parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def list_times(expression: str, zone: str, start: str, number: int) -> list[str]:
    cron, moment, times = CronSchedule(expression, zone), parse_time(start), []
    for _ in range(number):
        moment = cron.next_after(moment)
        times.append(moment.strftime("%d %H:%M"))
    return times


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 3 * * *", ["21 03:00", "22 03:00"]),
        ("*/20 * * * *", ["21 00:20", "21 00:40"]),
        ("5,10 6-7 * * *", ["21 06:05", "21 06:10"]),
        ("30 6 * * 1-5", ["23 06:30", "24 06:30"]),  # the 21st of November 2026 is a Saturday
        ("0 0 * * 7", ["22 00:00", "29 00:00"]),
        ("0 0 1 * *", ["01 00:00", "01 00:00"]),
        ("0 0 25 * 0", ["22 00:00", "25 00:00"]),  # day of month or day of week
        ("0 12 29 2 *", ["29 12:00", "29 12:00"]),
        ("0 3 * * MON", ["23 03:00", "30 03:00"]),
        ("0 3 * * 6-2", ["21 03:00", "22 03:00"]),  # ranges may wrap
        ("0 22-1/2 * * *", ["21 22:00", "22 00:00"]),
        ("0 3-3/4 * * *", ["21 03:00", "22 03:00"]),
        ("0 3 L * *", ["30 03:00", "31 03:00"]),
    ],
)
def test_five_fields_are_parsed_like_cron(expression: str, expected: list[str]) -> None:
    assert list_times(expression, "UTC", "2026-11-21", 2) == expected


def test_times_follow_the_time_zone_all_year() -> None:
    assert list_times("0 3 * * *", "Europe/Berlin", "2026-07-01", 1) == ["01 01:00"]
    assert list_times("0 3 * * *", "Europe/Berlin", "2026-12-01", 1) == ["01 02:00"]
    assert list_times("0 3 * * *", "Asia/Kolkata", "2026-12-01", 1) == ["01 21:30"]


# In Berlin 02:00 to 03:00 does not exist on 29 March 2026, and occurs twice on 25 October 2026. All times are in UTC.
@pytest.mark.parametrize(
    ("expression", "start", "expected"),
    [
        ("0 3 * * *", "2026-03-28T00:00", ["28 02:00", "29 01:00", "30 01:00"]),  # daily, beside the change
        ("0 3 * * *", "2026-10-24T00:00", ["24 01:00", "25 02:00", "26 02:00"]),
        ("30 2 * * *", "2026-03-28T12:00", ["29 01:00", "30 00:30"]),  # does not exist: 03:00 on the clock
        ("15,45 2,3 * * *", "2026-03-29T00:00", ["29 01:00", "29 01:15", "29 01:45", "30 00:15"]),
        ("* 2 * * *", "2026-03-29T00:00", ["29 01:00", "30 00:00", "30 00:01"]),
        ("30 2 * * *", "2026-10-24T12:00", ["25 00:30", "26 01:30"]),  # occurs twice: the first
        ("30 2 * * *", "2026-10-25T01:10", ["26 01:30"]),  # the second 02:10 of the clock
        ("*/30 2 * * *", "2026-10-25T00:00", ["25 00:30", "26 01:00", "26 01:30"]),
        ("0 * * * *", "2026-10-24T22:30", ["24 23:00", "25 00:00", "25 01:00", "25 02:00"]),  # the repeated hour, too
        ("0 * * * *", "2026-03-28T23:30", ["29 00:00", "29 01:00", "29 02:00"]),
        ("0 */2 * * *", "2026-03-28T22:30", ["28 23:00", "29 02:00"]),  # the clock shows no even hour between
    ],
)
def test_clock_changes_neither_lose_nor_repeat_a_run(expression: str, start: str, expected: list[str]) -> None:
    assert list_times(expression, "Europe/Berlin", start, len(expected)) == expected


def test_a_call_of_the_repeated_hour_is_not_missed_in_its_second_occurrence() -> None:
    cron = CronSchedule("30 2 * * *", "Europe/Berlin")
    first, second = parse_time("2026-10-25T00:30"), parse_time("2026-10-25T01:30")
    assert cron.last_between(parse_time("2026-10-24T12:00"), second) == first
    assert cron.last_between(first, second + timedelta(hours=12)) is None


def test_the_latest_time_is_found_or_none() -> None:
    cron = CronSchedule("0 3 * * *", "UTC")
    assert cron.last_between(parse_time("2026-01-01"), parse_time("2026-11-21T02:59")) == parse_time("2026-11-20T03:00")
    assert cron.last_between(parse_time("2026-11-21T03:00"), parse_time("2026-11-22T02:59")) is None
    assert cron.last_between(parse_time("2026-11-21T02:59"), parse_time("2026-11-21T03:00")) == parse_time(
        "2026-11-21T03:00"
    )
    assert CronSchedule("0 0 29 2 *", "UTC").last_between(parse_time("2025-01-01"), parse_time("2026-01-01")) is None


def test_times_of_every_minute_are_a_minute_apart() -> None:
    cron, moment = CronSchedule("* * * * *", "America/St_Johns"), parse_time("2026-03-08T04:00")
    for _ in range(300):
        following = cron.next_after(moment)
        assert following - moment == timedelta(minutes=1)
        moment = following


@pytest.mark.parametrize(
    "expression",
    [
        *("", "0 3 * *", "0 3 * * * *", "@daily", "a b c d e", "0 0 30 2 *", "0 0 31 2,4 *"),
        *(
            "61 3 * * *",
            "*/0 * * * *",
            "5-2/0 * * * *",
            "0 99-2 * * *",
            "0 3-3/0 * * *",
            f"*/{'9' * 5000} * * * *",
            "0 3 * * MONDAY",
        ),
    ],
)
def test_an_invalid_expression_is_rejected(expression: str) -> None:
    with pytest.raises(InputError, match=r"(?s)schedule.* Use for example"):
        CronSchedule(expression, "UTC")


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd"])
def test_an_unknown_time_zone_is_rejected(zone: str) -> None:
    with pytest.raises(ZoneUnknown):
        CronSchedule("0 3 * * *", zone)

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
    ],
)
def test_five_fields_are_parsed_like_cron(expression: str, expected: list[str]) -> None:
    assert list_times(expression, "UTC", "2026-11-21", 2) == expected


def test_times_follow_the_time_zone_all_year() -> None:
    assert list_times("0 3 * * *", "Europe/Berlin", "2026-07-01", 1) == ["01 01:00"]
    assert list_times("0 3 * * *", "Europe/Berlin", "2026-12-01", 1) == ["01 02:00"]
    assert list_times("0 3 * * *", "Asia/Kolkata", "2026-12-01", 1) == ["01 21:30"]


def test_a_skipped_hour_runs_and_a_repeated_hour_runs_once() -> None:
    assert list_times("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", 2) == [
        "29 01:00",
        "30 00:30",
    ]  # 03:00 on the clock
    assert list_times("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", 2) == ["25 00:30", "26 01:30"]
    hours = list_times("0 * * * *", "Europe/Berlin", "2026-10-24T22:30", 4)
    assert hours == ["24 23:00", "25 00:00", "25 01:00", "25 02:00"], "the repeated hour fires twice"
    assert list_times("0 * * * *", "Europe/Berlin", "2026-03-28T23:30", 3) == ["29 00:00", "29 01:00", "29 02:00"]


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
    ["", "0 3 * *", "0 3 * * * *", "61 3 * * *", "0 3 * * MON", "@daily", "0 0 30 2 *", "a b c d e", "*/0 * * * *"],
)
def test_an_invalid_expression_is_rejected(expression: str) -> None:
    with pytest.raises(InputError, match="schedule"):
        CronSchedule(expression, "UTC")


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd"])
def test_an_unknown_time_zone_is_rejected(zone: str) -> None:
    with pytest.raises(ZoneUnknown):
        CronSchedule("0 3 * * *", zone)

"""The commands `forecaster schedule list`, `status`, `run` and `remove`, and what `retrain --cron` does."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

from cyclopts import App, Parameter

from forecaster.errors import InputError
from pipelines.commands.options import RootOptions, format_arguments

if TYPE_CHECKING:
    from pipelines.scheduling.jobs import Job, JobStore

schedule_app = App(
    name="schedule", help="Retrainings on a schedule: what there is, how it went, and the process that runs it."
)
_ROOT_OPTIONS = RootOptions()
_HEARTBEAT_TIMEOUT_S = 30.0  # without a sign of life


@Parameter(name="*")
@dataclass(frozen=True)
class ScheduleOptions:
    """When to do it again, instead of doing it now."""

    cron: str | None = None
    "Five fields of cron ('0 3 * * *'): keeps the command for `forecaster schedule run`, which calls it then."
    cron_zone: str = "UTC"
    "Time zone of that clock (Europe/Berlin)."
    retries: int = 3
    "With --cron: how often a run that failed is tried again; one that was refused, or whose input is wrong, is not."
    retry_delay: float = 60.0
    "Seconds before the first of these; twice as many before each further one."


def schedule_command(
    name: str, command: str, arguments: Mapping[str, Any], recurrence: ScheduleOptions, where: RootOptions
) -> None:
    """Schedules a command under a name, in place of what was scheduled under it; prints when it is called first."""
    from pipelines.redaction import has_password
    from pipelines.scheduling.cron import CronSchedule
    from pipelines.scheduling.jobs import Job, JobStore

    assert recurrence.cron is not None
    cron = CronSchedule(recurrence.cron, recurrence.cron_zone)
    if not 0 <= recurrence.retries <= 100 or not 0 < recurrence.retry_delay <= 86400:
        raise InputError(
            f"Expected 0 to 100 retries, a day apart at most; found {recurrence.retries}, {recurrence.retry_delay:g} s apart. "
            "Give other numbers.",
            where="retries",
        )
    words = [command, *format_arguments(arguments)]
    if where.tracking_uri is not None and where.tracking_uri != os.environ.get("MLFLOW_TRACKING_URI"):
        words.append(f"--tracking-uri={where.tracking_uri}")
    if any(has_password(word.partition("=")[2]) for word in words):
        raise InputError(
            "Expected a command without a password; found one in an address. A schedule is a file: put the address into the "
            "environment of `forecaster schedule run`.",
            where="cron",
        )
    now = datetime.now(UTC)
    job = Job(
        name=name,
        cron=cron.expression,
        zone=cron.zone,
        words=tuple(words),
        folder=str(Path.cwd()),
        retries=recurrence.retries,
        retry_delay=recurrence.retry_delay,
        since=now,
    )
    JobStore(where.open_root().schedule).save_job(job)
    print(f"{name} is scheduled: {shlex.join(['forecaster', *words])}")
    print(
        f"next    {_format_local_time(cron.next_after(now), job.zone)}; `forecaster schedule run` has to be running then"
    )


@schedule_app.command(name="list")
def list_jobs(*, json: Annotated[bool, Parameter(negative="")] = False, where: RootOptions = _ROOT_OPTIONS) -> None:
    """Prints what is scheduled, when it is called next, and how it went last.

    Parameters
    ----------
    json
        As JSON, stamps in UTC.
    """
    from pipelines.scheduling.jobs import JobStore

    book = JobStore(where.open_root().schedule)
    told = [_describe_job(book, job) for job in book.load_jobs()]
    if json:
        print(dumps(told, indent=1))
    else:
        _print_jobs(told)


@schedule_app.command
def status(*, json: Annotated[bool, Parameter(negative="")] = False, where: RootOptions = _ROOT_OPTIONS) -> None:
    """Prints as `list` does, and whether a scheduler is alive; ends with 1 where none is.

    Parameters
    ----------
    json
        As JSON, stamps in UTC.
    """
    from pipelines.scheduling.jobs import JobStore

    book = JobStore(where.open_root().schedule)
    beat = book.load_heartbeat()
    silent = None if beat is None else (datetime.now(UTC) - beat.at).total_seconds()
    alive = silent is not None and silent < _HEARTBEAT_TIMEOUT_S
    told = [_describe_job(book, job) for job in book.load_jobs()]
    if json:
        scheduler = None if beat is None else {"pid": beat.pid, "at": beat.at.isoformat(), "alive": alive}
        print(dumps({"scheduler": scheduler, "jobs": told}, indent=1))
    else:
        since = "never seen" if beat is None else f"process {beat.pid}, last seen {_format_local_time(beat.at, 'UTC')}"
        print(f"scheduler {'alive' if alive else 'not running'} ({since})")
        _print_jobs(told)
    if not alive:
        sys.exit(1)


@schedule_app.command
def run(*, where: RootOptions = _ROOT_OPTIONS) -> None:
    """Runs what is scheduled, in the foreground, until it is interrupted or told to end (SIGTERM).

    One of a root at a time. What was missed while none ran is called once. A run under way is told to end with it, and is
    done again at the next start.
    """
    from pipelines.scheduling.scheduler import Scheduler

    root = where.open_root()
    if where.tracking_uri is not None:
        os.environ["MLFLOW_TRACKING_URI"] = where.tracking_uri  # for the runs
    scheduler = Scheduler(root)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: scheduler.stop_event.set())
    logging.getLogger("huey").setLevel(logging.ERROR)
    names = ", ".join(job.name for job in scheduler.store.load_jobs()) or "nothing yet"
    print(f"forecaster: scheduler of {root.path}: {names}", file=sys.stderr, flush=True)
    scheduler.run_until_stopped()
    print("forecaster: the scheduler has ended", file=sys.stderr)


@schedule_app.command
def remove(name: str, *, where: RootOptions = _ROOT_OPTIONS) -> None:
    """Takes a job from the schedule; a run of it that is under way goes on.

    Parameters
    ----------
    name
        Of the job, as `list` prints it.
    """
    from pipelines.scheduling.jobs import JobStore

    JobStore(where.open_root().schedule).remove_job(name)
    print(f"{name} is not scheduled any more")


def _describe_job(store: JobStore, job: Job) -> dict[str, Any]:
    from pipelines.scheduling.cron import CronSchedule

    state = store.load_state(job.name)
    following = CronSchedule(job.cron, job.zone).next_after(datetime.now(UTC))
    doing = "idle" if state.waiting is None else "running" if state.running else "queued"
    return {
        "name": job.name,
        "cron": job.cron,
        "zone": job.zone,
        "command": shlex.join(["forecaster", *job.words]),
        "next": following.isoformat(),
        "doing": doing,
        "last": None if state.last is None else state.last.model_dump(mode="json"),
        "refused": state.refused,
        "refusal": state.refusal,
    }


def _print_jobs(jobs: list[dict[str, Any]]) -> None:
    if not jobs:
        print("nothing is scheduled; forecaster retrain DATA --cron '0 3 * * *' does it")
        return
    width = max(4, *(len(job["name"]) for job in jobs))
    print(f"{'name':{width}}  {'cron':16}{'next':28}{'now':9}{'last':28}result")
    for job in jobs:
        last, result = "-", "-"
        if job["last"] is not None:
            last = _format_local_time(datetime.fromisoformat(job["last"]["started"]), job["zone"])
            result = f"{job['last']['outcome']}: {job['last']['said']}"
        following = _format_local_time(datetime.fromisoformat(job["next"]), job["zone"])
        print(f"{job['name']:{width}}  {job['cron']:16}{following:28}{job['doing']:9}{last:28}{result}")
        if job["refused"]:
            print(f"{'':{width}}  {job['refused']} calls refused; the last: {job['refusal']}")


def _format_local_time(moment: datetime, zone: str) -> str:
    return f"{moment.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M} {zone}"

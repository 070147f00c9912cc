"""The commands `forecaster schedule list`, `status`, `run` and `remove`, and the scheduling of `retrain --cron`."""

from __future__ import annotations

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
from forecaster.storage.addresses import redact_addresses
from pipelines.commands.options import RootOptions, format_arguments

if TYPE_CHECKING:
    from pipelines.scheduling.jobs import Job, JobStore

schedule_app = App(name="schedule", help="Lists, runs and removes scheduled commands.")
_ROOT_OPTIONS = RootOptions()
_HEARTBEAT_TIMEOUT_S = 30.0  # a scheduler without a heartbeat for longer is not running


@Parameter(name="*")
@dataclass(frozen=True)
class ScheduleOptions:
    """When to run a command repeatedly, instead of running it now."""

    cron: str | None = None
    "A cron expression of five fields ('0 3 * * *'): schedules the command for `forecaster schedule run` instead of running it."
    cron_zone: str = "UTC"
    "Time zone of the cron expression (Europe/Berlin)."
    retries: int = 3
    "With --cron: retries of a failed run; a run that the gate rejected or whose input is invalid is not retried."
    retry_delay: float = 60.0
    "Seconds before the first retry; doubled for every further one."


def schedule_command(
    name: str, command: str, arguments: Mapping[str, Any], schedule_options: ScheduleOptions, root_options: RootOptions
) -> None:
    """Schedules a command under a name, replaces an earlier job of that name, and prints the first time it will run."""
    from pipelines.redaction import has_password
    from pipelines.scheduling.cron import CronSchedule
    from pipelines.scheduling.jobs import Job, JobStore

    assert schedule_options.cron is not None
    cron = CronSchedule(schedule_options.cron, schedule_options.cron_zone)
    if not 0 <= schedule_options.retries <= 100 or not 0 < schedule_options.retry_delay <= 86400:
        raise InputError(
            f"Expected 0 to 100 retries with a delay of at most one day; found {schedule_options.retries} retries with a delay "
            f"of {schedule_options.retry_delay:g} s. Use other numbers.",
            where="retries",
        )
    command_line = [command, *format_arguments(arguments)]
    if root_options.tracking_uri is not None and root_options.tracking_uri != os.environ.get("MLFLOW_TRACKING_URI"):
        command_line.append(f"--tracking-uri={root_options.tracking_uri}")
    if any(has_password(argument.partition("=")[2]) for argument in command_line):
        raise InputError(
            "Expected a command without a password; found one in a URL. A schedule is stored in a file: put the URL into the "
            "environment of `forecaster schedule run`.",
            where="cron",
        )
    now = datetime.now(UTC)
    job = Job(
        name=name,
        cron=cron.expression,
        zone=cron.zone,
        words=tuple(command_line),
        folder=str(Path.cwd()),
        retries=schedule_options.retries,
        retry_delay=schedule_options.retry_delay,
        since=now,
    )
    JobStore(root_options.open_root().schedule).save_job(job)
    print(f"{name} is scheduled: {shlex.join(['forecaster', *command_line])}")
    print(
        f"next    {_format_local_time(cron.next_after(now), job.zone)}; this requires a running `forecaster schedule run`"
    )


@schedule_app.command(name="list")
def list_jobs(
    *,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Prints the scheduled jobs, their next run, and the result of the last one.

    Parameters
    ----------
    json
        Print JSON, with timestamps in UTC.
    """
    from pipelines.scheduling.jobs import JobStore

    store = JobStore(root_options.open_root().schedule)
    jobs = [_describe_job(store, job) for job in store.load_jobs()]
    if json:
        print(dumps(jobs, indent=1))
    else:
        _print_jobs(jobs)


@schedule_app.command
def status(
    *,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Prints the jobs as `list` does, and whether a scheduler is running; exits with 1 if none is.

    Parameters
    ----------
    json
        Print JSON, with timestamps in UTC.
    """
    from pipelines.scheduling.jobs import JobStore

    store = JobStore(root_options.open_root().schedule)
    heartbeat = store.load_heartbeat()
    age_s = None if heartbeat is None else (datetime.now(UTC) - heartbeat.at).total_seconds()
    alive = age_s is not None and age_s < _HEARTBEAT_TIMEOUT_S
    jobs = [_describe_job(store, job) for job in store.load_jobs()]
    if json:
        scheduler = (
            None if heartbeat is None else {"pid": heartbeat.pid, "at": heartbeat.at.isoformat(), "alive": alive}
        )
        print(dumps({"scheduler": scheduler, "jobs": jobs}, indent=1))
    else:
        last_seen = "never seen"
        if heartbeat is not None:
            last_seen = f"process {heartbeat.pid}, last seen {_format_local_time(heartbeat.at, 'UTC')}"
        print(f"scheduler {'running' if alive else 'not running'} ({last_seen})")
        _print_jobs(jobs)
    if not alive:
        sys.exit(1)


@schedule_app.command
def run(*, root_options: RootOptions = _ROOT_OPTIONS) -> None:
    """Runs the scheduled jobs in the foreground, until it is interrupted or terminated (SIGTERM).

    Only one scheduler runs per root. A job that was missed while no scheduler ran is run once. A run in progress is terminated
    with the scheduler, and repeated at the next start.
    """
    from pipelines.scheduling.scheduler import Scheduler

    root = root_options.open_root()
    if root_options.tracking_uri is not None:
        os.environ["MLFLOW_TRACKING_URI"] = root_options.tracking_uri  # the jobs inherit it
    scheduler = Scheduler(root)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: scheduler.stop_request.set())
    names = ", ".join(job.name for job in scheduler.store.load_jobs()) or "nothing yet"
    print(f"forecaster: scheduler of {root.path}: {names}", file=sys.stderr, flush=True)
    scheduler.run_until_stopped()
    print("forecaster: the scheduler has stopped", file=sys.stderr)


@schedule_app.command
def remove(name: str, *, root_options: RootOptions = _ROOT_OPTIONS) -> None:
    """Removes a job from the schedule; a run in progress continues.

    Parameters
    ----------
    name
        The name of the job, as `list` prints it.
    """
    from pipelines.scheduling.jobs import JobStore

    JobStore(root_options.open_root().schedule).remove_job(name)
    print(f"{name} is no longer scheduled")


def _describe_job(store: JobStore, job: Job) -> dict[str, Any]:
    from pipelines.scheduling.cron import CronSchedule

    state = store.load_state(job.name)
    next_run = CronSchedule(job.cron, job.zone).next_after(datetime.now(UTC))
    status = "idle" if state.waiting is None else "running" if state.running else "queued"
    return {
        "name": job.name,
        "cron": job.cron,
        "zone": job.zone,
        "command": redact_addresses(shlex.join(["forecaster", *job.words])),
        "next": next_run.isoformat(),
        "doing": status,
        "last": None if state.last is None else state.last.model_dump(mode="json"),
        "refused": state.refused,
        "refusal": state.refusal,
    }


def _print_jobs(jobs: list[dict[str, Any]]) -> None:
    if not jobs:
        print("no jobs are scheduled; add one with forecaster retrain DATA --cron '0 3 * * *'")
        return
    width = max(4, *(len(job["name"]) for job in jobs))
    print(f"{'name':{width}}  {'cron':16}{'next':28}{'now':9}{'last':28}result")
    for job in jobs:
        last, result = "-", "-"
        if job["last"] is not None:
            last = _format_local_time(datetime.fromisoformat(job["last"]["started"]), job["zone"])
            result = f"{job['last']['outcome']}: {job['last']['said']}"
        next_run = _format_local_time(datetime.fromisoformat(job["next"]), job["zone"])
        print(f"{job['name']:{width}}  {job['cron']:16}{next_run:28}{job['doing']:9}{last:28}{result}")
        if job["refused"]:
            print(f"{'':{width}}  {job['refused']} runs refused; the last: {job['refusal']}")


def _format_local_time(moment: datetime, zone: str) -> str:
    return f"{moment.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M} {zone}"

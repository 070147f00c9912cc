"""Scheduled jobs and their states, stored as small JSON files that are written atomically by a single writer each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forecaster.errors import InputError
from forecaster.storage import atomic

_JOB_NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
RecordT = TypeVar("RecordT", bound="ScheduleRecord")


class ScheduleRecord(BaseModel):
    """A record stored as JSON; times are in UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Job(ScheduleRecord):
    """A command that runs on a schedule.

    Attributes:
        name: Name of the job, which is that of its model.
        cron: A cron expression of five fields.
        zone: Time zone of the cron expression.
        words: Arguments of the `forecaster` command, without the root.
        folder: Working directory of the command.
        retries: How often a failed run is retried.
        retry_delay: Seconds until the first retry; doubled for each further retry.
        since: When the job was scheduled; earlier fire times do not count as missed.
    """

    name: str
    cron: str
    zone: str
    words: tuple[str, ...]
    folder: str
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    retry_delay: Annotated[float, Field(gt=0)] = 60.0
    since: datetime


class JobRun(ScheduleRecord):
    """One run of a job.

    Attributes:
        call: The fire time that the run is for.
        started: Start of the run.
        ended: End of the run.
        attempt: Number of the attempt, from 1.
        code: Exit code of the command.
        outcome: What the exit code means.
        said: The last line of the command's output.
    """

    call: datetime
    started: datetime
    ended: datetime
    attempt: int
    code: int
    outcome: str
    said: str


class JobState(ScheduleRecord):
    """The state of a job.

    Attributes:
        considered: Fire times up to this time have been handled.
        waiting: The fire time that is queued, running or waiting for a retry.
        failures: Number of its failed attempts.
        retry_at: It does not run before this time.
        running: Process id of the current run.
        last: The last finished run.
        refused: Number of fire times that were skipped because the previous run had not finished.
        refusal: Message for the last of them.
    """

    considered: datetime | None = None
    waiting: datetime | None = None
    failures: int = 0
    retry_at: datetime | None = None
    running: int | None = None
    last: JobRun | None = None
    refused: int = 0
    refusal: str | None = None


class Heartbeat(ScheduleRecord):
    """A sign that a scheduler is alive: its process id and the time."""

    pid: int
    at: datetime


class JobStore:
    """The files of the jobs of one root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def lock_path(self) -> Path:
        """The lock that the scheduler holds."""
        return self.folder / "scheduler.lock"

    def job_lock_path(self, name: str) -> Path:
        """The lock that the process of a job holds, also after the scheduler has ended."""
        return self.folder / f"{_validate_job_name(name)}.lock"

    def job_log_path(self, name: str) -> Path:
        """The log of the output of a job's runs."""
        return self.folder / f"{_validate_job_name(name)}.log"

    def load_jobs(self) -> Iterator[Job]:
        """Loads all jobs, ordered by name."""
        for path in sorted((self.folder / "jobs").glob("[!.]*.json")):
            job = _load_record(path, Job)
            if job is not None:
                yield job

    def load_job(self, name: str) -> Job | None:
        """Loads a job; returns None if there is no job of that name."""
        return _load_record(self._job_path(name), Job)

    def save_job(self, job: Job) -> None:
        """Saves a job; one of the same name is replaced and its state is kept."""
        atomic.write_text(self._job_path(job.name), job.model_dump_json(indent=1))

    def remove_job(self, name: str) -> None:
        """Removes a job and its state; raises InputError if the job does not exist."""
        if self.load_job(name) is None:
            names = ", ".join(job.name for job in self.load_jobs()) or "none"
            raise InputError(
                f"Expected the name of a scheduled job; {name!r} is not one of: {names}. Correct the name.", where=name
            )
        self._job_path(name).unlink()
        self._state_path(name).unlink(missing_ok=True)

    def load_state(self, name: str) -> JobState:
        """Loads the state of a job; returns an empty state if there is none."""
        return _load_record(self._state_path(name), JobState) or JobState()

    def save_state(self, name: str, state: JobState) -> None:
        """Saves the state of a job."""
        atomic.write_text(self._state_path(name), state.model_dump_json(indent=1))

    def remove_old_queue(self) -> bool:
        """Removes the queue of version 0.1, whose calls are in the states, too; returns whether there was one."""
        paths = list(self.folder.glob("huey.db*"))
        for path in paths:
            path.unlink()
        return bool(paths)

    def save_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Saves the heartbeat of the scheduler."""
        atomic.write_text(self.folder / "heartbeat.json", heartbeat.model_dump_json())

    def load_heartbeat(self) -> Heartbeat | None:
        """Loads the last heartbeat; returns None if there is none."""
        return _load_record(self.folder / "heartbeat.json", Heartbeat)

    def _job_path(self, name: str) -> Path:
        return self.folder / "jobs" / f"{_validate_job_name(name)}.json"

    def _state_path(self, name: str) -> Path:
        return self.folder / "states" / f"{_validate_job_name(name)}.json"


_RECORD_NAMES: dict[type[ScheduleRecord], str] = {Job: "job", JobState: "state", Heartbeat: "heartbeat"}


def _load_record(path: Path, record_type: type[RecordT]) -> RecordT | None:
    try:
        return record_type.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InputError(
            f"Expected a {_RECORD_NAMES[record_type]} of a schedule in {path}; {error.errors()[0]['msg']}. Remove the file and "
            "schedule the job again.",
            where=str(path),
        ) from error


def _validate_job_name(name: str) -> str:
    if not _JOB_NAME_PATTERN.fullmatch(name):
        raise InputError(
            f"Expected the name of a job; found {name!r}. Use letters, digits, '_', '-' and '.'.", where=name
        )
    return name

"""What is scheduled and how it went: small files below the root, each of one writer, whole or not there."""

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
    """Kept as JSON; stamps in UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Job(ScheduleRecord):
    """A command that a schedule calls.

    Attributes:
        name: Of the job: its model's.
        cron: Five fields of cron.
        zone: The time zone of its clock.
        words: The command as after `forecaster`, without the root.
        folder: Where it runs.
        retries: How often one that failed is tried again.
        retry_delay: Seconds until it is; twice as many each further time.
        since: When it was scheduled; what it would have been called for before is not missed.
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
    """One run of a job: of which call, when, which attempt, how it ended, and the last thing it said."""

    call: datetime
    started: datetime
    ended: datetime
    attempt: int
    code: int
    outcome: str
    said: str


class JobState(ScheduleRecord):
    """Where a job is.

    Attributes:
        considered: Calls up to then are decided on.
        waiting: The call that is queued, under way, or to be tried again.
        running: The process that is at it.
        last: How the last run ended.
        refused: How many calls came while the one before was still at work.
        refusal: What was said of the last of them.
    """

    considered: datetime | None = None
    waiting: datetime | None = None
    running: int | None = None
    last: JobRun | None = None
    refused: int = 0
    refusal: str | None = None


class Heartbeat(ScheduleRecord):
    """That a scheduler lives."""

    pid: int
    at: datetime


class JobStore:
    """The files of a root's schedule."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def queue_path(self) -> Path:
        """Huey's database."""
        return self.folder / "huey.db"

    @property
    def lock_path(self) -> Path:
        """Held by the scheduler."""
        return self.folder / "scheduler.lock"

    def job_lock_path(self, name: str) -> Path:
        """Held by the process that runs a job, though the scheduler be gone."""
        return self.folder / f"{_validate_job_name(name)}.lock"

    def job_log_path(self, name: str) -> Path:
        """What its runs print."""
        return self.folder / f"{_validate_job_name(name)}.log"

    def load_jobs(self) -> Iterator[Job]:
        """All, by name."""
        for path in sorted((self.folder / "jobs").glob("[!.]*.json")):
            job = _load_record(path, Job)
            if job is not None:
                yield job

    def load_job(self, name: str) -> Job | None:
        """One, if there is one of that name."""
        return _load_record(self._job_path(name), Job)

    def save_job(self, job: Job) -> None:
        """Adds a job, in place of one of its name; its history stays."""
        atomic.write_text(self._job_path(job.name), job.model_dump_json(indent=1))

    def remove_job(self, name: str) -> None:
        """Takes a job away, and what was known of it; raises InputError where there is none."""
        if self.load_job(name) is None:
            known = ", ".join(job.name for job in self.load_jobs()) or "none"
            raise InputError(
                f"Expected a job that is scheduled; {name!r} is not among: {known}. Correct it.", where=name
            )
        self._job_path(name).unlink()
        self._state_path(name).unlink(missing_ok=True)

    def load_state(self, name: str) -> JobState:
        """What is known of a job."""
        return _load_record(self._state_path(name), JobState) or JobState()

    def save_state(self, name: str, state: JobState) -> None:
        """Keeps it."""
        atomic.write_text(self._state_path(name), state.model_dump_json(indent=1))

    def save_heartbeat(self, heartbeat: Heartbeat) -> None:
        """A sign of life."""
        atomic.write_text(self.folder / "heartbeat.json", heartbeat.model_dump_json())

    def load_heartbeat(self) -> Heartbeat | None:
        """The last sign of life."""
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
            f"Expected a {_RECORD_NAMES[record_type]} of a schedule in {path}; {error.errors()[0]['msg']}. Remove the file, and "
            "schedule it anew.",
            where=str(path),
        ) from error


def _validate_job_name(name: str) -> str:
    if not _JOB_NAME_PATTERN.fullmatch(name):
        raise InputError(
            f"Expected the name of a job; found {name!r}. Use letters, digits, '_', '-' and '.'.", where=name
        )
    return name

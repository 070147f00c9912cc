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

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
Kept = TypeVar("Kept", bound="Record")


class Record(BaseModel):
    """Kept as JSON; stamps in UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Job(Record):
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


class Run(Record):
    """One run of a job: of which call, when, which attempt, how it ended, and the last thing it said."""

    call: datetime
    started: datetime
    ended: datetime
    attempt: int
    code: int
    outcome: str
    said: str


class State(Record):
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
    last: Run | None = None
    refused: int = 0
    refusal: str | None = None


class Beat(Record):
    """That a scheduler lives."""

    pid: int
    at: datetime


class Book:
    """The files of a root's schedule."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def queue(self) -> Path:
        """Huey's database."""
        return self.folder / "huey.db"

    @property
    def lock(self) -> Path:
        """Held by the scheduler."""
        return self.folder / "scheduler.lock"

    def lock_of(self, name: str) -> Path:
        """Held by the process that runs a job, though the scheduler be gone."""
        return self.folder / f"{_checked(name)}.lock"

    def log_of(self, name: str) -> Path:
        """What its runs print."""
        return self.folder / f"{_checked(name)}.log"

    def jobs(self) -> Iterator[Job]:
        """All, by name."""
        for path in sorted((self.folder / "jobs").glob("[!.]*.json")):
            job = _read(path, Job)
            if job is not None:
                yield job

    def job(self, name: str) -> Job | None:
        """One, if there is one of that name."""
        return _read(self._job(name), Job)

    def keep(self, job: Job) -> None:
        """Adds a job, in place of one of its name; its history stays."""
        atomic.write_text(self._job(job.name), job.model_dump_json(indent=1))

    def remove(self, name: str) -> None:
        """Takes a job away, and what was known of it; raises InputError where there is none."""
        if self.job(name) is None:
            known = ", ".join(job.name for job in self.jobs()) or "none"
            raise InputError(
                f"Expected a job that is scheduled; {name!r} is not among: {known}. Correct it.", where=name
            )
        self._job(name).unlink()
        self._state(name).unlink(missing_ok=True)

    def state(self, name: str) -> State:
        """What is known of a job."""
        return _read(self._state(name), State) or State()

    def note(self, name: str, state: State) -> None:
        """Keeps it."""
        atomic.write_text(self._state(name), state.model_dump_json(indent=1))

    def beat(self, beat: Beat) -> None:
        """A sign of life."""
        atomic.write_text(self.folder / "heartbeat.json", beat.model_dump_json())

    def last_beat(self) -> Beat | None:
        """The last sign of life."""
        return _read(self.folder / "heartbeat.json", Beat)

    def _job(self, name: str) -> Path:
        return self.folder / "jobs" / f"{_checked(name)}.json"

    def _state(self, name: str) -> Path:
        return self.folder / "states" / f"{_checked(name)}.json"


def _read(path: Path, kind: type[Kept]) -> Kept | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InputError(
            f"Expected a {kind.__name__.lower()} of a schedule in {path}; {error.errors()[0]['msg']}. Remove the file, and "
            "schedule it anew.",
            where=str(path),
        ) from error


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"Expected the name of a job; found {name!r}. Use letters, digits, '_', '-' and '.'.", where=name
        )
    return name

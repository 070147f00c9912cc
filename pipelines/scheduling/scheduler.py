"""The scheduler: runs due jobs one at a time, each in a process of its own; several missed fire times give one run."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO

from forecaster.errors import ForecasterError
from forecaster.storage.failpoints import fail_point
from forecaster.storage.locks import open_locked
from pipelines.redaction import redact
from pipelines.scheduling.cron import CronSchedule
from pipelines.scheduling.jobs import Heartbeat, Job, JobRun, JobState, JobStore
from pipelines.settings import Root

OUTCOMES_BY_EXIT_CODE = {
    0: "done",
    2: "wrong input",
    3: "refused by the gate",
}  # any other code is a failure and is retried
CLI_COMMAND = (sys.executable, "-m", "pipelines.cli")
_POLL_INTERVAL_S = 1.0
_LOCKED_RETRY_DELAY = timedelta(seconds=30)
_EXIT_NOT_STARTED = 127  # the code that shells use
_TERMINATE_TIMEOUT_S = 60.0  # from the termination of a process until it is killed
_MAX_LOG_BYTES = 5_000_000  # size at which a log is rotated; one old log is kept
_log = logging.getLogger(__name__)


class SchedulerRuns(ForecasterError):
    """Another scheduler is running on the same root."""


def _now() -> datetime:
    return datetime.now(UTC)


class StopRequest:
    """Whether the scheduler was asked to stop, by a thread or by a handler of signals.

    A handler runs in the main thread and may interrupt it anywhere, also in another handler or while it waits. The lock of
    `threading.Event` would then block for ever; `SimpleQueue.put` may interrupt itself and `get`.
    """

    def __init__(self) -> None:
        self._requests: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Asks the scheduler to stop."""
        self._requests.put(None)

    def is_set(self) -> bool:
        """Whether there was a request."""
        return not self._requests.empty()

    def wait(self, timeout_s: float) -> bool:
        """Waits for a request, at most for a time; returns whether there is one."""
        with suppress(Empty):
            self._requests.get(timeout=timeout_s)
            self._requests.put(None)
        return self.is_set()


class Scheduler:
    """Checks every second for due jobs, and runs them one after the other.

    Recovery after a kill: jobs and their states are files, and nothing else is recorded. A fire time that is queued, running
    or waiting for a retry is in the state until it has ended, and thus runs again after the next start. A run that outlives its
    scheduler holds the lock of its job.
    """

    def __init__(self, root: Root, *, command: Sequence[str] = CLI_COMMAND, now: Callable[[], datetime] = _now) -> None:
        self.stop_request = StopRequest()
        self.store = JobStore(root.schedule)
        self._root = root
        self._command = command
        self._now = now

    def run_until_stopped(self) -> None:
        """Runs until `stop_request` is set; the current run is then terminated, and is repeated at the next start.

        Raises SchedulerRuns.
        """
        with self._hold_scheduler_lock():
            self.requeue_interrupted()
            while not self.stop_request.is_set():
                self._poll()
                try:
                    is_idle = not self.run_next()
                except Exception:  # of any kind: the scheduler continues
                    _log.exception("A job could not be run.")
                    is_idle = True
                if is_idle:
                    self.stop_request.wait(_POLL_INTERVAL_S)

    def requeue_interrupted(self) -> None:
        """Marks the runs that a kill interrupted as not running; `run_next` repeats them."""
        for job in self.store.load_jobs():
            state = self.store.load_state(job.name)
            if state.running is not None:
                self._update_state(job.name, running=None)
            if state.waiting is not None:
                _log.info("%s: the run of %s is still due", job.name, _format_time(state.waiting))
        if self.store.remove_old_queue():
            _log.info("The queue of version 0.1 (huey.db) was removed; its calls are in the states of the jobs.")

    def queue_due_jobs(self) -> None:
        """Queues every due job. Missed fire times give one run; a fire time is skipped while the previous run is active."""
        now = self._now()
        for job in self.store.load_jobs():
            state = self.store.load_state(job.name)
            due_at = CronSchedule(job.cron, job.zone).last_between(max(job.since, state.considered or job.since), now)
            if due_at is None:
                continue
            if state.waiting is None:
                self._update_state(job.name, considered=now, waiting=due_at, failures=0, retry_at=None)
                fail_point("schedule.noted")
                continue
            status = "is still running" if state.running else "is still queued or waiting for a retry"
            refusal = f"the run of {_format_time(due_at)} was skipped: that of {_format_time(state.waiting)} {status}"
            _log.warning("%s: %s", job.name, refusal)
            self._update_state(job.name, considered=now, refused=state.refused + 1, refusal=refusal)

    def run_next(self) -> bool:
        """Runs the job that has been ready for longest, to its end; returns False if none is ready."""
        ready: list[tuple[datetime, str, Job, datetime, int]] = []
        for job in self.store.load_jobs():
            state = self.store.load_state(job.name)
            if state.waiting is not None and (state.retry_at is None or state.retry_at <= self._now()):
                ready.append((state.retry_at or state.waiting, job.name, job, state.waiting, state.failures + 1))
        if not ready:
            return False
        _, _, job, due_at, attempt = min(ready)
        self._run(job, due_at, attempt)
        return True

    def _poll(self) -> None:
        try:
            self.store.save_heartbeat(Heartbeat(pid=os.getpid(), at=self._now()))
            self.queue_due_jobs()
        except Exception:  # of any kind, for example a full disk: the next poll may succeed
            _log.exception("The schedule could not be checked.")

    def _run(self, job: Job, due_at: datetime, attempt: int) -> None:
        run = None
        try:
            fail_point("schedule.taken")
            try:
                lock = open_locked(self.store.job_lock_path(job.name))
            except BlockingIOError:
                refusal = f"the run of {_format_time(due_at)} waits: a run that outlived its scheduler is still active"
                _log.warning("%s: %s", job.name, refusal)
                self._update_state(job.name, refusal=refusal, retry_at=self._now() + _LOCKED_RETRY_DELAY)
                return
            with lock:
                run = self._execute(job, due_at, attempt, lock)
        except Exception:  # of any kind, for example a log that cannot be written: a failure like that of the command
            _log.exception("%s: the run of %s failed (attempt %d)", job.name, _format_time(due_at), attempt)
        else:
            _log.info("%s: %s (exit code %d, attempt %d): %s", job.name, run.outcome, run.code, attempt, run.said)
        self._record_end(job, due_at, attempt, run)

    def _record_end(self, job: Job, due_at: datetime, attempt: int, run: JobRun | None) -> None:
        changes: dict[str, Any] = {"running": None} if run is None else {"running": None, "last": run}
        is_interrupted = run is not None and run.outcome == "interrupted"
        has_failed = run is None or run.code not in OUTCOMES_BY_EXIT_CODE
        # Another call stands in the state if the job was removed during the run and added again.
        if self.store.load_state(job.name).waiting == due_at and not is_interrupted:
            if has_failed and attempt <= job.retries:
                delay = timedelta(seconds=job.retry_delay * 2 ** (attempt - 1))
                changes |= {"failures": attempt, "retry_at": self._now() + delay}
            else:
                changes |= {"waiting": None, "failures": 0, "retry_at": None}
        self._update_state(job.name, **changes)

    def _execute(self, job: Job, due_at: datetime, attempt: int, lock_file: BinaryIO) -> JobRun:
        started, log = self._now(), self.store.job_log_path(job.name)
        if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        command = [*self._command, *job.words, f"--root={self._root.path}"]
        with log.open("ab") as output:
            offset = output.tell()
            output.write(f"--- {_format_time(started)}, run of {_format_time(due_at)}, attempt {attempt}\n".encode())
            output.flush()
            try:
                process = subprocess.Popen(  # noqa: S603  # our own command, with the arguments of the user
                    command,
                    cwd=job.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # the scheduler passes an interrupt at the terminal on
                    pass_fds=[lock_file.fileno()],
                )
            except OSError as error:  # for example, its folder does not exist
                output.write(f"could not be started: {error}\n".encode())
                output.flush()
                code = _EXIT_NOT_STARTED
            else:
                self._update_state(job.name, running=process.pid)
                code = self._wait_for_process(process)
                fail_point("schedule.ran")
        outcome = OUTCOMES_BY_EXIT_CODE.get(code, "failed" if code > 0 else f"killed by signal {-code}")
        if self.stop_request.is_set() and code not in OUTCOMES_BY_EXIT_CODE:
            outcome = "interrupted"
        last_line = _read_last_line(log, offset)
        return JobRun(
            call=due_at, started=started, ended=self._now(), attempt=attempt, code=code, outcome=outcome, said=last_line
        )

    def _wait_for_process(self, process: subprocess.Popen[bytes]) -> int:
        while not self.stop_request.is_set():
            try:
                return process.wait(_POLL_INTERVAL_S)
            except subprocess.TimeoutExpired:
                self._poll()
        process.terminate()  # a training then closes its MLflow run and keeps its checkpoint
        try:
            return process.wait(_TERMINATE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _update_state(self, name: str, **changes: Any) -> None:
        fields = dict(self.store.load_state(name)) | changes
        self.store.save_state(name, JobState(**fields))

    @contextmanager
    def _hold_scheduler_lock(self) -> Iterator[None]:
        try:
            lock = open_locked(self.store.lock_path)
        except BlockingIOError as error:
            heartbeat = self.store.load_heartbeat()
            owner = "another process" if heartbeat is None else f"process {heartbeat.pid}"
            raise SchedulerRuns(
                f"Expected no other scheduler on {self._root.path}; {owner} is running. Stop it, or use another --root.",
                where="root",
            ) from error
        with lock:
            yield


def _read_last_line(log: Path, offset: int) -> str:
    with log.open("rb") as file:
        file.seek(max(offset, log.stat().st_size - 4096))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return redact(lines[-1])[:500] if lines else ""


def _format_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%MZ")

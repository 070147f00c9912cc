"""The scheduler: runs due jobs one at a time, each in a process of its own; several missed fire times give one run."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from forecaster.errors import ForecasterError, MissingPackage
from forecaster.storage.failpoints import fail_point
from pipelines.redaction import redact
from pipelines.scheduling.cron import CronSchedule
from pipelines.scheduling.jobs import Heartbeat, Job, JobRun, JobState, JobStore
from pipelines.settings import Root

if TYPE_CHECKING:
    from huey import SqliteHuey

OUTCOMES_BY_EXIT_CODE = {
    0: "done",
    2: "wrong input",
    3: "refused by the gate",
}  # any other code is a failure and is retried
CLI_COMMAND = (sys.executable, "-m", "pipelines.cli")
_HEARTBEAT_INTERVAL_S, _POLL_INTERVAL_S, _LOCKED_RETRY_S = 1.0, 0.2, 30
_EXIT_NOT_STARTED = 127  # the code that shells use
_TERMINATE_TIMEOUT_S = 60.0  # from the termination of a process until it is killed
_MAX_LOG_BYTES = 5_000_000  # size at which a log is rotated; one old log is kept
_log = logging.getLogger(__name__)


class SchedulerRuns(ForecasterError):
    """Another scheduler is running on the same root."""


def _now() -> datetime:
    return datetime.now(UTC)


class Scheduler:
    """Checks every second for due jobs, queues them in huey's SQLite database, and runs what is queued.

    Recovery after a kill: jobs and their states are files. A fire time that is queued, running or waiting for a retry is in
    the state until it has ended, and is queued again at the next start. A run that outlives its scheduler holds the lock of
    its job.
    """

    def __init__(self, root: Root, *, command: Sequence[str] = CLI_COMMAND, now: Callable[[], datetime] = _now) -> None:
        self.stop_event = threading.Event()
        self.store = JobStore(root.schedule)
        self._root = root
        self._command = command
        self._now = now
        self._state_lock = threading.Lock()  # two threads update states
        self._queue = _open_queue(self.store.queue_path)
        self._task: Any = self._queue.task(name="run", context=True)(self._run_queued_job)
        # A queue written by version 0.1 refers to the task by the module that defined it then.
        self._queue._registry._registry["pipelines.schedule.run"] = self._task.task_class

    def run_until_stopped(self) -> None:
        """Runs until `stop_event` is set; the current run is then terminated, and is repeated at the next start.

        Raises SchedulerRuns.
        """
        with self._hold_scheduler_lock():
            self.requeue_interrupted()
            worker = threading.Thread(target=self._run_worker, name="worker")
            worker.start()
            try:
                while not self.stop_event.is_set():
                    self._poll()
                    self.stop_event.wait(_HEARTBEAT_INTERVAL_S)
            finally:
                self.stop_event.set()
                worker.join()

    def requeue_interrupted(self) -> None:
        """Queues the fire times that a kill removed from the queue."""
        queued = {task.args[0] for task in (*self._queue.pending(), *self._queue.scheduled())}
        for job in self.store.load_jobs():
            self._update_state(job.name, running=None)
            waiting = self.store.load_state(job.name).waiting
            if waiting is not None and job.name not in queued:
                _log.info("%s: the run of %s was interrupted; it is repeated", job.name, _format_time(waiting))
                self._enqueue(job, waiting)

    def queue_due_jobs(self) -> None:
        """Queues every due job. Missed fire times give one run; a fire time is skipped while the previous run is active."""
        now = self._now()
        for job in self.store.load_jobs():
            state = self.store.load_state(job.name)
            due_at = CronSchedule(job.cron, job.zone).last_between(max(job.since, state.considered or job.since), now)
            if due_at is None:
                continue
            if state.waiting is None:
                self._update_state(job.name, considered=now, waiting=due_at)
                fail_point("schedule.noted")
                self._enqueue(job, due_at)
                fail_point("schedule.queued")
                continue
            status = "is still running" if state.running else "is still queued or waiting for a retry"
            refusal = f"the run of {_format_time(due_at)} was skipped: that of {_format_time(state.waiting)} {status}"
            _log.warning("%s: %s", job.name, refusal)
            self._update_state(job.name, considered=now, refused=state.refused + 1, refusal=refusal)

    def run_next(self) -> bool:
        """Runs the next queued task; returns False if the queue is empty."""
        task = self._queue.dequeue()
        if task is not None:
            self._queue.execute(task)
        return task is not None

    def _poll(self) -> None:
        try:
            self.store.save_heartbeat(Heartbeat(pid=os.getpid(), at=self._now()))
            for task in self._queue.read_schedule():
                self._queue.enqueue(task)
            self.queue_due_jobs()
        except Exception:  # of any kind, for example a full disk: the next poll may succeed
            _log.exception("The schedule could not be checked.")

    def _run_worker(self) -> None:
        while not self.stop_event.is_set():
            try:
                if not self.run_next():
                    self.stop_event.wait(_POLL_INTERVAL_S)
            except Exception:  # of any kind: the scheduler continues
                _log.exception("A job could not be run.")
                self.stop_event.wait(_HEARTBEAT_INTERVAL_S)

    def _enqueue(self, job: Job, due_at: datetime) -> None:
        retry = {"retries": job.retries, "retry_delay": job.retry_delay, "retry_backoff": 2}
        self._queue.enqueue(self._task.s(job.name, due_at.isoformat(), **retry))

    def _run_queued_job(self, name: str, due_at_text: str, task: Any = None) -> None:
        """The task that huey executes. It requests a retry by raising an exception of huey."""
        from huey.exceptions import CancelExecution, RetryTask

        fail_point("schedule.taken")
        job, due_at = self.store.load_job(name), datetime.fromisoformat(due_at_text)
        if job is None:
            return
        with self.store.job_lock_path(name).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                refusal = f"the run of {_format_time(due_at)} waits: a run that outlived its scheduler is still active"
                _log.warning("%s: %s", name, refusal)
                self._update_state(name, refusal=refusal)
                raise RetryTask(delay=_LOCKED_RETRY_S) from None
            attempt = job.retries - int(task.retries) + 1
            try:
                run = self._execute(job, due_at, attempt, lock)
            except Exception:  # of any kind; huey logs it
                self._update_state(name, running=None, **({} if task.retries else {"waiting": None}))
                raise
        failed = run.code not in OUTCOMES_BY_EXIT_CODE and not self.stop_event.is_set()
        should_retry = failed and task.retries > 0
        is_finished = not should_retry and run.outcome != "interrupted"
        self._update_state(name, last=run, running=None, **({"waiting": None} if is_finished else {}))
        _log.info("%s: %s (exit code %d, attempt %d): %s", name, run.outcome, run.code, attempt, run.said)
        if should_retry:
            raise CancelExecution("to be retried")

    def _execute(self, job: Job, due_at: datetime, attempt: int, lock_file: IO[str]) -> JobRun:
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
        if self.stop_event.is_set() and code not in OUTCOMES_BY_EXIT_CODE:
            outcome = "interrupted"
        last_line = _read_last_line(log, offset)
        return JobRun(
            call=due_at, started=started, ended=self._now(), attempt=attempt, code=code, outcome=outcome, said=last_line
        )

    def _wait_for_process(self, process: subprocess.Popen[bytes]) -> int:
        while not self.stop_event.is_set():
            try:
                return process.wait(_POLL_INTERVAL_S)
            except subprocess.TimeoutExpired:
                continue
        process.terminate()  # a training then closes its MLflow run and keeps its checkpoint
        try:
            return process.wait(_TERMINATE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _update_state(self, name: str, **changes: Any) -> None:
        with self._state_lock:
            fields = dict(self.store.load_state(name)) | changes
            self.store.save_state(name, JobState(**fields))

    @contextmanager
    def _hold_scheduler_lock(self) -> Iterator[None]:
        self.store.folder.mkdir(parents=True, exist_ok=True)
        with self.store.lock_path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                heartbeat = self.store.load_heartbeat()
                owner = "another process" if heartbeat is None else f"process {heartbeat.pid}"
                raise SchedulerRuns(
                    f"Expected no other scheduler on {self._root.path}; {owner} is running. Stop it, or use another --root.",
                    where="root",
                ) from error
            yield


def _open_queue(path: Path) -> SqliteHuey:
    try:
        from huey import SqliteHuey
    except ImportError as error:
        raise MissingPackage(
            "Expected the package 'huey', which schedules need; found none. Install forecaster[schedule].",
            where="schedule",
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    return SqliteHuey("forecaster", filename=str(path), fsync=True, results=False)


def _read_last_line(log: Path, offset: int) -> str:
    with log.open("rb") as file:
        file.seek(max(offset, log.stat().st_size - 4096))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return redact(lines[-1])[:500] if lines else ""


def _format_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%MZ")

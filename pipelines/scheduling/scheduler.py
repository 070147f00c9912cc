"""The scheduler: calls what is due, one at a time, each in a process of its own; what was missed is called once."""

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
}  # any other code failed, and is tried again
CLI_COMMAND = (sys.executable, "-m", "pipelines.cli")
_HEARTBEAT_INTERVAL_S, _POLL_INTERVAL_S, _LOCKED_RETRY_S = 1.0, 0.2, 30
_EXIT_NOT_STARTED = 127  # as shells say it
_TERMINATE_TIMEOUT_S = 60.0  # until a process that was told to end is killed
_MAX_LOG_BYTES = 5_000_000  # bytes; then it begins anew, and the one before is kept
_log = logging.getLogger(__name__)


class SchedulerRuns(ForecasterError):
    """Another scheduler is at work on the same root."""


def _now() -> datetime:
    return datetime.now(UTC)


class Scheduler:
    """Looks every second for jobs that are due, queues them in huey's SQLite, and runs what is queued.

    What survives a kill: a job and its state are files; a call that is queued, under way or to be tried again stands in the
    state until it has ended, and is queued anew at the next start. A run that outlives its scheduler holds its job's lock.
    """

    def __init__(self, root: Root, *, command: Sequence[str] = CLI_COMMAND, now: Callable[[], datetime] = _now) -> None:
        self.stop_event = threading.Event()
        self.store = JobStore(root.schedule)
        self._root = root
        self._command = command
        self._now = now
        self._state_lock = threading.Lock()  # two threads change states
        self._queue = _open_queue(self.store.queue_path)
        self._task: Any = self._queue.task(name="run", context=True)(self._run_queued_job)
        # A queue written by version 0.1 names the task by the module in which it was defined then.
        self._queue._registry._registry["pipelines.schedule.run"] = self._task.task_class

    def run_until_stopped(self) -> None:
        """Works until `stop_event` is set; a run under way is then told to end, and is done again at the next start.

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
        """Queues what a kill took out of the queue."""
        queued = {task.args[0] for task in (*self._queue.pending(), *self._queue.scheduled())}
        for job in self.store.load_jobs():
            self._update_state(job.name, running=None)
            waiting = self.store.load_state(job.name).waiting
            if waiting is not None and job.name not in queued:
                _log.info("%s: the call of %s was cut short; it is run again", job.name, _format_time(waiting))
                self._enqueue(job, waiting)

    def queue_due_jobs(self) -> None:
        """Queues every job that is due. Calls that were missed are one; a call while the last one is at work is refused."""
        now = self._now()
        for job in self.store.load_jobs():
            state = self.store.load_state(job.name)
            call = CronSchedule(job.cron, job.zone).last_between(max(job.since, state.considered or job.since), now)
            if call is None:
                continue
            if state.waiting is None:
                self._update_state(job.name, considered=now, waiting=call)
                fail_point("schedule.noted")
                self._enqueue(job, call)
                fail_point("schedule.queued")
                continue
            at_work = "is still running" if state.running else "still waits, or is to be tried again"
            refusal = f"the call of {_format_time(call)} was refused: that of {_format_time(state.waiting)} {at_work}"
            _log.warning("%s: %s", job.name, refusal)
            self._update_state(job.name, considered=now, refused=state.refused + 1, refusal=refusal)

    def run_next(self) -> bool:
        """Runs one thing that is queued, if there is one."""
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
        except Exception:  # of any kind, a full disk say: the next look may go well
            _log.exception("The schedule could not be looked at.")

    def _run_worker(self) -> None:
        while not self.stop_event.is_set():
            try:
                if not self.run_next():
                    self.stop_event.wait(_POLL_INTERVAL_S)
            except Exception:  # of any kind: the schedule goes on
                _log.exception("A job could not be run.")
                self.stop_event.wait(_HEARTBEAT_INTERVAL_S)

    def _enqueue(self, job: Job, due_at: datetime) -> None:
        retry = {"retries": job.retries, "retry_delay": job.retry_delay, "retry_backoff": 2}
        self._queue.enqueue(self._task.s(job.name, due_at.isoformat(), **retry))

    def _run_queued_job(self, name: str, due_at_text: str, task: Any = None) -> None:
        """What huey executes. It asks huey for another attempt by an exception of huey's."""
        from huey.exceptions import CancelExecution, RetryTask

        fail_point("schedule.taken")
        job, call = self.store.load_job(name), datetime.fromisoformat(due_at_text)
        if job is None:
            return
        with self.store.job_lock_path(name).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                refusal = f"the call of {_format_time(call)} waits: a run that outlived its scheduler is still at work"
                _log.warning("%s: %s", name, refusal)
                self._update_state(name, refusal=refusal)
                raise RetryTask(delay=_LOCKED_RETRY_S) from None
            attempt = job.retries - int(task.retries) + 1
            try:
                run = self._execute(job, call, attempt, lock)
            except Exception:  # of any kind; huey tells it in the log
                self._update_state(name, running=None, **({} if task.retries else {"waiting": None}))
                raise
        failed = run.code not in OUTCOMES_BY_EXIT_CODE and not self.stop_event.is_set()
        again = failed and task.retries > 0
        over = not again and run.outcome != "interrupted"
        self._update_state(name, last=run, running=None, **({"waiting": None} if over else {}))
        _log.info("%s: %s (exit code %d, attempt %d): %s", name, run.outcome, run.code, attempt, run.said)
        if again:
            raise CancelExecution("to be tried again")

    def _execute(self, job: Job, due_at: datetime, attempt: int, lock_file: IO[str]) -> JobRun:
        started, log = self._now(), self.store.job_log_path(job.name)
        if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        words = [*self._command, *job.words, f"--root={self._root.path}"]
        with log.open("ab") as output:
            begin = output.tell()
            output.write(f"--- {_format_time(started)}, call of {_format_time(due_at)}, attempt {attempt}\n".encode())
            output.flush()
            try:
                process = subprocess.Popen(  # noqa: S603  # our own command, as it was typed
                    words,
                    cwd=job.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # an interrupt at the terminal is the scheduler's to pass on
                    pass_fds=[lock_file.fileno()],
                )
            except OSError as error:  # its folder is gone, say
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
        said = _read_last_line(log, begin)
        return JobRun(
            call=due_at, started=started, ended=self._now(), attempt=attempt, code=code, outcome=outcome, said=said
        )

    def _wait_for_process(self, process: subprocess.Popen[bytes]) -> int:
        while not self.stop_event.is_set():
            try:
                return process.wait(_POLL_INTERVAL_S)
            except subprocess.TimeoutExpired:
                continue
        process.terminate()  # a training then closes its run, and keeps its checkpoint
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
                beat = self.store.load_heartbeat()
                who = "another process" if beat is None else f"process {beat.pid}"
                raise SchedulerRuns(
                    f"Expected no scheduler on {self._root.path}; {who} is one. End it first, or name another --root.",
                    where="root",
                ) from error
            yield


def _open_queue(path: Path) -> SqliteHuey:
    try:
        from huey import SqliteHuey
    except ImportError as error:
        raise MissingPackage(
            "Expected the package 'huey', which keeps schedules; found none. Install forecaster[schedule].",
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

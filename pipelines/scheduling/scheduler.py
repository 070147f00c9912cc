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
from forecaster.storage.failpoints import point
from pipelines.redaction import redacted
from pipelines.scheduling.cron import Cron
from pipelines.scheduling.jobs import Beat, Book, Job, Run, State
from pipelines.settings import Root

if TYPE_CHECKING:
    from huey import SqliteHuey

OUTCOMES = {0: "done", 2: "wrong input", 3: "refused by the gate"}  # any other code failed, and is tried again
PROGRAM = (sys.executable, "-m", "pipelines.cli")
_BEAT_S, _LOOK_S, _ELSEWHERE_S = 1.0, 0.2, 30
_NOT_STARTED = 127  # as shells say it
_PATIENCE_S = 60.0  # until a process that was told to end is killed
_LONGEST_LOG = 5_000_000  # bytes; then it begins anew, and the one before is kept
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

    def __init__(self, root: Root, *, program: Sequence[str] = PROGRAM, now: Callable[[], datetime] = _now) -> None:
        self.stop = threading.Event()
        self.book = Book(root.schedule)
        self._root = root
        self._program = program
        self._now = now
        self._noting = threading.Lock()  # two threads change states
        self._queue = _open(self.book.queue)
        self._task: Any = self._queue.task(name="run", context=True)(self._run)

    def serve(self) -> None:
        """Works until `stop` is set; a run under way is then told to end, and is done again at the next start.

        Raises SchedulerRuns.
        """
        with self._alone():
            self.recover()
            worker = threading.Thread(target=self._work, name="worker")
            worker.start()
            try:
                while not self.stop.is_set():
                    self._look()
                    self.stop.wait(_BEAT_S)
            finally:
                self.stop.set()
                worker.join()

    def recover(self) -> None:
        """Queues what a kill took out of the queue."""
        queued = {task.args[0] for task in (*self._queue.pending(), *self._queue.scheduled())}
        for job in self.book.jobs():
            self._note(job.name, running=None)
            waiting = self.book.state(job.name).waiting
            if waiting is not None and job.name not in queued:
                _log.info("%s: the call of %s was cut short; it is run again", job.name, _told(waiting))
                self._enqueue(job, waiting)

    def consider(self) -> None:
        """Queues every job that is due. Calls that were missed are one; a call while the last one is at work is refused."""
        now = self._now()
        for job in self.book.jobs():
            state = self.book.state(job.name)
            call = Cron(job.cron, job.zone).latest(max(job.since, state.considered or job.since), now)
            if call is None:
                continue
            if state.waiting is None:
                self._note(job.name, considered=now, waiting=call)
                point("schedule.noted")
                self._enqueue(job, call)
                point("schedule.queued")
                continue
            at_work = "is still running" if state.running else "still waits, or is to be tried again"
            refusal = f"the call of {_told(call)} was refused: that of {_told(state.waiting)} {at_work}"
            _log.warning("%s: %s", job.name, refusal)
            self._note(job.name, considered=now, refused=state.refused + 1, refusal=refusal)

    def turn(self) -> bool:
        """Runs one thing that is queued, if there is one."""
        task = self._queue.dequeue()
        if task is not None:
            self._queue.execute(task)
        return task is not None

    def _look(self) -> None:
        try:
            self.book.beat(Beat(pid=os.getpid(), at=self._now()))
            for task in self._queue.read_schedule():
                self._queue.enqueue(task)
            self.consider()
        except Exception:  # of any kind, a full disk say: the next look may go well
            _log.exception("The schedule could not be looked at.")

    def _work(self) -> None:
        while not self.stop.is_set():
            try:
                if not self.turn():
                    self.stop.wait(_LOOK_S)
            except Exception:  # of any kind: the schedule goes on
                _log.exception("A job could not be run.")
                self.stop.wait(_BEAT_S)

    def _enqueue(self, job: Job, call: datetime) -> None:
        retry = {"retries": job.retries, "retry_delay": job.retry_delay, "retry_backoff": 2}
        self._queue.enqueue(self._task.s(job.name, call.isoformat(), **retry))

    def _run(self, name: str, called: str, task: Any = None) -> None:
        """What huey executes. It asks huey for another attempt by an exception of huey's."""
        from huey.exceptions import CancelExecution, RetryTask

        point("schedule.taken")
        job, call = self.book.job(name), datetime.fromisoformat(called)
        if job is None:
            return
        with self.book.lock_of(name).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                refusal = f"the call of {_told(call)} waits: a run that outlived its scheduler is still at work"
                _log.warning("%s: %s", name, refusal)
                self._note(name, refusal=refusal)
                raise RetryTask(delay=_ELSEWHERE_S) from None
            attempt = job.retries - int(task.retries) + 1
            try:
                run = self._perform(job, call, attempt, lock)
            except Exception:  # of any kind; huey tells it in the log
                self._note(name, running=None, **({} if task.retries else {"waiting": None}))
                raise
        failed = run.code not in OUTCOMES and not self.stop.is_set()
        again = failed and task.retries > 0
        over = not again and run.outcome != "interrupted"
        self._note(name, last=run, running=None, **({"waiting": None} if over else {}))
        _log.info("%s: %s (exit code %d, attempt %d): %s", name, run.outcome, run.code, attempt, run.said)
        if again:
            raise CancelExecution("to be tried again")

    def _perform(self, job: Job, call: datetime, attempt: int, lock: IO[str]) -> Run:
        started, log = self._now(), self.book.log_of(job.name)
        if log.exists() and log.stat().st_size > _LONGEST_LOG:
            log.replace(log.with_suffix(".log.1"))
        words = [*self._program, *job.words, f"--root={self._root.path}"]
        with log.open("ab") as output:
            begin = output.tell()
            output.write(f"--- {_told(started)}, call of {_told(call)}, attempt {attempt}\n".encode())
            output.flush()
            try:
                process = subprocess.Popen(  # noqa: S603  # our own command, as it was typed
                    words,
                    cwd=job.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # an interrupt at the terminal is the scheduler's to pass on
                    pass_fds=[lock.fileno()],
                )
            except OSError as error:  # its folder is gone, say
                output.write(f"could not be started: {error}\n".encode())
                output.flush()
                code = _NOT_STARTED
            else:
                self._note(job.name, running=process.pid)
                code = self._wait(process)
                point("schedule.ran")
        outcome = OUTCOMES.get(code, "failed" if code > 0 else f"killed by signal {-code}")
        if self.stop.is_set() and code not in OUTCOMES:
            outcome = "interrupted"
        said = _last_line(log, begin)
        return Run(
            call=call, started=started, ended=self._now(), attempt=attempt, code=code, outcome=outcome, said=said
        )

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        while not self.stop.is_set():
            try:
                return process.wait(_LOOK_S)
            except subprocess.TimeoutExpired:
                continue
        process.terminate()  # a training then closes its run, and keeps its checkpoint
        try:
            return process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _note(self, name: str, **changes: Any) -> None:
        with self._noting:
            fields = dict(self.book.state(name)) | changes
            self.book.note(name, State(**fields))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.book.folder.mkdir(parents=True, exist_ok=True)
        with self.book.lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                beat = self.book.last_beat()
                who = "another process" if beat is None else f"process {beat.pid}"
                raise SchedulerRuns(
                    f"Expected no scheduler on {self._root.path}; {who} is one. End it first, or name another --root.",
                    where="root",
                ) from error
            yield


def _open(path: Path) -> SqliteHuey:
    try:
        from huey import SqliteHuey
    except ImportError as error:
        raise MissingPackage(
            "Expected the package 'huey', which keeps schedules; found none. Install forecaster[schedule].",
            where="schedule",
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    return SqliteHuey("forecaster", filename=str(path), fsync=True, results=False)


def _last_line(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - 4096))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return redacted(lines[-1])[:500] if lines else ""


def _told(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%MZ")

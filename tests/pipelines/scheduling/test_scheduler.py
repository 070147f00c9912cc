"""The scheduler with short commands: runs that are due, missed, skipped, retried and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from forecaster.errors import InputError
from pipelines.cli import app, main
from pipelines.commands.options import format_arguments
from pipelines.scheduling.jobs import Heartbeat, Job, JobStore
from pipelines.scheduling.scheduler import Scheduler, SchedulerRuns
from pipelines.settings import Root
from tests.pipelines.conftest import make_noise_frame, make_small_spec
from tests.system.processes import write_config

pytestmark = pytest.mark.integration

START = datetime(2026, 11, 21, 2, 30, tzinfo=UTC)
DAY = timedelta(days=1)
# Appends its arguments to a file, prints two lines, and exits with the next code in another file.
RECORDING_PROGRAM = """
import json, pathlib, sys, time
with open("calls", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
print("some line\\nthe last line")
codes = pathlib.Path("codes")
remaining = codes.read_text().split() if codes.exists() else []
codes.write_text(" ".join(remaining[1:]))
if remaining[:1] == ["sleep"]:
    pathlib.Path("sleeping").touch()
    time.sleep(60)
sys.exit(int(remaining[0]) if remaining else 0)
"""


class SchedulerHarness:
    """A scheduler with a clock that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = START
        self.root = Root(folder / "root")
        self.scheduler = self.restart_scheduler()

    def restart_scheduler(self) -> Scheduler:
        return Scheduler(self.root, command=(sys.executable, "-c", RECORDING_PROGRAM), now=lambda: self.now)

    @property
    def store(self) -> JobStore:
        return self.scheduler.store

    def add_job(self, name: str = "night", **fields: Any) -> None:
        options = {"cron": "0 3 * * *", "zone": "UTC", "retries": 0, "retry_delay": 0.01, "since": START} | fields
        self.store.save_job(Job(name=name, words=("retrain", "data.csv"), **{"folder": str(self.folder)} | options))

    def set_exit_codes(self, *codes: object) -> None:
        (self.folder / "codes").write_text(" ".join(map(str, codes)))

    def read_calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run_due_jobs(self) -> None:
        """Runs all due jobs and their retries to the end; the clock moves to the times of the retries."""
        self.scheduler.queue_due_jobs()
        while True:
            while self.scheduler.run_next():
                pass
            states = [self.store.load_state(job.name) for job in self.store.load_jobs()]
            retry_times = [state.retry_at for state in states if state.retry_at is not None]
            if not retry_times:
                return
            self.now = max(self.now, min(retry_times))


@pytest.fixture
def scheduler_harness(tmp_path: Path) -> SchedulerHarness:
    return SchedulerHarness(tmp_path)


def test_a_job_runs_once_when_it_is_due(scheduler_harness: SchedulerHarness) -> None:
    scheduler_harness.add_job()
    scheduler_harness.run_due_jobs()
    assert scheduler_harness.read_calls() == [], "the job is not due yet"
    scheduler_harness.now = START + timedelta(minutes=30)
    scheduler_harness.run_due_jobs()
    scheduler_harness.run_due_jobs()
    assert scheduler_harness.read_calls() == [["retrain", "data.csv", f"--root={scheduler_harness.root.path}"]]
    last = scheduler_harness.store.load_state("night").last
    assert last is not None
    assert (last.code, last.outcome, last.said, last.attempt) == (0, "done", "the last line", 1)
    assert last.call == START + timedelta(minutes=30)
    assert "some line" in scheduler_harness.store.job_log_path("night").read_text()
    assert scheduler_harness.store.load_state("night").waiting is None


def test_missed_runs_are_merged_into_one(scheduler_harness: SchedulerHarness) -> None:
    scheduler_harness.add_job()
    scheduler_harness.now = START + 5 * DAY
    scheduler_harness.run_due_jobs()
    assert len(scheduler_harness.read_calls()) == 1
    last = scheduler_harness.store.load_state("night").last
    assert last is not None
    assert last.call == START + 4 * DAY + timedelta(minutes=30)


def test_runs_due_before_the_job_was_added_are_not_missed(scheduler_harness: SchedulerHarness) -> None:
    scheduler_harness.now = START + timedelta(hours=1)
    scheduler_harness.add_job(since=scheduler_harness.now)
    scheduler_harness.run_due_jobs()
    assert scheduler_harness.read_calls() == []


@pytest.mark.parametrize(("code", "outcome"), [(0, "done"), (2, "wrong input"), (3, "refused by the gate")])
def test_an_accepted_exit_code_is_not_retried(code: int, outcome: str, scheduler_harness: SchedulerHarness) -> None:
    scheduler_harness.add_job(retries=3)
    scheduler_harness.set_exit_codes(code)
    scheduler_harness.now = START + DAY
    scheduler_harness.run_due_jobs()
    last = scheduler_harness.store.load_state("night").last
    assert last is not None
    assert (len(scheduler_harness.read_calls()), last.code, last.outcome) == (1, code, outcome)


def test_a_failed_run_is_retried_with_backoff_and_then_abandoned(scheduler_harness: SchedulerHarness) -> None:
    scheduler_harness.add_job(retries=2)
    scheduler_harness.set_exit_codes(1, 1, 1, 1)
    scheduler_harness.now = START + DAY
    scheduler_harness.run_due_jobs()
    last = scheduler_harness.store.load_state("night").last
    assert last is not None
    assert (len(scheduler_harness.read_calls()), last.outcome, last.attempt) == (3, "failed", 3)
    assert scheduler_harness.store.load_state("night").waiting is None, "the next run is not skipped"
    scheduler_harness.set_exit_codes(1, 0)
    scheduler_harness.now += DAY
    scheduler_harness.run_due_jobs()
    last = scheduler_harness.store.load_state("night").last
    assert last is not None
    assert (len(scheduler_harness.read_calls()), last.outcome, last.attempt) == (5, "done", 2)


def test_a_command_that_cannot_be_started_has_failed(scheduler_harness: SchedulerHarness) -> None:
    scheduler_harness.add_job(folder=str(scheduler_harness.folder / "gone"), retries=1)
    scheduler_harness.now = START + DAY
    scheduler_harness.run_due_jobs()
    state = scheduler_harness.store.load_state("night")
    assert state.last is not None
    assert (state.last.code, state.last.outcome, state.last.attempt) == (127, "failed", 2)
    assert "gone" in state.last.said
    assert (state.waiting, state.running) == (None, None)


def test_the_retry_delay_doubles_and_survives_a_restart(scheduler_harness: SchedulerHarness) -> None:
    scheduler_harness.add_job(retries=3, retry_delay=60.0)
    scheduler_harness.set_exit_codes(1, 1, 1, 1)
    scheduler_harness.now = START + DAY
    scheduler_harness.scheduler.queue_due_jobs()
    for minutes in (1, 2, 4):
        assert scheduler_harness.scheduler.run_next()
        failed_at = scheduler_harness.now
        scheduler_harness.scheduler = scheduler_harness.restart_scheduler()
        scheduler_harness.scheduler.requeue_interrupted()
        scheduler_harness.now = failed_at + timedelta(minutes=minutes, seconds=-1)
        assert not scheduler_harness.scheduler.run_next()
        scheduler_harness.now += timedelta(seconds=1)
    assert scheduler_harness.scheduler.run_next()
    state = scheduler_harness.store.load_state("night")
    assert state.last is not None
    assert (state.last.attempt, state.waiting, state.failures, state.retry_at) == (4, None, 0, None)


def test_the_job_that_has_been_ready_for_longest_runs_first(scheduler_harness: SchedulerHarness) -> None:
    scheduler_harness.add_job("early", cron="10 3 * * *", retries=1, retry_delay=3600.0)
    scheduler_harness.add_job("late", cron="20 3 * * *")
    scheduler_harness.set_exit_codes(1)
    scheduler_harness.now = START + timedelta(hours=1)
    scheduler_harness.scheduler.queue_due_jobs()
    ended = []
    for _ in range(3):
        scheduler_harness.scheduler.run_next()
        ended.append([scheduler_harness.store.load_state(name).last is not None for name in ("early", "late")])
        scheduler_harness.now += timedelta(hours=1)
    assert ended == [[True, False], [True, True], [True, True]]
    last = scheduler_harness.store.load_state("early").last
    assert last is not None
    assert last.attempt == 2


def test_a_run_whose_job_was_scheduled_again_does_not_end_the_next_call(scheduler_harness: SchedulerHarness) -> None:
    scheduler_harness.add_job()
    scheduler_harness.now = START + DAY
    scheduler_harness.set_exit_codes("sleep")
    first = scheduler_harness.scheduler
    first.queue_due_jobs()
    thread = threading.Thread(target=first.run_next)
    thread.start()
    wait_for(scheduler_harness.folder / "sleeping")
    pid = scheduler_harness.store.load_state("night").running
    assert pid is not None
    scheduler_harness.store.remove_job("night")
    scheduler_harness.add_job(cron="40 2 * * *", since=START)
    scheduler_harness.now += timedelta(hours=1)
    scheduler_harness.restart_scheduler().queue_due_jobs()
    os.kill(pid, signal.SIGTERM)
    thread.join()
    assert scheduler_harness.store.load_state("night").waiting == START + DAY + timedelta(minutes=10)


def test_the_queue_of_version_0_1_is_removed_once(
    scheduler_harness: SchedulerHarness, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler_harness.add_job()
    for name in ("huey.db", "huey.db-wal"):
        (scheduler_harness.store.folder / name).write_bytes(b"not read")
    with caplog.at_level("INFO"):
        scheduler_harness.scheduler.requeue_interrupted()
        scheduler_harness.scheduler.requeue_interrupted()
    assert caplog.text.count("huey.db") == 1
    assert list(scheduler_harness.store.folder.glob("huey*")) == []


def test_a_run_that_overlaps_the_previous_one_is_skipped_and_reported(scheduler_harness: SchedulerHarness) -> None:
    scheduler_harness.add_job(cron="* * * * *")
    scheduler_harness.add_job("other", cron="* * * * *")
    scheduler_harness.now = START + timedelta(minutes=1)
    scheduler_harness.scheduler.queue_due_jobs()
    scheduler_harness.now = START + timedelta(minutes=2)
    scheduler_harness.scheduler.queue_due_jobs()
    state = scheduler_harness.store.load_state("night")
    assert state.refused == 1
    assert (
        state.refusal
        == "the run of 2026-11-21T02:32Z was skipped: that of 2026-11-21T02:31Z is still queued or waiting for a retry"
    )
    scheduler_harness.run_due_jobs()
    assert len(scheduler_harness.read_calls()) == 2, "one run of each job"


def test_a_run_killed_with_its_scheduler_is_repeated(scheduler_harness: SchedulerHarness) -> None:
    scheduler_harness.add_job()
    scheduler_harness.now = START + DAY
    scheduler_harness.scheduler.queue_due_jobs()
    state = scheduler_harness.store.load_state("night")
    scheduler_harness.store.save_state("night", state.model_copy(update={"running": 1}))  # and killed at this point
    scheduler_harness.scheduler = scheduler_harness.restart_scheduler()
    scheduler_harness.scheduler.requeue_interrupted()
    assert scheduler_harness.store.load_state("night").running is None
    scheduler_harness.run_due_jobs()
    assert len(scheduler_harness.read_calls()) == 1
    scheduler_harness.scheduler.requeue_interrupted()
    scheduler_harness.run_due_jobs()
    assert len(scheduler_harness.read_calls()) == 1


def test_a_run_that_outlives_its_scheduler_is_not_duplicated(scheduler_harness: SchedulerHarness) -> None:
    scheduler_harness.add_job()
    scheduler_harness.now = START + DAY
    scheduler_harness.set_exit_codes("sleep")
    first = scheduler_harness.scheduler
    first.queue_due_jobs()
    thread = threading.Thread(target=first.run_next)
    thread.start()
    wait_for(scheduler_harness.folder / "sleeping")
    restarted = scheduler_harness.restart_scheduler()
    restarted.requeue_interrupted()
    assert restarted.run_next()
    assert len(scheduler_harness.read_calls()) == 1
    assert "outlived" in (scheduler_harness.store.load_state("night").refusal or "")
    first.stop_request.set()
    thread.join()
    last = scheduler_harness.store.load_state("night").last
    assert last is not None
    assert last.outcome == "interrupted"
    assert scheduler_harness.store.load_state("night").waiting is not None, "the run is repeated"


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_only_one_scheduler_runs_per_root(scheduler_harness: SchedulerHarness) -> None:
    thread = threading.Thread(target=scheduler_harness.scheduler.run_until_stopped)
    thread.start()
    try:
        wait_for(scheduler_harness.store.folder / "heartbeat.json")
        with pytest.raises(SchedulerRuns, match=f"process {os.getpid()}"):
            scheduler_harness.restart_scheduler().run_until_stopped()
    finally:
        scheduler_harness.scheduler.stop_request.set()
        thread.join()


def test_a_secret_printed_by_a_run_is_not_in_the_state(
    scheduler_harness: SchedulerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "the last line")
    scheduler_harness.add_job()
    scheduler_harness.now = START + DAY
    scheduler_harness.run_due_jobs()
    last = scheduler_harness.store.load_state("night").last
    assert last is not None
    assert last.said == "***"


# The command line


def run_command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    return int(ended.value.code or 0)


@pytest.fixture
def data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_noise_frame(2).to_csv(tmp_path / "data.csv", index=False)
    write_config(tmp_path / "small.yaml", make_small_spec())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse_arguments(tokens: Sequence[str]) -> dict[str, Any]:
    _, arguments, _ = app.parse_args(list(tokens), exit_on_error=False)
    return dict(arguments.arguments)


def test_the_scheduled_command_is_the_typed_command(data_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = [
        *(
            "retrain",
            "--config",
            "small.yaml",
            "--sql",
            "select 1 -- a 'b'",
            "--blend",
            "auto_ets",
            "--blend",
            "auto_arima",
        ),
        *("--warm", "--if-needed", "--min-new", "3", "--seed", "7", "--zone", "Europe/Berlin", "--root", "root"),
    ]
    assert run_command(*typed, "--cron", "0  3 * * *", "--cron-zone", "Europe/Berlin", "--retries", "1") == 0
    output = capsys.readouterr().out
    assert "next" in output
    assert "03:00 Europe/Berlin" in output
    [job] = JobStore(Root(data_files / "root").schedule).load_jobs()
    assert (job.name, job.cron, job.zone, job.retries) == ("small", "0 3 * * *", "Europe/Berlin", 1)
    assert job.folder == str(data_files)
    assert parse_arguments([*job.words, "--root=root"]) == parse_arguments(
        [*typed, "--trigger", "schedule", "--test-windows", "1"]
    )
    assert not (data_files / "root" / "mlflow.db").exists(), "nothing was trained"


def test_command_words_are_quoted_unambiguously() -> None:
    values = {"a": "-1", "b": None, "c": False, "d": True, "e": (1, 2), "f_g": Path("x y")}
    assert format_arguments(values) == ["--a=-1", "--d", "--e=1", "--e=2", "--f-g=x y"]


@pytest.mark.parametrize(
    "command",
    [
        ("--cron", "0 3 * *"),
        ("--cron", "0 3 * * *", "--cron-zone", "Mars"),
        ("--cron", "0 3 * * *", "--retries", "-1"),
        ("--cron", "0 3 * * *", "--tracking-uri", "http://u:planted-secret@h"),
        ("--cron", "0 3 * * *", "--policy", "none.yaml"),
    ],
)
def test_an_invalid_command_is_rejected_when_it_is_scheduled(
    command: tuple[str, ...], data_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("retrain", "data.csv", "--config", "small.yaml", "--root", "root", *command) == 2
    assert "planted-secret" not in "".join(capsys.readouterr())
    assert list(JobStore(Root(data_files / "root").schedule).load_jobs()) == []


def test_an_address_from_the_environment_is_not_stored(data_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["retrain", "data.csv", "--config", "small.yaml", "--root", "root", "--cron", "0 3 * * *"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:planted-secret@127.0.0.1:9")
    assert run_command(*command) == 2, "an address must not contain a login"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://planted-host.invalid:9")
    assert run_command(*command) == 0
    written = [path.read_bytes() for path in (data_files / "root").rglob("*") if path.is_file()]
    assert written
    assert not any(b"planted" in content for content in written)


def test_the_state_is_printed_as_a_table_and_as_json(data_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("schedule", "status", "--root", "root") == 1
    assert "not running (never seen)" in capsys.readouterr().out
    run_command(
        "retrain",
        "data.csv",
        "--config",
        "small.yaml",
        "--root",
        "root",
        "--cron",
        "0 3 * * *",
        "--cron-zone",
        "Asia/Tokyo",
    )
    store = JobStore(Root(data_files / "root").schedule)
    store.save_heartbeat(Heartbeat(pid=1, at=datetime.now(UTC)))
    capsys.readouterr()
    assert run_command("schedule", "status", "--json", "--root", "root") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["scheduler"]["alive"]
    [job] = status["jobs"]
    assert (job["name"], job["doing"], job["last"]) == ("small", "idle", None)
    assert datetime.fromisoformat(job["next"]).hour == 18
    assert run_command("schedule", "list", "--root", "root") == 0
    assert "03:00 Asia/Tokyo" in capsys.readouterr().out
    assert run_command("schedule", "remove", "none", "--root", "root") == 2
    assert run_command("schedule", "remove", "small", "--root", "root") == 0
    assert list(store.load_jobs()) == []


def test_a_damaged_job_file_is_named_in_the_error(data_files: Path) -> None:
    run_command("retrain", "data.csv", "--config", "small.yaml", "--root", "root", "--cron", "0 3 * * *")
    store = JobStore(Root(data_files / "root").schedule)
    (store.folder / "jobs" / "small.json").write_text("{")
    with pytest.raises(InputError, match=r"small\.json"):
        list(store.load_jobs())


# A signal that interrupts the handler of another one, or the waiting thread, at any point. A process of its own, as it may block.
MANY_SIGNALS = """
import os, signal, threading
from pipelines.scheduling.scheduler import StopRequest

stop = StopRequest()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stop.set())

def send():
    for _ in range(3000):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

assert not stop.wait(0.0) and not stop.is_set()
sender = threading.Thread(target=send)
sender.start()
while sender.is_alive():
    stop.wait(0.001)
assert stop.wait(0.0) and stop.is_set()
print("stopped")
"""


@pytest.mark.integration
def test_signals_that_come_at_once_stop_it() -> None:
    result = subprocess.run(
        [sys.executable, "-c", MANY_SIGNALS], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "stopped\n"

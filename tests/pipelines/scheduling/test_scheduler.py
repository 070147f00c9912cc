"""The scheduler with commands that take no time: what is due, missed, refused, tried again, cut short."""

from __future__ import annotations

import json
import os
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
from pipelines.commands.options import words_of
from pipelines.scheduling.jobs import Beat, Book, Job
from pipelines.scheduling.scheduler import Scheduler, SchedulerRuns
from pipelines.settings import Root
from tests.pipelines.conftest import noise, small
from tests.system.processes import write_config

START = datetime(2026, 11, 21, 2, 30, tzinfo=UTC)
DAY = timedelta(days=1)
# Appends its arguments to a file, says something, and ends with the code that stands in another.
PROGRAM = """
import json, pathlib, sys, time
with open("calls", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
print("some line\\nthe last line")
codes = pathlib.Path("codes")
left = codes.read_text().split() if codes.exists() else []
codes.write_text(" ".join(left[1:]))
if left[:1] == ["sleep"]:
    pathlib.Path("sleeping").touch()
    time.sleep(60)
sys.exit(int(left[0]) if left else 0)
"""


class World:
    """A scheduler whose clock is turned by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = START
        self.root = Root(folder / "root")
        self.scheduler = self.another()

    def another(self) -> Scheduler:
        return Scheduler(self.root, program=(sys.executable, "-c", PROGRAM), now=lambda: self.now)

    @property
    def book(self) -> Book:
        return self.scheduler.book

    def job(self, name: str = "night", **fields: Any) -> None:
        words = ("retrain", "data.csv")
        given = {"cron": "0 3 * * *", "zone": "UTC", "retries": 0, "retry_delay": 0.01, "since": START} | fields
        self.book.keep(Job(name=name, words=words, **{"folder": str(self.folder)} | given))

    def codes(self, *codes: object) -> None:
        (self.folder / "codes").write_text(" ".join(map(str, codes)))

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def work(self) -> None:
        """Everything that is due, and is to be tried again, to its end."""
        self.scheduler.consider()
        for _ in range(200):
            for task in self.scheduler._queue.read_schedule():
                self.scheduler._queue.enqueue(task)
            if not self.scheduler.turn() and not self.scheduler._queue.scheduled_count():
                return
            time.sleep(0.005)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_job_is_called_when_it_is_due_and_once(world: World) -> None:
    world.job()
    world.work()
    assert world.calls() == [], "not yet"
    world.now = START + timedelta(minutes=30)
    world.work()
    world.work()
    assert world.calls() == [["retrain", "data.csv", f"--root={world.root.path}"]]
    last = world.book.state("night").last
    assert last is not None
    assert (last.code, last.outcome, last.said, last.attempt) == (0, "done", "the last line", 1)
    assert last.call == START + timedelta(minutes=30)
    assert "some line" in world.book.log_of("night").read_text()
    assert world.book.state("night").waiting is None


def test_calls_that_were_missed_are_one(world: World) -> None:
    world.job()
    world.now = START + 5 * DAY
    world.work()
    assert len(world.calls()) == 1
    last = world.book.state("night").last
    assert last is not None
    assert last.call == START + 4 * DAY + timedelta(minutes=30)


def test_what_was_due_before_it_was_scheduled_was_not_missed(world: World) -> None:
    world.now = START + timedelta(hours=1)
    world.job(since=world.now)
    world.work()
    assert world.calls() == []


@pytest.mark.parametrize(("code", "outcome"), [(0, "done"), (2, "wrong input"), (3, "refused by the gate")])
def test_what_ended_as_it_may_is_not_tried_again(code: int, outcome: str, world: World) -> None:
    world.job(retries=3)
    world.codes(code)
    world.now = START + DAY
    world.work()
    last = world.book.state("night").last
    assert last is not None
    assert (len(world.calls()), last.code, last.outcome) == (1, code, outcome)


def test_what_failed_is_tried_again_later_and_later_and_then_given_up(world: World) -> None:
    world.job(retries=2)
    world.codes(1, 1, 1, 1)
    world.now = START + DAY
    world.work()
    last = world.book.state("night").last
    assert last is not None
    assert (len(world.calls()), last.outcome, last.attempt) == (3, "failed", 3)
    assert world.book.state("night").waiting is None, "the next call is not refused"
    world.codes(1, 0)
    world.now += DAY
    world.work()
    last = world.book.state("night").last
    assert last is not None
    assert (len(world.calls()), last.outcome, last.attempt) == (5, "done", 2)


def test_what_cannot_be_started_has_failed(world: World) -> None:
    world.job(folder=str(world.folder / "gone"), retries=1)
    world.now = START + DAY
    world.work()
    state = world.book.state("night")
    assert state.last is not None
    assert (state.last.code, state.last.outcome, state.last.attempt) == (127, "failed", 2)
    assert "gone" in state.last.said
    assert (state.waiting, state.running) == (None, None)


def test_a_retry_waits_twice_as_long_each_time_and_outlives_the_scheduler(world: World) -> None:
    world.job(retries=3, retry_delay=100.0)
    world.codes(1, 1)
    world.now = START + DAY
    world.scheduler.consider()
    assert world.scheduler.turn()
    other = world.another()  # huey has it in its database
    [task] = other._queue.scheduled()
    assert (task.retries, task.retry_delay, task.retry_backoff) == (2, 200.0, 2)
    other.recover()
    assert other._queue.scheduled_count() == 1, "it is queued already"
    task.eta = None
    other._queue.execute(task)
    [again] = [one for one in other._queue.scheduled() if one.retries == 1]
    assert again.retry_delay == 400.0


def test_a_call_while_the_one_before_is_at_work_is_refused_and_told(world: World) -> None:
    world.job(cron="* * * * *")
    world.job("other", cron="* * * * *")
    world.now = START + timedelta(minutes=1)
    world.scheduler.consider()
    world.now = START + timedelta(minutes=2)
    world.scheduler.consider()
    state = world.book.state("night")
    assert state.refused == 1
    assert (
        state.refusal
        == "the call of 2026-11-21T02:32Z was refused: that of 2026-11-21T02:31Z still waits, or is to be tried again"
    )
    world.work()
    assert len(world.calls()) == 2, "one of each"


def test_a_run_that_was_killed_with_its_scheduler_is_run_again(world: World) -> None:
    world.job()
    world.now = START + DAY
    world.scheduler.consider()
    assert world.scheduler._queue.dequeue() is not None  # and then it is killed
    world.scheduler = world.another()
    world.scheduler.recover()
    world.work()
    assert len(world.calls()) == 1
    world.scheduler.recover()
    world.work()
    assert len(world.calls()) == 1


def test_a_run_that_outlives_its_scheduler_is_not_joined_by_another(world: World) -> None:
    world.job()
    world.now = START + DAY
    world.codes("sleep")
    first = world.scheduler
    first.consider()
    thread = threading.Thread(target=first.turn)
    thread.start()
    wait_for(world.folder / "sleeping")
    other = world.another()
    other.recover()
    assert other.turn()
    assert len(world.calls()) == 1
    assert "outlived" in (world.book.state("night").refusal or "")
    first.stop.set()
    thread.join()
    last = world.book.state("night").last
    assert last is not None
    assert last.outcome == "interrupted"
    assert world.book.state("night").waiting is not None, "it is run again"


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_scheduler_of_a_root_at_a_time(world: World) -> None:
    thread = threading.Thread(target=world.scheduler.serve)
    thread.start()
    try:
        wait_for(world.book.folder / "heartbeat.json")
        with pytest.raises(SchedulerRuns, match=f"process {os.getpid()}"):
            world.another().serve()
    finally:
        world.scheduler.stop.set()
        thread.join()


def test_a_secret_that_a_run_prints_is_not_in_the_state(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "the last line")
    world.job()
    world.now = START + DAY
    world.work()
    last = world.book.state("night").last
    assert last is not None
    assert last.said == "***"


# The command line


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    return int(left.value.code or 0)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    noise(2).to_csv(tmp_path / "data.csv", index=False)
    write_config(tmp_path / "small.yaml", small())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bound(words: Sequence[str]) -> dict[str, Any]:
    _, arguments, _ = app.parse_args(list(words), exit_on_error=False)
    return dict(arguments.arguments)


def test_what_is_scheduled_is_the_command_that_was_typed(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert run(*typed, "--cron", "0  3 * * *", "--cron-zone", "Europe/Berlin", "--retries", "1") == 0
    told = capsys.readouterr().out
    assert "next" in told
    assert "03:00 Europe/Berlin" in told
    [job] = Book(Root(files / "root").schedule).jobs()
    assert (job.name, job.cron, job.zone, job.retries) == ("small", "0 3 * * *", "Europe/Berlin", 1)
    assert job.folder == str(files)
    assert bound([*job.words, "--root=root"]) == bound([*typed, "--trigger", "schedule", "--test-windows", "1"])
    assert not (files / "root" / "mlflow.db").exists(), "nothing was trained"


def test_words_are_typed_so_that_nothing_is_taken_for_something_else() -> None:
    values = {"a": "-1", "b": None, "c": False, "d": True, "e": (1, 2), "f_g": Path("x y")}
    assert words_of(values) == ["--a=-1", "--d", "--e=1", "--e=2", "--f-g=x y"]


@pytest.mark.parametrize(
    "odd",
    [
        ("--cron", "0 3 * *"),
        ("--cron", "0 3 * * *", "--cron-zone", "Mars"),
        ("--cron", "0 3 * * *", "--retries", "-1"),
        ("--cron", "0 3 * * *", "--tracking-uri", "http://u:planted-secret@h"),
        ("--cron", "0 3 * * *", "--policy", "none.yaml"),
    ],
)
def test_what_could_not_be_run_is_refused_when_it_is_scheduled(
    odd: tuple[str, ...], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("retrain", "data.csv", "--config", "small.yaml", "--root", "root", *odd) == 2
    assert "planted-secret" not in "".join(capsys.readouterr())
    assert list(Book(Root(files / "root").schedule).jobs()) == []


def test_an_address_of_the_environment_is_not_written_down(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["retrain", "data.csv", "--config", "small.yaml", "--root", "root", "--cron", "0 3 * * *"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:planted-secret@127.0.0.1:9")
    assert run(*asked) == 2, "a login does not belong into an address"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://planted-host.invalid:9")
    assert run(*asked) == 0
    written = [path.read_bytes() for path in (files / "root").rglob("*") if path.is_file()]
    assert written
    assert not any(b"planted" in content for content in written)


def test_the_state_is_told_as_a_table_and_as_json(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schedule", "status", "--root", "root") == 1
    assert "not running (never seen)" in capsys.readouterr().out
    run(
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
    book = Book(Root(files / "root").schedule)
    book.beat(Beat(pid=1, at=datetime.now(UTC)))
    capsys.readouterr()
    assert run("schedule", "status", "--json", "--root", "root") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["scheduler"]["alive"]
    [job] = told["jobs"]
    assert (job["name"], job["doing"], job["last"]) == ("small", "idle", None)
    assert datetime.fromisoformat(job["next"]).hour == 18
    assert run("schedule", "list", "--root", "root") == 0
    assert "03:00 Asia/Tokyo" in capsys.readouterr().out
    assert run("schedule", "remove", "none", "--root", "root") == 2
    assert run("schedule", "remove", "small", "--root", "root") == 0
    assert list(book.jobs()) == []


def test_a_job_file_that_is_spoilt_names_itself(files: Path) -> None:
    run("retrain", "data.csv", "--config", "small.yaml", "--root", "root", "--cron", "0 3 * * *")
    book = Book(Root(files / "root").schedule)
    (book.folder / "jobs" / "small.json").write_text("{")
    with pytest.raises(InputError, match=r"small\.json"):
        list(book.jobs())

"""Steps that are no training (a server rolled back alone, a lease, a schedule), killed and broken at all of their points."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from forecaster.registry.lock import Pace, queue
from forecaster.registry.registry import CHALLENGER, CHAMPION, Registry
from forecaster.storage.failpoints import CHOSEN, SWITCH, Broken
from pipelines.cli import main
from pipelines.promotion.promote import audited
from pipelines.scheduling.jobs import Job
from pipelines.scheduling.scheduler import Scheduler
from pipelines.settings import Root
from serving.deployment import local_rollback
from serving.deployment import slot as slots
from serving.deployment.follower import Target, news, take
from tests.pipelines.monitoring.test_shadow import serve
from tests.sweep import points_of, some
from tests.system.fork_server import Nursery, opened
from tests.system.test_failpoints import World, world

__all__ = ["world"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning's
]
BROKEN = 9


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with opened() as found:
        yield found


@pytest.fixture(scope="module")
def forking() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def broken(chosen: str, work: Callable[..., object], *arguments: object) -> None:
    """In a process of its own: work that is killed, or broken by an exception, where that was chosen."""
    os.environ |= {SWITCH: "1", CHOSEN: chosen}
    try:
        work(*arguments)
    except Broken:
        os._exit(BROKEN)


def breaks(forking: Any, name: str, what: str, work: Callable[..., object], *arguments: object) -> None:
    child = forking.Process(target=broken, args=(f"{name}={what}", work, *arguments))
    child.start()
    child.join(120)
    assert child.exitcode == (-signal.SIGKILL if what == "kill" else BROKEN), f"{name} was not reached"


# A server's own rollback


@pytest.fixture
def target(world: World) -> Iterator[Target]:
    """A slot that was followed to the champion, with another version before it."""
    store, found = Registry(world.root.store), Target("small", CHAMPION, world.root.slot, keep=3)
    champion = store.resolve("small", CHAMPION)
    other = next(one for one in store.versions("small") if one != champion)
    for version in (other, champion):
        take(store, version, found)
    yield found
    shutil.rmtree(world.root.slot)


@pytest.mark.parametrize("name", some([*points_of("local"), "local.audited, undone"]))
def test_a_server_that_is_rolled_back_alone_is_killed(
    name: str, world: World, target: Target, nursery: Nursery
) -> None:
    store, lines = Registry(world.root.store), len(audited(world.root, "small").lines)
    new = slots.published(target.slot)
    old = slots.former(target.slot, "small")
    assert new is not None
    assert old is not None
    command = ["rollback", "small", "--local", "--root", "root"]
    goal = old
    undone = name in ("local.restored", "local.audited, undone")
    if undone:
        assert nursery.run(command, world.folder) == 0
        command, goal, lines = [*command, "--undo"], new, lines + 1
    point = name.partition(",")[0]
    assert nursery.run(command, world.folder, failpoints=f"{point}=kill") != 0, f"{point} was not reached"
    found = slots.published(target.slot)
    assert found == (new if name == "local.pinned" else goal)
    assert found is not None
    slots.check(target.slot, found)
    assert len(audited(world.root, "small").lines) == lines + name.startswith("local.audited")
    assert news(store, target) is None, "the follower undoes neither"
    assert nursery.run(command, world.folder) == 0, (world.folder / "process.log").read_text()[-2000:]
    assert slots.published(target.slot) == goal
    assert (local_rollback.read(target.slot) is None) == undone
    told = audited(world.root, "small")
    assert len(told.lines) == lines + 1, "a line each, however often it was typed"
    assert told.faults == (), "the champion of the registry is as it was"


# A promotion from the shadow


@pytest.mark.parametrize("name", ["promote.after_former", "promote.after_champion"])  # the protocol is the others'
def test_a_promotion_from_the_shadow_is_killed(name: str, world: World, nursery: Nursery) -> None:
    registry = Registry(world.root.store)
    champion = registry.resolve("small", CHAMPION)
    challenger = next(one for one in registry.versions("small") if one != champion)
    registry.set_alias(challenger, CHALLENGER)
    serve(world.root, (champion, challenger), origins=30, better=0.3)
    command = ["shadow", "small", "--promote", "--root", "root"]
    assert nursery.run(command, world.folder, failpoints=f"{name}=kill") == -signal.SIGKILL
    assert world.whole() == (challenger if name.endswith(("after_champion", "audited")) else champion).number
    for _ in range(2):
        assert nursery.run(command, world.folder) == 0, (world.folder / "process.log").read_text()[-2000:]
        assert registry.resolve("small", CHAMPION) == challenger
    assert audited(world.root, "small").faults == ()
    shutil.rmtree(world.root.slot)


# The lease on a registry that several machines share

PACE = Pace(life=1.0, poll=0.02, patience=60.0)


class Files:
    """A board in a folder, a file for each note."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> Mapping[str, str]:
        return {path.name: path.read_text() for path in self.folder.glob("[!.]*")}

    def write(self, key: str, value: str) -> None:
        draft = self.folder / f".{key}"
        draft.write_text(value)
        draft.replace(self.folder / key)

    def erase(self, key: str) -> None:
        (self.folder / key).unlink(missing_ok=True)


def enter(folder: Path) -> None:
    with queue(Files(folder), where="model 'm'", pace=PACE) as confirm:
        confirm()


@pytest.mark.parametrize("what", ["kill", "raise"])
@pytest.mark.parametrize("name", some(points_of("lease")))
def test_who_dies_in_the_queue_holds_up_the_next_for_the_life_of_its_note(
    name: str, what: str, tmp_path: Path, forking: Any
) -> None:
    breaks(forking, name, what, enter, tmp_path)
    assert len(list(tmp_path.iterdir())) == (1 if what == "kill" else 0), "an exception leaves no note"
    enter(tmp_path)
    assert list(tmp_path.iterdir()) == []


# The schedule

DUE = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)


def begin(folder: Path) -> Scheduler:
    """A scheduler that starts, and does one thing."""
    program = (sys.executable, "-S", "-c", "open('calls', 'a').write('called ')")
    scheduler = Scheduler(Root(folder / "root"), program=program, now=lambda: DUE + timedelta(seconds=1))
    scheduler.recover()
    scheduler.consider()
    scheduler.turn()
    return scheduler


def go_on(folder: Path) -> Scheduler:
    """One that starts, and does all there is to do."""
    scheduler = begin(folder)
    while scheduler._queue.pending_count() or scheduler._queue.scheduled_count():
        for task in scheduler._queue.read_schedule():
            scheduler._queue.enqueue(task)
        if not scheduler.turn():
            time.sleep(0.02)
    return scheduler


@pytest.mark.parametrize("what", ["kill", "raise"])
@pytest.mark.parametrize("name", some(points_of("schedule")))
def test_a_call_that_was_cut_short_anywhere_is_run_by_the_next_scheduler(
    name: str, what: str, tmp_path: Path, forking: Any
) -> None:
    job = Job(
        name="night",
        cron="0 3 * * *",
        zone="UTC",
        words=(),
        folder=str(tmp_path),
        since=DUE - timedelta(minutes=1),
        retry_delay=0.01,
    )
    Scheduler(Root(tmp_path / "root")).book.keep(job)
    child = forking.Process(target=broken, args=(f"{name}={what}", begin, tmp_path))
    child.start()
    child.join(120)
    if what == "raise" and name in ("schedule.taken", "schedule.ran"):
        assert child.exitcode == 0, "a job that breaks does not end the scheduler"
    else:
        assert child.exitcode == (-signal.SIGKILL if what == "kill" else BROKEN)
    scheduler = go_on(tmp_path)
    state = scheduler.book.state("night")
    assert state.last is not None
    assert (state.last.outcome, state.last.call, state.waiting, state.running) == ("done", DUE, None, None)
    calls = (tmp_path / "calls").read_text().split()
    assert len(calls) == (2 if name == "schedule.ran" else 1), "one whose end nobody saw is run again"
    go_on(tmp_path)
    assert (tmp_path / "calls").read_text().split() == calls


# The registry of a server that is down, or cannot be written


def test_a_registry_that_cannot_be_written_is_told_with_the_way_around_it(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    database = world.root.path / "mlflow.db"
    before = world.alias(CHAMPION)
    copy = world.folder / "frozen" / "mlflow.db"
    copy.parent.mkdir()
    shutil.copy(database, copy)
    freeze(copy)
    with pytest.raises(SystemExit) as left:
        main(["rollback", "small", "--root", str(copy.parent)])
    assert left.value.code == 1
    told = capsys.readouterr().err
    assert "readonly" in told
    assert "forecaster rollback small --local" in told
    assert Registry(Root(copy.parent).store).resolve("small", CHAMPION).number == before


def freeze(database: Path) -> None:
    """Makes a SQLite database one that can be read alone, for root too: its header says it is of a later format of writing."""
    with database.open("r+b") as file:
        file.seek(18)
        file.write(b"\x03")

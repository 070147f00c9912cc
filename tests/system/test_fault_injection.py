"""Steps outside training (a server's own rollback, a schedule), killed and broken at each of their fail points."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from forecaster.registry.registry import CHALLENGER, CHAMPION, Registry
from forecaster.storage.failpoints import ENABLED_VARIABLE, POINTS_VARIABLE, FailPointError
from pipelines.cli import main
from pipelines.promotion.promote import verify_audit_log
from pipelines.scheduling.jobs import Job
from pipelines.scheduling.scheduler import Scheduler
from pipelines.settings import Root
from serving.deployment import local_rollback, releases
from serving.deployment import slot as slots
from serving.deployment.follower import FollowTarget, find_update, install_version
from tests.case_selection import fail_points_of, sample_cases
from tests.pipelines.monitoring.test_shadow import serve_and_observe
from tests.system.fork_server import ForkServer
from tests.system.test_failpoints import PromotionRoot, promotion_root

__all__ = ["promotion_root"]
pytestmark = pytest.mark.integration
FAULT_EXIT_CODE = 9


@pytest.fixture(scope="module")
def fork_context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def run_with_fault(fault: str, action: Callable[..., object], *arguments: object) -> None:
    """Runs an action in its own process with a fault that kills the process or raises an exception."""
    os.environ |= {ENABLED_VARIABLE: "1", POINTS_VARIABLE: fault}
    try:
        action(*arguments)
    except FailPointError:
        os._exit(FAULT_EXIT_CODE)


# Local rollback of a server


@pytest.fixture
def followed_slot(promotion_root: PromotionRoot) -> Iterator[FollowTarget]:
    """A slot that follows the champion, with another version before it."""
    store = Registry(promotion_root.root.store_uri)
    target = FollowTarget("small", CHAMPION, promotion_root.root.slot, keep=3)
    champion = store.resolve("small", CHAMPION)
    previous = next(version for version in store.list_versions("small") if version != champion)
    for version in (previous, champion):
        install_version(store, version, target)
    yield target
    shutil.rmtree(promotion_root.root.slot)


@pytest.mark.parametrize("name", sample_cases([*fail_points_of("local"), "local.audited, undone"]))
def test_a_killed_local_rollback_is_recoverable(
    name: str, promotion_root: PromotionRoot, followed_slot: FollowTarget, fork_server: ForkServer
) -> None:
    store = Registry(promotion_root.root.store_uri)
    entry_count = len(verify_audit_log(promotion_root.root, "small").entries)
    new_release = releases.current_release(followed_slot.slot)
    old_release = releases.previous_release(followed_slot.slot, "small")
    assert new_release is not None
    assert old_release is not None
    command = ["rollback", "small", "--local", "--root", "root"]
    expected = old_release
    is_undo = name in ("local.restored", "local.audited, undone")
    if is_undo:
        assert fork_server.run(command, promotion_root.folder) == 0
        command, expected, entry_count = [*command, "--undo"], new_release, entry_count + 1
    point = name.partition(",")[0]
    assert fork_server.run(command, promotion_root.folder, failpoints=f"{point}=kill") != 0, f"{point} was not reached"
    release = releases.current_release(followed_slot.slot)
    assert release == (new_release if name == "local.pinned" else expected)
    assert release is not None
    slots.validate_release(followed_slot.slot, release)
    assert len(verify_audit_log(promotion_root.root, "small").entries) == entry_count + name.startswith("local.audited")
    assert find_update(store, followed_slot) is None, "the follower reverts neither"
    assert fork_server.run(command, promotion_root.folder) == 0, promotion_root.read_log()
    assert releases.current_release(followed_slot.slot) == expected
    assert (local_rollback.read_rollback(followed_slot.slot) is None) == is_undo
    log = verify_audit_log(promotion_root.root, "small")
    assert len(log.entries) == entry_count + 1, "one entry per command, however often it is repeated"
    assert log.faults == (), "the champion of the registry is unchanged"


# A promotion from the shadow


# The other points are tested with `promote`.
@pytest.mark.parametrize("name", ["promote.after_former", "promote.after_champion"])
def test_a_killed_promotion_from_the_shadow_is_recoverable(
    name: str, promotion_root: PromotionRoot, fork_server: ForkServer
) -> None:
    registry = Registry(promotion_root.root.store_uri)
    champion = registry.resolve("small", CHAMPION)
    challenger = next(version for version in registry.list_versions("small") if version != champion)
    registry.set_alias(challenger, CHALLENGER)
    serve_and_observe(promotion_root.root, (champion, challenger), origins=30, gain=0.3)
    command = ["shadow", "small", "--promote", "--root", "root"]
    assert fork_server.run(command, promotion_root.folder, failpoints=f"{name}=kill") == -signal.SIGKILL
    assert (
        promotion_root.verified_champion()
        == (challenger if name.endswith(("after_champion", "audited")) else champion).number
    )
    for _ in range(2):
        assert fork_server.run(command, promotion_root.folder) == 0, promotion_root.read_log()
        assert registry.resolve("small", CHAMPION) == challenger
    assert verify_audit_log(promotion_root.root, "small").faults == ()
    shutil.rmtree(promotion_root.root.slot)


# The schedule

DUE_TIME = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)


def start_scheduler_once(folder: Path, now: datetime = DUE_TIME + timedelta(seconds=1)) -> Scheduler:
    """Starts a scheduler that runs one job."""
    program = (sys.executable, "-S", "-c", "open('calls', 'a').write('called ')")
    scheduler = Scheduler(Root(folder / "root"), command=program, now=lambda: now)
    scheduler.requeue_interrupted()
    scheduler.queue_due_jobs()
    scheduler.run_next()
    return scheduler


def run_scheduler_to_end(folder: Path) -> Scheduler:
    """Starts a scheduler that runs all jobs, when retries are due."""
    scheduler = start_scheduler_once(folder, DUE_TIME + timedelta(minutes=1))
    while scheduler.run_next():
        pass
    return scheduler


@pytest.mark.parametrize("fault", ["kill", "raise"])
@pytest.mark.parametrize("name", sample_cases(fail_points_of("schedule")))
def test_a_run_interrupted_anywhere_is_repeated_by_the_next_scheduler(
    name: str, fault: str, tmp_path: Path, fork_context: Any
) -> None:
    job = Job(
        name="night",
        cron="0 3 * * *",
        zone="UTC",
        words=(),
        folder=str(tmp_path),
        since=DUE_TIME - timedelta(minutes=1),
        retry_delay=0.01,
    )
    Scheduler(Root(tmp_path / "root")).store.save_job(job)
    child = fork_context.Process(target=run_with_fault, args=(f"{name}={fault}", start_scheduler_once, tmp_path))
    child.start()
    child.join(120)
    if fault == "raise" and name in ("schedule.taken", "schedule.ran"):
        assert child.exitcode == 0, "a failing job does not end the scheduler"
    else:
        assert child.exitcode == (-signal.SIGKILL if fault == "kill" else FAULT_EXIT_CODE)
    scheduler = run_scheduler_to_end(tmp_path)
    state = scheduler.store.load_state("night")
    assert state.last is not None
    assert (state.last.outcome, state.last.call, state.waiting, state.running) == ("done", DUE_TIME, None, None)
    calls = (tmp_path / "calls").read_text().split()
    assert len(calls) == (2 if name == "schedule.ran" else 1), "a run without a recorded end is repeated"
    run_scheduler_to_end(tmp_path)
    assert (tmp_path / "calls").read_text().split() == calls


# A registry that is not writable


def test_a_read_only_registry_is_reported_with_a_workaround(
    promotion_root: PromotionRoot, capsys: pytest.CaptureFixture[str]
) -> None:
    database = promotion_root.root.path / "mlflow.db"
    before = promotion_root.alias(CHAMPION)
    copy = promotion_root.folder / "frozen" / "mlflow.db"
    copy.parent.mkdir()
    shutil.copy(database, copy)
    make_read_only(copy)
    with pytest.raises(SystemExit) as error:
        main(["rollback", "small", "--root", str(copy.parent)])
    assert error.value.code == 1
    stderr = capsys.readouterr().err
    assert "readonly" in stderr
    assert "forecaster rollback small --local" in stderr
    assert Registry(Root(copy.parent).store_uri).resolve("small", CHAMPION).number == before


def make_read_only(database: Path) -> None:
    """Makes a SQLite database read-only, for root too: its header claims a later write format."""
    with database.open("r+b") as file:
        file.seek(18)
        file.write(b"\x03")

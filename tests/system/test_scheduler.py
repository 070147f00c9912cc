"""The scheduler as a process of its own: what was missed is called, SIGTERM ends run and scheduler, the next start goes on."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from forecaster.registry.registry import Registry
from pipelines.scheduling.jobs import Book, State
from pipelines.settings import Root
from tests.pipelines.conftest import noise, small
from tests.system.processes import forecaster, started, wait_until, write_config

pytestmark = pytest.mark.slow
SCHEDULER = ("-m", "pipelines.cli", "schedule", "run", "--root", "root")


@pytest.fixture
def folder(fresh: Root, tmp_path: Path) -> Path:
    noise().to_csv(tmp_path / "data.csv", index=False)
    write_config(tmp_path / "small.yaml", small(steps=200_000, epoch_steps=2))
    typed = ["retrain", "data.csv", "--config", "small.yaml", "--root", "root", "--cron", "0 3 * * *"]
    done = forecaster(*typed, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    book = Book(fresh.schedule)
    [job] = book.jobs()
    book.keep(job.model_copy(update={"since": datetime.now(UTC) - timedelta(days=3)}))
    return tmp_path


def told(folder: Path) -> str:
    return (folder / "process.log").read_text()[-2000:]


def test_a_scheduler_is_ended_while_it_trains_and_goes_on_at_the_next_start(folder: Path) -> None:
    root = Root(folder / "root")
    book = Book(root.schedule)

    def under_way() -> bool:
        return any(root.checkpoints.glob("*/last.ckpt"))

    with started(SCHEDULER, folder) as process:
        wait_until(under_way)
        pid = book.state("small").running
        assert pid is not None
        refused = forecaster("schedule", "run", "--root", "root", folder=folder)
        assert refused.returncode == 1
        assert f"process {process.pid}" in refused.stderr
        status = json.loads(forecaster("schedule", "status", "--json", "--root", "root", folder=folder).stdout)
        assert status["scheduler"]["alive"]
        assert status["jobs"][0]["doing"] == "running"
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0, told(folder)
        assert not psutil.pid_exists(pid), "the training ended with it"
    state: State = book.state("small")
    assert state.last is not None
    assert (state.last.outcome, state.waiting is not None) == ("interrupted", True)
    assert under_way(), "a checkpoint to go on from"

    write_config(folder / "small.yaml", small(steps=4, epoch_steps=2))  # one that ends
    with started(SCHEDULER, folder) as process:
        wait_until(lambda: book.state("small").waiting is None)
        process.send_signal(signal.SIGKILL)
    last = book.state("small").last
    assert last is not None
    assert (last.code, last.outcome) == (0, "done"), book.log_of("small").read_text()[-2000:]
    assert "version 1 is the champion" in last.said
    assert len(Registry(root.store).versions("small")) == 1
    runs = forecaster("schedule", "list", "--root", "root", folder=folder)
    assert "done: small version 1" in runs.stdout

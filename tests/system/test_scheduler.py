"""The scheduler as a process of its own: what was missed is called, SIGTERM ends run and scheduler, the next start goes on."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from forecaster.registry.registry import Registry
from pipelines.scheduling.jobs import JobState, JobStore
from pipelines.settings import Root
from tests.pipelines.conftest import make_noise_frame, make_small_spec
from tests.system.processes import run_forecaster, start_process, wait_until, write_config

pytestmark = pytest.mark.integration
SCHEDULER_COMMAND = ("-m", "pipelines.cli", "schedule", "run", "--root", "root")


@pytest.fixture
def scheduler_folder(fresh_root: Root, tmp_path: Path) -> Path:
    make_noise_frame().to_csv(tmp_path / "data.csv", index=False)
    write_config(tmp_path / "small.yaml", make_small_spec(steps=200_000, epoch_steps=2))
    typed = ["retrain", "data.csv", "--config", "small.yaml", "--root", "root", "--cron", "0 3 * * *"]
    done = run_forecaster(*typed, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    book = JobStore(fresh_root.schedule)
    [job] = book.load_jobs()
    book.save_job(job.model_copy(update={"since": datetime.now(UTC) - timedelta(days=3)}))
    return tmp_path


def read_job_state(folder: Path) -> str:
    return (folder / "process.log").read_text()[-2000:]


def test_a_scheduler_terminated_during_training_resumes_at_the_next_start(scheduler_folder: Path) -> None:
    root = Root(scheduler_folder / "root")
    book = JobStore(root.schedule)

    def under_way() -> bool:
        return any(root.checkpoints.glob("*/last.ckpt"))

    with start_process(SCHEDULER_COMMAND, scheduler_folder) as process:
        wait_until(under_way)
        pid = book.load_state("small").running
        assert pid is not None
        refused = run_forecaster("schedule", "run", "--root", "root", folder=scheduler_folder)
        assert refused.returncode == 1
        assert f"process {process.pid}" in refused.stderr
        status = json.loads(
            run_forecaster("schedule", "status", "--json", "--root", "root", folder=scheduler_folder).stdout
        )
        assert status["scheduler"]["alive"]
        assert status["jobs"][0]["doing"] == "running"
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0, read_job_state(scheduler_folder)
        assert not psutil.pid_exists(pid), "the training ended with it"
    state: JobState = book.load_state("small")
    assert state.last is not None
    assert (state.last.outcome, state.waiting is not None) == ("interrupted", True)
    assert under_way(), "a checkpoint to go on from"

    write_config(scheduler_folder / "small.yaml", make_small_spec(steps=4, epoch_steps=2))  # one that ends
    with start_process(SCHEDULER_COMMAND, scheduler_folder) as process:
        wait_until(lambda: book.load_state("small").waiting is None)
        process.send_signal(signal.SIGKILL)
    last = book.load_state("small").last
    assert last is not None
    assert (last.code, last.outcome) == (0, "done"), book.job_log_path("small").read_text()[-2000:]
    assert "version 1 is the champion" in last.said
    assert len(Registry(root.store_uri).list_versions("small")) == 1
    runs = run_forecaster("schedule", "list", "--root", "root", folder=scheduler_folder)
    assert "done: small version 1" in runs.stdout

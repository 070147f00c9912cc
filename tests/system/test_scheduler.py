"""The scheduler as a process: missed runs are started, SIGTERM ends run and scheduler, and the next start resumes."""

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
from tests.system.fork_server import ForkServer
from tests.system.processes import start_process, wait_until, write_config

pytestmark = pytest.mark.integration
SCHEDULER_COMMAND = ("-m", "pipelines.cli", "schedule", "run", "--root", "root")


@pytest.fixture
def scheduler_folder(fresh_root: Root, tmp_path: Path, fork_server: ForkServer) -> Path:
    make_noise_frame().to_csv(tmp_path / "data.csv", index=False)
    write_config(tmp_path / "small.yaml", make_small_spec(steps=200_000, epoch_steps=2))
    command = ["retrain", "data.csv", "--config", "small.yaml", "--root", "root", "--cron", "0 3 * * *"]
    completed = fork_server.capture(command, tmp_path)
    assert completed.returncode == 0, completed.stderr
    job_store = JobStore(fresh_root.schedule)
    [job] = job_store.load_jobs()
    job_store.save_job(job.model_copy(update={"since": datetime.now(UTC) - timedelta(days=3)}))
    return tmp_path


def read_process_log(folder: Path) -> str:
    return (folder / "process.log").read_text()[-2000:]


def test_a_scheduler_terminated_during_training_resumes_at_the_next_start(
    scheduler_folder: Path, fork_server: ForkServer
) -> None:
    root = Root(scheduler_folder / "root")
    job_store = JobStore(root.schedule)

    def has_checkpoint() -> bool:
        return any(root.checkpoints.glob("*/last.ckpt"))

    with start_process(SCHEDULER_COMMAND, scheduler_folder) as process:
        wait_until(has_checkpoint)
        pid = job_store.load_state("small").running
        assert pid is not None
        rejected = fork_server.capture(["schedule", "run", "--root", "root"], scheduler_folder)
        assert rejected.returncode == 1
        assert f"process {process.pid}" in rejected.stderr
        status = json.loads(
            fork_server.capture(["schedule", "status", "--json", "--root", "root"], scheduler_folder).stdout
        )
        assert status["scheduler"]["alive"]
        assert status["jobs"][0]["doing"] == "running"
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0, read_process_log(scheduler_folder)
        assert not psutil.pid_exists(pid), "the training ended with the scheduler"
    state: JobState = job_store.load_state("small")
    assert state.last is not None
    assert (state.last.outcome, state.waiting is not None) == ("interrupted", True)
    assert has_checkpoint(), "a checkpoint to resume from"

    write_config(scheduler_folder / "small.yaml", make_small_spec(steps=4, epoch_steps=2))  # short enough to end
    with start_process(SCHEDULER_COMMAND, scheduler_folder) as process:
        wait_until(lambda: job_store.load_state("small").waiting is None)
        process.send_signal(signal.SIGKILL)
    last = job_store.load_state("small").last
    assert last is not None
    assert (last.code, last.outcome) == (0, "done"), job_store.job_log_path("small").read_text()[-2000:]
    assert "version 1 is the champion" in last.said
    assert len(Registry(root.store_uri).list_versions("small")) == 1
    runs = fork_server.capture(["schedule", "list", "--root", "root"], scheduler_folder)
    assert "done: small version 1" in runs.stdout

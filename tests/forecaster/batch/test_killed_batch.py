"""A batch that is killed at any moment ends, when it is run again, with the bytes of an undisturbed one."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forecaster.batch.job import BatchJob, run_batch
from forecaster.batch.manifest import FOLDER
from forecaster.batch.shard import identify_model
from tests.case_selection import fail_points_of, sample_cases
from tests.forecaster.batch.conftest import STEPS, make_rows, read_digests, shuffle_rows, write_files
from tests.system.processes import start_process, wait_until

pytestmark = pytest.mark.integration

SHARDS = 12


@pytest.fixture
def killed_job(job: BatchJob, tmp_path: Path) -> BatchJob:
    """A batch with a shuffle, whose undisturbed result is in the folder `expected`."""
    short = make_rows(1, steps=2, first=900)
    rows = make_rows(4 * SHARDS)
    write_files(tmp_path / "input", {"a.parquet": shuffle_rows(rows), "b.parquet": short})
    identity = identify_model(job.bundle, version=None, freq=None, season=None)
    job = replace(job, model=identity.model, shard_rows=4 * STEPS + 1)
    report = run_batch(replace(job, output=str(tmp_path / "expected")))
    assert (report.shards, report.rejected) == (SHARDS, 1)
    return job


def build_command(job: BatchJob, *, workers: int) -> list[str]:
    return [
        *("-m", "pipelines.cli", "batch", str(job.bundle), job.source, "--out", job.output, "--as-of", job.as_of),
        *("--shard-rows", str(job.shard_rows), "--workers", str(workers), "--max-rejects", "1"),
    ]


def count_finished(job: BatchJob) -> int:
    return len(list((Path(job.output) / FOLDER).glob("as_of=*/shards/*.json")))


def kill_at_random(job: BatchJob, folder: Path, *, shards: int, workers: int, delay: float) -> None:
    """Starts the batch and kills its process some time after a number of shards are finished."""
    with start_process(build_command(job, workers=workers), folder) as process:
        wait_until(lambda: process.poll() is not None or count_finished(job) >= shards, pause=0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL, (folder / "process.log").read_text()


def assert_same_bytes(job: BatchJob) -> None:
    expected, found = (read_digests(Path(path)) for path in (Path(job.output).parent / "expected", job.output))
    assert len(expected) == SHARDS + 1
    assert found == expected
    assert [path for path in Path(job.output).rglob("*") if path.name.startswith(".") or "_shuffle" in path.parts] == []


def test_a_batch_killed_twice_at_random_moments_ends_with_the_same_bytes(killed_job: BatchJob, tmp_path: Path) -> None:
    rng = np.random.default_rng()
    for shards in (1, int(rng.integers(3, SHARDS - 3))):
        kill_at_random(killed_job, tmp_path, shards=shards, workers=1, delay=float(rng.uniform(0, 0.01)))
        assert count_finished(killed_job) < SHARDS
    finished = count_finished(killed_job)
    inodes = {path: path.stat().st_ino for path in Path(killed_job.output).glob("as_of=*/part-*.parquet")}
    report = run_batch(killed_job)
    assert report.computed == SHARDS - finished
    assert sum(path.stat().st_ino == inode for path, inode in inodes.items()) >= finished
    assert_same_bytes(killed_job)


@pytest.mark.nightly
def test_a_batch_of_several_workers_killed_many_times_ends_with_the_same_bytes(
    killed_job: BatchJob, tmp_path: Path
) -> None:
    rng = np.random.default_rng()
    for shards in sorted(rng.integers(0, SHARDS - 3, size=8)):
        kill_at_random(killed_job, tmp_path, shards=int(shards), workers=2, delay=float(rng.uniform(0, 0.2)))
    assert run_batch(replace(killed_job, workers=2)).is_complete
    assert_same_bytes(killed_job)


@pytest.mark.parametrize("name", sample_cases(fail_points_of("batch"), stride=4))
def test_a_batch_killed_at_a_fail_point_ends_with_the_same_bytes(
    killed_job: BatchJob, tmp_path: Path, name: str
) -> None:
    command = build_command(killed_job, workers=1)
    with start_process(command, tmp_path, FORECASTER_TEST="1", FORECASTER_FAILPOINTS=f"{name}=kill") as process:
        assert process.wait(60) == -signal.SIGKILL, (tmp_path / "process.log").read_text()
    assert run_batch(killed_job).is_complete
    assert_same_bytes(killed_job)

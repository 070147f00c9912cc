"""A killed search: the repeated command resumes and writes the same result as an uninterrupted one."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from forecaster.registry.registry import create_client
from pipelines.settings import Root
from tests.pipelines.conftest import make_noise_frame, make_small_spec
from tests.system.processes import run_forecaster, start_process, wait_until, write_config

pytestmark = pytest.mark.integration

TRIAL_COUNT = 6
TUNE_COMMAND = ["tune", "meters.csv", "--config", "small.yaml", "--trials", TRIAL_COUNT, "--root", "root"]


def make_search_folder(folder: Path, migrated: Path) -> Path:
    (folder / "root").mkdir(parents=True)
    shutil.copy(migrated / "mlflow.db", folder / "root")
    make_noise_frame(series=6).to_csv(folder / "meters.csv", index=False)
    write_config(folder / "small.yaml", make_small_spec(steps=80, epoch_steps=4))
    return folder


def count_reported_epochs(folder: Path, trial: int) -> int:
    """Returns how many epochs a trial, given by its number in the database, has reported."""
    running = "select trial_id from trials where number = ? and state = 'RUNNING'"
    return count_rows(folder, f"select count(*) from trial_intermediate_values where trial_id in ({running})", trial)


def count_fitted_trials(folder: Path) -> int:
    """Returns how many trials of batches have an outcome."""
    return count_rows(folder, "select count(*) from trial_user_attributes where key = 'outcome'")


def count_rows(folder: Path, query: str, *arguments: int) -> int:
    path = folder / "root" / "tune.db"
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path)) as database:
        try:
            return int(database.execute(query, arguments).fetchone()[0])
        except sqlite3.OperationalError:  # no table yet
            return 0


@pytest.mark.nightly
def test_a_killed_search_resumes_and_finds_the_uninterrupted_result(migrated_root: Path, tmp_path: Path) -> None:
    uninterrupted = make_search_folder(tmp_path / "uninterrupted", migrated_root)
    killed = make_search_folder(tmp_path / "killed", migrated_root)
    completed = run_forecaster(*TUNE_COMMAND, folder=uninterrupted)
    assert completed.returncode == 0, completed.stderr
    for trial in (1, 4):  # the second trial; then the third, after the second was repeated as number 2
        with start_process(["-m", "pipelines.cli", *map(str, TUNE_COMMAND)], killed) as process:
            wait_until(
                lambda number=trial: process.poll() is not None or count_reported_epochs(killed, number) > 1, pause=0.01
            )
            process.send_signal(signal.SIGKILL)
            assert process.wait(20) == -signal.SIGKILL, (killed / "process.log").read_text()
        assert not (killed / "best.yaml").exists()
    resumed = run_forecaster(*TUNE_COMMAND, folder=killed)
    assert resumed.returncode == 0, resumed.stderr
    assert f"3 of {TRIAL_COUNT} trials are done, 1 was interrupted and is repeated." in resumed.stderr
    assert (killed / "best.yaml").read_bytes() == (uninterrupted / "best.yaml").read_bytes()

    client = create_client(Root(killed / "root").store_uri)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.status == "FINISHED"
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert sorted(run.info.status for run in children) == ["FINISHED"] * TRIAL_COUNT + ["KILLED"] * 2


@pytest.mark.nightly
def test_a_killed_search_in_batches_finds_the_uninterrupted_result(migrated_root: Path, tmp_path: Path) -> None:
    command = [*TUNE_COMMAND, "--parallel", 2]
    uninterrupted = make_search_folder(tmp_path / "uninterrupted", migrated_root)
    killed = make_search_folder(tmp_path / "killed", migrated_root)
    completed = run_forecaster(*command, folder=uninterrupted)
    assert completed.returncode == 0, completed.stderr
    for fitted in (1, 4):  # in the middle of the first batch, and when the second one is recorded
        with start_process(["-m", "pipelines.cli", *map(str, command)], killed) as process:
            wait_until(
                lambda count=fitted: process.poll() is not None or count_fitted_trials(killed) >= count, pause=0.01
            )
            process.send_signal(signal.SIGKILL)
            assert process.wait(20) == -signal.SIGKILL, (killed / "process.log").read_text()
        assert not (killed / "best.yaml").exists()
    resumed = run_forecaster(*command, folder=killed)
    assert resumed.returncode == 0, resumed.stderr
    assert count_fitted_trials(killed) == TRIAL_COUNT
    assert (killed / "best.yaml").read_bytes() == (uninterrupted / "best.yaml").read_bytes()

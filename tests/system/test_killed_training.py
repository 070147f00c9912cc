"""Trainings that are killed, terminated or started twice: real processes, real signals, the same weights in the end."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mlflow import MlflowClient

from forecaster.bundle import artifact
from forecaster.registry.registry import create_client
from pipelines.settings import Root
from tests.pipelines.conftest import make_noise_frame, make_small_spec
from tests.system.fork_server import ForkedProcess, ForkServer
from tests.system.processes import CHECKOUT, make_environment, run_forecaster, start_process, wait_until, write_config

pytestmark = pytest.mark.integration

SPEC = make_small_spec(steps=80, epoch_steps=4, patience=0)  # twenty epochs with a checkpoint each
EPOCHS = 20
TRAIN_COMMAND = ["train", "meters.csv", "--config", "small.yaml", "--root", "root"]


class TrainingFolder(NamedTuple):
    """A folder with data, a specification and a root with a migrated database."""

    folder: Path
    root: Root

    @property
    def mlflow_client(self) -> MlflowClient:
        """The tracking client of the root."""
        return create_client(self.root.store_uri)

    def read_weights(self) -> bytes:
        """Returns the weights of the only bundle."""
        (bundle,) = self.list_bundles()
        artifact.load_bundle(bundle)
        return (bundle / "weights.safetensors").read_bytes()

    def list_bundles(self) -> list[Path]:
        """Returns the visible bundles."""
        return [path for path in self.root.bundles.glob("*") if not path.name.startswith(".")]

    def checkpoint(self) -> Path | None:
        """Returns the checkpoint of the current training."""
        return next(self.root.checkpoints.glob("*/last.ckpt"), None)

    def run_id(self) -> str:
        """Returns the run that the current training would resume."""
        (path,) = self.root.checkpoints.glob("*/run_id")
        return path.read_text()

    def run_statuses(self) -> dict[str, str]:
        """Returns the status of every run."""
        client = self.mlflow_client
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return {run.info.run_id: run.info.status for run in client.search_runs(experiments)}

    def read_log(self) -> str:
        """Returns the output of the trainings."""
        return (self.folder / "process.log").read_text()


def make_training_folder(folder: Path, migrated: Path) -> TrainingFolder:
    root = Root(folder / "root")
    root.path.mkdir(parents=True)
    shutil.copy(migrated / "mlflow.db", root.path)
    make_noise_frame().to_csv(folder / "meters.csv", index=False)
    write_config(folder / "small.yaml", SPEC)
    return TrainingFolder(folder, root)


@pytest.fixture
def training_folder(migrated_root: Path, tmp_path: Path) -> TrainingFolder:
    return make_training_folder(tmp_path, migrated_root)


@pytest.fixture(scope="module")
def uninterrupted_weights(
    fork_server: ForkServer, migrated_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """The weights of the same training without interruption."""
    work = make_training_folder(tmp_path_factory.mktemp("uninterrupted"), migrated_root)
    assert fork_server.run(TRAIN_COMMAND, work.folder) == 0, work.read_log()
    assert list(work.run_statuses().values()) == ["FINISHED"]
    return work.read_weights()


def read_epoch(checkpoint: Path) -> int:
    """Returns the completed epochs of a checkpoint; 0 if the training has ended and deleted it."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return 0
    assert all(value.isfinite().all() for value in content["state_dict"].values())
    return int(content["epoch"]) + 1


def wait_for_an_epoch(
    work: TrainingFolder, process: ForkedProcess | subprocess.Popen[bytes], *, after: int = 0
) -> None:
    """Waits until the checkpoint has more epochs or the process has ended."""

    def has_progressed() -> bool:
        checkpoint = work.checkpoint()
        return process.poll() is not None or (checkpoint is not None and read_epoch(checkpoint) > after)

    wait_until(has_progressed, pause=0.01)


def test_a_killed_training_resumes_when_the_command_is_repeated(
    training_folder: TrainingFolder, uninterrupted_weights: bytes
) -> None:
    """Everything is real: the command line, the interpreter, the signal."""
    with start_process(["-m", "pipelines.cli", *TRAIN_COMMAND], training_folder.folder) as process:
        wait_for_an_epoch(training_folder, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL, training_folder.read_log()
    run_id = training_folder.run_id()
    assert training_folder.list_bundles() == []
    assert training_folder.run_statuses() == {run_id: "RUNNING"}, "the killed process could not update the status"
    completed = run_forecaster(*TRAIN_COMMAND, folder=training_folder.folder)
    assert completed.returncode == 0, completed.stderr
    assert f"run     {run_id}" in completed.stdout
    assert "epoch 1 of" not in completed.stderr, "the training did not start from scratch"
    assert training_folder.read_weights() == uninterrupted_weights
    assert training_folder.run_statuses() == {run_id: "FINISHED"}
    metrics = training_folder.mlflow_client.get_run(run_id).data.metrics
    rate = metrics["train/windows_per_s"] * metrics["train/seconds"]
    assert rate < SPEC.training.steps * SPEC.training.batch - 1, "windows before the kill do not count for the rate"


@pytest.mark.nightly
def test_a_repeatedly_killed_training_gives_the_uninterrupted_weights(
    training_folder: TrainingFolder, uninterrupted_weights: bytes, fork_server: ForkServer
) -> None:
    rng, epochs, runs = random.Random(0), [0], set()
    for _ in range(6):
        with fork_server.start(TRAIN_COMMAND, training_folder.folder) as process:
            wait_for_an_epoch(training_folder, process, after=epochs[-1])
            time.sleep(rng.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            if process.wait() == 0:
                break  # the training was complete before the signal
        checkpoint = training_folder.checkpoint()
        assert checkpoint is not None
        epochs.append(read_epoch(checkpoint))
        runs.add(training_folder.run_id())
    assert epochs == sorted(set(epochs)), "every process resumed where the last was killed"
    assert len(epochs) > 3, "too few were killed during training"
    if not training_folder.list_bundles():
        assert fork_server.run(TRAIN_COMMAND, training_folder.folder) == 0, training_folder.read_log()
    assert training_folder.read_weights() == uninterrupted_weights
    assert training_folder.run_statuses() == dict.fromkeys(runs, "FINISHED")
    assert len(runs) == 1
    assert not list(training_folder.root.checkpoints.glob("*/*")), "a completed training leaves no checkpoint"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.nightly)]
)
def test_a_terminated_training_ends_as_killed_and_resumes_later(
    number: signal.Signals,
    code: int,
    training_folder: TrainingFolder,
    uninterrupted_weights: bytes,
    fork_server: ForkServer,
) -> None:
    with fork_server.start(TRAIN_COMMAND, training_folder.folder) as process:
        wait_for_an_epoch(training_folder, process)
        process.send_signal(number)
        assert process.wait() == code, training_folder.read_log()
    assert "Traceback" not in training_folder.read_log()
    if number == signal.SIGINT:
        assert "forecaster: interrupted. The finished epochs are kept in " in training_folder.read_log()
    run_id = training_folder.run_id()
    assert training_folder.run_statuses() == {run_id: "KILLED"}
    assert training_folder.list_bundles() == []
    assert fork_server.run(TRAIN_COMMAND, training_folder.folder) == 0, training_folder.read_log()
    assert training_folder.run_statuses() == {run_id: "FINISHED"}
    assert training_folder.read_weights() == uninterrupted_weights
    history = training_folder.mlflow_client.get_metric_history(run_id, "train/loss")
    assert len({point.step for point in history}) >= EPOCHS - 1, "only the interrupted epoch may be missing"


def test_the_same_training_cannot_run_twice_concurrently(
    training_folder: TrainingFolder, fork_server: ForkServer
) -> None:
    with fork_server.start(TRAIN_COMMAND, training_folder.folder) as process:
        wait_for_an_epoch(training_folder, process)
        process.send_signal(signal.SIGSTOP)  # keeps it running on fast machines
        run_id, log_length = training_folder.run_id(), len(training_folder.read_log())
        assert fork_server.run(TRAIN_COMMAND, training_folder.folder) == 1
        message = training_folder.read_log()[log_length:]
        assert "already running" in message
        assert "Wait for it" in message
        assert "Traceback" not in message
        assert training_folder.run_id() == run_id
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 0, training_folder.read_log()
    assert training_folder.run_statuses() == {run_id: "FINISHED"}, "the second process opened no run"
    assert len(training_folder.list_bundles()) == 1


# Syncs of a training: two for the run id, two per checkpoint, then each file and folder of the bundle.
_CHECKPOINT_SYNCS = 2 + 2 * EPOCHS


@pytest.mark.parametrize(
    ("syncs", "epochs", "moment"),
    [
        (4, 1, "the second checkpoint is written, but not yet renamed"),
        pytest.param(5, 2, "it is renamed, but the rename is not yet synced", marks=pytest.mark.nightly),
        pytest.param(
            _CHECKPOINT_SYNCS + 3,
            EPOCHS,
            "the files of the bundle are written, and three of them are synced",
            marks=pytest.mark.nightly,
        ),
        (_CHECKPOINT_SYNCS + 9, EPOCHS, "the bundle is renamed, but the rename is not yet synced"),
    ],
)
def test_a_kill_during_a_file_write_leaves_the_old_or_the_new_file(
    syncs: int,
    epochs: int,
    moment: str,
    training_folder: TrainingFolder,
    uninterrupted_weights: bytes,
    fork_server: ForkServer,
) -> None:
    with fork_server.start(TRAIN_COMMAND, training_folder.folder, syncs=syncs) as process:
        assert process.wait() == -signal.SIGKILL, training_folder.read_log()
    checkpoint = training_folder.checkpoint()
    assert checkpoint is not None
    assert read_epoch(checkpoint) == epochs, moment
    for bundle in training_folder.list_bundles():
        artifact.load_bundle(bundle)
    assert len(training_folder.list_bundles()) == ("the bundle is renamed" in moment)
    run_id = training_folder.run_id()
    assert fork_server.run(TRAIN_COMMAND, training_folder.folder) == 0, training_folder.read_log()
    assert training_folder.read_weights() == uninterrupted_weights
    assert training_folder.run_statuses() == {run_id: "FINISHED"}
    assert [path for path in training_folder.root.bundles.iterdir() if path.name.startswith(".")] == [], (
        "drafts are deleted"
    )


def test_an_unreadable_checkpoint_is_reported_and_not_overwritten(
    training_folder: TrainingFolder, fork_server: ForkServer
) -> None:
    with fork_server.start(TRAIN_COMMAND, training_folder.folder, syncs=6) as process:
        assert process.wait() == -signal.SIGKILL, training_folder.read_log()
    checkpoint = training_folder.checkpoint()
    assert checkpoint is not None
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert fork_server.run(TRAIN_COMMAND, training_folder.folder) == 1
    assert f"{checkpoint} cannot be read" in training_folder.read_log()
    assert "Traceback" not in training_folder.read_log()
    assert checkpoint.stat().st_size == 1000


# Writes files and creates folders until it is killed.
_WRITER_PROGRAM = """
import sys
from pathlib import Path
from forecaster.storage import atomic
folder = Path(sys.argv[1])
for number in range(10**9):
    atomic.write_file(folder / "file", lambda file: [file.write(bytes([number % 256]) * 4096) for _ in range(64)])
    with atomic.create_folder(folder / f"folder-{number}") as draft:
        for name in "abc":
            (draft / name).write_bytes(bytes([number % 256]) * 4096)
"""


def test_a_kill_at_any_moment_leaves_complete_files_and_folders(tmp_path: Path) -> None:
    rng = random.Random(0)
    for attempt in range(15):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER_PROGRAM, str(folder)],
            env=make_environment(),
            cwd=CHECKOUT,
            start_new_session=True,
        )
        try:
            wait_until((folder / "file").exists, pause=0.002)
            time.sleep(rng.uniform(0, 0.05))
        finally:
            process.kill()
            process.wait(20)
        content = (folder / "file").read_bytes()
        assert len(content) == 4096 * 64
        assert len(set(content)) == 1, "from a single write"
        for created in folder.glob("folder-*"):
            parts = {path.name: path.read_bytes() for path in created.iterdir()}
            assert sorted(parts) == ["a", "b", "c"]
            assert {len(part) for part in parts.values()} == {4096}
            assert len(set(b"".join(parts.values()))) == 1

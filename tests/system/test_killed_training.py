"""Trainings that are killed, told to end, or started twice: real processes, real signals, the same weights in the end."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mlflow import MlflowClient

from forecaster.bundle import artifact
from forecaster.registry.registry import connect
from pipelines.settings import Root
from tests.pipelines.conftest import noise, small
from tests.system.fork_server import Child, Nursery, opened
from tests.system.processes import CHECKOUT, environment, forecaster, started, wait_until, write_config

SPEC = small(steps=80, epoch_steps=4, patience=0)  # twenty epochs, a checkpoint each
EPOCHS = 20
TRAIN = ["train", "meters.csv", "--config", "small.yaml", "--root", "root"]


class Work(NamedTuple):
    """A folder with data, a specification and a root with a migrated database."""

    folder: Path
    root: Root

    @property
    def client(self) -> MlflowClient:
        """The runs of the root."""
        return connect(self.root.store)

    def weights(self) -> bytes:
        """Of the one bundle there is."""
        (bundle,) = self.bundles()
        artifact.load(bundle)
        return (bundle / "weights.safetensors").read_bytes()

    def bundles(self) -> list[Path]:
        """What a person sees as bundles."""
        return [path for path in self.root.bundles.glob("*") if not path.name.startswith(".")]

    def checkpoint(self) -> Path | None:
        """The checkpoint of the training under way."""
        return next(self.root.checkpoints.glob("*/last.ckpt"), None)

    def run_id(self) -> str:
        """The run that the training under way would go on with."""
        (path,) = self.root.checkpoints.glob("*/run_id")
        return path.read_text()

    def runs(self) -> dict[str, str]:
        """The status of every run."""
        client = self.client
        experiments = [one.experiment_id for one in client.search_experiments()]
        return {run.info.run_id: run.info.status for run in client.search_runs(experiments)}

    def log(self) -> str:
        """What its trainings said."""
        return (self.folder / "process.log").read_text()


def make(folder: Path, migrated: Path) -> Work:
    root = Root(folder / "root")
    root.path.mkdir(parents=True)
    shutil.copy(migrated / "mlflow.db", root.path)
    noise().to_csv(folder / "meters.csv", index=False)
    write_config(folder / "small.yaml", SPEC)
    return Work(folder, root)


@pytest.fixture
def work(migrated: Path, tmp_path: Path) -> Work:
    return make(tmp_path, migrated)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with opened() as found:
        yield found


@pytest.fixture(scope="module")
def uninterrupted(nursery: Nursery, migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the same training when nothing happens to it."""
    work = make(tmp_path_factory.mktemp("uninterrupted"), migrated)
    assert nursery.run(TRAIN, work.folder) == 0, work.log()
    assert list(work.runs().values()) == ["FINISHED"]
    return work.weights()


def readable(checkpoint: Path) -> int:
    """The epochs done that a checkpoint tells of; none where the training has ended since, and taken it away."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return 0
    assert all(value.isfinite().all() for value in content["state_dict"].values())
    return int(content["epoch"]) + 1


def wait_for_an_epoch(work: Work, process: Child | subprocess.Popen[bytes], *, after: int = 0) -> None:
    """Until the checkpoint tells of more epochs, or the process has ended."""

    def has_come() -> bool:
        checkpoint = work.checkpoint()
        return process.poll() is not None or (checkpoint is not None and readable(checkpoint) > after)

    wait_until(has_come, pause=0.01)


@pytest.mark.slow
def test_the_command_that_was_killed_is_typed_again_and_goes_on(work: Work, uninterrupted: bytes) -> None:
    """All of it real: the command line, the interpreter, the signal."""
    with started(["-m", "pipelines.cli", *TRAIN], work.folder) as process:
        wait_for_an_epoch(work, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL, work.log()
    run_id = work.run_id()
    assert work.bundles() == []
    assert work.runs() == {run_id: "RUNNING"}, "nobody was left to say that it ended"
    done = forecaster(*TRAIN, folder=work.folder)
    assert done.returncode == 0, done.stderr
    assert f"run     {run_id}" in done.stdout
    assert "epoch 1 of" not in done.stderr, "it did not begin anew"
    assert work.weights() == uninterrupted
    assert work.runs() == {run_id: "FINISHED"}
    metrics = work.client.get_run(run_id).data.metrics
    rate = metrics["train/windows_per_s"] * metrics["train/seconds"]
    assert rate < SPEC.training.steps * SPEC.training.batch - 1, "what was made before the kill took no time of this"


@pytest.mark.slow
@pytest.mark.sweep
def test_a_training_that_is_killed_again_and_again_ends_in_the_weights_of_an_uninterrupted_one(
    work: Work, uninterrupted: bytes, nursery: Nursery
) -> None:
    draw, seen, runs = random.Random(0), [0], set()
    for _ in range(6):
        with nursery.started(TRAIN, work.folder) as process:
            wait_for_an_epoch(work, process, after=seen[-1])
            time.sleep(draw.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            if process.wait() == 0:
                break  # it was done before
        checkpoint = work.checkpoint()
        assert checkpoint is not None
        seen.append(readable(checkpoint))
        runs.add(work.run_id())
    assert seen == sorted(set(seen)), "every process went on where the last was killed"
    assert len(seen) > 3, "too few were killed while they trained"
    if not work.bundles():
        assert nursery.run(TRAIN, work.folder) == 0, work.log()
    assert work.weights() == uninterrupted
    assert work.runs() == dict.fromkeys(runs, "FINISHED")
    assert len(runs) == 1
    assert not list(work.root.checkpoints.glob("*/*")), "nothing is left of a training that ended well"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_training_that_is_told_to_end_leaves_killed_and_goes_on_later(
    number: signal.Signals, code: int, work: Work, uninterrupted: bytes, nursery: Nursery
) -> None:
    with nursery.started(TRAIN, work.folder) as process:
        wait_for_an_epoch(work, process)
        process.send_signal(number)
        assert process.wait() == code, work.log()
    assert "Traceback" not in work.log()
    run_id = work.run_id()
    assert work.runs() == {run_id: "KILLED"}
    assert work.bundles() == []
    assert nursery.run(TRAIN, work.folder) == 0, work.log()
    assert work.runs() == {run_id: "FINISHED"}
    assert work.weights() == uninterrupted
    history = work.client.get_metric_history(run_id, "train/loss")
    assert len({point.step for point in history}) >= EPOCHS - 1, "but for the epoch that was cut short, none is missing"


@pytest.mark.slow
def test_the_same_training_started_twice_is_refused_the_second_time(work: Work, nursery: Nursery) -> None:
    with nursery.started(TRAIN, work.folder) as process:
        wait_for_an_epoch(work, process)
        process.send_signal(signal.SIGSTOP)  # however fast the machine, it is still at it
        run_id, said = work.run_id(), len(work.log())
        assert nursery.run(TRAIN, work.folder) == 1
        refusal = work.log()[said:]
        assert "running already" in refusal
        assert "Wait for it" in refusal
        assert "Traceback" not in refusal
        assert work.run_id() == run_id
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 0, work.log()
    assert work.runs() == {run_id: "FINISHED"}, "the second one opened no run"
    assert len(work.bundles()) == 1


# What a training syncs: twice for the run's id, twice for each checkpoint, then each file and folder of the bundle.
_CHECKPOINTS = 2 + 2 * EPOCHS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("syncs", "epochs", "moment"),
    [
        (4, 1, "the second checkpoint is written, but not yet renamed"),
        (5, 2, "it is renamed, but its name is not yet sure to last"),
        (_CHECKPOINTS + 3, EPOCHS, "the files of the bundle are written, three of them are synced"),
        (_CHECKPOINTS + 9, EPOCHS, "the bundle is renamed, and its name is not yet sure to last"),
    ],
)
def test_a_kill_while_a_file_is_written_leaves_the_old_or_the_new(
    syncs: int, epochs: int, moment: str, work: Work, uninterrupted: bytes, nursery: Nursery
) -> None:
    with nursery.started(TRAIN, work.folder, syncs=syncs) as process:
        assert process.wait() == -signal.SIGKILL, work.log()
    checkpoint = work.checkpoint()
    assert checkpoint is not None
    assert readable(checkpoint) == epochs, moment
    for bundle in work.bundles():
        artifact.load(bundle)
    assert len(work.bundles()) == ("the bundle is renamed" in moment)
    run_id = work.run_id()
    assert nursery.run(TRAIN, work.folder) == 0, work.log()
    assert work.weights() == uninterrupted
    assert work.runs() == {run_id: "FINISHED"}
    assert [path for path in work.root.bundles.iterdir() if path.name.startswith(".")] == [], "drafts are cleared away"


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_read_is_told_and_not_trained_over(work: Work, nursery: Nursery) -> None:
    with nursery.started(TRAIN, work.folder, syncs=6) as process:
        assert process.wait() == -signal.SIGKILL, work.log()
    checkpoint = work.checkpoint()
    assert checkpoint is not None
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert nursery.run(TRAIN, work.folder) == 1
    assert f"The checkpoint {checkpoint} cannot be read" in work.log()
    assert "Traceback" not in work.log()
    assert checkpoint.stat().st_size == 1000


# Writes one file and makes one folder after the other, until it is killed.
_WRITER = """
import sys
from pathlib import Path
from forecaster import durable
here = Path(sys.argv[1])
for number in range(10**9):
    durable.write(here / "file", lambda file: [file.write(bytes([number % 256]) * 4096) for _ in range(64)])
    with durable.new_folder(here / f"folder-{number}") as draft:
        for name in "abc":
            (draft / name).write_bytes(bytes([number % 256]) * 4096)
"""


def test_a_kill_at_any_moment_leaves_whole_files_and_whole_folders(tmp_path: Path) -> None:
    draw = random.Random(0)
    for attempt in range(15):
        here = tmp_path / str(attempt)
        here.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(here)], env=environment(), cwd=CHECKOUT, start_new_session=True
        )
        try:
            wait_until((here / "file").exists, pause=0.002)
            time.sleep(draw.uniform(0, 0.05))
        finally:
            process.kill()
            process.wait(20)
        content = (here / "file").read_bytes()
        assert len(content) == 4096 * 64
        assert len(set(content)) == 1, "of one writing"
        for folder in here.glob("folder-*"):
            parts = {path.name: path.read_bytes() for path in folder.iterdir()}
            assert sorted(parts) == ["a", "b", "c"]
            assert {len(part) for part in parts.values()} == {4096}
            assert len(set(b"".join(parts.values()))) == 1

"""Runs as MLflow stores them, on real SQLite stores."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import DatasetInput

from forecaster.errors import NoSuchModel, RegistryError
from forecaster.registry.registry import create_client
from forecaster.spec import Spec
from forecaster.training.lightning import pl
from pipelines.settings import resolve_tracking_uri
from pipelines.tracking.figures import build_image_files
from pipelines.tracking.interrupted_runs import INTERRUPTED_TAG, PROCESS_TAG, identify_process
from pipelines.tracking.logger import flatten_params
from pipelines.tracking.run import RunDataset, TrackedRun, open_run

pytestmark = pytest.mark.integration

SPEC = Spec(name="sine", context=30, horizon=3)
DATA_SET = RunDataset(
    "sine.csv", "ab" * 32, "postgresql://someone:s3cret@db/series", pd.Timestamp("2026-01-31T23:00", tz="UTC")
)


@pytest.fixture
def root(migrated_root: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "a root"
    folder.mkdir()
    shutil.copy(migrated_root / "mlflow.db", folder)
    return folder


@pytest.fixture
def client(root: Path) -> MlflowClient:
    return create_client(resolve_tracking_uri(root))


def run_data_sets(client: MlflowClient, run_id: str) -> list[DatasetInput]:
    inputs = client.get_run(run_id).inputs
    assert inputs is not None
    return inputs.dataset_inputs


def end_run_with(error: type[BaseException], run: TrackedRun) -> None:
    run.logger.log_metrics({"train/loss": 1.0}, 1)
    raise error


def test_one_invalid_name_does_not_drop_its_batch(
    root: Path, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    with open_run(SPEC, DATA_SET, root=root, trigger="test") as run:
        run.logger.log_metrics({"a": 1.0, "what?": 2.0, "b": 3.0})
        run.logger.log_hyperparams({f"p{i}": i for i in range(250)})
    stored = client.get_run(run.id).data
    assert stored.metrics == {"a": 1.0, "b": 3.0}
    assert stored.params.items() >= {f"p{i}": str(i) for i in range(250)}.items(), "more than MLflow stores in one call"
    assert [message for message in caplog.messages if "what?" in message]


def test_a_run_records_what_is_logged(root: Path, client: MlflowClient, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    (tmp_path / "notes.txt").write_text("notes")
    with open_run(SPEC, DATA_SET, root=root, trigger="schedule", parent_run_id="f" * 32) as run:
        run.logger.log_metrics({"train/loss": 0.5}, 7)
        run.log_headline_metrics({"bt/mase": 0.9, "bt/coverage_80": 0.81})
        run.log_curve("bt_h/mase", [0.7, 0.9, 1.1])
        run.log_figure("plots/forecast.png", Figure())
        run.log_artifact(tmp_path / "notes.txt")
        run.log_model_card("# sine\n")
        run.set_tag("note", "by hand")

    stored = client.get_run(run.id)
    assert stored.info.status == "FINISHED"
    assert re.fullmatch(r"sine train \d{4}-\d\d-\d\d \d\d:\d\d", stored.info.run_name)
    assert stored.data.tags["mlflow.note.content"] == "# sine\n", "the description in the UI"
    assert client.get_experiment(stored.info.experiment_id).name == "sine"
    assert stored.data.params == flatten_params(SPEC.model_dump())
    assert stored.data.params["network.cell"] == "gru"
    assert stored.data.metrics == {"train/loss": 0.5, "bt/mase": 0.9, "bt/coverage_80": 0.81, "bt_h/mase": 1.1}
    curve = client.get_metric_history(run.id, "bt_h/mase")
    assert [(point.step, point.value) for point in curve] == [(1, 0.7), (2, 0.9), (3, 1.1)]
    assert stored.data.tags.items() >= {
        ("trigger", "schedule"),
        ("cutoff", "2026-01-31T23:00:00+00:00"),
        ("data_digest", "ab" * 32),
        ("parent", "f" * 32),
        ("mlflow.parentRunId", "f" * 32),
        ("note", "by hand"),
    }
    assert stored.data.tags["mlflow.loggedImages"] == "True", "the image grid of the UI shows it too"
    files = [path for path in (root / "mlruns" / run.id).rglob("*") if path.is_file()]
    assert {path.suffix for path in files if path.parent.name == "images"} == {".png", ".webp"}
    assert {path.name for path in files if path.parent.name != "images"} == {
        "forecast.png",
        "notes.txt",
        "model_card.md",
    }


def test_a_logged_image_equals_that_of_mlflow(root: Path, client: MlflowClient) -> None:
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(6, 3), dpi=100, facecolor="#c2410c")
    figure.text(0.1, 0.5, "text")
    with open_run(SPEC, DATA_SET, root=root, trigger="test") as run:
        run.log_figure("plots/forecast.png", figure)
        run.logger.close("FINISHED")
        ours = {path.name: path for path in (root / "mlruns" / run.id).rglob("*") if path.is_file()}
        image_path = ours.pop("forecast.png")
        with Image.open(image_path) as image:
            image.load()
            client.log_image(run.id, image, key="forecast", synchronous=True)
    assert client.get_run(run.id).data.tags["mlflow.loggedImages"] == "True"
    images = (root / "mlruns" / run.id / "artifacts" / "images").iterdir()
    theirs = {path.name: path for path in images if path.name not in ours}
    for suffix in (".png", "+compressed.webp"):
        (mine,), (other,) = ([name for name in files if name.endswith(suffix)] for files in (ours, theirs))
        assert re.sub(r"timestamp\+\d{13}\+[0-9a-f-]{36}", "", mine) == re.sub(
            r"timestamp\+\d{13}\+[0-9a-f-]{36}", "", other
        )
        with Image.open(ours[mine]) as our_image, Image.open(theirs[other]) as their_image:
            assert our_image.size == their_image.size
            pixels, reference = (np.asarray(image.convert("RGB"), dtype=int) for image in (our_image, their_image))
            difference = np.abs(pixels - reference)
            assert difference.max() == 0 if suffix == ".png" else difference.mean() < 3


def test_the_logged_image_is_the_drawn_figure() -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(build_image_files("noise.png", pixels)["noise.png"])) as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_a_new_run_has_its_tags_and_title_from_the_start(root: Path, client: MlflowClient) -> None:
    with open_run(SPEC, DATA_SET, root=root, trigger="test", run_name="trial 3", tags={"trial": "3"}) as run:
        stored = client.get_run(run.id)
        assert stored.info.run_name == "trial 3"
        assert stored.data.tags.items() >= {("trial", "3"), ("trigger", "test"), ("data_digest", DATA_SET.digest)}
    with open_run(SPEC, DATA_SET, root=root, trigger="test", run_id=run.id, tags={"trial": "4"}):
        assert client.get_run(run.id).data.tags["trial"] == "4"


def test_a_run_records_its_data_set_without_the_password(root: Path, client: MlflowClient) -> None:
    with open_run(SPEC, DATA_SET, root=root, trigger="test") as run:
        pass
    [dataset_input] = run_data_sets(client, run.id)
    assert (dataset_input.dataset.name, dataset_input.dataset.digest) == ("sine.csv", DATA_SET.digest[:36])
    assert json.loads(dataset_input.dataset.source) == {"uri": "postgresql://db/series"}
    assert [(tag.key, tag.value) for tag in dataset_input.tags] == [("mlflow.data.context", "training")]


def test_the_summary_metric_has_the_name_used_by_other_runs(root: Path, client: MlflowClient) -> None:
    with pytest.raises(AssertionError, match=r"bt/mape"), open_run(SPEC, DATA_SET, root=root, trigger="test") as run:
        run.log_headline_metrics({"bt/mape": 1.0})
    assert client.get_run(run.id).info.status == "FAILED"


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_the_run_status_follows_its_context_manager(
    error: type[BaseException], status: str, root: Path, client: MlflowClient
) -> None:
    with pytest.raises(error), open_run(SPEC, DATA_SET, root=root, trigger="test") as run:
        end_run_with(error, run)
    stored = client.get_run(run.id)
    assert stored.info.status == status
    assert stored.data.metrics == {"train/loss": 1.0}


def test_a_run_is_resumed_by_its_id(root: Path, client: MlflowClient) -> None:
    with pytest.raises(KeyboardInterrupt), open_run(SPEC, DATA_SET, root=root, trigger="test") as run:
        end_run_with(KeyboardInterrupt, run)
    with open_run(SPEC, DATA_SET, root=root, trigger="test", run_id=run.id) as resumed:
        assert resumed.id == run.id
        assert client.get_run(run.id).info.status == "RUNNING"
        resumed.logger.log_metrics({"train/loss": 0.5}, 2)
    stored = client.get_run(run.id)
    assert stored.info.status == "FINISHED"
    assert [point.value for point in client.get_metric_history(run.id, "train/loss")] == [1.0, 0.5]
    assert len(run_data_sets(client, run.id)) == 1


def test_a_run_is_not_resumed_as_a_different_one(root: Path, client: MlflowClient) -> None:
    with pytest.raises(NoSuchModel), open_run(SPEC, DATA_SET, root=root, trigger="test", run_id="0" * 32):
        pass
    with open_run(SPEC, DATA_SET, root=root, trigger="test") as run:
        pass
    other = SPEC.model_copy(update={"horizon": 5})
    with (
        pytest.raises(RegistryError, match=r"changed: horizon = 3, now 5\. Resume it with its own spec"),
        open_run(other, DATA_SET, root=root, trigger="test", run_id=run.id),
    ):
        pass
    assert client.get_run(run.id).info.status == "FINISHED"


@pytest.mark.parametrize("name", ["a?b", "50%20"])
def test_a_root_that_does_not_fit_a_database_uri_is_rejected(name: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="Use another folder"):
        resolve_tracking_uri(tmp_path / name)
    assert resolve_tracking_uri(tmp_path / name, "http://localhost:5000") == "http://localhost:5000"


def test_two_runs_in_one_process_are_independent(root: Path, client: MlflowClient, tmp_path: Path) -> None:
    import mlflow

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(root / "mlflow.db", elsewhere)
    before = mlflow.get_tracking_uri()
    with (
        open_run(SPEC, DATA_SET, root=root, trigger="test") as first,
        open_run(SPEC, DATA_SET, root=elsewhere, trigger="test", parent_run_id=first.id) as second,
    ):
        first.logger.log_metrics({"train/loss": 1.0}, 1)
        second.logger.log_metrics({"train/loss": 2.0}, 1)
        assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == before
    assert client.get_run(first.id).data.metrics == {"train/loss": 1.0}
    assert create_client(resolve_tracking_uri(elsewhere)).get_run(second.id).data.metrics == {"train/loss": 2.0}
    assert not (root / "mlruns" / second.id).exists()


def test_a_store_failure_during_training_does_not_end_the_training(
    root: Path, client: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with open_run(SPEC, DATA_SET, root=root, trigger="test") as run:
        (root / "mlruns").mkdir(exist_ok=True)
        (root / "mlruns" / run.id).write_text("in the way")
        run.log_artifact(tmp_path / "notes.txt")
    assert [message for message in caplog.messages if message.startswith("Could not record notes.txt")]
    stored = client.get_run(run.id)
    assert (stored.info.status, stored.data.tags["incomplete"]) == ("FINISHED", "notes.txt")


def test_files_are_uploaded_when_the_store_works_again(root: Path, client: MlflowClient, tmp_path: Path) -> None:
    """The originals, which may be temporary, are gone by then."""
    folder = tmp_path / "backtest"
    folder.mkdir()
    for name in ("a.csv", "notes.txt"):
        (folder / name).write_text(name)
    with open_run(SPEC, DATA_SET, root=root, trigger="test") as run:
        (root / "mlruns").mkdir(exist_ok=True)
        (root / "mlruns" / run.id).write_text("in the way")
        run.log_artifacts(folder, "backtest")
        run.log_artifact(folder / "notes.txt")
        run.log_model_card("# sine\n")
        shutil.rmtree(folder)
        (root / "mlruns" / run.id).unlink()
    artifacts = root / "mlruns" / run.id / "artifacts"
    files = {str(path.relative_to(artifacts)): path.read_text() for path in artifacts.rglob("*") if path.is_file()}
    assert files == {
        "backtest/a.csv": "a.csv",
        "backtest/notes.txt": "notes.txt",
        "notes.txt": "notes.txt",
        "model_card.md": "# sine\n",
    }
    assert "incomplete" not in client.get_run(run.id).data.tags


def test_the_next_run_ends_the_runs_of_processes_that_no_longer_exist(root: Path, client: MlflowClient) -> None:
    own = identify_process(os.getpid())
    assert own is not None
    experiment = client.create_experiment("other")
    processes = {
        "killed": own._replace(pid=2**22 + 1),  # above the highest number of a process
        "reused": own._replace(start="boot/1"),
        "running": own,
        "elsewhere": own._replace(machine="another/pid:[1]", pid=2**22 + 1),
    }
    run_ids = {
        name: client.create_run(experiment, tags={PROCESS_TAG: str(process)}).info.run_id
        for name, process in processes.items()
    }
    run_ids["other program"] = client.create_run(experiment).info.run_id
    with open_run(SPEC, DATA_SET, root=root, trigger="test") as run:
        pass
    assert client.get_run(run.id).data.tags[PROCESS_TAG] == str(own)
    runs = {name: client.get_run(run_id) for name, run_id in run_ids.items()}
    assert {name: stored.info.status for name, stored in runs.items()} == {
        "killed": "KILLED",
        "reused": "KILLED",
        "running": "RUNNING",
        "elsewhere": "RUNNING",
        "other program": "RUNNING",
    }
    assert {name for name, stored in runs.items() if INTERRUPTED_TAG in stored.data.tags} == {"killed", "reused"}
    assert "ended without ending this run" in runs["killed"].data.tags[INTERRUPTED_TAG]


class OneWeightModule(pl.LightningModule):
    """A module with one weight vector that learns the batch mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.weight = torch.nn.Parameter(torch.zeros(width))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = ((self.weight - batch[0]) ** 2).mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


# Warnings of Lightning itself: it uses a class that torch deprecates, and it recommends more workers.
@pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning:pytorch_lightning.utilities._pytree"
)
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers:UserWarning:pytorch_lightning")
def test_lightning_logs_to_the_run(root: Path, client: MlflowClient) -> None:
    with open_run(SPEC, DATA_SET, root=root, trigger="test") as run:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            log_every_n_steps=1,
            logger=run.logger,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(OneWeightModule(1), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(3, 1))))
        run.log_headline_metrics({"bt/mase": 0.9})
    stored = client.get_run(run.id)
    assert stored.data.params.items() >= {("width", "1"), ("name", "sine")}
    losses = client.get_metric_history(run.id, "train/loss")
    assert [point.step for point in losses] == list(range(6))
    assert losses[-1].value < losses[0].value == 1.0
    assert stored.data.metrics["bt/mase"] == 0.9


TRAINING_PROGRAM = """
import sys, time
from pathlib import Path
import pandas as pd
from forecaster.spec import Spec
from forecaster.training.lightning import pl
from pipelines.tracking.run import RunDataset, open_run

data = RunDataset("sine.csv", "ab" * 32, "sine.csv", pd.Timestamp("2026-01-31"))
with open_run(Spec(name="sine", context=30, horizon=3), data, root=Path(sys.argv[1]), trigger="test") as run:
    run.logger.log_metrics({"train/loss": 1.0}, 1)
    print(run.id, flush=True)
    time.sleep(60)
"""


def test_a_terminated_training_ends_as_killed_with_all_its_metrics(root: Path, client: MlflowClient) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TRAINING_PROGRAM, str(root)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as training:
        assert training.stdout is not None
        run_id = training.stdout.readline().strip()
        training.send_signal(signal.SIGTERM)
        assert training.wait(30) == 128 + signal.SIGTERM
    stored = client.get_run(run_id)
    assert stored.info.status == "KILLED"
    assert stored.data.metrics == {"train/loss": 1.0}


def test_logging_a_metric_takes_microseconds(root: Path) -> None:
    with open_run(SPEC, DATA_SET, root=root, trigger="test") as run:
        started = time.perf_counter()
        for step in range(2000):
            run.logger.log_metrics({"train/loss": 1.0, "train/lr": 0.1}, step)
        assert (time.perf_counter() - started) / 2000 < 1e-3

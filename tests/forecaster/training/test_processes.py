"""Several processes that train one model together: the result of one process, refusals, and the loss of a process."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl

from forecaster.errors import BadSpec, InputError, TrainingError
from forecaster.spec import Spec
from forecaster.training.devices import validate_device
from forecaster.training.fit import FitResult, fit
from forecaster.training.processes import refuse_other_launchers
from tests.factories import make_panel, make_spec, make_wave

pytestmark = pytest.mark.integration

WITH_GAPS = np.where(np.arange(50) % 7, make_wave(50, seed=1), np.nan)
PANEL = make_panel(make_wave(60), 4 * WITH_GAPS, make_wave(40, seed=2))
TRAINING = {"steps": 50, "epoch_steps": 10, "batch": 8, "learning_rate": 0.02, "valid_windows": 2, "unroll": 1}


class RecordingLogger(pl.loggers.Logger):
    """Keeps the scores of every epoch."""

    name, version = "recording", "0"

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.epochs.append(dict(metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Keeps nothing."""


def build_spec(**training: Any) -> Spec:
    return make_spec(
        members=2, network={"dropout": 0.0}, training=TRAINING | {"weighting": "seasonal_error"} | training
    )


def fit_on(
    devices: str, *, checkpoint: Path | None = None, callbacks: Any = ()
) -> tuple[FitResult, list[dict[str, float]]]:
    logger = RecordingLogger()
    fitted = fit(
        PANEL,
        build_spec(),
        accelerator="cpu",
        devices=devices,
        loggers=[logger],
        checkpoint=checkpoint,
        callbacks=callbacks,
    )
    return fitted, logger.epochs


def test_two_processes_have_the_losses_and_the_weights_of_one() -> None:
    (one, one_epochs), (two, two_epochs) = fit_on("1"), fit_on("2")
    assert len(two_epochs) == len(one_epochs) == 5
    for one_scores, two_scores in zip(one_epochs, two_epochs, strict=True):
        assert two_scores == pytest.approx(one_scores, abs=1e-5)
    for one_weights, two_weights in zip(one.model.weights, two.model.weights, strict=True):
        for name, values in one_weights.items():
            np.testing.assert_allclose(two_weights[name], values, atol=1e-4)
    assert not multiprocessing.active_children()


def test_a_batch_that_cannot_be_shared_is_refused_before_a_process_starts() -> None:
    with pytest.raises(BadSpec, match=r"multiple of the 3 devices.*found 8\. Use 6"):
        fit(PANEL, build_spec(), accelerator="cpu", devices="3")


def test_devices_that_lightning_would_start_the_program_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    validate_device(accelerator="cpu", devices="2", allow_several=True)
    for module in ("fit", "devices"):  # as for "-1" on a machine with two GPUs
        monkeypatch.setattr(f"forecaster.training.{module}.count_devices", lambda devices: 1)
    with pytest.raises(InputError, match="found '2', by which Lightning selects 2"):
        validate_device(accelerator="cpu", devices="2", allow_several=True)
    with pytest.raises(InputError, match="found '2', by which Lightning selects 2"):
        fit(PANEL, build_spec(), accelerator="cpu", devices="2")


def test_a_launch_by_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_other_launchers()
    monkeypatch.setenv("WORLD_SIZE", "1")
    refuse_other_launchers()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(InputError, match=r"found process 2 of 4, as torchrun starts them.*--devices 4"):
        refuse_other_launchers()


@pytest.mark.nightly
def test_a_training_that_lost_a_process_says_so_and_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    class KillOther(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 2:
                [other] = multiprocessing.active_children()
                other.kill()

    checkpoint = tmp_path / "fit.ckpt"
    with pytest.raises(
        TrainingError, match=r"Expected 2 processes until the end.*training process 1 ended with code -9"
    ):
        fit_on("2", checkpoint=checkpoint, callbacks=[KillOther()])
    assert not multiprocessing.active_children()
    resumed, _ = fit_on("2", checkpoint=checkpoint)
    undisturbed, _ = fit_on("2")
    assert (resumed.resumed_steps, resumed.steps) == (20, 50)
    for resumed_weights, weights in zip(resumed.model.weights, undisturbed.model.weights, strict=True):
        for name, values in weights.items():
            np.testing.assert_array_equal(resumed_weights[name], values)

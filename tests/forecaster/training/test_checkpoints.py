"""Checkpoints of other fits, damaged checkpoints, and fits that stop at non-finite numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forecaster.errors import CheckpointMismatch, NonFiniteLoss
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.fit import fit_digest
from forecaster.training.lightning import pl
from tests.factories import make_panel, make_spec, make_wave
from tests.forecaster.training.fitting import (
    PANEL,
    TRAINING,
    FaultInjector,
    SimulatedCrash,
    fit_on_cpu,
    make_fit_spec,
    raise_crash,
)

pytestmark = pytest.mark.integration


def interrupt_fit(checkpoint: Path, spec: Spec) -> None:
    with pytest.raises(SimulatedCrash):
        fit_on_cpu(PANEL, spec, checkpoint=checkpoint, callbacks=[FaultInjector(1, 0, raise_crash)])


OTHER_FITS = {
    "another seed": (PANEL, make_fit_spec(seed=1)),
    "another learning rate": (PANEL, make_fit_spec(learning_rate=0.03)),
    "another network": (PANEL, make_spec(cell="lstm", layers=1, training=TRAINING)),
    "other data": (make_panel(make_wave(60), make_wave(50, seed=1)), make_fit_spec()),
}


@pytest.mark.parametrize("other_fit", OTHER_FITS)
def test_a_checkpoint_of_a_different_fit_is_rejected_and_kept(other_fit: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "fit.ckpt"
    interrupt_fit(checkpoint, make_fit_spec())
    content = checkpoint.read_bytes()
    with pytest.raises(CheckpointMismatch, match="different data or a different specification") as error:
        fit_on_cpu(*OTHER_FITS[other_fit], checkpoint=checkpoint)
    assert error.value.where == str(checkpoint)
    assert "Remove it" in error.value.message
    assert checkpoint.read_bytes() == content


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "other pickle"])
def test_a_damaged_checkpoint_is_rejected(damage: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "fit.ckpt"
    interrupt_fit(checkpoint, make_fit_spec())
    content = checkpoint.read_bytes()
    if damage == "other pickle":
        torch.save({"a": Path("/")}, checkpoint)
    else:
        checkpoint.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"weights"}[damage])
    with pytest.raises(CheckpointMismatch, match="cannot be read") as error:
        fit_on_cpu(PANEL, make_fit_spec(), checkpoint=checkpoint)
    assert error.value.where == str(checkpoint)


def test_a_foreign_checkpoint_is_rejected(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "fit.ckpt")
    with pytest.raises(CheckpointMismatch):
        fit_on_cpu(PANEL, make_fit_spec(), checkpoint=tmp_path / "fit.ckpt")


def test_a_non_finite_loss_stops_the_fit_and_saves_nothing(tmp_path: Path) -> None:
    spec = make_spec(scaling="none", training=TRAINING | {"learning_rate": 1e30})
    with pytest.raises(NonFiniteLoss, match="Lower the learning rate") as error:
        fit_on_cpu(PANEL, spec, checkpoint=tmp_path / "fit.ckpt")
    assert "at step 2 (epoch 0)" in error.value.message, "the first step, whose loss was finite, diverged"
    assert error.value.where == "train/loss"
    assert list(tmp_path.iterdir()) == []


def set_weights_to_nan(module: pl.LightningModule) -> None:
    with torch.no_grad():
        module.network.output.bias.fill_(float("nan"))


@pytest.mark.parametrize("steps_per_chunk", [1, 2, 25])
def test_a_loss_that_becomes_non_finite_is_reported_with_its_step_and_keeps_the_last_good_checkpoint(
    steps_per_chunk: int, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "fit.ckpt"
    batch = 1 if steps_per_chunk < 3 else 0
    step = 6 + batch * steps_per_chunk + 1
    with pytest.raises(NonFiniteLoss, match=rf"train/loss is nan at step {step} \(epoch 2\)"):
        fit_on_cpu(
            PANEL,
            make_fit_spec(),
            checkpoint=checkpoint,
            callbacks=[FaultInjector(2, batch, set_weights_to_nan)],
            steps_per_chunk=steps_per_chunk,
        )
    content = torch.load(checkpoint, weights_only=True)
    assert content["epoch"] == 1
    assert all(weight.isfinite().all() for weight in content["state_dict"].values())


def test_a_non_finite_rollout_stops_the_fit(tmp_path: Path) -> None:
    class NanWeightsCallback(pl.Callback):
        def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            set_weights_to_nan(pl_module)

    with pytest.raises(NonFiniteLoss, match="valid/loss is nan at the end of epoch 0"):
        fit_on_cpu(PANEL, make_fit_spec(), checkpoint=tmp_path / "fit.ckpt", callbacks=[NanWeightsCallback()])
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_write_failure_stops_the_fit(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for steps in (3, 11):  # the write happens during the next epoch, or as the fit ends
        with pytest.raises(OSError, match="file"):
            fit_on_cpu(PANEL, make_fit_spec(steps=steps), checkpoint=tmp_path / "file" / "fit.ckpt")


def test_the_digest_of_a_fit_covers_data_and_spec() -> None:
    digests = {fit_digest(*other_fit) for other_fit in OTHER_FITS.values()} | {fit_digest(PANEL, make_fit_spec())}
    assert len(digests) == len(OTHER_FITS) + 1
    assert fit_digest(PANEL, make_fit_spec()) == fit_digest(Panel(PANEL.series, "h", ("sorted",)), make_fit_spec())

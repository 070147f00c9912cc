"""Checkpoints of another fit, damaged ones, and fits that end because their numbers do."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from forecaster.errors import CheckpointMismatch, NonFiniteLoss
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.fit import fit_digest
from tests.factories import make_spec, panel_of, wave
from tests.forecaster.training.fitting import PANEL, TRAINING, Crash, Fault, crash, on_cpu, spec_of


def interrupted(checkpoint: Path, spec: Spec) -> None:
    with pytest.raises(Crash):
        on_cpu(PANEL, spec, checkpoint=checkpoint, callbacks=[Fault(1, 0, crash)])


OTHERS = {
    "another seed": (PANEL, spec_of(seed=1)),
    "another learning rate": (PANEL, spec_of(learning_rate=0.03)),
    "another network": (PANEL, make_spec(cell="lstm", layers=1, training=TRAINING)),
    "other data": (panel_of(wave(60), wave(50, seed=1)), spec_of()),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_fit_is_refused_and_left(other: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "fit.ckpt"
    interrupted(checkpoint, spec_of())
    before = checkpoint.read_bytes()
    with pytest.raises(CheckpointMismatch, match="other data or another specification") as error:
        on_cpu(*OTHERS[other], checkpoint=checkpoint)
    assert error.value.where == str(checkpoint)
    assert "Remove it" in error.value.message
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "other pickle"])
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "fit.ckpt"
    interrupted(checkpoint, spec_of())
    content = checkpoint.read_bytes()
    if damage == "other pickle":
        torch.save({"a": Path("/")}, checkpoint)
    else:
        checkpoint.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"weights"}[damage])
    with pytest.raises(CheckpointMismatch, match="cannot be read") as error:
        on_cpu(PANEL, spec_of(), checkpoint=checkpoint)
    assert error.value.where == str(checkpoint)


def test_a_checkpoint_that_is_not_one_of_ours_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "fit.ckpt")
    with pytest.raises(CheckpointMismatch):
        on_cpu(PANEL, spec_of(), checkpoint=tmp_path / "fit.ckpt")


def test_a_loss_that_is_not_finite_stops_the_fit_and_nothing_is_saved(tmp_path: Path) -> None:
    spec = make_spec(scaling="none", training=TRAINING | {"learning_rate": 1e30})
    with pytest.raises(NonFiniteLoss, match="Lower the learning rate") as error:
        on_cpu(PANEL, spec, checkpoint=tmp_path / "fit.ckpt")
    assert "at step 2 (epoch 0)" in error.value.message, "the first step, whose loss was finite, went astray"
    assert error.value.where == "train/loss"
    assert list(tmp_path.iterdir()) == []


def spoil(module: pl.LightningModule) -> None:
    with torch.no_grad():
        module.network.output.bias.fill_(float("nan"))


@pytest.mark.parametrize("steps_at_once", [1, 2, 25])
def test_a_loss_that_stops_being_finite_is_told_with_its_step_and_leaves_the_last_good_checkpoint(
    steps_at_once: int, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "fit.ckpt"
    batch = 1 if steps_at_once < 3 else 0
    step = 6 + batch * steps_at_once + 1
    with pytest.raises(NonFiniteLoss, match=rf"train/loss is nan at step {step} \(epoch 2\)"):
        on_cpu(
            PANEL,
            spec_of(),
            checkpoint=checkpoint,
            callbacks=[Fault(2, batch, spoil)],
            steps_at_once=steps_at_once,
        )
    content = torch.load(checkpoint, weights_only=True)
    assert content["epoch"] == 1
    assert all(weight.isfinite().all() for weight in content["state_dict"].values())


def test_a_rollout_that_is_not_finite_stops_the_fit(tmp_path: Path) -> None:
    class Spoil(pl.Callback):
        def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            spoil(pl_module)

    with pytest.raises(NonFiniteLoss, match="valid/loss is nan at the end of epoch 0"):
        on_cpu(PANEL, spec_of(), checkpoint=tmp_path / "fit.ckpt", callbacks=[Spoil()])
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_cannot_be_written_stops_the_fit(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for steps in (3, 11):  # written while the next epoch runs, or as the fit ends
        with pytest.raises(OSError, match="file"):
            on_cpu(PANEL, spec_of(steps=steps), checkpoint=tmp_path / "file" / "fit.ckpt")


def test_a_digest_of_a_fit_is_of_its_data_and_its_specification() -> None:
    digests = {fit_digest(*other) for other in OTHERS.values()} | {fit_digest(PANEL, spec_of())}
    assert len(digests) == len(OTHERS) + 1
    assert fit_digest(PANEL, spec_of()) == fit_digest(Panel(PANEL.series, "h", ("sorted",)), spec_of())

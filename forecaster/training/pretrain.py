"""Pretraining: from options to the weights and the fitted model of the pretrained network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from forecaster.bundle.pretrained.specification import BASE_BLOCK, BASE_NAME, base_spec
from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.errors import NonFiniteLoss
from forecaster.frequency.timestamps import parse_bounded_timestamp
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.shape_range import SHAPE_RANGE_FACT, compute_shape_features, learn_shape_ranges
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.synthetic.training_batches import draw_batch, draw_shape
from forecaster.training.allocator import keep_freed_memory
from forecaster.training.checkpoint import AtomicCheckpointIO
from forecaster.training.lightning import Checkpoint, Logger, pl, quiet_lightning
from forecaster.training.pretraining_module import PretrainingModule, PretrainingOptions, SyntheticBatches
from forecaster.training.progress_callback import ProgressCallback

_RANGE_SERIES, _RANGE_BATCH, _RANGE_SEED = 20_000, 100, 1 << 40  # the seed differs from that of every group of batches
_REFERENCE_SEASON, _REFERENCE_FREQUENCY, _REFERENCE_CUTOFF = 12, "MS", "2000-01-01"


class PretrainingResult(NamedTuple):
    """The result of a pretraining.

    Attributes:
        model: The pretrained network as a model of monthly data, from which those of other frequencies follow.
        loss: The mean loss of the last epoch.
        steps: Number of optimiser steps.
        resumed_steps: Those of them made by an earlier process.
    """

    model: FittedModel
    loss: float
    steps: int
    resumed_steps: int


def pretrain(
    options: PretrainingOptions,
    *,
    checkpoint: Path | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[pl.Callback] = (),
    accelerator: str = "auto",
    devices: str = "1",
    progress: Progress = NO_PROGRESS,
) -> PretrainingResult:
    """Trains the base network on synthetic series; on CPU the same options give bitwise the same weights, interrupted or not.

    Args:
        options: All that determines the weights.
        checkpoint: File for the progress; a pretraining with the same options resumes from it. The caller removes it.
        loggers: They get `train/loss` of each epoch.
        callbacks: Further Lightning callbacks.
        accelerator, devices: As for `fit`.
        progress: Its current phase receives the optimiser steps.
    Raises:
        NonFiniteLoss, CheckpointMismatch.
    """
    keep_freed_memory()
    digest = hashlib.sha256(options.model_dump_json().encode()).hexdigest()
    module, saver = PretrainingModule(options), _EpochCheckpoint(checkpoint, fit_digest=digest)
    resume = checkpoint if checkpoint is not None and checkpoint.exists() else None
    with quiet_lightning():
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=int(devices) if devices.isdecimal() else devices,
            max_epochs=-(-options.steps // options.epoch_steps),
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            gradient_clip_val=options.gradient_clip,
            logger=list(loggers) or False,
            callbacks=[saver, ProgressCallback(progress), *callbacks],
            plugins=[AtomicCheckpointIO(fit_digest=digest)],
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(
            module, train_dataloaders=None, datamodule=_SyntheticData(options), ckpt_path=resume, weights_only=True
        )
    module.cpu().load_averages()
    network = module.networks.for_season(_REFERENCE_SEASON).eval()
    model = FittedModel(
        base_spec(_REFERENCE_SEASON, horizon=BASE_BLOCK, name=BASE_NAME, network=options.network.model_dump()),
        _REFERENCE_FREQUENCY,
        _REFERENCE_SEASON,
        parse_bounded_timestamp(_REFERENCE_CUTOFF, freq=_REFERENCE_FREQUENCY),
        EMPTY_ENCODING,
        network,
        facts={
            "pretraining": options.model_dump(mode="json"),
            SHAPE_RANGE_FACT: {
                name: list(bounds) for name, bounds in learn_synthetic_ranges(seed=options.seed).items()
            },
        },
    )
    return PretrainingResult(model, saver.loss, trainer.global_step, saver.resumed_steps)


def learn_synthetic_ranges(*, seed: int) -> dict[str, tuple[float, float]]:
    """Returns the ranges of the shapes of synthetic series, as `predict` compares them with those of a history."""
    rng = np.random.default_rng([seed, _RANGE_SEED])
    features = []
    for _ in range(_RANGE_SERIES // _RANGE_BATCH):
        season, length = draw_shape(rng)
        values = draw_batch(rng, season=season, length=length, count=_RANGE_BATCH).astype(np.float64)
        features.append(compute_shape_features(list(values), season=season))
    return learn_shape_ranges(np.concatenate(features))


class _SyntheticData(pl.LightningDataModule):
    """The batches of one epoch after the other."""

    def __init__(self, options: PretrainingOptions) -> None:
        super().__init__()
        self.options = options

    def train_dataloader(self) -> SyntheticBatches:
        """Returns the batches of the trainer's current epoch."""
        assert self.trainer is not None
        first = self.trainer.current_epoch * self.options.epoch_steps
        steps = min(self.options.epoch_steps, self.options.steps - first)
        return SyntheticBatches(self.options, first_step=first, steps=max(1, steps))


class _EpochCheckpoint(Checkpoint):
    """Saves the whole state after every epoch; training stops with NonFiniteLoss on a loss that is not finite."""

    def __init__(self, path: Path | None, *, fit_digest: str) -> None:
        self.path, self.fit_digest = path, fit_digest
        self.loss, self.resumed_steps = float("nan"), 0

    @property
    def state_key(self) -> str:
        """The key of the callback's state in a checkpoint, where `AtomicCheckpointIO` looks for it."""
        return "Keeper"

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs and saves."""
        self.loss = float(trainer.callback_metrics["train/loss"])
        if not torch.isfinite(torch.tensor(self.loss)):
            raise NonFiniteLoss(
                f"Expected a finite loss; train/loss is {self.loss} after step {trainer.global_step}. Lower the learning rate.",
                where="train/loss",
            )
        if self.path is not None:
            trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that a resume needs."""
        return {"fit": self.fit_digest, "loss": self.loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state from a checkpoint of the same pretraining."""
        self.loss = state_dict["loss"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts the steps of an earlier process."""
        self.resumed_steps = trainer.global_step

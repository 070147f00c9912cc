"""Pretraining: from options to the weights and the fitted model of the pretrained network."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from forecaster.bundle.pretrained.specification import BASE_BLOCK, BASE_NAME, base_spec
from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.errors import NonFiniteLoss
from forecaster.frequency.timestamps import parse_bounded_timestamp
from forecaster.prediction.bounds import EACH_HISTORY, NON_NEGATIVE_FACT
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.shape_range import SHAPE_RANGE_FACT, compute_shape_features, learn_shape_ranges
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.spec import Spec
from forecaster.synthetic.training_batches import draw_batch, draw_shape
from forecaster.training.allocator import keep_freed_memory
from forecaster.training.checkpoint import CHECKPOINT_STATE_KEY, AtomicCheckpointIO
from forecaster.training.devices import parse_devices
from forecaster.training.lightning import Checkpoint, Logger, keep_interrupts, pl, quiet_lightning
from forecaster.training.pretraining.module import PretrainingModule, PretrainingOptions, SyntheticBatches
from forecaster.training.progress_callback import PretrainingProgressCallback

_RANGE_SERIES, _RANGE_BATCH, _RANGE_SEED = 20_000, 100, 1 << 40  # the seed differs from that of every group of batches
_REFERENCE_SEASON, _REFERENCE_FREQUENCY = 12, "MS"
REFERENCE_CUTOFF = parse_bounded_timestamp("2000-01-01", freq=_REFERENCE_FREQUENCY)  # a bundle has one; no data have


class PretrainingResult(NamedTuple):
    """The result of a pretraining.

    Attributes:
        model: The pretrained network as a model of monthly data, from which those of other frequencies follow.
        loss: The mean loss of the last epoch.
        steps: Number of optimiser steps.
        resumed_steps: Those of them made by an earlier process.
        seconds: Duration of all processes that took part, up to the last checkpoint of each.
        cpu_seconds: Their processor time, over all threads.
    """

    model: FittedModel
    loss: float
    steps: int
    resumed_steps: int
    seconds: float
    cpu_seconds: float


def pretraining_digest(options: PretrainingOptions) -> str:
    """Returns the sha256 of the options, by which a checkpoint is recognised."""
    return hashlib.sha256(options.model_dump_json().encode()).hexdigest()


def reference_spec(options: PretrainingOptions) -> Spec:
    """Returns the specification of the pretrained network for monthly data."""
    return base_spec(_REFERENCE_SEASON, horizon=BASE_BLOCK, name=BASE_NAME, network=options.network.model_dump())


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
    digest = pretraining_digest(options)
    module, saver = PretrainingModule(options), _EpochCheckpoint(checkpoint, fit_digest=digest)
    resume = checkpoint if checkpoint is not None and checkpoint.exists() else None
    with keep_interrupts(), quiet_lightning():
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=parse_devices(devices),
            max_epochs=-(-options.steps // options.epoch_steps),
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            gradient_clip_val=options.gradient_clip,
            logger=list(loggers) or False,
            callbacks=[saver, PretrainingProgressCallback(progress), *callbacks],
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
        reference_spec(options),
        _REFERENCE_FREQUENCY,
        _REFERENCE_SEASON,
        REFERENCE_CUTOFF,
        EMPTY_ENCODING,
        network,
        facts={
            "pretraining": options.model_dump(mode="json"),
            "steps": trainer.global_step,
            "loss": saver.loss,
            "seconds": round(saver.seconds, 1),
            "cpu_seconds": round(saver.cpu_seconds, 1),
            "device": trainer.strategy.root_device.type,
            NON_NEGATIVE_FACT: EACH_HISTORY,
            SHAPE_RANGE_FACT: {
                name: list(bounds) for name, bounds in learn_synthetic_ranges(seed=options.seed).items()
            },
        },
    )
    return PretrainingResult(
        model, saver.loss, trainer.global_step, saver.resumed_steps, saver.seconds, saver.cpu_seconds
    )


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
        self.loss, self.steps, self.resumed_steps = float("nan"), 0, 0
        self._earlier = _Duration(0.0, 0.0)
        self._started = _Duration.now()

    @property
    def seconds(self) -> float:
        """The seconds so far, with those of earlier processes."""
        return self._earlier.seconds + _Duration.now().seconds - self._started.seconds

    @property
    def cpu_seconds(self) -> float:
        """The processor time so far, with that of earlier processes."""
        return self._earlier.cpu_seconds + _Duration.now().cpu_seconds - self._started.cpu_seconds

    @property
    def state_key(self) -> str:
        """The key of the callback's state in a checkpoint, where `AtomicCheckpointIO` looks for it."""
        return CHECKPOINT_STATE_KEY

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks and logs the loss, and saves."""
        self.loss = float(trainer.callback_metrics["train/loss"])
        if not torch.isfinite(torch.tensor(self.loss)):
            raise NonFiniteLoss(
                f"Expected a finite loss; train/loss is {self.loss} after step {trainer.global_step}. Lower the learning rate.",
                where="train/loss",
            )
        self.steps = trainer.global_step
        for logger in trainer.loggers:  # not through Lightning, which would count from 0
            logger.log_metrics({"train/loss": self.loss}, self.steps)
        if self.path is not None:
            trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that a resume needs."""
        return {
            "fit": self.fit_digest,
            "loss": self.loss,
            "steps": self.steps,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state from a checkpoint of the same pretraining."""
        self.loss = state_dict["loss"]
        self.steps = self.resumed_steps = state_dict[
            "steps"
        ]  # set here, as a pretraining that had ended does not start again
        self._earlier = _Duration(state_dict["seconds"], state_dict["cpu_seconds"])


class _Duration(NamedTuple):
    """Wall clock and processor time, in seconds."""

    seconds: float
    cpu_seconds: float

    @classmethod
    def now(cls) -> _Duration:
        """Returns the present on both clocks."""
        return cls(time.monotonic(), time.process_time())

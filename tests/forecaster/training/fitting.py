"""A small panel to fit on, and callbacks that record a fit or make it fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.fit import FitResult, fit
from forecaster.training.lightning import pl
from tests.factories import make_panel, make_spec, make_wave

PANEL = make_panel(make_wave(60), 4 * make_wave(50, seed=1), make_wave(40, seed=2))
TRAINING = {"steps": 11, "epoch_steps": 3, "batch": 8, "learning_rate": 0.02, "valid_windows": 2}


def make_fit_spec(**training: Any) -> Spec:
    return make_spec(layers=2, dropout=0.4, training=TRAINING | training)


def copy_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def have_equal_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class FitRecorder(pl.Callback):
    """Records each epoch's weights, batch losses and validation scores."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.rollouts: list[float] = []
        self.losses: list[list[float]] = []
        self.device = ""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.losses.append([])
        self.device = trainer.strategy.root_device.type

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses[-1].append(float(outputs["loss"]))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.weights.append(copy_weights(pl_module.network))
        self.rollouts.append(float(trainer.callback_metrics["valid/rollout"]))


class FaultInjector(pl.Callback):
    """Runs an action at one batch of one epoch, or as an epoch begins (batch None), after its predecessor was saved."""

    def __init__(self, epoch: int, batch: int | None, action: Callable[[pl.LightningModule], None]) -> None:
        self.epoch, self.batch, self.action = epoch, batch, action

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.batch is None and trainer.current_epoch == self.epoch:
            self.action(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            self.action(pl_module)


class SimulatedCrash(Exception):
    pass


def raise_crash(_: object) -> None:
    raise SimulatedCrash


def raise_keyboard_interrupt(_: object) -> None:
    raise KeyboardInterrupt


def fit_on_cpu(
    panel: Panel, spec: Spec, *, checkpoint: Path | None = None, callbacks: Any = (), steps_per_chunk: int = 1
) -> FitResult:
    """Fits on the CPU, by default one step per call, so that callbacks see each."""
    return fit(
        panel, spec, checkpoint=checkpoint, callbacks=callbacks, accelerator="cpu", steps_per_chunk=steps_per_chunk
    )

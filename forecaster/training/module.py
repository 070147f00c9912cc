"""The Lightning module: a thin coat around the network. What it measures is what users get: the rollout."""

from __future__ import annotations

from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from forecaster.data.windows import Example, Window
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import begin, read, roll
from forecaster.shapes import Float, Float64
from forecaster.spec import Spec


class Trial(NamedTuple):
    """A validation example, and the error of the seasonal naive forecast on the series it comes from."""

    example: Example
    seasonal_error: Float64[Tensor, "row"]


class Scores(NamedTuple):
    """What validation measures. `rollout` over `one_step` is the exposure gap: the price of feeding back own outputs."""

    loss: Tensor  # teacher-forced, scaled, as in training
    one_step: Tensor  # teacher-forced absolute error over the seasonal naive's
    rollout: Tensor  # free-running absolute error over the seasonal naive's (MASE)


class SequenceRegressor(pl.LightningModule):
    """Trains a network, teacher-forced, on windows shifted by one step, with the mean squared error."""

    def __init__(self, network: Regressor, spec: Spec) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self._losses: list[Tensor] = []

    def training_step(self, example: Example, _number: int) -> Tensor:
        """The loss of a batch. Nothing is logged here: a step costs what its arithmetic costs."""
        loss = shifted_mse(self.network, example)
        self._losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        """Reports the mean loss of the epoch: one number, one transfer from the device."""
        self.log("train/loss", torch.stack(self._losses).mean())
        self._losses.clear()

    def validation_step(self, trial: Trial, _number: int) -> None:
        """Scores a batch of rolling origins."""
        scores = score(self.network, trial)
        rows = len(trial.seasonal_error)
        for name, value in scores._asdict().items():
            self.log(f"valid/{name}", value, batch_size=rows, prog_bar=name == "rollout")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam (Kingma and Ba 2015)."""
        return torch.optim.Adam(self.parameters(), lr=self.spec.training.learning_rate)


def shifted_mse(network: Regressor, example: Example) -> Float[Tensor, ""]:
    """Mean squared error, scaled, of predicting at every step of a window the step after it; the unobserved do not count."""
    window, future = example
    memory = begin(network, window)
    predictions, memory = read(network, window, memory)
    begun = (~window.values.isnan()).cummax(1).values
    shifted = torch.cat([window.values[:, 1:], future[:, :1]], dim=1)
    counts = begun & ~shifted.isnan()
    target = memory.scale.apply(shifted).masked_fill(~counts, 0.0)
    squares = (predictions.masked_fill(~counts, 0.0) - target) ** 2
    return squares.sum() / counts.sum().clamp(min=1)


def score(network: Regressor, trial: Trial) -> Scores:
    """Teacher-forced and free-running errors over the same future steps, from the same warmed-up memory."""
    (window, future), scale = trial.example, trial.seasonal_error
    _, memory = read(network, window, begin(network, window))
    rolled, _ = roll(network, memory, horizon=future.shape[1])
    later, _ = read(network, Window(future[:, :-1]), memory) if future.shape[1] > 1 else (memory.ahead[:, :0], memory)
    forced = torch.cat([memory.ahead[:, None], later], dim=1)
    target = memory.scale.apply(future)
    return Scores(
        loss=((forced - target) ** 2).nanmean(),
        one_step=((memory.scale.undo(forced) - future).abs() / scale[:, None]).nanmean(),
        rollout=((rolled - future).abs() / scale[:, None]).nanmean(),
    )

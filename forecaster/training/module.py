"""The Lightning module: a thin coat around the network. What validation measures is what users get: the rollout."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor

from forecaster.data.windows import Example
from forecaster.evaluation.trials import Trial, score
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import begin, read
from forecaster.shapes import Float
from forecaster.spec import Spec


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
        for name, value in score(self.network, trial)._asdict().items():
            self.log(f"valid/{name}", value, batch_size=len(trial.seasonal_error), prog_bar=name == "rollout")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam (Kingma and Ba 2015)."""
        return torch.optim.Adam(self.parameters(), lr=self.spec.training.learning_rate)


def shifted_mse(network: Regressor, example: Example) -> Float[Tensor, ""]:
    """Mean squared error, scaled, of predicting at every step of a window the step after it; the unobserved do not count."""
    window, future = example
    predictions, memory = read(network, window, begin(network, window))
    begun = (~window.values.isnan()).cummax(1).values
    shifted = torch.cat([window.values[:, 1:], future[:, :1]], dim=1)
    counts = begun & ~shifted.isnan()
    target = memory.scale.apply(shifted).masked_fill(~counts, 0.0)
    squares = (predictions.masked_fill(~counts, 0.0) - target) ** 2
    return squares.sum() / counts.sum().clamp(min=1)

"""The Lightning module: a thin coat around the network. What validation measures is what users get: the rollout."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor

from forecaster.data.windows import Example
from forecaster.evaluation.trials import Trial, score
from forecaster.model.regressor import Regressor
from forecaster.spec import Spec
from forecaster.training.loss import teacher_forced_loss


class SequenceRegressor(pl.LightningModule):
    """Trains a network, teacher-forced, with the loss of its head: the classical recipe is the mean squared error on
    windows shifted by one step.
    """

    def __init__(self, network: Regressor, spec: Spec) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self._losses: list[Tensor] = []

    def training_step(self, example: Example, _number: int) -> Tensor:
        """The loss of a batch. Nothing is logged here: a step costs what its arithmetic costs."""
        loss = teacher_forced_loss(self.network, example)
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

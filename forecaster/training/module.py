"""The Lightning module: a thin coat around the network. What validation measures is what users get: the rollout."""

from __future__ import annotations

from functools import partial

import pytorch_lightning as pl
import torch
from torch import Tensor

from forecaster.data.windows import Example
from forecaster.errors import NonFiniteLoss
from forecaster.evaluation.trials import Trial, score
from forecaster.model.regressor import Regressor
from forecaster.shapes import Float
from forecaster.spec import Spec
from forecaster.training.descent import clip_norm, descend
from forecaster.training.loss import lessons, loss_of


class SequenceRegressor(pl.LightningModule):
    """Trains a network, teacher-forced, with the loss of its head: the classical recipe is the mean squared error on
    windows shifted by one step.

    What Lightning takes for a batch holds those of several optimiser steps, because what it does about each batch costs as
    much as a small network's step. So does it for validation: few large batches.
    """

    def __init__(self, network: Regressor, spec: Spec) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self.spec = spec
        self._losses: list[Float[Tensor, "step"]] = []

    def training_step(self, example: Example, _number: int) -> Float[Tensor, ""]:
        """The optimiser steps of some batches; their mean loss. Raises NonFiniteLoss."""
        training, optimizer = self.spec.training, self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        losses = descend(
            optimizer,
            partial(loss_of, self.network),
            lessons(self.network, example, batch=training.batch),
            partial(clip_norm, largest=training.gradient_clip),
        )
        self._check_finite(losses)
        self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.increment_by(len(losses))
        self._losses.append(losses)
        return losses.mean()

    def on_train_epoch_end(self) -> None:
        """Reports the mean loss of the epoch."""
        self.log("train/loss", torch.cat(self._losses).mean(), logger=False)
        self._losses.clear()

    def validation_step(self, trial: Trial, _number: int) -> None:
        """Scores a batch of rolling origins."""
        rows = len(trial.seasonal_error)
        for name, value in score(self.network, trial)._asdict().items():
            self.log(f"valid/{name}", value, batch_size=rows, prog_bar=name == "rollout", logger=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam (Kingma and Ba 2015)."""
        return torch.optim.Adam(self.parameters(), lr=self.spec.training.learning_rate, fused=True)

    def _check_finite(self, losses: Float[Tensor, "step"]) -> None:
        """The one wait for the device in so many steps."""
        finite = torch.isfinite(losses)
        if bool(finite.all()):
            return
        first = int((~finite).int().argmax())
        raise NonFiniteLoss(
            f"Expected a finite loss; train/loss is {float(losses[first])} at step {self.trainer.global_step + first + 1} "
            f"(epoch {self.trainer.current_epoch}). Nothing of this epoch was kept. Lower the learning rate or the gradient "
            "clip, or check the data for extreme values.",
            where="train/loss",
        )

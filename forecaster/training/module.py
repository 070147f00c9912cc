"""The Lightning module: a thin coat around the network. What validation measures is what users get: the rollout."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytorch_lightning as pl
import torch
from torch import Tensor

from forecaster.data.windows import Example
from forecaster.errors import NonFiniteLoss
from forecaster.evaluation.validation import ValidationBatch, ValidationScores, score_batch
from forecaster.model.regressor import Regressor
from forecaster.shapes import Float
from forecaster.spec import Spec
from forecaster.training.loss import compute_loss, prepare_batches
from forecaster.training.members import StackedNetworks
from forecaster.training.optimizer import (
    FusedAdam,
    clip_gradient_norm,
    run_optimizer_steps,
    scheduled_learning_rate,
    unrolled_blocks,
)


class TrainingModule(pl.LightningModule):
    """Trains a network, teacher-forced, with the loss of its head: the classical recipe is the mean squared error on
    windows shifted by one step. Beside it, where that is asked for, on its own rollout after the window.

    What Lightning takes for a batch holds those of several optimiser steps, because what it does about each batch costs as
    much as a small network's step. So does it for validation: few large batches.

    Several members are trained side by side, each on windows of its own; their scores are means over members.
    """

    def __init__(self, networks: Sequence[Regressor], spec: Spec) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = networks[0] if len(networks) == 1 else StackedNetworks(networks)
        self.spec = spec
        self._networks = tuple(networks)  # in a tuple: what is trained is `network`
        self._losses: list[Float[Tensor, "step *member"]] = []
        self._training_weights: list[Tensor] = []

    @property
    def networks(self) -> tuple[Regressor, ...]:
        """The members, with the weights that were reached."""
        if isinstance(self.network, StackedNetworks):
            self.network.copy_weights_to(self._networks)
        return self._networks

    def training_step(self, example: Example, _batch_idx: int) -> Float[Tensor, ""]:
        """The optimiser steps of some batches; their mean loss. Raises NonFiniteLoss."""
        training, optimizer = self.spec.training, self._optimizer()
        trained, shape = self.network, self._networks[0].train()  # whatever validation left
        if isinstance(trained, StackedNetworks):
            loss, clip, members = trained.losses, trained.clip_gradient_norm, len(trained)
        else:
            loss, clip, members = partial(compute_loss, shape), clip_gradient_norm, None
        first = self.trainer.global_step
        far = partial(unrolled_blocks, max_blocks=training.unroll, total_steps=training.steps)
        steps = len(example.window.values) // (training.batch * (members or 1))
        prepared = prepare_batches(
            shape,
            example,
            batch_size=training.batch,
            num_members=members,
            unrolled_blocks=[far(step) for step in range(first, first + steps)],
        )
        rates = partial(
            scheduled_learning_rate, peak=training.learning_rate, schedule=training.schedule, total_steps=training.steps
        )
        losses = run_optimizer_steps(
            optimizer,
            loss,
            prepared,
            partial(clip, max_norm=training.gradient_clip),
            learning_rate_at=rates,
            first_step=first,
        )
        self._check_finite(losses)
        self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.increment_by(len(losses))
        self._losses.append(losses)
        return losses.mean()

    def on_train_epoch_end(self) -> None:
        """Reports the mean loss of the epoch."""
        self.log("train/loss", torch.cat(self._losses).mean(), logger=False)
        self._losses.clear()

    def on_validation_start(self) -> None:
        """What is validated is what is kept: the averaged weights, where there are such."""
        self._training_weights = self._swap_weights(self._optimizer().averages)

    def on_validation_end(self) -> None:
        """Training goes on from the weights it had reached."""
        self._swap_weights(self._training_weights)

    def averaged_weights(self) -> dict[str, Tensor]:
        """The weights to keep, as they would be in `state_dict`."""
        reached = self._swap_weights(self._optimizer().averages)
        kept = {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}
        self._swap_weights(reached)
        return kept

    @torch.no_grad()
    def _swap_weights(self, weights: list[Tensor]) -> list[Tensor]:
        """Puts weights in place; returns those that were there."""
        parameters = self._optimizer().trained_parameters
        if all(weight is parameter for weight, parameter in zip(weights, parameters, strict=True)):
            return parameters
        before = [parameter.clone() for parameter in parameters]
        torch._foreach_copy_(parameters, weights)
        return before

    def _optimizer(self) -> FusedAdam:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, FusedAdam)
        return optimizer

    def validation_step(self, batch: ValidationBatch, _batch_idx: int) -> None:
        """Scores a batch of rolling origins."""
        rows = len(batch.seasonal_error)
        found = [score_batch(network.to(self.device).eval(), batch) for network in self.networks]
        for name, values in zip(ValidationScores._fields, zip(*found, strict=True), strict=True):
            mean = torch.stack(values).mean()
            self.log(f"valid/{name}", mean, batch_size=rows, prog_bar=name == "rollout", logger=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """All that is learned, by Adam."""
        training = self.spec.training
        return FusedAdam(self.parameters(), learning_rate=training.learning_rate, average_decay=training.average)

    def _check_finite(self, losses: Float[Tensor, "step *member"]) -> None:
        """The one wait for the device in so many steps."""
        losses = losses.reshape(len(losses), -1).sum(1)
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

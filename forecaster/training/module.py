"""The Lightning module: a thin layer around the network. Validation measures the rollout, which is what users get."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from forecaster.data.windows import Example
from forecaster.errors import NonFiniteLoss
from forecaster.evaluation.validation import ValidationBatch, ValidationScores, score_batch
from forecaster.model.regressor import Regressor
from forecaster.shapes import Float
from forecaster.spec import Spec
from forecaster.training.lightning import pl
from forecaster.training.loss import compute_loss, prepare_batches
from forecaster.training.members import StackedNetworks
from forecaster.training.optimizer import (
    FusedAdam,
    clip_gradient_norm,
    run_optimizer_steps,
    scheduled_learning_rate,
    unrolled_blocks,
)
from forecaster.training.processes import sum_over_processes


class TrainingModule(pl.LightningModule):
    """Trains a network with teacher forcing and the loss of its head, and optionally on its own rollout after the window.

    The classical recipe is the mean squared error on windows shifted by one step. A Lightning batch holds those of several
    optimiser steps, because Lightning's overhead per batch costs as much as a small network's step. Validation likewise
    uses a few large batches.

    Several members are trained in parallel, each on its own windows; their scores are means over members. Of several processes
    each computes the loss of its share of every batch; gradients and losses are summed. All of them validate alike.
    """

    def __init__(self, networks: Sequence[Regressor], spec: Spec) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = networks[0] if len(networks) == 1 else StackedNetworks(networks)
        self.spec = spec
        self._networks = tuple(networks)  # in a tuple, as only `network` is registered and trained
        self._losses: list[Float[Tensor, "step *member"]] = []
        self._training_weights: list[Tensor] = []
        self._origin_errors: list[Float[Tensor, "row"]] = []

    @property
    def networks(self) -> tuple[Regressor, ...]:
        """The members, with the current weights."""
        if isinstance(self.network, StackedNetworks):
            self.network.copy_weights_to(self._networks)
        return self._networks

    def training_step(self, example: Example, _batch_idx: int) -> Float[Tensor, ""]:
        """Runs the optimiser steps of several batches and returns their mean loss. Raises NonFiniteLoss."""
        training, optimizer = self.spec.training, self._optimizer()
        network, template = self.network.train(), self._networks[0]  # validation may have left it in eval mode
        if isinstance(network, StackedNetworks):
            loss, clip_gradients, num_members = network.losses, network.clip_gradient_norm, len(network)
        else:
            loss, clip_gradients, num_members = partial(compute_loss, template), clip_gradient_norm, None
        first_step = self.trainer.global_step
        num_blocks = partial(unrolled_blocks, max_blocks=training.unroll, total_steps=training.steps)
        batch_rows, has_others = training.batch // self.trainer.world_size, self.trainer.world_size > 1
        steps = len(example.window.values) // (batch_rows * (num_members or 1))
        batches = prepare_batches(
            template,
            example,
            batch_size=batch_rows,
            num_members=num_members,
            unrolled_blocks=[num_blocks(step) for step in range(first_step, first_step + steps)],
            sum_counts=sum_over_processes if has_others else None,
        )

        def finish_gradients(gradients: list[Tensor]) -> None:
            if has_others:
                sum_over_processes(gradients)
            clip_gradients(gradients, max_norm=training.gradient_clip)

        learning_rate_at = partial(
            scheduled_learning_rate, peak=training.learning_rate, schedule=training.schedule, total_steps=training.steps
        )
        losses = run_optimizer_steps(
            optimizer,
            loss,
            batches,
            finish_gradients,
            learning_rate_at=learning_rate_at,
            first_step=first_step,
        )
        if has_others:
            sum_over_processes([losses])
        self._check_finite(losses)
        self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.increment_by(len(losses))
        self._losses.append(losses)
        return losses.mean()

    def on_train_epoch_end(self) -> None:
        """Logs the mean loss of the epoch."""
        self.log("train/loss", torch.cat(self._losses).mean(), logger=False)
        self._losses.clear()

    def on_validation_start(self) -> None:
        """Swaps in the averaged weights, where there are such: the validated weights are the saved ones."""
        self._origin_errors.clear()
        self._training_weights = self._swap_weights(self._optimizer().averages)

    def on_validation_end(self) -> None:
        """Restores the weights that training continues from."""
        self._swap_weights(self._training_weights)

    def averaged_weights(self) -> dict[str, Tensor]:
        """Returns the weights to save, in the form of `state_dict`."""
        current = self._swap_weights(self._optimizer().averages)
        weights = {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}
        self._swap_weights(current)
        return weights

    @torch.no_grad()
    def _swap_weights(self, weights: list[Tensor]) -> list[Tensor]:
        """Copies weights into the parameters and returns the previous ones."""
        parameters = self._optimizer().trained_parameters
        if all(weight is parameter for weight, parameter in zip(weights, parameters, strict=True)):
            return parameters
        previous = [parameter.clone() for parameter in parameters]
        torch._foreach_copy_(parameters, weights)
        return previous

    def _optimizer(self) -> FusedAdam:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, FusedAdam)
        return optimizer

    def validation_step(self, batch: ValidationBatch, _batch_idx: int) -> None:
        """Scores a batch of rolling origins."""
        weight = len(batch.seasonal_error)
        if self.spec.head.is_symbolic:  # a mean over symbols, as sequences have different lengths
            weight = int(self._networks[0].is_scored(batch.example.future).sum())
        scores = self._score(batch)
        for name in ("loss", "one_step", "rollout") if weight else ():
            self.log(
                f"valid/{name}", getattr(scores, name), batch_size=weight, prog_bar=name == "rollout", logger=False
            )
        self._origin_errors.append(scores.origin_rollout)

    def copy_origin_errors(self) -> Float[Tensor, "origin"]:
        """Returns the free-running error of each validation origin in the last validation; empty without validation."""
        return torch.cat(self._origin_errors).double().cpu() if self._origin_errors else torch.empty(0)

    def _score(self, batch: ValidationBatch) -> ValidationScores:
        """Returns the mean scores of the members: of all at once where a batch is small, else of one after the other."""
        network = self.network.eval()
        scores = network.score(batch) if isinstance(network, StackedNetworks) else None
        if scores is not None:
            return scores
        scores_of_members = [score_batch(member.to(self.device).eval(), batch) for member in self.networks]
        return ValidationScores(*(torch.stack(values).mean(dim=0) for values in zip(*scores_of_members, strict=True)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns Adam over all parameters."""
        training = self.spec.training
        return FusedAdam(self.parameters(), learning_rate=training.learning_rate, average_decay=training.average)

    def _check_finite(self, losses: Float[Tensor, "step *member"]) -> None:
        """Raises NonFiniteLoss; the only wait for the device in a chunk of steps."""
        losses = losses.reshape(len(losses), -1).sum(1)
        finite = torch.isfinite(losses)
        if bool(finite.all()):
            return
        first = int((~finite).int().argmax())
        raise NonFiniteLoss(
            f"Expected a finite loss; train/loss is {float(losses[first])} at step {self.trainer.global_step + first + 1} "
            f"(epoch {self.trainer.current_epoch}). This epoch was discarded. Lower the learning rate or the gradient "
            "clip, or check the data for extreme values.",
            where="train/loss",
        )

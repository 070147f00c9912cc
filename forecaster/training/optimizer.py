"""Optimiser steps one after the other, with nothing between them but arithmetic: no logging, no check, no wait for the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from forecaster.shapes import Float
from forecaster.spec import LearningRateSchedule

BatchT = TypeVar("BatchT")


class FusedAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1, with the usual constants).

    `torch.optim.FusedAdam(fused=True)` without what is around its kernel: hooks, profiling and the sorting of weights by device
    take five times as long as the kernel does for a small network.
    """

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, parameters: Iterable[Tensor], *, learning_rate: float, average_decay: float = 0.0) -> None:
        trained = [parameter for parameter in parameters if parameter.requires_grad and parameter.numel()]
        super().__init__(trained, {"lr": learning_rate, "fused": True})  # a step counter stays on its weight's device
        for parameter in trained:
            self.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            if average_decay:
                self.state[parameter]["average"] = parameter.detach().clone()
        self._average_decay = average_decay

    @property
    def trained_parameters(self) -> list[Tensor]:
        """What is trained."""
        found: list[Tensor] = self.param_groups[0]["params"]
        return found

    @property
    def averages(self) -> list[Tensor]:
        """The moving average of each parameter; its values where none is kept."""
        return [self.state[parameter].get("average", parameter) for parameter in self.trained_parameters]

    @torch.no_grad()
    def apply_gradients(self, gradients: list[Tensor], *, learning_rate: float | None = None, step: int = 0) -> None:
        """One step, given the gradient of each parameter, the learning rate and how many steps there were before.

        The average of the first steps is over few of them, or the random weights of the start would stay in it for long.
        """
        states = [self.state[parameter] for parameter in self.trained_parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            self.trained_parameters,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=self.param_groups[0]["lr"] if learning_rate is None else learning_rate,
            beta1=self.BETAS[0],
            beta2=self.BETAS[1],
            eps=self.EPSILON,
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
        )
        if self._average_decay:
            share = 1 - min(self._average_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.averages, self.trained_parameters, share)


def run_optimizer_steps(
    optimizer: FusedAdam,
    loss: Callable[[BatchT], Float[Tensor, "*member"]],
    batches: Iterable[BatchT],
    clip_gradients: Callable[[list[Tensor]], None],
    *,
    learning_rate_at: Callable[[int], float] | None = None,
    first_step: int = 0,
) -> Float[Tensor, "step *member"]:
    """Takes one step for each batch.

    Args:
        optimizer: Whose parameters are changed.
        loss: What a step makes smaller, of a batch; of several networks that share no weight, that of each.
        batches: One a step.
        clip: Changes gradients in place before they are used.
        rates: The learning rate of each step; the optimizer's own, if not given.
        first: How many steps were taken before.
    Returns:
        The loss of each batch, as it was before its step; on the device.
    """
    parameters, losses = optimizer.trained_parameters, []
    for number, batch in enumerate(batches, start=first_step):
        found = loss(batch)
        gradients = list(torch.autograd.grad(found.sum(), parameters, materialize_grads=True))
        clip_gradients(gradients)
        optimizer.apply_gradients(gradients, learning_rate=learning_rate_at and learning_rate_at(number), step=number)
        losses.append(found.detach())
    return torch.stack(losses)


def scheduled_learning_rate(step: int, *, peak: float, schedule: LearningRateSchedule, total_steps: int) -> float:
    """That of a step, of so many: constant, or half a cosine after a rise over the first tenth (50 steps at the most)."""
    if schedule == "constant":
        return peak
    rise = max(1, min(50, total_steps // 10))
    return peak * min(1.0, (step + 1) / rise) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / total_steps)))


def unrolled_blocks(step: int, *, max_blocks: int, total_steps: int) -> int:
    """Blocks that a step, of so many, unrolls: from none to the most over the first half, one more at a time, then all.

    A curriculum of the horizon (Bengio et al. 2009; for rollouts Teutsch and Mäder 2022): far blocks teach nothing while near
    ones are wrong.
    """
    return min(max_blocks, 2 * (max_blocks + 1) * step // total_steps)


def clip_gradient_norm(gradients: list[Tensor], *, max_norm: float) -> None:
    """Shrinks all gradients alike, so that their norm together is at most `max_norm` (Pascanu et al. 2013, section 3.2)."""
    norm = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients]))
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))

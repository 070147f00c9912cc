"""Optimiser steps one after the other, with nothing between them but arithmetic: no logging, no check, no wait for the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from forecaster.shapes import Float
from forecaster.spec import Schedule

Batch = TypeVar("Batch")


class Adam(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1, with the usual constants).

    `torch.optim.Adam(fused=True)` without what is around its kernel: hooks, profiling and the sorting of weights by device
    take five times as long as the kernel does for a small network.
    """

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, parameters: Iterable[Tensor], *, learning_rate: float, average: float = 0.0) -> None:
        trained = [parameter for parameter in parameters if parameter.requires_grad and parameter.numel()]
        super().__init__(trained, {"lr": learning_rate, "fused": True})  # a step counter stays on its weight's device
        for parameter in trained:
            self.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            if average:
                self.state[parameter]["average"] = parameter.detach().clone()
        self._average = average

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        found: list[Tensor] = self.param_groups[0]["params"]
        return found

    @property
    def averages(self) -> list[Tensor]:
        """The moving average of each parameter; its values where none is kept."""
        return [self.state[parameter].get("average", parameter) for parameter in self.parameters]

    @torch.no_grad()
    def update(self, gradients: list[Tensor], *, rate: float | None = None, number: int = 0) -> None:
        """One step, given the gradient of each parameter, the learning rate and how many steps there were before.

        The average of the first steps is over few of them, or the random weights of the start would stay in it for long.
        """
        states = [self.state[parameter] for parameter in self.parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            self.parameters,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=self.param_groups[0]["lr"] if rate is None else rate,
            beta1=self.BETAS[0],
            beta2=self.BETAS[1],
            eps=self.EPSILON,
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
        )
        if self._average:
            share = 1 - min(self._average, (1 + number) / (10 + number))
            torch._foreach_lerp_(self.averages, self.parameters, share)


def descend(
    optimizer: Adam,
    loss: Callable[[Batch], Float[Tensor, "*member"]],
    batches: Iterable[Batch],
    clip: Callable[[list[Tensor]], None],
    *,
    rates: Callable[[int], float] | None = None,
    first: int = 0,
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
    parameters, losses = optimizer.parameters, []
    for number, batch in enumerate(batches, start=first):
        found = loss(batch)
        gradients = list(torch.autograd.grad(found.sum(), parameters, materialize_grads=True))
        clip(gradients)
        optimizer.update(gradients, rate=rates and rates(number), number=number)
        losses.append(found.detach())
    return torch.stack(losses)


def learning_rate(step: int, *, peak: float, schedule: Schedule, steps: int) -> float:
    """That of a step, of so many: constant, or half a cosine after a rise over the first tenth (50 steps at the most)."""
    if schedule == "constant":
        return peak
    rise = max(1, min(50, steps // 10))
    return peak * min(1.0, (step + 1) / rise) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps)))


def unrolled(step: int, *, most: int, steps: int) -> int:
    """Blocks that a step, of so many, unrolls: from none to the most over the first half, one more at a time, then all.

    A curriculum of the horizon (Bengio et al. 2009; for rollouts Teutsch and Mäder 2022): far blocks teach nothing while near
    ones are wrong.
    """
    return min(most, 2 * (most + 1) * step // steps)


def clip_norm(gradients: list[Tensor], *, largest: float) -> None:
    """Shrinks all gradients alike, so that their norm together is at most `largest` (Pascanu et al. 2013, section 3.2)."""
    norm = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients]))
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))

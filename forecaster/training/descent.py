"""Optimiser steps one after the other, with nothing between them but arithmetic: no logging, no check, no wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from forecaster.shapes import Float

Batch = TypeVar("Batch")


class Adam(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1, with the usual constants).

    `torch.optim.Adam(fused=True)` without what is around its kernel: hooks, profiling and the sorting of weights by device
    take five times as long as the kernel does for a small network.
    """

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, parameters: Iterable[Tensor], *, learning_rate: float) -> None:
        trained = [parameter for parameter in parameters if parameter.requires_grad and parameter.numel()]
        super().__init__(trained, {"lr": learning_rate, "fused": True})  # a step counter stays on its weight's device
        for parameter in trained:
            self.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        found: list[Tensor] = self.param_groups[0]["params"]
        return found

    @torch.no_grad()
    def update(self, gradients: list[Tensor]) -> None:
        """One step, given the gradient of each parameter."""
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
            lr=self.param_groups[0]["lr"],
            beta1=self.BETAS[0],
            beta2=self.BETAS[1],
            eps=self.EPSILON,
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
        )


def descend(
    optimizer: Adam,
    loss: Callable[[Batch], Float[Tensor, "*member"]],
    batches: Iterable[Batch],
    clip: Callable[[list[Tensor]], None],
) -> Float[Tensor, "step *member"]:
    """Takes one step for each batch.

    Args:
        optimizer: Whose parameters are changed.
        loss: What a step makes smaller, of a batch; of several networks that share no weight, that of each.
        batches: One a step.
        clip: Changes gradients in place before they are used.
    Returns:
        The loss of each batch, as it was before its step; on the device.
    """
    parameters, losses = optimizer.parameters, []
    for batch in batches:
        found = loss(batch)
        gradients = list(torch.autograd.grad(found.sum(), parameters, materialize_grads=True))
        clip(gradients)
        optimizer.update(gradients)
        losses.append(found.detach())
    return torch.stack(losses)


def clip_norm(gradients: list[Tensor], *, largest: float) -> None:
    """Shrinks all gradients alike, so that their norm together is at most `largest` (Pascanu et al. 2013, section 3.2)."""
    norm = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients]))
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))

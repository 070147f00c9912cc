"""Optimiser steps one after the other, with nothing between them but arithmetic: no logging, no check, no wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from forecaster.shapes import Float

Batch = TypeVar("Batch")


def descend(
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Batch], Float[Tensor, ""]],
    batches: Iterable[Batch],
    clip: Callable[[list[Tensor]], None],
) -> Float[Tensor, "step"]:
    """Takes one step for each batch.

    Args:
        optimizer: Whose parameters are changed.
        loss: What a step makes smaller, of a batch.
        batches: One a step.
        clip: Changes gradients in place before they are used.
    Returns:
        The loss of each batch, as it was before its step; on the device.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    losses = []
    for batch in batches:
        for parameter in parameters:
            parameter.grad = None
        found = loss(batch)
        found.backward()  # type: ignore[no-untyped-call]
        clip([parameter.grad for parameter in parameters if parameter.grad is not None])
        optimizer.step()
        losses.append(found.detach())
    return torch.stack(losses)


def clip_norm(gradients: list[Tensor], *, largest: float) -> None:
    """Shrinks all gradients alike, so that their norm together is at most `largest` (Pascanu et al. 2013, section 3.2)."""
    norm = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients]))
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))

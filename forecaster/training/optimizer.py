"""Adam and its step loop, with nothing between steps but arithmetic: no logging, no checks, no wait for the device."""

from __future__ import annotations

import inspect
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

    It is `torch.optim.Adam(fused=True)` without the code around its kernel: hooks, profiling and the sorting of weights by device
    take five times as long as the kernel does for a small network.
    """

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    # torch's decorator around these methods imports its compiler, which takes seconds and is not used here.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

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
        """The parameters that are trained."""
        parameters: list[Tensor] = self.param_groups[0]["params"]
        return parameters

    @property
    def averages(self) -> list[Tensor]:
        """The moving average of each parameter; its values where no average is configured."""
        return [self.state[parameter].get("average", parameter) for parameter in self.trained_parameters]

    @torch.no_grad()
    def apply_gradients(self, gradients: list[Tensor], *, learning_rate: float | None = None, step: int = 0) -> None:
        """Makes one step.

        The decay of the average rises over the first steps; otherwise the random initial weights would dominate it for long.

        Args:
            gradients: The gradient of each parameter.
            learning_rate: Defaults to the optimiser's own.
            step: Number of steps made before.
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
    """Makes one step for each batch.

    Args:
        optimizer: The optimiser of the parameters.
        loss: The loss of a batch to minimise; for several networks without shared weights, the loss of each.
        batches: One per step.
        clip_gradients: Changes gradients in place before they are applied.
        learning_rate_at: The learning rate of each step; defaults to the optimiser's own.
        first_step: Number of steps made before.
    Returns:
        The loss of each batch before its step; on the device.
    """
    parameters, losses = optimizer.trained_parameters, []
    for step, batch in enumerate(batches, start=first_step):
        batch_loss = loss(batch)
        gradients = list(torch.autograd.grad(batch_loss.sum(), parameters, materialize_grads=True))
        clip_gradients(gradients)
        optimizer.apply_gradients(gradients, learning_rate=learning_rate_at and learning_rate_at(step), step=step)
        losses.append(batch_loss.detach())
    return torch.stack(losses)


def scheduled_learning_rate(step: int, *, peak: float, schedule: LearningRateSchedule, total_steps: int) -> float:
    """Returns the rate of a step: constant, or half a cosine after a warm-up over the first tenth (at most 50 steps)."""
    if schedule == "constant":
        return peak
    warm_up_steps = max(1, min(50, total_steps // 10))
    return peak * min(1.0, (step + 1) / warm_up_steps) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / total_steps)))


def unrolled_blocks(step: int, *, max_blocks: int, total_steps: int) -> int:
    """Returns the blocks a step unrolls: rising by one from none to the maximum over the first half of training, then constant.

    A curriculum of the horizon (Bengio et al. 2009; for rollouts Teutsch and Mäder 2022): far blocks teach nothing while near
    ones are wrong.
    """
    return min(max_blocks, 2 * (max_blocks + 1) * step // total_steps)


def clip_gradient_norm(gradients: list[Tensor], *, max_norm: float) -> None:
    """Scales all gradients by one factor, so that their joint norm is at most `max_norm` (Pascanu et al. 2013, section 3.2)."""
    norm = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients]))
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))

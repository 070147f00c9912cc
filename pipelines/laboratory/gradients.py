"""How far a gradient reaches back: the derivative of the state after the last step by the states before it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from forecaster.model.recurrent import RecurrentStack, RecurrentState
from forecaster.shapes import Float, Float64


def measure_gradient_by_lag(
    recurrent: RecurrentStack, inputs: Float[Tensor, "row step feature"]
) -> Float64[np.ndarray, "lag"]:
    """Returns the norm of the gradient that reaches the state k steps before the last one, relative to that at the last one.

    The gradient is that of the sum of the top layer's last hidden state, by the hidden and cell states of all layers; the
    figure of a lag is the median over the rows. Vanishing and exploding gradients are those of Pascanu, Mikolov and Bengio
    (2013, section 2). A recurrence that multiplies its state by w at each step has the norm |w|^k.

    Args:
        recurrent: Layers without dilation.
        inputs: Encoded inputs of each step, without padding.
    """
    layers, mask = len(recurrent.layers), torch.ones(len(inputs), 1, dtype=torch.bool)
    state, states = recurrent.initial_state(len(inputs), like=inputs), []
    with torch.enable_grad():
        for step in range(inputs.shape[1]):
            _, state = recurrent(inputs[:, step : step + 1], state, mask)
            # In one tensor, through which everything that follows depends on this state.
            flat = state.hidden if state.cell is None else torch.cat([state.hidden, state.cell])
            states.append(flat)
            state = RecurrentState(flat[:layers], None if state.cell is None else flat[layers:])
        gradients = torch.autograd.grad(state.hidden[-1].sum(), states)
    norms = torch.stack([gradient.double().square().sum((0, 2)).sqrt() for gradient in reversed(gradients)])
    return (norms / norms[0]).median(dim=1).values.numpy()


def measure_gradient_norm(loss: Float[Tensor, ""], parameters: Iterable[Tensor]) -> float:
    """Returns the Euclidean norm of the gradient of a loss by all parameters, before any clipping."""
    gradients = torch.autograd.grad(loss, [parameter for parameter in parameters if parameter.numel()])
    return float(torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients])))

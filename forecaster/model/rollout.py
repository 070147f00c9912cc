"""The one rollout: warm up on a history, then feed the network its own last output, step by step.

Validation, backtest and service all come through here. The memory is explicit: nothing is kept between calls.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from forecaster.data.windows import Window
from forecaster.model.recurrent import State
from forecaster.model.regressor import Regressor
from forecaster.model.scaling import Scale, measure
from forecaster.shapes import Bool, Float, Float64


class Memory(NamedTuple):
    """All a rollout carries from one step to the next.

    Attributes:
        state: The recurrence.
        ahead: The prediction for the next step, scaled.
        begun: Whether the row has seen an observation yet.
        scale: Measured once, when the row began.
    """

    state: State
    ahead: Float[Tensor, "row"]
    begun: Bool[Tensor, "row"]
    scale: Scale


def begin(model: Regressor, window: Window) -> Memory:
    """The memory of a row before its first step, with the scale of its window."""
    values = window.values
    state = model.recurrent.start(len(values), like=values)
    unseen = torch.zeros(len(values), device=values.device)
    return Memory(state, unseen, torch.zeros_like(unseen, dtype=torch.bool), measure(values, model.scaling))


def read(model: Regressor, window: Window, memory: Memory) -> tuple[Float[Tensor, "row step"], Memory]:
    """Reads known values: the scaled prediction made at each step for the next (teacher forcing), and the memory after."""
    observed = ~window.values.isnan()
    begun = observed.cummax(1).values | memory.begun[:, None]
    values = memory.scale.apply(window.values).masked_fill(~observed, 0.0)
    predictions, state = model(values, observed, begun, memory.state)
    return predictions, Memory(state, predictions[:, -1], begun[:, -1], memory.scale)


def warm_up(model: Regressor, window: Window, memory: Memory | None = None) -> Memory:
    """The memory after a window; given the memory of what came before it, the recurrence goes on from there."""
    return read(model, window, memory or begin(model, window))[1]


def roll(model: Regressor, memory: Memory, *, horizon: int) -> tuple[Float64[Tensor, "row horizon"], Memory]:
    """The next `horizon` values in units of the data, each fed back to make the one after it, and the memory after them."""
    state, ahead = memory.state, memory.ahead
    true = torch.ones(len(ahead), 1, dtype=torch.bool, device=ahead.device)
    outputs = []
    for _ in range(horizon):
        outputs.append(ahead)
        predictions, state = model(ahead[:, None], true, true, state)
        ahead = predictions[:, 0]
    scaled = torch.stack(outputs, dim=1)
    return memory.scale.undo(scaled), Memory(state, ahead, memory.begun, memory.scale)

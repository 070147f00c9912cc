"""The memory of a recurrence: how the influence of earlier states on the final state decays, from exact derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from forecaster.data.windows import Window
from forecaster.explain.states import build_network_window
from forecaster.explain.trace import build_layer_inputs
from forecaster.model.recurrent import RecurrentState
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, encode_inputs, start_rollout
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.predictor import Predictor
from forecaster.series import Series
from forecaster.shapes import Float64

MAX_LAGS = 256  # steps of the recurrence over which memory is measured at most


@dataclass(frozen=True, eq=False)
class MemoryDecay:
    """How the influence of the state at earlier steps on the final hidden states decays, for one network and series.

    Let S(t) be the whole state of the recurrence after step t: the hidden and cell states of all layers, and of a dilated layer
    those of its last steps. Let h(T) be the hidden states of all layers after the last step T. The influence of lag k on unit i
    is the Euclidean norm of row i of the Jacobian dh(T)/dS(T - k), with all inputs after step T - k held constant: the largest
    change of the unit by a small perturbation of size 1 of the state k steps earlier. It is 1 at lag 0.

    The half-life of a unit is the lag from which on its influence stays below one half, interpolated geometrically between
    steps. If influence decays by a constant factor d per step, it is ln 0.5 / ln d. If influence returns, as that of the same
    phase of the last season may, the last return counts. If the influence at the last lag is above one half, there is none.

    Attributes:
        id: Id of the series.
        member: Number of the network among the members of the model, from 1.
        segment: Time points that one step of the recurrence reads; half-lives count time points.
        influence: Influence of each lag on each unit. The last lag is the first step of the window, or MAX_LAGS.
    """

    id: str
    member: int
    segment: int
    influence: Float64[np.ndarray, "layer unit lag"]

    @property
    def overall_influence(self) -> Float64[np.ndarray, "lag"]:
        """The root mean square over all units: the Frobenius norm of the Jacobian over the square root of their number."""
        overall: np.ndarray = np.sqrt(np.square(self.influence).mean(axis=(0, 1)))
        return overall

    @property
    def half_life(self) -> float | None:
        """The half-life of the overall influence in time points; None if it does not halve within the window."""
        return find_half_life(self.overall_influence, segment=self.segment)

    @property
    def half_lives(self) -> Float64[np.ndarray, "layer unit"]:
        """The half-life of each unit in time points; infinite if its influence does not halve within the window."""
        values = [
            [find_half_life(unit, segment=self.segment) for unit in layer] for layer in self.influence
        ]  # None becomes infinite, so that a median over units remains correct
        return np.array([[np.inf if value is None else value for value in row] for row in values])

    @property
    def window(self) -> int:
        """The number of time points over which the decay was measured."""
        return self.segment * (int(self.influence.shape[2]) - 1)


def find_half_life(influence: Float64[np.ndarray, "lag"], *, segment: int = 1) -> float | None:
    """Returns the lag, in time points, from which on the influence stays below half of that of lag 0.

    Returns None if the influence of the last lag is above that half.
    """
    half = influence[0] / 2
    last = int(np.flatnonzero(influence > half)[-1]) if (influence > half).any() else 0
    if last == len(influence) - 1:
        return None
    above, below = influence[last], influence[last + 1]
    share = np.log(above / half) / np.log(above / below) if below > 0 else (above - half) / above
    return float(segment * (last + share))


def measure_memory(model: FittedModel, series: Series, *, max_lags: int = MAX_LAGS) -> list[MemoryDecay]:
    """Measures the memory of every member while it reads one series, as for a forecast.

    Args:
        model: The fitted model, of any kind.
        series: The series.
        max_lags: The largest lag, in steps of the recurrence.
    Raises:
        ForecasterError: The class of the error with which a forecast of the series would fail.
    """
    predictor = Predictor(model)
    error = predictor.find_error(series, 1)
    if error is not None:
        raise error
    decays = []
    for member, network in enumerate(model.networks, start=1):
        state, window = start_rollout(network.eval(), build_network_window(predictor, series))
        influence = compute_decay(network, window, state, max_lags=max_lags)
        layers = len(network.recurrent.layers)
        by_layer = influence.reshape(len(influence), layers, -1).transpose(1, 2, 0)
        decays.append(MemoryDecay(series.id, member, network.segment, by_layer))
    return decays


def compute_decay(
    model: Regressor, window: Window, rollout_state: RolloutState, *, max_lags: int = MAX_LAGS
) -> Float64[np.ndarray, "lag unit"]:
    """Computes the influence of every lag on the hidden state of every unit; see `MemoryDecay`.

    The derivatives are exact: the rows of the Jacobian are carried back step by step, one row of a batch for each unit.
    """
    with torch.no_grad():
        encoded = encode_inputs(model, window, rollout_state)
        mask = encoded.mask
        inputs = build_layer_inputs(model, encoded.inputs, rollout_state.static, mask)
        lags = min(max_lags, int(mask.sum()) - 1)
        first = mask.shape[1] - lags  # the state before this step is the one with the largest lag
        state = rollout_state.recurrent_state
        if first:
            _, state = model.recurrent(inputs[:, :first], state, mask[:, :first])
        states = [state]
        for step in range(first, mask.shape[1]):
            _, state = model.recurrent(inputs[:, step : step + 1], state, mask[:, step : step + 1])
            states.append(state)
    gradients = _select_units(model, state)
    influence = [_row_norms(gradients)]
    for step, earlier in zip(reversed(range(first, mask.shape[1])), reversed(states[:-1]), strict=True):
        gradients = _carry_back(model, inputs[:, step : step + 1], earlier, gradients)
        influence.append(_row_norms(gradients))
    return np.stack(influence)


def _select_units(model: Regressor, state: RecurrentState) -> RecurrentState:
    """Returns the derivatives of the latest hidden state of every unit with respect to the final state, one row per unit."""
    latest_slots = np.cumsum(model.recurrent.dilations) - 1
    size = model.recurrent.hidden_size
    hidden = state.hidden.new_zeros(len(state.hidden), len(latest_slots) * size, size)
    for layer, slot in enumerate(latest_slots.tolist()):
        hidden[slot, layer * size : (layer + 1) * size] = torch.eye(size)
    return RecurrentState(hidden, None if state.cell is None else torch.zeros_like(hidden))


def _carry_back(model: Regressor, inputs: Tensor, earlier: RecurrentState, gradients: RecurrentState) -> RecurrentState:
    """Returns the derivatives with respect to the state before one step, given those with respect to the state after it."""
    rows = gradients.hidden.shape[1]
    leaves = [part.detach().repeat(1, rows, 1).requires_grad_() for part in earlier if part is not None]
    state = RecurrentState(leaves[0], leaves[1] if len(leaves) > 1 else None)
    with torch.enable_grad():
        mask = torch.ones(rows, 1, dtype=torch.bool)
        _, later = model.recurrent(inputs.detach().repeat(rows, 1, 1), state, mask)
    results: Any = torch.autograd.grad(
        [part for part in later if part is not None],
        leaves,
        grad_outputs=[part for part in gradients if part is not None],
    )
    return RecurrentState(results[0], results[1] if len(results) > 1 else None)


def _row_norms(gradients: RecurrentState) -> Float64[np.ndarray, "unit"]:
    squares = sum(part.double().square().sum((0, 2)) for part in gradients if part is not None)
    assert isinstance(squares, Tensor)
    norms: np.ndarray = squares.sqrt().numpy()
    return norms


def build_memory_table(decays: Sequence[MemoryDecay]) -> pd.DataFrame:
    """Returns one row per unit: `unique_id, member, layer, unit, half_life, window`; an infinite half-life exceeds the window."""
    tables = []
    for decay in decays:
        layers, units = decay.half_lives.shape
        tables.append(
            pd.DataFrame(
                {
                    "unique_id": decay.id,
                    "member": decay.member,
                    "layer": np.repeat(np.arange(1, layers + 1), units),
                    "unit": np.tile(np.arange(1, units + 1), layers),
                    "half_life": decay.half_lives.reshape(-1),
                    "window": decay.window,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def describe_half_life(decay: MemoryDecay) -> str:
    """Describes the half-life of the memory, as "5.3 steps" or "more than 48 steps"."""
    return f"more than {decay.window} steps" if decay.half_life is None else f"{decay.half_life:.3g} steps"

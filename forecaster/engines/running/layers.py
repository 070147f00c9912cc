"""The layers of a network in numpy: dense layers, and a stack of recurrent layers with an explicit state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from forecaster.model.recurrence.library import LAYER_WEIGHTS
from forecaster.shapes import Bool, Float

NUM_GATES = {"gru": 3, "lstm": 4, "elman": 1}


class StackSizes(NamedTuple):
    """Sizes of a stack of recurrent layers.

    Attributes:
        cell: Kind of cell: gru, lstm or elman.
        layers: Number of layers.
        features: Inputs of the lowest layer.
        hidden: Units of each layer.
        first_residual_layer: The first layer that adds its input to its output; `layers` if none does.
    """

    cell: str
    layers: int
    features: int
    hidden: int
    first_residual_layer: int


class StackState(NamedTuple):
    """The state of all layers; the cell state is zero unless they are LSTM layers."""

    hidden: Float[np.ndarray, "row layer hidden"]
    cell: Float[np.ndarray, "row layer hidden"]

    def repeat(self, copies: int) -> StackState:
        """Repeats the rows."""
        return StackState(self.hidden.repeat(copies, axis=0), self.cell.repeat(copies, axis=0))


def initial_state(sizes: StackSizes, rows: int) -> StackState:
    """Returns the zero state."""
    zeros = np.zeros((rows, sizes.layers, sizes.hidden), dtype=np.float32)
    return StackState(zeros, zeros)


@runtime_checkable
class DenseLayer(Protocol):
    """A linear layer, with SiLU after it or without."""

    def __call__(self, inputs: Float[np.ndarray, "*axes feature"]) -> Float[np.ndarray, "*axes unit"]:
        """Returns the outputs."""


@runtime_checkable
class Stack(Protocol):
    """A stack of recurrent layers."""

    def __call__(
        self, inputs: Float[np.ndarray, "row step feature"], begun: Bool[np.ndarray, "row step"], state: StackState
    ) -> tuple[Float[np.ndarray, "row hidden"], StackState]:
        """Returns the output after the last step, and the state. Steps before a row has begun leave its state unchanged."""


class NumpyDense:
    """`DenseLayer` in numpy."""

    def __init__(
        self, weight: Float[np.ndarray, "unit feature"], bias: Float[np.ndarray, "unit"], *, silu: bool
    ) -> None:
        self._weight, self._bias, self._silu = weight.T.copy(), bias.copy(), silu

    def __call__(self, inputs: Float[np.ndarray, "*axes feature"]) -> Float[np.ndarray, "*axes unit"]:
        """See `DenseLayer`."""
        outputs = inputs @ self._weight + self._bias
        return np.asarray(outputs * _sigmoid(outputs) if self._silu else outputs)


class NumpyStack:
    """`Stack` in numpy; `forecaster.model.recurrence.cells` names the sources of the cells."""

    def __init__(self, sizes: StackSizes, weights: Mapping[str, Float[np.ndarray, "..."]]) -> None:
        """Copies weights, given by their names in the bundle."""
        self._sizes = sizes
        self._layers = [
            [weights[f"recurrent.layers.{index}.{name}"].copy() for name in LAYER_WEIGHTS]
            for index in range(sizes.layers)
        ]

    def __call__(
        self, inputs: Float[np.ndarray, "row step feature"], begun: Bool[np.ndarray, "row step"], state: StackState
    ) -> tuple[Float[np.ndarray, "row hidden"], StackState]:
        """See `Stack`."""
        hidden_after, cell_after, outputs = np.empty_like(state.hidden), np.empty_like(state.cell), inputs
        for index, (input_weight, recurrent_weight, input_bias, recurrent_bias) in enumerate(self._layers):
            hidden, cell = state.hidden[:, index], state.cell[:, index]
            gate_inputs, layer_outputs = outputs @ input_weight.T + input_bias, []
            transposed = np.ascontiguousarray(recurrent_weight.T)
            for step in range(inputs.shape[1]):
                gate_states = hidden @ transposed + recurrent_bias
                following = _step_cell(self._sizes.cell, gate_inputs[:, step], gate_states, hidden, cell)
                mask = begun[:, step, None]
                hidden, cell = (np.where(mask, new, old) for new, old in zip(following, (hidden, cell), strict=True))
                layer_outputs.append(hidden * mask)
            stacked = np.stack(layer_outputs, axis=1)
            outputs = stacked + outputs if index >= self._sizes.first_residual_layer else stacked
            hidden_after[:, index], cell_after[:, index] = hidden, cell
        return outputs[:, -1], StackState(hidden_after, cell_after)


def _step_cell(
    kind: str,
    inputs: Float[np.ndarray, "row gate"],
    states: Float[np.ndarray, "row gate"],
    hidden: Float[np.ndarray, "row hidden"],
    cell: Float[np.ndarray, "row hidden"],
) -> tuple[Float[np.ndarray, "row hidden"], Float[np.ndarray, "row hidden"]]:
    """Returns the next state, given the preactivations from the inputs and from the state."""
    if kind == "elman":
        return np.tanh(inputs + states), cell
    if kind == "gru":
        (reset_in, update_in, new_in), (reset, update, new) = (np.split(part, 3, axis=1) for part in (inputs, states))
        candidate = np.tanh(new_in + _sigmoid(reset_in + reset) * new)
        return candidate + _sigmoid(update_in + update) * (hidden - candidate), cell
    in_gate, forget, candidate, out_gate = np.split(inputs + states, 4, axis=1)
    cell = _sigmoid(forget) * cell + _sigmoid(in_gate) * np.tanh(candidate)
    return _sigmoid(out_gate) * np.tanh(cell), cell


def _sigmoid(values: Float[np.ndarray, "*axes"]) -> Float[np.ndarray, "*axes"]:
    return np.asarray(0.5 * np.tanh(0.5 * values) + 0.5)

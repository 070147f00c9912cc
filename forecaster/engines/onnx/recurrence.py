"""The recurrence in the graph: ONNX's LSTM, GRU and RNN operators, over a whole history or one step at a time.

Time comes first: inputs are [step, row, feature]. Sequence lengths are not used for padding. Instead, a row that has not begun
has a zero state, and an additional input column keeps it zero on padding, where all other inputs are 0: for an Elman cell or
an LSTM it cancels the bias of the new content, and for a GRU it saturates the update gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from forecaster.engines.onnx.builder import F32, GraphBuilder, Value
from forecaster.shapes import Float

SATURATION = 100.0  # its logistic function is exactly 1 in float32

# ONNX's gates as indices into PyTorch's order. PyTorch's (input, forget, cell, output) is input, output, forget, cell in ONNX;
# (reset, update, new) is update, reset, new.
_GATE_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


class LayerState(NamedTuple):
    """The state of one layer: its last outputs, as many as its dilation, oldest first.

    Attributes:
        hidden: Hidden states, [slot, row, hidden].
        cell: Cell states, [slot, row, hidden] (LSTM only).
    """

    hidden: Value
    cell: Value | None

    def apply(self, function: Callable[[Value], Value]) -> LayerState:
        """Applies a function to both parts."""
        return LayerState(function(self.hidden), None if self.cell is None else function(self.cell))


class OperatorWeights(NamedTuple):
    """One layer's weights for an ONNX operator: [1, gate * hidden_size, input], and the concatenated input and state biases."""

    inputs: Value
    state: Value
    bias: Value


class OnnxLayer(NamedTuple):
    """One layer of the recurrence.

    Attributes:
        operator: LSTM, GRU or RNN.
        activation: That of an RNN operator, Tanh or Relu; None for the others.
        hidden_size: Size of the state.
        dilation: Distance of the step that each step is linked to.
        residual: Whether the layer adds its input to its output.
        warm_up_weights: Weights for inputs with a padding column, which comes last.
        rollout_weights: Weights for inputs without padding.
    """

    operator: str
    activation: str | None
    hidden_size: int
    dilation: int
    residual: bool
    warm_up_weights: OperatorWeights
    rollout_weights: OperatorWeights


class CellWeights(NamedTuple):
    """One layer's weights in PyTorch's gate order: four gates for an LSTM, three for a GRU, one for an Elman cell."""

    inputs: Float[np.ndarray, "gates_hidden input"]
    state: Float[np.ndarray, "gates_hidden hidden"]
    input_bias: Float[np.ndarray, "gates_hidden"]
    state_bias: Float[np.ndarray, "gates_hidden"]

    @property
    def hidden_size(self) -> int:
        """Size of the state."""
        return int(self.state.shape[1])

    @property
    def operator(self) -> str:
        """Name of the ONNX operator."""
        return {4: "LSTM", 3: "GRU", 1: "RNN"}[len(self.state) // self.hidden_size]

    def to_onnx_order(self) -> CellWeights:
        """Reorders the gates for ONNX and merges the biases, except for a GRU, whose reset gate separates the two."""
        w, r, input_bias, state_bias = (_reorder_gates(weights, self.operator) for weights in self)
        if self.operator == "GRU":
            return CellWeights(w, r, input_bias, state_bias)
        return CellWeights(w, r, input_bias + state_bias, np.zeros_like(state_bias))

    def to_operator_weights(self, builder: GraphBuilder) -> OperatorWeights:
        """Adds the weights, already in ONNX's order, as constants."""
        bias = np.concatenate([self.input_bias, self.state_bias])
        return OperatorWeights(
            builder.constant(self.inputs[None]), builder.constant(self.state[None]), builder.constant(bias[None])
        )


def build_layer(
    builder: GraphBuilder,
    cell: CellWeights,
    *,
    activation: str | None,
    constant_inputs: slice,
    dilation: int,
    residual: bool,
) -> OnnxLayer:
    """Builds a layer of the recurrence; `constant_inputs` are inputs that are 1 in every rollout."""
    onnx_cell = cell.to_onnx_order()
    w, input_bias, state_bias = onnx_cell.inputs, onnx_cell.input_bias, onnx_cell.state_bias
    hidden, is_gru = cell.hidden_size, cell.operator == "GRU"
    gate = slice(0, hidden) if is_gru else slice(len(w) - hidden, len(w))
    padding_column = np.zeros((len(w), 1), dtype=np.float32)
    padding_column[gate, 0] = (SATURATION if is_gru else 0.0) - (input_bias + state_bias)[gate]
    warm_up = onnx_cell._replace(inputs=np.concatenate([w, padding_column], axis=1))
    rollout = onnx_cell._replace(
        inputs=np.delete(w, constant_inputs, axis=1), input_bias=input_bias + w[:, constant_inputs].sum(axis=1)
    )
    warm_up_weights, rollout_weights = warm_up.to_operator_weights(builder), rollout.to_operator_weights(builder)
    return OnnxLayer(
        cell.operator,
        activation,
        hidden,
        dilation,
        residual,
        warm_up_weights,
        rollout_weights._replace(state=warm_up_weights.state),
    )


def run_from_zero(layers: Sequence[OnnxLayer], inputs: Value, padding: Value) -> tuple[Value, list[LayerState]]:
    """Runs over a whole history from a zero state.

    Args:
        layers: Layers of the recurrence.
        inputs: [step, row, feature]; 0 on padding.
        padding: [step, row, 1]; 1 on padding, 0 elsewhere.
    Returns:
        The last output, [1, row, hidden], and the state after it.
    """
    layer_states, outputs = [], inputs
    for index, layer in enumerate(layers):
        residual_input, last = outputs, index == len(layers) - 1
        is_simple = layer.dilation == 1 and not layer.residual
        outputs, layer_state = _run_layer_from_zero(layer, outputs, padding, all_outputs=not (last and is_simple))
        layer_states.append(layer_state)
        if layer.residual:
            outputs = outputs + residual_input
    return outputs.slice_axis(0, -1), layer_states


def run_step(
    layers: Sequence[OnnxLayer], inputs: Value, state: Sequence[LayerState], padding: Value | None
) -> tuple[Value, list[LayerState]]:
    """Runs one step; the oldest slot of every layer is used and replaced.

    Args:
        layers: Layers of the recurrence.
        inputs: [1, row, feature].
        state: State before the step.
        padding: [1, row, 1]; None in a rollout, which has no padding and omits the `constant_inputs`.
    """
    next_states, outputs = [], inputs
    for layer, layer_state in zip(layers, state, strict=True):
        residual_input = outputs
        weights = layer.rollout_weights if padding is None else layer.warm_up_weights
        layer_inputs = outputs if padding is None else outputs.builder.concat([outputs, padding], axis=2)
        is_dilated = layer.dilation > 1
        oldest = layer_state.apply(lambda part: part.slice_axis(0, 0, 1)) if is_dilated else layer_state
        _, new_state = run_operator(
            layer.operator,
            weights,
            layer_inputs,
            oldest,
            hidden_size=layer.hidden_size,
            activation=layer.activation,
        )
        next_states.append(_replace_oldest(layer_state, new_state) if is_dilated else new_state)
        outputs = new_state.hidden + residual_input if layer.residual else new_state.hidden
    return outputs, next_states


def run_steps(
    layers: Sequence[OnnxLayer], inputs: Value, state: Sequence[LayerState], padding: Value | None
) -> tuple[Value, list[LayerState]]:
    """Runs several steps from a state, like `run_step`; the inputs and the padding are [step, row, feature]."""
    sequences = [inputs] if padding is None else [inputs, padding]

    def body(scan_state: list[Value], elements: list[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
        step_inputs, *rest = (element.unsqueeze(0) for element in elements)
        outputs, next_states = run_step(
            layers, step_inputs, unflatten_state(scan_state[len(initial_output) :], layers), rest[0] if rest else None
        )
        return [*([outputs] if initial_output else []), *flatten_state(next_states)], []

    initial_output = [inputs.builder.zeros(1, inputs.size(1), layers[-1].hidden_size)] if layers[-1].residual else []
    final_state, _ = inputs.builder.scan(body, [*initial_output, *flatten_state(state)], sequences)
    next_states = unflatten_state(final_state[len(initial_output) :], layers)
    return final_state[0] if initial_output else last_output(layers, next_states), next_states


def last_output(layers: Sequence[OnnxLayer], state: Sequence[LayerState]) -> Value:
    """Returns the output of the last step, [1, row, hidden], of a top layer that is not residual."""
    hidden = state[-1].hidden
    return hidden if layers[-1].dilation == 1 else hidden.slice_axis(0, -1)


def run_operator(
    operator: str,
    weights: OperatorWeights,
    inputs: Value,
    state: LayerState | None,
    *,
    hidden_size: int,
    activation: str | None = None,
    all_outputs: bool = False,
) -> tuple[Value | None, LayerState]:
    """Runs an operator over [step, row, feature], from a state of [1, row, hidden] or zero.

    Returns:
        The output of every step, [step, row, hidden], if `all_outputs`; and the state after the last step.
    """
    initial_state = [] if state is None else [part for part in state if part is not None]
    options: dict[str, int | list[str]] = {"hidden_size": hidden_size}
    if activation is not None:
        options["activations"] = [activation]
    if operator == "GRU":
        options["linear_before_reset"] = 1  # reset gate after the product, as in PyTorch
    dtypes = [F32 if all_outputs else None, F32, *([F32] if operator == "LSTM" else [])]
    outputs_and_state = inputs.builder.add_multi_output_node(
        operator, [inputs, *weights, None, *initial_state], dtypes, options
    )
    outputs = outputs_and_state.pop(0).squeeze(1) if all_outputs else None
    return outputs, LayerState(outputs_and_state[0], outputs_and_state[1] if operator == "LSTM" else None)


def flatten_state(state: Sequence[LayerState]) -> list[Value]:
    """Returns the parts of a state as one list."""
    return [part for layer_state in state for part in layer_state if part is not None]


def unflatten_state(parts: Sequence[Value], layers: Sequence[OnnxLayer]) -> list[LayerState]:
    """Rebuilds a state from its parts."""
    if len(parts) == len(layers):
        return [LayerState(hidden, None) for hidden in parts]
    return [LayerState(hidden, cell) for hidden, cell in zip(parts[::2], parts[1::2], strict=True)]


def _run_layer_from_zero(
    layer: OnnxLayer, inputs: Value, padding: Value, *, all_outputs: bool
) -> tuple[Value, LayerState]:
    """Runs one layer as `dilation` interleaved streams; returns its outputs (all or only the last) and the state."""
    builder, rows, dilation = inputs.builder, inputs.size(1), layer.dilation
    if dilation == 1:
        padded_inputs = builder.concat([inputs, padding], axis=2)
        outputs, layer_state = run_operator(
            layer.operator,
            layer.warm_up_weights,
            padded_inputs,
            None,
            hidden_size=layer.hidden_size,
            activation=layer.activation,
            all_outputs=all_outputs,
        )
        return layer_state.hidden if outputs is None else outputs, layer_state
    steps = inputs.size(0)
    # The padding is at the front, so that the last step ends the last stream and slots stay oldest first.
    pad = (steps * -1) % dilation
    padded = [inputs.pad(0, before=pad), padding.pad(0, before=pad, fill=1.0)]
    joined = builder.concat(padded, axis=2)
    streams = joined.reshape(-1, rows * dilation, joined.size(2))
    outputs, layer_state = run_operator(
        layer.operator,
        layer.warm_up_weights,
        streams,
        None,
        hidden_size=layer.hidden_size,
        activation=layer.activation,
        all_outputs=True,
    )
    assert outputs is not None
    merged = outputs.reshape(-1, rows, layer.hidden_size).slice_axis(0, pad)
    return merged, layer_state.apply(lambda part: part.reshape(dilation, -1, layer.hidden_size))


def _replace_oldest(state: LayerState, new_state: LayerState) -> LayerState:
    hidden = new_state.hidden.builder.concat([state.hidden.slice_axis(0, 1), new_state.hidden], axis=0)
    if state.cell is None or new_state.cell is None:
        return LayerState(hidden, None)
    return LayerState(hidden, hidden.builder.concat([state.cell.slice_axis(0, 1), new_state.cell], axis=0))


def _reorder_gates(weights: np.ndarray, operator: str) -> np.ndarray:
    gates = weights.reshape(len(_GATE_ORDER[operator]), -1, *weights.shape[1:])
    return gates[list(_GATE_ORDER[operator])].reshape(weights.shape)

"""The recurrence in the graph: ONNX's own LSTM, GRU and RNN operators, over a whole history or one step at a time.

Time comes first: inputs are [step, row, feature]. Padding is no matter of lengths here. A row that has not begun has a state
of zero, and on padding a further input column keeps it there: it cancels the bias of what an Elman cell or an LSTM would
add, and holds the update gate of a GRU shut, so that the state stays exactly zero (all other inputs are 0 there).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from forecaster.engines.onnx.builder import F32, GraphBuilder, Value
from forecaster.shapes import Float

SATURATION = 100.0  # the logistic function of it is exactly 1 in float32

# PyTorch's order of gates as ONNX counts them: (input, forget, cell, output) is input, output, forget, cell there;
# (reset, update, new) is update, reset, new.
_GATE_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


class LayerState(NamedTuple):
    """The state of one layer: its last outputs, as many as its dilation, oldest first.

    Attributes:
        hidden: [slot, row, hidden].
        cell: Likewise, of an LSTM.
    """

    hidden: Value
    cell: Value | None

    def apply(self, function: Callable[[Value], Value]) -> LayerState:
        """With both parts changed."""
        return LayerState(function(self.hidden), None if self.cell is None else function(self.cell))


class OperatorWeights(NamedTuple):
    """One layer's weights as an operator reads them: `[1, gate * hidden_size, input]`, and the bias of inputs and state in a row."""

    inputs: Value
    state: Value
    bias: Value


class OnnxLayer(NamedTuple):
    """One layer of the recurrence.

    Attributes:
        operator: LSTM, GRU or RNN.
        hidden: Size of its state.
        dilation: It links every step to the one that many before.
        residual: Whether it adds to its input.
        reading: Its weights where padding may occur, which is the last column of the inputs.
        rolling: Its weights where it cannot.
    """

    operator: str
    hidden_size: int
    dilation: int
    residual: bool
    warm_up_weights: OperatorWeights
    rollout_weights: OperatorWeights


class CellWeights(NamedTuple):
    """One layer's weights in PyTorch's order of gates, of which an LSTM has four, a GRU three and an Elman cell one."""

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
        """What ONNX calls it."""
        return {4: "LSTM", 3: "GRU", 1: "RNN"}[len(self.state) // self.hidden_size]

    def to_onnx_order(self) -> CellWeights:
        """With ONNX's order of gates, and one bias where one is enough: only a GRU's reset gate lies between the two."""
        w, r, first, second = (_reorder_gates(each, self.operator) for each in self)
        if self.operator == "GRU":
            return CellWeights(w, r, first, second)
        return CellWeights(w, r, first + second, np.zeros_like(second))

    def to_operator_weights(self, builder: GraphBuilder) -> OperatorWeights:
        """As constants, once in order."""
        bias = np.concatenate([self.input_bias, self.state_bias])
        return OperatorWeights(
            builder.constant(self.inputs[None]), builder.constant(self.state[None]), builder.constant(bias[None])
        )


def build_layer(
    builder: GraphBuilder, cell: CellWeights, *, constant_inputs: slice, dilation: int, residual: bool
) -> OnnxLayer:
    """A layer of the recurrence; `constant_inputs` are inputs that are 1 in every rollout."""
    ordered = cell.to_onnx_order()
    w, first, second = ordered.inputs, ordered.input_bias, ordered.state_bias
    hidden, shut = cell.hidden_size, cell.operator == "GRU"
    gate = slice(0, hidden) if shut else slice(len(w) - hidden, len(w))
    cancel = np.zeros((len(w), 1), dtype=np.float32)
    cancel[gate, 0] = (SATURATION if shut else 0.0) - (first + second)[gate]
    reading = ordered._replace(inputs=np.concatenate([w, cancel], axis=1))
    rolling = ordered._replace(
        inputs=np.delete(w, constant_inputs, axis=1), input_bias=first + w[:, constant_inputs].sum(axis=1)
    )
    packed, free = reading.to_operator_weights(builder), rolling.to_operator_weights(builder)
    return OnnxLayer(cell.operator, hidden, dilation, residual, packed, free._replace(state=packed.state))


def run_from_zero(layers: Sequence[OnnxLayer], inputs: Value, padding: Value) -> tuple[Value, list[LayerState]]:
    """Runs over a whole history, from a state of zero.

    Args:
        layers: The recurrence.
        inputs: [step, row, feature]; 0 on padding.
        padding: [step, row, 1]; 1 on padding, 0 elsewhere.
    Returns:
        The last output, [1, row, hidden], and the state after it.
    """
    state, outputs = [], inputs
    for number, one in enumerate(layers):
        below, last = outputs, number == len(layers) - 1
        plain = one.dilation == 1 and not one.residual
        outputs, slots = _run_layer_from_zero(one, outputs, padding, all_outputs=not (last and plain))
        state.append(slots)
        if one.residual:
            outputs = outputs + below
    return outputs.slice_axis(0, -1), state


def run_step(
    layers: Sequence[OnnxLayer], inputs: Value, state: Sequence[LayerState], padding: Value | None
) -> tuple[Value, list[LayerState]]:
    """One step, with the oldest slot of every layer used and replaced.

    Args:
        layers: The recurrence.
        inputs: [1, row, feature].
        state: Before it.
        padding: [1, row, 1], or None where there cannot be any (and `constant_inputs` of the inputs is left out).
    """
    after, outputs = [], inputs
    for one, slots in zip(layers, state, strict=True):
        below = outputs
        weights = one.rollout_weights if padding is None else one.warm_up_weights
        fed = outputs if padding is None else outputs.builder.concat([outputs, padding], axis=2)
        deep = one.dilation > 1
        oldest = slots.apply(lambda part: part.slice_axis(0, 0, 1)) if deep else slots
        _, new = run_operator(one.operator, weights, fed, oldest, hidden_size=one.hidden_size)
        after.append(_replace_oldest(slots, new) if deep else new)
        outputs = new.hidden + below if one.residual else new.hidden
    return outputs, after


def run_steps(
    layers: Sequence[OnnxLayer], inputs: Value, state: Sequence[LayerState], padding: Value | None
) -> tuple[Value, list[LayerState]]:
    """Some steps, from any state; as `run_step`, but the inputs are [step, row, feature], and so is the padding."""
    sequences = [inputs] if padding is None else [inputs, padding]

    def body(before: list[Value], now: list[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
        fed, *rest = (each.unsqueeze(0) for each in now)
        outputs, after = run_step(layers, fed, unflatten_state(before[len(said) :], layers), rest[0] if rest else None)
        return [*([outputs] if said else []), *flatten_state(after)], []

    said = [inputs.builder.zeros(1, inputs.size(1), layers[-1].hidden_size)] if layers[-1].residual else []
    found, _ = inputs.builder.scan(body, [*said, *flatten_state(state)], sequences)
    after = unflatten_state(found[len(said) :], layers)
    return found[0] if said else last_output(layers, after), after


def last_output(layers: Sequence[OnnxLayer], state: Sequence[LayerState]) -> Value:
    """The output of the last step, [1, row, hidden], if the top layer adds nothing to it."""
    hidden = state[-1].hidden
    return hidden if layers[-1].dilation == 1 else hidden.slice_axis(0, -1)


def run_operator(
    operator: str,
    weights: OperatorWeights,
    inputs: Value,
    state: LayerState | None,
    *,
    hidden_size: int,
    all_outputs: bool = False,
) -> tuple[Value | None, LayerState]:
    """The operator over [step, row, feature], from a state of [1, row, hidden] or zero.

    Returns:
        The output of every step, [step, row, hidden], if it is asked for; and the state after the last.
    """
    before = [] if state is None else [part for part in state if part is not None]
    options = {"hidden_size": hidden_size}
    if operator == "GRU":
        options["linear_before_reset"] = 1  # Cho et al. with the reset gate after the product, as PyTorch has it
    kinds = [F32 if all_outputs else None, F32, *([F32] if operator == "LSTM" else [])]
    found = inputs.builder.add_multi_output_node(operator, [inputs, *weights, None, *before], kinds, options)
    outputs = found.pop(0).squeeze(1) if all_outputs else None
    return outputs, LayerState(found[0], found[1] if operator == "LSTM" else None)


def flatten_state(state: Sequence[LayerState]) -> list[Value]:
    """The parts of a state in a row."""
    return [part for slots in state for part in slots if part is not None]


def unflatten_state(parts: Sequence[Value], layers: Sequence[OnnxLayer]) -> list[LayerState]:
    """The state whose parts these are."""
    if len(parts) == len(layers):
        return [LayerState(hidden, None) for hidden in parts]
    return [LayerState(hidden, cell) for hidden, cell in zip(parts[::2], parts[1::2], strict=True)]


def _run_layer_from_zero(
    layer: OnnxLayer, inputs: Value, padding: Value, *, all_outputs: bool
) -> tuple[Value, LayerState]:
    """One layer as `dilation` interleaved streams; its outputs, all or only the last, and the state."""
    draft, rows, dilation = inputs.builder, inputs.size(1), layer.dilation
    if dilation == 1:
        whole = draft.concat([inputs, padding], axis=2)
        outputs, slots = run_operator(
            layer.operator, layer.warm_up_weights, whole, None, hidden_size=layer.hidden_size, all_outputs=all_outputs
        )
        return slots.hidden if outputs is None else outputs, slots
    steps = inputs.size(0)
    short = (steps * -1) % dilation  # in front, so that the last step ends the last stream and slots stay oldest first
    fed = [inputs.pad(0, before=short), padding.pad(0, before=short, fill=1.0)]
    joined = draft.concat(fed, axis=2)
    streams = joined.reshape(-1, rows * dilation, joined.size(2))
    outputs, slots = run_operator(
        layer.operator, layer.warm_up_weights, streams, None, hidden_size=layer.hidden_size, all_outputs=True
    )
    assert outputs is not None
    woven = outputs.reshape(-1, rows, layer.hidden_size).slice_axis(0, short)
    return woven, slots.apply(lambda part: part.reshape(dilation, -1, layer.hidden_size))


def _replace_oldest(state: LayerState, new: LayerState) -> LayerState:
    hidden = new.hidden.builder.concat([state.hidden.slice_axis(0, 1), new.hidden], axis=0)
    if state.cell is None or new.cell is None:
        return LayerState(hidden, None)
    return LayerState(hidden, hidden.builder.concat([state.cell.slice_axis(0, 1), new.cell], axis=0))


def _reorder_gates(weights: np.ndarray, operator: str) -> np.ndarray:
    gates = weights.reshape(len(_GATE_ORDER[operator]), -1, *weights.shape[1:])
    return gates[list(_GATE_ORDER[operator])].reshape(weights.shape)

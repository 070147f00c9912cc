"""The recurrence in the graph: ONNX's own LSTM, GRU and RNN operators, over a whole history or one step at a time.

Time comes first: inputs are [step, row, feature]. Padding is no matter of lengths here. A row that has not begun has a state
of zero, and on padding a further input column keeps it there: it cancels the bias of what an Elman cell or an LSTM would
add, and holds the update gate of a GRU shut, so that the state stays exactly zero (all other inputs are 0 there).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from forecaster.engines.onnx.builder import F32, Draft, Value
from forecaster.shapes import Float

SHUT = 100.0  # the logistic function of it is exactly 1 in float32

# PyTorch's order of gates as ONNX counts them: (input, forget, cell, output) is input, output, forget, cell there;
# (reset, update, new) is update, reset, new.
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


class Slots(NamedTuple):
    """The state of one layer: its last outputs, as many as its dilation, oldest first.

    Attributes:
        hidden: [slot, row, hidden].
        cell: Likewise, of an LSTM.
    """

    hidden: Value
    cell: Value | None

    def each(self, change: Callable[[Value], Value]) -> Slots:
        """With both parts changed."""
        return Slots(change(self.hidden), None if self.cell is None else change(self.cell))


class Weights(NamedTuple):
    """One layer's weights as an operator reads them: `[1, gate * hidden, input]`, and the bias of inputs and state in a row."""

    inputs: Value
    state: Value
    bias: Value


class Layer(NamedTuple):
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
    hidden: int
    dilation: int
    residual: bool
    reading: Weights
    rolling: Weights


class Cell(NamedTuple):
    """One layer's weights in PyTorch's order of gates, of which an LSTM has four, a GRU three and an Elman cell one."""

    inputs: Float[np.ndarray, "gates_hidden input"]
    state: Float[np.ndarray, "gates_hidden hidden"]
    input_bias: Float[np.ndarray, "gates_hidden"]
    state_bias: Float[np.ndarray, "gates_hidden"]

    @property
    def hidden(self) -> int:
        """Size of the state."""
        return int(self.state.shape[1])

    @property
    def operator(self) -> str:
        """What ONNX calls it."""
        return {4: "LSTM", 3: "GRU", 1: "RNN"}[len(self.state) // self.hidden]

    def ordered(self) -> Cell:
        """With ONNX's order of gates, and one bias where one is enough: only a GRU's reset gate lies between the two."""
        w, r, first, second = (_in_order(each, self.operator) for each in self)
        if self.operator == "GRU":
            return Cell(w, r, first, second)
        return Cell(w, r, first + second, np.zeros_like(second))

    def weights(self, draft: Draft) -> Weights:
        """As constants, once in order."""
        bias = np.concatenate([self.input_bias, self.state_bias])
        return Weights(draft.constant(self.inputs[None]), draft.constant(self.state[None]), draft.constant(bias[None]))


def layer(draft: Draft, cell: Cell, *, always: slice, dilation: int, residual: bool) -> Layer:
    """A layer of the recurrence; `always` are inputs that are 1 in every rollout."""
    ordered = cell.ordered()
    w, first, second = ordered.inputs, ordered.input_bias, ordered.state_bias
    hidden, shut = cell.hidden, cell.operator == "GRU"
    gate = slice(0, hidden) if shut else slice(len(w) - hidden, len(w))
    cancel = np.zeros((len(w), 1), dtype=np.float32)
    cancel[gate, 0] = (SHUT if shut else 0.0) - (first + second)[gate]
    reading = ordered._replace(inputs=np.concatenate([w, cancel], axis=1))
    rolling = ordered._replace(inputs=np.delete(w, always, axis=1), input_bias=first + w[:, always].sum(axis=1))
    packed, free = reading.weights(draft), rolling.weights(draft)
    return Layer(cell.operator, hidden, dilation, residual, packed, free._replace(state=packed.state))


def sweep(layers: Sequence[Layer], inputs: Value, padding: Value) -> tuple[Value, list[Slots]]:
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
        outputs, slots = _sweep_one(one, outputs, padding, every=not (last and plain))
        state.append(slots)
        if one.residual:
            outputs = outputs + below
    return outputs.cut(0, -1), state


def step(
    layers: Sequence[Layer], inputs: Value, state: Sequence[Slots], padding: Value | None
) -> tuple[Value, list[Slots]]:
    """One step, with the oldest slot of every layer used and replaced.

    Args:
        layers: The recurrence.
        inputs: [1, row, feature].
        state: Before it.
        padding: [1, row, 1], or None where there cannot be any (and `always` of the inputs is left out).
    """
    after, outputs = [], inputs
    for one, slots in zip(layers, state, strict=True):
        below = outputs
        weights = one.rolling if padding is None else one.reading
        fed = outputs if padding is None else outputs.draft.concat([outputs, padding], axis=2)
        deep = one.dilation > 1
        oldest = slots.each(lambda part: part.cut(0, 0, 1)) if deep else slots
        _, new = run(one.operator, weights, fed, oldest, hidden=one.hidden)
        after.append(_replaced(slots, new) if deep else new)
        outputs = new.hidden + below if one.residual else new.hidden
    return outputs, after


def follow(
    layers: Sequence[Layer], inputs: Value, state: Sequence[Slots], padding: Value | None
) -> tuple[Value, list[Slots]]:
    """Some steps, from any state; as `step`, but the inputs are [step, row, feature], and so is the padding."""
    sequences = [inputs] if padding is None else [inputs, padding]

    def body(before: list[Value], now: list[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
        fed, *rest = (each.unsqueeze(0) for each in now)
        outputs, after = step(layers, fed, unflat(before[len(said) :], layers), rest[0] if rest else None)
        return [*([outputs] if said else []), *flat(after)], []

    said = [inputs.draft.zeros(1, inputs.size(1), layers[-1].hidden)] if layers[-1].residual else []
    found, _ = inputs.draft.scan(body, [*said, *flat(state)], sequences)
    after = unflat(found[len(said) :], layers)
    return found[0] if said else newest(layers, after), after


def newest(layers: Sequence[Layer], state: Sequence[Slots]) -> Value:
    """The output of the last step, [1, row, hidden], if the top layer adds nothing to it."""
    hidden = state[-1].hidden
    return hidden if layers[-1].dilation == 1 else hidden.cut(0, -1)


def run(
    operator: str, weights: Weights, inputs: Value, state: Slots | None, *, hidden: int, every: bool = False
) -> tuple[Value | None, Slots]:
    """The operator over [step, row, feature], from a state of [1, row, hidden] or zero.

    Returns:
        The output of every step, [step, row, hidden], if it is asked for; and the state after the last.
    """
    before = [] if state is None else [part for part in state if part is not None]
    options = {"hidden_size": hidden}
    if operator == "GRU":
        options["linear_before_reset"] = 1  # Cho et al. with the reset gate after the product, as PyTorch has it
    kinds = [F32 if every else None, F32, *([F32] if operator == "LSTM" else [])]
    found = inputs.draft.nodes(operator, [inputs, *weights, None, *before], kinds, options)
    outputs = found.pop(0).squeeze(1) if every else None
    return outputs, Slots(found[0], found[1] if operator == "LSTM" else None)


def flat(state: Sequence[Slots]) -> list[Value]:
    """The parts of a state in a row."""
    return [part for slots in state for part in slots if part is not None]


def unflat(parts: Sequence[Value], layers: Sequence[Layer]) -> list[Slots]:
    """The state whose parts these are."""
    if len(parts) == len(layers):
        return [Slots(hidden, None) for hidden in parts]
    return [Slots(hidden, cell) for hidden, cell in zip(parts[::2], parts[1::2], strict=True)]


def _sweep_one(one: Layer, inputs: Value, padding: Value, *, every: bool) -> tuple[Value, Slots]:
    """One layer as `dilation` interleaved streams; its outputs, all or only the last, and the state."""
    draft, rows, dilation = inputs.draft, inputs.size(1), one.dilation
    if dilation == 1:
        whole = draft.concat([inputs, padding], axis=2)
        outputs, slots = run(one.operator, one.reading, whole, None, hidden=one.hidden, every=every)
        return slots.hidden if outputs is None else outputs, slots
    steps = inputs.size(0)
    short = (steps * -1) % dilation  # in front, so that the last step ends the last stream and slots stay oldest first
    fed = [inputs.pad(0, before=short), padding.pad(0, before=short, fill=1.0)]
    joined = draft.concat(fed, axis=2)
    streams = joined.reshape(-1, rows * dilation, joined.size(2))
    outputs, slots = run(one.operator, one.reading, streams, None, hidden=one.hidden, every=True)
    assert outputs is not None
    woven = outputs.reshape(-1, rows, one.hidden).cut(0, short)
    return woven, slots.each(lambda part: part.reshape(dilation, -1, one.hidden))


def _replaced(slots: Slots, new: Slots) -> Slots:
    hidden = new.hidden.draft.concat([slots.hidden.cut(0, 1), new.hidden], axis=0)
    if slots.cell is None or new.cell is None:
        return Slots(hidden, None)
    return Slots(hidden, hidden.draft.concat([slots.cell.cut(0, 1), new.cell], axis=0))


def _in_order(weights: np.ndarray, operator: str) -> np.ndarray:
    gates = weights.reshape(len(_GATES[operator]), -1, *weights.shape[1:])
    return gates[list(_GATES[operator])].reshape(weights.shape)

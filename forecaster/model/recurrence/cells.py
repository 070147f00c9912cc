"""One step of each recurrent cell by its equations, gate by gate, and a layer as a loop over them, in plain torch functions.

Nothing here is fast. Every other implementation of a cell is tested against these functions, and traces and the laboratory read
gates and candidates from them. Products with a row are written x W' because the rows of a batch come first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from forecaster.model.recurrence.layer import LayerInputs
from forecaster.shapes import Float


class GateWeights(NamedTuple):
    """The weights of one gate, or of the candidate.

    Attributes:
        input: W, which multiplies the input.
        recurrent: U, which multiplies the previous hidden state.
        input_bias: b, added to the first product.
        recurrent_bias: c, added to the second product.
    """

    input: Float[Tensor, "*member hidden feature"]
    recurrent: Float[Tensor, "*member hidden hidden"]
    input_bias: Float[Tensor, "*member hidden"]
    recurrent_bias: Float[Tensor, "*member hidden"]

    def read_input(self, x: Float[Tensor, "*member row feature"]) -> Float[Tensor, "*member row hidden"]:
        """Returns x W' + b."""
        return x @ self.input.mT + self.input_bias[..., None, :]

    def read_hidden(self, h: Float[Tensor, "*member row hidden"]) -> Float[Tensor, "*member row hidden"]:
        """Returns h U' + c."""
        return h @ self.recurrent.mT + self.recurrent_bias[..., None, :]


class Peepholes(NamedTuple):
    """Connections from the cell state to the gates of an LSTM. Each unit sees only its own cell, so the matrices are diagonal."""

    input: Float[Tensor, "*member hidden"]
    forget: Float[Tensor, "*member hidden"]
    output: Float[Tensor, "*member hidden"]


class ElmanStep(NamedTuple):
    """All quantities of one step of an Elman cell."""

    hidden: Float[Tensor, "*axes hidden"]

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The names of its gates: none."""
        return ()


class GRUStep(NamedTuple):
    """All quantities of one step of a GRU."""

    reset: Float[Tensor, "*axes hidden"]
    update: Float[Tensor, "*axes hidden"]
    candidate: Float[Tensor, "*axes hidden"]
    hidden: Float[Tensor, "*axes hidden"]

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The names of its gates."""
        return ("reset", "update")


class LSTMStep(NamedTuple):
    """All quantities of one step of an LSTM."""

    input: Float[Tensor, "*axes hidden"]
    forget: Float[Tensor, "*axes hidden"]
    candidate: Float[Tensor, "*axes hidden"]
    output: Float[Tensor, "*axes hidden"]
    cell: Float[Tensor, "*axes hidden"]
    hidden: Float[Tensor, "*axes hidden"]

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The names of its gates."""
        return ("input", "forget", "output")


CellStep = ElmanStep | GRUStep | LSTMStep


def elman_step(
    x: Float[Tensor, "*member row feature"],
    h: Float[Tensor, "*member row hidden"],
    weights: GateWeights,
    *,
    activation: Callable[[Tensor], Tensor] = torch.tanh,
) -> ElmanStep:
    """Computes one step of an Elman cell (Elman 1990): the hidden layer reads the input and its own previous activation.

    The activation is tanh; with `torch.relu` it is the rectified network of Le, Jaitly and Hinton (2015).

        h' = tanh(x W' + b + h U' + c)                    (1)
    """
    return ElmanStep(activation(weights.read_input(x) + weights.read_hidden(h)))  # (1)


def gru_step(
    x: Float[Tensor, "*member row feature"],
    h: Float[Tensor, "*member row hidden"],
    weights: tuple[GateWeights, GateWeights, GateWeights],
    *,
    reset_after: bool = True,
) -> GRUStep:
    """Computes one step of a gated recurrent unit (Cho et al. 2014, equations 5 to 8).

        r  = sigmoid(x W_r' + b_r + h U_r' + c_r)         (5)
        z  = sigmoid(x W_z' + b_z + h U_z' + c_z)         (6)
        n  = tanh(x W_n' + b_n + r * (h U_n' + c_n))      (8), reset after the product: cuDNN, torch and this project
        n  = tanh(x W_n' + b_n + (r * h) U_n' + c_n)      (8), reset before the product: Cho et al. and the textbook of Zhang et
                                                          al. ("Dive into Deep Learning", 2023, section 10.2)
        h' = z * h + (1 - z) * n                          (7)

    Args:
        x: Input of the step.
        h: Hidden state before it.
        weights: Those of reset, update and candidate.
        reset_after: Which of the two candidates is computed.
    """
    to_reset, to_update, to_candidate = weights
    r = torch.sigmoid(to_reset.read_input(x) + to_reset.read_hidden(h))  # (5)
    z = torch.sigmoid(to_update.read_input(x) + to_update.read_hidden(h))  # (6)
    recurrent = r * to_candidate.read_hidden(h) if reset_after else to_candidate.read_hidden(r * h)
    n = torch.tanh(to_candidate.read_input(x) + recurrent)  # (8)
    return GRUStep(reset=r, update=z, candidate=n, hidden=z * h + (1 - z) * n)  # (7)


def lstm_step(
    x: Float[Tensor, "*member row feature"],
    h: Float[Tensor, "*member row hidden"],
    c: Float[Tensor, "*member row hidden"],
    weights: tuple[GateWeights, GateWeights, GateWeights, GateWeights],
    *,
    peepholes: Peepholes | None = None,
) -> LSTMStep:
    """Computes one step of a long short-term memory with forget gate (Gers et al. 2000; Graves 2013, equations 7 to 11).

    The peepholes p (Gers and Schmidhuber 2000) are an option; torch and this project have none.

        i  = sigmoid(x W_i' + b_i + h U_i' + c_i + p_i * c)       (7)
        f  = sigmoid(x W_f' + b_f + h U_f' + c_f + p_f * c)       (8)
        g  = tanh(x W_g' + b_g + h U_g' + c_g)
        c' = f * c + i * g                                        (9)
        o  = sigmoid(x W_o' + b_o + h U_o' + c_o + p_o * c')      (10)
        h' = o * tanh(c')                                         (11)

    Args:
        x: Input of the step.
        h: Hidden state before it.
        c: Cell state before it.
        weights: Those of the input gate, the forget gate, the candidate and the output gate.
        peepholes: Weights of the connections from the cell to the gates.
    """
    to_input, to_forget, to_candidate, to_output = weights
    p_i, p_f, p_o = (0.0, 0.0, 0.0) if peepholes is None else (part[..., None, :] for part in peepholes)
    i = torch.sigmoid(to_input.read_input(x) + to_input.read_hidden(h) + p_i * c)  # (7)
    f = torch.sigmoid(to_forget.read_input(x) + to_forget.read_hidden(h) + p_f * c)  # (8)
    g = torch.tanh(to_candidate.read_input(x) + to_candidate.read_hidden(h))
    cell = f * c + i * g  # (9)
    o = torch.sigmoid(to_output.read_input(x) + to_output.read_hidden(h) + p_o * cell)  # (10)
    return LSTMStep(input=i, forget=f, candidate=g, output=o, cell=cell, hidden=o * torch.tanh(cell))  # (11)


def split_gates(layer: LayerInputs) -> tuple[GateWeights, ...]:
    """Splits the weights of a layer by gate, in torch's order: r, z, n for a GRU; i, f, g, o for an LSTM."""
    hidden = layer.hidden.shape[-1]
    input_weights, recurrent_weights = (
        torch.split(weights, hidden, dim=-2) for weights in (layer.input_weights, layer.recurrent_weights)
    )
    input_bias, recurrent_bias = (
        torch.split(bias, hidden, dim=-1) for bias in (layer.input_bias, layer.recurrent_bias)
    )
    gates = zip(input_weights, recurrent_weights, input_bias, recurrent_bias, strict=True)
    return tuple(GateWeights(*parts) for parts in gates)


def run_cells(layer: LayerInputs, *, reset_after: bool = True, peepholes: Peepholes | None = None) -> CellStep:
    """Runs a layer step by step, and returns the quantities of all steps, with an axis of steps before that of the units.

    Padding leaves the state unchanged.

    Args:
        layer: The layer and its inputs.
        reset_after: See `gru_step`.
        peepholes: See `lstm_step`.
    """
    weights, h, c = split_gates(layer), layer.hidden, layer.cell
    steps: list[CellStep] = []
    for x, begun in zip(layer.inputs.unbind(-2), layer.mask[..., None].unbind(-2), strict=True):
        step = _run_step(layer, torch.where(begun, x, 0.0), h, c, weights, reset_after, peepholes)
        h = torch.where(begun, step.hidden, h)
        step = step._replace(hidden=h)
        if isinstance(step, LSTMStep):
            assert c is not None, "an LSTM has a cell"
            c = torch.where(begun, step.cell, c)
            step = step._replace(cell=c)
        steps.append(step)
    return type(steps[0])(*(torch.stack(parts, dim=-2) for parts in zip(*steps, strict=True)))


def _run_step(
    layer: LayerInputs,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    weights: tuple[GateWeights, ...],
    reset_after: bool,
    peepholes: Peepholes | None,
) -> CellStep:
    if layer.kind == "gru":
        reset, update, candidate = weights
        return gru_step(x, h, (reset, update, candidate), reset_after=reset_after)
    if layer.kind == "lstm":
        assert c is not None, "an LSTM has a cell"
        to_input, to_forget, candidate, to_output = weights
        return lstm_step(x, h, c, (to_input, to_forget, candidate, to_output), peepholes=peepholes)
    return elman_step(x, h, weights[0], activation=_ACTIVATIONS[layer.kind])


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"elman": torch.tanh, "relu": torch.relu}

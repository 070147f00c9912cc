"""The recurrences in torch, compared with a slow implementation of their equations."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch

from forecaster.model.recurrent import RecurrentStack, RecurrentState
from forecaster.spec import NetworkSpec

TOLERANCE = 2e-6
CELLS = ["gru", "lstm", "elman"]


class CellState(NamedTuple):
    hidden: np.ndarray
    cell: np.ndarray | None


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class LayerEquations:
    """One layer in float64: `w` reads the input and `u` the hidden state, each with its bias; both are split by gate."""

    def __init__(self, recurrent: RecurrentStack, layer: int) -> None:
        names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
        parts = [getattr(recurrent.layers[layer], name).detach().double().numpy() for name in names]
        gates = len(parts[0]) // recurrent.hidden_size
        self.w, self.u, self.wb, self.ub = (np.split(part, gates) for part in parts)

    def apply_input_weights(self, gate: int, x: np.ndarray) -> np.ndarray:
        return x @ self.w[gate].T + self.wb[gate]

    def apply_hidden_weights(self, gate: int, h: np.ndarray) -> np.ndarray:
        return h @ self.u[gate].T + self.ub[gate]


def gru_equations(layer: LayerEquations, x: np.ndarray, previous: CellState) -> CellState:
    """Cho et al. 2014, equations 5 to 8, with the reset gate after the product and with z and 1 - z as in the paper."""
    h = previous.hidden
    r = sigmoid(layer.apply_input_weights(0, x) + layer.apply_hidden_weights(0, h))  # (5)
    z = sigmoid(layer.apply_input_weights(1, x) + layer.apply_hidden_weights(1, h))  # (6)
    candidate = np.tanh(layer.apply_input_weights(2, x) + r * layer.apply_hidden_weights(2, h))  # (8)
    return CellState(z * h + (1 - z) * candidate, None)  # (7)


def lstm_equations(layer: LayerEquations, x: np.ndarray, previous: CellState) -> CellState:
    """Gers et al. 2000, with a forget gate; numbered as in Graves 2013, equations 7 to 11, without peephole connections."""
    h, c = previous
    assert c is not None
    i = sigmoid(layer.apply_input_weights(0, x) + layer.apply_hidden_weights(0, h))  # (7)
    f = sigmoid(layer.apply_input_weights(1, x) + layer.apply_hidden_weights(1, h))  # (8)
    c = f * c + i * np.tanh(layer.apply_input_weights(2, x) + layer.apply_hidden_weights(2, h))  # (9)
    o = sigmoid(layer.apply_input_weights(3, x) + layer.apply_hidden_weights(3, h))  # (10)
    return CellState(o * np.tanh(c), c)  # (11)


def elman_equations(layer: LayerEquations, x: np.ndarray, previous: CellState) -> CellState:
    """Elman 1990: the hidden layer reads the input and a copy of its previous activation."""
    return CellState(np.tanh(layer.apply_input_weights(0, x) + layer.apply_hidden_weights(0, previous.hidden)), None)


EQUATIONS = {"gru": gru_equations, "lstm": lstm_equations, "elman": elman_equations}


def run_equations(
    recurrent: RecurrentStack, cell: str, inputs: torch.Tensor, state: RecurrentState, mask: torch.Tensor
) -> tuple[np.ndarray, list[list[CellState]]]:
    """Computes row by row, step by step and layer by layer; padding is skipped."""
    rows, steps, _ = inputs.shape
    outputs = np.zeros((rows, steps, recurrent.hidden_size))
    final_states = []
    for row in range(rows):
        states = [
            CellState(
                state.hidden[layer, row].double().numpy(),
                None if state.cell is None else state.cell[layer, row].double().numpy(),
            )
            for layer in range(len(recurrent.layers))
        ]
        for step in range(steps):
            if not mask[row, step]:
                continue
            x = inputs[row, step].double().numpy()
            for layer in range(len(recurrent.layers)):
                states[layer] = EQUATIONS[cell](LayerEquations(recurrent, layer), x, states[layer])
                x = states[layer].hidden
            outputs[row, step] = x
        final_states.append(states)
    return outputs, final_states


def make_recurrent(cell: str, layers: int) -> RecurrentStack:
    torch.manual_seed(0)
    recurrent = (
        RecurrentStack(NetworkSpec(cell=cell, hidden=4, layers=layers), input_size=3).eval().requires_grad_(False)
    )
    for weight in recurrent.parameters():
        weight.mul_(2)
    return recurrent


def random_state(recurrent: RecurrentStack, rows: int) -> RecurrentState:
    shape = (len(recurrent.layers), rows, recurrent.hidden_size)
    return RecurrentState(torch.randn(shape).tanh(), torch.randn(shape) if recurrent.has_cell else None)


PADDINGS = {
    "without padding": torch.ones(4, 7, dtype=torch.bool),
    "with padding": torch.arange(7)[None] >= torch.tensor([0, 3, 7, 6])[:, None],
}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("cell", "layers"), list(product(CELLS, [1, 2])))
def test_a_recurrence_follows_its_equations(cell: str, layers: int, padding: str) -> None:
    recurrent, mask = make_recurrent(cell, layers), PADDINGS[padding]
    inputs, state = torch.randn(4, 7, 3), random_state(recurrent, 4)
    outputs, final_state = recurrent(inputs, state, mask)
    expected, expected_states = run_equations(recurrent, cell, inputs, state, mask)
    np.testing.assert_allclose(outputs.numpy(), expected, rtol=0, atol=TOLERANCE)
    for row, layer in product(range(4), range(layers)):
        np.testing.assert_allclose(
            final_state.hidden[layer, row].numpy(), expected_states[row][layer].hidden, rtol=0, atol=TOLERANCE
        )
        if final_state.cell is not None:
            np.testing.assert_allclose(
                final_state.cell[layer, row].numpy(), expected_states[row][layer].cell, rtol=0, atol=TOLERANCE
            )
    assert (final_state.cell is None) == (cell != "lstm")


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("cell", "layers"), list(product(CELLS, [1, 2])))
def test_step_by_step_equals_one_pass(cell: str, layers: int, padding: str) -> None:
    recurrent, mask = make_recurrent(cell, layers), PADDINGS[padding]
    inputs, state = torch.randn(4, 7, 3), random_state(recurrent, 4)
    expected, final_state = recurrent(inputs, state, mask)
    steps = []
    for step in range(7):
        output, state = recurrent(inputs[:, step : step + 1], state, mask[:, step : step + 1])
        steps.append(output)
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(state.hidden, final_state.hidden, rtol=0, atol=TOLERANCE)
    if state.cell is not None and final_state.cell is not None:
        torch.testing.assert_close(state.cell, final_state.cell, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("cell", "layers"), list(product(CELLS, [1, 2])))
def test_a_gradient_does_not_depend_on_padding(cell: str, layers: int) -> None:
    mask = PADDINGS["with padding"]
    inputs = torch.randn(4, 7, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    recurrent = make_recurrent(cell, layers).requires_grad_(True)
    initial_state = recurrent.initial_state(4, like=inputs)
    recurrent(inputs, initial_state, mask)[0].square().sum().backward()
    assert inputs.grad is not None
    assert (inputs.grad[~mask] == 0).all()
    assert (inputs.grad[mask].abs().sum(1) > 0).all()
    expected_gradients = [weight.grad.clone() for weight in recurrent.parameters() if weight.grad is not None]
    recurrent.zero_grad()
    for row, start_step in ((0, 0), (1, 3), (3, 6)):
        row_inputs = inputs[row : row + 1, start_step:].detach()
        row_outputs = recurrent(
            row_inputs, recurrent.initial_state(1, like=row_inputs), mask[row : row + 1, start_step:]
        )[0]
        row_outputs.square().sum().backward()
    for weight, expected in zip(recurrent.parameters(), expected_gradients, strict=True):
        torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-5)

"""The recurrences, once by equation and once by torch's kernels."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch

from forecaster.model.recurrent import Recurrent, State
from forecaster.spec import NetworkSpec

CLOSE = 2e-6
CELLS = ["gru", "lstm", "elman"]


class Step(NamedTuple):
    hidden: np.ndarray
    cell: np.ndarray | None


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class Layer:
    """One layer in float64; `w` reads the input, `u` the hidden state, each with its bias; a row of blocks, one a gate."""

    def __init__(self, recurrent: Recurrent, layer: int) -> None:
        names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
        parts = [getattr(recurrent.layers[layer], name).detach().double().numpy() for name in names]
        gates = len(parts[0]) // recurrent.hidden
        self.w, self.u, self.wb, self.ub = (np.split(part, gates) for part in parts)

    def read(self, gate: int, x: np.ndarray) -> np.ndarray:
        return x @ self.w[gate].T + self.wb[gate]

    def recall(self, gate: int, h: np.ndarray) -> np.ndarray:
        return h @ self.u[gate].T + self.ub[gate]


def gru(layer: Layer, x: np.ndarray, before: Step) -> Step:
    """Cho et al. 2014, equations 5 to 8, with the reset gate after the product, and z and 1 - z as they have them."""
    h = before.hidden
    r = sigmoid(layer.read(0, x) + layer.recall(0, h))  # (5)
    z = sigmoid(layer.read(1, x) + layer.recall(1, h))  # (6)
    candidate = np.tanh(layer.read(2, x) + r * layer.recall(2, h))  # (8)
    return Step(z * h + (1 - z) * candidate, None)  # (7)


def lstm(layer: Layer, x: np.ndarray, before: Step) -> Step:
    """Gers et al. 2000, with a forget gate; numbered as in Graves 2013, equations 7 to 11, without their peepholes."""
    h, c = before
    assert c is not None
    i = sigmoid(layer.read(0, x) + layer.recall(0, h))  # (7)
    f = sigmoid(layer.read(1, x) + layer.recall(1, h))  # (8)
    c = f * c + i * np.tanh(layer.read(2, x) + layer.recall(2, h))  # (9)
    o = sigmoid(layer.read(3, x) + layer.recall(3, h))  # (10)
    return Step(o * np.tanh(c), c)  # (11)


def elman(layer: Layer, x: np.ndarray, before: Step) -> Step:
    """Elman 1990: the hidden layer reads the input and a copy of itself."""
    return Step(np.tanh(layer.read(0, x) + layer.recall(0, before.hidden)), None)


EQUATIONS = {"gru": gru, "lstm": lstm, "elman": elman}


def by_equation(
    recurrent: Recurrent, cell: str, inputs: torch.Tensor, state: State, begun: torch.Tensor
) -> tuple[np.ndarray, list[list[Step]]]:
    """Row by row, step by step, layer by layer; padding is passed by."""
    rows, steps, _ = inputs.shape
    outputs = np.zeros((rows, steps, recurrent.hidden))
    ends = []
    for row in range(rows):
        memory = [
            Step(
                state.hidden[layer, row].double().numpy(),
                None if state.cell is None else state.cell[layer, row].double().numpy(),
            )
            for layer in range(len(recurrent.layers))
        ]
        for step in range(steps):
            if not begun[row, step]:
                continue
            x = inputs[row, step].double().numpy()
            for layer in range(len(recurrent.layers)):
                memory[layer] = EQUATIONS[cell](Layer(recurrent, layer), x, memory[layer])
                x = memory[layer].hidden
            outputs[row, step] = x
        ends.append(memory)
    return outputs, ends


def make(cell: str, layers: int) -> Recurrent:
    torch.manual_seed(0)
    recurrent = Recurrent(NetworkSpec(cell=cell, hidden=4, layers=layers), inputs=3).eval().requires_grad_(False)
    for weight in recurrent.parameters():
        weight.mul_(2)
    return recurrent


def random_state(recurrent: Recurrent, rows: int) -> State:
    shape = (len(recurrent.layers), rows, recurrent.hidden)
    return State(torch.randn(shape).tanh(), torch.randn(shape) if recurrent.has_cell else None)


PADDINGS = {
    "without padding": torch.ones(4, 7, dtype=torch.bool),
    "with padding": torch.arange(7)[None] >= torch.tensor([0, 3, 7, 6])[:, None],
}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("cell", "layers"), list(product(CELLS, [1, 2])))
def test_a_recurrence_follows_its_equations(cell: str, layers: int, padding: str) -> None:
    recurrent, begun = make(cell, layers), PADDINGS[padding]
    inputs, state = torch.randn(4, 7, 3), random_state(recurrent, 4)
    outputs, after = recurrent(inputs, state, begun)
    expected, ends = by_equation(recurrent, cell, inputs, state, begun)
    np.testing.assert_allclose(outputs.numpy(), expected, rtol=0, atol=CLOSE)
    for row, layer in product(range(4), range(layers)):
        np.testing.assert_allclose(after.hidden[layer, row].numpy(), ends[row][layer].hidden, rtol=0, atol=CLOSE)
        if after.cell is not None:
            np.testing.assert_allclose(after.cell[layer, row].numpy(), ends[row][layer].cell, rtol=0, atol=CLOSE)
    assert (after.cell is None) == (cell != "lstm")


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("cell", "layers"), list(product(CELLS, [1, 2])))
def test_step_by_step_equals_one_pass(cell: str, layers: int, padding: str) -> None:
    recurrent, begun = make(cell, layers), PADDINGS[padding]
    inputs, state = torch.randn(4, 7, 3), random_state(recurrent, 4)
    expected, end = recurrent(inputs, state, begun)
    steps = []
    for step in range(7):
        output, state = recurrent(inputs[:, step : step + 1], state, begun[:, step : step + 1])
        steps.append(output)
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=0, atol=CLOSE)
    torch.testing.assert_close(state.hidden, end.hidden, rtol=0, atol=CLOSE)
    if state.cell is not None and end.cell is not None:
        torch.testing.assert_close(state.cell, end.cell, rtol=0, atol=CLOSE)


@pytest.mark.parametrize(("cell", "layers"), list(product(CELLS, [1, 2])))
def test_a_gradient_does_not_see_padding(cell: str, layers: int) -> None:
    begun = PADDINGS["with padding"]
    inputs = torch.randn(4, 7, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    recurrent = make(cell, layers).requires_grad_(True)
    start = recurrent.start(4, like=inputs)
    recurrent(inputs, start, begun)[0].square().sum().backward()
    assert inputs.grad is not None
    assert (inputs.grad[~begun] == 0).all()
    assert (inputs.grad[begun].abs().sum(1) > 0).all()
    together = [weight.grad.clone() for weight in recurrent.parameters() if weight.grad is not None]
    recurrent.zero_grad()
    for row, first in ((0, 0), (1, 3), (3, 6)):
        one = inputs[row : row + 1, first:].detach()
        alone = recurrent(one, recurrent.start(1, like=one), begun[row : row + 1, first:])[0]
        alone.square().sum().backward()
    for weight, expected in zip(recurrent.parameters(), together, strict=True):
        torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-5)

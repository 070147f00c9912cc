"""The cells by their equations, compared with torch's modules, with every backend, and with the stack of layers."""

from __future__ import annotations

from functools import partial
from itertools import product
from math import exp, tanh

import pytest
import torch
from torch import Tensor, nn

from forecaster.model.recurrence.autograd import compute_layer
from forecaster.model.recurrence.cells import GateWeights, LSTMStep, Peepholes, gru_step, lstm_step, run_cells
from forecaster.model.recurrence.layer import LayerInputs
from forecaster.model.recurrent import RecurrentStack, RecurrentState, to_layer_inputs
from forecaster.spec import CellKind, NetworkSpec
from tests.parity.test_recurrence import compute_gradients, make_layer, scalar_loss, with_padding

TOLERANCE = 2e-6
CELLS: list[CellKind] = ["gru", "lstm", "elman", "relu"]
MODULES = {"gru": nn.GRU, "lstm": nn.LSTM, "elman": nn.RNN, "relu": partial(nn.RNN, nonlinearity="relu")}


def compute_by_cells(layer: LayerInputs) -> tuple[Tensor, Tensor, Tensor | None]:
    """Outputs and final states, as `compute_layer` returns them."""
    steps = run_cells(layer)
    outputs = steps.hidden.masked_fill(~layer.mask[..., None], 0.0)
    return outputs, steps.hidden[..., -1, :], steps.cell[..., -1, :] if isinstance(steps, LSTMStep) else None


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Equal up to rounding, relative to the largest value of each tensor."""
    for actual_tensor, expected_tensor in zip(actual, expected, strict=True):
        scale = max(1.0, float(expected_tensor.detach().abs().max()))
        torch.testing.assert_close(actual_tensor, expected_tensor.to(actual_tensor), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients_of_the_cells_equal_those_of_torch(cell: CellKind) -> None:
    layer = make_layer(cell, (5, 7, 3, 6), dtype=torch.float64)
    module = MODULES[cell](3, 6, batch_first=True).double()
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    state = layer.hidden[None] if layer.cell is None else (layer.hidden[None], layer.cell[None])
    weights = dict(zip(names, layer[5:], strict=True))
    outputs, final = torch.func.functional_call(module, weights, (layer.inputs, state))
    hidden, cell_state = (part[0] for part in final) if layer.cell is not None else (final[0], None)
    expected, actual = (outputs, hidden, cell_state), compute_by_cells(layer)
    assert_same([part for part in actual if part is not None], [part for part in expected if part is not None], 1e-12)
    assert_same(compute_gradients(layer, scalar_loss(actual)), compute_gradients(layer, scalar_loss(expected)), 1e-12)


@pytest.mark.parametrize("padding", [False, True], ids=["no padding", "padding"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_fastest_backend_has_the_values_and_gradients_of_the_cells(cell: CellKind, padding: bool) -> None:
    """The backend computes in float32, the cells in float64; so the difference is the rounding of the backend."""
    layer = make_layer(cell, (13, 6, 5, 20))
    layer = with_padding(layer) if padding else layer
    double = LayerInputs(
        cell,
        *(
            part if part is None or part.dtype == torch.bool else part.detach().double().requires_grad_()
            for part in layer[1:]
        ),
    )
    actual, expected = compute_layer(layer)[:3], compute_by_cells(double)
    assert_same([part for part in actual if part is not None], [part for part in expected if part is not None], 1e-6)
    loss = scalar_loss(tuple(None if part is None else part.double() for part in actual))
    assert_same(compute_gradients(layer, loss), compute_gradients(double, scalar_loss(expected)), 1e-6)


def test_the_reset_acts_after_the_product_or_before_it() -> None:
    x, h, w, u, b, c = 0.7, -0.4, 0.9, -1.3, 0.2, 0.5
    weights = (
        GateWeights(
            *(
                torch.tensor(value).reshape(shape)
                for value, shape in zip((w, u, b, c), [(1, 1), (1, 1), (1,), (1,)], strict=True)
            )
        ),
    ) * 3
    gate = 1 / (1 + exp(-(w * x + b + u * h + c)))
    after, before = (
        gru_step(torch.tensor([[x]]), torch.tensor([[h]]), weights, reset_after=reset_after)
        for reset_after in (True, False)
    )
    assert after.candidate.item() == pytest.approx(tanh(w * x + b + gate * (u * h + c)))
    assert before.candidate.item() == pytest.approx(tanh(w * x + b + u * (gate * h) + c))
    assert before.hidden.item() == pytest.approx(gate * h + (1 - gate) * before.candidate.item())


def test_peepholes_show_the_gates_the_cell_before_the_step_and_the_output_gate_the_one_after_it() -> None:
    x, h, c = 0.7, -0.4, 1.6
    zero = torch.zeros(1, 1)
    blind = GateWeights(zero, zero, zero[0], zero[0])
    candidate = GateWeights(torch.ones(1, 1), zero, zero[0], zero[0])
    peepholes = Peepholes(torch.tensor([0.5]), torch.tensor([-0.8]), torch.tensor([1.1]))
    step = lstm_step(
        *(torch.tensor([[value]]) for value in (x, h, c)), (blind, blind, candidate, blind), peepholes=peepholes
    )
    input_gate, forget_gate = (1 / (1 + exp(-weight * c)) for weight in (0.5, -0.8))
    cell = forget_gate * c + input_gate * tanh(x)
    assert step.cell.item() == pytest.approx(cell)
    assert step.output.item() == pytest.approx(1 / (1 + exp(-1.1 * cell)))
    assert step.hidden.item() == pytest.approx(step.output.item() * tanh(cell))


def run_cells_of_stack(
    recurrent: RecurrentStack, inputs: Tensor, state: RecurrentState, mask: Tensor
) -> tuple[Tensor, RecurrentState]:
    """Computes a stack without dilation layer by layer, in float64."""
    outputs, after = inputs.double(), []
    for index, layer in enumerate(recurrent.layers):
        before = RecurrentState(*(None if part is None else part[index : index + 1].double() for part in state))
        results = compute_by_cells(to_layer_inputs(layer.double(), outputs, before, mask))
        outputs = results[0]
        after.append(results[1:])
        layer.float()
    hidden, cells = zip(*after, strict=True)
    return outputs, RecurrentState(torch.stack(hidden), None if state.cell is None else torch.stack(cells))


def make_recurrent(cell: CellKind, layers: int) -> RecurrentStack:
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
def test_a_recurrence_follows_its_equations(cell: CellKind, layers: int, padding: str) -> None:
    recurrent, mask = make_recurrent(cell, layers), PADDINGS[padding]
    inputs, state = torch.randn(4, 7, 3), random_state(recurrent, 4)
    outputs, final_state = recurrent(inputs, state, mask)
    expected, expected_state = run_cells_of_stack(recurrent, inputs, state, mask)
    assert_same([outputs, final_state.hidden], [expected, expected_state.hidden], TOLERANCE)
    if final_state.cell is not None and expected_state.cell is not None:
        assert_same([final_state.cell], [expected_state.cell], TOLERANCE)
    assert (final_state.cell is None) == (cell != "lstm")


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("cell", "layers"), list(product(CELLS, [1, 2])))
def test_step_by_step_equals_one_pass(cell: CellKind, layers: int, padding: str) -> None:
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
def test_a_gradient_does_not_depend_on_padding(cell: CellKind, layers: int) -> None:
    mask = PADDINGS["with padding"]
    inputs = torch.randn(4, 7, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    recurrent = make_recurrent(cell, layers).requires_grad_(True)
    initial_state = recurrent.initial_state(4, like=inputs)
    recurrent(inputs, initial_state, mask)[0].square().sum().backward()
    assert inputs.grad is not None
    assert (inputs.grad[~mask] == 0).all()
    assert cell == "relu" or (inputs.grad[mask].abs().sum(1) > 0).all()  # rectified units may be inactive
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

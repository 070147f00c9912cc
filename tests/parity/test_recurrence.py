"""One layer in every backend, compared with torch's modules, with the other backends, and with finite differences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from forecaster.model.recurrence import vectorized
from forecaster.model.recurrence.autograd import compute_layer
from forecaster.model.recurrence.compiled import CompiledBackend, load_compiled_backend
from forecaster.model.recurrence.layer import Backend, LayerInputs
from forecaster.spec import CellKind

pytestmark = pytest.mark.integration

TORCH_MODULES: dict[CellKind, Callable[..., nn.Module]] = {
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "elman": nn.RNN,
    "relu": partial(nn.RNN, nonlinearity="relu"),
}
CELLS: list[CellKind] = ["gru", "lstm", "elman"]  # those of the kernel
WEIGHTS = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
TOLERANCE = 1e-5

# Rows, steps, features, hidden: below, at and above the size of a vector, a tile and a band; single steps; few enough rows to
# be computed without packing the weights.
SHAPES = [(7, 9, 3, 5), (13, 6, 17, 20), (50, 8, 2, 64), (1, 5, 33, 40), (1, 1, 20, 16), (5, 1, 3, 16), (150, 2, 16, 8)]


def list_backends() -> dict[str, Backend]:
    """Lists torch's backend, and the kernel for every instruction set of this machine."""
    widest = load_compiled_backend()
    widths = [] if widest is None else [lanes for lanes in (8, 16) if lanes <= widest.lanes]
    return {"vectorized": vectorized} | {f"kernel on {lanes} floats": CompiledBackend(lanes) for lanes in widths}


BACKENDS = list_backends()
KERNEL_BACKENDS = {name: backend for name, backend in BACKENDS.items() if isinstance(backend, CompiledBackend)}

every_backend = pytest.mark.parametrize("backend", list(BACKENDS.values()), ids=list(BACKENDS))
every_kernel_backend = pytest.mark.parametrize("backend", list(KERNEL_BACKENDS.values()), ids=list(KERNEL_BACKENDS))
every_cell = pytest.mark.parametrize("cell", CELLS)


def make_layer(
    cell: CellKind,
    shape: tuple[int, int, int, int],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    members: int = 0,
) -> LayerInputs:
    """A layer with random weights, inputs and state, all of which require gradients, and without padding."""
    rows, steps, features, hidden = shape
    generator = torch.Generator().manual_seed(seed)
    batch_axes = (members,) if members else ()

    def random_tensor(*sizes: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*batch_axes, *sizes, generator=generator, dtype=dtype)).requires_grad_()

    gates = {"gru": 3, "lstm": 4, "elman": 1, "relu": 1}[cell] * hidden
    return LayerInputs(
        cell,
        random_tensor(rows, steps, features),
        random_tensor(rows, hidden, scale=0.5),
        random_tensor(rows, hidden) if cell == "lstm" else None,
        torch.ones(*batch_axes, rows, steps, dtype=torch.bool),
        random_tensor(gates, features, scale=0.5),
        random_tensor(gates, hidden, scale=1.5 / hidden**0.5),
        random_tensor(gates, scale=0.3),
        random_tensor(gates, scale=0.3),
    )


def with_padding(layer: LayerInputs) -> LayerInputs:
    """Masks the layer so that rows begin at each of the first steps, and some rows never begin."""
    rows, steps = layer.mask.shape[-2:]
    start = torch.arange(rows) % (steps + 1)
    return layer._replace(mask=(torch.arange(steps) >= start[:, None]).expand_as(layer.mask).contiguous())


def select_member(layer: LayerInputs, index: int) -> LayerInputs:
    """Returns one of several stacked layers as independent leaves."""
    parts = (None if tensor is None else tensor.detach()[index].clone() for tensor in layer[1:])
    return with_gradients(LayerInputs(layer.kind, *parts))  # type: ignore[arg-type]


def with_gradients(layer: LayerInputs) -> LayerInputs:
    for tensor in layer_leaves(layer):
        tensor.requires_grad_()
    return layer


def layer_leaves(layer: LayerInputs) -> list[Tensor]:
    return [tensor for tensor in layer[1:] if tensor is not None and tensor.dtype != torch.bool]


def scalar_loss(result: tuple[Tensor | None, ...]) -> Tensor:
    """A scalar that depends on all outputs and final states, on each with other weights."""
    flat = torch.cat([tensor.flatten() for tensor in result[:3] if tensor is not None])
    return flat @ torch.arange(len(flat), dtype=flat.dtype).mul(0.7).cos()


def compute_gradients(layer: LayerInputs, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, layer_leaves(layer), allow_unused=True, materialize_grads=True))


def run_torch_module(layer: LayerInputs) -> tuple[Tensor, Tensor, Tensor | None]:
    """Runs torch's module on each row without its padding; a row that never begins keeps its state."""
    hidden = layer.hidden.shape[-1]
    module = TORCH_MODULES[layer.kind](layer.inputs.shape[-1], hidden, batch_first=True).to(layer.inputs.dtype)
    weights = dict(zip(WEIGHTS, layer[5:], strict=True))
    outputs, hiddens, cells = [], [], []
    for row, mask in enumerate(layer.mask):
        steps = int(mask.sum())
        state = [tensor[row][None, None] for tensor in (layer.hidden, layer.cell) if tensor is not None]
        row_outputs = layer.inputs.new_zeros(len(mask) - steps, hidden)
        if steps:
            inputs = layer.inputs[row, len(mask) - steps :][None]
            initial = tuple(state) if layer.cell is not None else state[0]
            output, final = torch.func.functional_call(module, weights, (inputs, initial))
            state = list(final) if layer.cell is not None else [final]
            row_outputs = torch.cat([row_outputs, output[0]])
        outputs.append(row_outputs)
        hiddens.append(state[0][0, 0])
        cells.append(state[-1][0, 0])
    return torch.stack(outputs), torch.stack(hiddens), None if layer.cell is None else torch.stack(cells)


def assert_equal_results(actual: list[Tensor], expected: list[Tensor], *, tolerance: float = TOLERANCE) -> None:
    for actual_tensor, expected_tensor in zip(actual, expected, strict=True):
        scale = max(1.0, float(expected_tensor.detach().abs().max()))
        torch.testing.assert_close(actual_tensor, expected_tensor, rtol=0, atol=tolerance * scale)


@every_backend
@pytest.mark.parametrize("padding", [False, True], ids=["no padding", "padding"])
@pytest.mark.parametrize(("cell", "shape"), list(product(CELLS, SHAPES)))
def test_a_layer_and_its_gradients_equal_torch(
    cell: CellKind, shape: tuple[int, int, int, int], padding: bool, backend: Backend
) -> None:
    layer = make_layer(cell, shape)
    layer = with_padding(layer) if padding else layer
    actual, expected = compute_layer(layer, backend=backend), run_torch_module(layer)
    assert_equal_results(
        [tensor for tensor in actual[:3] if tensor is not None], [tensor for tensor in expected if tensor is not None]
    )
    assert_equal_results(compute_gradients(layer, scalar_loss(actual)), compute_gradients(layer, scalar_loss(expected)))


@pytest.mark.parametrize("cell", TORCH_MODULES)
@pytest.mark.parametrize("padding", [False, True], ids=["no padding", "padding"])
def test_the_gradients_of_the_backend_in_torch_are_exact(cell: CellKind, padding: bool) -> None:
    layer = make_layer(cell, (3, 4, 2, 3), dtype=torch.float64)
    layer = with_padding(layer) if padding else layer
    indices = [index for index, tensor in enumerate(layer) if isinstance(tensor, Tensor) and tensor.requires_grad]

    def outputs(*tensors: Tensor) -> tuple[Tensor, ...]:
        changed = layer._replace(
            **{LayerInputs._fields[index]: tensor for index, tensor in zip(indices, tensors, strict=True)}
        )
        return tuple(tensor for tensor in compute_layer(changed, backend=vectorized)[:3] if tensor is not None)

    assert torch.autograd.gradcheck(outputs, tuple(layer_leaves(layer)))


@every_backend
@every_cell
def test_gradients_flow_through_each_output_alone(cell: CellKind, backend: Backend) -> None:
    layer = with_padding(make_layer(cell, (6, 5, 3, 8)))
    for index in range(3 if cell == "lstm" else 2):
        actual, expected = compute_layer(layer, backend=backend)[index], run_torch_module(layer)[index]
        assert actual is not None
        assert expected is not None
        assert_equal_results(
            compute_gradients(layer, actual.square().sum()), compute_gradients(layer, expected.square().sum())
        )


@every_backend
@every_cell
def test_padding_is_not_read_and_preserves_the_state_exactly(cell: CellKind, backend: Backend) -> None:
    layer = with_padding(make_layer(cell, (12, 5, 3, 8)))
    never_begun = ~layer.mask.any(1)
    outputs = compute_layer(layer, backend=backend)
    assert torch.equal(outputs.hidden[never_begun], layer.hidden[never_begun])
    assert (outputs.outputs[~layer.mask] == 0).all()
    if layer.cell is not None and outputs.cell is not None:
        assert torch.equal(outputs.cell[never_begun], layer.cell[never_begun])
    expected = compute_gradients(layer, scalar_loss(outputs))
    for garbage in (float("nan"), float("inf"), 1e30):
        inputs = layer.inputs.detach().masked_fill(~layer.mask[..., None], garbage).requires_grad_()
        changed = layer._replace(inputs=inputs)
        actual = compute_layer(changed, backend=backend)
        assert torch.equal(actual.outputs, outputs.outputs)
        for gradient, expected_gradient in zip(compute_gradients(changed, scalar_loss(actual)), expected, strict=True):
            assert torch.equal(gradient, expected_gradient)


@every_backend
@every_cell
def test_non_finite_values_stay_in_their_row(cell: CellKind, backend: Backend) -> None:
    layer = make_layer(cell, (8, 5, 3, 16))
    expected = compute_layer(layer, backend=backend).outputs
    changed_inputs = layer.inputs.detach().clone()
    changed_inputs[3, 2] = float("nan")
    actual = compute_layer(layer._replace(inputs=changed_inputs), backend=backend).outputs
    assert actual[3, 2:].isnan().all()
    assert torch.equal(actual[3, :2], expected[3, :2])
    others = torch.arange(8) != 3
    assert torch.equal(actual[others], expected[others])


@every_backend
@every_cell
def test_saturated_and_nearly_closed_gates_are_accurate(cell: CellKind, backend: Backend) -> None:
    layer = make_layer(cell, (4, 3, 2, 8))
    for magnitude in (1e-6, 1e-3, 30.0, 1e3, 1e6):
        inputs = (magnitude * torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [0.0, -1.0]]))[:, None].expand(
            4, 3, 2
        )
        changed = layer._replace(inputs=inputs, hidden=torch.zeros(4, 8), input_bias=torch.zeros_like(layer.input_bias))
        changed = changed._replace(
            cell=None if layer.cell is None else torch.zeros(4, 8), recurrent_bias=changed.input_bias
        )
        actual, expected = compute_layer(changed, backend=backend).outputs, run_torch_module(changed)[0]
        torch.testing.assert_close(actual, expected, rtol=2e-4, atol=1e-12 if magnitude < 1 else 1e-6)


@every_kernel_backend
@every_cell
def test_a_kernel_row_does_not_depend_on_its_batch_or_the_number_of_threads(
    cell: CellKind, backend: CompiledBackend
) -> None:
    layer = with_padding(make_layer(cell, (150, 16, 5, 24)))
    batched = compute_layer(layer, backend=backend)
    single = layer._replace(
        **{
            name: getattr(layer, name)[40:41]
            for name in ("inputs", "hidden", "cell", "mask")
            if getattr(layer, name) is not None
        }
    )
    assert torch.equal(compute_layer(single, backend=backend).outputs, batched.outputs[40:41])
    num_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        threaded = compute_layer(layer, backend=backend)
        assert torch.equal(threaded.outputs, batched.outputs)
        first, second = (compute_gradients(layer, scalar_loss(compute_layer(layer, backend=backend))) for _ in range(2))
        assert all(torch.equal(gradient, repeated) for gradient, repeated in zip(first, second, strict=True))
    finally:
        torch.set_num_threads(num_threads)
    assert_equal_results(first, compute_gradients(layer, scalar_loss(batched)))


@every_backend
@every_cell
def test_the_same_inputs_give_bitwise_the_same_gradients(cell: CellKind, backend: Backend) -> None:
    layer = with_padding(make_layer(cell, (20, 6, 3, 12)))
    first, second = (compute_gradients(layer, scalar_loss(compute_layer(layer, backend=backend))) for _ in range(2))
    assert all(torch.equal(gradient, repeated) for gradient, repeated in zip(first, second, strict=True))


@every_backend
@every_cell
def test_without_gradients_no_buffers_are_kept(cell: CellKind, backend: Backend) -> None:
    layer = with_padding(make_layer(cell, (6, 5, 3, 8)))
    expected = compute_layer(layer, backend=backend)
    with torch.inference_mode():
        outputs = compute_layer(layer, backend=backend)
        assert backend.forward(layer, keep_for_backward=False).saved == ()
    assert outputs.outputs.is_inference()
    assert torch.equal(outputs.outputs, expected.outputs)
    with torch.no_grad():
        assert compute_layer(layer, backend=backend).outputs.grad_fn is None


@every_backend
def test_second_derivatives_are_not_supported(backend: Backend) -> None:
    layer = make_layer("gru", (2, 3, 2, 4))
    (gradient,) = torch.autograd.grad(
        compute_layer(layer, backend=backend).outputs.sum(), layer.inputs, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="create_graph"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("backend", "cell"), [*product(BACKENDS.values(), CELLS), (vectorized, "relu")], ids=lambda value: str(value)[:40]
)
@pytest.mark.parametrize("padding", [False, True], ids=["no padding", "padding"])
def test_stacked_members_equal_single_members(cell: CellKind, padding: bool, backend: Backend) -> None:
    layer = make_layer(cell, (7, 6, 3, 12), members=5)
    layer = with_padding(layer) if padding else layer

    def loss(*parts: Tensor | None) -> Tensor:
        return scalar_loss(compute_layer(LayerInputs(cell, *parts), backend=backend))  # type: ignore[arg-type]

    dims = tuple(None if tensor is None else 0 for tensor in layer[1:])
    losses = torch.func.vmap(loss, in_dims=dims)(*layer[1:])
    gradients = compute_gradients(layer, losses.sum())
    for index in range(5):
        member = select_member(layer, index)
        expected = scalar_loss(compute_layer(member, backend=backend))
        torch.testing.assert_close(losses[index], expected, rtol=TOLERANCE, atol=TOLERANCE)
        assert_equal_results([gradient[index] for gradient in gradients], compute_gradients(member, expected))


@every_backend
def test_members_can_share_their_inputs(backend: Backend) -> None:
    layer, shared = make_layer("lstm", (4, 5, 3, 8), members=3), make_layer("lstm", (4, 5, 3, 8), seed=1)

    def loss(*weights: Tensor) -> Tensor:
        return scalar_loss(compute_layer(LayerInputs("lstm", *shared[1:5], *weights), backend=backend))

    gradients = torch.autograd.grad(torch.func.vmap(loss)(*layer[5:]).sum(), [shared.inputs, *layer[5:]])
    expected = [torch.zeros_like(tensor) for tensor in gradients]
    for index in range(3):
        tensor = LayerInputs("lstm", *shared[1:5], *(weight[index] for weight in layer[5:]))
        for expected_gradient, gradient in zip(
            expected,
            torch.autograd.grad(scalar_loss(compute_layer(tensor, backend=backend)), [shared.inputs, *layer[5:]]),
            strict=True,
        ):
            expected_gradient += gradient
    assert_equal_results(list(gradients), expected)


@every_backend
@every_cell
def test_nested_maps_and_gradients_within_maps_work(cell: CellKind, backend: Backend) -> None:
    layer = with_padding(make_layer(cell, (4, 5, 3, 6), members=6))
    parts = [None if tensor is None else tensor.detach() for tensor in layer[1:]]
    dims = tuple(None if tensor is None else 0 for tensor in parts)

    def loss(*tensors: Tensor | None) -> Tensor:
        return scalar_loss(compute_layer(LayerInputs(cell, *tensors), backend=backend))  # type: ignore[arg-type]

    expected = torch.func.vmap(loss, in_dims=dims)(*parts)
    nested_parts = [None if tensor is None else tensor.unflatten(0, (2, 3)) for tensor in parts]
    nested = torch.func.vmap(torch.func.vmap(loss, in_dims=dims), in_dims=dims)(*nested_parts)
    torch.testing.assert_close(nested, expected.unflatten(0, (2, 3)))
    mapped = torch.func.vmap(torch.func.grad(loss, argnums=5), in_dims=dims)(*parts)  # by the recurrent weights
    (expected_gradient,) = torch.autograd.grad(
        torch.func.vmap(loss, in_dims=dims)(*layer[1:]).sum(), layer.recurrent_weights
    )
    torch.testing.assert_close(mapped, expected_gradient, rtol=TOLERANCE, atol=TOLERANCE)

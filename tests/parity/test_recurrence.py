"""A layer by its equations and by the compiled kernel, against torch's own modules, against each other, and by differences."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from forecaster.model.recurrence import equations
from forecaster.model.recurrence.autograd import compute_layer
from forecaster.model.recurrence.compiled import CompiledBackend, load_compiled_backend
from forecaster.model.recurrence.layer import Backend, LayerInputs
from forecaster.spec import CellKind

TORCH_MODULES: dict[CellKind, type[nn.Module]] = {"gru": nn.GRU, "lstm": nn.LSTM, "elman": nn.RNN}
CELLS = list(TORCH_MODULES)
WEIGHTS = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
TOLERANCE = 1e-5

# Rows, steps, features, hidden. Less, as much and more than fills a vector, a tile, a band; one step; few enough rows to
# be computed without rearranging the weights.
SHAPES = [(7, 9, 3, 5), (13, 6, 17, 20), (50, 8, 2, 64), (1, 5, 33, 40), (1, 1, 20, 16), (5, 1, 3, 16), (150, 2, 16, 8)]


def list_backends() -> dict[str, Backend]:
    """The equations, and the kernel for every instruction set of this machine."""
    widest = load_compiled_backend()
    widths = [] if widest is None else [lanes for lanes in (8, 16) if lanes <= widest.lanes]
    return {"equations": equations} | {f"kernel on {lanes} floats": CompiledBackend(lanes) for lanes in widths}


BACKENDS = list_backends()
KERNEL_BACKENDS = {name: engine for name, engine in BACKENDS.items() if isinstance(engine, CompiledBackend)}

every_backend = pytest.mark.parametrize("engine", list(BACKENDS.values()), ids=list(BACKENDS))
every_kernel_backend = pytest.mark.parametrize("engine", list(KERNEL_BACKENDS.values()), ids=list(KERNEL_BACKENDS))
every_cell = pytest.mark.parametrize("cell", CELLS)


def make_layer(
    cell: CellKind,
    shape: tuple[int, int, int, int],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    members: int = 0,
) -> LayerInputs:
    """A layer of random weights, inputs and state, that take gradients; nothing is padding."""
    rows, steps, features, hidden = shape
    draw = torch.Generator().manual_seed(seed)
    lead = (members,) if members else ()

    def some(*sizes: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*lead, *sizes, generator=draw, dtype=dtype)).requires_grad_()

    gates = {"gru": 3, "lstm": 4, "elman": 1}[cell] * hidden
    return LayerInputs(
        cell,
        some(rows, steps, features),
        some(rows, hidden, scale=0.5),
        some(rows, hidden) if cell == "lstm" else None,
        torch.ones(*lead, rows, steps, dtype=torch.bool),
        some(gates, features, scale=0.5),
        some(gates, hidden, scale=1.5 / hidden**0.5),
        some(gates, scale=0.3),
        some(gates, scale=0.3),
    )


def with_padding(layer: LayerInputs) -> LayerInputs:
    """The same with rows that begin at every step of the first few, and rows that never do."""
    rows, steps = layer.mask.shape[-2:]
    first = torch.arange(rows) % (steps + 1)
    return layer._replace(mask=(torch.arange(steps) >= first[:, None]).expand_as(layer.mask).contiguous())


def select_member(layer: LayerInputs, number: int) -> LayerInputs:
    """One of the layers that lie side by side, as leaves of its own."""
    parts = (None if one is None else one.detach()[number].clone() for one in layer[1:])
    return with_gradients(LayerInputs(layer.kind, *parts))  # type: ignore[arg-type]


def with_gradients(layer: LayerInputs) -> LayerInputs:
    for one in layer_leaves(layer):
        one.requires_grad_()
    return layer


def layer_leaves(layer: LayerInputs) -> list[Tensor]:
    return [one for one in layer[1:] if one is not None and one.dtype != torch.bool]


def scalar_loss(result: tuple[Tensor | None, ...]) -> Tensor:
    """A number that depends on all outputs, the last states among them, on each in its own way."""
    given = torch.cat([one.flatten() for one in result[:3] if one is not None])
    return given @ torch.arange(len(given), dtype=given.dtype).mul(0.7).cos()


def compute_gradients(layer: LayerInputs, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, layer_leaves(layer), allow_unused=True, materialize_grads=True))


def run_torch_module(layer: LayerInputs) -> tuple[Tensor, Tensor, Tensor | None]:
    """Torch's module, each row over its own steps; a row that never begins keeps its state."""
    hidden = layer.hidden.shape[-1]
    module = TORCH_MODULES[layer.kind](layer.inputs.shape[-1], hidden, batch_first=True).to(layer.inputs.dtype)
    weights = dict(zip(WEIGHTS, layer[5:], strict=True))
    outputs, hiddens, cells = [], [], []
    for row, begun in enumerate(layer.mask):
        steps = int(begun.sum())
        state = [one[row][None, None] for one in (layer.hidden, layer.cell) if one is not None]
        pad = layer.inputs.new_zeros(len(begun) - steps, hidden)
        if steps:
            inputs = layer.inputs[row, len(begun) - steps :][None]
            memory = tuple(state) if layer.cell is not None else state[0]
            output, after = torch.func.functional_call(module, weights, (inputs, memory))
            state = list(after) if layer.cell is not None else [after]
            pad = torch.cat([pad, output[0]])
        outputs.append(pad)
        hiddens.append(state[0][0, 0])
        cells.append(state[-1][0, 0])
    return torch.stack(outputs), torch.stack(hiddens), None if layer.cell is None else torch.stack(cells)


def assert_equal_results(actual: list[Tensor], expected: list[Tensor], *, tolerance: float = TOLERANCE) -> None:
    for one, other in zip(actual, expected, strict=True):
        size = max(1.0, float(other.detach().abs().max()))
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * size)


@every_backend
@pytest.mark.parametrize("padding", [False, True], ids=["no padding", "padding"])
@pytest.mark.parametrize(("cell", "shape"), list(product(CELLS, SHAPES)))
def test_a_layer_and_its_gradients_equal_torch(
    cell: CellKind, shape: tuple[int, int, int, int], padding: bool, engine: Backend
) -> None:
    layer = make_layer(cell, shape)
    layer = with_padding(layer) if padding else layer
    found, expected = compute_layer(layer, backend=engine), run_torch_module(layer)
    assert_equal_results([one for one in found[:3] if one is not None], [one for one in expected if one is not None])
    assert_equal_results(compute_gradients(layer, scalar_loss(found)), compute_gradients(layer, scalar_loss(expected)))


@every_cell
@pytest.mark.parametrize("padding", [False, True], ids=["no padding", "padding"])
def test_the_gradients_of_the_equations_are_exact(cell: CellKind, padding: bool) -> None:
    layer = make_layer(cell, (3, 4, 2, 3), dtype=torch.float64)
    layer = with_padding(layer) if padding else layer
    places = [place for place, one in enumerate(layer) if isinstance(one, Tensor) and one.requires_grad]

    def outputs(*given: Tensor) -> tuple[Tensor, ...]:
        changed = layer._replace(**{LayerInputs._fields[place]: one for place, one in zip(places, given, strict=True)})
        return tuple(one for one in compute_layer(changed, backend=equations)[:3] if one is not None)

    assert torch.autograd.gradcheck(outputs, tuple(layer_leaves(layer)))


@every_backend
@every_cell
def test_gradients_flow_through_each_output_alone(cell: CellKind, engine: Backend) -> None:
    layer = with_padding(make_layer(cell, (6, 5, 3, 8)))
    for place in range(3 if cell == "lstm" else 2):
        one, other = compute_layer(layer, backend=engine)[place], run_torch_module(layer)[place]
        assert one is not None
        assert other is not None
        assert_equal_results(
            compute_gradients(layer, one.square().sum()), compute_gradients(layer, other.square().sum())
        )


@every_backend
@every_cell
def test_padding_is_not_read_and_preserves_the_state_exactly(cell: CellKind, engine: Backend) -> None:
    layer = with_padding(make_layer(cell, (12, 5, 3, 8)))
    never = ~layer.mask.any(1)
    done = compute_layer(layer, backend=engine)
    assert torch.equal(done.hidden[never], layer.hidden[never])
    assert (done.outputs[~layer.mask] == 0).all()
    if layer.cell is not None and done.cell is not None:
        assert torch.equal(done.cell[never], layer.cell[never])
    expected = compute_gradients(layer, scalar_loss(done))
    for garbage in (float("nan"), float("inf"), 1e30):
        inputs = layer.inputs.detach().masked_fill(~layer.mask[..., None], garbage).requires_grad_()
        spoilt = layer._replace(inputs=inputs)
        found = compute_layer(spoilt, backend=engine)
        assert torch.equal(found.outputs, done.outputs)
        for one, other in zip(compute_gradients(spoilt, scalar_loss(found)), expected, strict=True):
            assert torch.equal(one, other)


@every_backend
@every_cell
def test_non_finite_values_stay_in_their_row(cell: CellKind, engine: Backend) -> None:
    layer = make_layer(cell, (8, 5, 3, 16))
    expected = compute_layer(layer, backend=engine).outputs
    spoilt = layer.inputs.detach().clone()
    spoilt[3, 2] = float("nan")
    found = compute_layer(layer._replace(inputs=spoilt), backend=engine).outputs
    assert found[3, 2:].isnan().all()
    assert torch.equal(found[3, :2], expected[3, :2])
    others = torch.arange(8) != 3
    assert torch.equal(found[others], expected[others])


@every_backend
@every_cell
def test_saturated_and_nearly_closed_gates_are_accurate(cell: CellKind, engine: Backend) -> None:
    layer = make_layer(cell, (4, 3, 2, 8))
    for size in (1e-6, 1e-3, 30.0, 1e3, 1e6):
        inputs = (size * torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [0.0, -1.0]]))[:, None].expand(4, 3, 2)
        changed = layer._replace(inputs=inputs, hidden=torch.zeros(4, 8), input_bias=torch.zeros_like(layer.input_bias))
        changed = changed._replace(
            cell=None if layer.cell is None else torch.zeros(4, 8), recurrent_bias=changed.input_bias
        )
        found, expected = compute_layer(changed, backend=engine).outputs, run_torch_module(changed)[0]
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-12 if size < 1 else 1e-6)


@every_kernel_backend
@every_cell
def test_a_kernel_row_does_not_depend_on_its_batch_or_the_number_of_threads(
    cell: CellKind, engine: CompiledBackend
) -> None:
    layer = with_padding(make_layer(cell, (150, 16, 5, 24)))
    together = compute_layer(layer, backend=engine)
    alone = layer._replace(
        **{
            name: getattr(layer, name)[40:41]
            for name in ("inputs", "hidden", "cell", "mask")
            if getattr(layer, name) is not None
        }
    )
    assert torch.equal(compute_layer(alone, backend=engine).outputs, together.outputs[40:41])
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        threaded = compute_layer(layer, backend=engine)
        assert torch.equal(threaded.outputs, together.outputs)
        once, again = (compute_gradients(layer, scalar_loss(compute_layer(layer, backend=engine))) for _ in range(2))
        assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))
    finally:
        torch.set_num_threads(before)
    assert_equal_results(once, compute_gradients(layer, scalar_loss(together)))


@every_backend
@every_cell
def test_the_same_inputs_give_bitwise_the_same_gradients(cell: CellKind, engine: Backend) -> None:
    layer = with_padding(make_layer(cell, (20, 6, 3, 12)))
    once, again = (compute_gradients(layer, scalar_loss(compute_layer(layer, backend=engine))) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


@every_backend
@every_cell
def test_without_gradients_no_buffers_are_kept(cell: CellKind, engine: Backend) -> None:
    layer = with_padding(make_layer(cell, (6, 5, 3, 8)))
    expected = compute_layer(layer, backend=engine)
    with torch.inference_mode():
        done = compute_layer(layer, backend=engine)
        assert engine.forward(layer, keep_for_backward=False).saved == ()
    assert done.outputs.is_inference()
    assert torch.equal(done.outputs, expected.outputs)
    with torch.no_grad():
        assert compute_layer(layer, backend=engine).outputs.grad_fn is None


@every_backend
def test_second_derivatives_are_not_supported(engine: Backend) -> None:
    layer = make_layer("gru", (2, 3, 2, 4))
    (slope,) = torch.autograd.grad(compute_layer(layer, backend=engine).outputs.sum(), layer.inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match="create_graph"):
        slope.sum().backward()


@every_backend
@pytest.mark.parametrize("padding", [False, True], ids=["no padding", "padding"])
@every_cell
def test_stacked_members_equal_single_members(cell: CellKind, padding: bool, engine: Backend) -> None:
    layer = make_layer(cell, (7, 6, 3, 12), members=5)
    layer = with_padding(layer) if padding else layer

    def loss(*parts: Tensor | None) -> Tensor:
        return scalar_loss(compute_layer(LayerInputs(cell, *parts), backend=engine))  # type: ignore[arg-type]

    dims = tuple(None if one is None else 0 for one in layer[1:])
    losses = torch.func.vmap(loss, in_dims=dims)(*layer[1:])
    found = compute_gradients(layer, losses.sum())
    for number in range(5):
        one = select_member(layer, number)
        expected = scalar_loss(compute_layer(one, backend=engine))
        torch.testing.assert_close(losses[number], expected, rtol=TOLERANCE, atol=TOLERANCE)
        assert_equal_results([slope[number] for slope in found], compute_gradients(one, expected))


@every_backend
def test_members_can_share_their_inputs(engine: Backend) -> None:
    layer, shared = make_layer("lstm", (4, 5, 3, 8), members=3), make_layer("lstm", (4, 5, 3, 8), seed=1)

    def loss(*weights: Tensor) -> Tensor:
        return scalar_loss(compute_layer(LayerInputs("lstm", *shared[1:5], *weights), backend=engine))

    found = torch.autograd.grad(torch.func.vmap(loss)(*layer[5:]).sum(), [shared.inputs, *layer[5:]])
    expected = [torch.zeros_like(one) for one in found]
    for number in range(3):
        one = LayerInputs("lstm", *shared[1:5], *(weight[number] for weight in layer[5:]))
        for total, slope in zip(
            expected,
            torch.autograd.grad(scalar_loss(compute_layer(one, backend=engine)), [shared.inputs, *layer[5:]]),
            strict=True,
        ):
            total += slope
    assert_equal_results(list(found), expected)


@every_backend
@every_cell
def test_nested_maps_and_gradients_within_maps_work(cell: CellKind, engine: Backend) -> None:
    layer = with_padding(make_layer(cell, (4, 5, 3, 6), members=6))
    parts = [None if one is None else one.detach() for one in layer[1:]]
    dims = tuple(None if one is None else 0 for one in parts)

    def loss(*given: Tensor | None) -> Tensor:
        return scalar_loss(compute_layer(LayerInputs(cell, *given), backend=engine))  # type: ignore[arg-type]

    expected = torch.func.vmap(loss, in_dims=dims)(*parts)
    grid = [None if one is None else one.unflatten(0, (2, 3)) for one in parts]
    nested = torch.func.vmap(torch.func.vmap(loss, in_dims=dims), in_dims=dims)(*grid)
    torch.testing.assert_close(nested, expected.unflatten(0, (2, 3)))
    each = torch.func.vmap(torch.func.grad(loss, argnums=5), in_dims=dims)(*parts)  # by the recurrent weights
    (whole,) = torch.autograd.grad(torch.func.vmap(loss, in_dims=dims)(*layer[1:]).sum(), layer.recurrent_weights)
    torch.testing.assert_close(each, whole, rtol=TOLERANCE, atol=TOLERANCE)

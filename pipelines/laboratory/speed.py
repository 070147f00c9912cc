"""The experiment `speed`: steps per second of a layer by its equations and in faster ways, beside the limit of the products."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from matplotlib.ticker import EngFormatter
from torch import Tensor, nn

from forecaster.model.recurrence import vectorized
from forecaster.model.recurrence.autograd import compute_layer
from forecaster.model.recurrence.cells import run_cells
from forecaster.model.recurrence.compiled import load_compiled_backend
from forecaster.model.recurrence.layer import LayerInputs
from forecaster.progress import Progress
from forecaster.spec import CellKind
from pipelines.laboratory.pictures import create_axes, label_axes
from pipelines.laboratory.records import Experiment, Findings, Measure, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WEIGHT_NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
_MODULES: dict[CellKind, Callable[..., nn.RNNBase]] = {"gru": nn.GRU, "lstm": nn.LSTM, "elman": nn.RNN}
_GATES: dict[CellKind, int] = {"gru": 3, "lstm": 4, "elman": 1}
WAYS = ("cells by their equations", "all steps at once in torch", "torch's own module", "compiled kernel")


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of a layer and its batch, and how often each way is measured."""

    rows: int
    steps: int
    features: int
    hidden: int
    rounds: int = 15


SIZES = {"256 units": LayerSizes(32, 35, 28, 256), "64 units": LayerSizes(50, 30, 2, 64)}


def run_speed(seed: int, progress: Progress, *, sizes: dict[str, LayerSizes] | None = None) -> Findings:
    """Times a forward and backward pass of each cell in every way, in turns, on one core; the fastest round counts."""
    measures: dict[str, dict[str, float]] = {}
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for label, size in (sizes or SIZES).items():
            for cell in _MODULES:
                progress.update(len(measures), f"{cell}, {label}")
                measures[f"{cell}, {label}"] = measure_speed(cell, size, seed=seed)
    finally:
        torch.set_num_threads(num_threads)
    return Findings(measures)


def measure_speed(cell: CellKind, sizes: LayerSizes, *, seed: int) -> dict[str, float]:
    """Returns the steps (rows times time steps) per CPU second of each way, their ratio, and the limit of the products."""
    layer = _make_layer(cell, sizes, seed=seed)
    calls = {name: _training_pass(way, layer) for name, way in _ways(layer).items()}
    seconds = dict.fromkeys(calls, float("inf"))
    for _ in range(sizes.rounds):
        for name, call in calls.items():
            seconds[name] = min(seconds[name], _time(call))
    count = sizes.rows * sizes.steps
    fastest = min(seconds.values())
    limit = 1 / _seconds_of_products(cell, sizes)
    rates = {name: count / value for name, value in seconds.items()}
    gates = _GATES[cell] * sizes.hidden
    flops_per_step = 2 * gates * (3 * sizes.hidden + 2 * sizes.features)  # of the products in `_seconds_of_products`
    return rates | {
        "fastest by equations": seconds[WAYS[0]] / fastest,
        "limit of the products": limit * count,
        "GFLOP/s at the limit": limit * count * flops_per_step / 1e9,
        "share of the limit": 1 / fastest / limit,
    }


def _ways(layer: LayerInputs) -> dict[str, Callable[[LayerInputs], Tensor]]:
    compiled = load_compiled_backend()
    module = _MODULES[layer.kind](layer.inputs.shape[-1], layer.hidden.shape[-1], batch_first=True)

    def run_module(layer: LayerInputs) -> Tensor:
        state = layer.hidden[None] if layer.cell is None else (layer.hidden[None], layer.cell[None])
        weights = dict(zip(_WEIGHT_NAMES, layer[5:], strict=True))
        outputs: Tensor = torch.func.functional_call(module, weights, (layer.inputs, state))[0]
        return outputs

    ways: dict[str, Callable[[LayerInputs], Tensor]] = {
        WAYS[0]: lambda layer: run_cells(layer).hidden,
        WAYS[1]: lambda layer: compute_layer(layer, backend=vectorized).outputs,
        WAYS[2]: run_module,
    }
    if compiled is not None:
        ways[WAYS[3]] = lambda layer: compute_layer(layer, backend=compiled).outputs
    return ways


def _make_layer(cell: CellKind, sizes: LayerSizes, *, seed: int) -> LayerInputs:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return (0.1 * torch.randn(*shape, generator=generator)).requires_grad_()

    gates, rows, hidden = _GATES[cell] * sizes.hidden, sizes.rows, sizes.hidden
    return LayerInputs(
        cell,
        random(rows, sizes.steps, sizes.features).detach(),
        random(rows, hidden).detach(),
        random(rows, hidden).detach() if cell == "lstm" else None,
        torch.ones(rows, sizes.steps, dtype=torch.bool),
        random(gates, sizes.features),
        random(gates, hidden),
        random(gates),
        random(gates),
    )


def _training_pass(way: Callable[[LayerInputs], Tensor], layer: LayerInputs) -> Callable[[], object]:
    """Returns a call of one forward pass and the gradients of all weights."""
    with torch.no_grad():
        weight = torch.randn(layer.inputs.shape[:2])[..., None]
    return lambda: torch.autograd.grad((way(layer) * weight).sum(), layer[5:])


def _seconds_of_products(cell: CellKind, sizes: LayerSizes) -> float:
    """Returns the seconds of all matrix products of a pass, each as one large product: no recurrence is faster.

    These are the products of all steps with the weights, and in the backward pass those of the gradients with the states and
    with the recurrent weights; the inputs need no gradient.
    """
    count, gates = sizes.rows * sizes.steps, _GATES[cell] * sizes.hidden
    states, inputs = torch.randn(count, sizes.hidden), torch.randn(count, sizes.features)
    grads, recurrent, projection = (
        torch.randn(count, gates),
        torch.randn(gates, sizes.hidden),
        torch.randn(gates, sizes.features),
    )
    products: tuple[Callable[[], Tensor], ...] = (
        lambda: states @ recurrent.T,
        lambda: inputs @ projection.T,
        lambda: grads @ recurrent,
        lambda: grads.T @ states,
        lambda: grads.T @ inputs,
    )
    return sum(min(_time(product) for _ in range(sizes.rounds)) for product in products)


def _time(call: Callable[[], object]) -> float:
    """Returns the processor time of a call in this thread, which what else the machine does hardly changes."""
    started = time.thread_time()
    call()
    return time.thread_time() - started


def draw_speed(trials: Sequence[Trial]) -> Figure:
    """Draws the steps per second of each way and the limit, for each cell and size."""
    first = trials[0].measures
    figure, all_axes = create_axes(columns=2, rows=-(-len(first) // 2), width=11, height=1.9)
    for axes, (name, measures) in zip(all_axes, first.items(), strict=False):
        labels = [label for label in (*WAYS, "limit of the products") if label in measures]
        rates = [measures[label] for label in labels]
        axes.barh(range(len(labels)), rates, color=["#64748b"] * (len(labels) - 1) + ["#c9ced6"])
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        label_axes(axes, title=name, x="steps per second, forward and backward", y="")
    return figure


SPEED = Experiment(
    name="speed",
    question="How many steps per second does a layer make by its equations and in faster ways, and what do the matrix "
    "products allow?",
    conditions="Forward pass and gradients of all weights of one layer in float32 on one core: 32 rows of 35 steps of 28 "
    "inputs with 256 units (a text of characters), and 50 rows of 30 steps with 64 units (the sine). The ways "
    "alternate, and the fastest of 15 rounds counts. The limit is the time of the matrix products alone, each "
    "as one large product.",
    merit="Ratio of the fastest way to the equations; share of the limit.",
    published="Zhang et al. (Dive into Deep Learning), on GPUs, training with 256 units: GRU from 24 k (from scratch) to "
    "325 k characters per second (library), LSTM from 20 k to 254 k; ratios of 14 and 13.",
    measures=(
        *(Measure(way, 0) for way in WAYS),
        Measure("fastest by equations", 1),
        Measure("limit of the products", 0),
        Measure("GFLOP/s at the limit", 0),
        Measure("share of the limit", 2),
    ),
    run=run_speed,
    draw=draw_speed,
)

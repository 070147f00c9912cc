"""Elman, GRU and LSTM recurrences with the state as an argument; padding never touches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from forecaster.model.recurrence.autograd import run
from forecaster.model.recurrence.compiled import kernel
from forecaster.model.recurrence.layer import Layer
from forecaster.shapes import Bool, Float
from forecaster.spec import Cell, NetworkSpec

# The modules hold the weights, under the names that bundles and torch's own kernels know.
_CELLS: dict[Cell, Any] = {"gru": nn.GRU, "lstm": nn.LSTM, "elman": nn.RNN}
_KINDS: dict[type[nn.Module], Cell] = {module: kind for kind, module in _CELLS.items()}
_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class State(NamedTuple):
    """The recurrence of a network: all it knows of the past.

    A layer of dilation d holds its last d outputs, oldest first; `slot` counts them through all layers.
    """

    hidden: Float[Tensor, "slot row hidden"]
    cell: Float[Tensor, "slot row hidden"] | None  # LSTM only


RunLayer = Callable[[nn.Module, Tensor, State, Tensor], tuple[Tensor, State]]
"""Runs a layer over inputs from a state, with what has begun: its outputs, and the state after them."""


class Recurrent(nn.Module):
    """A stack of recurrent layers.

    Cells: Elman 1990 (tanh), GRU of Cho et al. 2014 with the reset gate after the product, LSTM of Gers et al. 2000.
    Dilations link a step to one further back (Chang et al. 2017); residual layers add to their input (He et al. 2016).
    """

    def __init__(self, spec: NetworkSpec, *, inputs: int) -> None:
        super().__init__()
        kind, hidden = _CELLS[spec.cell], spec.hidden
        self.has_cell = spec.cell == "lstm"
        self.hidden, self.dropout, self.residual = hidden, spec.dropout, spec.residual
        self.dilations = spec.dilation_of_each
        self.layers = nn.ModuleList(
            kind(inputs if layer == 0 else hidden, hidden, batch_first=True) for layer in range(spec.layers)
        )

    def start(self, rows: int, *, like: Tensor) -> State:
        """The state before anything was seen."""
        zero = torch.zeros(sum(self.dilations), rows, self.hidden, dtype=torch.float32, device=like.device)
        return State(zero, zero if self.has_cell else None)

    def forward(
        self,
        inputs: Float[Tensor, "row step feature"],
        state: State,
        begun: Bool[Tensor, "row step"],
        run_layer: RunLayer | None = None,
    ) -> tuple[Float[Tensor, "row step hidden"], State]:
        """Runs over the steps.

        Args:
            inputs: One step after another.
            state: Where to go on from.
            begun: False on padding, which lies before the other steps of its row; the state passes over it unchanged.
            run_layer: How one undilated layer is run; None: the fastest way.
        Returns:
            The top layer's output of each step (0 on padding), and the state after the last.
        """
        hiddens = state.hidden.split_with_sizes(self.dilations)
        cells = [None] * len(hiddens) if state.cell is None else list(state.cell.split_with_sizes(self.dilations))
        after: list[State] = []
        outputs = inputs
        for number, (layer, dilation) in enumerate(zip(self.layers, self.dilations, strict=True)):
            below = outputs
            if number and self.dropout:
                outputs = functional.dropout(outputs, self.dropout, self.training)
            outputs, reached = _run_dilated(
                layer, outputs, State(hiddens[number], cells[number]), begun, dilation, run_layer or _run
            )
            after.append(reached)
            if number and self.residual:
                outputs = outputs + below
        cell = torch.cat([one.cell for one in after if one.cell is not None]) if self.has_cell else None
        return outputs, State(torch.cat([one.hidden for one in after]), cell)


def step(
    cell: nn.GRUCell, inputs: Float[Tensor, "row feature"], hidden: Float[Tensor, "row hidden"]
) -> Float[Tensor, "row hidden"]:
    """One step of a cell by itself."""
    if _torch_is_better(inputs):
        return cell(inputs, hidden)  # type: ignore[no-any-return]
    begun = torch.ones(len(inputs), 1, dtype=torch.bool, device=inputs.device)
    weights = (getattr(cell, name) for name in _WEIGHTS)
    return run(Layer("gru", inputs[:, None], hidden, None, begun, *weights)).hidden


def woven(streams: Tensor, *, rows: int, steps: int) -> Tensor:
    """Steps in their order, from the interleaved streams that a dilated layer was run as."""
    dilation = len(streams) // rows
    return streams.reshape(rows, dilation, -1, streams.shape[2]).transpose(1, 2).flatten(1, 2)[:, -steps:]


def _run_dilated(
    layer: nn.Module, inputs: Tensor, state: State, begun: Tensor, dilation: int, run_layer: RunLayer
) -> tuple[Float[Tensor, "row step hidden"], State]:
    """Runs a layer as `dilation` interleaved streams, each of which links its own steps only."""
    rows, steps = inputs.shape[:2]
    if dilation == 1:
        return run_layer(layer, inputs, state, begun)
    if steps == 1:  # a rollout's step: the oldest slot is used and replaced
        outputs, new = run_layer(layer, inputs, _each(state, lambda slots: slots[:1]), begun)
        older = _each(state, lambda slots: slots[1:])
        cell = None if older.cell is None or new.cell is None else torch.cat([older.cell, new.cell])
        return outputs, State(torch.cat([older.hidden, new.hidden]), cell)
    pad = -steps % dilation  # in front, so that the last step ends the last stream and slots stay oldest first

    def into_streams(values: Tensor) -> Tensor:
        return values.reshape(rows, -1, dilation, *values.shape[2:]).transpose(1, 2).flatten(0, 1)

    outputs, after = run_layer(
        layer,
        into_streams(functional.pad(inputs, (0, 0, pad, 0))),
        _each(state, lambda slots: slots.roll(pad, 0).transpose(0, 1).reshape(1, rows * dilation, -1)),
        into_streams(functional.pad(begun, (pad, 0))),
    )
    return woven(outputs, rows=rows, steps=steps), _each(
        after, lambda streams: streams.reshape(rows, dilation, -1).transpose(0, 1)
    )


def _each(state: State, change: Callable[[Tensor], Tensor]) -> State:
    return State(change(state.hidden), None if state.cell is None else change(state.cell))


def _run(layer: nn.Module, inputs: Tensor, state: State, begun: Tensor) -> tuple[Tensor, State]:
    """Runs one undilated layer."""
    if _torch_is_better(inputs) and bool(begun.all()):  # it knows no padding
        outputs, after = layer(inputs, state.hidden if state.cell is None else (state.hidden, state.cell))
        return outputs, State(*after) if isinstance(after, tuple) else State(after, None)
    outputs, hidden, cell, _ = run(as_layer(layer, inputs, state, begun))
    return outputs, State(hidden[None], None if cell is None else cell[None])


def as_layer(layer: nn.Module, inputs: Tensor, state: State, begun: Tensor) -> Layer:
    """One undilated layer, and all that it reads."""
    cell = None if state.cell is None else state.cell[0]
    weights = (getattr(layer, f"{name}_l0") for name in _WEIGHTS)
    return Layer(_KINDS[type(layer)], inputs, state.hidden[0], cell, begun, *weights)


def _torch_is_better(inputs: Tensor) -> bool:
    """Whether torch's own kernels are to be taken: on a GPU, or where there is none of ours; they do not run under `vmap`."""
    return (inputs.is_cuda or kernel() is None) and not torch._C._are_functorch_transforms_active()

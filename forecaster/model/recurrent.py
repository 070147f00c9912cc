"""Elman, GRU and LSTM recurrences with an explicit state that padding never changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from forecaster.model.recurrence.autograd import compute_layer
from forecaster.model.recurrence.compiled import load_compiled_backend
from forecaster.model.recurrence.layer import LayerInputs, LayerOutputs
from forecaster.model.recurrence.library import CELL_CODES
from forecaster.shapes import Bool, Float
from forecaster.spec import CellKind, NetworkSpec

# The modules hold the weights under the names that the bundles and torch's own kernels use.
_CELL_MODULES: dict[CellKind, Callable[..., nn.RNNBase]] = {
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "elman": nn.RNN,
    "relu": partial(nn.RNN, nonlinearity="relu"),
}
_KINDS_BY_MODE: dict[str, CellKind] = {"GRU": "gru", "LSTM": "lstm", "RNN_TANH": "elman", "RNN_RELU": "relu"}
_WEIGHT_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class RecurrentState(NamedTuple):
    """The state of all layers: everything the recurrence keeps of the past.

    A layer of dilation d holds its last d outputs, oldest first; `slot` counts these outputs over all layers.
    """

    hidden: Float[Tensor, "slot row hidden"]
    cell: Float[Tensor, "slot row hidden"] | None  # LSTM only


LayerRunner = Callable[[nn.Module, Tensor, RecurrentState, Tensor], tuple[Tensor, RecurrentState]]
"""Runs a layer on inputs from a state with a mask (False on padding); returns its outputs and the state after them."""


class RecurrentStack(nn.Module):
    """A stack of recurrent layers.

    Cells: Elman 1990 (tanh, or rectified as in Le et al. 2015), GRU of Cho et al. 2014 with the reset gate after the product,
    LSTM of Gers et al. 2000; `forecaster.model.recurrence.cells` has their equations.
    Dilated layers link a step to an earlier one (Chang et al. 2017); residual layers add their input (He et al. 2016).
    """

    def __init__(self, spec: NetworkSpec, *, input_size: int) -> None:
        super().__init__()
        kind, hidden = _CELL_MODULES[spec.cell], spec.hidden
        self.has_cell = spec.cell == "lstm"
        self.hidden_size, self.dropout = hidden, spec.dropout
        # The first layer can be residual only if its inputs are features of the same size.
        self.first_residual_layer = (0 if spec.embed else 1) if spec.residual else spec.layers
        self.dilations = spec.layer_dilations
        self.layers = nn.ModuleList(
            kind(input_size if layer == 0 else hidden, hidden, batch_first=True) for layer in range(spec.layers)
        )

    def initial_state(self, rows: int, *, like: Tensor) -> RecurrentState:
        """Returns the zero state."""
        zero = torch.zeros(sum(self.dilations), rows, self.hidden_size, dtype=torch.float32, device=like.device)
        return RecurrentState(zero, zero if self.has_cell else None)

    def forward(
        self,
        inputs: Float[Tensor, "row step feature"],
        state: RecurrentState,
        mask: Bool[Tensor, "row step"],
        run_layer: LayerRunner | None = None,
    ) -> tuple[Float[Tensor, "row step hidden"], RecurrentState]:
        """Runs over the steps.

        Args:
            inputs: Input features of every step.
            state: State before the first step.
            mask: False on padding, which precedes all other steps of its row and leaves the state unchanged.
            run_layer: Runs one undilated layer; None selects the fastest implementation.
        Returns:
            The top layer's output of each step (0 on padding), and the state after the last step.
        """
        hidden_parts = state.hidden.split_with_sizes(self.dilations)
        cell_parts = (
            [None] * len(hidden_parts) if state.cell is None else list(state.cell.split_with_sizes(self.dilations))
        )
        layer_states: list[RecurrentState] = []
        outputs = inputs
        for index, (layer, dilation) in enumerate(zip(self.layers, self.dilations, strict=True)):
            residual_input = outputs
            if index and self.dropout:
                outputs = functional.dropout(outputs, self.dropout, self.training)
            outputs, layer_state = _run_dilated_layer(
                layer,
                outputs,
                RecurrentState(hidden_parts[index], cell_parts[index]),
                mask,
                dilation,
                run_layer or _run_layer,
            )
            layer_states.append(layer_state)
            if index >= self.first_residual_layer:
                outputs = outputs + residual_input
        cell = (
            torch.cat([layer_state.cell for layer_state in layer_states if layer_state.cell is not None])
            if self.has_cell
            else None
        )
        return outputs, RecurrentState(torch.cat([layer_state.hidden for layer_state in layer_states]), cell)


def run_cell(
    cell: nn.GRUCell, inputs: Float[Tensor, "row feature"], hidden: Float[Tensor, "row hidden"]
) -> Float[Tensor, "row hidden"]:
    """Runs a single step of a stand-alone GRU cell."""
    if _prefers_torch(inputs, cell.weight_hh, kind="gru"):
        return cell(inputs, hidden)  # type: ignore[no-any-return]
    mask = torch.ones(len(inputs), 1, dtype=torch.bool, device=inputs.device)
    weights = [getattr(cell, name) for name in _WEIGHT_NAMES]
    return _compute_rows(_split_members("gru", (inputs[:, None], hidden, None, mask), weights)).hidden


def interleave(streams: Tensor, *, rows: int, steps: int) -> Tensor:
    """Merges the interleaved streams of a dilated layer back into consecutive steps."""
    dilation = len(streams) // rows
    return streams.reshape(rows, dilation, -1, streams.shape[2]).transpose(1, 2).flatten(1, 2)[:, -steps:]


def _run_dilated_layer(
    layer: nn.Module, inputs: Tensor, state: RecurrentState, mask: Tensor, dilation: int, run_layer: LayerRunner
) -> tuple[Float[Tensor, "row step hidden"], RecurrentState]:
    """Runs a layer as `dilation` interleaved streams, each of which links only its own steps."""
    rows, steps = inputs.shape[:2]
    if dilation == 1:
        return run_layer(layer, inputs, state, mask)
    if steps == 1:  # a rollout step: the oldest slot is used and replaced
        outputs, new = run_layer(layer, inputs, _map_state(state, lambda slots: slots[:1]), mask)
        older = _map_state(state, lambda slots: slots[1:])
        cell = None if older.cell is None or new.cell is None else torch.cat([older.cell, new.cell])
        return outputs, RecurrentState(torch.cat([older.hidden, new.hidden]), cell)
    pad = -steps % dilation  # at the front, so that the last step ends the last stream and slots stay oldest first

    def into_streams(values: Tensor) -> Tensor:
        return values.reshape(rows, -1, dilation, *values.shape[2:]).transpose(1, 2).flatten(0, 1)

    outputs, after = run_layer(
        layer,
        into_streams(functional.pad(inputs, (0, 0, pad, 0))),
        _map_state(state, lambda slots: slots.roll(pad, 0).transpose(0, 1).reshape(1, rows * dilation, -1)),
        into_streams(functional.pad(mask, (pad, 0))),
    )
    return interleave(outputs, rows=rows, steps=steps), _map_state(
        after, lambda streams: streams.reshape(rows, dilation, -1).transpose(0, 1)
    )


def _map_state(state: RecurrentState, function: Callable[[Tensor], Tensor]) -> RecurrentState:
    return RecurrentState(function(state.hidden), None if state.cell is None else function(state.cell))


def _run_layer(layer: nn.Module, inputs: Tensor, state: RecurrentState, mask: Tensor) -> tuple[Tensor, RecurrentState]:
    """Runs one undilated layer."""
    weight: Any = layer.weight_hh_l0
    if _prefers_torch(inputs, weight, kind=_KINDS_BY_MODE[str(layer.mode)]) and bool(
        mask.all()
    ):  # torch's kernels do not support padding
        outputs, after = layer(inputs, state.hidden if state.cell is None else (state.hidden, state.cell))
        return outputs, RecurrentState(*after) if isinstance(after, tuple) else RecurrentState(after, None)
    outputs, hidden, cell, _ = _compute_rows(to_layer_inputs(layer, inputs, state, mask))
    return outputs, RecurrentState(hidden[None], None if cell is None else cell[None])


def to_layer_inputs(layer: nn.Module, inputs: Tensor, state: RecurrentState, mask: Tensor) -> LayerInputs:
    """Collects the inputs, state and weights of one undilated layer."""
    cell = None if state.cell is None else state.cell[0]
    weights = [getattr(layer, f"{name}_l0") for name in _WEIGHT_NAMES]
    return _split_members(_KINDS_BY_MODE[str(layer.mode)], (inputs, state.hidden[0], cell, mask), weights)


def _split_members(kind: CellKind, parts: Iterable[Tensor | None], weights: Sequence[Tensor]) -> LayerInputs:
    """Returns the inputs of a layer; with stacked weights, their rows are those of one member after the other."""
    if weights[0].dim() == 3:
        parts = (None if part is None else part.reshape(len(weights[0]), -1, *part.shape[1:]) for part in parts)
    return LayerInputs(kind, *parts, *weights)  # type: ignore[arg-type]


def _compute_rows(layer: LayerInputs) -> LayerOutputs:
    """Runs a layer; the rows of its members follow each other in the result."""
    outputs, hidden, cell, saved = compute_layer(layer)
    if hidden.dim() == 2:
        return LayerOutputs(outputs, hidden, cell, saved)
    cell = None if cell is None else cell.flatten(0, 1)
    return LayerOutputs(outputs.flatten(0, 1), hidden.flatten(0, 1), cell, saved)


def _prefers_torch(inputs: Tensor, weights: Tensor, *, kind: CellKind) -> bool:
    """Whether to use torch's own kernels: on a GPU, or without a compiled one; they take the weights of one network only."""
    is_stacked = weights.dim() == 3 or torch._C._are_functorch_transforms_active()
    is_compiled = kind in CELL_CODES and load_compiled_backend() is not None
    return (inputs.is_cuda or not is_compiled) and not is_stacked

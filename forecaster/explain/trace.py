"""Traces a network while it reads: its gates and states at each step, and the influence of each step on the final state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from forecaster.data.windows import Window
from forecaster.model.recurrence.cells import CellStep, LSTMStep, run_cells
from forecaster.model.recurrent import RecurrentState, interleave, to_layer_inputs
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, encode_inputs
from forecaster.shapes import Float
from forecaster.spec import CellKind

RETENTION_GATE: Mapping[CellKind, str] = {"gru": "update", "lstm": "forget"}
"""The gate that sets the fraction of the previous state that is retained."""
_NUM_PROBES = 32


class UnitTrace(NamedTuple):
    """The gates and states of every unit of one layer at each step of the recurrence; NaN on padding.

    Attributes:
        gates: The gates by name; empty for an Elman layer.
        candidate: The new content; None for an Elman layer, whose state it is.
        cell: The cell state after the step (LSTM only).
        hidden: The hidden state after the step.
    """

    gates: Mapping[str, Float[Tensor, "segment unit"]]
    candidate: Float[Tensor, "segment unit"] | None
    cell: Float[Tensor, "segment unit"] | None
    hidden: Float[Tensor, "segment unit"]


class LayerTrace(NamedTuple):
    """The gates and states of one layer at each step.

    Attributes:
        gates: Mean of each gate over the units, by name; NaN on padding.
        norm: Euclidean norm of the hidden state; NaN on padding.
    """

    gates: Mapping[str, Float[Tensor, "segment"]]
    norm: Float[Tensor, "segment"]


def trace_layers(model: Regressor, window: Window, rollout_state: RolloutState) -> tuple[LayerTrace, ...]:
    """Traces the layers, lowest first, while the network reads a window of one row from a state."""
    return tuple(
        LayerTrace({name: gate.mean(1) for name, gate in units.gates.items()}, units.hidden.norm(dim=1))
        for units in trace_units(model, window, rollout_state)
    )


def trace_units(model: Regressor, window: Window, rollout_state: RolloutState) -> tuple[UnitTrace, ...]:
    """Traces every unit of the layers, lowest first, while the network reads a window of one row from a state.

    The gates come from the cells (`forecaster.model.recurrence.cells`), the reference for all backends.
    """
    records: list[CellStep] = []

    def run_and_record(
        layer: nn.Module, inputs: Tensor, state: RecurrentState, mask: Tensor
    ) -> tuple[Tensor, RecurrentState]:
        record = run_cells(to_layer_inputs(layer, inputs, state, mask))
        records.append(record)
        last_cell = record.cell[None, :, -1] if isinstance(record, LSTMStep) else None
        outputs = record.hidden.masked_fill(~mask[..., None], 0.0)
        return outputs, RecurrentState(record.hidden[None, :, -1], last_cell)

    encoded = encode_inputs(model, window, rollout_state)
    with torch.no_grad():
        model.recurrent(
            build_layer_inputs(model, encoded.inputs, rollout_state.static, encoded.mask),
            rollout_state.recurrent_state,
            encoded.mask,
            run_and_record,
        )
    steps, padding = encoded.mask.shape[1], ~encoded.mask[0]
    traces = []
    for record in records:
        parts = {
            name: interleave(stream, rows=1, steps=steps)[0].masked_fill(padding[:, None], torch.nan)
            for name, stream in record._asdict().items()
        }
        gates = {name: parts[name] for name in record.gate_names}
        traces.append(UnitTrace(gates, parts.get("candidate"), parts.get("cell"), parts["hidden"]))
    return tuple(traces)


def compute_influence(model: Regressor, window: Window, rollout_state: RolloutState) -> Float[Tensor, "segment"]:
    """Returns the influence of each step's inputs on the final state: the Frobenius norm of the derivative; 0 on padding.

    The norm is estimated with fixed random projections (Hutchinson 1990): for vectors v of random signs, the mean of the
    squared norms of v'J is that of J. All projections share one backward pass through the recurrence.
    """
    encoded = encode_inputs(model, window, rollout_state)
    inputs = encoded.inputs.detach().repeat(_NUM_PROBES, 1, 1).requires_grad_()
    hidden, cell = rollout_state.recurrent_state
    state = RecurrentState(
        hidden.detach().repeat(1, _NUM_PROBES, 1),
        None if cell is None else cell.detach().repeat(1, _NUM_PROBES, 1),
    )
    with torch.enable_grad():
        mask, static = encoded.mask.repeat(_NUM_PROBES, 1), rollout_state.static.detach().repeat(_NUM_PROBES, 1)
        _, final_state = model.recurrent(build_layer_inputs(model, inputs, static, mask), state, mask)
        flat_state = (
            final_state.hidden if final_state.cell is None else torch.cat([final_state.hidden, final_state.cell])
        )
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(2, flat_state.shape, generator=generator).to(flat_state) * 2 - 1
        gradients: Any = torch.autograd.grad((flat_state * signs).sum(), inputs)[0]
    influence: Tensor = gradients.double().square().sum(2).mean(0).sqrt()
    return influence.masked_fill(~encoded.mask[0], 0.0).float()


def build_layer_inputs(model: Regressor, inputs: Tensor, static: Tensor, mask: Tensor) -> Tensor:
    """Returns the inputs of the lowest layer, as `Regressor.run_recurrence` builds them."""
    if model.groups:
        inputs = torch.cat([inputs, static[:, None].expand(-1, inputs.shape[1], -1)], dim=-1)
    return inputs if model.embedding is None else functional.silu(model.embedding(inputs)) * mask[..., None]

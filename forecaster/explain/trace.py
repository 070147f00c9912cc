"""What goes on inside a network while it reads: gates and states of every step, and how far back its state remembers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from forecaster.data.windows import Window
from forecaster.model.recurrence import equations
from forecaster.model.recurrent import RecurrentState, interleave, to_layer_inputs
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, encode_inputs
from forecaster.shapes import Float
from forecaster.spec import CellKind

GATE_NAMES: Mapping[CellKind, tuple[str, ...]] = {
    "gru": ("reset", "update", ""),
    "lstm": ("input", "forget", "", "output"),
    "elman": (),
}
"""The gates of each cell in the order of its sums; the sum without a name is no gate but the new content."""
RETENTION_GATE: Mapping[CellKind, str] = {"gru": "update", "lstm": "forget"}
"""The gate that says which share of the state before a step stays."""
_NUM_PROBES = 32


class LayerTrace(NamedTuple):
    """What one layer did at each step.

    Attributes:
        gates: By name, the mean of each gate over the units; NaN on padding.
        norm: Euclidean norm of its hidden state; NaN on padding.
    """

    gates: Mapping[str, Float[Tensor, "segment"]]
    norm: Float[Tensor, "segment"]


def trace_layers(model: Regressor, window: Window, rollout_state: RolloutState) -> tuple[LayerTrace, ...]:
    """The layers of a network, lowest first, while it reads a window of one row after a memory.

    The gates are those of the equations that every way of computing a layer is held to (`model.equations`).
    """
    kept: list[tuple[CellKind, tuple[Tensor, ...]]] = []

    def recorded(
        layer: nn.Module, inputs: Tensor, state: RecurrentState, begun: Tensor
    ) -> tuple[Tensor, RecurrentState]:
        one = to_layer_inputs(layer, inputs, state, begun)
        done = equations.forward(one, keep_for_backward=True)
        kept.append((one.kind, tuple(each.transpose(0, 1) for each in done.saved[:2])))
        return done.outputs, RecurrentState(done.hidden[None], None if done.cell is None else done.cell[None])

    laid = encode_inputs(model, window, rollout_state)
    with torch.no_grad():
        model.recurrent(
            _append_static(model, laid.inputs, rollout_state.static), rollout_state.recurrent_state, laid.mask, recorded
        )
    steps = laid.mask.shape[1]
    padding = ~laid.mask[0]
    found: list[LayerTrace] = []
    for kind, streams in kept:
        sums, states = (interleave(each, rows=1, steps=steps)[0] for each in streams)
        parts = zip(GATE_NAMES[kind], sums.chunk(len(GATE_NAMES[kind]), dim=1), strict=True) if GATE_NAMES[kind] else ()
        gates = {name: part.mean(1).masked_fill(padding, torch.nan) for name, part in parts if name}
        found.append(LayerTrace(gates, states.norm(dim=1).masked_fill(padding, torch.nan)))
    return tuple(found)


def compute_influence(model: Regressor, window: Window, rollout_state: RolloutState) -> Float[Tensor, "segment"]:
    """How much the input of each step moves the state after the last: the Frobenius norm of that derivative; 0 on padding.

    By random projections of the state, always the same ones (Hutchinson 1990): the mean of the squared norms of v'J over
    vectors v of random signs is that of J. One step back through the recurrence for all of them.
    """
    laid = encode_inputs(model, window, rollout_state)
    inputs = laid.inputs.detach().repeat(_NUM_PROBES, 1, 1).requires_grad_()
    hidden, cell = rollout_state.recurrent_state
    state = RecurrentState(*(None if one is None else one.detach().repeat(1, _NUM_PROBES, 1) for one in (hidden, cell)))  # type: ignore[arg-type]
    with torch.enable_grad():
        _, after = model.recurrent(
            _append_static(model, inputs, rollout_state.static.detach().repeat(_NUM_PROBES, 1)),
            state,
            laid.mask.repeat(_NUM_PROBES, 1),
        )
        whole = after.hidden if after.cell is None else torch.cat([after.hidden, after.cell])
        draw = torch.Generator().manual_seed(0)
        signs = torch.randint(2, whole.shape, generator=draw).to(whole) * 2 - 1
        slopes: Any = torch.autograd.grad((whole * signs).sum(), inputs)[0]
    found: Tensor = slopes.double().square().sum(2).mean(0).sqrt()
    return found.masked_fill(~laid.mask[0], 0.0).float()


def _append_static(model: Regressor, inputs: Tensor, static: Tensor) -> Tensor:
    """What is read of each step, and beside it what is known of the row for good."""
    return torch.cat([inputs, static[:, None].expand(-1, inputs.shape[1], -1)], dim=-1) if model.groups else inputs

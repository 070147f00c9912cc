"""A network as one ONNX graph: history in, forecast out, with all that lies between (scale, recurrence, rollout) inside."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from forecaster.engines.onnx import rollout
from forecaster.engines.onnx.builder import BOOL, F32, F64, I64, DType, GraphBuilder, Value
from forecaster.engines.onnx.heads import can_sample
from forecaster.engines.onnx.network import OnnxNetwork, build_onnx_network
from forecaster.engines.onnx.recurrence import LayerState
from forecaster.engines.onnx.runner import GRAPH_FORMAT
from forecaster.engines.onnx.scaling import OnnxScale
from forecaster.model.regressor import Regressor


def export_onnx(model: Regressor) -> bytes:
    """The rollout of a network as an ONNX file; `forecaster.engines.onnx.runner` runs it and documents its inputs and outputs."""
    draft = GraphBuilder()
    network = build_onnx_network(draft, model)
    known = rollout.OnnxWindow(
        draft.add_input("values", F64, ["row", "step"]),
        draft.add_input("covariates", F32, ["row", "step", model.num_covariates]) if model.num_covariates else None,
        draft.add_input("static", I64, ["row", len(network.embeddings)]) if network.embeddings else None,
        draft.add_input("channels", F64, ["row", "step", model.num_targets - 1]) if model.num_targets > 1 else None,
    )
    horizon = draft.add_input("horizon", I64, [1])
    ahead = (
        draft.add_input("ahead", F32, ["row_or_way", "ahead", model.num_covariates]) if model.num_covariates else None
    )
    noise = None
    if can_sample(model.head):
        nothing = np.zeros((0, 0, model.head.uniforms_per_draw))
        noise = draft.add_input("noise", F32, ["track_way", "ahead", model.head.uniforms_per_draw], default=nothing)
    before = _add_state_inputs(network)

    def go_on() -> list[Value]:
        given = _state_from_inputs(network, before)
        return draft.if_else(
            known.values.size(1) > 0,
            lambda: rollout.run_over_window(network, known, given).flatten(),
            lambda: given.flatten(),
        )

    fresh = before["output"].size(0).equals(0)
    parts = draft.if_else(fresh, lambda: rollout.warm_up(network, known).flatten(), go_on)
    memory = rollout.unflatten_rollout_state(network, parts)
    if noise is None:
        forecast = rollout.roll_out(network, memory, horizon, ahead, None)
    else:
        [forecast] = draft.if_else(
            noise.size(0).equals(0),
            lambda: [rollout.roll_out(network, memory, horizon, ahead, None)],
            lambda: [rollout.roll_out(network, memory, horizon, ahead, noise)],
        )
    shapes = _state_shapes(network)
    after = {f"after.{name}": (value, shapes[name][1]) for name, value in _state_outputs(memory).items()}
    facts = {"format": GRAPH_FORMAT} | {
        "block": str(model.block),
        "segment": str(model.segment),
        "lead": str(model.pre_context),
        "targets": str(model.num_targets),
    }
    return draft.serialize({"forecast": (forecast, ["way", "horizon"]), **after}, facts)


def _state_shapes(network: OnnxNetwork) -> dict[str, tuple[DType, list[str | int]]]:
    """The kind and shape of each part of a memory, as it goes in and comes out."""
    model = network.model
    slots: list[str | int] = [sum(one.dilation for one in network.layers), "row", model.recurrent.hidden_size]
    shapes: dict[str, tuple[DType, list[str | int]]] = {
        "hidden": (F32, slots),
        "output": (F32, ["row", model.recurrent.hidden_size]),
        "begun": (BOOL, ["track"]),
        "shift": (F64, ["track"]),
        "width": (F64, ["track"]),
        "profile": (F64, ["track", network.num_phases]),
        "bound": (F32, ["track"]),
        "time": (I64, [1]),
    }
    if network.layers[0].operator == "LSTM":
        shapes["cell"] = (F32, slots)
    if model.transform == "log":
        shapes["size"] = (F64, ["track", 1])
    if network.needs_recent_values:
        shapes["recent"] = (F32, ["track", model.lookback])
    if network.embeddings:
        shapes["static"] = (F32, ["row", network.static_size])
    return shapes


def _add_state_inputs(network: OnnxNetwork) -> dict[str, Value]:
    """The memory to go on from; it may be left out, and is then one of no row."""
    found = {}
    for name, (kind, shape) in _state_shapes(network).items():
        nothing = np.zeros([0 if isinstance(size, str) else size for size in shape], dtype=kind)
        found[name] = network.builder.add_input(f"before.{name}", kind, shape, default=nothing)
    return found


def _state_from_inputs(network: OnnxNetwork, inputs: Mapping[str, Value]) -> rollout.OnnxRolloutState:
    """A memory that came in, as the graph has it."""
    state, first = [], 0
    for one in network.layers:
        parts = [
            inputs[name].slice_axis(0, first, first + one.dilation) for name in ("hidden", "cell") if name in inputs
        ]
        state.append(LayerState(parts[0], parts[1] if len(parts) > 1 else None))
        first += one.dilation
    shift, width = (inputs[name].unsqueeze(1) for name in ("shift", "width"))
    return rollout.OnnxRolloutState(
        recurrent_state=state,
        output=inputs["output"].unsqueeze(0),
        recent=inputs.get("recent"),
        begun=inputs["begun"].unsqueeze(1),
        scale=OnnxScale(network.model.scaling, shift, width, inputs["profile"], inputs.get("size")),
        bound=inputs["bound"].unsqueeze(1),
        time=inputs["time"],
        static=inputs.get("static"),
    )


def _state_outputs(rollout_state: rollout.OnnxRolloutState) -> dict[str, Value]:
    """The memory after the history, as it comes out."""
    draft, scale = rollout_state.output.builder, rollout_state.scale
    found = {
        "hidden": draft.concat([slots.hidden for slots in rollout_state.recurrent_state], axis=0),
        "output": rollout_state.output.squeeze(0),
        "begun": rollout_state.begun.squeeze(1),
        "shift": scale.shift.squeeze(1),
        "width": scale.width.squeeze(1),
        "profile": scale.profile,
        "bound": rollout_state.bound.squeeze(1),
        "time": rollout_state.time,
    }
    cells = [slots.cell for slots in rollout_state.recurrent_state if slots.cell is not None]
    optional = {
        "cell": draft.concat(cells, axis=0) if cells else None,
        "size": scale.size,
        "recent": rollout_state.recent,
        "static": rollout_state.static,
    }
    return found | {name: value for name, value in optional.items() if value is not None}

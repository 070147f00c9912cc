"""Exports a network as one ONNX graph from history to forecast, including scaling, recurrence and rollout."""

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
    """Exports the rollout of a network as an ONNX file; `forecaster.engines.onnx.runner` documents its inputs and outputs."""
    builder = GraphBuilder()
    network = build_onnx_network(builder, model)
    window = rollout.OnnxWindow(
        builder.add_input("values", F64, ["row", "step"]),
        builder.add_input("covariates", F32, ["row", "step", model.num_covariates]) if model.num_covariates else None,
        builder.add_input("static", I64, ["row", len(network.embeddings)]) if network.embeddings else None,
        builder.add_input("channels", F64, ["row", "step", model.num_targets - 1]) if model.num_targets > 1 else None,
    )
    horizon = builder.add_input("horizon", I64, [1])
    future_covariates = (
        builder.add_input("ahead", F32, ["row_or_way", "ahead", model.num_covariates]) if model.num_covariates else None
    )
    noise = None
    if can_sample(model.head):
        default = np.zeros((0, 0, model.head.uniforms_per_draw))
        noise = builder.add_input("noise", F32, ["track_way", "ahead", model.head.uniforms_per_draw], default=default)
    state_inputs = _add_state_inputs(network)

    def continue_rollout() -> list[Value]:
        initial_state = _state_from_inputs(network, state_inputs)
        return builder.if_else(
            window.values.size(1) > 0,
            lambda: rollout.run_over_window(network, window, initial_state).flatten(),
            lambda: initial_state.flatten(),
        )

    is_new = state_inputs["output"].size(0).equals(0)
    parts = builder.if_else(is_new, lambda: rollout.warm_up(network, window).flatten(), continue_rollout)
    rollout_state = rollout.unflatten_rollout_state(network, parts)
    if noise is None:
        forecast = rollout.roll_out(network, rollout_state, horizon, future_covariates, None)
    else:
        [forecast] = builder.if_else(
            noise.size(0).equals(0),
            lambda: [rollout.roll_out(network, rollout_state, horizon, future_covariates, None)],
            lambda: [rollout.roll_out(network, rollout_state, horizon, future_covariates, noise)],
        )
    shapes = _state_shapes(network)
    after = {f"after.{name}": (value, shapes[name][1]) for name, value in _state_outputs(rollout_state).items()}
    metadata = {"format": GRAPH_FORMAT} | {
        "block": str(model.block),
        "segment": str(model.segment),
        "lead": str(model.pre_context),
        "targets": str(model.num_targets),
    }
    return builder.serialize({"forecast": (forecast, ["way", "horizon"]), **after}, metadata)


def _state_shapes(network: OnnxNetwork) -> dict[str, tuple[DType, list[str | int]]]:
    """Returns the dtype and shape of each part of a state, as the graph takes and returns it."""
    model = network.model
    slots: list[str | int] = [sum(layer.dilation for layer in network.layers), "row", model.recurrent.hidden_size]
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
    """Adds the inputs of the state to continue from; they are optional, and by default the state has no rows."""
    inputs = {}
    for name, (dtype, shape) in _state_shapes(network).items():
        default = np.zeros([0 if isinstance(size, str) else size for size in shape], dtype=dtype)
        inputs[name] = network.builder.add_input(f"before.{name}", dtype, shape, default=default)
    return inputs


def _state_from_inputs(network: OnnxNetwork, inputs: Mapping[str, Value]) -> rollout.OnnxRolloutState:
    """Builds the state of the graph from its inputs."""
    layer_states, first = [], 0
    for layer in network.layers:
        slots = [
            inputs[name].slice_axis(0, first, first + layer.dilation) for name in ("hidden", "cell") if name in inputs
        ]
        layer_states.append(LayerState(slots[0], slots[1] if len(slots) > 1 else None))
        first += layer.dilation
    shift, width = (inputs[name].unsqueeze(1) for name in ("shift", "width"))
    return rollout.OnnxRolloutState(
        recurrent_state=layer_states,
        output=inputs["output"].unsqueeze(0),
        recent=inputs.get("recent"),
        begun=inputs["begun"].unsqueeze(1),
        scale=OnnxScale(network.model.scaling, shift, width, inputs["profile"], inputs.get("size")),
        bound=inputs["bound"].unsqueeze(1),
        time=inputs["time"],
        static=inputs.get("static"),
    )


def _state_outputs(rollout_state: rollout.OnnxRolloutState) -> dict[str, Value]:
    """Returns the state after the history as outputs of the graph."""
    builder, scale = rollout_state.output.builder, rollout_state.scale
    outputs = {
        "hidden": builder.concat([layer_state.hidden for layer_state in rollout_state.recurrent_state], axis=0),
        "output": rollout_state.output.squeeze(0),
        "begun": rollout_state.begun.squeeze(1),
        "shift": scale.shift.squeeze(1),
        "width": scale.width.squeeze(1),
        "profile": scale.profile,
        "bound": rollout_state.bound.squeeze(1),
        "time": rollout_state.time,
    }
    cells = [layer_state.cell for layer_state in rollout_state.recurrent_state if layer_state.cell is not None]
    optional = {
        "cell": builder.concat(cells, axis=0) if cells else None,
        "size": scale.size,
        "recent": rollout_state.recent,
        "static": rollout_state.static,
    }
    return outputs | {name: value for name, value in optional.items() if value is not None}

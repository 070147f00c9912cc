"""A network as one ONNX graph: history in, forecast out, with all that lies between (scale, recurrence, rollout) inside."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from forecaster.engines.onnx import rollout
from forecaster.engines.onnx.builder import BOOL, F32, F64, I64, Draft, Kind, Value
from forecaster.engines.onnx.heads import drawable
from forecaster.engines.onnx.network import Network, place
from forecaster.engines.onnx.recurrence import Slots
from forecaster.engines.onnx.runner import FORMAT
from forecaster.engines.onnx.scaling import Scale
from forecaster.model.regressor import Regressor


def export(model: Regressor) -> bytes:
    """The rollout of a network as an ONNX file; `forecaster.engines.onnx.runner` runs it and documents its inputs and outputs."""
    draft = Draft()
    network = place(draft, model)
    known = rollout.Known(
        draft.input("values", F64, ["row", "step"]),
        draft.input("covariates", F32, ["row", "step", model.covariates]) if model.covariates else None,
        draft.input("static", I64, ["row", len(network.tables)]) if network.tables else None,
        draft.input("channels", F64, ["row", "step", model.targets - 1]) if model.targets > 1 else None,
    )
    horizon = draft.input("horizon", I64, [1])
    ahead = draft.input("ahead", F32, ["row_or_way", "ahead", model.covariates]) if model.covariates else None
    noise = None
    if drawable(model.head):
        nothing = np.zeros((0, 0, model.head.noise))
        noise = draft.input("noise", F32, ["track_way", "ahead", model.head.noise], default=nothing)
    before = _before(network)

    def go_on() -> list[Value]:
        given = _given(network, before)
        return draft.choose(
            known.values.size(1) > 0, lambda: rollout.read(network, known, given).flat(), lambda: given.flat()
        )

    fresh = before["output"].size(0).equals(0)
    parts = draft.choose(fresh, lambda: rollout.warm_up(network, known).flat(), go_on)
    memory = rollout.remember(network, parts)
    if noise is None:
        forecast = rollout.roll(network, memory, horizon, ahead, None)
    else:
        [forecast] = draft.choose(
            noise.size(0).equals(0),
            lambda: [rollout.roll(network, memory, horizon, ahead, None)],
            lambda: [rollout.roll(network, memory, horizon, ahead, noise)],
        )
    shapes = _shapes(network)
    after = {f"after.{name}": (value, shapes[name][1]) for name, value in _after(memory).items()}
    facts = {"format": FORMAT} | {name: str(getattr(model, name)) for name in ("block", "segment", "lead", "targets")}
    return draft.finish({"forecast": (forecast, ["way", "horizon"]), **after}, facts)


def _shapes(network: Network) -> dict[str, tuple[Kind, list[str | int]]]:
    """The kind and shape of each part of a memory, as it goes in and comes out."""
    model = network.model
    slots: list[str | int] = [sum(one.dilation for one in network.layers), "row", model.recurrent.hidden]
    shapes: dict[str, tuple[Kind, list[str | int]]] = {
        "hidden": (F32, slots),
        "output": (F32, ["row", model.recurrent.hidden]),
        "begun": (BOOL, ["track"]),
        "shift": (F64, ["track"]),
        "width": (F64, ["track"]),
        "profile": (F64, ["track", network.phases]),
        "bound": (F32, ["track"]),
        "time": (I64, [1]),
    }
    if network.layers[0].operator == "LSTM":
        shapes["cell"] = (F32, slots)
    if model.transform == "log":
        shapes["size"] = (F64, ["track", 1])
    if network.looks_back:
        shapes["recent"] = (F32, ["track", model.back])
    if network.tables:
        shapes["static"] = (F32, ["row", network.groups])
    return shapes


def _before(network: Network) -> dict[str, Value]:
    """The memory to go on from; it may be left out, and is then one of no row."""
    found = {}
    for name, (kind, shape) in _shapes(network).items():
        nothing = np.zeros([0 if isinstance(size, str) else size for size in shape], dtype=kind)
        found[name] = network.draft.input(f"before.{name}", kind, shape, default=nothing)
    return found


def _given(network: Network, before: Mapping[str, Value]) -> rollout.Memory:
    """A memory that came in, as the graph has it."""
    state, first = [], 0
    for one in network.layers:
        parts = [before[name].cut(0, first, first + one.dilation) for name in ("hidden", "cell") if name in before]
        state.append(Slots(parts[0], parts[1] if len(parts) > 1 else None))
        first += one.dilation
    shift, width = (before[name].unsqueeze(1) for name in ("shift", "width"))
    return rollout.Memory(
        state=state,
        output=before["output"].unsqueeze(0),
        recent=before.get("recent"),
        begun=before["begun"].unsqueeze(1),
        scale=Scale(network.model.scaling, shift, width, before["profile"], before.get("size")),
        bound=before["bound"].unsqueeze(1),
        time=before["time"],
        static=before.get("static"),
    )


def _after(memory: rollout.Memory) -> dict[str, Value]:
    """The memory after the history, as it comes out."""
    draft, scale = memory.output.draft, memory.scale
    found = {
        "hidden": draft.concat([slots.hidden for slots in memory.state], axis=0),
        "output": memory.output.squeeze(0),
        "begun": memory.begun.squeeze(1),
        "shift": scale.shift.squeeze(1),
        "width": scale.width.squeeze(1),
        "profile": scale.profile,
        "bound": memory.bound.squeeze(1),
        "time": memory.time,
    }
    cells = [slots.cell for slots in memory.state if slots.cell is not None]
    optional = {
        "cell": draft.concat(cells, axis=0) if cells else None,
        "size": scale.size,
        "recent": memory.recent,
        "static": memory.static,
    }
    return found | {name: value for name, value in optional.items() if value is not None}

"""Memories of networks that read whole histories, as plain arrays: taken near the end of a history, and gone on from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from forecaster.data.windows import Window
from forecaster.engines.engine import Engine, RolloutInput
from forecaster.engines.pytorch import PyTorchEngine
from forecaster.history_summary import StateArrays
from forecaster.model.recurrent import RecurrentState
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, select_rows, warm_up
from forecaster.model.scaling import Scale, settle_scale
from forecaster.series import Series

_SCALE_FIELDS = ("shift", "width", "profile", "size")
_STATE_FIELDS = ("output", "recent", "begun", "bound", "static")


def scale_settled_at(network: Regressor, inputs: RolloutInput) -> int:
    """After how many of the known steps of a single history its scale stays as it is; more than there are if never."""
    tracks = Window(torch.from_numpy(inputs.values), channels=_to_tensor(inputs.channels)).targets[
        :, network.pre_context :
    ]
    found = settle_scale(
        tracks, network.scaling, initial_steps=network.context, season=network.season, transform=network.transform
    )
    return int(found.settled_at.max())


def states_at_end(
    series: Series,
    networks: Sequence[Regressor],
    build_window_input: Callable[[Sequence[Series], int], RolloutInput],
    *,
    device: str,
) -> dict[int, Sequence[StateArrays]]:
    """What every member carries to the places that a forecast may go on from: a segment before the end, and those before.

    `build_window_input` gives the last so many steps of some series as networks read them.
    """
    segment = networks[0].segment
    ends = range(len(series) - 2 * segment + 1, len(series) - segment + 1)
    if series.history_summary is None or not series.history_summary.rollout_states:
        window = _to_window(
            build_window_input([series.take_first(end) for end in ends], networks[0].window_length(len(series))), device
        )
        with torch.inference_mode():
            whole = [warm_up(network, window) for network in networks]
        rows = enumerate(ends)
        return {
            end: [state_to_arrays(select_rows(memory, torch.tensor([row], device=device))) for memory in whole]
            for row, end in rows
        }
    found: dict[int, Sequence[StateArrays]] = {}
    for end in ends:
        place = series.history_summary.find_resume_step(end, segment=segment)
        assert place is not None, "there are memories of every place in a segment"
        before = series.history_summary.rollout_states[place]
        if place < end:
            window = _to_window(build_window_input([series.take_first(end)], end - place), device)
            pairs = zip(networks, before, strict=True)
            with torch.inference_mode():
                before = [
                    state_to_arrays(warm_up(network, window, state_from_arrays(arrays, device)))
                    for network, arrays in pairs
                ]
        found[end] = before
    return found


def engines_from_states(networks: Sequence[Regressor], states: Sequence[StateArrays], *, device: str) -> list[Engine]:
    """What rolls each member on from its memory: what is known to it are whole segments after that."""
    pairs = zip(networks, states, strict=True)
    return [
        PyTorchEngine(network, device=device, initial_state=state_from_arrays(arrays, device))
        for network, arrays in pairs
    ]


def state_to_arrays(rollout_state: RolloutState) -> StateArrays:
    """A memory as plain arrays by name."""
    parts = {"hidden": rollout_state.recurrent_state.hidden, "cell": rollout_state.recurrent_state.cell}
    parts |= {name: getattr(rollout_state.scale, name) for name in _SCALE_FIELDS} | {
        name: getattr(rollout_state, name) for name in _STATE_FIELDS
    }
    return {name: part.cpu().numpy() for name, part in parts.items() if part is not None} | {
        "time": np.array([rollout_state.time])
    }


def state_from_arrays(arrays: StateArrays, device: str) -> RolloutState:
    """The inverse of `state_to_arrays`, on a device."""
    parts: dict[str, Any] = {name: torch.from_numpy(np.array(array)).to(device) for name, array in arrays.items()}
    state, scale = RecurrentState(parts["hidden"], parts.get("cell")), Scale(*(parts[name] for name in _SCALE_FIELDS))
    return RolloutState(
        recurrent_state=state, scale=scale, time=int(arrays["time"][0]), **{name: parts[name] for name in _STATE_FIELDS}
    )


def _to_window(inputs: RolloutInput, device: str) -> Window:
    return Window(torch.from_numpy(inputs.values), *map(_to_tensor, inputs[1:4])).to(device)


def _to_tensor(array: np.ndarray | None) -> Any:
    return None if array is None else torch.from_numpy(array)

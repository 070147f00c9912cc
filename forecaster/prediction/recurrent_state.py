"""Rollout states of networks that read whole histories, as plain arrays: saved near the end of a history, and resumed later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from forecaster.data.windows import Window
from forecaster.engines.engine import Engine, RolloutInput
from forecaster.engines.pytorch import PyTorchEngine
from forecaster.model.recurrent import RecurrentState
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, select_rows, warm_up
from forecaster.model.scaling import Scale, settle_scale
from forecaster.series import Series
from forecaster.series.history_summary import StateArrays

_SCALE_FIELDS = ("shift", "width", "profile", "size")
_STATE_FIELDS = ("output", "recent", "begun", "bound", "static", "statistics")  # the last one only with a running scale


def scale_settled_at(network: Regressor, inputs: RolloutInput) -> int:
    """Returns the number of steps of a single history after which its scale no longer changes.

    It is larger than the number of steps if the scale has not settled yet.
    """
    window = Window(torch.from_numpy(inputs.values), channels=_to_tensor(inputs.channels))
    settled = settle_scale(
        window.targets[:, network.pre_context :],
        network.scaling,
        initial_steps=network.context,
        season=network.season,
        transform=network.transform,
    )
    return int(settled.settled_at.max())


def states_at_end(
    series: Series,
    networks: Sequence[Regressor],
    build_window_input: Callable[[Sequence[Series], int], RolloutInput],
    *,
    device: str,
) -> dict[int, Sequence[StateArrays]]:
    """Computes the rollout states of all members at the steps from which a forecast may resume.

    These are the `segment` steps that end one segment before the end of the history, one for each offset within a segment.
    The result is keyed by the number of steps read. `build_window_input` returns the last steps of series as network input.
    """
    segment = networks[0].segment
    ends = range(len(series) - 2 * segment + 1, len(series) - segment + 1)
    if series.history_summary is None or not series.history_summary.rollout_states:
        window = _to_window(
            build_window_input([series.take_first(end) for end in ends], networks[0].window_length(len(series))), device
        )
        with torch.inference_mode():
            batch_states = [warm_up(network, window) for network in networks]
        return {
            end: [state_to_arrays(select_rows(state, torch.tensor([row], device=device))) for state in batch_states]
            for row, end in enumerate(ends)
        }
    states_by_end: dict[int, Sequence[StateArrays]] = {}
    for end in ends:
        resume_step = series.history_summary.find_resume_step(end, segment=segment)
        assert resume_step is not None, "a state is stored for every offset within a segment"
        states = series.history_summary.rollout_states[resume_step]
        if resume_step < end:
            window = _to_window(build_window_input([series.take_first(end)], end - resume_step), device)
            with torch.inference_mode():
                states = [
                    state_to_arrays(warm_up(network, window, state_from_arrays(arrays, device)))
                    for network, arrays in zip(networks, states, strict=True)
                ]
        states_by_end[end] = states
    return states_by_end


def engines_from_states(networks: Sequence[Regressor], states: Sequence[StateArrays], *, device: str) -> list[Engine]:
    """Builds an engine per member that resumes from its state. Its input must be the whole segments after that state."""
    return [
        PyTorchEngine(network, device=device, initial_state=state_from_arrays(arrays, device))
        for network, arrays in zip(networks, states, strict=True)
    ]


def state_to_arrays(rollout_state: RolloutState) -> StateArrays:
    """Converts a rollout state to plain arrays by name."""
    tensors = {"hidden": rollout_state.recurrent_state.hidden, "cell": rollout_state.recurrent_state.cell}
    tensors |= {name: getattr(rollout_state.scale, name) for name in _SCALE_FIELDS}
    tensors |= {name: getattr(rollout_state, name) for name in _STATE_FIELDS}
    arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items() if tensor is not None}
    return arrays | {"time": np.array([rollout_state.time])}


def state_from_arrays(arrays: StateArrays, device: str) -> RolloutState:
    """Inverts `state_to_arrays`, on a device."""
    tensors: dict[str, Any] = {name: torch.from_numpy(np.array(array)).to(device) for name, array in arrays.items()}
    return RolloutState(
        recurrent_state=RecurrentState(tensors["hidden"], tensors.get("cell")),
        scale=Scale(*(tensors[name] for name in _SCALE_FIELDS)),
        time=int(arrays["time"][0]),
        **{name: tensors[name] for name in _STATE_FIELDS if name in tensors},
    )


def _to_window(inputs: RolloutInput, device: str) -> Window:
    return Window(torch.from_numpy(inputs.values), *map(_to_tensor, inputs[1:4])).to(device)


def _to_tensor(array: np.ndarray | None) -> Any:
    return None if array is None else torch.from_numpy(array)

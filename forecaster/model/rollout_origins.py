"""The memories of histories at many of their places, from reading each once: rows that may roll out beside each other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from forecaster.data.windows import Window
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, concat_states, select_rows, start_rollout, warm_up

MAX_STATES_AT_ONCE = 1 << 14
_MAX_CHUNKS = 6  # stretches at a time
_MANY_ROWS = 128  # rows from which on a step costs what its arithmetic costs, and not its calls


def states_at_origins(model: Regressor, window: Window, *, stride: int, count: int) -> Iterator[RolloutState]:
    """The memory at `count` places of every row, `stride` steps apart, the last of them at the window's end.

    Each is that of a `warm_up` on the window up to its place, where the scale of its row has settled by then (`settle`).

    Args:
        model: One that reads whole histories.
        window: As for `warm_up`.
        every: A multiple of the segment.
        count: Such that there are steps before the first place.
    Returns:
        The places in order, some at once, to bound the memory this takes: all rows of the first, all rows of the second.
    """
    memory, rest = start_rollout(model, window)
    rows, steps = rest.values.shape
    first = steps - (count - 1) * stride
    at_once = max(1, MAX_STATES_AT_ONCE // rows)
    reached = _reset_time(warm_up(model, rest.slice_steps(slice(first)), memory))
    if count == 1:
        yield reached
    last = torch.arange(-rows, 0, device=rest.values.device)
    for done in range(1, count, at_once):
        start, end = first + (done - 1) * stride, first + (min(done + at_once, count) - 1) * stride
        found = _states_along_window(model, rest.slice_steps(slice(start, end)), reached, stride=stride)
        yield found if done > 1 else concat_states([reached, found])
        reached = select_rows(found, last)


def _states_along_window(model: Regressor, window: Window, rollout_state: RolloutState, *, stride: int) -> RolloutState:
    """The memory after every `stride` steps of a window that goes on from a memory: all rows of the first place come first.

    The state of a recurrence is known at the end of what it reads. A call for each place would cost far more than its
    arithmetic, so the window is read in a few long stretches, which gives the state where each begins, and then again, all
    stretches beside each other, in the same way.
    """
    rows, steps = window.values.shape
    places = steps // stride
    if places <= _MAX_CHUNKS or rows >= _MANY_ROWS:
        found = [rollout_state]
        for start in range(0, steps, stride):
            found.append(_reset_time(warm_up(model, window.slice_steps(slice(start, start + stride)), found[-1])))
        return concat_states(found[1:])
    each = -(-places // _MAX_CHUNKS)
    stretches = -(-places // each)
    heads = [rollout_state]
    for start in range(0, (stretches - 1) * each * stride, each * stride):
        heads.append(_reset_time(warm_up(model, window.slice_steps(slice(start, start + each * stride)), heads[-1])))
    side = _fold_into_rows(window, chunks=stretches, steps=each * stride)
    ends = _states_along_window(model, side, concat_states(heads), stride=stride)
    device = window.values.device
    place, row = torch.arange(places, device=device)[:, None], torch.arange(rows, device=device)
    return select_rows(ends, ((place % each * stretches + place // each) * rows + row).flatten())


def _fold_into_rows(window: Window, *, chunks: int, steps: int) -> Window:
    """Stretches of a window as rows: all rows of the first, all rows of the second. The last may be padded at its end."""
    pad = chunks * steps - window.values.shape[1]

    def cut(field: Tensor, empty: float) -> Tensor:
        padded = functional.pad(field, (*[0, 0] * (field.dim() - 2), 0, pad), value=empty)
        return padded.reshape(len(field), chunks, steps, *field.shape[2:]).transpose(0, 1).flatten(0, 1)

    return Window(
        cut(window.values, torch.nan),
        None if window.covariates is None else cut(window.covariates, 0.0),
        None,
        None if window.channels is None else cut(window.channels, torch.nan),
    )


def _reset_time(rollout_state: RolloutState) -> RolloutState:
    """The same memory, its time counted from now on: so those of different places can stand beside each other."""
    return rollout_state._replace(scale=rollout_state.scale.starting_at(rollout_state.time), time=0)

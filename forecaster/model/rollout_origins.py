"""Rollout states at several forecast origins of a history, computed by reading the history once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from forecaster.data.windows import Window
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, concat_states, select_rows, start_rollout, warm_up

MAX_STATES_AT_ONCE = 1 << 14
_MAX_CHUNKS = 6
_MANY_ROWS = 128  # number of rows from which on a step is bound by its arithmetic and not by the overhead of its calls


def states_at_origins(model: Regressor, window: Window, *, stride: int, count: int) -> Iterator[RolloutState]:
    """Yields the state at `count` origins of every row, `stride` steps apart; the last one is the window's end.

    Each state equals that of `warm_up` on the window up to its origin, provided that the scale of the row has settled by
    then (see `settle_scale`).

    Args:
        model: A network that reads whole histories.
        window: As for `warm_up`.
        stride: A multiple of the segment.
        count: Number of origins; some steps must precede the first one.
    Yields:
        The states of several consecutive origins, few enough to bound the memory: all rows of the first, then of the next.
    """
    start_state, remaining = start_rollout(model, window)
    rows, steps = remaining.values.shape
    first = steps - (count - 1) * stride
    origins_at_once = max(1, MAX_STATES_AT_ONCE // rows)
    previous = _reset_time(warm_up(model, remaining.slice_steps(slice(first)), start_state))
    if count == 1:
        yield previous
    last_rows = torch.arange(-rows, 0, device=remaining.values.device)
    for index in range(1, count, origins_at_once):
        start, end = first + (index - 1) * stride, first + (min(index + origins_at_once, count) - 1) * stride
        states = _states_along_window(model, remaining.slice_steps(slice(start, end)), previous, stride=stride)
        yield states if index > 1 else concat_states([previous, states])
        previous = select_rows(states, last_rows)


def _states_along_window(model: Regressor, window: Window, rollout_state: RolloutState, *, stride: int) -> RolloutState:
    """Returns the state after every `stride` steps of a window that continues a state: all rows of the first origin first.

    The state of a recurrence is known only at the end of what it reads, and one call per origin would cost far more than its
    arithmetic. The window is therefore read in a few long chunks, which gives the state at the start of each, and then
    again with all chunks as parallel rows.
    """
    rows, steps = window.values.shape
    num_origins = steps // stride
    if num_origins <= _MAX_CHUNKS or rows >= _MANY_ROWS:
        states = [rollout_state]
        for start in range(0, steps, stride):
            states.append(_reset_time(warm_up(model, window.slice_steps(slice(start, start + stride)), states[-1])))
        return concat_states(states[1:])
    origins_per_chunk = -(-num_origins // _MAX_CHUNKS)
    num_chunks = -(-num_origins // origins_per_chunk)
    chunk_states = [rollout_state]
    for start in range(0, (num_chunks - 1) * origins_per_chunk * stride, origins_per_chunk * stride):
        chunk_states.append(
            _reset_time(
                warm_up(model, window.slice_steps(slice(start, start + origins_per_chunk * stride)), chunk_states[-1])
            )
        )
    chunks = _fold_into_rows(window, chunks=num_chunks, steps=origins_per_chunk * stride)
    end_states = _states_along_window(model, chunks, concat_states(chunk_states), stride=stride)
    device = window.values.device
    origin, row = torch.arange(num_origins, device=device)[:, None], torch.arange(rows, device=device)
    return select_rows(
        end_states, ((origin % origins_per_chunk * num_chunks + origin // origins_per_chunk) * rows + row).flatten()
    )


def _fold_into_rows(window: Window, *, chunks: int, steps: int) -> Window:
    """Turns chunks of a window into rows: all rows of the first chunk first. The last chunk may be padded at its end."""
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
    """Returns the same state with time counted from now on, so that states of different origins can be concatenated."""
    return rollout_state._replace(scale=rollout_state.scale.starting_at(rollout_state.time), time=0)

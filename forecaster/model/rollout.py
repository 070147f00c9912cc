"""The rollout: warm up on a history, then feed the network its own last output, block by block.

Validation, backtest and serving all use this loop. The state is explicit: nothing is kept between calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forecaster.data.windows import Window
from forecaster.model import running_sizes
from forecaster.model.recurrent import RecurrentState
from forecaster.model.regressor import Regressor
from forecaster.model.running_statistics import update_statistics
from forecaster.model.scaling import Scale, measure_scale, settle_scale
from forecaster.shapes import Bool, Float, Float64, Int
from forecaster.spec import DIVERGENCE_FACTOR

_ROW_FIELDS = ("output", "static")
_TARGET_FIELDS = ("recent", "begun", "bound", "statistics")
# Over all rows, in one pass of the recurrence; bounds the memory that long histories take.
MAX_SEGMENTS_AT_ONCE = 1 << 18


class RolloutState(NamedTuple):
    """Everything a rollout carries from one step to the next.

    `row_target` runs over y and all channels of every row.

    Attributes:
        recurrent_state: State of the recurrence.
        output: Output of the recurrence's last step; the decoder starts from it.
        recent: The latest scaled values; gaps are filled with the previous value (0 before the first).
        begun: Whether the target has been observed yet. A row has begun when any of its targets has.
        scale: Scale of each target, measured once, when the row began.
        bound: Scaled values beyond it count as diverged; it grows with the values read.
        time: Steps read since the row began.
        static: Embeddings of the row's static categories.
        statistics: Sums over all steps read, for the running scale; None for a scale that is measured once.
    """

    recurrent_state: RecurrentState
    output: Float[Tensor, "row hidden"]
    recent: Float[Tensor, "row_target back"]
    begun: Bool[Tensor, "row_target"]
    scale: Scale
    bound: Float[Tensor, "row_target"]
    time: int
    static: Float[Tensor, "row group"]
    statistics: Float64[Tensor, "row_target statistic"] | None = None


class EncodedInputs(NamedTuple):
    """Observed values, encoded as inputs of the recurrence. No weights are involved.

    Attributes:
        inputs: Input features of each step of the recurrence.
        mask: Whether the row has been observed by the end of each segment.
        started: Whether the target has been observed by each step.
        filled_values: The values before the first segment and those read, scaled, gaps filled.
        statistics: Those of the running scale after each segment; None for a scale that is measured once.
    """

    inputs: Float[Tensor, "row segment feature"]
    mask: Bool[Tensor, "row segment"]
    started: Bool[Tensor, "row_target step"]
    filled_values: Float[Tensor, "row_target back_and_step"]
    statistics: Float64[Tensor, "row_target segment statistic"] | None


class WindowPass(NamedTuple):
    """The result of running the network over observed values: all that teacher forcing needs.

    Attributes:
        outputs: Output of the recurrence after each segment.
        filled_values: The values before the first segment and those read, scaled, gaps filled.
        state: State after the last segment.
        statistics: Those of the running scale after each segment; None for a scale that is measured once.
    """

    outputs: Float[Tensor, "row segment hidden"]
    filled_values: Float[Tensor, "row_target back_and_step"]
    state: RolloutState
    statistics: Float64[Tensor, "row_target segment statistic"] | None = None


class DecodedBlock(NamedTuple):
    """One predicted block, in scaled units.

    Attributes:
        params: Parameters of the head.
        values: Means or draws.
        valid: Whether the row has not diverged up to this step; once it has, 0 is fed back instead.
        state: State after the values were fed back.
    """

    params: Float[Tensor, "row_target block param"]
    values: Float[Tensor, "row target block"]
    valid: Bool[Tensor, "row block"]
    state: RolloutState


def start_rollout(model: Regressor, window: Window, *, scale: Scale | None = None) -> tuple[RolloutState, Window]:
    """Returns the state before the first step of a window, and the part of the window that remains to be read.

    The first `pre_context` steps of the window only serve lags and the baseline. Unless a scale is given, it is measured on
    all remaining steps or, for a network that reads whole histories, on the first `context` steps of each.
    """
    remaining, rows = window.slice_steps(slice(model.pre_context, None)), len(window.values)
    values = _target_values(model, remaining)
    if scale is not None:
        pass
    elif model.reads == "history" and values.shape[1] > model.context:
        scale = settle_scale(
            values, model.scaling, initial_steps=model.context, season=model.season, transform=model.transform
        ).scale
    else:
        scale = measure_scale(values, model.scaling, season=model.season, transform=model.transform)
    zero = torch.zeros(len(values), device=values.device)
    if model.pre_context:
        pre_context = window.slice_steps(slice(model.pre_context)).targets
        missing = pre_context.isnan()
        recent = _forward_fill(
            scale.apply(pre_context.masked_fill(missing, 0.0), time=-model.pre_context), missing, zero
        )
    else:
        recent = zero[:, None].expand(-1, model.lookback)
    state = RolloutState(
        recurrent_state=model.recurrent.initial_state(rows, like=values),
        output=zero.new_zeros(rows, model.output_size),
        recent=recent,
        begun=zero > 0,
        scale=scale,
        bound=scale.divergence_bound(zero + (model.transform == "none"), factor=DIVERGENCE_FACTOR),
        time=0,
        static=model.embed_static(window.static, rows=rows),
        statistics=values.new_zeros(len(values), running_sizes.NUM_STATISTICS) if model.is_running else None,
    )
    return state, remaining


def run_over_window(model: Regressor, window: Window, rollout_state: RolloutState) -> WindowPass:
    """Reads observed values; their number is a multiple of the segment."""
    encoded = encode_inputs(model, window, rollout_state)
    return _run_recurrence(
        model, encoded, rollout_state._replace(bound=updated_bound(model, window, encoded, rollout_state))
    )


def updated_bound(
    model: Regressor, window: Window, encoded: EncodedInputs, rollout_state: RolloutState
) -> Float[Tensor, "row_target"]:
    """Returns the bound of a state after reading encoded inputs."""
    observed = encoded.filled_values[:, model.lookback :].masked_fill(_target_values(model, window).isnan(), 0.0)
    return rollout_state.bound.maximum(
        rollout_state.scale.divergence_bound(observed.abs().amax(1), factor=DIVERGENCE_FACTOR)
    )


def encode_inputs(model: Regressor, window: Window, rollout_state: RolloutState) -> EncodedInputs:
    """Encodes observed values for reading them from a state."""
    values = _target_values(model, window)
    missing = values.isnan()
    # Missing values are filled before the scaling too; otherwise the derivative of the scale would be NaN.
    scaled = rollout_state.scale.apply(values.masked_fill(missing, 0.0), time=rollout_state.time)
    return _encode_scaled(model, scaled.masked_fill(missing, 0.0), missing, window.covariates, rollout_state)


def _encode_scaled(
    model: Regressor,
    values: Float[Tensor, "row_target step"],
    missing: Bool[Tensor, "row_target step"],
    covariates: Float[Tensor, "row step covariate"] | None,
    rollout_state: RolloutState,
) -> EncodedInputs:
    """Encodes scaled values (0 where missing)."""
    filled = _forward_fill(values, missing, rollout_state.recent[:, -1])
    filled_values = torch.cat([rollout_state.recent, filled], dim=1)
    started = (~missing).cummax(1).values | rollout_state.begun[:, None]
    mask = started.reshape(len(rollout_state.output), model.num_targets, -1, model.segment).any(dim=(1, 3))
    statistics = None
    if rollout_state.statistics is not None:
        by_step = update_statistics(rollout_state.statistics, filled_values, started, missing, season=model.season)
        statistics = by_step[:, model.segment - 1 :: model.segment]
    inputs = model.encode(values, ~missing, filled_values, covariates, statistics)
    return EncodedInputs(inputs, mask, started, filled_values, statistics)


def _run_recurrence(model: Regressor, encoded: EncodedInputs, rollout_state: RolloutState) -> WindowPass:
    """Runs the recurrence once over all segments."""
    outputs, recurrent_state = model.run_recurrence(
        encoded.inputs, rollout_state.static, rollout_state.recurrent_state, encoded.mask
    )
    next_state = rollout_state._replace(
        recurrent_state=recurrent_state,
        output=outputs[:, -1],
        recent=encoded.filled_values[:, encoded.filled_values.shape[1] - model.lookback :],
        begun=encoded.started[:, -1],
        time=rollout_state.time + encoded.started.shape[1],
        statistics=None if encoded.statistics is None else encoded.statistics[:, -1],
    )
    return WindowPass(outputs, encoded.filled_values, next_state, encoded.statistics)


def warm_up(model: Regressor, window: Window, rollout_state: RolloutState | None = None) -> RolloutState:
    """Returns the state after a window; a given state of the preceding steps is continued."""
    if rollout_state is None:
        rollout_state, window = start_rollout(model, window)
    for part in _split_window(model, window):
        rollout_state = run_over_window(model, part, rollout_state).state
    return rollout_state


def _split_window(model: Regressor, window: Window) -> Iterator[Window]:
    rows, steps = window.values.shape
    max_segments = MAX_SEGMENTS_AT_ONCE // model.num_symbols if model.num_symbols else MAX_SEGMENTS_AT_ONCE
    max_steps = max(1, max_segments // max(1, rows)) * model.segment
    for start in range(0, steps, max_steps):
        yield window.slice_steps(slice(start, start + max_steps))


def select_rows(rollout_state: RolloutState, rows: Int[Tensor, "row"]) -> RolloutState:
    """Returns the state of the given rows, in this order."""
    targets = len(rollout_state.recent) // len(rollout_state.output)
    indices = (targets * rows[:, None] + torch.arange(targets, device=rows.device)).flatten()
    hidden, cell = rollout_state.recurrent_state
    state = RecurrentState(hidden[:, rows], None if cell is None else cell[:, rows])
    fields: dict[str, Any] = {name: getattr(rollout_state, name)[rows] for name in _ROW_FIELDS}
    fields |= {name: part[indices] for name in _TARGET_FIELDS if (part := getattr(rollout_state, name)) is not None}
    return rollout_state._replace(
        recurrent_state=state, scale=Scale(*(part[indices] for part in rollout_state.scale)), **fields
    )


def concat_states(states: Sequence[RolloutState]) -> RolloutState:
    """Concatenates the rows of several states, which must agree in `time`."""
    hidden = torch.cat([state.recurrent_state.hidden for state in states], dim=1)
    cells = [state.recurrent_state.cell for state in states if state.recurrent_state.cell is not None]
    scale = Scale(*(torch.cat(parts) for parts in zip(*(state.scale for state in states), strict=True)))
    fields: dict[str, Any] = {
        name: torch.cat([getattr(state, name) for state in states])
        for name in (*_ROW_FIELDS, *_TARGET_FIELDS)
        if getattr(states[0], name) is not None
    }
    return states[0]._replace(
        recurrent_state=RecurrentState(hidden, torch.cat(cells, dim=1) if cells else None), scale=scale, **fields
    )


def repeat_state(rollout_state: RolloutState, *, copies: int) -> RolloutState:
    """Repeats the state of a single row, so that `copies` rollouts can fork from it."""
    rows: dict[str, Any] = {
        name: _repeat_rows(part, copies)
        for name in (*_ROW_FIELDS, *_TARGET_FIELDS)
        if (part := getattr(rollout_state, name)) is not None
    }
    hidden, cell = rollout_state.recurrent_state
    state = RecurrentState(
        hidden.expand(-1, copies, -1).contiguous(), None if cell is None else cell.expand(-1, copies, -1).contiguous()
    )
    scale = Scale(*(_repeat_rows(part, copies) for part in rollout_state.scale))
    return rollout_state._replace(recurrent_state=state, scale=scale, **rows)


def roll_out(
    model: Regressor,
    rollout_state: RolloutState,
    *,
    horizon: int,
    future_covariates: Float[Tensor, "row step covariate"] | None = None,
    noise: Float[Tensor, "row_target step noise"] | None = None,
) -> tuple[Float64[Tensor, "row horizon"], RolloutState]:
    """Predicts the next `horizon` values of y in data units, feeding each block back to predict the next.

    Channels are predicted and fed back with y, except those that were never observed, which stay missing.

    Args:
        model: The network.
        rollout_state: State after the history.
        horizon: Steps ahead.
        future_covariates: Covariates of every step up to the end of the last block, if the network reads any.
        noise: Uniforms in (0, 1) for every step up to the end of the last block; one path is drawn with them. Without
            them the head's mean is returned and fed back.
    Returns:
        The values, and the state after the last whole block. If y or a channel of a row becomes non-finite or exceeds
        the state's bound, the row is NaN from that step on; other rows are not affected.
    """
    start, forecasts = rollout_state.time, []
    for block in blocks(
        model, rollout_state, count=-(-horizon // model.block), future_covariates=future_covariates, noise=noise
    ):
        forecasts.append(block.values[:, 0].masked_fill(~block.valid, torch.nan))
        rollout_state = block.state
    scaled = torch.cat(forecasts, dim=1)[:, :horizon]
    return target_scale(model, rollout_state.scale).undo(scaled, time=start), rollout_state


def blocks(
    model: Regressor,
    rollout_state: RolloutState,
    *,
    count: int,
    future_covariates: Float[Tensor, "row step covariate"] | None = None,
    noise: Float[Tensor, "row_target step noise"] | None = None,
) -> Iterator[DecodedBlock]:
    """Yields the next blocks, each fed back to predict the next: the loop of `roll_out`, open to gradients."""
    shape = (len(rollout_state.output), model.num_targets, model.block)
    begun = rollout_state.begun.reshape(*shape[:2], 1)
    active = begun | ~begun.any(1, keepdim=True)
    bound = rollout_state.bound.reshape(*shape[:2], 1).masked_fill(~active, torch.inf)
    missing = ~active.expand(shape).flatten(0, 1)
    valid = torch.ones_like(begun[:, 0])
    for first in range(0, count * model.block, model.block):
        span = slice(first, first + model.block)
        covariates = None if future_covariates is None else future_covariates[:, span]
        params = model.decode(rollout_state.output, rollout_state.recent, covariates, rollout_state.statistics)
        block = model.head.mean(params) if noise is None else model.head.sample(params, noise[:, span])
        if rollout_state.statistics is not None:
            level, unit = model.measure_units(rollout_state.recent, rollout_state.statistics)
            block = level[:, None] + unit[:, None] * block
        block = block.reshape(shape)
        valid = (valid & (block.abs() <= bound).all(1)).cummin(1).values
        feedback = block.where(valid[:, None, -1:] & active, 0.0).flatten(0, 1)
        rollout_state = _run_recurrence(
            model, _encode_scaled(model, feedback, missing, covariates, rollout_state), rollout_state
        ).state
        yield DecodedBlock(params, block, valid, rollout_state)
        valid = valid[:, -1:]


def target_scale(model: Regressor, scale: Scale) -> Scale:
    """Returns the scale of y, the first target of each row."""
    return Scale(*(part[:: model.num_targets] for part in scale))


def _target_values(model: Regressor, window: Window) -> Float64[Tensor, "row_target step"]:
    values = window.targets
    assert len(values) == model.num_targets * len(window.values), f"the network reads {model.num_targets - 1} channels"
    return values


def _repeat_rows(tensor: Tensor, copies: int) -> Tensor:
    return tensor.repeat(copies, *[1] * (tensor.dim() - 1))


def _forward_fill(
    values: Float[Tensor, "row_target step"],
    missing: Bool[Tensor, "row_target step"],
    previous: Float[Tensor, "row_target"],
) -> Float[Tensor, "row_target step"]:
    """Fills every gap with the previous value."""
    steps = torch.arange(1, values.shape[1] + 1, device=values.device)
    latest = torch.where(missing, 0, steps).cummax(1).values
    return torch.cat([previous[:, None], values.masked_fill(missing, 0.0)], dim=1).gather(1, latest)

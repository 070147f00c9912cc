"""The one rollout: warm up on a history, then feed the network its own last output, block by block.

Validation, backtest and service all come through here. The memory is explicit: nothing is kept between calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forecaster.data.windows import Window
from forecaster.model.recurrent import RecurrentState
from forecaster.model.regressor import Regressor
from forecaster.model.scaling import Scale, measure_scale, settle_scale
from forecaster.shapes import Bool, Float, Float64, Int
from forecaster.spec import DIVERGENCE_FACTOR

_ROW_FIELDS = ("output", "static")
_TARGET_FIELDS = ("recent", "begun", "bound")
MAX_SEGMENTS_AT_ONCE = (
    1 << 18
)  # of all rows together, in one pass of the recurrence: bounds the memory of long histories


class RolloutState(NamedTuple):
    """All a rollout carries from one step to the next.

    Attributes:
        state: The recurrence.
        output: What the recurrence's last step said; the decoder starts from it.
        recent: The latest values, scaled, gaps filled with the value before (0 before the first).
        begun: Whether the track has seen an observation yet. A row has begun when any of its tracks has.
        scale: Of each track, measured once, when the row began.
        bound: Scaled values beyond it are not believed; it grows with what was read.
        time: Steps read since the row began.
        static: What is known of the row for good.
    """

    recurrent_state: RecurrentState
    output: Float[Tensor, "row hidden"]
    recent: Float[Tensor, "track back"]
    begun: Bool[Tensor, "track"]
    scale: Scale
    bound: Float[Tensor, "track"]
    time: int
    static: Float[Tensor, "row group"]


class EncodedInputs(NamedTuple):
    """Known values, laid out for the recurrence to read. No weight has a part in it.

    Attributes:
        inputs: What each step of the recurrence reads.
        begun: Whether the row has seen an observation by the end of each segment.
        seen: The same of each step.
        past: The values before the first segment and those read, scaled, gaps filled.
    """

    inputs: Float[Tensor, "row segment feature"]
    mask: Bool[Tensor, "row segment"]
    started: Bool[Tensor, "track step"]
    filled_values: Float[Tensor, "track back_and_step"]


class WindowPass(NamedTuple):
    """What a network made of known values: all that teacher forcing needs.

    Attributes:
        outputs: Of the recurrence, after each segment.
        past: The values before the first segment and those read, scaled, gaps filled.
        memory: After the last segment.
    """

    outputs: Float[Tensor, "row segment hidden"]
    filled_values: Float[Tensor, "track back_and_step"]
    state: RolloutState


class DecodedBlock(NamedTuple):
    """What a network said of the next points, in its own units, and what became of it.

    Attributes:
        params: Of the head.
        values: What was made of them: means or draws.
        alive: Whether the row was to be believed until then; from there on 0 is fed back instead.
        memory: After the values were fed back.
    """

    params: Float[Tensor, "track block param"]
    values: Float[Tensor, "row target block"]
    valid: Bool[Tensor, "row block"]
    state: RolloutState


def start_rollout(model: Regressor, window: Window, *, scale: Scale | None = None) -> tuple[RolloutState, Window]:
    """The memory before the first step of a window, with the window's scale, or another; and what is left to read.

    The window's first `lead` steps are only there for lags and base to look back on. The scale is that of all the rest, or,
    where a network reads whole histories, of the first `context` steps of each.
    """
    rest, rows = window.slice_steps(slice(model.pre_context, None)), len(window.values)
    tracks = _target_values(model, rest)
    if scale is not None:
        pass
    elif model.reads == "history" and tracks.shape[1] > model.context:
        scale = settle_scale(
            tracks, model.scaling, initial_steps=model.context, season=model.season, transform=model.transform
        ).scale
    else:
        scale = measure_scale(tracks, model.scaling, season=model.season, transform=model.transform)
    zero = torch.zeros(len(tracks), device=tracks.device)
    if model.pre_context:
        lead = window.slice_steps(slice(model.pre_context)).targets
        recent = _forward_fill(scale.apply(lead, time=-model.pre_context), lead.isnan(), zero)
    else:
        recent = zero[:, None].expand(-1, model.lookback)
    memory = RolloutState(
        recurrent_state=model.recurrent.initial_state(rows, like=tracks),
        output=zero.new_zeros(rows, model.recurrent.hidden_size),
        recent=recent,
        begun=zero > 0,
        scale=scale,
        bound=scale.divergence_bound(zero + (model.transform == "none"), factor=DIVERGENCE_FACTOR),
        time=0,
        static=model.embed_static(window.static, rows=rows),
    )
    return memory, rest


def run_over_window(model: Regressor, window: Window, rollout_state: RolloutState) -> WindowPass:
    """Reads known values; their number is a multiple of the segment."""
    laid = encode_inputs(model, window, rollout_state)
    return _run_recurrence(model, laid, rollout_state._replace(bound=updated_bound(model, window, laid, rollout_state)))


def updated_bound(
    model: Regressor, window: Window, encoded: EncodedInputs, rollout_state: RolloutState
) -> Float[Tensor, "track"]:
    """The bound of a memory once it has read what was laid out."""
    known = encoded.filled_values[:, model.lookback :].masked_fill(_target_values(model, window).isnan(), 0.0)
    return rollout_state.bound.maximum(
        rollout_state.scale.divergence_bound(known.abs().amax(1), factor=DIVERGENCE_FACTOR)
    )


def encode_inputs(model: Regressor, window: Window, rollout_state: RolloutState) -> EncodedInputs:
    """Known values as the recurrence will read them after a memory."""
    values = _target_values(model, window)
    missing = values.isnan()
    scaled = rollout_state.scale.apply(values, time=rollout_state.time)
    return _encode_scaled(model, scaled.masked_fill(missing, 0.0), missing, window.covariates, rollout_state)


def _encode_scaled(
    model: Regressor,
    values: Float[Tensor, "track step"],
    missing: Bool[Tensor, "track step"],
    covariates: Float[Tensor, "row step covariate"] | None,
    rollout_state: RolloutState,
) -> EncodedInputs:
    """Lays out scaled values (0 where missing)."""
    filled = _forward_fill(values, missing, rollout_state.recent[:, -1])
    past = torch.cat([rollout_state.recent, filled], dim=1)
    seen = (~missing).cummax(1).values | rollout_state.begun[:, None]
    begun = seen.reshape(len(rollout_state.output), model.num_targets, -1, model.segment).any(dim=(1, 3))
    return EncodedInputs(model.encode(values, ~missing, past, covariates), begun, seen, past)


def _run_recurrence(model: Regressor, encoded: EncodedInputs, rollout_state: RolloutState) -> WindowPass:
    """One pass of the recurrence."""
    outputs, state = model.run_recurrence(
        encoded.inputs, rollout_state.static, rollout_state.recurrent_state, encoded.mask
    )
    after = rollout_state._replace(
        recurrent_state=state,
        output=outputs[:, -1],
        recent=encoded.filled_values[:, encoded.filled_values.shape[1] - model.lookback :],
        begun=encoded.started[:, -1],
        time=rollout_state.time + encoded.started.shape[1],
    )
    return WindowPass(outputs, encoded.filled_values, after)


def warm_up(model: Regressor, window: Window, rollout_state: RolloutState | None = None) -> RolloutState:
    """The memory after a window; given the memory of what came before it, the recurrence goes on from there."""
    if rollout_state is None:
        rollout_state, window = start_rollout(model, window)
    for piece in _split_window(model, window):
        rollout_state = run_over_window(model, piece, rollout_state).state
    return rollout_state


def _split_window(model: Regressor, window: Window) -> Iterator[Window]:
    rows, steps = window.values.shape
    most = max(1, MAX_SEGMENTS_AT_ONCE // max(1, rows)) * model.segment
    for start in range(0, steps, most):
        yield window.slice_steps(slice(start, start + most))


def select_rows(rollout_state: RolloutState, rows: Int[Tensor, "row"]) -> RolloutState:
    """The memory of some rows, in this order."""
    targets = len(rollout_state.recent) // len(rollout_state.output)
    tracks = (targets * rows[:, None] + torch.arange(targets, device=rows.device)).flatten()
    hidden, cell = rollout_state.recurrent_state
    state = RecurrentState(hidden[:, rows], None if cell is None else cell[:, rows])
    fields: dict[str, Any] = {name: getattr(rollout_state, name)[rows] for name in _ROW_FIELDS}
    fields |= {name: getattr(rollout_state, name)[tracks] for name in _TARGET_FIELDS}
    return rollout_state._replace(
        recurrent_state=state, scale=Scale(*(part[tracks] for part in rollout_state.scale)), **fields
    )


def concat_states(states: Sequence[RolloutState]) -> RolloutState:
    """The rows of several memories, all of them at the same time, as one."""
    hidden = torch.cat([one.recurrent_state.hidden for one in states], dim=1)
    cells = [one.recurrent_state.cell for one in states if one.recurrent_state.cell is not None]
    scale = Scale(*(torch.cat(parts) for parts in zip(*(one.scale for one in states), strict=True)))
    fields: dict[str, Any] = {
        name: torch.cat([getattr(one, name) for one in states]) for name in (*_ROW_FIELDS, *_TARGET_FIELDS)
    }
    return states[0]._replace(
        recurrent_state=RecurrentState(hidden, torch.cat(cells, dim=1) if cells else None), scale=scale, **fields
    )


def repeat_state(rollout_state: RolloutState, *, copies: int) -> RolloutState:
    """The memory of one row, `copies` times: every copy may go its own way."""
    rows: dict[str, Any] = {
        name: _repeat_rows(getattr(rollout_state, name), copies) for name in (*_ROW_FIELDS, *_TARGET_FIELDS)
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
    noise: Float[Tensor, "track step noise"] | None = None,
) -> tuple[Float64[Tensor, "row horizon"], RolloutState]:
    """The next `horizon` values of y in units of the data, each block fed back to make the one after it.

    Channels are foretold and fed back with y, all but those that were never observed: they stay so.

    Args:
        model: The network.
        memory: After the history.
        horizon: Steps ahead.
        ahead: Covariates of every step up to the end of the last block, if the network reads any.
        noise: Uniforms in (0, 1) for every step up to the end of the last block: one path is drawn with them. Without
            them the head's mean is given and fed back.
    Returns:
        The values, and the memory after the last whole block. A row of which y or a channel stops being finite, or runs
        away beyond the memory's bound, is NaN from that step on; its neighbours do not notice.
    """
    start, told = rollout_state.time, []
    for block in blocks(
        model, rollout_state, count=-(-horizon // model.block), future_covariates=future_covariates, noise=noise
    ):
        told.append(block.values[:, 0].masked_fill(~block.valid, torch.nan))
        rollout_state = block.state
    scaled = torch.cat(told, dim=1)[:, :horizon]
    return target_scale(model, rollout_state.scale).undo(scaled, time=start), rollout_state


def blocks(
    model: Regressor,
    rollout_state: RolloutState,
    *,
    count: int,
    future_covariates: Float[Tensor, "row step covariate"] | None = None,
    noise: Float[Tensor, "track step noise"] | None = None,
) -> Iterator[DecodedBlock]:
    """The next blocks, each fed back to make the one after it: the loop of `roll_out`, through which gradients go back too."""
    shape = (len(rollout_state.output), model.num_targets, model.block)
    begun = rollout_state.begun.reshape(*shape[:2], 1)
    heard = begun | ~begun.any(1, keepdim=True)
    bound = rollout_state.bound.reshape(*shape[:2], 1).masked_fill(~heard, torch.inf)
    missing = ~heard.expand(shape).flatten(0, 1)
    alive = torch.ones_like(begun[:, 0])
    for first in range(0, count * model.block, model.block):
        span = slice(first, first + model.block)
        known = None if future_covariates is None else future_covariates[:, span]
        params = model.decode(rollout_state.output, rollout_state.recent, known)
        block = model.head.mean(params) if noise is None else model.head.sample(params, noise[:, span])
        block = block.reshape(shape)
        alive = (alive & (block.abs() <= bound).all(1)).cummin(1).values
        fed = block.where(alive[:, None, -1:] & heard, 0.0).flatten(0, 1)
        rollout_state = _run_recurrence(
            model, _encode_scaled(model, fed, missing, known, rollout_state), rollout_state
        ).state
        yield DecodedBlock(params, block, alive, rollout_state)
        alive = alive[:, -1:]


def target_scale(model: Regressor, scale: Scale) -> Scale:
    """The scale of y alone: the first track of each row."""
    return Scale(*(part[:: model.num_targets] for part in scale))


def _target_values(model: Regressor, window: Window) -> Float64[Tensor, "track step"]:
    tracks = window.targets
    assert len(tracks) == model.num_targets * len(window.values), f"the network reads {model.num_targets - 1} channels"
    return tracks


def _repeat_rows(tensor: Tensor, copies: int) -> Tensor:
    return tensor.repeat(copies, *[1] * (tensor.dim() - 1))


def _forward_fill(
    values: Float[Tensor, "track step"], missing: Bool[Tensor, "track step"], previous: Float[Tensor, "track"]
) -> Float[Tensor, "track step"]:
    """Every gap filled with the value before it."""
    steps = torch.arange(1, values.shape[1] + 1, device=values.device)
    latest = torch.where(missing, 0, steps).cummax(1).values
    return torch.cat([previous[:, None], values.masked_fill(missing, 0.0)], dim=1).gather(1, latest)

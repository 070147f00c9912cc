"""The one rollout: warm up on a history, then feed the network its own last output, block by block.

Validation, backtest and service all come through here. The memory is explicit: nothing is kept between calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forecaster.data.windows import Window
from forecaster.model.recurrent import State
from forecaster.model.regressor import Regressor
from forecaster.model.scaling import Scale, measure, settle
from forecaster.shapes import Bool, Float, Float64, Int
from forecaster.spec import RUNAWAY

_BY_ROW = ("output", "static")
_BY_TRACK = ("recent", "begun", "bound")
SEGMENTS_AT_ONCE = 1 << 18  # of all rows together, in one pass of the recurrence: bounds the memory of long histories


class Memory(NamedTuple):
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

    state: State
    output: Float[Tensor, "row hidden"]
    recent: Float[Tensor, "track back"]
    begun: Bool[Tensor, "track"]
    scale: Scale
    bound: Float[Tensor, "track"]
    time: int
    static: Float[Tensor, "row group"]


class Laid(NamedTuple):
    """Known values, laid out for the recurrence to read. No weight has a part in it.

    Attributes:
        inputs: What each step of the recurrence reads.
        begun: Whether the row has seen an observation by the end of each segment.
        seen: The same of each step.
        past: The values before the first segment and those read, scaled, gaps filled.
    """

    inputs: Float[Tensor, "row segment feature"]
    begun: Bool[Tensor, "row segment"]
    seen: Bool[Tensor, "track step"]
    past: Float[Tensor, "track back_and_step"]


class Reading(NamedTuple):
    """What a network made of known values: all that teacher forcing needs.

    Attributes:
        outputs: Of the recurrence, after each segment.
        past: The values before the first segment and those read, scaled, gaps filled.
        memory: After the last segment.
    """

    outputs: Float[Tensor, "row segment hidden"]
    past: Float[Tensor, "track back_and_step"]
    memory: Memory


class Block(NamedTuple):
    """What a network said of the next points, in its own units, and what became of it.

    Attributes:
        params: Of the head.
        values: What was made of them: means or draws.
        alive: Whether the row was to be believed until then; from there on 0 is fed back instead.
        memory: After the values were fed back.
    """

    params: Float[Tensor, "track block param"]
    values: Float[Tensor, "row target block"]
    alive: Bool[Tensor, "row block"]
    memory: Memory


def begin(model: Regressor, window: Window, *, scale: Scale | None = None) -> tuple[Memory, Window]:
    """The memory before the first step of a window, with the window's scale, or another; and what is left to read.

    The window's first `lead` steps are only there for lags and base to look back on. The scale is that of all the rest, or,
    where a network reads whole histories, of the first `context` steps of each.
    """
    rest, rows = window.part(slice(model.lead, None)), len(window.values)
    tracks = _tracks(model, rest)
    if scale is not None:
        pass
    elif model.reads == "history" and tracks.shape[1] > model.context:
        scale = settle(tracks, model.scaling, steps=model.context, season=model.season, transform=model.transform).scale
    else:
        scale = measure(tracks, model.scaling, season=model.season, transform=model.transform)
    zero = torch.zeros(len(tracks), device=tracks.device)
    if model.lead:
        lead = window.part(slice(model.lead)).tracks
        recent = _filled(scale.apply(lead, time=-model.lead), lead.isnan(), zero)
    else:
        recent = zero[:, None].expand(-1, model.back)
    memory = Memory(
        state=model.recurrent.start(rows, like=tracks),
        output=zero.new_zeros(rows, model.recurrent.hidden),
        recent=recent,
        begun=zero > 0,
        scale=scale,
        bound=scale.bound(zero + (model.transform == "none"), times=RUNAWAY),
        time=0,
        static=model.describe(window.static, rows=rows),
    )
    return memory, rest


def read(model: Regressor, window: Window, memory: Memory) -> Reading:
    """Reads known values; their number is a multiple of the segment."""
    laid = lay(model, window, memory)
    return _advance(model, laid, memory._replace(bound=bound_after(model, window, laid, memory)))


def bound_after(model: Regressor, window: Window, laid: Laid, memory: Memory) -> Float[Tensor, "track"]:
    """The bound of a memory once it has read what was laid out."""
    known = laid.past[:, model.back :].masked_fill(_tracks(model, window).isnan(), 0.0)
    return memory.bound.maximum(memory.scale.bound(known.abs().amax(1), times=RUNAWAY))


def lay(model: Regressor, window: Window, memory: Memory) -> Laid:
    """Known values as the recurrence will read them after a memory."""
    values = _tracks(model, window)
    missing = values.isnan()
    scaled = memory.scale.apply(values, time=memory.time)
    return _lay(model, scaled.masked_fill(missing, 0.0), missing, window.covariates, memory)


def _lay(
    model: Regressor,
    values: Float[Tensor, "track step"],
    missing: Bool[Tensor, "track step"],
    covariates: Float[Tensor, "row step covariate"] | None,
    memory: Memory,
) -> Laid:
    """Lays out scaled values (0 where missing)."""
    filled = _filled(values, missing, memory.recent[:, -1])
    past = torch.cat([memory.recent, filled], dim=1)
    seen = (~missing).cummax(1).values | memory.begun[:, None]
    begun = seen.reshape(len(memory.output), model.targets, -1, model.segment).any(dim=(1, 3))
    return Laid(model.encode(values, ~missing, past, covariates), begun, seen, past)


def _advance(model: Regressor, laid: Laid, memory: Memory) -> Reading:
    """One pass of the recurrence."""
    outputs, state = model.recur(laid.inputs, memory.static, memory.state, laid.begun)
    after = memory._replace(
        state=state,
        output=outputs[:, -1],
        recent=laid.past[:, laid.past.shape[1] - model.back :],
        begun=laid.seen[:, -1],
        time=memory.time + laid.seen.shape[1],
    )
    return Reading(outputs, laid.past, after)


def warm_up(model: Regressor, window: Window, memory: Memory | None = None) -> Memory:
    """The memory after a window; given the memory of what came before it, the recurrence goes on from there."""
    if memory is None:
        memory, window = begin(model, window)
    for piece in _pieces(model, window):
        memory = read(model, piece, memory).memory
    return memory


def _pieces(model: Regressor, window: Window) -> Iterator[Window]:
    rows, steps = window.values.shape
    most = max(1, SEGMENTS_AT_ONCE // max(1, rows)) * model.segment
    for start in range(0, steps, most):
        yield window.part(slice(start, start + most))


def pick(memory: Memory, rows: Int[Tensor, "row"]) -> Memory:
    """The memory of some rows, in this order."""
    targets = len(memory.recent) // len(memory.output)
    tracks = (targets * rows[:, None] + torch.arange(targets, device=rows.device)).flatten()
    hidden, cell = memory.state
    state = State(hidden[:, rows], None if cell is None else cell[:, rows])
    fields: dict[str, Any] = {name: getattr(memory, name)[rows] for name in _BY_ROW}
    fields |= {name: getattr(memory, name)[tracks] for name in _BY_TRACK}
    return memory._replace(state=state, scale=Scale(*(part[tracks] for part in memory.scale)), **fields)


def join(memories: Sequence[Memory]) -> Memory:
    """The rows of several memories, all of them at the same time, as one."""
    hidden = torch.cat([one.state.hidden for one in memories], dim=1)
    cells = [one.state.cell for one in memories if one.state.cell is not None]
    scale = Scale(*(torch.cat(parts) for parts in zip(*(one.scale for one in memories), strict=True)))
    fields: dict[str, Any] = {
        name: torch.cat([getattr(one, name) for one in memories]) for name in (*_BY_ROW, *_BY_TRACK)
    }
    return memories[0]._replace(state=State(hidden, torch.cat(cells, dim=1) if cells else None), scale=scale, **fields)


def fork(memory: Memory, *, paths: int) -> Memory:
    """The memory of one row, `paths` times: every copy may go its own way."""
    rows: dict[str, Any] = {name: _repeated(getattr(memory, name), paths) for name in (*_BY_ROW, *_BY_TRACK)}
    hidden, cell = memory.state
    state = State(
        hidden.expand(-1, paths, -1).contiguous(), None if cell is None else cell.expand(-1, paths, -1).contiguous()
    )
    scale = Scale(*(_repeated(part, paths) for part in memory.scale))
    return memory._replace(state=state, scale=scale, **rows)


def roll(
    model: Regressor,
    memory: Memory,
    *,
    horizon: int,
    ahead: Float[Tensor, "row step covariate"] | None = None,
    noise: Float[Tensor, "track step noise"] | None = None,
) -> tuple[Float64[Tensor, "row horizon"], Memory]:
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
    start, told = memory.time, []
    for block in blocks(model, memory, count=-(-horizon // model.block), ahead=ahead, noise=noise):
        told.append(block.values[:, 0].masked_fill(~block.alive, torch.nan))
        memory = block.memory
    scaled = torch.cat(told, dim=1)[:, :horizon]
    return of_y(model, memory.scale).undo(scaled, time=start), memory


def blocks(
    model: Regressor,
    memory: Memory,
    *,
    count: int,
    ahead: Float[Tensor, "row step covariate"] | None = None,
    noise: Float[Tensor, "track step noise"] | None = None,
) -> Iterator[Block]:
    """The next blocks, each fed back to make the one after it: the loop of `roll`, through which gradients go back too."""
    shape = (len(memory.output), model.targets, model.block)
    begun = memory.begun.reshape(*shape[:2], 1)
    heard = begun | ~begun.any(1, keepdim=True)
    bound = memory.bound.reshape(*shape[:2], 1).masked_fill(~heard, torch.inf)
    missing = ~heard.expand(shape).flatten(0, 1)
    alive = torch.ones_like(begun[:, 0])
    for first in range(0, count * model.block, model.block):
        span = slice(first, first + model.block)
        known = None if ahead is None else ahead[:, span]
        params = model.decode(memory.output, memory.recent, known)
        block = model.head.mean(params) if noise is None else model.head.draw(params, noise[:, span])
        block = block.reshape(shape)
        alive = (alive & (block.abs() <= bound).all(1)).cummin(1).values
        fed = block.where(alive[:, None, -1:] & heard, 0.0).flatten(0, 1)
        memory = _advance(model, _lay(model, fed, missing, known, memory), memory).memory
        yield Block(params, block, alive, memory)
        alive = alive[:, -1:]


def of_y(model: Regressor, scale: Scale) -> Scale:
    """The scale of y alone: the first track of each row."""
    return Scale(*(part[:: model.targets] for part in scale))


def _tracks(model: Regressor, window: Window) -> Float64[Tensor, "track step"]:
    tracks = window.tracks
    assert len(tracks) == model.targets * len(window.values), f"the network reads {model.targets - 1} channels"
    return tracks


def _repeated(part: Tensor, paths: int) -> Tensor:
    return part.repeat(paths, *[1] * (part.dim() - 1))


def _filled(
    values: Float[Tensor, "track step"], missing: Bool[Tensor, "track step"], before: Float[Tensor, "track"]
) -> Float[Tensor, "track step"]:
    """Every gap filled with the value before it."""
    steps = torch.arange(1, values.shape[1] + 1, device=values.device)
    latest = torch.where(missing, 0, steps).cummax(1).values
    return torch.cat([before[:, None], values.masked_fill(missing, 0.0)], dim=1).gather(1, latest)

"""The one rollout: warm up on a history, then feed the network its own last output, block by block.

Validation, backtest and service all come through here. The memory is explicit: nothing is kept between calls.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from forecaster.data.windows import Window
from forecaster.model.recurrent import State
from forecaster.model.regressor import Regressor
from forecaster.model.scaling import Scale, measure
from forecaster.shapes import Bool, Float, Float64

_BY_ROW = ("output", "recent", "begun", "bound", "static")
RUNAWAY = 1e4  # times the largest scaled value of the history: a forecast that goes there has exploded


class Memory(NamedTuple):
    """All a rollout carries from one step to the next.

    Attributes:
        state: The recurrence.
        output: What the recurrence's last step said; the decoder starts from it.
        recent: The latest values, scaled, gaps filled with the value before (0 before the first).
        begun: Whether the row has seen an observation yet.
        scale: Measured once, when the row began.
        bound: Scaled values beyond it are not believed.
        time: Steps read since the row began.
        static: What is known of the row for good.
    """

    state: State
    output: Float[Tensor, "row hidden"]
    recent: Float[Tensor, "row back"]
    begun: Bool[Tensor, "row"]
    scale: Scale
    bound: Float[Tensor, "row"]
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
    seen: Bool[Tensor, "row step"]
    past: Float[Tensor, "row back_and_step"]


class Reading(NamedTuple):
    """What a network made of known values: all that teacher forcing needs.

    Attributes:
        outputs: Of the recurrence, after each segment.
        past: The values before the first segment and those read, scaled, gaps filled.
        memory: After the last segment.
    """

    outputs: Float[Tensor, "row segment hidden"]
    past: Float[Tensor, "row back_and_step"]
    memory: Memory


def begin(model: Regressor, window: Window) -> tuple[Memory, Window]:
    """The memory before the first step of a window, with the window's scale; and what is left to read.

    The window's first `lead` steps are only there for lags and base to look back on.
    """
    lead, rest = window.values[:, : model.lead], window.values[:, model.lead :]
    scale = measure(rest, model.scaling, season=model.season)
    rows = len(rest)
    zero = torch.zeros(rows, device=rest.device)
    if model.lead:
        recent = _filled(scale.apply(lead, time=-model.lead), lead.isnan(), zero)
    else:
        recent = zero[:, None].expand(rows, model.back)
    bound = RUNAWAY * scale.apply(rest).abs().nan_to_num(0.0).amax(1).clamp(min=1.0)
    memory = Memory(
        state=model.recurrent.start(rows, like=rest),
        output=zero.new_zeros(rows, model.recurrent.hidden),
        recent=recent,
        begun=zero > 0,
        scale=scale,
        bound=bound,
        time=0,
        static=model.describe(window.static, rows=rows),
    )
    covariates = None if window.covariates is None else window.covariates[:, model.lead :]
    return memory, Window(rest, covariates, window.static)


def read(model: Regressor, window: Window, memory: Memory) -> Reading:
    """Reads known values; their number is a multiple of the segment."""
    return _advance(model, lay(model, window, memory), memory)


def lay(model: Regressor, window: Window, memory: Memory) -> Laid:
    """Known values as the recurrence will read them after a memory."""
    missing = window.values.isnan()
    scaled = memory.scale.apply(window.values, time=memory.time)
    return _lay(model, scaled.masked_fill(missing, 0.0), missing, window.covariates, memory)


def _lay(
    model: Regressor,
    values: Float[Tensor, "row step"],
    missing: Bool[Tensor, "row step"],
    covariates: Float[Tensor, "row step covariate"] | None,
    memory: Memory,
) -> Laid:
    """Lays out scaled values (0 where missing)."""
    filled = _filled(values, missing, memory.recent[:, -1])
    past = torch.cat([memory.recent, filled], dim=1)
    seen = (~missing).cummax(1).values | memory.begun[:, None]
    begun = seen.reshape(len(values), -1, model.segment).any(2)
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
    return read(model, window, memory).memory


def fork(memory: Memory, *, paths: int) -> Memory:
    """The memory of one row, `paths` times: every copy may go its own way."""
    rows = {name: getattr(memory, name).expand(paths, *[-1] * (getattr(memory, name).dim() - 1)) for name in _BY_ROW}
    hidden, cell = memory.state
    state = State(
        hidden.expand(-1, paths, -1).contiguous(), None if cell is None else cell.expand(-1, paths, -1).contiguous()
    )
    scale = Scale(*(part.expand(paths, *[-1] * (part.dim() - 1)) for part in memory.scale))
    return memory._replace(state=state, scale=scale, **rows)


def roll(
    model: Regressor,
    memory: Memory,
    *,
    horizon: int,
    ahead: Float[Tensor, "row step covariate"] | None = None,
    noise: Float[Tensor, "row step noise"] | None = None,
) -> tuple[Float64[Tensor, "row horizon"], Memory]:
    """The next `horizon` values in units of the data, each block fed back to make the one after it.

    Args:
        model: The network.
        memory: After the history.
        horizon: Steps ahead.
        ahead: Covariates of every step up to the end of the last block, if the network reads any.
        noise: Uniforms in (0, 1) for every step up to the end of the last block: one path is drawn with them. Without
            them the head's mean is given and fed back.
    Returns:
        The values, and the memory after the last whole block. A row whose values stop being finite, or run away beyond
        the memory's bound, is NaN from that step on; its neighbours do not notice.
    """
    start, blocks = memory.time, []
    steps = -(-horizon // model.block) * model.block
    alive = torch.ones(len(memory.output), 1, dtype=torch.bool, device=memory.output.device)
    for first in range(0, steps, model.block):
        span = slice(first, first + model.block)
        known = None if ahead is None else ahead[:, span]
        params = model.decode(memory.output, memory.recent, known)
        block = model.head.mean(params) if noise is None else model.head.draw(params, noise[:, span])
        alive = (alive & (block.abs() <= memory.bound[:, None])).cummin(1).values
        blocks.append(block.masked_fill(~alive, torch.nan))
        alive = alive[:, -1:]
        fed = block.masked_fill(~alive, 0.0)
        laid = _lay(model, fed, torch.zeros_like(fed, dtype=torch.bool), known, memory)
        memory = _advance(model, laid, memory).memory
    scaled = torch.cat(blocks, dim=1)[:, :horizon]
    return memory.scale.undo(scaled, time=start), memory


def _filled(
    values: Float[Tensor, "row step"], missing: Bool[Tensor, "row step"], before: Float[Tensor, "row"]
) -> Float[Tensor, "row step"]:
    """Every gap filled with the value before it."""
    steps = torch.arange(1, values.shape[1] + 1, device=values.device)
    latest = torch.where(missing, 0, steps).cummax(1).values
    return torch.cat([before[:, None], values.masked_fill(missing, 0.0)], dim=1).gather(1, latest)

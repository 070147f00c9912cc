"""The rollout in the graph: `forecaster.model.rollout` once more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from forecaster.graph import heads
from forecaster.graph.draft import F32, I64, Value
from forecaster.graph.network import Network
from forecaster.graph.recurrence import Slots, flat, follow, newest, step, sweep, unflat
from forecaster.graph.scale import Scale, measure
from forecaster.model.rollout import RUNAWAY

_LARGEST = float(np.finfo(np.float32).max)


class Known(NamedTuple):
    """A window: values [row, step], covariates [row, step, covariate], numbers of categories [row, static]."""

    values: Value
    covariates: Value | None
    static: Value | None


class Memory(NamedTuple):
    """All a rollout carries from one step to the next.

    Attributes:
        state: The recurrence, by layer.
        output: What its last step said, [1, row, hidden].
        recent: The latest values, [row, back]; None where neither lags nor base look at them.
        begun: Whether the row has seen an observation yet, [row, 1].
        scale: Measured once.
        bound: Scaled values beyond it are not believed, [row, 1].
        time: Steps read since the row began, [1].
        static: What is known of the row for good, [row, group]; None where there is nothing.
    """

    state: list[Slots]
    output: Value
    recent: Value | None
    begun: Value
    scale: Scale
    bound: Value
    time: Value
    static: Value | None

    def flat(self) -> list[Value]:
        """Its parts in a row."""
        scale = [self.scale.shift, self.scale.width, self.scale.profile]
        optional = [part for part in (self.recent, self.static) if part is not None]
        return [self.output, self.begun, *scale, self.bound, self.time, *optional, *flat(self.state)]


def remember(network: Network, parts: Sequence[Value]) -> Memory:
    """The memory whose parts these are."""
    output, begun, shift, width, profile, bound, time, *rest = parts
    recent = rest.pop(0) if network.looks_back else None
    static = rest.pop(0) if network.tables else None
    scale = Scale(network.model.scaling, shift, width, profile)
    return Memory(unflat(rest, network.layers), output, recent, begun, scale, bound, time, static)


def warm_up(network: Network, known: Known) -> Memory:
    """The memory after a window, whose first `lead` steps are only there for lags and base to look back on."""
    draft, model, lead = network.draft, network.model, network.model.lead
    rows, missing = known.values.size(0), known.values.is_nan()
    values, gaps = (each.cut(1, lead) if lead else each for each in (known.values, missing))
    scale = measure(values, gaps, model.scaling, season=model.season)
    scaled, past = scale.apply(known.values, missing, time=-lead), None
    if network.looks_back:
        nothing = draft.zeros(rows, 1)
        past = _filled(scaled, missing, nothing)
        past = past if lead else draft.concat([nothing, past], axis=1)
    scaled = scaled.cut(1, lead) if lead else scaled
    seen, static = _rank(gaps) > 0, network.describe(known.static)
    covariates = None if known.covariates is None else known.covariates.cut(1, lead)
    inputs, padding = _inputs(network, scaled, gaps, seen, past, covariates, static)
    output, state = sweep(network.layers, inputs, padding)
    return Memory(
        state=state,
        output=output,
        recent=_latest(network, past),
        begun=seen.cut(1, -1),
        scale=scale,
        bound=scaled.abs().max(1).clip(1.0, _LARGEST) * RUNAWAY,
        time=values.size(1),
        static=static,
    )


def read(network: Network, known: Known, memory: Memory) -> Memory:
    """The memory after further values, of which there is one segment at least."""
    missing, past = known.values.is_nan(), None
    scaled = memory.scale.apply(known.values, missing, time=memory.time)
    if memory.recent is not None:
        filled = _filled(scaled, missing, memory.recent.cut(1, -1))
        past = network.draft.concat([memory.recent, filled], axis=1)
    seen = (_rank(missing) > 0) | memory.begun
    inputs, padding = _inputs(network, scaled, missing, seen, past, known.covariates, memory.static)
    output, state = follow(network.layers, inputs, memory.state, padding)
    return memory._replace(
        state=state,
        output=output,
        recent=_latest(network, past),
        begun=seen.cut(1, -1),
        time=memory.time + known.values.size(1),
    )


def roll(network: Network, memory: Memory, horizon: Value, ahead: Value | None, noise: Value | None) -> Value:
    """The next values, [row, horizon], in units of the data; NaN from the step on where a row runs away.

    Args:
        network: The network.
        memory: After the history. One row of it may go many ways.
        horizon: [1].
        ahead: Covariates of every step to the end of the last block, [row, step, covariate].
        noise: Uniforms [row, step, noise] to draw paths with; None: the head's mean is given and fed back.
    """
    draft, model, head, layers = network.draft, network.model, network.model.head, network.layers
    blocks = (horizon + (model.block - 1)) // model.block
    ways = [each.size(0) for each in (noise, ahead) if each is not None]
    rows = ways[0] if ways else memory.output.size(1)
    start = _fork(memory, rows) if ways else memory
    known = [] if ahead is None else [_by_block(network, ahead.expand(rows, 1, 1), blocks)]
    drawn = [] if noise is None else [_by_block(network, each, blocks) for each in heads.prepare(head, noise)]
    places = None if network.decoder is None else network.decoder.places
    places = None if places is None else places.expand(1, rows, 1)
    output = [start.output] if layers[-1].residual else []  # otherwise it is the newest of the state
    recent = [] if start.recent is None else [start.recent]

    def body(before: list[Value], now: list[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
        state, (ends, *given) = unflat(before[len(output) + len(recent) :], layers), now
        said = before[0] if output else newest(layers, state)
        back = before[len(output)] if recent else None
        covariates = given.pop(0).reshape(0, 0, -1) if known else None
        params = network.decode(said, back, covariates, places)
        block = heads.draw(head, params, given) if drawn else heads.mean(head, params)

        def go_on() -> list[Value]:
            past = None if back is None else draft.concat([back, _woven(block)], axis=1)
            inputs, latest = network.encode(block, None, past, covariates, start.static), _latest(network, past)
            told, after = (step if network.count == 1 else follow)(layers, inputs, state, None)
            return [*([told] if output else []), *([] if latest is None else [latest]), *flat(after)]

        # Long blocks are read only where another follows.
        return (go_on() if network.count == 1 else draft.choose(ends, lambda: before, go_on)), [block]

    last = draft.count(blocks).equals(blocks - 1)
    _, [told] = draft.scan(body, [*output, *recent, *flat(start.state)], [last, *known, *drawn])
    scaled = told.transpose(2, 0, 1, 3).reshape(0, -1).cut(1, 0, horizon)
    gone = _rank(scaled.abs() <= memory.bound) > 0
    return draft.where(gone, np.nan, memory.scale.undo(scaled, time=memory.time))


def _inputs(
    network: Network,
    scaled: Value,
    missing: Value,
    seen: Value,
    past: Value | None,
    covariates: Value | None,
    static: Value | None,
) -> tuple[Value, Value]:
    """What the recurrence reads, 0 on padding, and what is padding: [segment, row, any] and [segment, row, 1]."""
    draft, model = network.draft, network.model
    values, observed = network.by_segment(scaled), network.by_segment((~missing).cast(F32))
    columns = None if covariates is None else network.by_segment(covariates, width=model.covariates)
    inputs = network.encode(values, observed, past, columns, static)
    begun = seen.reshape(0, -1, model.segment).cut(2, -1).transpose(1, 0, 2)
    if model.lags or covariates is not None or static is not None:  # the rest is 0 there already
        inputs = draft.where(begun, inputs, 0.0)
    return inputs, (~begun).cast(F32)


def _filled(values: Value, missing: Value, before: Value) -> Value:
    """Every gap filled with the value before it.

    Observed values are put beside each other, with the value before them in front. Where the latest of them lies is their
    number.
    """
    draft, rank, steps = values.draft, _rank(missing), values.size(1)
    beside = draft.concat([before, draft.zeros(values.size(0), steps + 1)], axis=1)
    places = draft.where(missing, steps + 1, rank)  # the last place is never looked at
    return beside.put(places, values, axis=1).pick(rank, axis=1)


def _rank(missing: Value) -> Value:
    """How many were not missing up to each step."""
    return (~missing).cast(I64).cumsum(1)


def _latest(network: Network, past: Value | None) -> Value | None:
    return None if past is None else past.cut(1, -network.model.back)


def _woven(block: Value) -> Value:
    """[segment, row, point] as [row, step]."""
    return block.transpose(1, 0, 2).reshape(0, -1)


def _fork(memory: Memory, rows: Value) -> Memory:
    """What a rollout goes on from, for so many rows: as many as there are, or copies of the only one."""
    state = [slots.each(lambda part: part.expand(1, rows, 1)) for slots in memory.state]
    static = None if memory.static is None else memory.static.expand(rows, 1)
    output = memory.output.expand(1, rows, 1)
    recent = None if memory.recent is None else memory.recent.expand(rows, 1)
    return memory._replace(state=state, output=output, recent=recent, static=static)


def _by_block(network: Network, values: Value, blocks: Value) -> Value:
    """[row, step, any] as [block, segment, row, point, any]."""
    model = network.model
    whole = values.cut(1, 0, blocks * model.block)
    return whole.reshape(0, blocks, network.count, model.segment, -1).transpose(1, 2, 0, 3, 4)

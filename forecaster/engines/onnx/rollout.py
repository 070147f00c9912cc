"""The rollout in the graph: `forecaster.model.rollout` once more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from forecaster.engines.onnx import heads
from forecaster.engines.onnx.builder import F32, I64, Value
from forecaster.engines.onnx.network import Network
from forecaster.engines.onnx.recurrence import Slots, flat, follow, newest, step, sweep, unflat
from forecaster.engines.onnx.scaling import Scale, measure, settle
from forecaster.spec import RUNAWAY


class Known(NamedTuple):
    """A window: values [row, step], covariates [row, step, any], numbers of categories [row, any], channels [row, step, any]."""

    values: Value
    covariates: Value | None
    static: Value | None
    channels: Value | None

    @property
    def tracks(self) -> Value:
        """The values and the channels, [track, step]: all of a row beside each other, its values first."""
        if self.channels is None:
            return self.values
        sides = [self.values.unsqueeze(1), self.channels.transpose(0, 2, 1)]
        return self.values.draft.concat(sides, axis=1).reshape(-1, self.values.size(1))


class Memory(NamedTuple):
    """All a rollout carries from one step to the next.

    Attributes:
        state: The recurrence, by layer.
        output: What its last step said, [1, row, hidden].
        recent: The latest values, [track, back]; None where neither lags nor base look at them.
        begun: Whether the track has seen an observation yet, [track, 1].
        scale: Of each track, measured once.
        bound: Scaled values beyond it are not believed, [track, 1].
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
        optional = [part for part in (self.recent, self.static) if part is not None]
        return [self.output, self.begun, *self.scale.parts, self.bound, self.time, *optional, *flat(self.state)]


def remember(network: Network, parts: Sequence[Value]) -> Memory:
    """The memory whose parts these are."""
    output, begun, shift, width, profile, *rest = parts
    size = rest.pop(0) if network.model.transform == "log" else None
    bound, time, *rest = rest
    recent = rest.pop(0) if network.looks_back else None
    static = rest.pop(0) if network.tables else None
    scale = Scale(network.model.scaling, shift, width, profile, size)
    return Memory(unflat(rest, network.layers), output, recent, begun, scale, bound, time, static)


def warm_up(network: Network, known: Known) -> Memory:
    """The memory after a window, whose first `lead` steps are only there for lags and base to look back on."""
    draft, lead, tracks = network.draft, network.model.lead, known.tracks
    missing = tracks.is_nan()
    values, gaps = (each.cut(1, lead) if lead else each for each in (tracks, missing))
    scale = _measured(network, values, gaps)
    scaled, past = scale.apply(tracks, missing, time=-lead), None
    if network.looks_back:
        nothing = draft.zeros(tracks.size(0), 1)
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
        bound=scale.bound(_largest(network, scaled, least=True), times=RUNAWAY),
        time=values.size(1),
        static=static,
    )


def read(network: Network, known: Known, memory: Memory) -> Memory:
    """The memory after further values, of which there is one segment at least."""
    tracks = known.tracks
    missing, past = tracks.is_nan(), None
    scaled = memory.scale.apply(tracks, missing, time=memory.time)
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
        bound=memory.bound.most(memory.scale.bound(_largest(network, scaled), times=RUNAWAY)),
        time=memory.time + known.values.size(1),
    )


def roll(network: Network, memory: Memory, horizon: Value, ahead: Value | None, noise: Value | None) -> Value:
    """The next values, [row, horizon], in units of the data; NaN from the step on where a row runs away.

    Args:
        network: The network.
        memory: After the history. One row of it may go many ways.
        horizon: [1].
        ahead: Covariates of every step to the end of the last block, [row, step, covariate].
        noise: Uniforms [track, step, noise] to draw paths with; None: the head's mean is given and fed back.
    """
    draft, model, head, layers = network.draft, network.model, network.model.head, network.layers
    blocks = (horizon + (model.block - 1)) // model.block
    ways = [] if noise is None else [noise.size(0) // model.targets]
    ways += [] if ahead is None else [ahead.size(0)]
    rows = ways[0] if ways else memory.output.size(1)
    start = _fork(network, memory, rows) if ways else memory
    known = [] if ahead is None else [_by_block(network, ahead.expand(rows, 1, 1), blocks)]
    drawn = [] if noise is None else [_by_block(network, each, blocks) for each in heads.prepare(head, noise)]
    places = None if network.decoder is None else network.decoder.places
    places = None if places is None else places.expand(1, rows, 1)
    output = [start.output] if layers[-1].residual else []  # otherwise it is the newest of the state
    recent = [] if start.recent is None else [start.recent]
    heard = _heard(network, memory, rows)
    there = None if heard is None else heard.cast(F32).expand(network.count, 1, model.segment)

    def body(before: list[Value], now: list[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
        state, (ends, *given) = unflat(before[len(output) + len(recent) :], layers), now
        said = before[0] if output else newest(layers, state)
        back = before[len(output)] if recent else None
        covariates = given.pop(0).reshape(0, 0, -1) if known else None
        params = network.decode(said, back, covariates, places)
        block = heads.draw(head, params, given) if drawn else heads.mean(head, params)

        def go_on() -> list[Value]:
            fed = block if heard is None else draft.where(heard, block, 0.0)
            past = None if back is None else draft.concat([back, _woven(fed)], axis=1)
            inputs, latest = network.encode(fed, there, past, covariates, start.static), _latest(network, past)
            told, after = (step if network.count == 1 else follow)(layers, inputs, state, None)
            return [*([told] if output else []), *([] if latest is None else [latest]), *flat(after)]

        # Long blocks are read only where another follows.
        return (go_on() if network.count == 1 else draft.choose(ends, lambda: before, go_on)), [block]

    last = draft.count(blocks).equals(blocks - 1)
    _, [told] = draft.scan(body, [*output, *recent, *flat(start.state)], [last, *known, *drawn])
    return _in_units_of_the_data(network, memory, told.transpose(2, 0, 1, 3).reshape(0, -1).cut(1, 0, horizon), heard)


def _in_units_of_the_data(network: Network, memory: Memory, scaled: Value, heard: Value | None) -> Value:
    """The values of y, [row, horizon], of what was told of all tracks; NaN once any track of the row ran away."""
    draft, targets, scale = network.draft, network.model.targets, memory.scale
    if heard is None:
        wild = ~(scaled.abs() <= memory.bound)
    else:
        whole = scaled.reshape(-1, targets, scaled.size(1))
        bound = draft.where(heard.reshape(-1, targets, 1), memory.bound.reshape(-1, targets, 1), np.inf)
        wild = (~(whole.abs() <= bound)).cast(F32).max(1, keep=False) > 0.0
        scaled, scale = whole.cut(1, 0, 1).squeeze(1), _of_y(network, scale)
    gone = wild.cast(I64).cumsum(1) > 0
    return draft.where(gone, np.nan, scale.undo(scaled, time=memory.time))


def _measured(network: Network, values: Value, missing: Value) -> Scale:
    """The scale of a window's tracks: of all of it, or, where whole histories are read, of the first steps of each."""
    draft, model = network.draft, network.model

    def whole() -> list[Value]:
        return measure(values, missing, model.scaling, season=model.season, transform=model.transform).parts

    def beginning() -> list[Value]:
        return settle(
            values, missing, model.scaling, steps=model.context, season=model.season, transform=model.transform
        ).parts

    if model.reads == "window" or (model.scaling == "none" and model.transform == "none"):
        return Scale(model.scaling, *whole())
    return Scale(model.scaling, *draft.choose(values.size(1) > model.context, beginning, whole))


def _largest(network: Network, scaled: Value, *, least: bool = False) -> Value:
    """The largest value of each track; at the beginning of values as they are, 1 at least."""
    largest = scaled.abs().max(1)
    return largest.clip(1.0, None) if least and network.model.transform == "none" else largest


def _heard(network: Network, memory: Memory, rows: Value) -> Value | None:
    """Which tracks are foretold, [1, track, 1]: not those never observed beside others that were; None: all are."""
    if network.model.targets == 1:
        return None
    begun = memory.begun.reshape(-1, network.model.targets, 1)
    heard = begun | ~(begun.cast(F32).max(1) > 0.0)
    return heard.expand(rows, 1, 1).reshape(1, -1, 1)


def _of_y(network: Network, scale: Scale) -> Scale:
    """The scale of y alone: the first track of each row."""
    sizes = (1, 1, network.phases, *([] if scale.size is None else [1]))
    parts = [
        part.reshape(-1, network.model.targets * size).cut(1, 0, size)
        for part, size in zip(scale.parts, sizes, strict=True)
    ]
    return Scale(scale.scaling, *parts)


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
    if model.targets > 1:  # a row begins with the first of its tracks
        begun = begun.cast(F32).reshape(0, -1, model.targets).max(2) > 0.0
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


def _fork(network: Network, memory: Memory, rows: Value) -> Memory:
    """What a rollout goes on from, for so many rows: as many as there are, or copies of the only one."""
    state = [slots.each(lambda part: part.expand(1, rows, 1)) for slots in memory.state]
    static = None if memory.static is None else memory.static.expand(rows, 1)
    output = memory.output.expand(1, rows, 1)
    recent, back = memory.recent, network.model.back
    if recent is not None:
        recent = recent.reshape(-1, network.model.targets * back).expand(rows, 1).reshape(-1, back)
    return memory._replace(state=state, output=output, recent=recent, static=static)


def _by_block(network: Network, values: Value, blocks: Value) -> Value:
    """[row or track, step, any] as [block, segment, row or track, point, any]."""
    model = network.model
    whole = values.cut(1, 0, blocks * model.block)
    return whole.reshape(0, blocks, network.count, model.segment, -1).transpose(1, 2, 0, 3, 4)

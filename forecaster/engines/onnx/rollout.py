"""The rollout in the graph: `forecaster.model.rollout` once more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from forecaster.engines.onnx import heads
from forecaster.engines.onnx.builder import F32, I64, Value
from forecaster.engines.onnx.network import OnnxNetwork
from forecaster.engines.onnx.recurrence import (
    LayerState,
    flatten_state,
    last_output,
    run_from_zero,
    run_step,
    run_steps,
    unflatten_state,
)
from forecaster.engines.onnx.scaling import OnnxScale, measure_scale, settle_scale
from forecaster.spec import DIVERGENCE_FACTOR


class OnnxWindow(NamedTuple):
    """A window: values [row, step], covariates [row, step, any], numbers of categories [row, any], channels [row, step, any]."""

    values: Value
    covariates: Value | None
    static: Value | None
    channels: Value | None

    @property
    def targets(self) -> Value:
        """The values and the channels, [track, step]: all of a row beside each other, its values first."""
        if self.channels is None:
            return self.values
        sides = [self.values.unsqueeze(1), self.channels.transpose(0, 2, 1)]
        return self.values.builder.concat(sides, axis=1).reshape(-1, self.values.size(1))


class OnnxRolloutState(NamedTuple):
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

    recurrent_state: list[LayerState]
    output: Value
    recent: Value | None
    begun: Value
    scale: OnnxScale
    bound: Value
    time: Value
    static: Value | None

    def flatten(self) -> list[Value]:
        """Its parts in a row."""
        optional = [part for part in (self.recent, self.static) if part is not None]
        return [
            self.output,
            self.begun,
            *self.scale.parts,
            self.bound,
            self.time,
            *optional,
            *flatten_state(self.recurrent_state),
        ]


def unflatten_rollout_state(network: OnnxNetwork, parts: Sequence[Value]) -> OnnxRolloutState:
    """The memory whose parts these are."""
    output, begun, shift, width, profile, *rest = parts
    size = rest.pop(0) if network.model.transform == "log" else None
    bound, time, *rest = rest
    recent = rest.pop(0) if network.needs_recent_values else None
    static = rest.pop(0) if network.embeddings else None
    scale = OnnxScale(network.model.scaling, shift, width, profile, size)
    return OnnxRolloutState(unflatten_state(rest, network.layers), output, recent, begun, scale, bound, time, static)


def warm_up(network: OnnxNetwork, window: OnnxWindow) -> OnnxRolloutState:
    """The memory after a window, whose first `lead` steps are only there for lags and base to look back on."""
    draft, lead, tracks = network.builder, network.model.pre_context, window.targets
    missing = tracks.is_nan()
    values, gaps = (each.slice_axis(1, lead) if lead else each for each in (tracks, missing))
    scale = _measure_window_scale(network, values, gaps)
    scaled, past = scale.apply(tracks, missing, time=-lead), None
    if network.needs_recent_values:
        nothing = draft.zeros(tracks.size(0), 1)
        past = _forward_fill(scaled, missing, nothing)
        past = past if lead else draft.concat([nothing, past], axis=1)
    scaled = scaled.slice_axis(1, lead) if lead else scaled
    seen, static = _observed_count(gaps) > 0, network.embed_static(window.static)
    covariates = None if window.covariates is None else window.covariates.slice_axis(1, lead)
    inputs, padding = _recurrence_inputs(network, scaled, gaps, seen, past, covariates, static)
    output, state = run_from_zero(network.layers, inputs, padding)
    return OnnxRolloutState(
        recurrent_state=state,
        output=output,
        recent=_latest_values(network, past),
        begun=seen.slice_axis(1, -1),
        scale=scale,
        bound=scale.divergence_bound(_largest_magnitude(network, scaled, at_least_one=True), factor=DIVERGENCE_FACTOR),
        time=values.size(1),
        static=static,
    )


def run_over_window(network: OnnxNetwork, window: OnnxWindow, rollout_state: OnnxRolloutState) -> OnnxRolloutState:
    """The memory after further values, of which there is one segment at least."""
    tracks = window.targets
    missing, past = tracks.is_nan(), None
    scaled = rollout_state.scale.apply(tracks, missing, time=rollout_state.time)
    if rollout_state.recent is not None:
        filled = _forward_fill(scaled, missing, rollout_state.recent.slice_axis(1, -1))
        past = network.builder.concat([rollout_state.recent, filled], axis=1)
    seen = (_observed_count(missing) > 0) | rollout_state.begun
    inputs, padding = _recurrence_inputs(network, scaled, missing, seen, past, window.covariates, rollout_state.static)
    output, state = run_steps(network.layers, inputs, rollout_state.recurrent_state, padding)
    return rollout_state._replace(
        recurrent_state=state,
        output=output,
        recent=_latest_values(network, past),
        begun=seen.slice_axis(1, -1),
        bound=rollout_state.bound.maximum(
            rollout_state.scale.divergence_bound(_largest_magnitude(network, scaled), factor=DIVERGENCE_FACTOR)
        ),
        time=rollout_state.time + window.values.size(1),
    )


def roll_out(
    network: OnnxNetwork,
    rollout_state: OnnxRolloutState,
    horizon: Value,
    future_covariates: Value | None,
    noise: Value | None,
) -> Value:
    """The next values, [row, horizon], in units of the data; NaN from the step on where a row runs away.

    Args:
        network: The network.
        memory: After the history. One row of it may go many ways.
        horizon: [1].
        ahead: Covariates of every step to the end of the last block, [row, step, covariate].
        noise: Uniforms [track, step, noise] to draw paths with; None: the head's mean is given and fed back.
    """
    draft, model, head, layers = network.builder, network.model, network.model.head, network.layers
    blocks = (horizon + (model.block - 1)) // model.block
    ways = [] if noise is None else [noise.size(0) // model.num_targets]
    ways += [] if future_covariates is None else [future_covariates.size(0)]
    rows = ways[0] if ways else rollout_state.output.size(1)
    start = _repeat_state(network, rollout_state, rows) if ways else rollout_state
    known = (
        [] if future_covariates is None else [_split_into_blocks(network, future_covariates.expand(rows, 1, 1), blocks)]
    )
    drawn = (
        []
        if noise is None
        else [_split_into_blocks(network, each, blocks) for each in heads.prepare_noise(head, noise)]
    )
    places = None if network.decoder is None else network.decoder.segment_embeddings
    places = None if places is None else places.expand(1, rows, 1)
    output = [start.output] if layers[-1].residual else []  # otherwise it is the newest of the state
    recent = [] if start.recent is None else [start.recent]
    heard = _active_targets(network, rollout_state, rows)
    there = None if heard is None else heard.cast(F32).expand(network.segments_per_block, 1, model.segment)

    def body(before: list[Value], now: list[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
        state, (ends, *given) = unflatten_state(before[len(output) + len(recent) :], layers), now
        said = before[0] if output else last_output(layers, state)
        back = before[len(output)] if recent else None
        covariates = given.pop(0).reshape(0, 0, -1) if known else None
        params = network.decode(said, back, covariates, places)
        block = heads.sample(head, params, given) if drawn else heads.point_forecast(head, params)

        def go_on() -> list[Value]:
            fed = block if heard is None else draft.where(heard, block, 0.0)
            past = None if back is None else draft.concat([back, _merge_segments(fed)], axis=1)
            inputs, latest = network.encode(fed, there, past, covariates, start.static), _latest_values(network, past)
            told, after = (run_step if network.segments_per_block == 1 else run_steps)(layers, inputs, state, None)
            return [*([told] if output else []), *([] if latest is None else [latest]), *flatten_state(after)]

        # Long blocks are read only where another follows.
        return (go_on() if network.segments_per_block == 1 else draft.if_else(ends, lambda: before, go_on)), [block]

    last = draft.arange(blocks).equals(blocks - 1)
    _, [told] = draft.scan(body, [*output, *recent, *flatten_state(start.recurrent_state)], [last, *known, *drawn])
    return _to_data_units(
        network, rollout_state, told.transpose(2, 0, 1, 3).reshape(0, -1).slice_axis(1, 0, horizon), heard
    )


def _to_data_units(network: OnnxNetwork, rollout_state: OnnxRolloutState, scaled: Value, active: Value | None) -> Value:
    """The values of y, [row, horizon], of what was told of all tracks; NaN once any track of the row ran away."""
    draft, targets, scale = network.builder, network.model.num_targets, rollout_state.scale
    if active is None:
        wild = ~(scaled.abs() <= rollout_state.bound)
    else:
        whole = scaled.reshape(-1, targets, scaled.size(1))
        bound = draft.where(active.reshape(-1, targets, 1), rollout_state.bound.reshape(-1, targets, 1), np.inf)
        wild = (~(whole.abs() <= bound)).cast(F32).max(1, keepdims=False) > 0.0
        scaled, scale = whole.slice_axis(1, 0, 1).squeeze(1), _target_scale(network, scale)
    gone = wild.cast(I64).cumsum(1) > 0
    return draft.where(gone, np.nan, scale.undo(scaled, time=rollout_state.time))


def _measure_window_scale(network: OnnxNetwork, values: Value, missing: Value) -> OnnxScale:
    """The scale of a window's tracks: of all of it, or, where whole histories are read, of the first steps of each."""
    draft, model = network.builder, network.model

    def whole() -> list[Value]:
        return measure_scale(values, missing, model.scaling, season=model.season, transform=model.transform).parts

    def beginning() -> list[Value]:
        return settle_scale(
            values, missing, model.scaling, initial_steps=model.context, season=model.season, transform=model.transform
        ).parts

    if model.reads == "window" or (model.scaling == "none" and model.transform == "none"):
        return OnnxScale(model.scaling, *whole())
    return OnnxScale(model.scaling, *draft.if_else(values.size(1) > model.context, beginning, whole))


def _largest_magnitude(network: OnnxNetwork, scaled: Value, *, at_least_one: bool = False) -> Value:
    """The largest value of each track; at the beginning of values as they are, 1 at least."""
    largest = scaled.abs().max(1)
    return largest.clip(1.0, None) if at_least_one and network.model.transform == "none" else largest


def _active_targets(network: OnnxNetwork, rollout_state: OnnxRolloutState, rows: Value) -> Value | None:
    """Which tracks are foretold, [1, track, 1]: not those never observed beside others that were; None: all are."""
    if network.model.num_targets == 1:
        return None
    begun = rollout_state.begun.reshape(-1, network.model.num_targets, 1)
    heard = begun | ~(begun.cast(F32).max(1) > 0.0)
    return heard.expand(rows, 1, 1).reshape(1, -1, 1)


def _target_scale(network: OnnxNetwork, scale: OnnxScale) -> OnnxScale:
    """The scale of y alone: the first track of each row."""
    sizes = (1, 1, network.num_phases, *([] if scale.size is None else [1]))
    parts = [
        part.reshape(-1, network.model.num_targets * size).slice_axis(1, 0, size)
        for part, size in zip(scale.parts, sizes, strict=True)
    ]
    return OnnxScale(scale.scaling, *parts)


def _recurrence_inputs(
    network: OnnxNetwork,
    scaled: Value,
    missing: Value,
    started: Value,
    filled_values: Value | None,
    covariates: Value | None,
    static: Value | None,
) -> tuple[Value, Value]:
    """What the recurrence reads, 0 on padding, and what is padding: [segment, row, any] and [segment, row, 1]."""
    draft, model = network.builder, network.model
    values, observed = network.to_segments(scaled), network.to_segments((~missing).cast(F32))
    columns = None if covariates is None else network.to_segments(covariates, width=model.num_covariates)
    inputs = network.encode(values, observed, filled_values, columns, static)
    begun = started.reshape(0, -1, model.segment).slice_axis(2, -1).transpose(1, 0, 2)
    if model.num_targets > 1:  # a row begins with the first of its tracks
        begun = begun.cast(F32).reshape(0, -1, model.num_targets).max(2) > 0.0
    if model.lags or covariates is not None or static is not None:  # the rest is 0 there already
        inputs = draft.where(begun, inputs, 0.0)
    return inputs, (~begun).cast(F32)


def _forward_fill(values: Value, missing: Value, previous: Value) -> Value:
    """Every gap filled with the value before it.

    Observed values are put beside each other, with the value before them in front. Where the latest of them lies is their
    number.
    """
    draft, rank, steps = values.builder, _observed_count(missing), values.size(1)
    beside = draft.concat([previous, draft.zeros(values.size(0), steps + 1)], axis=1)
    places = draft.where(missing, steps + 1, rank)  # the last place is never looked at
    return beside.scatter(places, values, axis=1).gather(rank, axis=1)


def _observed_count(missing: Value) -> Value:
    """How many were not missing up to each step."""
    return (~missing).cast(I64).cumsum(1)


def _latest_values(network: OnnxNetwork, filled_values: Value | None) -> Value | None:
    return None if filled_values is None else filled_values.slice_axis(1, -network.model.lookback)


def _merge_segments(block: Value) -> Value:
    """[segment, row, point] as [row, step]."""
    return block.transpose(1, 0, 2).reshape(0, -1)


def _repeat_state(network: OnnxNetwork, rollout_state: OnnxRolloutState, rows: Value) -> OnnxRolloutState:
    """What a rollout goes on from, for so many rows: as many as there are, or copies of the only one."""
    state = [slots.apply(lambda part: part.expand(1, rows, 1)) for slots in rollout_state.recurrent_state]
    static = None if rollout_state.static is None else rollout_state.static.expand(rows, 1)
    output = rollout_state.output.expand(1, rows, 1)
    recent, back = rollout_state.recent, network.model.lookback
    if recent is not None:
        recent = recent.reshape(-1, network.model.num_targets * back).expand(rows, 1).reshape(-1, back)
    return rollout_state._replace(recurrent_state=state, output=output, recent=recent, static=static)


def _split_into_blocks(network: OnnxNetwork, values: Value, blocks: Value) -> Value:
    """[row or track, step, any] as [block, segment, row or track, point, any]."""
    model = network.model
    whole = values.slice_axis(1, 0, blocks * model.block)
    return whole.reshape(0, blocks, network.segments_per_block, model.segment, -1).transpose(1, 2, 0, 3, 4)

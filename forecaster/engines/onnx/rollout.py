"""The rollout in the graph: `forecaster.model.rollout` as ONNX nodes."""

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
    """A window: values [row, step], covariates [row, step, any], static categories [row, any], channels [row, step, any]."""

    values: Value
    covariates: Value | None
    static: Value | None
    channels: Value | None

    @property
    def targets(self) -> Value:
        """The values and the channels, [row_target, step]: for each row its values, then its channels."""
        if self.channels is None:
            return self.values
        parts = [self.values.unsqueeze(1), self.channels.transpose(0, 2, 1)]
        return self.values.builder.concat(parts, axis=1).reshape(-1, self.values.size(1))


class OnnxRolloutState(NamedTuple):
    """Everything a rollout carries from one step to the next.

    Attributes:
        recurrent_state: State of the recurrence, by layer.
        output: Output of the recurrence's last step, [1, row, hidden].
        recent: The latest values, [row_target, back]; None if neither lags nor the baseline need them.
        begun: Whether the target has been observed yet, [row_target, 1].
        scale: Scale of each target, measured once.
        bound: Scaled values beyond it count as diverged, [row_target, 1].
        time: Steps read since the row began, [1].
        static: Embeddings of the row's static categories, [row, embedding]; None without categories.
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
        """Returns all parts as one list."""
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
    """Rebuilds a state from its parts."""
    output, begun, shift, width, profile, *remaining = parts
    size = remaining.pop(0) if network.model.transform == "log" else None
    bound, time, *remaining = remaining
    recent = remaining.pop(0) if network.needs_recent_values else None
    static = remaining.pop(0) if network.embeddings else None
    scale = OnnxScale(network.model.scaling, shift, width, profile, size)
    return OnnxRolloutState(
        unflatten_state(remaining, network.layers), output, recent, begun, scale, bound, time, static
    )


def warm_up(network: OnnxNetwork, window: OnnxWindow) -> OnnxRolloutState:
    """Returns the state after a window, whose first `pre_context` steps only serve lags and the baseline."""
    builder, pre_context, targets = network.builder, network.model.pre_context, window.targets
    missing = targets.is_nan()
    values, window_missing = (
        tensor.slice_axis(1, pre_context) if pre_context else tensor for tensor in (targets, missing)
    )
    scale = _measure_window_scale(network, values, window_missing)
    scaled, filled_values = scale.apply(targets, missing, time=-pre_context), None
    if network.needs_recent_values:
        zeros = builder.zeros(targets.size(0), 1)
        filled_values = _forward_fill(scaled, missing, zeros)
        filled_values = filled_values if pre_context else builder.concat([zeros, filled_values], axis=1)
    scaled = scaled.slice_axis(1, pre_context) if pre_context else scaled
    started, static = _observed_count(window_missing) > 0, network.embed_static(window.static)
    covariates = None if window.covariates is None else window.covariates.slice_axis(1, pre_context)
    inputs, padding = _recurrence_inputs(network, scaled, window_missing, started, filled_values, covariates, static)
    output, recurrent_state = run_from_zero(network.layers, inputs, padding)
    return OnnxRolloutState(
        recurrent_state=recurrent_state,
        output=output,
        recent=_latest_values(network, filled_values),
        begun=started.slice_axis(1, -1),
        scale=scale,
        bound=scale.divergence_bound(_largest_magnitude(network, scaled, at_least_one=True), factor=DIVERGENCE_FACTOR),
        time=values.size(1),
        static=static,
    )


def run_over_window(network: OnnxNetwork, window: OnnxWindow, rollout_state: OnnxRolloutState) -> OnnxRolloutState:
    """Returns the state after further values, at least one segment."""
    targets = window.targets
    missing, filled_values = targets.is_nan(), None
    scaled = rollout_state.scale.apply(targets, missing, time=rollout_state.time)
    if rollout_state.recent is not None:
        filled = _forward_fill(scaled, missing, rollout_state.recent.slice_axis(1, -1))
        filled_values = network.builder.concat([rollout_state.recent, filled], axis=1)
    started = (_observed_count(missing) > 0) | rollout_state.begun
    inputs, padding = _recurrence_inputs(
        network, scaled, missing, started, filled_values, window.covariates, rollout_state.static
    )
    output, recurrent_state = run_steps(network.layers, inputs, rollout_state.recurrent_state, padding)
    return rollout_state._replace(
        recurrent_state=recurrent_state,
        output=output,
        recent=_latest_values(network, filled_values),
        begun=started.slice_axis(1, -1),
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
    """Predicts the next values, [row, horizon], in data units; NaN from the step on where a row diverges.

    Args:
        network: The network.
        rollout_state: State after the history. A single row may be continued on several paths.
        horizon: Steps ahead, [1].
        future_covariates: Covariates of every step to the end of the last block, [row, step, covariate].
        noise: Uniforms [path_target, step, noise] to draw paths with; None returns the head's mean and feeds it back.
    """
    builder, model, head, layers = network.builder, network.model, network.model.head, network.layers
    blocks = (horizon + (model.block - 1)) // model.block
    num_paths = [] if noise is None else [noise.size(0) // model.num_targets]
    num_paths += [] if future_covariates is None else [future_covariates.size(0)]
    rows = num_paths[0] if num_paths else rollout_state.output.size(1)
    initial_state = _repeat_state(network, rollout_state, rows) if num_paths else rollout_state
    covariate_blocks = (
        [] if future_covariates is None else [_split_into_blocks(network, future_covariates.expand(rows, 1, 1), blocks)]
    )
    noise_blocks = (
        []
        if noise is None
        else [_split_into_blocks(network, noise_part, blocks) for noise_part in heads.prepare_noise(head, noise)]
    )
    segment_embeddings = None if network.decoder is None else network.decoder.segment_embeddings
    segment_embeddings = None if segment_embeddings is None else segment_embeddings.expand(1, rows, 1)
    output = [initial_state.output] if layers[-1].residual else []  # otherwise the output is part of the state
    recent = [] if initial_state.recent is None else [initial_state.recent]
    active = _active_targets(network, rollout_state, rows)
    observed = None if active is None else active.cast(F32).expand(network.segments_per_block, 1, model.segment)

    def body(loop_state: list[Value], elements: list[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
        state, (is_last, *inputs_of_block) = unflatten_state(loop_state[len(output) + len(recent) :], layers), elements
        current_output = loop_state[0] if output else last_output(layers, state)
        current_recent = loop_state[len(output)] if recent else None
        covariates = inputs_of_block.pop(0).reshape(0, 0, -1) if covariate_blocks else None
        params = network.decode(current_output, current_recent, covariates, segment_embeddings)
        block = heads.sample(head, params, inputs_of_block) if noise_blocks else heads.point_forecast(head, params)

        def feed_back() -> list[Value]:
            feedback = block if active is None else builder.where(active, block, 0.0)
            filled_values = (
                None if current_recent is None else builder.concat([current_recent, _merge_segments(feedback)], axis=1)
            )
            inputs, latest = (
                network.encode(feedback, observed, filled_values, covariates, initial_state.static),
                _latest_values(network, filled_values),
            )
            next_output, next_state = (run_step if network.segments_per_block == 1 else run_steps)(
                layers, inputs, state, None
            )
            return [
                *([next_output] if output else []),
                *([] if latest is None else [latest]),
                *flatten_state(next_state),
            ]

        # Blocks of several segments are read only if another block follows.
        return (
            feed_back() if network.segments_per_block == 1 else builder.if_else(is_last, lambda: loop_state, feed_back)
        ), [block]

    is_last_block = builder.arange(blocks).equals(blocks - 1)
    _, [next_output] = builder.scan(
        body,
        [*output, *recent, *flatten_state(initial_state.recurrent_state)],
        [is_last_block, *covariate_blocks, *noise_blocks],
    )
    return _to_data_units(
        network, rollout_state, next_output.transpose(2, 0, 1, 3).reshape(0, -1).slice_axis(1, 0, horizon), active
    )


def _to_data_units(network: OnnxNetwork, rollout_state: OnnxRolloutState, scaled: Value, active: Value | None) -> Value:
    """Converts scaled forecasts of all targets to those of y, [row, horizon]; NaN once any target of the row has diverged."""
    builder, targets, scale = network.builder, network.model.num_targets, rollout_state.scale
    if active is None:
        is_diverged = ~(scaled.abs() <= rollout_state.bound)
    else:
        by_target = scaled.reshape(-1, targets, scaled.size(1))
        bound = builder.where(active.reshape(-1, targets, 1), rollout_state.bound.reshape(-1, targets, 1), np.inf)
        is_diverged = (~(by_target.abs() <= bound)).cast(F32).max(1, keepdims=False) > 0.0
        scaled, scale = by_target.slice_axis(1, 0, 1).squeeze(1), _target_scale(network, scale)
    has_diverged = is_diverged.cast(I64).cumsum(1) > 0
    return builder.where(has_diverged, np.nan, scale.undo(scaled, time=rollout_state.time))


def _measure_window_scale(network: OnnxNetwork, values: Value, missing: Value) -> OnnxScale:
    """Measures the scale of a window's targets: on all of it or, if whole histories are read, on the first steps of each."""
    builder, model = network.builder, network.model

    def measure() -> list[Value]:
        return measure_scale(values, missing, model.scaling, season=model.season, transform=model.transform).parts

    def settle() -> list[Value]:
        return settle_scale(
            values, missing, model.scaling, initial_steps=model.context, season=model.season, transform=model.transform
        ).parts

    if model.reads == "window" or (model.scaling == "none" and model.transform == "none"):
        return OnnxScale(model.scaling, *measure())
    return OnnxScale(model.scaling, *builder.if_else(values.size(1) > model.context, settle, measure))


def _largest_magnitude(network: OnnxNetwork, scaled: Value, *, at_least_one: bool = False) -> Value:
    """Returns the largest magnitude of each target; at least 1 at the start of a rollout without the log transform."""
    largest = scaled.abs().max(1)
    return largest.clip(1.0, None) if at_least_one and network.model.transform == "none" else largest


def _active_targets(network: OnnxNetwork, rollout_state: OnnxRolloutState, rows: Value) -> Value | None:
    """Marks the predicted targets, [1, row_target, 1]: not the unobserved ones of rows with observed ones; None if all are."""
    if network.model.num_targets == 1:
        return None
    begun = rollout_state.begun.reshape(-1, network.model.num_targets, 1)
    active = begun | ~(begun.cast(F32).max(1) > 0.0)
    return active.expand(rows, 1, 1).reshape(1, -1, 1)


def _target_scale(network: OnnxNetwork, scale: OnnxScale) -> OnnxScale:
    """Returns the scale of y, the first target of each row."""
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
    """Returns the inputs of the recurrence (0 on padding) and the padding: [segment, row, any] and [segment, row, 1]."""
    builder, model = network.builder, network.model
    values, observed = network.to_segments(scaled), network.to_segments((~missing).cast(F32))
    covariate_segments = None if covariates is None else network.to_segments(covariates, width=model.num_covariates)
    inputs = network.encode(values, observed, filled_values, covariate_segments, static)
    begun = started.reshape(0, -1, model.segment).slice_axis(2, -1).transpose(1, 0, 2)
    if model.num_targets > 1:  # a row begins with the first of its targets
        begun = begun.cast(F32).reshape(0, -1, model.num_targets).max(2) > 0.0
    if model.lags or covariates is not None or static is not None:  # other inputs are 0 on padding already
        inputs = builder.where(begun, inputs, 0.0)
    return inputs, (~begun).cast(F32)


def _forward_fill(values: Value, missing: Value, previous: Value) -> Value:
    """Fills every gap with the previous value.

    The observed values are compacted behind the value before the window. The latest one at a step is then at the index
    that equals the number of observations so far.
    """
    builder, observed_count, steps = values.builder, _observed_count(missing), values.size(1)
    compacted = builder.concat([previous, builder.zeros(values.size(0), steps + 1)], axis=1)
    positions = builder.where(missing, steps + 1, observed_count)  # the last position is never read
    return compacted.scatter(positions, values, axis=1).gather(observed_count, axis=1)


def _observed_count(missing: Value) -> Value:
    """Counts the observed values up to each step."""
    return (~missing).cast(I64).cumsum(1)


def _latest_values(network: OnnxNetwork, filled_values: Value | None) -> Value | None:
    return None if filled_values is None else filled_values.slice_axis(1, -network.model.lookback)


def _merge_segments(block: Value) -> Value:
    """Reshapes [segment, row, point] to [row, step]."""
    return block.transpose(1, 0, 2).reshape(0, -1)


def _repeat_state(network: OnnxNetwork, rollout_state: OnnxRolloutState, rows: Value) -> OnnxRolloutState:
    """Expands the state to a number of rows: those it has, or copies of its only row."""
    recurrent_state = [
        layer_state.apply(lambda part: part.expand(1, rows, 1)) for layer_state in rollout_state.recurrent_state
    ]
    static = None if rollout_state.static is None else rollout_state.static.expand(rows, 1)
    output = rollout_state.output.expand(1, rows, 1)
    recent, lookback = rollout_state.recent, network.model.lookback
    if recent is not None:
        recent = recent.reshape(-1, network.model.num_targets * lookback).expand(rows, 1).reshape(-1, lookback)
    return rollout_state._replace(recurrent_state=recurrent_state, output=output, recent=recent, static=static)


def _split_into_blocks(network: OnnxNetwork, values: Value, blocks: Value) -> Value:
    """Reshapes [row or row_target, step, any] to [block, segment, row or row_target, point, any]."""
    model = network.model
    in_blocks = values.slice_axis(1, 0, blocks * model.block)
    return in_blocks.reshape(0, blocks, network.segments_per_block, model.segment, -1).transpose(1, 2, 0, 3, 4)

"""Scaling in the graph: `forecaster.model.scaling` in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from forecaster.engines.onnx.builder import F32, F64, I64, Value
from forecaster.model.scaling import ASINH_LIFT, LOG_WIDTH, WIDTH_TOLERANCE
from forecaster.spec import Scaling, Transform


@dataclass(frozen=True)
class OnnxScale:
    """scaled = (value - shift - profile) / width, for each row.

    Attributes:
        scaling: Kind of scaling; parts that it leaves without effect add no nodes.
        shift: [row, 1].
        width: [row, 1].
        profile: [row, phase].
        size: [row, 1] with the log transform; None without.
    """

    scaling: Scaling
    shift: Value
    width: Value
    profile: Value
    size: Value | None = None

    @property
    def parts(self) -> list[Value]:
        """All measured tensors."""
        return [self.shift, self.width, self.profile, *([] if self.size is None else [self.size])]

    def divergence_bound(self, largest: Value, *, factor: float) -> Value:
        """Returns the scaled bound for values `factor` times as large as the largest scaled value."""
        if self.size is None:
            return largest * factor
        return largest + math.log(factor) / LOG_WIDTH

    def apply(self, values: Value, missing: Value, *, time: Value | int) -> Value:
        """Converts data units [row, step] to scaled units, in float32; 0 where missing."""
        builder = values.builder
        if self.scaling == "none" and self.size is None:
            return builder.where(missing, 0.0, values.cast(F32))
        flat = self.width.equals(0.0)
        transformed = values if self.size is None else _scaled_asinh(values, self.size)
        scaled = self._center_values(transformed, time) / builder.where(flat, 1.0, self.width)
        return builder.where(missing | flat, 0.0, scaled).cast(F32)

    def undo(self, scaled: Value, *, time: Value) -> Value:
        """Converts scaled units [row, step] to data units."""
        unscaled = self._unscale(scaled.cast(F64), time)
        if self.size is None:
            return unscaled
        # This is sinh, which onnxruntime only has in float32.
        return (unscaled.exp() - (-unscaled).exp()) * self.size * (0.5 / ASINH_LIFT)

    def _unscale(self, scaled: Value, time: Value) -> Value:
        if self.scaling == "none" and self.size is None:
            return scaled
        widened = scaled * self.width
        if self.scaling == "mean_abs":
            return widened
        return widened + self.shift if self.scaling != "level_season" else widened + self._center(scaled.size(1), time)

    def _center_values(self, values: Value, time: Value | int) -> Value:
        if self.scaling == "mean_abs":
            return values
        return values - (self.shift if self.scaling != "level_season" else self._center(values.size(1), time))

    def _center(self, steps: Value, time: Value | int) -> Value:
        phases = (self.shift.builder.arange(steps) + time) % self.profile.size(1)
        return self.shift + self.profile.take(phases, axis=1)


def measure_scale(values: Value, missing: Value, scaling: Scaling, *, season: int, transform: Transform) -> OnnxScale:
    """Measures the scale of each row of [row, step] in float64, from its observed values."""
    if transform == "log":
        size = measure_scale(values, missing, "mean_abs", season=season, transform="none").width
        transformed = measure_scale(_scaled_asinh(values, size), missing, scaling, season=season, transform="none")
        return replace(transformed, width=(size > 0.0).cast(F64) * LOG_WIDTH, size=size)
    builder, rows = values.builder, values.size(0)
    zeros = builder.zeros(rows, 1, dtype=F64)
    if scaling == "none":
        return OnnxScale(scaling, zeros, zeros + 1.0, zeros)
    observed = (~missing).cast(F64)
    filled = builder.where(missing, 0.0, values)
    if scaling == "mean_abs":
        return OnnxScale(scaling, zeros, filled.abs().sum(1) / observed.sum(1).clip(1.0, None), zeros)
    if scaling == "level_season":
        return _measure_level_season(filled, missing, observed, season)
    mean, deviation = _mean_and_std(filled, observed)
    if scaling == "last":
        return OnnxScale(scaling, filled.gather(_last_observed_index(missing), axis=1), deviation, zeros)
    return OnnxScale(scaling, mean, deviation, zeros)


def settle_scale(
    values: Value, missing: Value, scaling: Scaling, *, initial_steps: int, season: int, transform: Transform
) -> OnnxScale:
    """Measures the permanent scale of each row on its first `initial_steps` steps, doubled until the values differ."""
    builder, length = values.builder, values.size(1)
    first_observed = ((~missing).cast(I64).cumsum(1) <= 0).cast(I64).sum(1)

    def body(loop_state: list[Value]) -> tuple[list[Value], Value]:
        *previous, was_settled, num_steps = loop_state
        steps = first_observed + builder.arange(num_steps.minimum(length))
        head = builder.where(steps >= length, np.nan, values.gather(steps.minimum(length - 1), axis=1))
        head_missing = head.is_nan()
        head_scale = measure_scale(head, head_missing, scaling, season=season, transform=transform)
        tolerance = WIDTH_TOLERANCE if transform == "none" else 0.0
        settled = head_scale.width > builder.where(head_missing, 0.0, head.abs()).max(1) * tolerance
        is_settled = was_settled | settled | (first_observed + num_steps >= length)
        any_left = (~is_settled).cast(I64).sum(0).squeeze(0, 1) > 0
        return [
            *(builder.where(was_settled, *pair) for pair in zip(previous, head_scale.parts, strict=True)),
            is_settled,
            num_steps * 2,
        ], any_left

    zeros = builder.zeros(values.size(0), 1, dtype=F64)
    phases = builder.zeros(values.size(0), season, dtype=F64) if scaling == "level_season" else zeros
    sizes = [zeros] if transform == "log" else []
    initial_state = [zeros, zeros, phases, *sizes, zeros > 0.0, builder.integers([initial_steps])]
    shift, width, profile, *rest = builder.loop(body, initial_state)
    if scaling == "level_season":  # the phases of the head are counted from the first observation
        profile = profile.gather((builder.arange(profile.size(1)) - first_observed) % season, axis=1)
    return OnnxScale(scaling, shift, width, profile, rest[0] if sizes else None)


def _scaled_asinh(values: Value, size: Value) -> Value:
    """asinh(ASINH_LIFT * values / size), which onnxruntime only has in float32."""
    builder = values.builder
    lifted = values * ASINH_LIFT / builder.where(size.equals(0.0), 1.0, size)
    logarithm = (lifted.abs() + (lifted * lifted + 1.0).sqrt()).log()
    return builder.where(lifted >= 0.0, logarithm, -logarithm)


def _mean_and_std(filled: Value, observed: Value) -> tuple[Value, Value]:
    count = observed.sum(1).clip(1.0, None)
    mean = filled.sum(1) / count
    deviations = (filled - mean) * observed
    return mean, ((deviations * deviations).sum(1) / count).sqrt()


def _last_observed_index(missing: Value) -> Value:
    builder = missing.builder
    return builder.where(missing, 0, builder.arange(missing.size(1))).max(1)


def _measure_level_season(filled: Value, missing: Value, observed: Value, season: int) -> OnnxScale:
    builder, rows, steps = filled.builder, filled.size(0), filled.size(1)
    steps_index = builder.arange(steps)
    time = steps_index.cast(F64)
    count = observed.sum(1).clip(1.0, None)
    mean_time = (time * observed).sum(1) / count
    mean = filled.sum(1) / count
    centered_time = time - mean_time
    spread = (centered_time * centered_time * observed).sum(1).clip(1e-12, None)
    slope = (centered_time * (filled - mean) * observed).sum(1) / spread
    residual = (filled - mean - slope * centered_time) * observed

    def by_phase(values: Value) -> Value:
        pad = (steps * -1) % season
        return values.pad(1, after=pad).reshape(rows, -1, season).sum(1, keepdims=False)

    count_by_phase = by_phase(observed)
    profile = builder.where(count_by_phase >= 2.0, by_phase(residual) / count_by_phase.clip(1.0, None), 0.0)
    profile = profile - profile.mean(1)
    deseasonalized = (filled - profile.take(steps_index % season, axis=1)) * observed
    last_season = (time.cast(I64) >= _last_observed_index(missing) - (season - 1)).cast(F64) * observed
    level = (deseasonalized * last_season).sum(1) / last_season.sum(1).clip(1.0, None)
    return OnnxScale("level_season", level, _mean_and_std(deseasonalized, observed)[1], profile)

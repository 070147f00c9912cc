"""Scaling in the graph: `forecaster.model.scaling` once more, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from forecaster.engines.onnx.builder import F32, F64, I64, Value
from forecaster.model.scaling import ASINH_LIFT, LOG_WIDTH, WIDTH_TOLERANCE
from forecaster.spec import Scaling, Transform


@dataclass(frozen=True)
class OnnxScale:
    """scaled = (value - shift - profile) / width, of each row.

    Attributes:
        scaling: What was measured; where it says that a part changes nothing, no node is written for it.
        shift: [row, 1].
        width: [row, 1].
        profile: [row, phase].
        size: [row, 1] where values are scaled in logarithms; None where they are not.
    """

    scaling: Scaling
    shift: Value
    width: Value
    profile: Value
    size: Value | None = None

    @property
    def parts(self) -> list[Value]:
        """All that was measured."""
        return [self.shift, self.width, self.profile, *([] if self.size is None else [self.size])]

    def divergence_bound(self, largest: Value, *, factor: float) -> Value:
        """What the largest scaled value becomes where the value itself is so many times as large."""
        if self.size is None:
            return largest * factor
        return largest + math.log(factor) / LOG_WIDTH

    def apply(self, values: Value, missing: Value, *, time: Value | int) -> Value:
        """[row, step] of data units to the network's, in float32; 0 where missing."""
        draft = values.builder
        if self.scaling == "none" and self.size is None:
            return draft.where(missing, 0.0, values.cast(F32))
        flat = self.width.equals(0.0)
        bent = values if self.size is None else _scaled_asinh(values, self.size)
        scaled = self._center_values(bent, time) / draft.where(flat, 1.0, self.width)
        return draft.where(missing | flat, 0.0, scaled).cast(F32)

    def undo(self, scaled: Value, *, time: Value) -> Value:
        """[row, step] of the network's units to data units."""
        straight = self._unscale(scaled.cast(F64), time)
        if self.size is None:
            return straight
        return (
            (straight.exp() - (-straight).exp()) * self.size * (0.5 / ASINH_LIFT)
        )  # sinh, which is there in float32 alone

    def _unscale(self, scaled: Value, time: Value) -> Value:
        if self.scaling == "none" and self.size is None:
            return scaled
        grown = scaled * self.width
        if self.scaling == "mean_abs":
            return grown
        return grown + self.shift if self.scaling != "level_season" else grown + self._center(scaled.size(1), time)

    def _center_values(self, values: Value, time: Value | int) -> Value:
        if self.scaling == "mean_abs":
            return values
        return values - (self.shift if self.scaling != "level_season" else self._center(values.size(1), time))

    def _center(self, steps: Value, time: Value | int) -> Value:
        phases = (self.shift.builder.arange(steps) + time) % self.profile.size(1)
        return self.shift + self.profile.take(phases, axis=1)


def measure_scale(values: Value, missing: Value, scaling: Scaling, *, season: int, transform: Transform) -> OnnxScale:
    """The scale of each row of [row, step] in float64, from its observed values."""
    if transform == "log":
        size = measure_scale(values, missing, "mean_abs", season=season, transform="none").width
        bent = measure_scale(_scaled_asinh(values, size), missing, scaling, season=season, transform="none")
        return replace(bent, width=(size > 0.0).cast(F64) * LOG_WIDTH, size=size)
    draft, rows = values.builder, values.size(0)
    still = draft.zeros(rows, 1, dtype=F64)
    if scaling == "none":
        return OnnxScale(scaling, still, still + 1.0, still)
    observed = (~missing).cast(F64)
    known = draft.where(missing, 0.0, values)
    if scaling == "mean_abs":
        return OnnxScale(scaling, still, known.abs().sum(1) / observed.sum(1).clip(1.0, None), still)
    if scaling == "level_season":
        return _measure_level_season(known, missing, observed, season)
    mean, deviation = _mean_and_std(known, observed)
    if scaling == "last":
        return OnnxScale(scaling, known.gather(_last_observed_index(missing), axis=1), deviation, still)
    return OnnxScale(scaling, mean, deviation, still)


def settle_scale(
    values: Value, missing: Value, scaling: Scaling, *, initial_steps: int, season: int, transform: Transform
) -> OnnxScale:
    """The scale that each row keeps: of its first `initial_steps` steps, of twice as many where these are all alike, and so on."""
    draft, length = values.builder, values.size(1)
    begin = ((~missing).cast(I64).cumsum(1) <= 0).cast(I64).sum(1)

    def body(before: list[Value]) -> tuple[list[Value], Value]:
        *old, done, reach = before
        places = begin + draft.arange(reach.minimum(length))
        first = draft.where(places >= length, np.nan, values.gather(places.minimum(length - 1), axis=1))
        gaps = first.is_nan()
        found = measure_scale(first, gaps, scaling, season=season, transform=transform)
        alike = WIDTH_TOLERANCE if transform == "none" else 0.0
        settled = found.width > draft.where(gaps, 0.0, first.abs()).max(1) * alike
        sure = done | settled | (begin + reach >= length)
        left = (~sure).cast(I64).sum(0).squeeze(0, 1) > 0
        return [*(draft.where(done, *pair) for pair in zip(old, found.parts, strict=True)), sure, reach * 2], left

    nothing = draft.zeros(values.size(0), 1, dtype=F64)
    phases = draft.zeros(values.size(0), season, dtype=F64) if scaling == "level_season" else nothing
    sizes = [nothing] if transform == "log" else []
    start = [nothing, nothing, phases, *sizes, nothing > 0.0, draft.integers([initial_steps])]
    shift, width, profile, *more = draft.loop(body, start)
    if scaling == "level_season":  # its phases are counted from the first observation
        profile = profile.gather((draft.arange(profile.size(1)) - begin) % season, axis=1)
    return OnnxScale(scaling, shift, width, profile, more[0] if sizes else None)


def _scaled_asinh(values: Value, size: Value) -> Value:
    """asinh(LIFT * values / size), which is there in float32 alone."""
    draft = values.builder
    lifted = values * ASINH_LIFT / draft.where(size.equals(0.0), 1.0, size)
    risen = (lifted.abs() + (lifted * lifted + 1.0).sqrt()).log()
    return draft.where(lifted >= 0.0, risen, -risen)


def _mean_and_std(filled: Value, observed: Value) -> tuple[Value, Value]:
    count = observed.sum(1).clip(1.0, None)
    mean = filled.sum(1) / count
    off = (filled - mean) * observed
    return mean, ((off * off).sum(1) / count).sqrt()


def _last_observed_index(missing: Value) -> Value:
    draft = missing.builder
    return draft.where(missing, 0, draft.arange(missing.size(1))).max(1)


def _measure_level_season(filled: Value, missing: Value, observed: Value, season: int) -> OnnxScale:
    draft, rows, steps = filled.builder, filled.size(0), filled.size(1)
    whole = draft.arange(steps)
    clock = whole.cast(F64)
    count = observed.sum(1).clip(1.0, None)
    middle = (clock * observed).sum(1) / count
    mean = filled.sum(1) / count
    along = clock - middle
    spread = (along * along * observed).sum(1).clip(1e-12, None)
    slope = (along * (filled - mean) * observed).sum(1) / spread
    rest = (filled - mean - slope * along) * observed

    def by_phase(each: Value) -> Value:
        short = (steps * -1) % season
        return each.pad(1, after=short).reshape(rows, -1, season).sum(1, keepdims=False)

    seen = by_phase(observed)
    profile = draft.where(seen >= 2.0, by_phase(rest) / seen.clip(1.0, None), 0.0)
    profile = profile - profile.mean(1)
    plain = (filled - profile.take(whole % season, axis=1)) * observed
    late = (clock.cast(I64) >= _last_observed_index(missing) - (season - 1)).cast(F64) * observed
    level = (plain * late).sum(1) / late.sum(1).clip(1.0, None)
    return OnnxScale("level_season", level, _mean_and_std(plain, observed)[1], profile)

"""Scaling in the graph: `forecaster.model.scaling` once more, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forecaster.graph.draft import F32, F64, I64, Value
from forecaster.model.scaling import ALIKE
from forecaster.spec import Scaling


@dataclass(frozen=True)
class Scale:
    """scaled = (value - shift - profile) / width, of each row.

    Attributes:
        scaling: What was measured; where it says that a part changes nothing, no node is written for it.
        shift: [row, 1].
        width: [row, 1].
        profile: [row, phase].
    """

    scaling: Scaling
    shift: Value
    width: Value
    profile: Value

    @property
    def parts(self) -> list[Value]:
        """All that was measured."""
        return [self.shift, self.width, self.profile]

    def apply(self, values: Value, missing: Value, *, time: Value | int) -> Value:
        """[row, step] of data units to the network's, in float32; 0 where missing."""
        draft = values.draft
        if self.scaling == "none":
            return draft.where(missing, 0.0, values.cast(F32))
        flat = self.width.equals(0.0)
        scaled = self._centred(values, time) / draft.where(flat, 1.0, self.width)
        return draft.where(missing | flat, 0.0, scaled).cast(F32)

    def undo(self, scaled: Value, *, time: Value) -> Value:
        """[row, step] of the network's units to data units."""
        if self.scaling == "none":
            return scaled.cast(F64)
        grown = scaled.cast(F64) * self.width
        if self.scaling == "mean_abs":
            return grown
        return grown + self.shift if self.scaling != "level_season" else grown + self._centre(scaled.size(1), time)

    def _centred(self, values: Value, time: Value | int) -> Value:
        if self.scaling == "mean_abs":
            return values
        return values - (self.shift if self.scaling != "level_season" else self._centre(values.size(1), time))

    def _centre(self, steps: Value, time: Value | int) -> Value:
        phases = (self.shift.draft.count(steps) + time) % self.profile.size(1)
        return self.shift + self.profile.take(phases, axis=1)


def measure(values: Value, missing: Value, scaling: Scaling, *, season: int) -> Scale:
    """The scale of each row of [row, step] in float64, from its observed values."""
    draft, rows = values.draft, values.size(0)
    still = draft.zeros(rows, 1, kind=F64)
    if scaling == "none":
        return Scale(scaling, still, still + 1.0, still)
    observed = (~missing).cast(F64)
    known = draft.where(missing, 0.0, values)
    if scaling == "mean_abs":
        return Scale(scaling, still, known.abs().sum(1) / observed.sum(1).clip(1.0, None), still)
    if scaling == "level_season":
        return _level_season(known, missing, observed, season)
    mean, deviation = _moments(known, observed)
    if scaling == "last":
        return Scale(scaling, known.pick(_last_observed(missing), axis=1), deviation, still)
    return Scale(scaling, mean, deviation, still)


def settle(values: Value, missing: Value, scaling: Scaling, *, steps: int, season: int) -> Scale:
    """The scale that each row keeps: of its first `steps` steps, of twice as many where these are all alike, and so on."""
    draft, length = values.draft, values.size(1)
    begin = ((~missing).cast(I64).cumsum(1) <= 0).cast(I64).sum(1)

    def body(before: list[Value]) -> tuple[list[Value], Value]:
        shift, width, profile, done, reach = before
        places = begin + draft.count(reach.least(length))
        first = draft.where(places >= length, np.nan, values.pick(places.least(length - 1), axis=1))
        gaps = first.is_nan()
        found = measure(first, gaps, scaling, season=season)
        parts = zip((shift, width, profile), found.parts, strict=True)
        settled = found.width > draft.where(gaps, 0.0, first.abs()).max(1) * ALIKE
        sure = done | settled | (begin + reach >= length)
        left = (~sure).cast(I64).sum(0).squeeze(0, 1) > 0
        return [*(draft.where(done, old, new) for old, new in parts), sure, reach * 2], left

    nothing = draft.zeros(values.size(0), 1, kind=F64)
    phases = draft.zeros(values.size(0), season, kind=F64) if scaling == "level_season" else nothing
    start = [nothing, nothing, phases, nothing > 0.0, draft.whole([steps])]
    shift, width, profile, *_ = draft.repeat(body, start)
    if scaling == "level_season":  # its phases are counted from the first observation
        profile = profile.pick((draft.count(profile.size(1)) - begin) % season, axis=1)
    return Scale(scaling, shift, width, profile)


def _moments(known: Value, observed: Value) -> tuple[Value, Value]:
    count = observed.sum(1).clip(1.0, None)
    mean = known.sum(1) / count
    off = (known - mean) * observed
    return mean, ((off * off).sum(1) / count).sqrt()


def _last_observed(missing: Value) -> Value:
    draft = missing.draft
    return draft.where(missing, 0, draft.count(missing.size(1))).max(1)


def _level_season(known: Value, missing: Value, observed: Value, season: int) -> Scale:
    draft, rows, steps = known.draft, known.size(0), known.size(1)
    whole = draft.count(steps)
    clock = whole.cast(F64)
    count = observed.sum(1).clip(1.0, None)
    middle = (clock * observed).sum(1) / count
    mean = known.sum(1) / count
    along = clock - middle
    spread = (along * along * observed).sum(1).clip(1e-12, None)
    slope = (along * (known - mean) * observed).sum(1) / spread
    rest = (known - mean - slope * along) * observed

    def by_phase(each: Value) -> Value:
        short = (steps * -1) % season
        return each.pad(1, after=short).reshape(rows, -1, season).sum(1, keep=False)

    seen = by_phase(observed)
    profile = draft.where(seen >= 2.0, by_phase(rest) / seen.clip(1.0, None), 0.0)
    profile = profile - profile.mean(1)
    plain = (known - profile.take(whole % season, axis=1)) * observed
    late = (clock.cast(I64) >= _last_observed(missing) - (season - 1)).cast(F64) * observed
    level = (plain * late).sum(1) / late.sum(1).clip(1.0, None)
    return Scale("level_season", level, _moments(plain, observed)[1], profile)

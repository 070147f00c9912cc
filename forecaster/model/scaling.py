"""Scale is a value: measured on the history of each row alone, applied once on the way in, undone once on the way out.

With the transform `log` all of it happens in logarithms, so that a change is a share of the level and a season multiplies.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from forecaster.shapes import Float, Float64, Int
from forecaster.spec import Scaling, Transform

WIDTH_TOLERANCE = 1e-14  # a width this small beside the values is their rounding
ASINH_LIFT = (
    10.0  # how far above the origin of asinh the mean size of a row lies: nearly all of a positive row is logarithmic
)
LOG_WIDTH = 0.1  # in logarithms: a change by a tenth is one, in all rows alike


class Scale(NamedTuple):
    """scaled = (value - shift - profile) / width. A width of zero maps all to 0, and back to shift and profile.

    With a size, it is asinh(LIFT * value / size) that is shifted and divided: a logarithm that knows zero and negative values
    (Burbidge, Magee and Robb 1988).

    Attributes:
        shift: Level of each row.
        width: Spread of each row.
        profile: What each phase of the season adds; one zero where there is none. The first phase is that of the first
            step of the window it was measured on.
        size: Mean of |value| of each row, in one column; no column where values are taken as they are.
    """

    shift: Float64[Tensor, "row"]
    width: Float64[Tensor, "row"]
    profile: Float64[Tensor, "row phase"]
    size: Float64[Tensor, "row bend"]

    def apply(self, values: Float64[Tensor, "row step"], *, time: int = 0) -> Float[Tensor, "row step"]:
        """Data units to the network's, in float32. Float64 until here, or large levels would swallow small changes.

        `time` is the place of the first value, in steps after the first step of the window that was measured.
        """
        flat = self.width[:, None] == 0
        bent = _scaled_asinh(values, self.size) if self.size.shape[1] else values
        centred = bent - self._center(values.shape[1], time)
        return (centred / self.width[:, None].masked_fill(flat, 1.0)).masked_fill(flat, 0.0).float()

    def undo(self, scaled: Float[Tensor, "row step"], *, time: int = 0) -> Float64[Tensor, "row step"]:
        """The network's units to data units."""
        values = scaled.double() * self.width[:, None] + self._center(scaled.shape[1], time)
        return values.sinh() * (self.size / ASINH_LIFT) if self.size.shape[1] else values

    @property
    def unit(self) -> Float64[Tensor, "row"]:
        """By how much a value of each row changes where the scaled one changes by one, at the row's level."""
        if not self.size.shape[1]:
            return self.width
        return self.width * self.shift.cosh() * self.size[:, 0] / ASINH_LIFT

    def divergence_bound(self, largest: Float[Tensor, "row"], *, factor: float) -> Float[Tensor, "row"]:
        """What the largest scaled value becomes where the value itself is so many times as large."""
        if not self.size.shape[1]:
            return largest * factor
        return largest + math.log(factor) / LOG_WIDTH

    def starting_at(self, time: Int[Tensor, "row"] | int) -> Scale:
        """The same scale for those who count their steps from `time` on."""
        rows, phases = self.profile.shape
        places = torch.arange(phases, device=self.profile.device).expand(rows, -1)
        begin = time if isinstance(time, int) else time[:, None]
        return self._replace(profile=self.profile.gather(1, (places + begin) % phases))

    def _center(self, steps: int, time: int) -> Float64[Tensor, "row step"]:
        phases = (time + torch.arange(steps, device=self.profile.device)) % self.profile.shape[1]
        return self.shift[:, None] + self.profile[:, phases]


def measure_scale(
    values: Float64[Tensor, "row context"], scaling: Scaling, *, season: int = 1, transform: Transform = "none"
) -> Scale:
    """The scale of each row, from its observed values.

    `none` shifts by 0 and divides by 1; `mean_abs` divides by the mean of |y| (Salinas et al. 2020, section 3.3, without
    their +1, so that the forecast scales with the data); `standard` subtracts the mean and divides by the population
    standard deviation; `last` subtracts the last observed value instead (Lin et al. 2023); `level_season` subtracts the
    level of the last season and a seasonal profile (means by phase of what a straight line leaves, centred), and divides by
    the standard deviation of the rest. A row without observations, or all zero, has width 0 (1 for `none`).

    In logarithms shift and profile are measured likewise, and the width is LOG_WIDTH: a row that hardly moved is not blown up.
    """
    if transform == "log":
        size = measure_scale(values, "mean_abs").width[:, None]
        bent = measure_scale(_scaled_asinh(values, size), scaling, season=season)
        return bent._replace(width=LOG_WIDTH * (size[:, 0] > 0).double(), size=size)
    zero, still = values.new_zeros(len(values)), values.new_zeros(len(values), 1)
    as_is = still[:, :0]
    if scaling == "none":
        return Scale(zero, zero + 1, still, as_is)
    observed = ~values.isnan()
    known = values.masked_fill(~observed, 0.0)
    if scaling == "mean_abs":
        return Scale(zero, known.abs().sum(1) / observed.sum(1).clamp(min=1), still, as_is)
    if scaling == "level_season":
        return _measure_level_season(known, observed, season)
    mean, deviation = _mean_and_std(known, observed)
    if scaling == "last":
        return Scale(known.gather(1, _last_observed_index(observed)).squeeze(1), deviation, still, as_is)
    return Scale(mean, deviation, still, as_is)


class SettledScale(NamedTuple):
    """The scale of rows that are read from their start.

    Attributes:
        scale: As from the first step of the values on.
        begin: Before which step of the values nothing was observed.
        since: After how many steps of the values it is there, and stays; more than there are if it may still change.
    """

    scale: Scale
    first_observed: Int[Tensor, "row"]
    settled_at: Int[Tensor, "row"]


def settle_scale(
    values: Float64[Tensor, "row step"],
    scaling: Scaling,
    *,
    initial_steps: int,
    season: int = 1,
    transform: Transform = "none",
) -> SettledScale:
    """The scale that each row keeps: that of its first `initial_steps` steps, counted from its first observation.

    Where these are all alike, it is that of twice as many, and so on, or it would have no width for ever; that of all
    there are where they do not suffice. So it is a function of the past at any place, and the same at all later ones.
    """
    rows, length = values.shape
    observed = ~values.isnan()
    begin = torch.where(observed.any(1), observed.int().argmax(1), length)
    if scaling == "none" and transform == "none":
        return SettledScale(measure_scale(values, scaling), begin, torch.zeros_like(begin))
    since = torch.full_like(begin, length + 1)
    left, scale = torch.arange(rows, device=values.device), None
    while scale is None or len(left):
        places = begin[left, None] + torch.arange(min(initial_steps, length), device=values.device)
        first = values[left].gather(1, places.clamp(max=length - 1)).masked_fill(places >= length, torch.nan)
        found = measure_scale(first, scaling, season=season, transform=transform)
        parts = () if scale is None else zip(scale, found, strict=True)
        scale = found if scale is None else Scale(*(whole.index_copy(0, left, part) for whole, part in parts))
        settled = (
            found.width > WIDTH_TOLERANCE * first.abs().nan_to_num(0.0).amax(1)
            if transform == "none"
            else found.width > 0
        )
        reached = begin[left] + initial_steps
        since[left] = torch.where(settled & (reached <= length), reached, length + 1)
        left = left[~settled & (reached < length)]
        initial_steps *= 2
    return SettledScale(scale.starting_at(-begin), begin, since)


def _scaled_asinh(
    values: Float64[Tensor, "row step"], size: Float64[Tensor, "row bend"]
) -> Float64[Tensor, "row step"]:
    return (values * (ASINH_LIFT / size.masked_fill(size == 0, 1.0))).asinh()


def _mean_and_std(filled: Tensor, observed: Tensor) -> tuple[Float64[Tensor, "row"], Float64[Tensor, "row"]]:
    count = observed.sum(1).clamp(min=1)
    mean = filled.sum(1) / count
    return mean, torch.sqrt((((filled - mean[:, None]) * observed) ** 2).sum(1) / count)


def _last_observed_index(observed: Tensor) -> Tensor:
    steps = torch.arange(observed.shape[1], device=observed.device)
    return torch.where(observed, steps, 0).amax(1, keepdim=True)


def _measure_level_season(filled: Tensor, observed: Tensor, season: int) -> Scale:
    """Level, profile and spread. A phase that was seen less than twice adds nothing: it would only repeat one value."""
    rows, steps = filled.shape
    clock = torch.arange(steps, device=filled.device, dtype=filled.dtype)
    count = observed.sum(1, keepdim=True).clamp(min=1)
    middle = (clock * observed).sum(1, keepdim=True) / count
    mean = filled.sum(1, keepdim=True) / count
    spread = (((clock - middle) ** 2) * observed).sum(1, keepdim=True).clamp(min=1e-12)
    slope = ((clock - middle) * (filled - mean) * observed).sum(1, keepdim=True) / spread
    rest = (filled - mean - slope * (clock - middle)) * observed
    phases = (torch.arange(steps, device=filled.device) % season).expand(rows, steps)
    empty = filled.new_zeros(rows, season)
    seen = empty.scatter_add(1, phases, observed.to(filled.dtype))
    profile = torch.where(seen >= 2, empty.scatter_add(1, phases, rest) / seen.clamp(min=1), 0.0)
    profile = profile - profile.mean(1, keepdim=True)
    plain = (filled - profile.gather(1, phases)) * observed
    late = observed & (clock >= _last_observed_index(observed) - season + 1)
    level = (plain * late).sum(1) / late.sum(1).clamp(min=1)
    return Scale(level, _mean_and_std(plain, observed)[1], profile, profile[:, :0])

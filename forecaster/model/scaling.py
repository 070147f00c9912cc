"""Scaling: measured per row from its own history, applied to the inputs and undone on the outputs.

With the transform `log` all of it happens in logarithms: changes are relative to the level and seasons are multiplicative.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from forecaster.shapes import Float, Float64, Int
from forecaster.spec import Scaling, Transform

WIDTH_TOLERANCE = 1e-14  # a width this small relative to the values is rounding error
# Places the mean magnitude of a row this far above the origin of asinh, so that nearly all of a positive row is logarithmic.
ASINH_LIFT = 10.0
LOG_WIDTH = 0.1  # the width in logarithms: a relative change of a tenth is one unit, in every row


class Scale(NamedTuple):
    """scaled = (value - shift - profile) / width. A zero width maps every value to 0, and back to shift plus profile.

    With a size, asinh(ASINH_LIFT * value / size) is shifted and divided: a logarithm that admits zero and negative values
    (Burbidge, Magee and Robb 1988).

    Attributes:
        shift: Level of each row.
        width: Spread of each row.
        profile: Seasonal component of each phase; a single zero without a season. The first phase is that of the first
            step of the measured window.
        size: Mean of |value| of each row, in one column; no column without the log transform.
    """

    shift: Float64[Tensor, "row"]
    width: Float64[Tensor, "row"]
    profile: Float64[Tensor, "row phase"]
    size: Float64[Tensor, "row optional"]

    def apply(self, values: Float64[Tensor, "row step"], *, time: int = 0) -> Float[Tensor, "row step"]:
        """Converts data units to scaled units, in float32.

        The arithmetic before that is in float64; otherwise large levels would swallow small changes. `time` is the index of
        the first value, in steps after the first step of the measured window.
        """
        flat = self.width[:, None] == 0
        transformed = _scaled_asinh(values, self.size) if self.size.shape[1] else values
        centered = transformed - self._center(values.shape[1], time)
        return (centered / self.width[:, None].masked_fill(flat, 1.0)).masked_fill(flat, 0.0).float()

    def undo(self, scaled: Float[Tensor, "row step"], *, time: int = 0) -> Float64[Tensor, "row step"]:
        """Converts scaled units to data units."""
        values = scaled.double() * self.width[:, None] + self._center(scaled.shape[1], time)
        return values.sinh() * (self.size / ASINH_LIFT) if self.size.shape[1] else values

    @property
    def unit(self) -> Float64[Tensor, "row"]:
        """The change of each row's value per unit of the scaled value, at the row's level."""
        if not self.size.shape[1]:
            return self.width
        return self.width * self.shift.cosh() * self.size[:, 0] / ASINH_LIFT

    def divergence_bound(self, largest: Float[Tensor, "row"], *, factor: float) -> Float[Tensor, "row"]:
        """Returns the scaled bound for values `factor` times as large as the largest scaled value."""
        if not self.size.shape[1]:
            return largest * factor
        return largest + math.log(factor) / LOG_WIDTH

    def starting_at(self, time: Int[Tensor, "row"] | int) -> Scale:
        """Returns the same scale with steps counted from `time` on."""
        rows, phases = self.profile.shape
        phase_index = torch.arange(phases, device=self.profile.device).expand(rows, -1)
        offset = time if isinstance(time, int) else time[:, None]
        return self._replace(profile=self.profile.gather(1, (phase_index + offset) % phases))

    def _center(self, steps: int, time: int) -> Float64[Tensor, "row step"]:
        phases = (time + torch.arange(steps, device=self.profile.device)) % self.profile.shape[1]
        return self.shift[:, None] + self.profile[:, phases]


def measure_scale(
    values: Float64[Tensor, "row context"], scaling: Scaling, *, season: int = 1, transform: Transform = "none"
) -> Scale:
    """Measures the scale of each row from its observed values.

    `none` shifts by 0 and divides by 1; `mean_abs` divides by the mean of |y| (Salinas et al. 2020, section 3.3, without
    their +1, so that the forecast scales with the data); `standard` subtracts the mean and divides by the population
    standard deviation; `last` subtracts the last observed value instead (Lin et al. 2023); `level_season` subtracts the
    level of the last season and a seasonal profile (centered means by phase of the residuals of a linear trend), and
    divides by the standard deviation of the rest; `running` subtracts the first observed value and divides by the first change
    from it, and level and unit are measured at every step (`forecaster.model.running`). A row that is all missing or all zero
    has width 0 (1 for `none`).

    With the log transform, shift and profile are measured in logarithms and the width is LOG_WIDTH, so that a nearly
    constant row is not magnified.
    """
    if transform == "log":
        size = measure_scale(values, "mean_abs").width[:, None]
        transformed = measure_scale(_scaled_asinh(values, size), scaling, season=season)
        return transformed._replace(width=LOG_WIDTH * (size[:, 0] > 0).double(), size=size)
    zero, zero_profile = values.new_zeros(len(values)), values.new_zeros(len(values), 1)
    no_size = zero_profile[:, :0]
    if scaling == "none":
        return Scale(zero, zero + 1, zero_profile, no_size)
    observed = ~values.isnan()
    filled = values.masked_fill(~observed, 0.0)
    if scaling == "running":
        return _measure_first_change(filled, observed)
    if scaling == "mean_abs":
        return Scale(zero, filled.abs().sum(1) / observed.sum(1).clamp(min=1), zero_profile, no_size)
    if scaling == "level_season":
        return _measure_level_season(filled, observed, season)
    mean, deviation = _mean_and_std(filled, observed)
    if scaling == "last":
        return Scale(filled.gather(1, _last_observed_index(observed)).squeeze(1), deviation, zero_profile, no_size)
    return Scale(mean, deviation, zero_profile, no_size)


class SettledScale(NamedTuple):
    """The scale of rows that are read from their start.

    Attributes:
        scale: The scale, with steps counted from the first step of the values.
        first_observed: Index of the first observed step.
        settled_at: Number of steps after which the scale is final; more than the length if it may still change.
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
    """Measures the permanent scale of each row: that of the `initial_steps` steps from its first observation on.

    If these values are all equal, the number of steps is doubled until they differ, since the width would otherwise stay
    zero; if the row is too short, all its steps are used. The scale thus depends only on the past, and it does not change
    once it has settled.
    """
    rows, length = values.shape
    observed = ~values.isnan()
    first_observed = torch.where(observed.any(1), observed.int().argmax(1), length)
    if scaling == "none" and transform == "none":
        return SettledScale(measure_scale(values, scaling), first_observed, torch.zeros_like(first_observed))
    settled_at = torch.full_like(first_observed, length + 1)
    unsettled, scale = torch.arange(rows, device=values.device), None
    while scale is None or len(unsettled):
        steps = first_observed[unsettled, None] + torch.arange(min(initial_steps, length), device=values.device)
        head = values[unsettled].gather(1, steps.clamp(max=length - 1)).masked_fill(steps >= length, torch.nan)
        head_scale = measure_scale(head, scaling, season=season, transform=transform)
        fields = () if scale is None else zip(scale, head_scale, strict=True)
        scale = (
            head_scale if scale is None else Scale(*(whole.index_copy(0, unsettled, part) for whole, part in fields))
        )
        settled = (
            head_scale.width > WIDTH_TOLERANCE * head.abs().nan_to_num(0.0).amax(1)
            if transform == "none"
            else head_scale.width > 0
        )
        end = first_observed[unsettled] + initial_steps
        settled_at[unsettled] = torch.where(settled & (end <= length), end, length + 1)
        unsettled = unsettled[~settled & (end < length)]
        initial_steps *= 2
    return SettledScale(scale.starting_at(-first_observed), first_observed, settled_at)


def _scaled_asinh(
    values: Float64[Tensor, "row step"], size: Float64[Tensor, "row optional"]
) -> Float64[Tensor, "row step"]:
    missing = values.isnan()  # filled meanwhile; otherwise the derivative of the size would be NaN
    scaled = values.masked_fill(missing, 0.0) * (ASINH_LIFT / size.masked_fill(size == 0, 1.0))
    return scaled.asinh().masked_fill(missing, torch.nan)


def _mean_and_std(filled: Tensor, observed: Tensor) -> tuple[Float64[Tensor, "row"], Float64[Tensor, "row"]]:
    count = observed.sum(1).clamp(min=1)
    mean = filled.sum(1) / count
    return mean, torch.sqrt((((filled - mean[:, None]) * observed) ** 2).sum(1) / count)


def _last_observed_index(observed: Tensor) -> Tensor:
    steps = torch.arange(observed.shape[1], device=observed.device)
    return torch.where(observed, steps, 0).amax(1, keepdim=True)


def _measure_first_change(filled: Tensor, observed: Tensor) -> Scale:
    """Returns the first observed value as shift, and the size of the first change from it as width.

    Every scaled value before that change is 0 for any width, so this scale depends on the past alone.
    """
    first = filled.gather(1, observed.int().argmax(1, keepdim=True))
    distance = (filled - first).abs()
    is_other = observed & (distance > WIDTH_TOLERANCE * first.abs())
    width = (distance * is_other).gather(1, is_other.int().argmax(1, keepdim=True))
    return Scale(first[:, 0], width[:, 0], torch.zeros_like(first), first[:, :0])


def _measure_level_season(filled: Tensor, observed: Tensor, season: int) -> Scale:
    """Measures level, profile and spread. A phase observed less than twice gets 0: its mean would be a single value."""
    rows, steps = filled.shape
    time = torch.arange(steps, device=filled.device, dtype=filled.dtype)
    count = observed.sum(1, keepdim=True).clamp(min=1)
    mean_time = (time * observed).sum(1, keepdim=True) / count
    mean = filled.sum(1, keepdim=True) / count
    spread = (((time - mean_time) ** 2) * observed).sum(1, keepdim=True).clamp(min=1e-12)
    slope = ((time - mean_time) * (filled - mean) * observed).sum(1, keepdim=True) / spread
    residual = (filled - mean - slope * (time - mean_time)) * observed
    phases = (torch.arange(steps, device=filled.device) % season).expand(rows, steps)
    zeros = filled.new_zeros(rows, season)
    count_by_phase = zeros.scatter_add(1, phases, observed.to(filled.dtype))
    profile = torch.where(
        count_by_phase >= 2, zeros.scatter_add(1, phases, residual) / count_by_phase.clamp(min=1), 0.0
    )
    profile = profile - profile.mean(1, keepdim=True)
    deseasonalized = (filled - profile.gather(1, phases)) * observed
    last_season = observed & (time >= _last_observed_index(observed) - season + 1)
    level = (deseasonalized * last_season).sum(1) / last_season.sum(1).clamp(min=1)
    return Scale(level, _mean_and_std(deseasonalized, observed)[1], profile, profile[:, :0])

"""The running scale: level, unit, features and simple forecasts at a step, from the latest values and sums over all earlier ones.

Everything here is causal: what a step reads depends on its past alone, so that reading on from a state equals reading again
from the start. Values are in the scaled units of a row (see `measure_scale`, running), where the first observed value is 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from forecaster.model.running_sizes import (
    INDEX_DECAY,
    LONG_CHANGE,
    LONG_DECAY,
    MAX_FEATURE,
    MAX_UNITS,
    MIN_TIED_SIZE,
    NUM_SCALARS,
    PRIOR_WEIGHTS,
    SEASONAL_FORECASTS,
    TINY,
    TINY_SQUARE,
)
from forecaster.model.running_statistics import Statistics
from forecaster.shapes import Bool, Float, Float64, Int
from forecaster.spec import LONG_CYCLES, RUNNING_CYCLES, RUNNING_LAGS, running_lookback


class RunningScale(NamedTuple):
    """The level and the unit of the values at a step: the mean of the last season, and the mean change over a season."""

    level: Float[Tensor, "*axes"]
    unit: Float[Tensor, "*axes"]


def measure_running_scale(
    recent: Float[Tensor, "*axes back"], statistics: Float64[Tensor, "*axes statistic"], *, season: int
) -> RunningScale:
    """Returns the scale at a step: the unit is the error of seasonal naive so far, as in MASE (Hyndman and Koehler 2006).

    While there are few seasons, the mean change from step to step counts as one more of them, so that the unit is positive.
    """
    sums = Statistics(*statistics.float().unbind(-1))
    mean_change = sums.change / (sums.steps - 1).clamp(min=1)
    num_changes = (sums.steps - season).clamp(min=0)
    unit = (sums.seasonal_change + mean_change) / (num_changes + 1) + 0.02 * mean_change
    is_read = torch.arange(season - 1, -1, -1, device=recent.device) < sums.steps[..., None]
    level = (recent[..., -season:] * is_read).sum(-1) / sums.steps.clamp(min=1, max=season)
    return RunningScale(level, torch.where(unit > 0, unit, torch.ones_like(unit)))


class RunningView(NamedTuple):
    """What the network sees of the past at a step.

    Attributes:
        features: Inputs of the recurrence, of the order of 1.
        forecasts: Simple forecasts of the next steps, relative to the level and in units.
    """

    features: Float[Tensor, "*axes feature"]
    forecasts: Float[Tensor, "*axes block forecast"]


def view_past(
    recent: Float[Tensor, "*axes back"],
    statistics: Float64[Tensor, "*axes statistic"],
    *,
    season: int,
    long_season: int | None = None,
    block: int,
) -> RunningView:
    """Computes features and simple forecasts at a step.

    The forecasts are: the last season, the seasonal index, the mean of the long seasons (or the season before the last), the
    last value and the mean of the last three without their season, and lines with the slope over one season, over three and
    since the start.
    """
    scale, device = measure_running_scale(recent, statistics, season=season), recent.device
    sums = Statistics(*statistics.float().unbind(-1))
    level, unit, steps = (part[..., None] for part in (scale.level, scale.unit, sums.steps))
    by_age = recent[..., -running_lookback(season) :].flip(-1)  # the latest first
    age = torch.arange(by_age.shape[-1], device=device)
    is_read = age < steps
    ahead = torch.arange(1, block + 1, device=device)
    age_in_season = (-ahead) % season
    levels = _levels_by_age(by_age, season)
    index = _seasonal_index(by_age, levels, steps, season=season)
    zero = torch.zeros_like(level).expand(*level.shape[:-1], block)
    if season > 1:
        last_season = _to_units(by_age[..., age_in_season], scale) * is_read[..., age_in_season]
        if long_season is None:
            older = by_age[..., age_in_season + season] - levels[..., season, None]
            has_older = 2 * season <= steps
        else:
            older, has_older = _long_season_ahead(recent, steps, season=season, long_season=long_season, ahead=ahead)
        older = (older / unit).clamp(-MAX_UNITS, MAX_UNITS) * has_older
        index_ahead = (index[..., age_in_season] / unit).clamp(-MAX_UNITS, MAX_UNITS)
    else:
        last_season = older = index_ahead = zero
        has_older = torch.zeros_like(steps, dtype=torch.bool)
    lags = (
        _to_units(by_age[..., :RUNNING_LAGS] - index[..., age[:RUNNING_LAGS] % season], scale)
        * is_read[..., :RUNNING_LAGS]
    )
    slopes = [
        _slope(levels, steps, span=span, season=season) / unit for span in (season, 3 * season if season > 1 else 4)
    ]
    first_level = (sums.first_season / sums.steps.clamp(min=1, max=season))[..., None]
    slopes.append(torch.where(steps > season, (level - first_level) / (steps - season).clamp(min=1), 0.0) / unit)
    distance = ahead + (season - 1) / 2  # from the middle of the last season
    forecasts = [
        last_season,
        index_ahead,
        older,
        lags[..., :1] + zero,
        lags[..., :3].mean(-1, keepdim=True) + zero,
        *((slope * distance).clamp(-MAX_UNITS, MAX_UNITS) for slope in slopes),
    ]
    scalars = torch.cat(
        [_scalars(by_age, is_read, lags, sums, scale, slopes, index_ahead, season=season), has_older.float()], dim=-1
    )
    features = torch.cat(
        [
            _compress(lags),
            _compress(last_season - index_ahead),
            _compress(index_ahead),
            _compress(older - index_ahead),
            scalars,
        ],
        dim=-1,
    )
    return RunningView(features, torch.stack(forecasts, dim=-1))


def combine_forecasts(
    raw_weights: Float[Tensor, "*axes block forecast"], forecasts: Float[Tensor, "*axes block forecast"]
) -> Float[Tensor, "*axes block"]:
    """Returns the sum of the simple forecasts with weights that depend on the state; zeros give fixed weights.

    Where the season is far larger than its changes, an error of a few percent in the sum of its weights would be larger than the
    error of seasonal naive. So there the seasonal weights are moved until their sum is 1, but for about one unit of error.
    """
    weights = raw_weights + raw_weights.new_tensor(PRIOR_WEIGHTS)
    seasonal, others = weights[..., :SEASONAL_FORECASTS], weights[..., SEASONAL_FORECASTS:]
    size = _square_root(forecasts[..., :SEASONAL_FORECASTS].square().mean(-2, keepdim=True).amax(-1, keepdim=True))
    total = seasonal.sum(-1, keepdim=True)
    tied = torch.where(size > MIN_TIED_SIZE, 1 - ((1 - total) * size).tanh() / size.clamp(min=MIN_TIED_SIZE), total)
    seasonal = seasonal + (tied - total) / SEASONAL_FORECASTS
    return (torch.cat([seasonal, others], dim=-1) * forecasts).sum(-1)


def _to_units(values: Float[Tensor, "*axes step"], scale: RunningScale) -> Float[Tensor, "*axes step"]:
    return ((values - scale.level[..., None]) / scale.unit[..., None]).clamp(-MAX_UNITS, MAX_UNITS)


def _compress(values: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Returns the values, large ones as their square root: a tenth of the time of asinh, for most of the features."""
    return values * (1 + values.abs()).rsqrt()


def _square_root(values: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Returns the square root, with a derivative of 0 at 0; an infinite one would make explanations NaN."""
    positive = values > 0
    return torch.where(positive, values, 1.0).sqrt() * positive


def _log_ratio(first: Float[Tensor, "*axes"], second: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    return (first / second.clamp(min=TINY) + 1e-3).log()


def _levels_by_age(by_age: Float[Tensor, "*axes back"], season: int) -> Float[Tensor, "*axes age"]:
    """Returns the mean of the season that ended at each step, the latest first."""
    return by_age.unfold(-1, season, 1).mean(-1)


def _seasonal_index(
    by_age: Float[Tensor, "*axes back"],
    levels: Float[Tensor, "*axes age"],
    steps: Float[Tensor, "*axes one"],
    *,
    season: int,
) -> Float[Tensor, "*axes phase"]:
    """Returns the mean deviation from the level of the season that ended there, by phase, centred; later seasons weigh more."""
    if season == 1:
        return torch.zeros_like(by_age[..., :1])
    count = RUNNING_CYCLES * season
    age = torch.arange(count, device=by_age.device)
    weight = INDEX_DECAY ** (age // season) * (age + season <= steps)
    deviation = (by_age[..., :count] - levels[..., :count]) * weight
    sums, weights = (part.reshape(*part.shape[:-1], -1, season).sum(-2) for part in (deviation, weight))
    index: Tensor = sums / weights.clamp(min=TINY)
    return index - index.mean(-1, keepdim=True)


def _long_season_ahead(
    recent: Float[Tensor, "*axes back"],
    steps: Float[Tensor, "*axes one"],
    *,
    season: int,
    long_season: int,
    ahead: Int[Tensor, "block"],
) -> tuple[Float[Tensor, "*axes block"], Bool[Tensor, "*axes one"]]:
    """Returns the mean of the values one and more long seasons before the steps ahead, and whether there is any.

    Each is relative to the level at its time; later seasons weigh more.
    """
    total, weights = torch.zeros_like(recent[..., :1]), torch.zeros_like(steps)
    for cycle in range(LONG_CYCLES):
        origin = recent.shape[-1] - 1 - (cycle + 1) * long_season
        level = recent[..., origin - season + 1 : origin + 1].mean(-1, keepdim=True)
        # A block that is longer than the long season repeats it.
        values = recent[..., origin + 1 + (ahead - 1) % long_season]
        weight = LONG_DECAY**cycle * ((cycle + 1) * long_season + season <= steps)
        total, weights = total + weight * (values - level), weights + weight
    return total / weights.clamp(min=TINY), weights > 0


def _slope(
    levels: Float[Tensor, "*axes age"], steps: Float[Tensor, "*axes one"], *, span: int, season: int
) -> Float[Tensor, "*axes one"]:
    """Returns the slope of the level over the last `span` steps, or over fewer where there are no more; 0 within a season."""
    distance = (steps - season).clamp(min=0, max=span)
    earlier = levels.gather(-1, distance.long())
    return (levels[..., :1] - earlier) / distance.clamp(min=1)


def _scalars(
    by_age: Float[Tensor, "*axes back"],
    is_read: Bool[Tensor, "*axes back"],
    lags: Float[Tensor, "*axes lag"],
    sums: Statistics,
    scale: RunningScale,
    slopes: list[Tensor],
    index_ahead: Float[Tensor, "*axes block"],
    *,
    season: int,
) -> Float[Tensor, "*axes scalar"]:
    """Returns numbers that describe the past: its length, its volatility, autocorrelations, its range and its slopes.

    The ratio of variances of long and short changes is 1 for a random walk (Lo and MacKinlay 1988).
    """
    changes = (by_age[..., :-1] - by_age[..., 1:]) * is_read[..., 1:]
    count = (is_read[..., 1:].sum(-1)).clamp(min=1)
    unexplained = (lags[..., :-1] - lags[..., 1:]) * is_read[..., 1:RUNNING_LAGS]
    few = max(season, 6)
    mean_change = sums.change / (sums.steps - 1).clamp(min=1)
    scalars = [
        sums.steps.clamp(min=1).log() - 3,
        (sums.steps / season + 0.1).log() - 1,
        torch.full_like(scale.unit, math.log(season) - 1.5),
        torch.full_like(scale.unit, float(season == 1)),
        _log_ratio(mean_change, scale.unit),
        _log_ratio(changes[..., :few].abs().sum(-1) / (sums.steps - 1).clamp(min=1, max=few), mean_change),
        _log_ratio(changes.abs().sum(-1) / count, mean_change),
        _log_ratio(
            unexplained.abs().sum(-1) / (sums.steps - 1).clamp(min=1, max=RUNNING_LAGS - 1), torch.ones_like(scale.unit)
        ),
        _autocorrelation(changes),
        _autocorrelation(unexplained),
        ((scale.level - sums.low.float()) / scale.unit).asinh(),
        ((sums.high.float() - scale.level) / scale.unit).asinh(),
        sums.missing / sums.steps.clamp(min=1),
        *((season * slope[..., 0]).asinh() for slope in slopes),
        _square_root(index_ahead.square().mean(-1)).log1p(),
    ]
    drift = scale.level - sums.first_season / sums.steps.clamp(min=1, max=season)
    num_long_changes = (sums.steps - LONG_CHANGE * season).clamp(min=1)
    num_seasonal_changes = (sums.steps - season).clamp(min=1)
    long_variance = sums.squared_long_change / num_long_changes / LONG_CHANGE
    seasonal_variance = sums.squared_seasonal_change / num_seasonal_changes
    scalars += [
        sums.change_product / sums.squared_change.clamp(min=TINY),
        sums.seasonal_change_product / sums.squared_seasonal_change.clamp(min=TINY),
        _log_ratio(long_variance, seasonal_variance) * (sums.steps > LONG_CHANGE * season),
        _log_ratio(seasonal_variance, season * sums.squared_change / (sums.steps - 1).clamp(min=1)),
        (drift / _square_root(sums.squared_change).clamp(min=TINY)).asinh(),
        _log_ratio(changes[..., :3].abs().mean(-1), mean_change),
    ]
    assert len(scalars) == NUM_SCALARS - 1
    return torch.stack(scalars, dim=-1).clamp(-MAX_FEATURE, MAX_FEATURE)


def _autocorrelation(values: Float[Tensor, "*axes step"]) -> Float[Tensor, "*axes"]:
    return (values[..., 1:] * values[..., :-1]).sum(-1) / values.square().sum(-1).clamp(min=TINY_SQUARE)

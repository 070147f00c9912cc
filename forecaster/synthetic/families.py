"""The families of series. Each is a function whose docstring is its description, found by name in `PURE_FAMILIES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from forecaster.data.datasets import evaluate_sine_trend
from forecaster.shapes import Float64
from forecaster.synthetic.calendar_effects import draw_calendar_effects
from forecaster.synthetic.noise import draw_innovations, draw_noise
from forecaster.synthetic.observation import (
    add_outliers,
    draw_counts,
    draw_intermittent,
    make_multiplicative,
    remove_values,
    round_values,
    shift_level,
)
from forecaster.synthetic.processes import draw_ets, draw_gaussian_process, draw_sarima, smooth_exponentially
from forecaster.synthetic.sampling import (
    Draw,
    SeriesShape,
    draw_choice,
    draw_kinds,
    draw_log_uniform,
    draw_signs,
    draw_uniform,
)
from forecaster.synthetic.season_priors import find_season_prior
from forecaster.synthetic.seasons import draw_season
from forecaster.synthetic.trends import (
    draw_cycle,
    draw_drift,
    draw_drifting_walk,
    draw_growth_curves,
    draw_linear,
    draw_local_trend,
    draw_mean_reverting,
    draw_piecewise_linear,
    draw_random_walk,
    draw_trend,
)
from forecaster.synthetic.weekly_profiles import draw_weekly_profiles

MAX_LEAD = 6  # steps by which a leading indicator is ahead


@dataclass(frozen=True, eq=False)
class SyntheticBatch:
    """Generated series: their values, and what else is known of them by name.

    Attributes:
        values: NaN marks a missing value.
        covariates: Known in the future too, such as planned promotions.
        channels: Known for the past only, such as a leading indicator.
    """

    values: Float64[np.ndarray, "series step"]
    covariates: Mapping[str, Float64[np.ndarray, "series step"]] = field(default_factory=dict)
    channels: Mapping[str, Float64[np.ndarray, "series step"]] = field(default_factory=dict)


@dataclass(frozen=True)
class SeriesFamily:
    """A named law of series, and the function that draws batches of it."""

    name: str
    description: str
    draw: Callable[[SeriesShape, np.random.Generator], SyntheticBatch]


PURE_FAMILIES: dict[str, SeriesFamily] = {}
"""Every family but the mixture of them."""


def _register(draw: Draw) -> Draw:
    """Registers a function that draws values only."""

    def draw_batch(shape: SeriesShape, rng: np.random.Generator) -> SyntheticBatch:
        return SyntheticBatch(draw(shape, rng))

    _add_family(draw, draw_batch)
    return draw


def _add_family(
    documented: Callable[..., object], draw: Callable[[SeriesShape, np.random.Generator], SyntheticBatch]
) -> None:
    name = documented.__name__
    PURE_FAMILIES[name] = SeriesFamily(name, " ".join((documented.__doc__ or "").split()), draw)


@_register
def white_noise(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Independent values around a constant level, at times with heavy tails or changing volatility."""
    return draw_innovations(shape, rng)


@_register
def random_walk(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Sums of independent changes without drift: no forecast is better than the last value."""
    return draw_random_walk(shape, rng)


@_register
def random_walk_with_drift(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Random walks with a persistent drift, mostly upward; the changes of a third are autocorrelated."""
    return draw_drifting_walk(shape, rng)


@_register
def smoothed_level(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """A wandering level below noise, without drift: simple exponential smoothing is the best forecast."""
    return _draw_smoothed(shape, rng, drift=np.zeros((shape.num_series, 1)))


@_register
def smoothed_level_with_drift(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """A wandering level with a persistent drift, mostly upward: the Theta method is the best forecast."""
    return _draw_smoothed(shape, rng, drift=draw_drift(shape, rng))


@_register
def local_trend(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """A slope that wanders and is damped, and noise: Holt's method with damped trend."""
    return np.asarray(draw_local_trend(shape, rng) + draw_noise(shape, rng))


@_register
def trend(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """A function of time and noise: straight and broken lines, exponential, saturating and logistic growth."""
    curves = draw_kinds((draw_linear, draw_piecewise_linear, draw_growth_curves), (1.0, 1.0, 1.0), shape, rng)
    return np.asarray(curves + draw_noise(shape, rng))


@_register
def mean_reverting(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Autoregressions of order 1: after a shock they return to their mean."""
    return draw_mean_reverting(shape, rng)


@_register
def cycle(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Waves whose period is no season and whose phase wanders, and noise."""
    return draw_cycle(shape, rng) + 0.3 * draw_noise(shape, rng)


@_register
def growing_sine(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Sines with growing amplitude and a fast wave: f(t) = t sin(t) / 3 + 2 sin(5 t), 30 to 90 steps per period of sin(t)."""
    speed = 2 * np.pi / draw_log_uniform(30.0, 90.0, shape.num_series, rng)
    time = speed * shape.steps + draw_uniform(0.0, 4 * np.pi, shape.num_series, rng)
    return np.asarray(draw_log_uniform(0.3, 3.0, shape.num_series, rng) * evaluate_sine_trend(time))


@_register
def seasonal(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """A seasonal pattern and noise; the pattern of half of the series evolves, the amplitude of a quarter drifts."""
    return np.asarray(_draw_seasonal(shape, rng, smallest=1.0) + draw_noise(shape, rng))


@_register
def components(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """The sum of one or two trends of any kind, at times a season, and noise."""
    values = draw_trend(shape, rng) + draw_choice(0.3, shape.num_series, rng) * draw_trend(shape, rng)
    prior = find_season_prior(shape.season)
    values += draw_choice(prior.seasonal_share, shape.num_series, rng) * _draw_seasonal(shape, rng)
    is_quiet = draw_choice(prior.quiet_share, shape.num_series, rng)
    size = np.where(is_quiet, draw_log_uniform(0.005, 0.3, shape.num_series, rng), 1.0)
    return np.asarray(values + size * draw_noise(shape, rng))


@_register
def ets(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Innovations state space models: exponential smoothing with additive errors, damped trend and additive season."""
    return draw_ets(shape, rng)


@_register
def sarima(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Seasonal ARIMA processes with stable roots, integrated up to two times, at times with drift."""
    return draw_sarima(shape, rng)


@_register
def gaussian_process(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Gaussian processes of two length scales, at times with a season, and noise."""
    slow = draw_gaussian_process(shape, rng)
    fast = draw_gaussian_process(shape, rng, shortest=1.0, longest=30.0)
    noise = draw_log_uniform(0.01, 1.0, shape.num_series, rng) * rng.standard_normal((shape.num_series, shape.length))
    has_season = draw_choice(0.5, shape.num_series, rng)
    return np.asarray(slow + 0.3 * fast + noise + has_season * _draw_seasonal(shape, rng, smallest=0.1, largest=3.0))


@_register
def several_seasons(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Two seasons and noise: 24 and 168 steps in hourly series, 7 and 365 in daily ones; otherwise one season."""
    return _draw_seasonal(shape, rng, smallest=1.0, long_season_share=1.0) + 0.3 * draw_noise(shape, rng)


@_register
def weekly_profiles(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Hourly activity whose weekend has a daily profile of its own; level and amplitude wander. Otherwise one season."""
    return draw_weekly_profiles(shape, rng)


@_register
def calendar(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Activity that follows the calendar: weekdays, the year, fixed and movable holidays; months and weeks by their days."""
    drift = 0.02 * draw_drift(shape, rng) * shape.steps
    noise = draw_log_uniform(0.005, 0.1, shape.num_series, rng) * draw_noise(shape, rng)
    return np.asarray(draw_calendar_effects(shape, rng) * np.exp(np.clip(drift, -2, 2) + noise))


@_register
def multiplicative(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Positive series: the exponential of `components`, so that season and noise grow with the level."""
    return make_multiplicative(components(shape, rng), rng)


@_register
def counts(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Poisson and negative binomial counts, whose rate is `multiplicative`; the mean is from 0.2 to 100."""
    return draw_counts(components(shape, rng), rng)


@_register
def intermittent(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Demand that is zero at most steps, such as that of spare parts; how often it occurs changes over time."""
    return draw_intermittent(components(shape, rng), rng)


@_register
def rounded(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """`components`, rounded to a coarse unit."""
    return round_values(components(shape, rng), rng)


@_register
def level_shifts(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """`seasonal` with up to three permanent changes of the level."""
    values = seasonal(shape, rng)
    for _ in range(3):
        values = np.where(draw_choice(0.7, shape.num_series, rng), shift_level(values, rng), values)
    return values


@_register
def outliers(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """`components` with large errors of single values."""
    return add_outliers(components(shape, rng), rng)


@_register
def missing_values(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """`components` without 1 to 20 % of the values and with one longer gap."""
    return remove_values(components(shape, rng), rng)


def promotions(shape: SeriesShape, rng: np.random.Generator) -> SyntheticBatch:
    """Sales with promotions that are known in the future (covariate `promotion`): sales rise, and fall for a while afterwards."""
    num_series, length = shape.num_series, shape.length
    starts = rng.random((num_series, length)) < draw_uniform(0.02, 0.08, num_series, rng)
    duration = rng.integers(1, 5, (num_series, 1))
    active = np.zeros((num_series, length), dtype=bool)
    for lag in range(4):
        active[:, lag:] |= starts[:, : length - lag] & (lag < duration)
    ended = np.zeros((num_series, length))
    ended[:, 1:] = active[:, :-1] & ~active[:, 1:]
    lift, dip = draw_log_uniform(0.2, 1.5, num_series, rng), draw_uniform(0.0, 0.5, num_series, rng)
    base = 0.1 * (_draw_seasonal(shape, rng, largest=3.0) + draw_noise(shape, rng))
    level = draw_log_uniform(5.0, 500.0, num_series, rng)
    values = level * np.exp(np.clip(base, -4, 4) + lift * active - lift * dip * ended)
    return SyntheticBatch(values, covariates={"promotion": active.astype(np.float64)})


def leading_indicator(shape: SeriesShape, rng: np.random.Generator) -> SyntheticBatch:
    """Series that follow another one (channel `indicator`) after one to six steps; the channel is known for the past only."""
    num_series = shape.num_series
    extended = shape._replace(length=shape.length + MAX_LEAD)
    indicator = draw_kinds((draw_mean_reverting, draw_random_walk, draw_cycle), (2.0, 1.0, 1.0), extended, rng)
    indicator = indicator / np.maximum(indicator.std(axis=1, keepdims=True), 1e-9)
    lead = rng.integers(1, MAX_LEAD + 1, (num_series, 1))
    followed = np.take_along_axis(indicator, np.arange(shape.length) + MAX_LEAD - lead, axis=1)
    size = draw_log_uniform(0.5, 5.0, num_series, rng) * draw_signs(0.7, num_series, rng)
    noise = draw_log_uniform(0.05, 0.5, num_series, rng) * draw_noise(shape, rng)
    return SyntheticBatch(size * (followed + noise), channels={"indicator": indicator[:, MAX_LEAD:]})


_add_family(promotions, promotions)
_add_family(leading_indicator, leading_indicator)


def _draw_smoothed(
    shape: SeriesShape, rng: np.random.Generator, *, drift: Float64[np.ndarray, "series 1"]
) -> Float64[np.ndarray, "series step"]:
    weight = rng.beta(*find_season_prior(shape.season).level_weight, (shape.num_series, 1))
    return smooth_exponentially(draw_innovations(shape, rng), weight=weight, drift=weight * drift)


def _draw_seasonal(
    shape: SeriesShape,
    rng: np.random.Generator,
    *,
    smallest: float | None = None,
    largest: float | None = None,
    long_season_share: float = 0.7,
) -> Float64[np.ndarray, "series step"]:
    """Draws seasons whose deviation is log-uniform between two bounds (usual ones at None); zero for series without season."""
    if shape.season == 1:
        return np.zeros((shape.num_series, shape.length))
    season = draw_season(shape, rng, long_season_share=long_season_share)
    usual = find_season_prior(shape.season).season_sizes
    size = draw_log_uniform(smallest or usual[0], largest or usual[1], shape.num_series, rng)
    return np.asarray(size * season)

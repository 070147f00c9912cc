"""Charts that notice a lasting change in forecast errors, and measures of how far inputs are from those of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from forecaster.data.profile import QUANTILE_LEVELS, TrainingProfile
from forecaster.shapes import Float64

SLACK = 0.5  # k, in standard deviations: half of the shift that is to be noticed soonest
CONTROL_LIMIT = 5.0  # h, in standard deviations; raised where many points are looked at
FALSE_ALARM_RATE = 0.05  # that a chart without any change gives an alarm
MAX_DEVIATION = 4.0  # a point further away counts as this far: one wild value is no lasting change
_MOVING_RANGE_RATIO = 2 / math.sqrt(
    math.pi
)  # mean absolute difference of two draws over the standard deviation, of a Gaussian
_OVERSHOOT = 1.166  # by which a discrete sum passes its bound (Siegmund 1985, equation 2.57)

BELOW, ABOVE = "below", "above"


class CusumChart(NamedTuple):
    """A two-sided CUSUM chart.

    Attributes:
        up: The sum that grows while values are above their centre.
        down: The sum that grows while they are below.
        k: The slack.
        h: The bound.
        alarm: The place of the first point beyond the bound; None if there is none.
    """

    upper: Float64[np.ndarray, "point"]
    lower: Float64[np.ndarray, "point"]
    k: float
    h: float
    alarm: int | None

    @property
    def direction(self) -> str | None:
        """Where the values went, if there was an alarm."""
        if self.alarm is None:
            return None
        return ABOVE if self.upper[self.alarm] > self.h else BELOW


def cusum(values: Float64[np.ndarray, "point"], *, k: float = SLACK, h: float = CONTROL_LIMIT) -> CusumChart:
    """The tabular CUSUM of standardised values (Page 1954; Montgomery 2009, equations 9.2 and 9.3).

    up_t = max(0, up_(t-1) + z_t - k) and down_t = max(0, down_(t-1) - z_t - k), from zero; an alarm is a sum above h.

    Args:
        values: Of mean 0 and standard deviation 1 as long as nothing has changed.
        k: The slack, half of the shift that is to be noticed soonest.
        h: The bound.
    """
    up, down = np.zeros(len(values)), np.zeros(len(values))
    high = low = 0.0
    for place, value in enumerate(np.clip(values, -MAX_DEVIATION, MAX_DEVIATION).tolist()):
        high, low = max(0.0, high + value - k), max(0.0, low - value - k)
        up[place], down[place] = high, low
    beyond = np.flatnonzero((up > h) | (down > h))
    return CusumChart(up, down, k, h, int(beyond[0]) if len(beyond) else None)


def average_run_length(h: float, *, k: float = SLACK) -> float:
    """Points until a two-sided chart gives an alarm though nothing has changed, on average.

    Siegmund's approximation (1985; Montgomery 2009, equations 9.6 and 9.7), with the shift at zero.
    """
    reach = h + _OVERSHOOT
    one_sided = (math.exp(2 * k * reach) - 2 * k * reach - 1) / (2 * k**2)
    return one_sided / 2


def control_limit_for(
    num_points: int, *, k: float = SLACK, min_limit: float = CONTROL_LIMIT, false_alarm_rate: float = FALSE_ALARM_RATE
) -> float:
    """The bound with which so many points give a false alarm with no more than a chance; `min_limit` at least."""
    h = min_limit
    while num_points / average_run_length(h, k=k) > false_alarm_rate:
        h += 0.1
    return h


def moving_range_std(values: Float64[np.ndarray, "point"]) -> float:
    """The standard deviation about a level that may have moved, from the mean moving range (Montgomery 2009, section 6.4)."""
    return float(np.abs(np.diff(values)).mean() / _MOVING_RANGE_RATIO) if len(values) > 1 else 0.0


class FeatureShift(NamedTuple):
    """How far a feature of histories is from what it was in training.

    Attributes:
        value: The population stability index; of a feature that hardly varied in training, and of those that carry units, the
            share of windows outside of what was seen.
        bound: What it may be, chance included.
    """

    value: float
    bound: float


PSI_THRESHOLD = 0.25  # of the index: above it is a major change (Siddiqi 2006)
MAX_OUTSIDE_SHARE = 0.5  # of windows: so many may lie outside
_OUTSIDE_FACTOR = 3.0  # times the distance of the outer deciles, beyond them: another unit rather than another year
_UNIT_FEATURES = ("level", "change")
_SIGMAS = 3.0


def measure_shift(name: str, values: Sequence[float], reference: TrainingProfile) -> FeatureShift | None:
    """Compares a feature of some windows, which should not overlap, with training; None without any, or without its quantiles.

    The index is the sum of (p - q) ln(p / q) over the tenths of training. Without any change it is chi squared with nine
    degrees over n m / (n + m) (Yurdakul 2018), of which three standard deviations are allowed for as chance.
    """
    edges = np.array(reference.quantiles.get(name, ()))
    found = np.asarray(values, dtype=np.float64)
    if not len(edges) or not len(found):
        return None
    low, high = edges[0], edges[-1]
    if name in _UNIT_FEATURES:
        far = _OUTSIDE_FACTOR * (high - low)
        return FeatureShift(float(((found < low - far) | (found > high + far)).mean()), MAX_OUTSIDE_SHARE)
    if len(np.unique(edges)) < len(edges):
        return FeatureShift(float(((found < low) | (found > high)).mean()), MAX_OUTSIDE_SHARE)
    bins = len(QUANTILE_LEVELS) + 1
    counts = np.bincount(np.searchsorted(edges, found), minlength=bins)
    live, before = (counts + 0.5) / (len(found) + 0.5 * bins), 1 / bins
    index = float(((live - before) * np.log(live / before)).sum())
    size = 1 / (1 / len(found) + 1 / reference.windows)
    chance = (bins - 1 + _SIGMAS * math.sqrt(2 * (bins - 1))) / size
    return FeatureShift(index, PSI_THRESHOLD + chance)


def measure_shifts(profiles: Sequence[Mapping[str, float]], reference: TrainingProfile) -> dict[str, FeatureShift]:
    """Every feature that can be compared."""
    told = {name: [one[name] for one in profiles if name in one] for name in reference.quantiles}
    found = {name: measure_shift(name, values, reference) for name, values in told.items()}
    return {name: one for name, one in found.items() if one is not None}

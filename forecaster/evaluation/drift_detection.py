"""Control charts that detect a lasting change in forecast errors, and measures of how far inputs are from training data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from forecaster.data.profile import QUANTILE_LEVELS, TrainingProfile
from forecaster.shapes import Float64

SLACK = 0.5  # k, in standard deviations: half of the shift to detect soonest
CONTROL_LIMIT = 5.0  # h, in standard deviations; raised where many points are monitored
FALSE_ALARM_RATE = 0.05  # probability of an alarm on a chart without any change
MAX_DEVIATION = 4.0  # points are clipped to this distance: a single outlier is no lasting change
# For a Gaussian, the mean absolute difference of two draws over the standard deviation.
_MOVING_RANGE_RATIO = 2 / math.sqrt(math.pi)
_OVERSHOOT = 1.166  # of a discrete sum over its bound (Siegmund 1985, equation 2.57)

BELOW, ABOVE = "below", "above"


class CusumChart(NamedTuple):
    """A two-sided CUSUM chart.

    Attributes:
        upper: The sum that grows while values are above their centre.
        lower: The sum that grows while they are below.
        k: The slack.
        h: The control limit.
        alarm: The index of the first point beyond the limit; None if there is none.
    """

    upper: Float64[np.ndarray, "point"]
    lower: Float64[np.ndarray, "point"]
    k: float
    h: float
    alarm: int | None

    @property
    def direction(self) -> str | None:
        """The direction of the shift, if there was an alarm."""
        if self.alarm is None:
            return None
        return ABOVE if self.upper[self.alarm] > self.h else BELOW


def cusum(values: Float64[np.ndarray, "point"], *, k: float = SLACK, h: float = CONTROL_LIMIT) -> CusumChart:
    """Computes the tabular CUSUM of standardised values (Page 1954; Montgomery 2009, equations 9.2 and 9.3).

    upper_t = max(0, upper_(t-1) + z_t - k) and lower_t = max(0, lower_(t-1) - z_t - k), from zero; a sum above h is an alarm.

    Args:
        values: Of mean 0 and standard deviation 1 as long as nothing has changed.
        k: The slack, half of the shift to detect soonest.
        h: The control limit.
    """
    upper, lower = np.zeros(len(values)), np.zeros(len(values))
    high = low = 0.0
    for index, value in enumerate(np.clip(values, -MAX_DEVIATION, MAX_DEVIATION).tolist()):
        high, low = max(0.0, high + value - k), max(0.0, low - value - k)
        upper[index], lower[index] = high, low
    beyond = np.flatnonzero((upper > h) | (lower > h))
    return CusumChart(upper, lower, k, h, int(beyond[0]) if len(beyond) else None)


def average_run_length(h: float, *, k: float = SLACK) -> float:
    """Returns the average number of points until a two-sided chart gives a false alarm.

    Siegmund's approximation (1985; Montgomery 2009, equations 9.6 and 9.7), with the shift at zero.
    """
    reach = h + _OVERSHOOT
    one_sided = (math.exp(2 * k * reach) - 2 * k * reach - 1) / (2 * k**2)
    return one_sided / 2


def control_limit_for(
    num_points: int, *, k: float = SLACK, min_limit: float = CONTROL_LIMIT, false_alarm_rate: float = FALSE_ALARM_RATE
) -> float:
    """Returns the limit at which `num_points` points give a false alarm with at most the given rate; at least `min_limit`."""
    h = min_limit
    while num_points / average_run_length(h, k=k) > false_alarm_rate:
        h += 0.1
    return h


def moving_range_std(values: Float64[np.ndarray, "point"]) -> float:
    """Estimates the standard deviation around a drifting level by the mean moving range (Montgomery 2009, section 6.4)."""
    return float(np.abs(np.diff(values)).mean() / _MOVING_RANGE_RATIO) if len(values) > 1 else 0.0


class FeatureShift(NamedTuple):
    """How far a feature of histories is from its distribution in training.

    Attributes:
        value: The population stability index. For a feature that hardly varied in training, or one in the units of the data,
            the share of windows outside the range seen in training.
        bound: The largest value without an alarm, with an allowance for chance.
    """

    value: float
    bound: float


PSI_THRESHOLD = 0.25  # an index above this is a major change (Siddiqi 2006)
MAX_OUTSIDE_SHARE = 0.5  # share of windows that may lie outside the range of training
_OUTSIDE_FACTOR = 3.0  # times the distance of the outer deciles, beyond them: a change of unit rather than of level
_UNIT_FEATURES = ("level", "change")
_SIGMAS = 3.0


def measure_shift(name: str, values: Sequence[float], reference: TrainingProfile) -> FeatureShift | None:
    """Compares a feature of some windows, which should not overlap, with training.

    The index is the sum of (p - q) ln(p / q) over the deciles of training. Without any change it is chi squared with nine
    degrees over n m / (n + m) (Yurdakul 2018), of which three standard deviations are allowed for as chance.

    Returns:
        None without any values, or where the profile has no quantiles of the feature.
    """
    edges = np.array(reference.quantiles.get(name, ()))
    observed = np.asarray(values, dtype=np.float64)
    if not len(edges) or not len(observed):
        return None
    low, high = edges[0], edges[-1]
    if name in _UNIT_FEATURES:
        margin = _OUTSIDE_FACTOR * (high - low)
        return FeatureShift(float(((observed < low - margin) | (observed > high + margin)).mean()), MAX_OUTSIDE_SHARE)
    if len(np.unique(edges)) < len(edges):
        return FeatureShift(float(((observed < low) | (observed > high)).mean()), MAX_OUTSIDE_SHARE)
    bins = len(QUANTILE_LEVELS) + 1
    counts = np.bincount(np.searchsorted(edges, observed), minlength=bins)
    share, expected = (counts + 0.5) / (len(observed) + 0.5 * bins), 1 / bins
    index = float(((share - expected) * np.log(share / expected)).sum())
    size = 1 / (1 / len(observed) + 1 / reference.windows)
    chance = (bins - 1 + _SIGMAS * math.sqrt(2 * (bins - 1))) / size
    return FeatureShift(index, PSI_THRESHOLD + chance)


def measure_shifts(profiles: Sequence[Mapping[str, float]], reference: TrainingProfile) -> dict[str, FeatureShift]:
    """Compares every feature that both the profiles and the reference have."""
    values_by_name = {name: [profile[name] for profile in profiles if name in profile] for name in reference.quantiles}
    shifts = {name: measure_shift(name, values, reference) for name, values in values_by_name.items()}
    return {name: shift for name, shift in shifts.items() if shift is not None}

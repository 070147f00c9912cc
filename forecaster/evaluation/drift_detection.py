"""Charts that notice a lasting change in forecast errors, and measures of how far inputs are from those of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from forecaster.data.profile import SHARES, Learned
from forecaster.shapes import Float64

SLACK = 0.5  # k, in standard deviations: half of the shift that is to be noticed soonest
BOUND = 5.0  # h, in standard deviations; raised where many points are looked at
CHANCE = 0.05  # that a chart without any change gives an alarm
LARGEST = 4.0  # a point further away counts as this far: one wild value is no lasting change
_RANGE = 2 / math.sqrt(math.pi)  # mean absolute difference of two draws over the standard deviation, of a Gaussian
_OVERSHOOT = 1.166  # by which a discrete sum passes its bound (Siegmund 1985, equation 2.57)

BELOW, ABOVE = "below", "above"


class Chart(NamedTuple):
    """A two-sided CUSUM chart.

    Attributes:
        up: The sum that grows while values are above their centre.
        down: The sum that grows while they are below.
        k: The slack.
        h: The bound.
        alarm: The place of the first point beyond the bound; None if there is none.
    """

    up: Float64[np.ndarray, "point"]
    down: Float64[np.ndarray, "point"]
    k: float
    h: float
    alarm: int | None

    @property
    def side(self) -> str | None:
        """Where the values went, if there was an alarm."""
        if self.alarm is None:
            return None
        return ABOVE if self.up[self.alarm] > self.h else BELOW


def cusum(values: Float64[np.ndarray, "point"], *, k: float = SLACK, h: float = BOUND) -> Chart:
    """The tabular CUSUM of standardised values (Page 1954; Montgomery 2009, equations 9.2 and 9.3).

    up_t = max(0, up_(t-1) + z_t - k) and down_t = max(0, down_(t-1) - z_t - k), from zero; an alarm is a sum above h.

    Args:
        values: Of mean 0 and standard deviation 1 as long as nothing has changed.
        k: The slack, half of the shift that is to be noticed soonest.
        h: The bound.
    """
    up, down = np.zeros(len(values)), np.zeros(len(values))
    high = low = 0.0
    for place, value in enumerate(np.clip(values, -LARGEST, LARGEST).tolist()):
        high, low = max(0.0, high + value - k), max(0.0, low - value - k)
        up[place], down[place] = high, low
    beyond = np.flatnonzero((up > h) | (down > h))
    return Chart(up, down, k, h, int(beyond[0]) if len(beyond) else None)


def run_length(h: float, *, k: float = SLACK) -> float:
    """Points until a two-sided chart gives an alarm though nothing has changed, on average.

    Siegmund's approximation (1985; Montgomery 2009, equations 9.6 and 9.7), with the shift at zero.
    """
    reach = h + _OVERSHOOT
    one_sided = (math.exp(2 * k * reach) - 2 * k * reach - 1) / (2 * k**2)
    return one_sided / 2


def bound_for(points: int, *, k: float = SLACK, least: float = BOUND, chance: float = CHANCE) -> float:
    """The bound with which so many points give a false alarm with no more than a chance; `least` at least."""
    h = least
    while points / run_length(h, k=k) > chance:
        h += 0.1
    return h


def residual_spread(values: Float64[np.ndarray, "point"]) -> float:
    """The standard deviation about a level that may have moved, from the mean moving range (Montgomery 2009, section 6.4)."""
    return float(np.abs(np.diff(values)).mean() / _RANGE) if len(values) > 1 else 0.0


class Shifted(NamedTuple):
    """How far a feature of histories is from what it was in training.

    Attributes:
        value: The population stability index; of a feature that hardly varied in training, and of those that carry units, the
            share of windows outside of what was seen.
        bound: What it may be, chance included.
    """

    value: float
    bound: float


STABLE = 0.25  # of the index: above it is a major change (Siddiqi 2006)
OUTSIDE = 0.5  # of windows: so many may lie outside
_WIDE = 3.0  # times the distance of the outer deciles, beyond them: another unit rather than another year
_UNITS = ("level", "change")
_SIGMAS = 3.0


def shifted(name: str, values: Sequence[float], learned: Learned) -> Shifted | None:
    """Compares a feature of some windows, which should not overlap, with training; None without any, or without its quantiles.

    The index is the sum of (p - q) ln(p / q) over the tenths of training. Without any change it is chi squared with nine
    degrees over n m / (n + m) (Yurdakul 2018), of which three standard deviations are allowed for as chance.
    """
    edges = np.array(learned.quantiles.get(name, ()))
    found = np.asarray(values, dtype=np.float64)
    if not len(edges) or not len(found):
        return None
    low, high = edges[0], edges[-1]
    if name in _UNITS:
        far = _WIDE * (high - low)
        return Shifted(float(((found < low - far) | (found > high + far)).mean()), OUTSIDE)
    if len(np.unique(edges)) < len(edges):
        return Shifted(float(((found < low) | (found > high)).mean()), OUTSIDE)
    bins = len(SHARES) + 1
    counts = np.bincount(np.searchsorted(edges, found), minlength=bins)
    live, before = (counts + 0.5) / (len(found) + 0.5 * bins), 1 / bins
    index = float(((live - before) * np.log(live / before)).sum())
    size = 1 / (1 / len(found) + 1 / learned.windows)
    chance = (bins - 1 + _SIGMAS * math.sqrt(2 * (bins - 1))) / size
    return Shifted(index, STABLE + chance)


def all_shifted(profiles: Sequence[Mapping[str, float]], learned: Learned) -> dict[str, Shifted]:
    """Every feature that can be compared."""
    told = {name: [one[name] for one in profiles if name in one] for name in learned.quantiles}
    found = {name: shifted(name, values, learned) for name, values in told.items()}
    return {name: one for name, one in found.items() if one is not None}

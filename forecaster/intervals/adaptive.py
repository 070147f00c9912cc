"""Adaptive conformal inference: shifts of calibrated quantiles that keep their coverage as late actuals arrive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from forecaster.shapes import Float64


@dataclass(frozen=True)
class AdaptiveState:
    """The shifts of quantiles that actuals since the calibration have led to; each level adapts independently.

    Attributes:
        rate: How far one update moves a quantile at most, in spreads.
        shifts: Pairs of level and shift in spreads, in order of level.
    """

    rate: float = 0.1
    shifts: tuple[tuple[float, float], ...] = ()

    def shifts_at(self, levels: Sequence[float]) -> Float64[np.ndarray, "level"]:
        """Returns the shift of any levels: interpolated between the tracked levels, constant beyond them."""
        if not self.shifts:
            return np.zeros(len(levels))
        tracked_levels, shifts = zip(*self.shifts, strict=True)
        return np.asarray(np.interp(normal_quantiles(levels), normal_quantiles(tracked_levels), shifts))


def update_adaptive_state(adaptive_state: AdaptiveState, level: float, covered: bool | float) -> AdaptiveState:
    """Updates the shift of a level with one observed actual, at whatever delay it arrives.

    Quantile tracking (Angelopoulos et al. 2023, conformal PID control), the form of adaptive conformal inference (Gibbs and
    Candes 2021) that moves the quantile rather than its level: a level cannot exceed 1, so it could not follow the data beyond
    the largest residual of the calibration. After T updates the share of covered actuals differs from `level` by exactly
    |shift| / (rate T), whatever the data and their delay; and a shift grows only while actuals are missed.

    Args:
        adaptive_state: The state before the update.
        level: The level of the quantile.
        covered: Whether the actual was not above the quantile. For actuals that arrive together (those of all series at one
            timestamp, say) it is the covered share, and they count as one update.
    """
    shifts = dict(adaptive_state.shifts)
    shifts[level] = shifts.get(level, 0.0) + adaptive_state.rate * (level - float(covered))
    return replace(adaptive_state, shifts=tuple(sorted(shifts.items())))


def normal_quantiles(levels: Sequence[float] | np.ndarray) -> Float64[np.ndarray, "level"]:
    """Returns quantiles of the standard normal distribution."""
    return np.array([NormalDist().inv_cdf(level) for level in levels])

"""What late actuals teach about calibrated quantiles: a shift of each, so that the share of covered actuals stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from forecaster.shapes import Float64


@dataclass(frozen=True)
class AdaptiveState:
    """What late actuals have taught about quantiles since their calibration; each level learns on its own.

    Attributes:
        rate: How far one miss moves a quantile, in spreads.
        shifts: (level, shift in spreads), by level.
    """

    rate: float = 0.1
    shifts: tuple[tuple[float, float], ...] = ()

    def shifts_at(self, levels: Sequence[float]) -> Float64[np.ndarray, "level"]:
        """The shift of any levels: interpolated between the tracked ones, held beyond them."""
        if not self.shifts:
            return np.zeros(len(levels))
        tracked, shifts = zip(*self.shifts, strict=True)
        return np.asarray(np.interp(normal_quantiles(levels), normal_quantiles(tracked), shifts))


def update_adaptive_state(adaptive_state: AdaptiveState, level: float, covered: bool | float) -> AdaptiveState:
    """One actual has come, however late: its quantile at `level` covered it (the actual was not above it) or did not.

    Of actuals that come together, those of all series at one stamp say, `covered` is the share: they are one update.

    Quantile tracking (Angelopoulos et al. 2023, conformal PID control), the form of adaptive conformal inference (Gibbs and
    Candes 2021) that moves the quantile and not its level: a level cannot pass 1, so it could not follow the data further
    than the largest residual of the calibration. After T updates the share of covered actuals is off `level` by exactly
    |shift| / (rate T), whatever the data and however late they came; and a shift only grows while actuals are missed.
    """
    shifts = dict(adaptive_state.shifts)
    shifts[level] = shifts.get(level, 0.0) + adaptive_state.rate * (level - float(covered))
    return replace(adaptive_state, shifts=tuple(sorted(shifts.items())))


def normal_quantiles(levels: Sequence[float] | np.ndarray) -> Float64[np.ndarray, "level"]:
    """Quantiles of the standard normal distribution."""
    return np.array([NormalDist().inv_cdf(level) for level in levels])

"""The unit whose state follows a signal, found by its correlation, against what shifted signals reach by chance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from forecaster.shapes import Float, Float64


class UnitMatch(NamedTuple):
    """The unit that follows a signal most closely.

    Attributes:
        unit: Its index.
        correlation: Its correlation with the signal; the sign is that of the unit.
        chance: The absolute correlation that the best of all units exceeds by chance with a probability of 5 %.
        p_value: The share of shifted signals that some unit follows at least as closely.
    """

    unit: int
    correlation: float
    chance: float
    p_value: float


def find_unit(
    activations: Float[np.ndarray, "step unit"],
    signal: Float64[np.ndarray, "step"],
    *,
    seed: int,
    permutations: int = 999,
) -> UnitMatch:
    """Finds the unit with the largest absolute correlation with a signal.

    The baseline are circular shifts of the signal by at least a tenth of its length, which keep its autocorrelation. Each is
    compared with the best unit, so that the number of units is taken into account.
    """
    centered = np.asarray(activations, dtype=np.float64) - activations.mean(axis=0)
    norms = np.linalg.norm(centered, axis=0)
    centered = centered[:, norms > 0] / norms[norms > 0]
    rng, steps = np.random.default_rng(seed), len(signal)
    nearest = max(1, steps // 10)
    shifts = [0, *rng.integers(nearest, steps - nearest + 1, size=permutations).tolist()]
    reference = (signal - signal.mean()) / np.linalg.norm(signal - signal.mean())
    correlations = np.stack([np.roll(reference, shift) for shift in shifts]) @ centered
    best = np.abs(correlations).max(axis=1)
    found = int(np.abs(correlations[0]).argmax())
    return UnitMatch(
        unit=int(np.flatnonzero(norms > 0)[found]),
        correlation=float(correlations[0, found]),
        chance=float(np.quantile(best[1:], 0.95)),
        p_value=float((best >= best[0]).mean()),
    )

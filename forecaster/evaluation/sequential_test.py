"""Whether one forecaster is better than another, asked again whenever something new was observed, without a wrong yes.

A test that is looked at every night and stopped when it pleases says yes too often. This one bets: a capital of one is put on
"the challenger loses less" before each observation, and grows or shrinks with what comes. Where the challenger is no better,
the capital is a supermartingale, and the chance that it ever reaches 1 / alpha is at most alpha (Ville's inequality), however
often one looks. Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting"; for forecasts Henzi
and Ziegel 2022, "Valid sequential inference on probability forecast performance".
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from forecaster.shapes import Float64, Int

GAIN_BOUND = 0.1
_MAX_BET = 0.9  # of the capital that the worst observation may take away
_PRIOR_VARIANCE = (
    0.25  # variance of the first observation, as a share of the squared bound; it is forgotten as others come
)


class SequentialTestResult(NamedTuple):
    """How far two forecasters are apart after some observations.

    Attributes:
        observed: Origins that were compared.
        gain: The challenger's errors are smaller than the champion's by this share, over all origins; NaN without any.
        better: The largest capital that bets on its being better have reached: 20 is a yes at 5 %.
        worse: The same for its being worse.
    """

    observed: int
    gain: float
    better: float
    worse: float


def sequential_test(
    champion_errors: Float64[np.ndarray, "origin"],
    challenger_errors: Float64[np.ndarray, "origin"],
    *,
    margin: float = 0.0,
    gain_bound: float = GAIN_BOUND,
) -> SequentialTestResult:
    """What errors at successive origins say of two forecasters; the origins have to be those of `select_non_overlapping`.

    The relative gain of an origin is (a - b) / max(a, b) of the champion's error a and the challenger's b, cut at the bound on
    both sides. The null hypothesis is that its mean, given all that was known at the origin, is at most the margin. What is
    cut does not count: a challenger that is a little better mostly and terrible at times may pass, so whoever acts on this
    looks at `gain`, which is not cut, as well.

    Args:
        champion: The error at each origin, of all series and steps together, in one unit; NaN is left out.
        challenger: The same of the challenger.
        margin: The share that "better" has to go beyond, and that "worse" has to.
        bound: Where gains are cut, the margin apart. The smaller, the bolder bets can be on small differences.
    """
    there = np.isfinite(champion_errors) & np.isfinite(challenger_errors)
    ours, theirs = challenger_errors[there], champion_errors[there]
    larger = np.maximum(ours, theirs)
    gains = np.divide(theirs - ours, larger, out=np.zeros_like(larger), where=larger > 0)
    gain = float(1 - ours.sum() / theirs.sum()) if theirs.sum() > 0 else math.nan
    better, worse = (np.clip((side * gains - margin) / gain_bound, -1, 1) for side in (1, -1))
    return SequentialTestResult(
        len(gains), gain, float(betting_capital(better).max()), float(betting_capital(worse).max())
    )


def betting_capital(observations: Float64[np.ndarray, "_"]) -> Float64[np.ndarray, "_"]:
    """The capital before the first observation, which is 1, and after each, when it is bet on their mean's being above zero.

    The share that is bet is what would have grown fastest so far, mean / (variance + mean²), as far as it is known before the
    observation, and never so much that everything could be lost (aGRAPA in Waudby-Smith and Ramdas 2024, section B.3).

    Args:
        observations: Each between -1 and 1, in the order in which they came.
    """
    count = np.arange(1, len(observations) + 1)
    means = np.concatenate([[0.0], np.cumsum(observations) / (count + 1)])[:-1]
    squares = np.concatenate([[_PRIOR_VARIANCE], (_PRIOR_VARIANCE + np.cumsum(observations**2)) / (count + 1)])[:-1]
    bets = np.clip(means / squares, 0.0, _MAX_BET)
    return np.concatenate([[1.0], np.exp(np.cumsum(np.log1p(bets * observations)))])


def select_non_overlapping(
    origins: Int[np.ndarray, "origin"], ends: Int[np.ndarray, "origin"]
) -> Int[np.ndarray, "kept"]:
    """Which of some origins to compare: the first, and each that is not before the end of the forecasts of the last one taken.

    Forecasts of closer origins are about the same steps, and their errors would be counted twice as if they were news.

    Args:
        origins: Stamps of the last known values, ascending, as numbers.
        endings: Stamps of the last steps that are foretold from each.
    """
    kept: list[int] = []
    for place, origin in enumerate(origins):
        if not kept or origin >= ends[kept[-1]]:
            kept.append(place)
    return np.array(kept, dtype=np.int64)

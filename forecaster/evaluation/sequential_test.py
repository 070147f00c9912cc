"""Sequential test of whether one forecaster is better than another: valid at any time, as observations arrive.

A fixed-sample test that is repeated every night and stopped at will rejects too often. This one bets: a capital of one is put
on "the challenger's loss is smaller" before each observation, and grows or shrinks with it. Where the challenger is no better,
the capital is a supermartingale, and the probability that it ever reaches 1 / alpha is at most alpha (Ville's inequality),
however often it is checked. Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting"; for
forecasts Henzi and Ziegel 2022, "Valid sequential inference on probability forecast performance".
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from forecaster.shapes import Float64, Int

GAIN_BOUND = 0.1
_MAX_BET = 0.9  # largest share of the capital that one observation can cost
# Variance of the first observation, as a share of the squared bound; its weight falls with every observation.
_PRIOR_VARIANCE = 0.25


class SequentialTestResult(NamedTuple):
    """The difference of two forecasters after some observations.

    Attributes:
        observed: Number of origins compared.
        gain: The share by which the challenger's errors are smaller than the champion's, over all origins; NaN without any.
        better: The largest capital of the bets on the challenger being better: 20 rejects "no better" at 5 %.
        worse: The same for the challenger being worse.
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
    """Compares two forecasters by their errors at successive origins, which must be those of `select_non_overlapping`.

    The relative gain of an origin is (a - b) / max(a, b) of the champion's error a and the challenger's b, clipped to the bound
    on both sides. The null hypothesis is that its mean, given all that was observed at the origin, is at most the margin. Clipped
    parts do not count: a challenger that is mostly a little better and sometimes much worse may pass, so a decision should
    consider `gain` as well, which is not clipped.

    Args:
        champion_errors: The error at each origin, of all series and steps together, in one unit; NaN is left out.
        challenger_errors: The same of the challenger.
        margin: The share that "better" and "worse" have to exceed.
        gain_bound: Where gains are clipped, apart from the margin. A smaller bound allows larger bets on small differences.
    """
    valid = np.isfinite(champion_errors) & np.isfinite(challenger_errors)
    challenger, champion = challenger_errors[valid], champion_errors[valid]
    larger = np.maximum(challenger, champion)
    gains = np.divide(champion - challenger, larger, out=np.zeros_like(larger), where=larger > 0)
    gain = float(1 - challenger.sum() / champion.sum()) if champion.sum() > 0 else math.nan
    better, worse = (np.clip((side * gains - margin) / gain_bound, -1, 1) for side in (1, -1))
    return SequentialTestResult(
        len(gains), gain, float(betting_capital(better).max()), float(betting_capital(worse).max())
    )


def betting_capital(observations: Float64[np.ndarray, "_"]) -> Float64[np.ndarray, "_"]:
    """Returns the capital before the first observation, which is 1, and after each, betting on a mean above zero.

    The share of the bet is the one that would have grown fastest so far, mean / (variance + mean²), from the observations before
    it, and is limited so that the capital can never be lost entirely (aGRAPA in Waudby-Smith and Ramdas 2024, section B.3).

    Args:
        observations: Each between -1 and 1, in time order.
    """
    count = np.arange(1, len(observations) + 1)
    means = np.concatenate([[0.0], np.cumsum(observations) / (count + 1)])[:-1]
    squares = np.concatenate([[_PRIOR_VARIANCE], (_PRIOR_VARIANCE + np.cumsum(observations**2)) / (count + 1)])[:-1]
    bets = np.clip(means / squares, 0.0, _MAX_BET)
    return np.concatenate([[1.0], np.exp(np.cumsum(np.log1p(bets * observations)))])


def select_non_overlapping(
    origins: Int[np.ndarray, "origin"], ends: Int[np.ndarray, "origin"]
) -> Int[np.ndarray, "selected"]:
    """Selects the first origin, and then each one that is not before the end of the forecasts of the last selected one.

    Forecasts of closer origins are about the same steps, and their errors would be counted twice as independent.

    Args:
        origins: Timestamps of the last observed steps, ascending, as numbers.
        ends: Timestamps of the last forecast steps from each origin.
    """
    selected: list[int] = []
    for index, origin in enumerate(origins):
        if not selected or origin >= ends[selected[-1]]:
            selected.append(index)
    return np.array(selected, dtype=np.int64)

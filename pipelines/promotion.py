"""The gate: a pure decision on raw errors of the same cutoffs; and what it takes to put a version in front of users."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from forecaster.evaluation import baselines
from forecaster.evaluation.backtest import Backtest
from forecaster.metrics import nanmean
from forecaster.registry import CHALLENGER, CHAMPION
from forecaster.shapes import Float64

SEASONAL_NAIVE = baselines.SEASONAL_NAIVE


class Verdict(NamedTuple):
    """Whether to promote, and every reason for or against."""

    promote: bool
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'promote' if self.promote else 'keep what there is'}: {'; '.join(self.reasons)}"


def judge(result: Backtest) -> Verdict:
    """Promotes a challenger that answered everything, is not worse than seasonal naive, and beats the champion if any.

    The measure is the mean over series of their scaled absolute errors (MASE) on the backtest's raw forecasts; where no
    series has a scale (all constant or too short), plain absolute errors.
    """
    answered = np.isfinite(result.forecasts[CHALLENGER])
    if not answered.all():
        return Verdict(
            False, (f"{(~answered).sum()} of {answered.size} values of the challenger are missing or not finite",)
        )
    if not np.isfinite(result.actual).any():
        return Verdict(False, ("the backtest has no observed value to judge by",))
    error = {name: float(nanmean(_errors(result, name))) for name in result.forecasts}
    ours, naive = error[CHALLENGER], error[SEASONAL_NAIVE]
    rivals = [_compare(ours, naive, "seasonal naive", ours <= naive)]
    if CHAMPION in error and not np.isfinite(result.forecasts[CHAMPION]).any():
        rivals.append((True, "the champion answers none of these series"))
    elif CHAMPION in error:
        rivals.append(_compare(ours, error[CHAMPION], "the champion", ours < error[CHAMPION]))
    return Verdict(all(good for good, _ in rivals), tuple(reason for _, reason in rivals))


def _errors(result: Backtest, name: str) -> Float64[np.ndarray, "series"]:
    scaled = result.scaled_errors(name)
    errors = scaled if np.isfinite(scaled).any() else np.abs(result.actual - result.forecasts[name])
    return nanmean(errors.reshape(len(errors), -1), axis=1)


def _compare(ours: float, theirs: float, rival: str, good: bool) -> tuple[bool, str]:
    return good, f"MASE {ours:.4f} {'beats' if good else 'does not beat'} {rival}'s {theirs:.4f}"

"""Comparisons in pairs by the policy of the gate, and the comparison of a challenger with the pretrained network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.baselines import ZERO_SHOT, format_baseline
from forecaster.evaluation.bootstrap import PairedGain, WindowErrors, choose_block_length, compute_paired_gain
from forecaster.evaluation.one_standard_error import MAX_EXCESS
from forecaster.metrics import nanmean
from pipelines.promotion.policy import Policy

_ADVICE = (
    "Train with a preset (no --config, no further columns), which considers the pretrained network as a variant; or serve that "
    "network as it is (forecaster serve base)"
)


class ZeroShotComparison(NamedTuple):
    """A challenger beside the pretrained network on the same windows.

    Attributes:
        error: The challenger's mean error.
        reference_error: That of the pretrained network.
        p: Probability of such a difference, or a larger one, for a challenger that is no worse; NaN where it is not known.
        metric: The name of the error.
    """

    error: float
    reference_error: float
    p: float
    metric: str = "MASE"

    @property
    def excess(self) -> float:
        """By what share the challenger's error is larger; negative if it is smaller, NaN if one of them was not measured."""
        if math.isnan(self.error) or math.isnan(self.reference_error):
            return math.nan
        if self.reference_error == 0:
            return math.inf if self.error > 0 else 0.0
        return self.error / self.reference_error - 1

    def judge(self, policy: Policy) -> bool | None:
        """Whether the challenger is not clearly worse; None if that is not measured, or not judged by the policy.

        It is clearly worse if its error is larger by more than `naive_room` and by more than chance, or by more than half: one
        diverged forecast makes both the error and its uncertainty large.
        """
        if not policy.zero_shot or math.isnan(self.excess):
            return None
        return not (self._is_clear(policy) and self.excess > policy.naive_room)

    def _is_clear(self, policy: Policy) -> bool:
        return self.p <= 1 - policy.confidence or self.excess > MAX_EXCESS

    def describe(self, policy: Policy) -> str:
        """Describes the comparison and its judgement in a sentence, and what to do if the challenger does not pass."""
        if math.isnan(self.excess):
            return f"there are no errors to compare with those of {format_baseline(ZERO_SHOT)}"
        passed = self.judge(policy)
        if passed is None:
            verb = "is not judged against"
        elif self.excess < 0:
            verb = "beats"
        elif not self._is_clear(policy):
            verb = "is not clearly worse than"
        else:
            verb = "is, within the room of the policy, worse than" if passed else "is clearly worse than"
        chance = "" if math.isnan(self.p) else f", p = {self.p:.2g}"
        return (
            f"{self.metric} {self.error:.4f} {verb} {format_baseline(ZERO_SHOT)}'s {self.reference_error:.4f} "
            f"({100 * abs(self.excess):.1f} % {'smaller' if self.excess < 0 else 'larger'}{chance})"
            + (f". {_ADVICE}" if passed is False else "")
        )


def compare_errors(
    candidate_errors: WindowErrors, reference_errors: WindowErrors, result: Backtest, policy: Policy
) -> PairedGain:
    """Compares the errors of two forecasters of a backtest in pairs, with the confidence and the seed of the policy."""
    windows = result.actual.shape[1]
    return compute_paired_gain(
        candidate_errors,
        reference_errors,
        block_length=choose_block_length(windows=windows, horizon=result.horizon, stride=result.stride),
        min_units=policy.least,
        confidence=policy.confidence,
        seed=policy.seed,
    )


def compare_zero_shot(
    errors: WindowErrors, reference_errors: WindowErrors | None, result: Backtest, policy: Policy
) -> ZeroShotComparison | None:
    """Compares the errors of a challenger with those of the pretrained network; None if the backtest does not have it."""
    if reference_errors is None:
        return None
    if not np.isfinite(errors - reference_errors).any():
        return ZeroShotComparison(math.nan, math.nan, math.nan)
    gain = compare_errors(reference_errors, errors, result, policy)
    return ZeroShotComparison(_compute_mean(errors), _compute_mean(reference_errors), gain.p)


def compare_reported_zero_shot(
    scores: Mapping[str, float | None], reference_scores: Mapping[str, float | None] | None
) -> ZeroShotComparison | None:
    """Compares reported scores: MASE, or the mean absolute error (MAE) if there is none; None without a score of both."""
    for metric, measure in (("MASE", "mase"), ("MAE", "mae")):
        error, reference_error = scores[measure], (reference_scores or {}).get(measure)
        if error is not None and reference_error is not None:
            return ZeroShotComparison(error, reference_error, math.nan, metric)
    return None


def _compute_mean(errors: WindowErrors) -> float:
    return float(nanmean(nanmean(errors, axis=1)))

"""Simultaneous bands: how far intervals must be widened to hold whole paths, rather than each step by itself.

The score of a path is the largest absolute normal score of its steps under the calibrated quantiles. The band that holds a path
with a stated probability lies between the quantiles whose scores are the quantile of these scores: split conformal prediction
of a maximum (Diquigiovanni et al. 2022, modulation bands).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from forecaster.intervals.adaptive import normal_quantiles
from forecaster.shapes import Float64
from forecaster.spec import StepCount

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
"""The probabilities in a table, as those of intervals; others are interpolated or extrapolated in the normal quantile."""

MAX_STORED_STEPS = 32
MIN_PATHS = 20  # with fewer there is no table

_Score = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class JointTable(BaseModel):
    """The scores that the share of paths of each length does not exceed.

    Attributes:
        steps: Lengths of paths, ascending.
        scores: By length and share, in the order of `SHARES`; neither decreases.
        paths: The number of paths that the table is computed from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    steps: tuple[StepCount, ...] = Field(min_length=1, max_length=MAX_STORED_STEPS)
    scores: tuple[tuple[_Score, ...], ...]
    paths: int = Field(ge=1)

    def widen(self, level: float, *, horizon: int) -> float:
        """Returns the level of the quantile that bounds whole paths where `level` bounds single steps; the median stays.

        Beyond the longest stored path, the score grows with the logarithm of its length as between the last two.
        """
        if level == 0.5:
            return level
        share, side = abs(2 * level - 1), 1 if level > 0.5 else -1
        score = NormalDist().inv_cdf(max(level, 1 - level))
        row = np.array([self._score_at(horizon, column) for column in range(len(SHARES))])
        knots = normal_quantiles([(1 + known) / 2 for known in SHARES])
        found = float(np.interp(score, knots, row))
        if share > SHARES[-1]:
            found = float(row[-1] * score / knots[-1])
        elif share < SHARES[0]:
            found = float(row[0] * score / knots[0])
        widened = NormalDist().cdf(max(found, score))
        widened = min(widened, 1 - 1e-12)
        return widened if side > 0 else 1 - widened

    def _score_at(self, horizon: int, column: int) -> float:
        lengths, scores = np.log(np.array(self.steps)), np.array([row[column] for row in self.scores])
        if horizon <= self.steps[-1] or len(self.steps) == 1:
            return float(np.interp(np.log(horizon), lengths, scores))
        slope = (scores[-1] - scores[-2]) / (lengths[-1] - lengths[-2])
        return float(scores[-1] + slope * (np.log(horizon) - lengths[-1]))

    @model_validator(mode="after")
    def _check_consistency(self) -> JointTable:
        if sorted(set(self.steps)) != list(self.steps):
            raise ValueError("steps must be in ascending order")
        if len(self.scores) != len(self.steps) or {len(row) for row in self.scores} != {len(SHARES)}:
            raise ValueError(f"expected {len(self.steps)} rows of {len(SHARES)} scores")
        scores = np.array(self.scores)
        if (np.diff(scores, axis=0) < 0).any() or (np.diff(scores, axis=1) < 0).any():
            raise ValueError("scores must not decrease with the length or the share")
        return self


def fit_joint_table(scores: Float64[np.ndarray, "path step"], steps: Sequence[int]) -> JointTable | None:
    """Fits the table to the normal scores of paths; None with fewer than `MIN_PATHS`.

    Args:
        scores: The normal score of each step under its calibrated quantiles; NaN where nothing was observed.
        steps: The steps ahead of the columns.
    """
    observed = scores[np.isfinite(scores).any(axis=1)]
    if len(observed) < MIN_PATHS:
        return None
    largest = np.maximum.accumulate(np.nan_to_num(np.abs(observed)), axis=1)
    stored = np.unique(np.geomspace(1, len(steps), min(len(steps), MAX_STORED_STEPS)).round().astype(int)) - 1
    ordered = np.sort(largest[:, stored], axis=0)
    ranks = np.ceil(np.round((len(ordered) + 1) * np.array(SHARES), 9)).astype(int)
    found = ordered[np.minimum(ranks, len(ordered)) - 1].T
    beyond = normal_quantiles([(1 + share) / 2 for share in SHARES]) / normal_quantiles(
        [(1 + len(ordered) / (len(ordered) + 1)) / 2]
    )
    found = np.where(ranks > len(ordered), np.maximum(found, found * beyond), found)
    found = np.maximum.accumulate(np.maximum.accumulate(found, axis=0), axis=1)
    return JointTable(
        steps=tuple(int(steps[index]) for index in stored),
        scores=tuple(tuple(float(f"{value:.6g}") for value in row) for row in found),
        paths=len(observed),
    )


def scores_under_table(
    residuals: Float64[np.ndarray, "path step"],
    offsets: Float64[np.ndarray, "step level"],
    levels: Sequence[float],
) -> Float64[np.ndarray, "path step"]:
    """Returns the normal scores of residuals under a table of their quantiles; extrapolated along the line from the median."""
    nominal, middle = normal_quantiles(levels), list(levels).index(0.5)
    scores = np.stack(
        [np.interp(column, row, nominal) for column, row in zip(residuals.T, offsets, strict=True)], axis=1
    )
    medians = offsets[:, middle]
    for outer, is_beyond in ((-1, residuals > offsets[:, -1]), (0, residuals < offsets[:, 0])):
        reach = offsets[:, outer] - medians
        with np.errstate(divide="ignore", invalid="ignore"):
            beyond = nominal[outer] * (residuals - medians) / reach
        scores = np.where(is_beyond & (reach != 0), beyond, scores)
    return np.where(np.isfinite(residuals), scores, np.nan)

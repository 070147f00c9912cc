"""The difficulty of a series at a moment: how much larger its errors will be than its scale suggests, from its latest changes.

The scale of a history is an average over all of it. Errors follow the latest changes too: a series that became calm is easier to
forecast than its past, and a smooth one easier than the size of its seasonal changes. Normalised conformal prediction
(Papadopoulos et al. 2011) divides errors by such an estimate before it takes their ranks, so that the quantiles of all series and
windows can be pooled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from forecaster.metrics import nanmean
from forecaster.shapes import Float64

CHANGES = ("seasonal", "curvature", "latest")
"""Mean absolute changes: over a season in the last seasons; of the change, there; and from step to step at the very end."""

_RECENT_SEASONS = 2
_MIN_RECENT_STEPS = 8
_LATEST_STEPS = 6
_MAX_LOG_RATIO = 7.0  # of a change to the scale
_MAX_LOG_FACTOR = 2.0
_PRIOR_WINDOWS = 5.0  # weight of the prior that the scale suffices
_PRIOR_SHARE = 0.01  # the same, as a share of all windows
MIN_WINDOWS = 50  # with fewer the scale alone is used

_Coefficient = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class Difficulty(BaseModel):
    """A log-linear model of the size of errors, in units of the scale of the history.

    Attributes:
        centers: The mean logarithm of each change over the scale, on the windows of the calibration.
        weights: The exponent of each change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    centers: tuple[_Coefficient, ...] = Field(min_length=1, max_length=16)
    weights: tuple[_Coefficient, ...] = Field(min_length=1, max_length=16)

    def compute_factors(
        self, changes: Float64[np.ndarray, "row change"], scales: Float64[np.ndarray, "row"]
    ) -> Float64[np.ndarray, "row"]:
        """Returns the factor of each row's scale, between exp(-2) and exp(2); a change that was not observed has no effect."""
        deviations = np.nan_to_num(_log_ratios(changes, scales) - np.array(self.centers))
        return np.asarray(np.exp(np.clip(deviations @ np.array(self.weights), -_MAX_LOG_FACTOR, _MAX_LOG_FACTOR)))

    @model_validator(mode="after")
    def _check_lengths(self) -> Difficulty:
        if len(self.centers) != len(self.weights):
            raise ValueError(f"expected a weight for each of {len(self.centers)} centers, found {len(self.weights)}")
        return self


def fit_difficulty(
    changes: Float64[np.ndarray, "row change"],
    scales: Float64[np.ndarray, "row"],
    sizes: Float64[np.ndarray, "row"],
) -> Difficulty | None:
    """Fits the model to the sizes of errors by ridge regression; None with fewer than `MIN_WINDOWS` windows.

    Args:
        changes: `measure_changes` of the history of each window.
        scales: The scale of each window, in the units of the changes.
        sizes: The mean absolute error of each window, in units of the scale.
    """
    logs = _log_ratios(changes, scales)
    targets = np.log(np.where(sizes > 0, sizes, np.nan))
    usable = np.isfinite(targets) & np.isfinite(logs).any(axis=1)
    if usable.sum() < MIN_WINDOWS:
        return None
    logs, targets = logs[usable], targets[usable]
    targets = np.maximum(targets, np.median(targets) - _MAX_LOG_RATIO / 2)  # a forecast may be right by chance
    centers = np.nan_to_num(nanmean(logs, axis=0))
    deviations = np.nan_to_num(logs - centers)
    prior = (_PRIOR_WINDOWS + _PRIOR_SHARE * len(logs)) * np.eye(deviations.shape[1])
    weights = np.linalg.solve(deviations.T @ deviations + prior, deviations.T @ (targets - targets.mean()))
    return Difficulty(centers=_round(centers), weights=_round(weights))


def measure_changes(histories: Sequence[Float64[np.ndarray, "_"]], *, season: int) -> Float64[np.ndarray, "row change"]:
    """Returns the mean absolute changes of each history, in the order of `CHANGES`; NaN where none was observed.

    They depend on the last `count_recent_steps` steps only.
    """
    reach = max(season, 2)
    steps = count_recent_steps(season)
    tails = np.full((len(histories), steps), np.nan)
    for row, history in enumerate(histories):
        tail = history[-steps:]
        tails[row, steps - len(tail) :] = tail
    with np.errstate(over="ignore", invalid="ignore"):
        seasonal = tails[:, reach:] - tails[:, reach - season : steps - season]
        curvature = np.diff(tails[:, reach - 2 :], 2)
        latest = np.diff(tails[:, -_LATEST_STEPS - 1 :])
        return np.stack([nanmean(np.abs(values), axis=1) for values in (seasonal, curvature, latest)], axis=1)


def count_recent_steps(season: int) -> int:
    """Returns the number of last steps that `measure_changes` reads."""
    return max(_RECENT_SEASONS * season, _MIN_RECENT_STEPS) + max(season, 2)


def _log_ratios(
    changes: Float64[np.ndarray, "row change"], scales: Float64[np.ndarray, "row"]
) -> Float64[np.ndarray, "row change"]:
    """Returns the logarithms of changes over scales; NaN where either is missing, and where a scale is zero."""
    positive = np.where(scales > 0, scales, np.nan)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        ratios = np.log(changes / positive[:, None])
    return np.where(np.isnan(ratios), np.nan, np.clip(ratios, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))


def _round(values: Float64[np.ndarray, "_"]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)

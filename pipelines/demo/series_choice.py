"""The rule by which the demo chooses the series that it shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from forecaster.series import Series
from forecaster.shapes import Float64

RULE = (
    "of the quarter of the series whose history has the strongest season, those with the lower quartile, the median and the "
    "upper quartile of the error in the held-out year"
)
ERROR_QUANTILES = {"lower quartile": 0.25, "median": 0.5, "upper quartile": 0.75}
_SEASONAL_SHARE = 0.25  # of the series


class ChosenSeries(NamedTuple):
    """A series that is shown: its index in the panel, its position among the eligible series, and its error."""

    series_index: int
    position: str
    error: float


def compute_season_strength(y: Float64[np.ndarray, "_"], season: int) -> float:
    """Returns the share of the variance around a linear trend that the position within the season explains; 0 for a constant."""
    steps = np.flatnonzero(~np.isnan(y))
    if len(steps) < 2 * season:
        return 0.0
    values = y[steps] - np.polyval(np.polyfit(steps, y[steps], 1), steps)
    total = float((values**2).sum())
    if total <= 1e-12 * float((y[steps] ** 2).sum()):
        return 0.0
    positions = steps % season
    counts = np.bincount(positions, minlength=season)
    means = np.bincount(positions, weights=values, minlength=season) / np.maximum(counts, 1)
    return float((counts * means**2).sum()) / total


def choose_series(
    histories: Sequence[Series], errors: Float64[np.ndarray, "series"], *, season: int
) -> list[ChosenSeries]:
    """Chooses series by RULE; the errors do not decide which series are eligible, and series without an error are not.

    Args:
        histories: The histories, without the values that were forecast.
        errors: The error of each series; NaN if it has none.
        season: Steps of a season.
    """
    strengths = np.array([compute_season_strength(series.y, season) for series in histories])
    scored = np.flatnonzero(np.isfinite(errors))
    count = max(len(ERROR_QUANTILES), round(_SEASONAL_SHARE * len(scored)))
    eligible = scored[np.argsort(-strengths[scored], kind="stable")[:count]]
    ranked = eligible[np.argsort(errors[eligible], kind="stable")]
    return [
        ChosenSeries(int(ranked[index]), position, float(errors[ranked[index]]))
        for position, quantile in ERROR_QUANTILES.items()
        for index in [round(quantile * (len(ranked) - 1))]
    ]

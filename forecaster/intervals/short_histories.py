"""Short histories: their scales are uncertain and their forecasts worse, so that intervals must be wider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from forecaster.shapes import Float64, Int
from forecaster.spec import StepCount

SHARE = 0.8  # the share of errors within the intervals that are compared
MIN_WINDOWS = 20
_SEASONS = (1, 2, 3)  # lengths of short histories, in seasons
_MIN_SEASON = 4
_MARGIN_STEPS = 2  # so that the shortest has a few seasonal changes


class ShortHistories(BaseModel):
    """The factors of the unit of intervals by the length of a history, its number of observed values.

    Attributes:
        steps: Lengths, ascending.
        factors: The factor of each length; never below 1, and never larger for a longer history. The last is 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    steps: tuple[StepCount, ...] = Field(min_length=2, max_length=16)
    factors: tuple[Annotated[float, Field(ge=1, le=100)], ...]

    def compute_factors(self, lengths: Sequence[int] | Int[np.ndarray, "history"]) -> Float64[np.ndarray, "history"]:
        """Returns the factor of each history, interpolated in the logarithm of its length."""
        return np.interp(np.log(np.maximum(lengths, 1)), np.log(self.steps), self.factors)

    @model_validator(mode="after")
    def _check_consistency(self) -> ShortHistories:
        if len(self.steps) != len(self.factors) or (np.diff(self.steps) <= 0).any():
            raise ValueError("expected ascending lengths, and a factor for each")
        if (np.diff(self.factors) > 0).any() or self.factors[-1] != 1:
            raise ValueError("factors must fall to 1")
        return self


def choose_short_lengths(season: int, *, min_steps: int) -> tuple[list[int], int]:
    """Returns the lengths of short histories that a model with this minimum reads, and the length that is not short."""
    unit = max(season, _MIN_SEASON)
    lengths = sorted({max(min_steps, number * unit + _MARGIN_STEPS) for number in _SEASONS})
    return lengths, max(lengths[-1] + 1, (_SEASONS[-1] + 1) * unit)


def fit_short_histories(
    errors: Sequence[Float64[np.ndarray, "window step"]], lengths: Sequence[int]
) -> ShortHistories | None:
    """Fits the factors; None with fewer than `MIN_WINDOWS` windows.

    Args:
        errors: For each length, the absolute errors of forecasts of histories cut to it, in units of their own intervals;
            the last are those of the whole histories of the same windows.
        lengths: The lengths, ascending; the last is the one from which histories are whole.
    """
    if len(errors[-1]) < MIN_WINDOWS:
        return None
    reach = [float(np.nanquantile(values, SHARE)) for values in errors]
    if not all(np.isfinite(reach)) or reach[-1] <= 0:
        return None
    ratios = [min(max(value / reach[-1], 1.0), 100.0) for value in reach[:-1]]
    falling = np.maximum.accumulate(np.array([*ratios, 1.0])[::-1])[::-1]
    return ShortHistories(steps=tuple(lengths), factors=tuple(float(f"{value:.4g}") for value in falling))

"""What a history is like, in a few numbers: those a forecaster was trained on, and those it is asked to go on from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from forecaster.series import Series
from forecaster.shapes import Float64

QUANTILE_LEVELS = tuple(round(0.1 * number, 1) for number in range(1, 10))
"""Of the quantiles that are kept of each feature: nine, between which a tenth of the windows lies each."""
_MAX_WINDOWS_PER_SERIES = 20  # windows of one series, at most
_MAX_WINDOWS = 2000  # windows in all: enough for tenths, and a moment's work

PROFILE_FEATURES = ("level", "change", "spread", "latest", "missing")


def compute_profile(y: Float64[np.ndarray, "step"], *, context: int, season: int) -> dict[str, float]:
    """The features of the last `context` steps of a history; without observed values only how many are missing.

    `level` is their mean, `change` the mean absolute change from one observed value to the next, `spread` the standard
    deviation over that change, `latest` the distance of the latest season's mean from the level in standard deviations, and
    `missing` the share that was not observed. The last three have no units. A window without two seasons has the latest value
    for their mean: of a whole season it is the same at any hour, and a service may be asked at midnight alone.
    """
    window = np.asarray(y[-context:], dtype=np.float64)
    known = window[~np.isnan(window)]
    told = {"missing": 1 - len(known) / len(window)} if len(window) else {}
    if len(known) < 2:
        return told
    change, deviation, level = float(np.abs(np.diff(known)).mean()), float(known.std()), float(known.mean())
    told |= {"level": level, "change": change}
    if change > 0 and deviation > 0:
        told["spread"] = deviation / change
        late = window[-season:] if len(window) >= 2 * season else known[-1:]
        if not np.isnan(late).all():
            told["latest"] = (float(np.nanmean(late)) - level) / deviation
    return {name: float(value) for name, value in told.items() if np.isfinite(value)}


class TrainingProfile(BaseModel):
    """What the windows were like that a forecaster was trained on; a fact of its bundle.

    Attributes:
        context: Steps of a window.
        windows: How many there were; they overlap.
        quantiles: By feature, at SHARES.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    context: int = Field(ge=1)
    windows: int = Field(ge=1)
    quantiles: dict[
        str, Annotated[tuple[float, ...], Field(min_length=len(QUANTILE_LEVELS), max_length=len(QUANTILE_LEVELS))]
    ]


def build_training_profile(series: Sequence[Series], *, context: int, season: int) -> TrainingProfile:
    """The quantiles at SHARES of each feature, over windows that end all along some series."""
    ends = max(1, min(_MAX_WINDOWS_PER_SERIES, _MAX_WINDOWS // max(1, len(series))))
    found: list[dict[str, float]] = []
    for one in series[:: -(-len(series) // _MAX_WINDOWS) or 1]:
        first = min(context, len(one))
        places = np.unique(np.linspace(first, len(one), ends).round().astype(int)).tolist()
        found += [compute_profile(one.y[:end], context=context, season=season) for end in places]
    told = {name: np.array([one[name] for one in found if name in one]) for name in PROFILE_FEATURES}
    quantiles = {
        name: tuple(_round_significant(value) for value in np.quantile(values, QUANTILE_LEVELS))
        for name, values in told.items()
        if len(values)
    }
    return TrainingProfile(context=context, windows=max(1, len(found)), quantiles=quantiles)


def _round_significant(number: float) -> float:
    return float(f"{number:.6g}")

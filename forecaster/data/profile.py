"""Profiles: a few features that describe a history, and their quantiles over the training data. Drift detection compares them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from forecaster.series import Series
from forecaster.shapes import Float64

QUANTILE_LEVELS = tuple(round(0.1 * number, 1) for number in range(1, 10))
"""The nine deciles that a training profile keeps of each feature."""
_MAX_WINDOWS_PER_SERIES = 20
_MAX_WINDOWS = 2000  # of all series: enough for deciles, and quick to compute

PROFILE_FEATURES = ("level", "change", "spread", "latest", "missing")


def compute_profile(y: Float64[np.ndarray, "step"], *, context: int, season: int) -> dict[str, float]:
    """Computes the features of the last `context` steps of a history; with fewer than two observed values, only `missing`.

    `level` is the mean, `change` the mean absolute change from one observed value to the next, `spread` the standard
    deviation over `change`, `latest` the distance of the latest season's mean from the level in standard deviations, and
    `missing` the share of steps that were not observed. The last three have no units. In a window shorter than two seasons,
    `latest` uses the latest value instead of a season's mean. The mean of a whole season does not depend on the hour of the
    request, which matters for a service that is queried only at midnight, say.
    """
    window = np.asarray(y[-context:], dtype=np.float64)
    observed = window[~np.isnan(window)]
    features = {"missing": 1 - len(observed) / len(window)} if len(window) else {}
    if len(observed) < 2:
        return features
    change, deviation, level = float(np.abs(np.diff(observed)).mean()), float(observed.std()), float(observed.mean())
    features |= {"level": level, "change": change}
    if change > 0 and deviation > 0:
        features["spread"] = deviation / change
        latest_values = window[-season:] if len(window) >= 2 * season else observed[-1:]
        if not np.isnan(latest_values).all():
            features["latest"] = (float(np.nanmean(latest_values)) - level) / deviation
    return {name: float(value) for name, value in features.items() if np.isfinite(value)}


class TrainingProfile(BaseModel):
    """The features of the windows that a model was trained on; one of the facts in its bundle.

    Attributes:
        context: Steps of a window.
        windows: The number of windows; they overlap.
        quantiles: The quantiles of each feature by name, at QUANTILE_LEVELS.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    context: int = Field(ge=1)
    windows: int = Field(ge=1)
    quantiles: dict[
        str, Annotated[tuple[float, ...], Field(min_length=len(QUANTILE_LEVELS), max_length=len(QUANTILE_LEVELS))]
    ]


def build_training_profile(series: Sequence[Series], *, context: int, season: int) -> TrainingProfile:
    """Computes the quantiles of each feature over windows that are spread evenly over each series."""
    windows_per_series = max(1, min(_MAX_WINDOWS_PER_SERIES, _MAX_WINDOWS // max(1, len(series))))
    profiles: list[dict[str, float]] = []
    for item in series[:: -(-len(series) // _MAX_WINDOWS) or 1]:
        first_end = min(context, len(item))
        ends = np.unique(np.linspace(first_end, len(item), windows_per_series).round().astype(int)).tolist()
        profiles += [compute_profile(item.y[:end], context=context, season=season) for end in ends]
    feature_values = {
        name: np.array([profile[name] for profile in profiles if name in profile]) for name in PROFILE_FEATURES
    }
    quantiles = {
        name: tuple(_round_significant(value) for value in np.quantile(values, QUANTILE_LEVELS))
        for name, values in feature_values.items()
        if len(values)
    }
    return TrainingProfile(context=context, windows=max(1, len(profiles)), quantiles=quantiles)


def _round_significant(number: float) -> float:
    return float(f"{number:.6g}")

"""Quantiles from the head of a model that was not calibrated, around the point forecasts of the same rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from forecaster.engines.engine import Engine, find_quantile_engine
from forecaster.errors import ForecasterError
from forecaster.prediction.engine_choice import choose_engine
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64
from forecaster.statistical.blend import list_statistical_components

MEDIAN = 0.5


def has_head_quantiles(fitted_model: FittedModel | StoredModel, engine: Engine) -> bool:
    """Whether quantiles come from the head: the model has one and no calibration, is no blend, and the engine computes them."""
    return (
        fitted_model.calibration is None
        and fitted_model.spec.head.kind == "quantile"
        and not list_statistical_components(fitted_model.blend_weights)
        and find_quantile_engine(engine) is not None
    )


def has_quantiles(fitted_model: FittedModel | StoredModel) -> bool:
    """Whether forecasts of a model have quantiles: of its calibration, or of its head on the engine that is chosen for it."""
    if fitted_model.calibration is not None or fitted_model.spec.head.kind != "quantile":
        return fitted_model.calibration is not None
    return has_head_quantiles(fitted_model, choose_engine(fitted_model))


def with_median(levels: Sequence[float]) -> list[float]:
    """Returns the distinct levels and the median, in ascending order."""
    return sorted({*levels, MEDIAN})


def split_median(
    quantiles: Float64[np.ndarray, "series horizon level"], levels: Sequence[float]
) -> tuple[Float64[np.ndarray, "series horizon"], Float64[np.ndarray, "series horizon level"]]:
    """Returns the medians, and all quantiles relative to them."""
    medians = np.ascontiguousarray(quantiles[:, :, levels.index(MEDIAN)])
    return medians, quantiles - medians[:, :, None]


def attach_head_quantiles(
    series: Sequence[Series],
    outcomes: Sequence[Forecast | ForecasterError],
    offsets: Float64[np.ndarray, "series horizon level"],
    levels: Sequence[float],
    requested: Sequence[float],
    *,
    compute_error_size: Callable[[Series], float],
) -> list[Forecast | ForecasterError]:
    """Returns the outcomes with quantiles around their means.

    After a step where the network diverged, the offsets are those of the step before; where there is none, and for a constant
    history, they are those of a normal distribution with the error size of the series.
    """
    columns = {level: levels.index(level) for level in sorted(set(requested))}
    results: list[Forecast | ForecasterError] = []
    for item, outcome, row in zip(series, outcomes, offsets, strict=True):
        if not isinstance(outcome, Forecast):
            results.append(outcome)
            continue
        repaired = row
        if outcome.has_fallback or not row.any():
            repaired = _repair(row, levels, error_size=compute_error_size(item))
        quantiles = {level: outcome.mean + repaired[:, column] for level, column in columns.items()}
        results.append(replace(outcome, quantiles=quantiles))
    return results


def _repair(
    offsets: Float64[np.ndarray, "horizon level"], levels: Sequence[float], *, error_size: float
) -> Float64[np.ndarray, "horizon level"]:
    finite = np.isfinite(offsets).all(axis=1)
    last = np.flatnonzero(finite & offsets.any(axis=1))[-1:]
    normal = error_size * np.array([NormalDist().inv_cdf(level) for level in levels])
    return np.where(finite[:, None] & (len(last) > 0), offsets, offsets[last[0]] if len(last) else normal)

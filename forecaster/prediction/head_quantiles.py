"""Quantiles from the head of a model, as they are or recalibrated, around the point forecasts of the same rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from forecaster.engines.engine import Engine, find_quantile_engine
from forecaster.engines.statistical.blend import list_statistical_components
from forecaster.errors import ForecasterError
from forecaster.intervals.adaptive import AdaptiveState
from forecaster.intervals.calibration import Calibration
from forecaster.intervals.difficulty import measure_changes
from forecaster.intervals.head import head_spreads
from forecaster.intervals.normal_scores import compute_quantiles, compute_scores
from forecaster.prediction.engine_choice import choose_engine
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.series import Forecast, Series
from forecaster.series.history_summary import HistorySummary, history_scales
from forecaster.shapes import Float64

MEDIAN = 0.5


def has_head_quantiles(fitted_model: FittedModel | StoredModel, engine: Engine) -> bool:
    """Whether quantiles come from the head: it has some, no other calibration and no blend, and the engine computes them."""
    calibration = fitted_model.calibration
    return (
        (calibration is None or calibration.unit == "head")
        and fitted_model.spec.head.kind == "quantile"
        and not list_statistical_components(fitted_model.blend_weights)
        and find_quantile_engine(engine) is not None
    )


def has_quantiles(fitted_model: FittedModel | StoredModel) -> bool:
    """Whether forecasts of a model have quantiles: of its calibration, or of its head on the engine that is chosen for it."""
    if fitted_model.calibration is not None or fitted_model.spec.head.kind != "quantile":
        return fitted_model.calibration is not None
    return has_head_quantiles(fitted_model, choose_engine(fitted_model))


def can_recalibrate(fitted_model: FittedModel | StoredModel) -> bool:
    """Whether a calibration of the model is that of its head: it decodes blocks with quantiles, and is no blend.

    The spread of other heads is what a small network learned from one panel. There it is less reliable than the errors of the
    point forecasts (docs/experiments.md, "Intervals").
    """
    spec = fitted_model.spec
    return (
        spec.head.kind == "quantile"
        and spec.decoder == "block"
        and spec.scaling == "running"
        and not list_statistical_components(fitted_model.blend_weights)
    )


def describe_changes(
    histories: Sequence[Float64[np.ndarray, "_"]],
    summaries: Sequence[HistorySummary | None] | None = None,
    *,
    season: int,
) -> Float64[np.ndarray, "history change"]:
    """Returns `measure_changes` of histories with, last, their `history_scale`."""
    return np.column_stack([measure_changes(histories, season=season), history_scales(histories, season, summaries)])


def recalibrate_offsets(
    calibration: Calibration,
    offsets: Float64[np.ndarray, "series horizon head_level"],
    head_levels: Sequence[float],
    levels: Sequence[float],
    *,
    changes: Float64[np.ndarray, "series change"] | None,
    groups: Sequence[str | None],
    adaptive_state: AdaptiveState | None = None,
) -> Float64[np.ndarray, "series horizon level"]:
    """Returns quantiles relative to the median, from those of the head relative to its median.

    Args:
        calibration: The calibration, whose unit is the head.
        offsets: The quantiles of the head.
        head_levels: Their levels, ascending; the median is one of them.
        levels: The wanted levels.
        changes: `measure_changes` of each history with, last, its `history_scale`; None if the calibration has no difficulty.
        groups: The group of each series.
        adaptive_state: Shifts from actuals since the calibration.
    """
    scores = calibration.compute_offsets(
        levels, horizon=1, scales=np.ones(len(offsets)), groups=groups, adaptive_state=adaptive_state
    )[:, 0]
    if calibration.difficulty is not None and changes is not None and len(offsets):
        offsets = offsets * calibration.difficulty.compute_factors(changes, head_spreads(offsets))[:, None, None]
    return compute_quantiles(scores, offsets, head_levels)


def recalibrate_paths(
    calibration: Calibration,
    paths: Float64[np.ndarray, "scenario path horizon"],
    offsets: Float64[np.ndarray, "1 horizon head_level"],
    head_levels: Sequence[float],
    *,
    changes: Float64[np.ndarray, "1 change"] | None,
    group: str | None,
) -> Float64[np.ndarray, "scenario path horizon"]:
    """Returns sample paths whose values at each step have the recalibrated distribution, in the same order as before.

    The value with the normal score z under the head becomes the one whose score is that of the calibrated quantile at the
    level of z.

    Args:
        calibration: The calibration, whose unit is the head.
        paths: Sample paths relative to the head's medians.
        offsets: The head's quantiles relative to its medians.
        head_levels: Their levels, ascending; the median is one of them.
        changes: As for `recalibrate_offsets`.
        group: The group of the series.
    """
    values = paths.reshape(-1, paths.shape[2]).T  # steps as rows
    knots = offsets[0]
    scores = compute_scores(values, np.broadcast_to(knots[:, None], (*values.shape, knots.shape[1])), head_levels)
    wanted = calibration.map_scores(scores, group=group)
    if calibration.difficulty is not None and changes is not None:
        knots = knots * calibration.difficulty.compute_factors(changes, head_spreads(offsets))[0]
    moved = compute_quantiles(np.nan_to_num(wanted), knots[:, None], head_levels)[:, 0]
    return np.where(np.isfinite(scores), moved, values).T.reshape(paths.shape)


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
    sorted_levels = sorted(set(requested))
    columns = [levels.index(level) for level in sorted_levels]
    has_spread: list[bool] = (offsets != 0).any(axis=(1, 2)).tolist()
    by_level = offsets[:, :, columns].transpose(0, 2, 1)
    results: list[Forecast | ForecasterError] = []
    for index, (item, outcome) in enumerate(zip(series, outcomes, strict=True)):
        if not isinstance(outcome, Forecast):
            results.append(outcome)
            continue
        rows = by_level[index]
        if outcome.has_fallback or not has_spread[index]:
            rows = _repair(offsets[index], levels, error_size=compute_error_size(item))[:, columns].T
        quantiles = dict(zip(sorted_levels, outcome.mean + rows, strict=True))
        results.append(  # `replace` would take most of the time
            Forecast(outcome.id, outcome.ds, outcome.mean, outcome.warnings, quantiles, outcome.has_fallback)
        )
    return results


def _repair(
    offsets: Float64[np.ndarray, "horizon level"], levels: Sequence[float], *, error_size: float
) -> Float64[np.ndarray, "horizon level"]:
    finite = np.isfinite(offsets).all(axis=1)
    last = np.flatnonzero(finite & offsets.any(axis=1))[-1:]
    normal = error_size * np.array([NormalDist().inv_cdf(level) for level in levels])
    return np.where(finite[:, None] & (len(last) > 0), offsets, offsets[last[0]] if len(last) else normal)

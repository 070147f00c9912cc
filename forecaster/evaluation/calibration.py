"""Calibrated intervals of a fitted model, from rolling origins that it was not fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from forecaster.data.batching import take_last
from forecaster.data.on_disk.tape import count_steps
from forecaster.engines.statistical.blend import list_statistical_components
from forecaster.evaluation.backtest import Backtest, BacktestQuantileArray, backtest
from forecaster.intervals.conformal import calibrate
from forecaster.intervals.difficulty import measure_changes
from forecaster.intervals.head import recalibrate_head
from forecaster.intervals.short_histories import MIN_WINDOWS, choose_short_lengths, fit_short_histories
from forecaster.metrics import DECILES, nanmean, pinball
from forecaster.prediction.bounds import has_whole_numbers, without_bounds
from forecaster.prediction.head_quantiles import (
    MEDIAN,
    can_recalibrate,
    describe_changes,
    has_quantiles,
    with_median,
)
from forecaster.prediction.interval_units import IntervalUnits
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.series import Forecast, Panel, Series
from forecaster.shapes import Float64

_MAX_WINDOWS = 12
_MAX_SHORT_WINDOWS = 2000  # that are forecast again
_MIN_ZERO_SHARE = 1 / 3


def calibrate_model(
    model: FittedModel,
    panel: Panel,
    *,
    windows: int,
    stride: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> FittedModel:
    """Returns the model with calibrated quantiles.

    Args:
        model: Fitted without the steps ahead of these origins. Early stopping may have used them: it chose among a few networks,
            which makes their errors there slightly too small.
        panel: All data up to the fit.
        windows: Rolling origins.
        stride: Steps between them; defaults to the horizon. Errors of overlapping windows are correlated, and carry less
            information than as many independent ones.
        progress: Receives the phase "calibration".
    """
    spec = model.spec
    result = backtest(
        panel,
        {"model": Predictor(model)},
        horizon=spec.horizon,
        windows=windows,
        season=model.season,
        min_history=spec.min_steps,
        stride=stride,
        progress=progress,
        phase="calibration",
    )
    return calibrate_on_backtest(model, result, "model")


def choose_untrained_windows(panel: Panel, *, horizon: int) -> tuple[int, int]:
    """Returns the windows, and the steps between them, on which a model that was not trained on the panel is calibrated.

    All its errors are those of unseen data, so half of the median history can be used: windows half a horizon apart, at most
    `_MAX_WINDOWS` of them.
    """
    span = int(np.median(count_steps(panel.series))) // 2 - horizon
    stride = max(1, horizon // 2)
    return min(_MAX_WINDOWS, 1 + max(0, span) // stride), stride


def calibrate_on_backtest(model: FittedModel, result: Backtest, name: str) -> FittedModel:
    """Returns the model with quantiles calibrated on a backtest of unseen windows; `name` is its name there.

    Small counts, most of whose changes are zero, have no difficulty that recent changes could tell, and a skewed distribution.
    Their quantiles are rounded if that lowers the quantile loss on these windows.
    """
    units = IntervalUnits(model)
    groups = [units.interval_group(item) for item in result.series]
    histories, is_intermittent = _origin_histories(result), _is_intermittent(result.series)
    if can_recalibrate(model):
        levels = with_median(model.spec.head.levels)
        quantiles = _head_quantiles(Predictor(without_bounds(replace(model, calibration=None))), result, levels)
        medians = quantiles[..., [levels.index(MEDIAN)]]
        calibration = recalibrate_head(
            result.actual - medians[..., 0],
            quantiles - medians,
            levels,
            changes=None if is_intermittent else _by_window(describe_changes(histories, season=model.season), result),
            groups=groups,
            overlap=max(0.0, 1 - result.stride / result.horizon),
            tails_apart=is_intermittent,
        )
    else:
        scales = np.array([units.compute_scale(history) for history in histories])
        calibration = calibrate(
            result.actual - result.forecasts[name],
            _by_window(scales, result),
            changes=None if is_intermittent else _by_window(measure_changes(histories, season=model.season), result),
            groups=groups,
        )
    calibrated = replace(model, calibration=calibration)
    if calibration.unit == "history" and not list_statistical_components(model.blend_weights):
        calibrated = _measure_short_histories(calibrated, result, name)
    return _round_if_better(calibrated, result, name) if is_intermittent else calibrated


def _measure_short_histories(model: FittedModel, result: Backtest, name: str) -> FittedModel:
    """Returns the model with wider intervals for short histories: those of the backtest, cut, are forecast again."""
    assert model.calibration is not None
    lengths, whole = choose_short_lengths(model.season, min_steps=model.spec.min_steps)
    windows = [
        (row, window, len(item) - offset)
        for row, item in enumerate(result.series)
        for window, offset in enumerate(result.origin_offsets)
        if len(item) - offset >= whole and np.isfinite(result.forecasts[name][row, window]).all()
    ][:_MAX_SHORT_WINDOWS]
    if len(windows) < MIN_WINDOWS:
        return model
    predictor, horizon = Predictor(model), result.horizon
    rows, columns, ends = (list(values) for values in zip(*windows, strict=True))
    histories = [result.series[row].take_first(end) for row, end in zip(rows, ends, strict=True)]
    groups = [predictor.interval_group(item) for item in histories]
    actual = result.actual[rows, columns]
    errors = []
    for length in (*lengths, None):
        cut = histories if length is None else [take_last(item, length) for item in histories]
        outcomes = predictor.forecast_batch(cut, horizon) if length is not None else ()
        means = [item.mean if isinstance(item, Forecast) else np.full(horizon, np.nan) for item in outcomes]
        forecasts = result.forecasts[name][rows, columns] if length is None else np.stack(means)
        units = predictor.compute_interval_scales([item.y for item in cut])
        spreads = model.calibration.compute_spreads(horizon=horizon, scales=units, groups=groups)
        errors.append(np.abs(actual - forecasts) / np.where(spreads > 0, spreads, np.nan))
    short_histories = fit_short_histories(errors, [*lengths, whole])
    return replace(model, calibration=model.calibration.model_copy(update={"short_histories": short_histories}))


def _is_intermittent(series: Sequence[Series]) -> bool:
    """Whether the values are counts, and at least a third of them zero."""
    values = np.concatenate([item.y for item in series])
    observed = values[~np.isnan(values)]
    return (
        has_whole_numbers(observed) and bool((observed >= 0).all()) and float((observed == 0).mean()) >= _MIN_ZERO_SHARE
    )


def _round_if_better(model: FittedModel, result: Backtest, name: str) -> FittedModel:
    """Returns the model with quantiles that are whole numbers, if their loss is lower on the backtest."""
    assert model.calibration is not None
    rounded = replace(model, calibration=model.calibration.model_copy(update={"is_rounded": True}))
    losses = [
        nanmean(pinball(result.actual, backtest_quantiles(item, result, name, levels=DECILES), np.array(DECILES)))
        for item in (model, rounded)
    ]
    return rounded if losses[1] < losses[0] else model


def backtest_quantiles(
    model: FittedModel, result: Backtest, name: str, *, levels: Sequence[float]
) -> BacktestQuantileArray:
    """Returns the quantiles of a backtest's forecasts, as the predictor gives them at each origin.

    Args:
        model: The model that made the forecasts, which is calibrated or has a head with quantiles.
        result: The backtest.
        name: The model's name there.
        levels: Levels of the quantiles, ascending.
    """
    if model.calibration is None or model.calibration.unit == "head":
        return _head_quantiles(Predictor(model), result, levels)
    predictor, windows = Predictor(model), result.actual.shape[1]
    scales = predictor.compute_interval_scales(_origin_histories(result))
    groups = [predictor.interval_group(item) for item in result.series for _ in range(windows)]
    offsets = model.calibration.compute_offsets(levels, horizon=result.horizon, scales=scales, groups=groups)
    quantiles = np.asarray(result.forecasts[name][..., None] + offsets.reshape(*result.actual.shape, len(levels)))
    if model.calibration.is_rounded:
        are_counts = np.array([has_whole_numbers(item.y) for item in result.series])
        quantiles = np.where(are_counts[:, None, None, None], np.round(quantiles), quantiles)
    return clip_at_origins(predictor, result, quantiles)


def clip_at_origins(
    predictor: Predictor, result: Backtest, values: Float64[np.ndarray, "series window *axes"]
) -> Float64[np.ndarray, "series window *axes"]:
    """Returns values at the origins of a backtest within the bounds of a predictor."""
    if not predictor.bounds.is_active:
        return values
    history_lengths = np.array([len(item) for item in result.series])[:, None] - np.array(result.origin_offsets)
    return predictor.bounds.at_origins(result.series, history_lengths).clip(values)


def add_quantiles(result: Backtest, models: Mapping[str, FittedModel], *, levels: Sequence[float]) -> Backtest:
    """Returns the backtest with the quantiles of those models that have any."""
    ascending = sorted(set(levels))
    quantiles = {
        name: backtest_quantiles(model, result, name, levels=ascending)
        for name, model in models.items()
        if has_quantiles(model)
    }
    return replace(result, levels=ascending, quantiles=quantiles)


def interval_coverage(
    model: FittedModel, result: Backtest, name: str, *, intervals: Sequence[float]
) -> dict[float, float]:
    """Returns the share of a backtest's actuals within the calibrated intervals, by nominal share."""
    coverage = {}
    for interval in intervals:
        bounds = backtest_quantiles(model, result, name, levels=((1 - interval) / 2, (1 + interval) / 2))
        valid = np.isfinite(result.actual) & np.isfinite(bounds).all(axis=-1)
        inside = (bounds[..., 0] <= result.actual) & (result.actual <= bounds[..., 1])
        coverage[interval] = float(inside[valid].mean()) if valid.any() else float("nan")
    return coverage


def _origin_histories(result: Backtest) -> list[Float64[np.ndarray, "_"]]:
    """Returns the history of each series at each origin, in the order of series and then of windows."""
    return [item.y[: len(item) - offset] for item in result.series for offset in result.origin_offsets]


def _by_window(
    values: Float64[np.ndarray, "history *axes"], result: Backtest
) -> Float64[np.ndarray, "series window *axes"]:
    return values.reshape(*result.actual.shape[:2], *values.shape[1:])


def _head_quantiles(predictor: Predictor, result: Backtest, levels: Sequence[float]) -> BacktestQuantileArray:
    """Returns the quantiles of a model without calibration, from one forecast of all histories at each origin."""
    quantiles = np.full((*result.actual.shape, len(levels)), np.nan)
    for window, offset in enumerate(result.origin_offsets):
        histories = [item.take_first(len(item) - offset) for item in result.series]
        outcomes = predictor.forecast_batch(histories, result.horizon, levels=levels)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, Forecast):
                quantiles[index, window] = np.stack([outcome.quantiles[level] for level in levels], axis=1)
    return quantiles

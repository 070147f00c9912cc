"""Forecasts and scores at rolling origins, of models that were fitted on the data before them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from forecaster.api.fitting import ModelOptions, choose_spec, fit_spec, require_training
from forecaster.api.messages import warn_about_data
from forecaster.api.tables import rename_backtest_table, validate_calibration
from forecaster.data.forecast_table import MODEL_COLUMN
from forecaster.data.split import hold_out, rolling_origins
from forecaster.data.symbols import recode_panel
from forecaster.errors import HistoryTooShort, InputError
from forecaster.frequency.timestamps import Timestamp, Timestamps, format_timestamp, is_earlier, timestamp_at
from forecaster.prediction.fitted_model import as_fitted_model
from forecaster.prediction.head_quantiles import has_quantiles
from forecaster.prediction.predictor import Predictor
from forecaster.progress import Progress
from forecaster.series import Panel
from forecaster.shapes import Bool

_REPORTED_METRICS = ("mase", "rmsse", "smape", "mae", "wql", "msis_95", "coverage_80", "coverage_95")


def cross_validate(
    panel: Panel,
    options: ModelOptions,
    fitted: Predictor | None,
    *,
    windows: int,
    stride: int,
    refit: bool,
    columns: Mapping[str, float],
    progress: Progress,
) -> pd.DataFrame:
    """Returns the forecasts of the last `windows` origins of every series beside the actuals.

    Without `refit` one model forecasts from all origins: the fitted one if it was trained on nothing after the first origin of
    any series, otherwise a new one, fitted on the data before the first origins. With `refit` a new model is fitted at every
    origin, with the specification that was chosen for the first.

    Origins are counted from the end of each series. If series end at different times, a fit has seen later dates of others, but
    of no series a value after its own origin.

    Args:
        panel: All data.
        options: What is fitted.
        fitted: The model of the forecaster, if it has one.
        windows: Origins of each series.
        stride: Steps between them.
        refit: Whether to fit at every origin.
        columns: The quantile of each column.
        progress: Receives the phases of each fit.
    """
    require_training()
    horizon = options.steps_ahead
    offsets = rolling_origins(windows=windows, horizon=horizon, stride=stride)
    before_first = hold_out(panel, max(offsets), min_history=2).history
    if not refit:
        predictor = fitted if fitted is not None and _was_fitted_before(fitted, before_first) else None
        if predictor is None:
            with _naming_windows(windows, stride):
                spec = choose_spec(before_first, options, test_windows=0, progress=progress).spec
                predictor = _fit_untested(before_first, spec, options, progress)
        return _forecast_origins(panel, predictor, windows=windows, stride=stride, columns=columns)
    with _naming_windows(windows, stride):
        spec = choose_spec(before_first, options, test_windows=0, progress=progress).spec
    tables = []
    for offset in offsets:
        with _naming_windows(windows, stride):
            history = hold_out(panel, offset, min_history=spec.min_steps + 1).history
            predictor = _fit_untested(history, spec, options, progress)
        up_to_window = hold_out(panel, offset - horizon).history if offset > horizon else panel
        tables.append(_forecast_origins(up_to_window, predictor, windows=1, stride=stride, columns=columns))
    table = pd.concat(tables, ignore_index=True)
    order = {item.id: number for number, item in enumerate(panel.series)}
    return table.sort_values(
        ["unique_id", "cutoff", "ds"], key=lambda values: values.map(order) if values.name == "unique_id" else values
    ).reset_index(drop=True)


def warn_about_missing_rows(table: pd.DataFrame, panel: Panel) -> None:
    """Gives a `DataWarning` if the table of a cross-validation has no rows of some series, or rows without a forecast."""
    num_left_out = len(panel.series) - table["unique_id"].nunique()
    if num_left_out:
        warn_about_data([f"{num_left_out} of {len(panel.series)} series are too short and were left out"])
    num_missing = int(table[MODEL_COLUMN].isna().sum())
    if num_missing:
        warn_about_data([f"{num_missing} of {len(table)} rows have no forecast, because their history cannot be used"])


def evaluate_model(
    panel: Panel, predictor: Predictor, *, windows: int | None, stride: int, in_sample: bool
) -> tuple[pd.DataFrame, int]:
    """Returns the scores of a model and of the baselines, and how many windows with training data were left out.

    The table has one row per forecaster: `forecaster, in_sample, windows, mase, rmsse, smape, mae` and, for a model with
    quantiles, `wql, msis_95, coverage_80, coverage_95`.

    Args:
        panel: All data, which reach beyond the training cutoff.
        predictor: The model.
        windows: Origins of each series; by default all that lie after the training cutoff.
        stride: Steps between them.
        in_sample: Whether to score windows with training data too, in rows of their own.
    Raises:
        InputError: The windows reach into the training data, and `in_sample` is False.
    """
    require_training()
    from forecaster.bundle.pretrained.base import zero_shot_predictor
    from forecaster.evaluation.backtest import Backtest, backtest
    from forecaster.evaluation.baselines import ZERO_SHOT, build_baselines
    from forecaster.evaluation.calibration import add_quantiles
    from forecaster.evaluation.scores import SCORED_LEVELS, overall_scores, score_table
    from forecaster.evaluation.symbol_backtest import backtest_symbols

    model = predictor.fitted_model
    horizon, cutoff = model.spec.horizon, model.cutoff
    new_steps = max(_count_later_steps(series.timestamps, cutoff) for series in panel.series)
    available = max(0, (new_steps - horizon) // stride + 1)
    if not in_sample and (windows or 1) > available:
        raise InputError(
            f"Expected {((windows or 1) - 1) * stride + horizon} rows after the training cutoff {format_timestamp(cutoff)}, "
            f"which no fit has seen; found {new_steps}. Pass `df` with later rows or use fewer windows (`n_windows`); use "
            "`cross_validation`, which fits before the first cutoff; or set `in_sample=True` to score training data too, in "
            "rows of their own.",
            where="df",
        )
    if model.spec.head.is_symbolic:
        tested = backtest_symbols(
            panel,
            as_fitted_model(model),
            name=MODEL_COLUMN,
            horizon=horizon,
            windows=windows or max(1, available),
            min_history=model.spec.min_steps,
            stride=stride,
        )
        is_trained_on = _mark_trained_on(tested.cutoffs, cutoff)
        parts = [(False, ~is_trained_on), *([(True, is_trained_on)] if in_sample else [])]
        table = [
            {MODEL_COLUMN: name, "in_sample": flag, "windows": int(mask.sum()), **tested.scores(name, windows=mask)}
            for flag, mask in parts
            if mask.any()
            for name in tested.predictions
        ]
        return pd.DataFrame(table), 0 if in_sample else int(is_trained_on.sum())
    pretrained = zero_shot_predictor(panel.freq, horizon=horizon, season=model.season, models=[model])
    result = backtest(
        panel,
        {MODEL_COLUMN: predictor, **build_baselines(season=model.season, pretrained=pretrained)},
        horizon=horizon,
        windows=windows or max(1, available),
        season=model.season,
        min_history=model.spec.min_steps,
        stride=stride,
    )
    models = {MODEL_COLUMN: as_fitted_model(model)}
    if pretrained is not None and has_quantiles(model):
        models[ZERO_SHOT] = as_fitted_model(pretrained.fitted_model)
    result = add_quantiles(result, models, levels=SCORED_LEVELS)
    is_trained_on = _mark_trained_on(result.cutoffs, cutoff)

    def score(part: Backtest, mask: np.ndarray, *, flag: bool) -> Iterator[dict[str, Any]]:
        kept = replace(part, actual=np.where(mask[..., None], part.actual, np.nan))
        for name, scores in overall_scores(score_table(kept)).items():
            metrics = {metric: scores[metric] for metric in _REPORTED_METRICS if metric in scores}
            yield {MODEL_COLUMN: name, "in_sample": flag, "windows": int(mask.sum()), **metrics}

    rows = list(score(result, ~is_trained_on, flag=False)) if (~is_trained_on).any() else []
    if in_sample and is_trained_on.any():
        rows += score(result, is_trained_on, flag=True)
    return pd.DataFrame(rows), 0 if in_sample else int(is_trained_on.sum())


def _mark_trained_on(
    cutoffs: Sequence[Sequence[Timestamp]], training_cutoff: Timestamp
) -> Bool[np.ndarray, "series window"]:
    """Returns which windows begin before the training cutoff of a model."""
    return np.array([[is_earlier(at, training_cutoff) for at in series] for series in cutoffs], dtype=bool)


@contextmanager
def _naming_windows(windows: int, stride: int) -> Iterator[None]:
    """Says of data that are too short for a fit that they are those before the windows."""
    try:
        yield
    except HistoryTooShort as error:
        raise HistoryTooShort(
            f"{error.message} These are the data before the first of {windows} windows, {stride} steps apart: use fewer windows "
            "(`n_windows`) or a smaller `step_size`.",
            where=error.where,
        ) from error


def _fit_untested(panel: Panel, spec: Any, options: ModelOptions, progress: Progress) -> Predictor:
    trained = fit_spec(panel, spec, options, test_windows=0, data_name="cross-validation", progress=progress)
    return Predictor(trained.model)


def _forecast_origins(
    panel: Panel, predictor: Predictor, *, windows: int, stride: int, columns: Mapping[str, float]
) -> pd.DataFrame:
    """Returns the forecasts of one model at the last origins of a panel: `unique_id, ds, cutoff, y, forecaster...`."""
    from forecaster.evaluation.backtest import backtest
    from forecaster.evaluation.calibration import add_quantiles
    from forecaster.evaluation.symbol_backtest import backtest_symbols

    model, levels = predictor.fitted_model, sorted(set(columns.values()))
    validate_calibration(model, columns)
    if model.spec.head.is_symbolic:
        return backtest_symbols(
            recode_panel(panel, model.spec.head.vocabulary),
            as_fitted_model(model),
            name=MODEL_COLUMN,
            horizon=model.spec.horizon,
            windows=windows,
            min_history=model.spec.min_steps,
            stride=stride,
        ).to_frame(MODEL_COLUMN)
    result = backtest(
        panel,
        {MODEL_COLUMN: predictor},
        horizon=model.spec.horizon,
        windows=windows,
        season=model.season,
        min_history=model.spec.min_steps,
        stride=stride,
    )
    if levels:
        result = add_quantiles(result, {MODEL_COLUMN: as_fitted_model(model)}, levels=levels)
    return rename_backtest_table(result.to_frame(levels=levels), columns)


def _was_fitted_before(predictor: Predictor, history: Panel) -> bool:
    """Whether a model was trained on nothing after the first cutoff of any series."""
    cutoff = predictor.fitted_model.cutoff
    ends: list[Any] = [series.end for series in history.series]
    earliest: Timestamp = min(ends)
    return cutoff == earliest or is_earlier(cutoff, earliest)


def _count_later_steps(timestamps: Timestamps, cutoff: Timestamp) -> int:
    if not is_earlier(cutoff, timestamp_at(timestamps, -1)):
        return 0
    return int(np.sum(np.asarray(timestamps > cutoff)))

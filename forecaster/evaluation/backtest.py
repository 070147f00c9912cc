"""Rolling-origin backtests: every forecaster predicts from the same cutoffs and sees only the history up to each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from forecaster.data.split import hold_out, rolling_origins
from forecaster.errors import CovariateUnknown, ForecasterError, FrequencyMismatch, HistoryTooShort
from forecaster.evaluation.baselines import ForecastFunction
from forecaster.evaluation.rolling_origins import ForecastArray, forecast_all_origins
from forecaster.frequency.timestamps import Timestamp, next_timestamps, timestamp_at
from forecaster.metrics import mae, mse, nanmean, scale_season, seasonal_error, smape
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.predictor import Predictor
from forecaster.prediction.validation import InputValidator
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.series import Forecast, Panel, Series
from forecaster.shapes import Float64

BacktestQuantileArray = Float64[np.ndarray, "series window horizon level"]


@dataclass(frozen=True, eq=False)
class Backtest:
    """Raw forecasts and actuals of all origins; every score is computed from these.

    Attributes:
        series: The whole series that were cut.
        cutoffs: Timestamp of the last observed step; a list of windows for each series.
        actual: The actuals; NaN where nothing was observed.
        forecasts: Point forecasts by forecaster name; NaN where there is no forecast.
        scale: Mean absolute error of the seasonal naive forecast on the history before the first cutoff, one per series; that of
            the last value for a history that is not longer than a season.
        square_scale: The mean squared error of the same forecast.
        excluded_ids: Ids of the series that were too short.
        stride: Steps between the cutoffs.
        warnings: By forecaster, the warnings and errors of its outcomes, one line each; a predictor reports none.
        levels: Levels of the quantiles, ascending.
        quantiles: Calibrated quantiles by name, of those forecasters that have them; NaN where there is no forecast.
        scale_note: Which series are scaled by the error of the last value; None if there are none.
    """

    series: Sequence[Series]
    cutoffs: Sequence[Sequence[Timestamp]]
    actual: ForecastArray
    forecasts: Mapping[str, ForecastArray]
    scale: Float64[np.ndarray, "series"]
    square_scale: Float64[np.ndarray, "series"]
    excluded_ids: Sequence[str]
    stride: int
    warnings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    levels: Sequence[float] = ()
    quantiles: Mapping[str, BacktestQuantileArray] = field(default_factory=dict)
    scale_note: str | None = None

    @property
    def horizon(self) -> int:
        """Steps ahead."""
        return int(self.actual.shape[2])

    @property
    def origin_offsets(self) -> range:
        """How many steps before the end of its series each cutoff lies, oldest first."""
        return rolling_origins(windows=self.actual.shape[1], horizon=self.horizon, stride=self.stride)

    def comparable_mask(self) -> np.ndarray:
        """Returns which windows (series by window) have a forecast of every forecaster: only these enter a score.

        A forecaster without any forecast at all (for example, of another frequency) does not count here.
        """
        forecast_masks = [np.isfinite(forecast).all(axis=2) for forecast in self.forecasts.values()]
        return np.asarray(np.logical_and.reduce([mask for mask in forecast_masks if mask.any()] or forecast_masks))

    def scaled_errors(self, name: str) -> ForecastArray:
        """Returns absolute errors over the series' scale; NaN where not comparable, unobserved, or without a scale."""
        errors = np.abs(self.actual - self.forecasts[name]) / self.scale[:, None, None]
        return np.where(self.comparable_mask()[:, :, None], errors, np.nan)

    def scores(self, name: str) -> dict[str, float]:
        """Returns MASE, RMSSE, sMAPE and MAE: the mean over windows and steps of each series, then over series."""
        comparable = self.comparable_mask()[:, :, None]
        actual, forecast = np.where(comparable, self.actual, np.nan), np.where(comparable, self.forecasts[name], np.nan)
        flat = (len(actual), -1)
        actual, forecast = actual.reshape(flat), forecast.reshape(flat)
        return {
            "mase": float(nanmean(mae(actual, forecast) / self.scale)),
            "rmsse": float(nanmean(np.sqrt(mse(actual, forecast) / self.square_scale))),
            "smape": float(nanmean(smape(actual, forecast))),
            "mae": float(nanmean(mae(actual, forecast))),
        }

    def mase_by_step(self, name: str) -> Float64[np.ndarray, "horizon"]:
        """Returns the MASE of each step ahead."""
        return nanmean(nanmean(self.scaled_errors(name), axis=1), axis=0)

    def to_frame(self, *, levels: Sequence[float] = ()) -> pd.DataFrame:
        """Returns one row per series, cutoff and step: `unique_id, cutoff, ds, step, y` and a column for each forecaster.

        A forecaster with quantiles is followed by one column per level, `name-0.1`; the levels are a subset of `self.levels`.
        """
        series, windows, horizon = self.actual.shape
        timestamps = [
            next_timestamps(cutoff, freq=item.freq, steps=horizon)
            for item, cutoffs in zip(self.series, self.cutoffs, strict=True)
            for cutoff in cutoffs
        ]
        columns = {
            "unique_id": np.repeat([item.id for item in self.series], windows * horizon),
            "cutoff": np.repeat([cutoff for cutoffs in self.cutoffs for cutoff in cutoffs], horizon),
            "ds": timestamps[0].append(timestamps[1:]),
            "step": np.tile(np.arange(1, horizon + 1), series * windows),
            "y": self.actual.ravel(),
        }
        for name, values in self.forecasts.items():
            columns[name] = values.ravel()
            for level in levels if name in self.quantiles else ():
                columns[f"{name}-{level:g}"] = self.quantiles[name][..., list(self.levels).index(level)].ravel()
        return pd.DataFrame(columns)


def backtest(
    panel: Panel,
    forecasters: Mapping[str, ForecastFunction | Predictor],
    *,
    horizon: int,
    windows: int,
    season: int,
    min_history: int = 1,
    stride: int | None = None,
    progress: Progress = NO_PROGRESS,
    phase: str = "backtest",
) -> Backtest:
    """Lets every forecaster predict from the last `windows` origins of every series.

    Args:
        panel: Whole series; no forecaster sees what lies after a cutoff.
        forecasters: By name. A predictor forecasts all origins at once (`forecast_all_origins`), others get every history.
        horizon: Steps ahead.
        windows: Origins of each series.
        season: Steps of a season, for the scale of MASE.
        min_history: Steps a series must have before its first origin; shorter series are excluded.
        stride: Steps between origins; defaults to the horizon.
        progress: Receives one phase, whose steps are the forecasts of all forecasters.
        phase: Its name.
    Raises:
        HistoryTooShort: no series is long enough.
    """
    spacing = stride or horizon
    offsets = rolling_origins(windows=windows, horizon=horizon, stride=spacing)
    held_out = max(offsets, default=0)
    split = hold_out(panel, held_out, min_history=min_history)
    series = split.full.series
    histories = [item.y for item in split.history.series]
    outcomes: dict[str, _OriginForecasts] = {}
    num_windows = len(series) * len(offsets)
    with progress.phase(phase, num_windows * len(forecasters)):
        for name, forecaster in forecasters.items():
            done = num_windows * len(outcomes)
            progress.update(done, name)
            if isinstance(forecaster, Predictor):
                outcomes[name] = _OriginForecasts(
                    forecast_all_origins(
                        forecaster,
                        series,
                        horizon=horizon,
                        windows=windows,
                        stride=spacing,
                        on_forecasts=partial(_count_forecasts, progress, done),
                    )
                )
            else:
                outcomes[name] = _forecast_origins(forecaster, series, offsets, horizon)
        origins = f"{windows} window{'s' * (windows > 1)}"
        progress.update(num_windows * len(forecasters), f"{len(series)} series, {origins}")
    return Backtest(
        series=series,
        cutoffs=[_origin_timestamps(item, offsets) for item in series],
        actual=np.stack([sliding_window_view(item.y[len(item) - held_out :], horizon)[::spacing] for item in series]),
        forecasts={name: outcome.means for name, outcome in outcomes.items()},
        scale=np.array([seasonal_error(y, season=scale_season(len(y), season=season)) for y in histories]),
        square_scale=np.array(
            [seasonal_error(y, season=scale_season(len(y), season=season), power=2) for y in histories]
        ),
        excluded_ids=split.excluded_ids,
        stride=spacing,
        warnings={name: outcome.warnings for name, outcome in outcomes.items() if outcome.warnings},
        scale_note=_describe_scale([len(y) for y in histories], season=season),
    )


def _describe_scale(lengths: Sequence[int], *, season: int) -> str | None:
    """Describes for how many histories the scale of MASE is not that of a season; None if there are none."""
    num_short = sum(scale_season(length, season=season) != season for length in lengths)
    if not num_short:
        return None
    return (
        f"MASE, RMSSE: the errors of {num_short} of {len(lengths)} series are divided by that of the last value, because their "
        f"histories are not longer than a season ({season} steps)"
    )


def explain_missing_forecasts(result: Backtest, name: str, model: FittedModel | StoredModel) -> list[str]:
    """Returns why a model has no forecast at some windows: each cause, and for how many series; empty if it has all.

    A series counts once, at its first window without a forecast.
    """
    validator, offsets = InputValidator(model), result.origin_offsets
    missing = ~np.isfinite(result.forecasts[name]).all(axis=2)
    counts: Counter[str] = Counter()
    for row in np.flatnonzero(missing.any(axis=1)).tolist():
        series = result.series[row]
        history = series.take_first(len(series) - offsets[int(missing[row].argmax())])
        counts[_describe_cause(validator.find_error(history, result.horizon), history, model)] += 1
    return [f"{cause} ({count} of {len(result.series)} series)" for cause, count in counts.most_common()]


def _describe_cause(error: ForecasterError | None, series: Series, model: FittedModel | StoredModel) -> str:
    spec = model.spec
    if isinstance(error, FrequencyMismatch):
        return f"the data have the frequency {series.freq!r}, the model {model.freq!r}"
    if isinstance(error, CovariateUnknown):
        absent = [f"channel {name!r}" for name in spec.channels if name not in series.channels]
        absent += [f"covariate {name!r}" for name in spec.covariates if name not in series.covariates]
        return f"the data lack its {', '.join(absent)}" if absent else "its covariates end before the horizon does"
    if isinstance(error, HistoryTooShort):
        return (
            f"a history has fewer than the {spec.min_steps} steps that it needs, or none observed among the last "
            f"{spec.context}"
        )
    return "its forecast is not finite" if error is None else f"a history holds invalid values ({error.code})"


def _count_forecasts(progress: Progress, done_before: int, done: int) -> None:
    progress.update(done_before + done)


class _OriginForecasts(NamedTuple):
    """The forecasts of one forecaster at all origins."""

    means: ForecastArray
    warnings: tuple[str, ...] = ()


def _origin_timestamps(series: Series, offsets: Sequence[int]) -> list[Timestamp]:
    timestamps = series.timestamps
    return [timestamp_at(timestamps, len(series) - offset - 1) for offset in offsets]


def _forecast_origins(
    forecast_function: ForecastFunction, series: Sequence[Series], offsets: Sequence[int], horizon: int
) -> _OriginForecasts:
    outcomes = forecast_function(
        [item.take_first(len(item) - offset) for item in series for offset in offsets], horizon
    )
    means = [outcome.mean if isinstance(outcome, Forecast) else np.full(horizon, np.nan) for outcome in outcomes]
    warnings = [
        message
        for outcome in outcomes
        for message in (
            [f"series {outcome.id!r}: {warning}" for warning in outcome.warnings]
            if isinstance(outcome, Forecast)
            else [outcome.message]
        )
    ]
    return _OriginForecasts(np.stack(means).reshape(len(series), len(offsets), horizon), tuple(warnings))

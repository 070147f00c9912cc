"""Rolling origins: every forecaster is asked at the same cutoffs, knowing only what was known then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from forecaster.data.split import hold_out, rolling_origins
from forecaster.evaluation.baselines import ForecastFunction
from forecaster.evaluation.rolling_origins import ForecastArray, forecast_all_origins
from forecaster.frequency import Timestamp, next_timestamps, timestamp_at
from forecaster.metrics import mae, mse, nanmean, seasonal_error, smape
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast, Panel, Series
from forecaster.shapes import Float64

BacktestQuantileArray = Float64[np.ndarray, "series window horizon level"]


@dataclass(frozen=True, eq=False)
class Backtest:
    """Raw forecasts beside the truth; every score is computed from these.

    Attributes:
        series: The whole series that were cut.
        cutoffs: Stamp of the last known value, a list of windows for each series.
        actual: What came; NaN was not observed.
        forecasts: What each forecaster said, by name; NaN where it had no answer.
        scale: Mean absolute error of the seasonal naive forecast on what was known at the first cutoff, one a series.
        square_scale: The same with squares.
        left_out: Ids of the series that were too short.
        stride: Steps between the cutoffs.
        warnings: By forecaster, what its outcomes warn of and what stood in their way, a line each; a predictor's none.
        levels: Of the quantiles, rising.
        quantiles: Calibrated quantiles of the forecasters that have them, by name; NaN where there is no forecast.
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

    @property
    def horizon(self) -> int:
        """Steps ahead."""
        return int(self.actual.shape[2])

    @property
    def origin_offsets(self) -> range:
        """How many steps before the end of its series each cutoff lies, oldest first."""
        return rolling_origins(windows=self.actual.shape[1], horizon=self.horizon, stride=self.stride)

    def comparable_mask(self) -> np.ndarray:
        """Which windows (series by window) every forecaster answered: only these enter a score.

        A forecaster that answered none at all (of another frequency, say) does not count here.
        """
        answered = [np.isfinite(forecast).all(axis=2) for forecast in self.forecasts.values()]
        return np.asarray(np.logical_and.reduce([one for one in answered if one.any()] or answered))

    def scaled_errors(self, name: str) -> ForecastArray:
        """Absolute errors over the series' scale; NaN where not comparable, unobserved, or without a scale."""
        errors = np.abs(self.actual - self.forecasts[name]) / self.scale[:, None, None]
        return np.where(self.comparable_mask()[:, :, None], errors, np.nan)

    def scores(self, name: str) -> dict[str, float]:
        """MASE, RMSSE, sMAPE and MAE: of each series over its windows and steps, then the mean over series."""
        keep = self.comparable_mask()[:, :, None]
        actual, forecast = np.where(keep, self.actual, np.nan), np.where(keep, self.forecasts[name], np.nan)
        flat = (len(actual), -1)
        actual, forecast = actual.reshape(flat), forecast.reshape(flat)
        return {
            "mase": float(nanmean(mae(actual, forecast) / self.scale)),
            "rmsse": float(nanmean(np.sqrt(mse(actual, forecast) / self.square_scale))),
            "smape": float(nanmean(smape(actual, forecast))),
            "mae": float(nanmean(mae(actual, forecast))),
        }

    def mase_by_step(self, name: str) -> Float64[np.ndarray, "horizon"]:
        """MASE of each step ahead."""
        return nanmean(nanmean(self.scaled_errors(name), axis=1), axis=0)

    def to_frame(self, *, levels: Sequence[float] = ()) -> pd.DataFrame:
        """One row a series, cutoff and step: `unique_id, cutoff, ds, step, y` and a column for each forecaster.

        Each that has quantiles is followed by a column for each of the levels, `name-0.1`; they are among `self.levels`.
        """
        series, windows, horizon = self.actual.shape
        stamps = [
            next_timestamps(cutoff, freq=one.freq, steps=horizon)
            for one, cutoffs in zip(self.series, self.cutoffs, strict=True)
            for cutoff in cutoffs
        ]
        columns = {
            "unique_id": np.repeat([one.id for one in self.series], windows * horizon),
            "cutoff": np.repeat([stamp for cutoffs in self.cutoffs for stamp in cutoffs], horizon),
            "ds": stamps[0].append(stamps[1:]),
            "step": np.tile(np.arange(1, horizon + 1), series * windows),
            "y": self.actual.ravel(),
        }
        for name, cube in self.forecasts.items():
            columns[name] = cube.ravel()
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
) -> Backtest:
    """Asks every forecaster at the last `windows` origins of every series.

    Args:
        panel: Whole series; nobody is shown what lies after a cutoff.
        forecasters: By name. A predictor answers for all origins at once (`forecast_all_origins`), others are shown every history.
        horizon: Steps ahead.
        windows: Origins of each series.
        season: Steps of a season, for the scale of MASE.
        keep: Steps a series must have before its first origin, else it is left out.
        stride: Steps between origins; a horizon, if not given.
    Raises:
        HistoryTooShort: no series is long enough.
    """
    apart = stride or horizon
    lefts = rolling_origins(windows=windows, horizon=horizon, stride=apart)
    held = max(lefts, default=0)
    split = hold_out(panel, held, min_history=min_history)
    series = split.full.series
    known = [one.y for one in split.history.series]
    told = {
        name: _OriginForecasts(forecast_all_origins(each, series, horizon=horizon, windows=windows, stride=apart))
        if isinstance(each, Predictor)
        else _forecast_origins(each, series, lefts, horizon)
        for name, each in forecasters.items()
    }
    return Backtest(
        series=series,
        cutoffs=[_origin_timestamps(one, lefts) for one in series],
        actual=np.stack([sliding_window_view(one.y[len(one) - held :], horizon)[::apart] for one in series]),
        forecasts={name: each.means for name, each in told.items()},
        scale=np.array([seasonal_error(y, season=season) for y in known]),
        square_scale=np.array([seasonal_error(y, season=season, power=2) for y in known]),
        excluded_ids=split.excluded_ids,
        stride=apart,
        warnings={name: each.warnings for name, each in told.items() if each.warnings},
    )


class _OriginForecasts(NamedTuple):
    """What a forecaster said at all origins."""

    means: ForecastArray
    warnings: tuple[str, ...] = ()


def _origin_timestamps(series: Series, offsets: Sequence[int]) -> list[Timestamp]:
    stamps = series.timestamps
    return [timestamp_at(stamps, len(series) - left - 1) for left in offsets]


def _forecast_origins(
    forecast_function: ForecastFunction, series: Sequence[Series], offsets: Sequence[int], horizon: int
) -> _OriginForecasts:
    outcomes = forecast_function([one.take_first(len(one) - left) for one in series for left in offsets], horizon)
    means = [outcome.mean if isinstance(outcome, Forecast) else np.full(horizon, np.nan) for outcome in outcomes]
    warnings = [
        line
        for outcome in outcomes
        for line in (
            [f"series {outcome.id!r}: {warning}" for warning in outcome.warnings]
            if isinstance(outcome, Forecast)
            else [outcome.message]
        )
    ]
    return _OriginForecasts(np.stack(means).reshape(len(series), len(offsets), horizon), tuple(warnings))

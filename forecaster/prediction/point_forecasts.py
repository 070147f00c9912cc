"""Point forecasts as users get them: with timestamps and warnings, blended, and repaired where the network has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np

from forecaster.data.batching import compute_future_timestamps, replace_non_finite
from forecaster.engines.statistical.blend import blend_forecasts
from forecaster.errors import BadStamp
from forecaster.frequency.timestamps import Timestamps
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.input_warnings import InputInspector
from forecaster.prediction.interval_units import minimum_scale
from forecaster.series import Forecast, Series
from forecaster.series.history_summary import find_constant
from forecaster.shapes import Float64


class PointForecastBuilder:
    """Builds the point forecasts of one fitted model from what its networks predict.

    With a clock, forecasts of histories whose last period contains the present have a warning.
    """

    def __init__(self, fitted_model: FittedModel | StoredModel, *, clock: Callable[[], datetime] | None = None) -> None:
        self._fitted_model, self._inspector, self._clock = fitted_model, InputInspector(fitted_model), clock

    def build(
        self, series: Sequence[Series], means: Float64[np.ndarray, "series horizon"], *, shared_history: bool = False
    ) -> list[Forecast | BadStamp]:
        """Returns the forecast of each series; BadStamp where its timestamps leave the calendar.

        Args:
            series: The histories.
            means: What the networks predict; non-finite from the step where they diverged.
            shared_history: Whether all series have the same history, to which the statistical models of a blend are then fitted
                once.
        """
        forecasts = self._add_timestamps(series, means)
        return self._complete(series, self._blend(series, forecasts, shared_history=shared_history))

    def _add_timestamps(
        self, series: Sequence[Series], means: Float64[np.ndarray, "series horizon"]
    ) -> list[Forecast | BadStamp]:
        finite = np.isfinite(means).all(axis=1).tolist()
        timestamps_of_series = compute_future_timestamps(series, means.shape[1])
        return [
            timestamps
            if isinstance(timestamps, BadStamp)
            else Forecast(item.id, timestamps, mean)
            if is_finite
            else self._build_repaired(item, timestamps, mean)
            for item, timestamps, mean, is_finite in zip(series, timestamps_of_series, means, finite, strict=True)
        ]

    def _build_repaired(self, series: Series, timestamps: Timestamps, mean: Float64[np.ndarray, "horizon"]) -> Forecast:
        """Builds a forecast with a warning, and with the seasonal naive from the first non-finite value on."""
        non_finite = np.flatnonzero(~np.isfinite(mean))
        warning = (
            f"The network's forecast diverged at step {non_finite[0] + 1} of {len(mean)}; from that step on it is the seasonal "
            "naive forecast. Check the history for extreme values, or request a shorter horizon."
        )
        history = series.y
        if series.history_summary is not None:
            history = np.concatenate([series.history_summary.last_season_values, series.y])
        repaired_mean = replace_non_finite(mean, history, season=self._fitted_model.season)
        return Forecast(series.id, timestamps, repaired_mean, (warning,), has_fallback=True)

    def _blend(
        self, series: Sequence[Series], outcomes: Sequence[Forecast | BadStamp], *, shared_history: bool
    ) -> Sequence[Forecast | BadStamp]:
        """Blends the forecasts with those of statistical models that are fitted to each history."""
        weights, season = self._fitted_model.blend_weights, self._fitted_model.season
        forecasts = [outcome for outcome in outcomes if isinstance(outcome, Forecast)]
        if not weights or not forecasts:
            return outcomes
        histories = [item.y for item, outcome in zip(series, outcomes, strict=True) if isinstance(outcome, Forecast)]
        blended = blend_forecasts(
            np.stack([forecast.mean for forecast in forecasts]),
            histories[:1] if shared_history else histories,
            weights,
            season=season,
        )
        results = iter(
            replace(
                forecast,
                mean=mean,
                warnings=(*forecast.warnings, *blend_warnings),
                has_fallback=forecast.has_fallback or bool(blend_warnings),
            )
            for forecast, mean, blend_warnings in zip(forecasts, *blended, strict=True)
        )
        return [next(results) if isinstance(outcome, Forecast) else outcome for outcome in outcomes]

    def _complete(self, series: Sequence[Series], outcomes: Sequence[Forecast | BadStamp]) -> list[Forecast | BadStamp]:
        """Replaces the forecasts of constant histories, and adds the warnings about the input of each series."""
        pairs = [
            (item, outcome) for item, outcome in zip(series, outcomes, strict=True) if isinstance(outcome, Forecast)
        ]
        if not pairs:
            return list(outcomes)
        # A symbol that repeats may end, and the network has learned when.
        is_symbolic = self._fitted_model.spec.head.is_symbolic
        constants = [None if is_symbolic else find_constant(item.y, item.history_summary) for item, _ in pairs]
        warnings = self._inspector.describe_batch(
            [item for item, _ in pairs],
            len(pairs[0][1].mean),
            is_constant=[constant is not None for constant in constants],
            now=None if self._clock is None else self._clock(),
        )
        completed = iter(map(_complete_forecast, [forecast for _, forecast in pairs], constants, warnings))
        return [next(completed) if isinstance(outcome, Forecast) else outcome for outcome in outcomes]


def _complete_forecast(forecast: Forecast, constant: float | None, warnings: tuple[str, ...]) -> Forecast:
    """Returns the forecast with warnings; for a constant history, the constant in place of the forecast."""
    if constant is not None:
        warning = (
            f"The history is constant: all observed values are {constant:g}. The forecast is this value, without the model; its "
            f"intervals have a minimum width, as if errors were about {minimum_scale(constant):g}."
        )
        return Forecast(forecast.id, forecast.ds, np.full(len(forecast.mean), constant), (warning, *warnings))
    return replace(forecast, warnings=(*forecast.warnings, *warnings)) if warnings else forecast

"""From what the networks predict to the outcomes of series: point forecasts, quantiles around them, and bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

import numpy as np

from forecaster.errors import ForecasterError
from forecaster.intervals.adaptive import AdaptiveState
from forecaster.prediction.bounds import Bounds, round_quantiles
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.head_quantiles import (
    attach_head_quantiles,
    recalibrate_offsets,
    split_median,
    with_median,
)
from forecaster.prediction.interval_units import IntervalUnits
from forecaster.prediction.length_batches import MAX_BATCH_ROWS
from forecaster.prediction.point_forecasts import PointForecastBuilder
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64


class ForecastBuilder:
    """Builds the outcomes of series from what the networks of one fitted model predict for them.

    Quantiles are those of the head, as they are or recalibrated, if `has_head_quantiles`; otherwise the calibration adds them
    around the finished point forecasts.
    """

    def __init__(
        self,
        fitted_model: FittedModel | StoredModel,
        *,
        units: IntervalUnits,
        bounds: Bounds,
        has_head_quantiles: bool,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._calibration, self._units, self._bounds = fitted_model.calibration, units, bounds
        self._own_levels, self._has_head_quantiles = fitted_model.spec.head.levels, has_head_quantiles
        self._point_forecasts = PointForecastBuilder(fitted_model, clock=clock)

    def head_levels(self, requested: Sequence[float]) -> list[float]:
        """Returns the levels at which the head is evaluated: those requested, or its own if it is recalibrated.

        There are none, as for point forecasts, if quantiles are not those of the head.
        """
        if not requested or not self._has_head_quantiles:
            return []
        return with_median(requested if self._calibration is None else self._own_levels)

    def build(
        self,
        series: Sequence[Series],
        predictions: Float64[np.ndarray, "series horizon *head_level"],
        levels: Sequence[float],
        adaptive_state: AdaptiveState | None,
        *,
        shared_history: bool,
    ) -> list[Forecast | ForecasterError]:
        """Returns the outcome of each series.

        Args:
            series: The histories.
            predictions: Point forecasts or, if there are any `head_levels`, quantiles at these.
            levels: The levels of the quantiles.
            adaptive_state: Shifts of the quantiles from actuals since the calibration.
            shared_history: Whether all series have the same history.
        """
        if self.head_levels(levels):
            return self._bound(series, self._build_with_head_quantiles(series, predictions, levels, adaptive_state))
        forecasts = self._point_forecasts.build(series, predictions, shared_history=shared_history)
        return self._bound(series, forecasts, levels, adaptive_state)

    def add_quantiles(
        self,
        series: Sequence[Series],
        outcomes: Sequence[Forecast | ForecasterError],
        levels: Sequence[float],
        adaptive_state: AdaptiveState | None,
    ) -> list[Forecast | ForecasterError]:
        """Returns the outcomes with calibrated quantiles around their means, in ascending order of level.

        The calibration must be in units of the history, since those of a head need its own quantiles.
        """
        calibration, sorted_levels = self._calibration, sorted(set(levels))
        assert calibration is not None, "the arguments were validated"
        assert calibration.unit == "history", "a head adds its quantiles itself"
        results = list(outcomes)
        forecast_indices = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, Forecast)]
        for first in range(0, len(forecast_indices), MAX_BATCH_ROWS):
            batch = forecast_indices[first : first + MAX_BATCH_ROWS]
            forecasts = [outcome for outcome in (outcomes[index] for index in batch) if isinstance(outcome, Forecast)]
            offsets = calibration.compute_offsets(
                sorted_levels,
                horizon=len(forecasts[0].mean),
                scales=self._units.compute_interval_scales(
                    [series[index].y for index in batch], [series[index].history_summary for index in batch]
                ),
                groups=[self._units.interval_group(series[index]) for index in batch],
                adaptive_state=adaptive_state,
            )
            values = np.stack([forecast.mean for forecast in forecasts])[:, None] + offsets.transpose(0, 2, 1)
            for index, forecast, row in zip(
                batch, forecasts, values, strict=True
            ):  # `replace` would take most of the time
                quantiles = dict(zip(sorted_levels, row, strict=True))
                results[index] = Forecast(
                    forecast.id, forecast.ds, forecast.mean, forecast.warnings, quantiles, forecast.has_fallback
                )
        return results

    def _build_with_head_quantiles(
        self,
        series: Sequence[Series],
        quantiles: Float64[np.ndarray, "series horizon head_level"],
        requested: Sequence[float],
        adaptive_state: AdaptiveState | None,
    ) -> list[Forecast | ForecasterError]:
        """Builds the forecasts with quantiles at the requested levels, from those at `head_levels`."""
        levels, head_levels = with_median(requested), self.head_levels(requested)
        means, offsets = split_median(quantiles, head_levels)
        if self._calibration is not None:
            offsets = recalibrate_offsets(
                self._calibration,
                offsets,
                head_levels,
                levels,
                changes=self._units.measure_head_changes(
                    [item.y for item in series], [item.history_summary for item in series]
                ),
                groups=[self._units.interval_group(item) for item in series],
                adaptive_state=adaptive_state,
            )
        return attach_head_quantiles(
            series,
            self._point_forecasts.build(series, means),
            offsets,
            levels,
            requested,
            compute_error_size=lambda item: self._units.compute_interval_scale(item.y, item.history_summary),
        )

    def _bound(
        self,
        series: Sequence[Series],
        outcomes: Sequence[Forecast | ForecasterError],
        levels: Sequence[float] = (),
        adaptive_state: AdaptiveState | None = None,
    ) -> list[Forecast | ForecasterError]:
        """Returns the outcomes within the bounds of the model, with warnings where a history switches one off.

        With levels, calibrated quantiles are added around the bounded means, as the calibration measured them.
        """
        row_bounds = self._bounds.for_series(series) if self._bounds.is_active else None
        bounded = list(outcomes) if row_bounds is None else row_bounds.clip_forecasts(outcomes)
        if levels:
            bounded = self.add_quantiles(series, bounded, levels, adaptive_state)
        if self._calibration is not None and self._calibration.is_rounded:
            bounded = round_quantiles(series, bounded)
        return bounded if row_bounds is None else row_bounds.add_warnings(row_bounds.clip_forecasts(bounded))

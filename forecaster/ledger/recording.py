"""Builds the ledger's records of served forecasts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from forecaster.data.profile import compute_profile
from forecaster.intervals.adaptive import AdaptiveState, normal_quantiles
from forecaster.ledger.records import (
    INTERVAL_LEVELS,
    RECORDED_LEVELS,
    ForecastRecord,
    ModelIdentity,
    encode_timestamp,
    encode_timestamps,
    series_key,
)
from forecaster.metrics import seasonal_error
from forecaster.prediction.bounds import without_bounds
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast, Series


class SeriesNaming(NamedTuple):
    """How series are named in the ledger: by a salted hash and, if `keep_ids`, by their plain id as well."""

    salt: bytes
    keep_ids: bool


def build_records(
    predictor: Any,
    model: ModelIdentity,
    series: Sequence[Series],
    forecasts: Sequence[Forecast],
    *,
    naming: SeriesNaming,
    adaptive_state: AdaptiveState | None,
    made_at: Sequence[float],
) -> list[ForecastRecord]:
    """Returns the records of forecasts of one horizon.

    Args:
        predictor: The model that made them; for a calibrated Predictor the quantiles of RECORDED_LEVELS are recorded as well.
        model: Its identity.
        series: The histories at the time of the forecast.
        forecasts: One for each series.
        naming: How series are named.
        adaptive_state: The adaptive state that the served quantiles include.
        made_at: When each was made, in seconds since 1970.
    """
    quantiles, units = _calibrated_quantiles(predictor, series, forecasts, adaptive_state)
    shifts = (
        {}
        if adaptive_state is None
        else dict(zip(RECORDED_LEVELS, adaptive_state.shifts_at(RECORDED_LEVELS).tolist(), strict=True))
    )
    fitted_model = predictor.fitted_model
    records = []
    encoded = dict[int, list[int]]()  # series that end at the same time share their timestamps
    for index, (item, forecast) in enumerate(zip(series, forecasts, strict=True)):
        scale = _compute_error_scale(item, season=fitted_model.season)
        records.append(
            ForecastRecord(
                made_at=made_at[index],
                name=model.name,
                version=model.version,
                digest=model.digest,
                key=series_key(naming.salt, item.id, item.start),
                id=item.id if naming.keep_ids else None,
                group=_interval_group(item, fitted_model.spec.group),
                origin=encode_timestamp(item.end),
                scale=scale if math.isfinite(scale) else None,
                timestamps=encoded.get(id(forecast.ds))
                or encoded.setdefault(id(forecast.ds), encode_timestamps(forecast.ds)),
                mean=forecast.mean.tolist(),
                quantiles={
                    **{level: values.tolist() for level, values in forecast.quantiles.items()},
                    **quantiles[index],
                },
                units=units[index],
                shifts=shifts,
                inputs=compute_profile(item.y, context=fitted_model.spec.context, season=fitted_model.season),
            )
        )
    return records


def _compute_error_scale(series: Series, *, season: int) -> float:
    """Returns the seasonal naive's error over the whole history, including dropped steps; NaN if undefined."""
    if series.history_summary is None:
        return seasonal_error(series.y, season=season)
    return series.history_summary.mean_seasonal_change(series.y) or float("nan")


def _interval_group(series: Series, column: str | None) -> str | None:
    group = None if column is None else series.static.get(column)
    return None if group is None else group.replace("\x00", "")  # PostgreSQL cannot store NUL in text


def _calibrated_quantiles(
    predictor: Any, series: Sequence[Series], forecasts: Sequence[Forecast], adaptive_state: AdaptiveState | None
) -> tuple[list[dict[float, list[float]]], list[list[float]]]:
    """Returns the quantiles of RECORDED_LEVELS of each forecast, as they would be served, and the unit of a shift by step.

    They are not clipped at the bounds of the model: adaptive intervals count the actuals up to a quantile, and at a bound, as
    of counts at zero, these would be too many whatever the shift. A head computes quantiles together with its forecast, so
    the series are forecast again for them.
    """
    if not isinstance(predictor, Predictor) or not predictor.has_quantiles:
        return [{} for _ in series], [[] for _ in series]
    calibration, horizon = predictor.fitted_model.calibration, len(forecasts[0].mean)
    if calibration is not None and calibration.unit == "history":
        outcomes = predictor.add_quantiles(series, forecasts, RECORDED_LEVELS, adaptive_state)
    else:
        unbounded = Predictor(without_bounds(predictor.fitted_model), engine=predictor.engine)
        outcomes = unbounded.forecast_batch(series, horizon, levels=RECORDED_LEVELS, adaptive_state=adaptive_state)
    found = [outcome.quantiles if isinstance(outcome, Forecast) else {} for outcome in outcomes]
    quantiles = [{level: values.tolist() for level, values in item.items()} for item in found]
    if calibration is None:
        return quantiles, [[] for _ in series]
    if calibration.unit == "head":
        low, high = INTERVAL_LEVELS[0.8]
        score_range = float(np.ptp(normal_quantiles((low, high))))
        spread = calibration.pool.spreads[0] / score_range
        return quantiles, [(spread * (item[high] - item[low])).tolist() if item else [] for item in found]
    groups = [predictor.interval_group(item) for item in series]
    scales = predictor.compute_interval_scales([item.y for item in series], [item.history_summary for item in series])
    is_constant = np.array([predictor.compute_scale(item.y, item.history_summary) == 0 for item in series])
    units = calibration.compute_spreads(horizon=horizon, scales=np.where(is_constant, 0.0, scales), groups=groups)
    return quantiles, units.tolist()

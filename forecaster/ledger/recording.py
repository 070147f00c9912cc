"""From what a service forecast to what the ledger keeps of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from forecaster.data.profile import compute_profile
from forecaster.intervals.adaptive import AdaptiveState
from forecaster.ledger.records import (
    RECORDED_LEVELS,
    ForecastRecord,
    ModelIdentity,
    encode_timestamp,
    encode_timestamps,
    series_key,
)
from forecaster.metrics import seasonal_error
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64


class SeriesNaming(NamedTuple):
    """How series are named: with the ledger's salt, and in clear too only if that is allowed."""

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
    """What to keep of forecasts of one horizon.

    Args:
        predictor: What made them; of a calibrated Predictor the quantiles of LEVELS are kept as well.
        model: Which it is.
        series: The histories, as they were known.
        forecasts: One for each.
        keeping: How series are named.
        drift: What the quantiles that were served hold of late actuals.
        at: When each was made, in seconds since 1970.
    """
    quantiles, units = _calibrated_quantiles(predictor, series, forecasts, adaptive_state)
    shifts = (
        {}
        if adaptive_state is None
        else dict(zip(RECORDED_LEVELS, adaptive_state.shifts_at(RECORDED_LEVELS).tolist(), strict=True))
    )
    learned = predictor.fitted_model
    told, written = [], dict[int, list[int]]()  # series that end together share their stamps
    for place, (one, forecast) in enumerate(zip(series, forecasts, strict=True)):
        scale = _compute_error_scale(one, season=learned.season)
        told.append(
            ForecastRecord(
                made_at=made_at[place],
                name=model.name,
                version=model.version,
                digest=model.digest,
                key=series_key(naming.salt, one.id, one.start),
                id=one.id if naming.keep_ids else None,
                group=_interval_group(one, learned.spec.group),
                origin=encode_timestamp(one.end),
                scale=scale if math.isfinite(scale) else None,
                timestamps=written.get(id(forecast.ds))
                or written.setdefault(id(forecast.ds), encode_timestamps(forecast.ds)),
                mean=forecast.mean.tolist(),
                quantiles={
                    **{level: values.tolist() for level, values in forecast.quantiles.items()},
                    **quantiles[place],
                },
                units=units[place],
                shifts=shifts,
                inputs=compute_profile(one.y, context=learned.spec.context, season=learned.season),
            )
        )
    return told


def _compute_error_scale(series: Series, *, season: int) -> float:
    """What errors of a forecast are counted in, by all of the history, whether it is still held or not; NaN without any."""
    if series.history_summary is None:
        return seasonal_error(series.y, season=season)
    return series.history_summary.mean_seasonal_change(series.y) or float("nan")


def _interval_group(series: Series, column: str | None) -> str | None:
    found = None if column is None else series.static.get(column)
    return None if found is None else found.replace("\x00", "")  # which PostgreSQL's texts cannot hold


def _calibrated_quantiles(
    predictor: Any, series: Sequence[Series], forecasts: Sequence[Forecast], adaptive_state: AdaptiveState | None
) -> tuple[list[dict[float, list[float]]], list[list[float]]]:
    """The quantiles of LEVELS about each forecast, as they would have been served, and the units of a shift."""
    calibration = predictor.fitted_model.calibration if isinstance(predictor, Predictor) else None
    if calibration is None:
        return [{} for _ in series], [[] for _ in series]
    horizon = len(forecasts[0].mean)
    scales: Float64[np.ndarray, "series"] = np.nan_to_num(
        np.array([predictor.compute_scale(one.y, one.history_summary) for one in series])
    )
    groups = [predictor.interval_group(one) for one in series]
    offsets = calibration.compute_offsets(
        RECORDED_LEVELS, horizon=horizon, scales=scales, groups=groups, adaptive_state=adaptive_state
    )
    quantiles = [
        {level: (forecast.mean + own[:, column]).tolist() for column, level in enumerate(RECORDED_LEVELS)}
        for forecast, own in zip(forecasts, offsets, strict=True)
    ]
    return quantiles, calibration.compute_spreads(horizon=horizon, scales=scales, groups=groups).tolist()

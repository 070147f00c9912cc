"""From what a service forecast to what the ledger keeps of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from forecaster.data.profile import profile
from forecaster.intervals.adaptive import Drift
from forecaster.ledger.records import LEVELS, Made, Told, key_of, tick, ticks
from forecaster.metrics import seasonal_error
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64


class Keeping(NamedTuple):
    """How series are named: with the ledger's salt, and in clear too only if that is allowed."""

    salt: bytes
    clear: bool


def made(
    predictor: Any,
    model: Told,
    series: Sequence[Series],
    forecasts: Sequence[Forecast],
    *,
    keeping: Keeping,
    drift: Drift | None,
    at: Sequence[float],
) -> list[Made]:
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
    quantiles, units = _standing(predictor, series, forecasts, drift)
    shifts = {} if drift is None else dict(zip(LEVELS, drift.at(LEVELS).tolist(), strict=True))
    learned = predictor.forecaster
    told, written = [], dict[int, list[int]]()  # series that end together share their stamps
    for place, (one, forecast) in enumerate(zip(series, forecasts, strict=True)):
        scale = _scale(one, season=learned.season)
        told.append(
            Made(
                at=at[place],
                name=model.name,
                version=model.version,
                digest=model.digest,
                key=key_of(keeping.salt, one.id, one.start),
                id=one.id if keeping.clear else None,
                group=_group(one, learned.spec.group),
                origin=tick(one.end),
                scale=scale if math.isfinite(scale) else None,
                stamps=written.get(id(forecast.ds)) or written.setdefault(id(forecast.ds), ticks(forecast.ds)),
                mean=forecast.mean.tolist(),
                quantiles={
                    **{level: values.tolist() for level, values in forecast.quantiles.items()},
                    **quantiles[place],
                },
                units=units[place],
                shifts=shifts,
                inputs=profile(one.y, context=learned.spec.context, season=learned.season),
            )
        )
    return told


def _scale(one: Series, *, season: int) -> float:
    """What errors of a forecast are counted in, by all of the history, whether it is still held or not; NaN without any."""
    if one.past is None:
        return seasonal_error(one.y, season=season)
    return one.past.seasonal_change(one.y) or float("nan")


def _group(one: Series, column: str | None) -> str | None:
    found = None if column is None else one.static.get(column)
    return None if found is None else found.replace("\x00", "")  # which PostgreSQL's texts cannot hold


def _standing(
    predictor: Any, series: Sequence[Series], forecasts: Sequence[Forecast], drift: Drift | None
) -> tuple[list[dict[float, list[float]]], list[list[float]]]:
    """The quantiles of LEVELS about each forecast, as they would have been served, and the units of a shift."""
    calibration = predictor.forecaster.calibration if isinstance(predictor, Predictor) else None
    if calibration is None:
        return [{} for _ in series], [[] for _ in series]
    horizon = len(forecasts[0].mean)
    scales: Float64[np.ndarray, "series"] = np.nan_to_num(
        np.array([predictor.scale(one.y, one.past) for one in series])
    )
    groups = [predictor.group(one) for one in series]
    offsets = calibration.offsets(LEVELS, horizon=horizon, scales=scales, groups=groups, drift=drift)
    quantiles = [
        {level: (forecast.mean + own[:, column]).tolist() for column, level in enumerate(LEVELS)}
        for forecast, own in zip(forecasts, offsets, strict=True)
    ]
    return quantiles, calibration.units(horizon=horizon, scales=scales, groups=groups).tolist()

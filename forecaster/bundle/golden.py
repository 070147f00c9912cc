"""Golden requests: synthetic histories with the forecasts of the model when it was saved. They are replayed on loading."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from forecaster.engines.engine import Engine
from forecaster.errors import BundleDamaged, ForecasterError, GoldenMismatch
from forecaster.frequency.timestamps import Timestamp, format_timestamp, parse_bounded_timestamp, synthetic_start
from forecaster.prediction.bounds import without_bounds
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64

# Relative to the range of forecast and history. Float32 rounding differs between processors; other weights differ by more.
GOLDEN_TOLERANCE = 1e-4
MAX_HORIZON = 32  # steps of a golden forecast
_MAX_REQUESTS = 16
_MAX_VALUE = 1e9  # golden histories are synthetic; with larger values, the tolerance would accept any forecast
FittedModelT = TypeVar("FittedModelT", FittedModel, StoredModel)


class GoldenRequest(BaseModel):
    """One golden request and its forecast."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    start: str
    y: tuple[float | None, ...]
    mean: tuple[float, ...]
    network: tuple[float, ...] = ()  # of a blend: the forecast of the network alone, to verify its engines
    # Of symbols: the probabilities of the next one. They are compared, as the most probable symbol may change by rounding.
    probabilities: tuple[float, ...] = ()


class GoldenFile(BaseModel):
    """`golden.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    horizon: int = Field(ge=1, le=MAX_HORIZON)
    requests: tuple[GoldenRequest, ...] = Field(min_length=1, max_length=_MAX_REQUESTS)


def build_golden_file(fitted_model: FittedModel) -> GoldenFile:
    """Builds golden requests for two synthetic histories: a trend with a season, and a short history with a gap.

    For networks that read whole histories the first is longer than the context, so that the replay covers the recurrent state
    and the scale from the start of the history. Forecasts are not clipped at bounds, which could hide a difference. No data of
    users are included.
    """
    spec, unbounded = fitted_model.spec, without_bounds(fitted_model)
    generator = np.random.default_rng(0)
    steps = np.arange(spec.context if spec.reads == "window" else 3 * spec.context)
    full = (
        100
        + 0.1 * steps
        + 10 * np.sin(2 * np.pi * steps / max(fitted_model.season, 2))
        + generator.normal(size=len(steps))
    )
    if spec.head.is_symbolic:
        full = generator.integers(0, len(spec.head.vocabulary) + 1, size=len(steps)).astype(np.float64)
    short = full[: spec.min_steps].copy()
    short[len(short) // 2 : len(short) // 2 + 1] = np.nan if len(short) > 2 else short[-1]
    start, horizon = synthetic_start(fitted_model.freq), min(spec.horizon, MAX_HORIZON)
    predictor, network_predictor, requests = (
        Predictor(unbounded),
        Predictor(replace(unbounded, blend_weights={})),
        [],
    )
    for y in (full, short):
        series = _build_golden_series(fitted_model, start, y, horizon)
        requests.append(
            GoldenRequest(
                start=format_timestamp(start),
                y=tuple(None if np.isnan(value) else float(value) for value in y),
                mean=tuple(predictor.forecast(series, horizon).mean),
                network=tuple(network_predictor.forecast(series, horizon).mean) if fitted_model.blend_weights else (),
                probabilities=_predict_probabilities(predictor, series) if spec.head.is_symbolic else (),
            )
        )
    return GoldenFile(horizon=horizon, requests=tuple(requests))


def replay_golden_file(
    fitted_model: FittedModel | StoredModel,
    golden: GoldenFile,
    engine: Engine | None = None,
    *,
    where: str = "golden.json",
) -> None:
    """Replays the golden requests; raises GoldenMismatch if a forecast differs by more than the tolerance.

    Without an engine, the default engine of a Predictor is used. `where` is the file that the error names.
    """
    predictor = Predictor(without_bounds(fitted_model), engine=engine)
    for index, request in enumerate(golden.requests):
        y = np.array([np.nan if value is None else value for value in request.y], dtype=np.float64)
        series = _build_golden_series(
            fitted_model, parse_bounded_timestamp(request.start, freq=fitted_model.freq), y, golden.horizon
        )
        if fitted_model.spec.head.is_symbolic:
            expected, tolerance = np.array(request.probabilities), GOLDEN_TOLERANCE
            is_equal = np.allclose(_predict_probabilities(predictor, series), expected, rtol=0, atol=tolerance)
        else:
            outcome = predictor.forecast_batch([series], golden.horizon)[0]
            expected = np.array(request.mean)
            tolerance = GOLDEN_TOLERANCE * (np.ptp(np.append(expected, y[~np.isnan(y)])) + 1e-12)
            is_equal = isinstance(outcome, Forecast) and np.allclose(outcome.mean, expected, rtol=0, atol=tolerance)
        if not is_equal:
            raise GoldenMismatch(
                f"Expected the stored forecast of golden request {index} within {tolerance:.3g}; the forecast differs. The code "
                "that computes forecasts has changed since the bundle was written. Train the model again.",
                where=where,
            )


def _predict_probabilities(predictor: Predictor, series: Series) -> tuple[float, ...]:
    """Returns the probabilities of the next symbol; raises the error of an invalid series."""
    [outcome] = predictor.predict_probabilities([series])
    if isinstance(outcome, ForecasterError):
        raise outcome
    return tuple(outcome[0])


def validate_golden_file(golden: GoldenFile, fitted_model: StoredModel) -> None:
    """Raises BundleDamaged unless the golden requests are ones that `build_golden_file` could have built for this model."""
    spec, horizon = fitted_model.spec, golden.horizon
    network_steps = horizon if fitted_model.blend_weights else 0
    for index, request in enumerate(golden.requests):
        observed = [value for value in request.y if value is not None]
        sizes = (len(request.mean), len(request.network))
        if (
            sizes != (horizon, network_steps)
            or len(request.probabilities) != len(spec.head.vocabulary)
            or not spec.min_steps <= len(request.y) <= 3 * spec.context
            or not observed
            or max(map(abs, observed)) > _MAX_VALUE
        ):
            raise BundleDamaged(
                f"Expected {spec.min_steps} to {3 * spec.context} values up to {_MAX_VALUE:g} in golden request {index}, with "
                f"forecasts of {horizon} and {network_steps} steps; found {len(request.y)} values, and forecasts of {sizes[0]} "
                f"and {sizes[1]} steps. Train the model again.",
                where="golden.json",
            )


def strip_blend(fitted_model: FittedModelT, golden: GoldenFile) -> tuple[FittedModelT, GoldenFile]:
    """Returns the model without its blend, and the golden requests with the forecasts of its network alone."""
    if not fitted_model.blend_weights:
        return fitted_model, golden
    requests = tuple(request.model_copy(update={"mean": request.network}) for request in golden.requests)
    return replace(fitted_model, blend_weights={}), golden.model_copy(update={"requests": requests})


def _build_golden_series(
    fitted_model: FittedModel | StoredModel, start: Timestamp, y: Float64[np.ndarray, "_"], horizon: int
) -> Series:
    """Builds the series of a golden request. Covariates depend only on the encoding; channels, with gaps, only on the step."""
    encoding, steps = fitted_model.encoding, np.arange(len(y) + horizon)
    numeric = {name: mean + spread * np.sin(steps) for name, (mean, spread) in encoding.numeric.items()}
    text = {
        name: np.array([categories[step % len(categories)] if categories else "" for step in steps], dtype=object)
        for name, categories in encoding.categories.items()
    }
    static = {name: categories[0] for name, categories in encoding.static.items() if categories}
    channel = np.where(steps % 5 == 3, np.nan, 50 + 10 * np.cos(steps))[: len(y)]
    channels = {name: number + channel for number, name in enumerate(fitted_model.spec.channels)}
    return Series("golden", start, fitted_model.freq, y, {**numeric, **text}, static, channels)

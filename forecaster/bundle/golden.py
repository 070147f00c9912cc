"""Frozen requests and their answers: what a bundle is held to when it is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from forecaster.engines.engine import Engine
from forecaster.errors import GoldenMismatch
from forecaster.frequency import Timestamp, format_timestamp, parse_timestamp, synthetic_start
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64

GOLDEN_TOLERANCE = (
    1e-4  # of the forecast's range: other processors round float32 otherwise, other weights differ by more
)
FittedModelT = TypeVar("FittedModelT", FittedModel, StoredModel)


class GoldenRequest(BaseModel):
    """One frozen request and its answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    start: str
    y: tuple[float | None, ...]
    mean: tuple[float, ...]
    network: tuple[float, ...] = ()  # of a blend: what its network says alone, which its engines must say too


class GoldenFile(BaseModel):
    """`golden.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    horizon: int
    requests: tuple[GoldenRequest, ...]


def build_golden_file(fitted_model: FittedModel) -> GoldenFile:
    """Two made-up histories (no user's data): a trend with a season, and a short one with a gap.

    Where a whole history is read, the first is longer than the context: its state is carried, its scale that of its start.
    """
    spec = fitted_model.spec
    draw = np.random.default_rng(0)
    clock = np.arange(spec.context if spec.reads == "window" else 3 * spec.context)
    whole = (
        100 + 0.1 * clock + 10 * np.sin(2 * np.pi * clock / max(fitted_model.season, 2)) + draw.normal(size=len(clock))
    )
    short = whole[: spec.min_steps].copy()
    short[len(short) // 2 : len(short) // 2 + 1] = np.nan if len(short) > 2 else short[-1]
    start, horizon = synthetic_start(fitted_model.freq), min(spec.horizon, 32)
    predictor, own, requests = Predictor(fitted_model), Predictor(replace(fitted_model, blend_weights={})), []
    for y in (whole, short):
        one = _build_golden_series(fitted_model, start, y, horizon)
        requests.append(
            GoldenRequest(
                start=format_timestamp(start),
                y=tuple(None if np.isnan(v) else float(v) for v in y),
                mean=tuple(predictor.forecast(one, horizon).mean),
                network=tuple(own.forecast(one, horizon).mean) if fitted_model.blend_weights else (),
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
    """Raises GoldenMismatch, with `where` it arose, if the engine (or that of a Predictor without one) answers otherwise."""
    predictor = Predictor(fitted_model, engine=engine)
    for number, request in enumerate(golden.requests):
        y = np.array([np.nan if value is None else value for value in request.y], dtype=np.float64)
        one = _build_golden_series(
            fitted_model, parse_timestamp(request.start, freq=fitted_model.freq), y, golden.horizon
        )
        outcome = predictor.forecast_batch([one], golden.horizon)[0]
        expected = np.array(request.mean)
        room = GOLDEN_TOLERANCE * (np.ptp(np.append(expected, y[~np.isnan(y)])) + 1e-12)
        if not isinstance(outcome, Forecast) or not np.allclose(outcome.mean, expected, rtol=0, atol=room):
            raise GoldenMismatch(
                f"Golden request {number} no longer gets its frozen answer (tolerance {room:.3g}). The code that computes "
                "forecasts has changed since the bundle was written: train again.",
                where=where,
            )


def strip_blend(fitted_model: FittedModelT, golden: GoldenFile) -> tuple[FittedModelT, GoldenFile]:
    """The network without what it is blended with, and its answers to the golden requests."""
    if not fitted_model.blend_weights:
        return fitted_model, golden
    own = tuple(request.model_copy(update={"mean": request.network}) for request in golden.requests)
    return replace(fitted_model, blend_weights={}), golden.model_copy(update={"requests": own})


def _build_golden_series(
    fitted_model: FittedModel | StoredModel, start: Timestamp, y: Float64[np.ndarray, "_"], horizon: int
) -> Series:
    """A golden request as a series; its covariates follow from the encoding alone, its channels (with gaps) from the clock."""
    encoding, clock = fitted_model.encoding, np.arange(len(y) + horizon)
    numeric = {name: mean + spread * np.sin(clock) for name, (mean, spread) in encoding.numeric.items()}
    text = {
        name: np.array([known[place % len(known)] if known else "" for place in clock], dtype=object)
        for name, known in encoding.categories.items()
    }
    static = {name: known[0] for name, known in encoding.static.items() if known}
    beside = np.where(clock % 5 == 3, np.nan, 50 + 10 * np.cos(clock))[: len(y)]
    channels = {name: number + beside for number, name in enumerate(fitted_model.spec.channels)}
    return Series("golden", start, fitted_model.freq, y, {**numeric, **text}, static, channels)

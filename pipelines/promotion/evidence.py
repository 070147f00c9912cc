"""What is measured of a bundle besides its backtest: size, latency, parity of its engines, and a replay of its test."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from forecaster.bundle import artifact
from forecaster.engines.engine import EnsembleEngine
from forecaster.engines.pytorch import PyTorchEngine
from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.rolling_origins import ForecastArray
from forecaster.evaluation.validation import build_validation_batches, compute_exposure_gap
from forecaster.frequency import Timestamp, next_timestamps
from forecaster.prediction.predictor import FittedModel, Predictor, build_fastest_engine, build_onnx_engine
from forecaster.registry.registry import CHALLENGER
from forecaster.series import Forecast, Panel, Series
from pipelines.promotion.gate import Evidence

MAX_REPLAYED_SERIES = 32  # series that are asked again
LATENCY_REPEATS = 15  # forecasts whose median is the latency
_MAX_STEPS = 1000  # steps behind, at most


def measure_bundle(bundle: Path, result: Backtest, *, champion: FittedModel | None) -> Evidence:
    """Measures a bundle as a server would load it.

    Args:
        bundle: The challenger's.
        result: Its backtest; the last window of some series is asked for again, and they are shown no more than was known.
        base: The champion.
    Raises BundleDamaged or GoldenMismatch.
    """
    forecaster = artifact.load_bundle(bundle)
    chosen = np.unique(
        np.linspace(0, len(result.series) - 1, min(MAX_REPLAYED_SERIES, len(result.series))).round().astype(int)
    )
    left = result.origin_offsets[-1]
    histories = [result.series[place].take_first(len(result.series[place]) - left) for place in chosen]
    horizon, reference = result.horizon, EnsembleEngine([PyTorchEngine(network) for network in forecaster.networks])
    room = np.array([_compute_range(one) for one in histories])
    alone = replace(forecaster, blend_weights={})  # statistical models are the same on every engine
    expected = _predict_means(Predictor(alone, engine=reference), histories, horizon)
    served = Predictor(forecaster, engine=build_fastest_engine(forecaster))
    graph = build_onnx_engine(forecaster)
    drawn = None if graph is None else _predict_means(Predictor(alone, engine=graph), histories, horizon)
    tested = result.forecasts[CHALLENGER][chosen, -1]
    return Evidence(
        megabytes=compute_megabytes(bundle),
        latency_ms=_measure_latency(served, histories[0], horizon),
        graph_difference=None if drawn is None else _compute_max_difference(drawn, expected, room),
        replay_difference=_compute_max_difference(_predict_means(served, histories, horizon), tested, room),
        exposure_gap=_measure_exposure_gap(forecaster, [result.series[place] for place in chosen]),
        steps_behind=None if champion is None else count_steps_behind(forecaster, champion),
    )


def compute_megabytes(bundle: Path) -> float:
    """The size of a bundle, in 10^6 bytes."""
    return sum(path.stat().st_size for path in bundle.iterdir()) / 1e6


def count_steps_behind(forecaster: FittedModel, champion: FittedModel) -> int | None:
    """Steps by which the data of one, its test windows with them, end before the other's; None where they do not compare."""
    return _count_steps_between(
        compute_data_end(forecaster), compute_data_end(champion), forecaster.freq, champion.freq
    )


def count_steps_since(forecaster: FittedModel, panel: Panel) -> int | None:
    """Steps by which a panel goes on after the data of a forecaster, its test windows with them; None as above."""
    return _count_steps_between(compute_data_end(forecaster), panel.cutoff, forecaster.freq, panel.freq)


def _count_steps_between(first: Timestamp, second: Timestamp, *frequencies: str) -> int | None:
    zones = {getattr(stamp, "tz", None) is None for stamp in (first, second)}
    if len(set(frequencies)) > 1 or type(first) is not type(second) or len(zones) > 1:
        return None
    missed = next_timestamps(first, freq=frequencies[0], steps=_MAX_STEPS)
    return int(np.searchsorted(missed, second, side="right"))  # type: ignore[call-overload]


def compute_data_end(forecaster: FittedModel) -> Timestamp:
    """The last stamp of what a forecaster was made of, its test windows with it."""
    steps = int(forecaster.facts.get("test_windows", 0)) * forecaster.spec.horizon
    if not steps:
        return forecaster.cutoff
    end: Timestamp = next_timestamps(forecaster.cutoff, freq=forecaster.freq, steps=steps)[-1]
    return end


def _predict_means(predictor: Predictor, histories: Sequence[Series], horizon: int) -> ForecastArray:
    outcomes = predictor.forecast_batch(histories, horizon)
    return np.stack([one.mean if isinstance(one, Forecast) else np.full(horizon, np.nan) for one in outcomes])


def _compute_range(history: Series) -> float:
    """How far the values of a history go, and a little of their size: rounding is of that."""
    seen = history.y[np.isfinite(history.y)]
    return float(np.ptp(seen) + 1e-3 * np.abs(seen).max()) + 1e-12 if len(seen) else 1.0


def _compute_max_difference(first: np.ndarray, second: np.ndarray, value_range: np.ndarray) -> float:
    """The largest difference as a share of the range; infinite where one answered and the other did not."""
    same = np.isnan(first) & np.isnan(second)
    apart = np.where(same, 0.0, np.abs(first - second) / value_range[:, None])
    return float(np.nan_to_num(apart, nan=math.inf).max())


def _measure_latency(predictor: Predictor, history: Series, horizon: int) -> float:
    taken = []
    for _ in range(LATENCY_REPEATS + 2):
        started = time.perf_counter()
        predictor.forecast_batch([history], horizon)
        taken.append(time.perf_counter() - started)
    return 1000 * float(np.median(taken[2:]))  # the first ones warm up


def _measure_exposure_gap(forecaster: FittedModel, series: Sequence[Series]) -> float | None:
    spec = forecaster.spec
    batches = build_validation_batches(
        series,
        context=forecaster.network.window_length(max(map(len, series))),
        horizon=spec.horizon,
        windows=1,
        season=forecaster.season,
        encoding=forecaster.encoding,
        channels=spec.channels,
    )
    gap = compute_exposure_gap(forecaster.networks, batches)
    return gap if math.isfinite(gap) else None

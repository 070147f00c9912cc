"""Evidence for the gate that is measured on a bundle: size, latency, parity of its engines and a replay of its backtest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from forecaster.bundle import artifact
from forecaster.engines.engine import EnsembleEngine
from forecaster.engines.pytorch import PyTorchEngine
from forecaster.evaluation.backtest import Backtest, explain_missing_forecasts
from forecaster.evaluation.rolling_origins import ForecastArray
from forecaster.evaluation.validation import build_validation_batches, compute_exposure_gap
from forecaster.frequency.clock import compute_days_ahead
from forecaster.frequency.names import are_same_grid
from forecaster.frequency.timestamps import Timestamp, next_timestamps
from forecaster.prediction.bounds import without_bounds
from forecaster.prediction.engine_choice import build_onnx_engine
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.registry.registry import CHALLENGER, CHAMPION
from forecaster.series import Forecast, Panel, Series
from pipelines.promotion.verdict import Evidence

Clock = Callable[[], datetime]
"""Returns the present, with a time zone."""

MAX_REPLAYED_SERIES = 32  # series whose last backtest window is forecast again
LATENCY_REPEATS = 15  # timed forecasts; the latency is their median
_MAX_STEPS = 1000  # upper limit of a count of steps between two data ends


def utc_now() -> datetime:
    """Returns the current time in UTC."""
    return datetime.now(UTC)


def measure_bundle(bundle: Path, result: Backtest, *, champion: FittedModel | None, now: datetime) -> Evidence:
    """Measures a bundle as a server would load it.

    Args:
        bundle: Folder of the challenger's bundle.
        result: The challenger's backtest. Its last window is forecast again for up to `MAX_REPLAYED_SERIES` series, from
            histories cut at the same cutoffs.
        champion: The current champion; None if there is none.
        now: The present, with a time zone; the ends of the data are compared with it.
    Raises BundleDamaged or GoldenMismatch.
    """
    model = artifact.load_bundle(bundle)
    chosen = np.unique(
        np.linspace(0, len(result.series) - 1, min(MAX_REPLAYED_SERIES, len(result.series))).round().astype(int)
    )
    steps_after_cutoff = result.origin_offsets[-1]
    series = [result.series[index] for index in chosen.tolist()]
    histories = [item.take_first(len(item) - steps_after_cutoff) for item in series]
    horizon, reference = result.horizon, EnsembleEngine([PyTorchEngine(network) for network in model.networks])
    value_range = np.array([_compute_range(history) for history in histories])
    network_only = without_bounds(
        replace(model, blend_weights={})
    )  # statistical models and bounds are the same on every engine
    expected = _predict_means(Predictor(network_only, engine=reference), histories, horizon)
    served = artifact.load_predictor(bundle)
    onnx = build_onnx_engine(model)
    onnx_means = None if onnx is None else _predict_means(Predictor(network_only, engine=onnx), histories, horizon)
    tested = result.forecasts[CHALLENGER][chosen, -1]
    return Evidence(
        megabytes=compute_megabytes(bundle),
        latency_ms=_measure_latency(served, histories[0], horizon),
        graph_difference=None if onnx_means is None else _compute_max_difference(onnx_means, expected, value_range),
        replay_difference=_compute_max_difference(_predict_means(served, histories, horizon), tested, value_range),
        exposure_gap=_measure_exposure_gap(model, series),
        steps_behind=None if champion is None else count_steps_behind(model, champion),
        champion_differences=() if champion is None else _explain_unmeasured_champion(result, champion),
        days_ahead=count_days_ahead(model, now),
        champion_days_ahead=None if champion is None else count_days_ahead(champion, now),
    )


def _explain_unmeasured_champion(result: Backtest, champion: FittedModel) -> tuple[str, ...]:
    """Returns why the champion has no forecast in a backtest; empty if it has one at any window."""
    if CHAMPION not in result.forecasts or np.isfinite(result.forecasts[CHAMPION]).any():
        return ()
    return tuple(explain_missing_forecasts(result, CHAMPION, champion))


def find_frequency_difference(model: FittedModel, champion: FittedModel) -> tuple[str, ...]:
    """Returns in words that the frequencies of two models differ; empty if they do not."""
    if are_same_grid(model.freq, champion.freq, [model.cutoff]):
        return ()
    return (f"the new model has the frequency {model.freq!r}, the champion {champion.freq!r}",)


def compute_megabytes(bundle: Path) -> float:
    """Returns the size of a bundle in megabytes (10^6 bytes)."""
    return sum(path.stat().st_size for path in bundle.iterdir()) / 1e6


def count_steps_behind(model: FittedModel, champion: FittedModel) -> int | None:
    """Counts the steps by which a model's data end before the champion's, test windows included.

    Returns None if frequency, type or time zone of their timestamps differ.
    """
    return _count_steps_between(compute_data_end(model), compute_data_end(champion), model.freq, champion.freq)


def count_steps_since(model: FittedModel, panel: Panel) -> int | None:
    """Counts the steps of a panel after the end of a model's data, test windows included.

    Returns None if frequency, type or time zone of their timestamps differ.
    """
    return _count_steps_between(compute_data_end(model), panel.cutoff, model.freq, panel.freq)


def count_days_ahead(model: FittedModel, now: datetime) -> float | None:
    """Counts the days by which the last step of a model's data, test windows included, begins after the present.

    Returns None for integer timestamps.
    """
    return compute_days_ahead(compute_data_end(model), model.freq, now)


def _count_steps_between(
    first: Timestamp, second: Timestamp, first_frequency: str, second_frequency: str
) -> int | None:
    has_no_zone = {getattr(timestamp, "tz", None) is None for timestamp in (first, second)}
    if (
        type(first) is not type(second)
        or len(has_no_zone) > 1
        or not are_same_grid(first_frequency, second_frequency, (first, second))
    ):
        return None
    following = next_timestamps(first, freq=first_frequency, steps=_MAX_STEPS)
    return int(np.searchsorted(following, second, side="right"))  # type: ignore[call-overload]


def compute_data_end(model: FittedModel) -> Timestamp:
    """Returns the last timestamp of the data that a model was trained and tested on."""
    steps = int(model.facts.get("test_windows", 0)) * model.spec.horizon
    if not steps:
        return model.cutoff
    end: Timestamp = next_timestamps(model.cutoff, freq=model.freq, steps=steps)[-1]
    return end


def _predict_means(predictor: Predictor, histories: Sequence[Series], horizon: int) -> ForecastArray:
    outcomes = predictor.forecast_batch(histories, horizon)
    return np.stack(
        [outcome.mean if isinstance(outcome, Forecast) else np.full(horizon, np.nan) for outcome in outcomes]
    )


def _compute_range(history: Series) -> float:
    """Returns the range of the observed values plus 0.1 % of their magnitude, to which rounding errors are proportional."""
    observed = history.y[np.isfinite(history.y)]
    return float(np.ptp(observed) + 1e-3 * np.abs(observed).max()) + 1e-12 if len(observed) else 1.0


def _compute_max_difference(first: np.ndarray, second: np.ndarray, value_range: np.ndarray) -> float:
    """Returns the largest difference as a share of the range; infinity if only one of the two has a value at a step."""
    both_missing = np.isnan(first) & np.isnan(second)
    difference = np.where(both_missing, 0.0, np.abs(first - second) / value_range[:, None])
    return float(np.nan_to_num(difference, nan=math.inf).max())


def _measure_latency(predictor: Predictor, history: Series, horizon: int) -> float:
    durations = []
    for _ in range(LATENCY_REPEATS + 2):
        started = time.perf_counter()
        predictor.forecast_batch([history], horizon)
        durations.append(time.perf_counter() - started)
    return 1000 * float(np.median(durations[2:]))  # the first two warm up


def _measure_exposure_gap(model: FittedModel, series: Sequence[Series]) -> float | None:
    spec = model.spec
    batches = build_validation_batches(
        series,
        context=model.network.window_length(max(map(len, series))),
        horizon=spec.horizon,
        windows=1,
        season=model.season,
        encoding=model.encoding,
        channels=spec.channels,
    )
    gap = compute_exposure_gap(model.networks, batches)
    return gap if math.isfinite(gap) else None

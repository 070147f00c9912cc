"""What is measured of a bundle besides its backtest: size, latency, parity of its engines, and a replay of its test."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from forecaster.bundle import artifact
from forecaster.engines.engine import Together
from forecaster.engines.pytorch import Reference
from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.rolling_origins import Cube
from forecaster.evaluation.validation import exposure_gap, trials
from forecaster.frequency import Stamp, following
from forecaster.prediction.predictor import Forecaster, Predictor, fastest_engine, graph_engine
from forecaster.registry.registry import CHALLENGER
from forecaster.series import Forecast, Panel, Series
from pipelines.promotion.gate import Evidence

ASKED = 32  # series that are asked again
TIMED = 15  # forecasts whose median is the latency
_FAR = 1000  # steps behind, at most


def gather(bundle: Path, result: Backtest, *, base: Forecaster | None) -> Evidence:
    """Measures a bundle as a server would load it.

    Args:
        bundle: The challenger's.
        result: Its backtest; the last window of some series is asked for again, and they are shown no more than was known.
        base: The champion.
    Raises BundleDamaged or GoldenMismatch.
    """
    forecaster = artifact.load(bundle)
    chosen = np.unique(np.linspace(0, len(result.series) - 1, min(ASKED, len(result.series))).round().astype(int))
    left = result.lefts[-1]
    histories = [result.series[place].until(len(result.series[place]) - left) for place in chosen]
    horizon, reference = result.horizon, Together([Reference(network) for network in forecaster.networks])
    room = np.array([_range(one) for one in histories])
    alone = replace(forecaster, blend={})  # statistical models are the same on every engine
    expected = _told(Predictor(alone, engine=reference), histories, horizon)
    served = Predictor(forecaster, engine=fastest_engine(forecaster))
    graph = graph_engine(forecaster)
    drawn = None if graph is None else _told(Predictor(alone, engine=graph), histories, horizon)
    tested = result.forecasts[CHALLENGER][chosen, -1]
    return Evidence(
        megabytes=megabytes(bundle),
        latency_ms=_latency(served, histories[0], horizon),
        graph=None if drawn is None else _apart(drawn, expected, room),
        replay=_apart(_told(served, histories, horizon), tested, room),
        exposure_gap=_exposure(forecaster, [result.series[place] for place in chosen]),
        behind=None if base is None else steps_behind(forecaster, base),
    )


def megabytes(bundle: Path) -> float:
    """The size of a bundle, in 10^6 bytes."""
    return sum(path.stat().st_size for path in bundle.iterdir()) / 1e6


def steps_behind(forecaster: Forecaster, base: Forecaster) -> int | None:
    """Steps by which the data of one, its test windows with them, end before the other's; None where they do not compare."""
    return _between(data_end(forecaster), data_end(base), forecaster.freq, base.freq)


def steps_since(forecaster: Forecaster, panel: Panel) -> int | None:
    """Steps by which a panel goes on after the data of a forecaster, its test windows with them; None as above."""
    return _between(data_end(forecaster), panel.cutoff, forecaster.freq, panel.freq)


def _between(first: Stamp, second: Stamp, *freqs: str) -> int | None:
    zones = {getattr(stamp, "tz", None) is None for stamp in (first, second)}
    if len(set(freqs)) > 1 or type(first) is not type(second) or len(zones) > 1:
        return None
    missed = following(first, freq=freqs[0], steps=_FAR)
    return int(np.searchsorted(missed, second, side="right"))  # type: ignore[call-overload]


def data_end(forecaster: Forecaster) -> Stamp:
    """The last stamp of what a forecaster was made of, its test windows with it."""
    steps = int(forecaster.facts.get("test_windows", 0)) * forecaster.spec.horizon
    if not steps:
        return forecaster.cutoff
    end: Stamp = following(forecaster.cutoff, freq=forecaster.freq, steps=steps)[-1]
    return end


def _told(predictor: Predictor, histories: Sequence[Series], horizon: int) -> Cube:
    outcomes = predictor.forecast_each(histories, horizon)
    return np.stack([one.mean if isinstance(one, Forecast) else np.full(horizon, np.nan) for one in outcomes])


def _range(one: Series) -> float:
    """How far the values of a history go, and a little of their size: rounding is of that."""
    seen = one.y[np.isfinite(one.y)]
    return float(np.ptp(seen) + 1e-3 * np.abs(seen).max()) + 1e-12 if len(seen) else 1.0


def _apart(ours: np.ndarray, theirs: np.ndarray, room: np.ndarray) -> float:
    """The largest difference as a share of the range; infinite where one answered and the other did not."""
    same = np.isnan(ours) & np.isnan(theirs)
    apart = np.where(same, 0.0, np.abs(ours - theirs) / room[:, None])
    return float(np.nan_to_num(apart, nan=math.inf).max())


def _latency(predictor: Predictor, one: Series, horizon: int) -> float:
    taken = []
    for _ in range(TIMED + 2):
        started = time.perf_counter()
        predictor.forecast_each([one], horizon)
        taken.append(time.perf_counter() - started)
    return 1000 * float(np.median(taken[2:]))  # the first ones warm up


def _exposure(forecaster: Forecaster, series: Sequence[Series]) -> float | None:
    spec = forecaster.spec
    batches = trials(
        series,
        context=forecaster.network.shown(max(map(len, series))),
        horizon=spec.horizon,
        windows=1,
        season=forecaster.season,
        encoding=forecaster.encoding,
        channels=spec.channels,
    )
    gap = exposure_gap(forecaster.networks, batches)
    return gap if math.isfinite(gap) else None

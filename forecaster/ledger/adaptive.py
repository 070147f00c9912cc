"""What late actuals teach about the intervals of a model, worked out from its ledger."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from forecaster.intervals.adaptive import AdaptiveState, update_adaptive_state
from forecaster.ledger.accuracy import forecast_actual_pairs
from forecaster.ledger.records import RECORDED_LEVELS, ForecastFilter
from forecaster.ledger.store import Ledger

RATE_SHARE = 0.1  # of the reach of residuals, by which a miss moves a quantile
MIN_RATE, MAX_RATE = 0.02, 2.0  # in spreads
TRAILING_TIMESTAMPS = 50  # stamps whose residuals say how far they reach
MAX_UPDATES = 1000  # of the latest stamps that are learned from; what came before them is forgotten by then


_MEDIAN_COLUMN = RECORDED_LEVELS.index(0.5)


def refresh_adaptive_state(ledger: Ledger, digest: str, *, now: float) -> AdaptiveState:
    """Works out the drift of a model from all that came, and keeps it."""
    frames = [
        frame
        for frame in forecast_actual_pairs(ledger, ForecastFilter(digest=digest))
        if np.isfinite(frame["unit"]).any()
    ]
    drift = fit_adaptive_state(pd.concat(frames, ignore_index=True)) if frames else AdaptiveState()
    ledger.save_adaptive_state_json(digest, json.dumps({"rate": drift.rate, "shifts": drift.shifts}), now=now)
    return drift


def load_adaptive_state(ledger: Ledger, digest: str) -> AdaptiveState | None:
    """The drift that was kept for a model; None if there is none."""
    told = ledger.load_adaptive_state_json(digest)
    if told is None:
        return None
    fields = json.loads(told)
    return AdaptiveState(fields["rate"], tuple((float(level), float(shift)) for level, shift in fields["shifts"]))


def fit_adaptive_state(frame: pd.DataFrame) -> AdaptiveState:
    """The drift after the latest actuals of some forecasts, in order of their stamps.

    A stamp is one update: all series and steps ahead that were foretold for it share what moves them. Each is judged by its
    quantile as it would be with the drift of the moment, and not as it was served: so actuals that come late, all at once or
    again teach the same as if each had come in time, and the drift is a function of what the ledger holds.

    A miss moves a quantile by a tenth of how far large residuals have lately been (Angelopoulos et al. 2023, section 3, who
    take the largest of a trailing window; the 95th percentile is not moved by one wild value).

    Args:
        frame: As of `forecast_actual_pairs`.
    """
    drift, recent = AdaptiveState(), deque[np.ndarray](maxlen=TRAILING_TIMESTAMPS)
    usable = np.isfinite(frame[list(RECORDED_LEVELS)].to_numpy(np.float64)).all(axis=1) & (
        frame["unit"].to_numpy(np.float64) > 0
    )
    for actual, unit, served, held in _iterate_updates(frame[usable]):
        shifts = drift.shifts_at(RECORDED_LEVELS)
        recent.append(np.abs(actual - (served[:, _MEDIAN_COLUMN] - unit * held[:, _MEDIAN_COLUMN])) / unit)
        reach = float(np.quantile(np.concatenate(recent), 0.95))
        drift = replace(drift, rate=float(np.clip(RATE_SHARE * reach, MIN_RATE, MAX_RATE)))
        for column, level in enumerate(RECORDED_LEVELS):
            bound = served[:, column] + unit * (shifts[column] - held[:, column])
            drift = update_adaptive_state(drift, level, float((actual <= bound).mean()))
    return drift


def _iterate_updates(frame: pd.DataFrame) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """By stamp, the latest last: actuals, units, quantiles as served, and the shifts that those hold."""
    stamps = frame["stamp"].to_numpy(np.int64)
    order = np.argsort(stamps, kind="stable")
    columns = [["actual"], ["unit"], list(RECORDED_LEVELS), [("shift", level) for level in RECORDED_LEVELS]]
    actual, unit, served, held = (frame[names].to_numpy(np.float64)[order] for names in columns)
    firsts = (
        np.flatnonzero(np.diff(stamps[order], prepend=stamps[order[0]] - 1)) if len(order) else np.array([], dtype=int)
    )
    ends = [*firsts[1:], len(order)]
    for first, end in list(zip(firsts, ends, strict=True))[-MAX_UPDATES:]:
        yield actual[first:end, 0], unit[first:end, 0], served[first:end], held[first:end]

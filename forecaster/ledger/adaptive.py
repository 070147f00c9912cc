"""Adaptive intervals of a model from the late actuals in its ledger."""

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

RATE_SHARE = 0.1  # share of the spread of recent residuals by which a miss moves a quantile
MIN_RATE, MAX_RATE = 0.02, 2.0  # in spreads
TRAILING_TIMESTAMPS = 50  # timestamps whose residuals give their spread
MAX_UPDATES = 1000  # latest timestamps that are used; earlier ones have no influence by then


_MEDIAN_COLUMN = RECORDED_LEVELS.index(0.5)


def refresh_adaptive_state(ledger: Ledger, digest: str, *, now: float) -> AdaptiveState:
    """Computes the adaptive state of a model from all its actuals, and stores it."""
    frames = [
        frame
        for frame in forecast_actual_pairs(ledger, ForecastFilter(digest=digest))
        if np.isfinite(frame["unit"]).any()
    ]
    state = fit_adaptive_state(pd.concat(frames, ignore_index=True)) if frames else AdaptiveState()
    ledger.save_adaptive_state_json(digest, json.dumps({"rate": state.rate, "shifts": state.shifts}), now=now)
    return state


def load_adaptive_state(ledger: Ledger, digest: str) -> AdaptiveState | None:
    """Returns the stored adaptive state of a model; None if there is none."""
    content = ledger.load_adaptive_state_json(digest)
    if content is None:
        return None
    fields = json.loads(content)
    return AdaptiveState(fields["rate"], tuple((float(level), float(shift)) for level, shift in fields["shifts"]))


def fit_adaptive_state(frame: pd.DataFrame) -> AdaptiveState:
    """Returns the adaptive state after the latest actuals of some forecasts, in order of their timestamps.

    A timestamp is one update: all series and steps ahead that were predicted for it share common causes. Each forecast is
    judged by its quantile under the current adaptive state, not as it was served: so actuals that arrive late, all at once or
    repeatedly give the same state as if each had arrived in time, and the state is a function of the ledger's content.

    A miss moves a quantile by a tenth of the recent spread of large residuals (Angelopoulos et al. 2023, section 3, who
    take the largest of a trailing window; the 95th percentile is robust to a single outlier).

    Args:
        frame: As of `forecast_actual_pairs`.
    """
    state, recent = AdaptiveState(), deque[np.ndarray](maxlen=TRAILING_TIMESTAMPS)
    usable = np.isfinite(frame[list(RECORDED_LEVELS)].to_numpy(np.float64)).all(axis=1) & (
        frame["unit"].to_numpy(np.float64) > 0
    )
    for actual, unit, served, included_shifts in _iterate_updates(frame[usable]):
        shifts = state.shifts_at(RECORDED_LEVELS)
        recent.append(np.abs(actual - (served[:, _MEDIAN_COLUMN] - unit * included_shifts[:, _MEDIAN_COLUMN])) / unit)
        spread = float(np.quantile(np.concatenate(recent), 0.95))
        state = replace(state, rate=float(np.clip(RATE_SHARE * spread, MIN_RATE, MAX_RATE)))
        for column, level in enumerate(RECORDED_LEVELS):
            bound = served[:, column] + unit * (shifts[column] - included_shifts[:, column])
            state = update_adaptive_state(state, level, float((actual <= bound).mean()))
    return state


def _iterate_updates(frame: pd.DataFrame) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields, by timestamp and in order, actuals, units, quantiles as served, and the shifts those include."""
    timestamps = frame["stamp"].to_numpy(np.int64)
    order = np.argsort(timestamps, kind="stable")
    columns = [["actual"], ["unit"], list(RECORDED_LEVELS), [("shift", level) for level in RECORDED_LEVELS]]
    actual, unit, served, included_shifts = (frame[names].to_numpy(np.float64)[order] for names in columns)
    starts = (
        np.flatnonzero(np.diff(timestamps[order], prepend=timestamps[order[0]] - 1))
        if len(order)
        else np.array([], dtype=int)
    )
    ends = [*starts[1:], len(order)]
    for start, end in list(zip(starts, ends, strict=True))[-MAX_UPDATES:]:
        yield actual[start:end, 0], unit[start:end, 0], served[start:end], included_shifts[start:end]

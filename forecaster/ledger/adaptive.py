"""What late actuals teach about the intervals of a model, worked out from its ledger."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from forecaster.intervals.adaptive import Drift, update
from forecaster.ledger.accuracy import pairs
from forecaster.ledger.records import LEVELS, Which
from forecaster.ledger.store import Ledger

RATE = 0.1  # of the reach of residuals, by which a miss moves a quantile
SLOWEST, FASTEST = 0.02, 2.0  # in spreads
TRAILING = 50  # stamps whose residuals say how far they reach
ROUNDS = 1000  # of the latest stamps that are learned from; what came before them is forgotten by then


_MIDDLE = LEVELS.index(0.5)


def adapt(ledger: Ledger, digest: str, *, at: float) -> Drift:
    """Works out the drift of a model from all that came, and keeps it."""
    frames = [frame for frame in pairs(ledger, Which(digest=digest)) if np.isfinite(frame["unit"]).any()]
    drift = learned(pd.concat(frames, ignore_index=True)) if frames else Drift()
    ledger.keep_drift(digest, json.dumps({"rate": drift.rate, "shifts": drift.shifts}), at=at)
    return drift


def read(ledger: Ledger, digest: str) -> Drift | None:
    """The drift that was kept for a model; None if there is none."""
    told = ledger.drift(digest)
    if told is None:
        return None
    fields = json.loads(told)
    return Drift(fields["rate"], tuple((float(level), float(shift)) for level, shift in fields["shifts"]))


def learned(frame: pd.DataFrame) -> Drift:
    """The drift after the latest actuals of some forecasts, in order of their stamps.

    A stamp is one update: all series and steps ahead that were foretold for it share what moves them. Each is judged by its
    quantile as it would be with the drift of the moment, and not as it was served: so actuals that come late, all at once or
    again teach the same as if each had come in time, and the drift is a function of what the ledger holds.

    A miss moves a quantile by a tenth of how far large residuals have lately been (Angelopoulos et al. 2023, section 3, who
    take the largest of a trailing window; the 95th percentile is not moved by one wild value).

    Args:
        frame: As of `pairs`.
    """
    drift, recent = Drift(), deque[np.ndarray](maxlen=TRAILING)
    usable = np.isfinite(frame[list(LEVELS)].to_numpy(np.float64)).all(axis=1) & (
        frame["unit"].to_numpy(np.float64) > 0
    )
    for actual, unit, served, held in _rounds(frame[usable]):
        shifts = drift.at(LEVELS)
        recent.append(np.abs(actual - (served[:, _MIDDLE] - unit * held[:, _MIDDLE])) / unit)
        reach = float(np.quantile(np.concatenate(recent), 0.95))
        drift = replace(drift, rate=float(np.clip(RATE * reach, SLOWEST, FASTEST)))
        for column, level in enumerate(LEVELS):
            bound = served[:, column] + unit * (shifts[column] - held[:, column])
            drift = update(drift, level, float((actual <= bound).mean()))
    return drift


def _rounds(frame: pd.DataFrame) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """By stamp, the latest last: actuals, units, quantiles as served, and the shifts that those hold."""
    stamps = frame["stamp"].to_numpy(np.int64)
    order = np.argsort(stamps, kind="stable")
    columns = [["actual"], ["unit"], list(LEVELS), [("shift", level) for level in LEVELS]]
    actual, unit, served, held = (frame[names].to_numpy(np.float64)[order] for names in columns)
    firsts = (
        np.flatnonzero(np.diff(stamps[order], prepend=stamps[order[0]] - 1)) if len(order) else np.array([], dtype=int)
    )
    ends = [*firsts[1:], len(order)]
    for first, end in list(zip(firsts, ends, strict=True))[-ROUNDS:]:
        yield actual[first:end, 0], unit[first:end, 0], served[first:end], held[first:end]

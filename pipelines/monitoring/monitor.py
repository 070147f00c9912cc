"""Whether a model in use needs attention: what its ledger of served forecasts says beside what it promised."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import ValidationError

from forecaster.bundle import artifact
from forecaster.data.profile import Learned
from forecaster.errors import LedgerError
from forecaster.evaluation.drift_detection import Chart, Shifted, all_shifted, bound_for, cusum, residual_spread
from forecaster.ledger.accuracy import Accuracy, accuracy, pairs, score
from forecaster.ledger.records import Span, Told, Which
from forecaster.ledger.store import Ledger, check_address
from forecaster.registry.registry import CHALLENGER, CHAMPION, Registry
from forecaster.spec import Spec
from pipelines.promotion.promote import fetch
from pipelines.settings import Root

SHARE = 0.8  # of the intervals whose coverage is watched
_LOW, _HIGH = 0.1, 0.9
_Z = 1.2815515655446004  # the normal quantile at _HIGH
_LATEST = 20_000  # forecasts whose inputs are looked at
ALL = "all series"


class Bounds(NamedTuple):
    """What is let pass.

    Attributes:
        coverage_room: How far the coverage of the 80 % intervals may be off, chance apart.
        mase_room: By what share live errors may be larger than those of the model's own backtest, chance apart.
        recent: Error and coverage are of the forecasts of the latest so many horizons, lest a change drown in calm months; of
            all, where those are fewer than `least`.
        least: Windows of forecasts that do not overlap, below which nothing is said of accuracy and coverage.
        points: One-step residuals below which no chart is drawn.
        finest: The smallest standard deviation of a chart's points, in that of a single residual: what moves the mean of many
            series by less than half of it is nobody's business.
    """

    coverage_room: float = 0.1
    mase_room: float = 0.3
    recent: int = 7
    least: int = 10
    points: int = 8
    finest: float = 0.25


class Finding(NamedTuple):
    """One thing that was looked at: whether it calls for action (None: not measured), its number, bound and what they say."""

    name: str
    calls: bool | None
    value: float | None
    bound: float | None
    reason: str


class Watched(NamedTuple):
    """A chart and what it is drawn of: points in order of their stamps."""

    chart: Chart
    stamps: Sequence[int]
    points: Sequence[float]


class Report(NamedTuple):
    """What a ledger says of the champion of a model."""

    model: Told
    spec: Spec
    at: float
    span: Span
    accuracy: Accuracy
    findings: tuple[Finding, ...]
    charts: Mapping[str, Watched]
    inputs: Mapping[str, Shifted]

    @property
    def reasons(self) -> list[str]:
        """Why action is needed; empty if nothing says so."""
        return [one.reason for one in self.findings if one.calls]


def attention(root: Root, name: str, *, url: str | None = None, since: datetime | None = None) -> list[str]:
    """Why the champion of a registered model should be trained again; empty if nothing says so.

    Nothing says so either where no ledger is kept, or no actuals have come.

    Args:
        root: Where state lives; its service's ledger is looked at.
        name: The registered model.
        url: Another ledger.
        since: Forecasts made before are left out; a stamp without a zone is in UTC.
    Raises:
        NoSuchModel: nothing of that name is champion.
        LedgerError: there is a ledger, and it cannot be read.
    """
    if not _is_there(ledger_of(root, url)):
        return []
    return look(root, name, url=url, since=since).reasons


def ledger_of(root: Root, url: str | None) -> str:
    """The address of a ledger: `url`, or that of the root's service; "on", as its setting says, is the latter too."""
    return f"sqlite:///{root.slot.absolute() / 'ledger.db'}" if url in (None, "", "on", "off") else str(url)


def open_ledger(root: Root, url: str | None) -> Ledger:
    """The ledger at `url`, or that of the root's service; raises LedgerError where there is none."""
    address = ledger_of(root, url)
    if not _is_there(address):
        raise LedgerError(
            f"Expected the ledger of a service under {root.path}; found none. Serve with FORECASTER_SERVING_LEDGER=on, or "
            "name a ledger with --url.",
            where="ledger",
        )
    return Ledger(address)


def look(
    root: Root, name: str, *, url: str | None = None, since: datetime | None = None, bounds: Bounds | None = None
) -> Report:
    """All that the ledger says of the champion; arguments and errors as of `attention`, LedgerError without a ledger too."""
    bounds = bounds or Bounds()
    version = Registry(root.store).resolve(name, CHAMPION)
    bundle = fetch(version, root)
    facts = artifact.read_manifest(bundle).facts
    spec = Spec.model_validate_json((bundle / "spec.json").read_bytes())
    moment = None if since is None else (since if since.tzinfo else since.replace(tzinfo=UTC)).timestamp()
    which = Which(digest=version.digest, since=moment)
    ledger = open_ledger(root, url)
    try:
        span, scores = ledger.spans(which), accuracy(ledger, which)
        frames = list(pairs(ledger, which))
        rows = ledger.bodies(which, most=_LATEST)
    finally:
        ledger.close()
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    latest = _latest(frame, bounds)
    charts = dict(_charts(frame, bounds)) if len(frame) else {}
    learned = _learned(facts)
    inputs = {} if learned is None else all_shifted(list(_profiles(rows, learned.context)), learned)
    findings = (
        _coverage(latest, bounds),
        _error(latest, facts, bounds),
        *_changes(charts),
        *_inputs(inputs, known=learned is not None),
    )
    told = Told(name, version.number, version.digest)
    return Report(told, spec, time.time(), span, scores, findings, charts, inputs)


def _is_there(address: str) -> bool:
    """Whether a file of SQLite is; other databases say so themselves."""
    found = check_address(address)
    return found.get_backend_name() != "sqlite" or (bool(found.database) and Path(found.database).exists())


def _windows(frame: pd.DataFrame) -> float:
    """About how many windows of forecasts there are that do not overlap: the steps of one window are missed together."""
    if not len(frame):
        return 0.0
    steps = len(frame) / frame["forecast"].nunique()
    return float(len(frame.drop_duplicates(["key", "stamp"])) / steps)


def _latest(frame: pd.DataFrame, bounds: Bounds) -> pd.DataFrame:
    """The forecasts of the latest horizons; all, where these are too few to say anything of."""
    if not len(frame):
        return frame
    span = (frame["ending"] - frame["origin"]).max()
    late = frame[frame["origin"] > frame["origin"].max() - bounds.recent * span]
    return late if _windows(late) >= bounds.least else frame


def _coverage(frame: pd.DataFrame, bounds: Bounds) -> Finding:
    share, windows = score(frame).coverage.get(SHARE), _windows(frame)
    if share is None or windows < bounds.least:
        told = "no intervals were kept" if share is None and len(frame) else _too_few(windows, bounds)
        return Finding("coverage", None, share, bounds.coverage_room, told)
    room = bounds.coverage_room + 2 * math.sqrt(SHARE * (1 - SHARE) / windows)
    told = (
        f"{_percent(share)} of actuals lie within the {_percent(SHARE)} intervals; {_percent(room)} more or less may be"
    )
    return Finding("coverage", abs(share - SHARE) > room, share, room, told)


def _error(frame: pd.DataFrame, facts: Mapping[str, Any], bounds: Bounds) -> Finding:
    live, windows = score(frame).mase, _windows(frame)
    promised = facts.get("backtest", {}).get(CHALLENGER, {}).get("mase")
    if live is None or windows < bounds.least:
        told = "no series has a scale" if live is None and len(frame) else _too_few(windows, bounds)
        return Finding("error", None, live, promised, told)
    if not promised:
        return Finding("error", None, live, None, "the model was never tested, so there is nothing to compare with")
    bound = promised * (1 + bounds.mase_room) + 2 * _uncertainty(frame, windows)
    told = f"live MASE {live:.4f}, where its backtest had {promised:.4f} and {bound:.4f} may be"
    return Finding("error", live > bound, live, bound, told)


def _uncertainty(frame: pd.DataFrame, windows: float) -> float:
    """The standard error of the mean scaled error, as of so many windows."""
    scaled = np.abs(frame["mean"] - frame["actual"]) / frame["scale"].where(frame["scale"] > 0)
    return float(scaled.groupby(frame["forecast"]).mean().std(ddof=0) / math.sqrt(windows))


def _charts(frame: pd.DataFrame, bounds: Bounds) -> Iterator[tuple[str, Watched]]:
    """A chart of the one-step residuals of all series, and of each group.

    A residual is the actual less the middle of the 80 % interval, over the standard deviation that a Gaussian with that
    interval has. Points are means over series, a point a stamp; their spread is measured where they are, for series move
    together.
    """
    first = frame[(frame["step"] == 1) & np.isfinite(frame[_LOW]) & (frame[_HIGH] > frame[_LOW])]
    deviation = (first[_HIGH] - first[_LOW]) / (2 * _Z)
    residuals = ((first["actual"] - (first[_HIGH] + first[_LOW]) / 2) / deviation).clip(-6, 6)
    parts = {ALL: first.index == first.index}
    parts |= {str(part): (first["part"] == part).to_numpy() for part in sorted(set(first["part"].dropna()))}
    for name, chosen in parts.items():
        by_stamp = residuals[chosen].groupby(first["stamp"][chosen]).agg(["mean", "count"]).sort_index()
        if len(by_stamp) < bounds.points:
            continue
        points = by_stamp["mean"].to_numpy(np.float64)
        least = 1 / math.sqrt(float(by_stamp["count"].mean()))
        points = points / max(residual_spread(points), least, bounds.finest)
        chart = cusum(points, h=bound_for(len(points) * len(parts)))
        yield name, Watched(chart, by_stamp.index.tolist(), points.tolist())


def _changes(charts: Mapping[str, Watched]) -> Iterator[Finding]:
    if not charts:
        yield Finding("change", None, None, None, "too few one-step forecasts with intervals are known for a chart")
    for name, (chart, stamps, _) in charts.items():
        peak = float(max(chart.up.max(), chart.down.max()))
        told = f"the CUSUM of one-step errors of {name} rose to {peak:.1f}; {chart.h:.1f} may be"
        if chart.alarm is not None:
            since = len(stamps) - chart.alarm
            told += f": for {since} stamps actuals have been {chart.side} what was foretold"
        yield Finding("change" if name == ALL else f"change of {name}", chart.alarm is not None, peak, chart.h, told)


def _learned(facts: Mapping[str, Any]) -> Learned | None:
    try:
        return Learned.model_validate(facts["inputs"])
    except (KeyError, ValidationError):  # a bundle from before they were kept
        return None


def _profiles(rows: Sequence[Any], context: int) -> Iterator[Mapping[str, float]]:
    """What histories were like, of each series only windows that do not overlap."""
    latest: dict[str, float] = {}
    for row in rows:  # the latest first
        body, stamps = json.loads(row.body), json.loads(row.stamps)
        step = (stamps[-1] - row.origin) / len(stamps)
        if row.key not in latest or row.origin <= latest[row.key] - context * step:
            latest[row.key] = row.origin
            yield body["inputs"]


def _inputs(inputs: Mapping[str, Shifted], *, known: bool) -> Iterator[Finding]:
    if not known:
        yield Finding("inputs", None, None, None, "the bundle does not say what it was trained on: train it again")
    elif not inputs:
        yield Finding("inputs", None, None, None, "no forecast was served")
    for name, one in inputs.items():
        told = f"the {name} of the histories is {one.value:.2f} away from training; {one.bound:.2f} may be"
        yield Finding(f"input {name}", one.value > one.bound, one.value, one.bound, told)


def _too_few(windows: float, bounds: Bounds) -> str:
    return f"{windows:.0f} windows that do not overlap are known, {bounds.least} are needed"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

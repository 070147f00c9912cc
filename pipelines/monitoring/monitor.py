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
from forecaster.data.profile import TrainingProfile
from forecaster.errors import LedgerError
from forecaster.evaluation.drift_detection import (
    CusumChart,
    FeatureShift,
    control_limit_for,
    cusum,
    measure_shifts,
    moving_range_std,
)
from forecaster.ledger.accuracy import Accuracy, compute_accuracy, forecast_actual_pairs, score_pairs
from forecaster.ledger.records import ForecastFilter, ForecastSpan, ModelIdentity
from forecaster.ledger.store import Ledger, parse_database_url
from forecaster.registry.registry import CHALLENGER, CHAMPION, Registry
from forecaster.spec import Spec
from pipelines.promotion.promote import fetch_bundle
from pipelines.settings import Root

NOMINAL_COVERAGE = 0.8  # of the intervals whose coverage is watched
_LOW_LEVEL, _HIGH_LEVEL = 0.1, 0.9
_HIGH_LEVEL_Z = 1.2815515655446004  # the normal quantile at _HIGH
_MAX_FORECASTS = 20_000  # forecasts whose inputs are looked at
ALL_SERIES = "all series"


class MonitoringThresholds(NamedTuple):
    """What is let pass.

    Attributes:
        coverage_room: How far the coverage of the 80 % intervals may be off, chance apart.
        mase_room: By what share live errors may be larger than those of the model's own backtest, chance apart.
        recent: Error and coverage are of the forecasts of the latest so many horizons, lest a change drown in calm months; of
            all, where those are fewer than `min_windows`.
        least: Windows of forecasts that do not overlap, below which nothing is said of accuracy and coverage.
        points: One-step residuals below which no chart is drawn.
        finest: The smallest standard deviation of a chart's points, in that of a single residual: what moves the mean of many
            series by less than half of it is nobody's business.
    """

    coverage_tolerance: float = 0.1
    mase_tolerance: float = 0.3
    recent_horizons: int = 7
    min_windows: int = 10
    min_points: int = 8
    min_std: float = 0.25


class Finding(NamedTuple):
    """One thing that was looked at: whether it calls for action (None: not measured), its number, bound and what they say."""

    name: str
    calls: bool | None
    value: float | None
    bound: float | None
    reason: str


class MonitoredChart(NamedTuple):
    """A chart and what it is drawn of: points in order of their stamps."""

    chart: CusumChart
    timestamps: Sequence[int]
    points: Sequence[float]


class MonitoringReport(NamedTuple):
    """What a ledger says of the champion of a model."""

    model: ModelIdentity
    spec: Spec
    created_at: float
    span: ForecastSpan
    accuracy: Accuracy
    findings: tuple[Finding, ...]
    charts: Mapping[str, MonitoredChart]
    input_shifts: Mapping[str, FeatureShift]

    @property
    def reasons(self) -> list[str]:
        """Why action is needed; empty if nothing says so."""
        return [one.reason for one in self.findings if one.calls]


def find_retrain_reasons(root: Root, name: str, *, url: str | None = None, since: datetime | None = None) -> list[str]:
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
    if not _ledger_exists(resolve_ledger_url(root, url)):
        return []
    return build_monitoring_report(root, name, url=url, since=since).reasons


def resolve_ledger_url(root: Root, url: str | None) -> str:
    """The address of a ledger: `url`, or that of the root's service; "on", as its setting says, is the latter too."""
    return f"sqlite:///{root.slot.absolute() / 'ledger.db'}" if url in (None, "", "on", "off") else str(url)


def open_ledger(root: Root, url: str | None) -> Ledger:
    """The ledger at `url`, or that of the root's service; raises LedgerError where there is none."""
    address = resolve_ledger_url(root, url)
    if not _ledger_exists(address):
        raise LedgerError(
            f"Expected the ledger of a service under {root.path}; found none. Serve with FORECASTER_SERVING_LEDGER=on, or "
            "name a ledger with --url.",
            where="ledger",
        )
    return Ledger(address)


def build_monitoring_report(
    root: Root,
    name: str,
    *,
    url: str | None = None,
    since: datetime | None = None,
    thresholds: MonitoringThresholds | None = None,
) -> MonitoringReport:
    """All that the ledger says of the champion; arguments and errors as of `find_retrain_reasons`, LedgerError without a ledger too."""
    thresholds = thresholds or MonitoringThresholds()
    version = Registry(root.store_uri).resolve(name, CHAMPION)
    bundle = fetch_bundle(version, root)
    facts = artifact.read_manifest(bundle).facts
    spec = Spec.model_validate_json((bundle / "spec.json").read_bytes())
    moment = None if since is None else (since if since.tzinfo else since.replace(tzinfo=UTC)).timestamp()
    which = ForecastFilter(digest=version.digest, since=moment)
    ledger = open_ledger(root, url)
    try:
        span, scores = ledger.span(which), compute_accuracy(ledger, which)
        frames = list(forecast_actual_pairs(ledger, which))
        rows = ledger.latest_forecasts(which, limit=_MAX_FORECASTS)
    finally:
        ledger.close()
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    latest = _select_recent(frame, thresholds)
    charts = dict(_build_charts(frame, thresholds)) if len(frame) else {}
    learned = _load_training_profile(facts)
    inputs = {} if learned is None else measure_shifts(list(_iter_input_profiles(rows, learned.context)), learned)
    findings = (
        _check_coverage(latest, thresholds),
        _check_error(latest, facts, thresholds),
        *_check_changes(charts),
        *_check_inputs(inputs, has_training_profile=learned is not None),
    )
    told = ModelIdentity(name, version.number, version.digest)
    return MonitoringReport(told, spec, time.time(), span, scores, findings, charts, inputs)


def _ledger_exists(address: str) -> bool:
    """Whether a file of SQLite is; other databases say so themselves."""
    found = parse_database_url(address)
    return found.get_backend_name() != "sqlite" or (bool(found.database) and Path(found.database).exists())


def _count_windows(frame: pd.DataFrame) -> float:
    """About how many windows of forecasts there are that do not overlap: the steps of one window are missed together."""
    if not len(frame):
        return 0.0
    steps = len(frame) / frame["forecast"].nunique()
    return float(len(frame.drop_duplicates(["key", "stamp"])) / steps)


def _select_recent(frame: pd.DataFrame, thresholds: MonitoringThresholds) -> pd.DataFrame:
    """The forecasts of the latest horizons; all, where these are too few to say anything of."""
    if not len(frame):
        return frame
    span = (frame["ending"] - frame["origin"]).max()
    late = frame[frame["origin"] > frame["origin"].max() - thresholds.recent_horizons * span]
    return late if _count_windows(late) >= thresholds.min_windows else frame


def _check_coverage(frame: pd.DataFrame, thresholds: MonitoringThresholds) -> Finding:
    share, windows = score_pairs(frame).coverage.get(NOMINAL_COVERAGE), _count_windows(frame)
    if share is None or windows < thresholds.min_windows:
        told = (
            "no intervals were kept" if share is None and len(frame) else _describe_too_few_windows(windows, thresholds)
        )
        return Finding("coverage", None, share, thresholds.coverage_tolerance, told)
    room = thresholds.coverage_tolerance + 2 * math.sqrt(NOMINAL_COVERAGE * (1 - NOMINAL_COVERAGE) / windows)
    told = f"{_format_percent(share)} of actuals lie within the {_format_percent(NOMINAL_COVERAGE)} intervals; {_format_percent(room)} more or less may be"
    return Finding("coverage", abs(share - NOMINAL_COVERAGE) > room, share, room, told)


def _check_error(frame: pd.DataFrame, facts: Mapping[str, Any], thresholds: MonitoringThresholds) -> Finding:
    live, windows = score_pairs(frame).mase, _count_windows(frame)
    promised = facts.get("backtest", {}).get(CHALLENGER, {}).get("mase")
    if live is None or windows < thresholds.min_windows:
        told = (
            "no series has a scale" if live is None and len(frame) else _describe_too_few_windows(windows, thresholds)
        )
        return Finding("error", None, live, promised, told)
    if not promised:
        return Finding("error", None, live, None, "the model was never tested, so there is nothing to compare with")
    bound = promised * (1 + thresholds.mase_tolerance) + 2 * _compute_standard_error(frame, windows)
    told = f"live MASE {live:.4f}, where its backtest had {promised:.4f} and {bound:.4f} may be"
    return Finding("error", live > bound, live, bound, told)


def _compute_standard_error(frame: pd.DataFrame, windows: float) -> float:
    """The standard error of the mean scaled error, as of so many windows."""
    scaled = np.abs(frame["mean"] - frame["actual"]) / frame["scale"].where(frame["scale"] > 0)
    return float(scaled.groupby(frame["forecast"]).mean().std(ddof=0) / math.sqrt(windows))


def _build_charts(frame: pd.DataFrame, thresholds: MonitoringThresholds) -> Iterator[tuple[str, MonitoredChart]]:
    """A chart of the one-step residuals of all series, and of each group.

    A residual is the actual less the middle of the 80 % interval, over the standard deviation that a Gaussian with that
    interval has. Points are means over series, a point a stamp; their spread is measured where they are, for series move
    together.
    """
    first = frame[(frame["step"] == 1) & np.isfinite(frame[_LOW_LEVEL]) & (frame[_HIGH_LEVEL] > frame[_LOW_LEVEL])]
    deviation = (first[_HIGH_LEVEL] - first[_LOW_LEVEL]) / (2 * _HIGH_LEVEL_Z)
    residuals = ((first["actual"] - (first[_HIGH_LEVEL] + first[_LOW_LEVEL]) / 2) / deviation).clip(-6, 6)
    parts = {ALL_SERIES: first.index == first.index}
    parts |= {str(part): (first["part"] == part).to_numpy() for part in sorted(set(first["part"].dropna()))}
    for name, chosen in parts.items():
        by_stamp = residuals[chosen].groupby(first["stamp"][chosen]).agg(["mean", "count"]).sort_index()
        if len(by_stamp) < thresholds.min_points:
            continue
        points = by_stamp["mean"].to_numpy(np.float64)
        least = 1 / math.sqrt(float(by_stamp["count"].mean()))
        points = points / max(moving_range_std(points), least, thresholds.min_std)
        chart = cusum(points, h=control_limit_for(len(points) * len(parts)))
        yield name, MonitoredChart(chart, by_stamp.index.tolist(), points.tolist())


def _check_changes(charts: Mapping[str, MonitoredChart]) -> Iterator[Finding]:
    if not charts:
        yield Finding("change", None, None, None, "too few one-step forecasts with intervals are known for a chart")
    for name, (chart, stamps, _) in charts.items():
        peak = float(max(chart.upper.max(), chart.lower.max()))
        told = f"the CUSUM of one-step errors of {name} rose to {peak:.1f}; {chart.h:.1f} may be"
        if chart.alarm is not None:
            since = len(stamps) - chart.alarm
            told += f": for {since} stamps actuals have been {chart.direction} what was foretold"
        yield Finding(
            "change" if name == ALL_SERIES else f"change of {name}", chart.alarm is not None, peak, chart.h, told
        )


def _load_training_profile(facts: Mapping[str, Any]) -> TrainingProfile | None:
    try:
        return TrainingProfile.model_validate(facts["inputs"])
    except (KeyError, ValidationError):  # a bundle from before they were kept
        return None


def _iter_input_profiles(rows: Sequence[Any], context: int) -> Iterator[Mapping[str, float]]:
    """What histories were like, of each series only windows that do not overlap."""
    latest: dict[str, float] = {}
    for row in rows:  # the latest first
        body, stamps = json.loads(row.body), json.loads(row.stamps)
        step = (stamps[-1] - row.origin) / len(stamps)
        if row.key not in latest or row.origin <= latest[row.key] - context * step:
            latest[row.key] = row.origin
            yield body["inputs"]


def _check_inputs(input_shifts: Mapping[str, FeatureShift], *, has_training_profile: bool) -> Iterator[Finding]:
    if not has_training_profile:
        yield Finding("inputs", None, None, None, "the bundle does not say what it was trained on: train it again")
    elif not input_shifts:
        yield Finding("inputs", None, None, None, "no forecast was served")
    for name, one in input_shifts.items():
        told = f"the {name} of the histories is {one.value:.2f} away from training; {one.bound:.2f} may be"
        yield Finding(f"input {name}", one.value > one.bound, one.value, one.bound, told)


def _describe_too_few_windows(windows: float, thresholds: MonitoringThresholds) -> str:
    return f"{windows:.0f} windows that do not overlap are known, {thresholds.min_windows} are needed"


def _format_percent(share: float) -> str:
    return f"{100 * share:.1f} %"

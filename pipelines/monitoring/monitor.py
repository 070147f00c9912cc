"""Monitors the champion: compares its served forecasts and late actuals in the ledger with its backtest and training data."""

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
from forecaster.data.symbols import refuse_symbols
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

NOMINAL_COVERAGE = 0.8  # nominal coverage of the monitored intervals
_LOW_LEVEL, _HIGH_LEVEL = 0.1, 0.9
_HIGH_LEVEL_Z = 1.2815515655446004  # the standard normal quantile at _HIGH_LEVEL
_MAX_FORECASTS = 20_000  # latest forecasts whose inputs are checked
ALL_SERIES = "all series"


class MonitoringThresholds(NamedTuple):
    """Thresholds of the monitoring checks.

    Attributes:
        coverage_tolerance: Tolerance of the coverage of the 80 % intervals, in addition to two standard errors.
        mase_tolerance: Share by which the live error may exceed that of the model's backtest, in addition to two standard
            errors.
        recent_horizons: Error and coverage are computed from the forecasts of this many latest horizons, so that a change is
            not averaged out by the months before; from all forecasts, if these have fewer than `min_windows`.
        min_windows: Number of non-overlapping windows of forecasts below which accuracy and coverage are not judged.
        min_points: Number of one-step residuals below which no chart is computed.
        min_std: Smallest standard deviation of a chart's points, in units of that of a single residual. With it, a change of
            the mean of many series by less than half of it is not reported.
    """

    coverage_tolerance: float = 0.1
    mase_tolerance: float = 0.3
    recent_horizons: int = 7
    min_windows: int = 10
    min_points: int = 8
    min_std: float = 0.25


class Finding(NamedTuple):
    """The result of one check: whether it calls for action (None: not measured), its value, its bound and a sentence."""

    name: str
    calls: bool | None
    value: float | None
    bound: float | None
    reason: str


class MonitoredChart(NamedTuple):
    """A chart and the points it is computed from, in order of their timestamps."""

    chart: CusumChart
    timestamps: Sequence[int]
    points: Sequence[float]


class MonitoringReport(NamedTuple):
    """The monitoring report of a model's champion."""

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
        """Why action is needed; empty if no finding calls for it."""
        return [finding.reason for finding in self.findings if finding.calls]


def find_retrain_reasons(root: Root, name: str, *, url: str | None = None, since: datetime | None = None) -> list[str]:
    """Returns the reasons to retrain the champion of a registered model; empty if there are none.

    The result is also empty if there is no ledger, or if it has no actuals.

    Args:
        root: Folder of all state; the ledger of its service is read.
        name: Name of the registered model.
        url: Address of another ledger.
        since: Forecasts made before this time are ignored; a time without a zone is in UTC.
    Raises:
        NoSuchModel: The model has no champion.
        LedgerError: The ledger exists and cannot be read.
    """
    if not _ledger_exists(resolve_ledger_url(root, url)):
        return []
    return build_monitoring_report(root, name, url=url, since=since).reasons


def resolve_ledger_url(root: Root, url: str | None) -> str:
    """Returns the address of a ledger: `url`, or that of the root's service if `url` is None or the setting "on" or "off"."""
    return f"sqlite:///{root.slot.absolute() / 'ledger.db'}" if url in (None, "", "on", "off") else str(url)


def open_ledger(root: Root, url: str | None) -> Ledger:
    """Opens the ledger at `url`, or that of the root's service; raises LedgerError if it does not exist."""
    address = resolve_ledger_url(root, url)
    if not _ledger_exists(address):
        raise LedgerError(
            f"Expected the ledger of a service under {root.path}; found none. Serve with FORECASTER_SERVING_LEDGER=on, or "
            "give the address of a ledger with --url.",
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
    """Builds the monitoring report of the champion.

    Arguments and errors are those of `find_retrain_reasons`; LedgerError is also raised if there is no ledger.
    """
    thresholds = thresholds or MonitoringThresholds()
    version = Registry(root.store_uri).resolve(name, CHAMPION)
    bundle = fetch_bundle(version, root)
    manifest = artifact.read_manifest(bundle)
    facts, spec = manifest.facts, artifact.read_spec(bundle, manifest)
    refuse_symbols(
        spec,
        what="monitoring, which compares numbers with actuals",
        advice="Backtest it on new data: forecaster backtest.",
    )
    since_s = None if since is None else (since if since.tzinfo else since.replace(tzinfo=UTC)).timestamp()
    forecast_filter = ForecastFilter(digest=version.digest, since=since_s)
    ledger = open_ledger(root, url)
    try:
        span, scores = ledger.span(forecast_filter), compute_accuracy(ledger, forecast_filter)
        frames = list(forecast_actual_pairs(ledger, forecast_filter))
        rows = ledger.latest_forecasts(forecast_filter, limit=_MAX_FORECASTS)
    finally:
        ledger.close()
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    recent = _select_recent(frame, thresholds)
    charts = dict(_build_charts(frame, thresholds)) if len(frame) else {}
    profile = _load_training_profile(facts)
    input_shifts = {} if profile is None else measure_shifts(list(_iter_input_profiles(rows, profile.context)), profile)
    findings = (
        _check_coverage(recent, thresholds),
        _check_error(recent, facts, thresholds),
        *_check_changes(charts),
        *_check_inputs(input_shifts, has_training_profile=profile is not None),
    )
    model = ModelIdentity(name, version.number, version.digest)
    return MonitoringReport(model, spec, time.time(), span, scores, findings, charts, input_shifts)


def _ledger_exists(address: str) -> bool:
    """Whether the file of an SQLite ledger exists; always true for other databases, which raise errors of their own."""
    url = parse_database_url(address)
    return url.get_backend_name() != "sqlite" or (bool(url.database) and Path(url.database).exists())


def _count_windows(frame: pd.DataFrame) -> float:
    """Estimates the number of non-overlapping windows of forecasts, because the errors within a window are correlated."""
    if not len(frame):
        return 0.0
    steps = len(frame) / frame["forecast"].nunique()
    return float(len(frame.drop_duplicates(["key", "stamp"])) / steps)


def _select_recent(frame: pd.DataFrame, thresholds: MonitoringThresholds) -> pd.DataFrame:
    """Selects the forecasts of the latest horizons; all forecasts, if these have too few windows."""
    if not len(frame):
        return frame
    span = (frame["ending"] - frame["origin"]).max()
    recent = frame[frame["origin"] > frame["origin"].max() - thresholds.recent_horizons * span]
    return recent if _count_windows(recent) >= thresholds.min_windows else frame


def _check_coverage(frame: pd.DataFrame, thresholds: MonitoringThresholds) -> Finding:
    share, windows = score_pairs(frame).coverage.get(NOMINAL_COVERAGE), _count_windows(frame)
    if share is None or windows < thresholds.min_windows:
        reason = (
            "the ledger has no intervals"
            if share is None and len(frame)
            else _describe_too_few_windows(windows, thresholds)
        )
        return Finding("coverage", None, share, thresholds.coverage_tolerance, reason)
    tolerance = thresholds.coverage_tolerance + 2 * math.sqrt(NOMINAL_COVERAGE * (1 - NOMINAL_COVERAGE) / windows)
    reason = (
        f"{_format_percent(share)} of the actuals lie within the {_format_percent(NOMINAL_COVERAGE)} intervals "
        f"(tolerance {_format_percent(tolerance)})"
    )
    return Finding("coverage", abs(share - NOMINAL_COVERAGE) > tolerance, share, tolerance, reason)


def _check_error(frame: pd.DataFrame, facts: Mapping[str, Any], thresholds: MonitoringThresholds) -> Finding:
    live_mase, windows = score_pairs(frame).mase, _count_windows(frame)
    backtest_mase = facts.get("backtest", {}).get(CHALLENGER, {}).get("mase")
    if live_mase is None or windows < thresholds.min_windows:
        reason = (
            "no series has a scale"
            if live_mase is None and len(frame)
            else _describe_too_few_windows(windows, thresholds)
        )
        return Finding("error", None, live_mase, backtest_mase, reason)
    if not backtest_mase:
        return Finding("error", None, live_mase, None, "the model has no backtest to compare with")
    bound = backtest_mase * (1 + thresholds.mase_tolerance) + 2 * _compute_standard_error(frame, windows)
    reason = f"the live MASE is {live_mase:.4f}, that of the backtest {backtest_mase:.4f} (limit {bound:.4f})"
    return Finding("error", live_mase > bound, live_mase, bound, reason)


def _compute_standard_error(frame: pd.DataFrame, windows: float) -> float:
    """Returns the standard error of the mean scaled error, with `windows` as the number of independent values."""
    scaled_errors = np.abs(frame["mean"] - frame["actual"]) / frame["scale"].where(frame["scale"] > 0)
    return float(scaled_errors.groupby(frame["forecast"]).mean().std(ddof=0) / math.sqrt(windows))


def _build_charts(frame: pd.DataFrame, thresholds: MonitoringThresholds) -> Iterator[tuple[str, MonitoredChart]]:
    """Yields a CUSUM chart of the one-step residuals of all series, and one of each group.

    A residual is the actual minus the center of the 80 % interval, divided by the standard deviation of a Gaussian with that
    interval. A point of the chart is the mean over series at one timestamp. The standard deviation of the points is
    estimated from the points themselves, because the series are correlated.
    """
    one_step = frame[(frame["step"] == 1) & np.isfinite(frame[_LOW_LEVEL]) & (frame[_HIGH_LEVEL] > frame[_LOW_LEVEL])]
    deviation = (one_step[_HIGH_LEVEL] - one_step[_LOW_LEVEL]) / (2 * _HIGH_LEVEL_Z)
    center = (one_step[_HIGH_LEVEL] + one_step[_LOW_LEVEL]) / 2
    residuals = ((one_step["actual"] - center) / deviation).clip(-6, 6)
    groups = {ALL_SERIES: one_step.index == one_step.index}
    groups |= {str(group): (one_step["part"] == group).to_numpy() for group in sorted(set(one_step["part"].dropna()))}
    for name, chosen in groups.items():
        by_timestamp = residuals[chosen].groupby(one_step["stamp"][chosen]).agg(["mean", "count"]).sort_index()
        if len(by_timestamp) < thresholds.min_points:
            continue
        points = by_timestamp["mean"].to_numpy(np.float64)
        independent_std = 1 / math.sqrt(float(by_timestamp["count"].mean()))
        points = points / max(moving_range_std(points), independent_std, thresholds.min_std)
        chart = cusum(points, h=control_limit_for(len(points) * len(groups)))
        yield name, MonitoredChart(chart, by_timestamp.index.tolist(), points.tolist())


def _check_changes(charts: Mapping[str, MonitoredChart]) -> Iterator[Finding]:
    if not charts:
        yield Finding(
            "change", None, None, None, "there are too few one-step forecasts with intervals and actuals for a chart"
        )
    for name, (chart, timestamps, _) in charts.items():
        peak = float(max(chart.upper.max(), chart.lower.max()))
        reason = f"the CUSUM of one-step errors of {name} reached {peak:.1f} (limit {chart.h:.1f})"
        if chart.alarm is not None:
            n_timestamps = len(timestamps) - chart.alarm
            reason += f" and the actuals of the last {n_timestamps} timestamps were {chart.direction} the forecasts"
        finding_name = "change" if name == ALL_SERIES else f"change of {name}"
        yield Finding(finding_name, chart.alarm is not None, peak, chart.h, reason)


def _load_training_profile(facts: Mapping[str, Any]) -> TrainingProfile | None:
    try:
        return TrainingProfile.model_validate(facts["inputs"])
    except (KeyError, ValidationError):  # a bundle from a version without input profiles
        return None


def _iter_input_profiles(rows: Sequence[Any], context: int) -> Iterator[Mapping[str, float]]:
    """Yields the input profiles of the forecasts; of each series only those of windows that do not overlap."""
    latest: dict[str, float] = {}
    for row in rows:  # in order from the latest
        body, timestamps = json.loads(row.body), json.loads(row.stamps)
        step = (timestamps[-1] - row.origin) / len(timestamps)
        if row.key not in latest or row.origin <= latest[row.key] - context * step:
            latest[row.key] = row.origin
            yield body["inputs"]


def _check_inputs(input_shifts: Mapping[str, FeatureShift], *, has_training_profile: bool) -> Iterator[Finding]:
    if not has_training_profile:
        yield Finding(
            "inputs", None, None, None, "the bundle has no profile of its training data. Train the model again"
        )
    elif not input_shifts:
        yield Finding("inputs", None, None, None, "there are no served forecasts")
    for name, shift in input_shifts.items():
        reason = f"the input feature '{name}' differs from training by {shift.value:.2f} (limit {shift.bound:.2f})"
        yield Finding(f"input {name}", shift.value > shift.bound, shift.value, shift.bound, reason)


def _describe_too_few_windows(windows: float, thresholds: MonitoringThresholds) -> str:
    return f"there are {windows:.0f} non-overlapping windows with actuals; at least {thresholds.min_windows} are needed"


def _format_percent(share: float) -> str:
    return f"{100 * share:.1f} %"

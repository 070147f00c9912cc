"""Nightly operation of a service: actuals arrive, monitoring runs, models are retrained and judged, and champions forecast.

week.py selects the data and the changes, and reports the results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.bundle import artifact
from forecaster.evaluation.baselines import ForecastFunction, seasonal_naive
from forecaster.ledger.recording import SeriesNaming, build_records
from forecaster.ledger.records import ModelIdentity, ObservedSeries, encode_timestamps, series_key
from forecaster.ledger.store import Ledger
from forecaster.metrics import seasonal_error
from forecaster.prediction.predictor import Predictor
from forecaster.registry.registry import CHAMPION, Registry
from forecaster.series import Forecast, Panel, Series
from forecaster.shapes import Float64
from forecaster.spec import Spec
from forecaster.training.presets import build_candidate_specs
from pipelines.monitoring.monitor import Finding, build_monitoring_report, resolve_ledger_url
from pipelines.promotion.policy import Policy
from pipelines.promotion.promote import fetch_bundle, find_champion
from pipelines.promotion.verdict import Verdict
from pipelines.retraining.retrain import RetrainOptions, retrain
from pipelines.retraining.triggers import check_triggers
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel

HOURS_PER_DAY = 24
FROZEN, NIGHTLY, IF_NEEDED, NAIVE = "frozen", "nightly", "if_needed", "seasonal naive"
MODELS = (FROZEN, NIGHTLY, IF_NEEDED)

# The question is when to train and promote, with networks that train in seconds; a pretrained network does not age.
POLICY = Policy(zero_shot=False)


class PlannedShift(NamedTuple):
    """A change of the series: all values are multiplied, and every second series is delayed by some hours."""

    name: str
    factor: float
    hours: int


class SimulationPlan(NamedTuple):
    """Length and settings of a simulation.

    Attributes:
        history: Days of history on the first night.
        nights: Number of simulated nights.
        change: The night from which the changed values apply.
        spec_fields: Specification fields that replace those of the preset.
        new_steps: Number of new steps that triggers a training of if_needed, whatever monitoring reports.
    """

    history: int
    nights: int
    change: int
    spec_fields: Mapping[str, Any]
    new_steps: int = 14 * HOURS_PER_DAY


class NightResult(NamedTuple):
    """The result of one night for one model.

    Attributes:
        findings: Findings of monitoring on the champion, before any training.
        reasons: Reasons for the training; empty if there was none.
        verdict: The gate's verdict on the trained model.
        seconds: Seconds of training and judging.
    """

    findings: Sequence[Finding] = ()
    reasons: Sequence[str] = ()
    verdict: Verdict | None = None
    seconds: float = 0.0

    @property
    def promoted(self) -> bool:
        """Whether a new champion forecasts from this night on."""
        return self.verdict is not None and self.verdict.should_promote

    @property
    def proved_better(self) -> bool:
        """Whether a rejected model had proved better than the champion."""
        passed = (
            [] if self.verdict is None else [check.passed for check in self.verdict.checks if check.name == CHAMPION]
        )
        return not self.promoted and True in passed

    @property
    def summary(self) -> str:
        """The verdict in a few words."""
        if self.verdict is None:
            return ""
        return "promoted" if self.promoted else f"rejected ({', '.join(self.verdict.failed_checks)})"


class SimulationResult(NamedTuple):
    """All nights under one change.

    Attributes:
        change: The change.
        plan: The plan of the simulation.
        nights: Results of the nights, by model.
        errors: By model, including the seasonal naive forecast: scaled absolute errors by night and series. The scale is the
            seasonal naive error of the history before the first night, times the factor from the change on.
    """

    change: PlannedShift
    plan: SimulationPlan
    nights: Mapping[str, Sequence[NightResult]]
    errors: Mapping[str, Float64[np.ndarray, "night series"]]


def apply_shift(panel: Panel, change: PlannedShift, *, step: int) -> Panel:
    """Returns the panel with a change from step `step` on: a factor for all series, a delay for every second one."""

    def shifted(index: int, series: Series) -> Series:
        y = series.y.copy()
        delay = change.hours if index % 2 else 0
        y[step:] = change.factor * series.y[step - delay : len(y) - delay]
        return replace(series, y=y)

    return replace(panel, series=[shifted(index, series) for index, series in enumerate(panel.series)])


def simulate_nights(panel: Panel, change: PlannedShift, plan: SimulationPlan, folder: Path) -> SimulationResult:
    """Simulates all nights with the values of `panel`, in a new root in `folder`."""
    change_step = (plan.history + plan.change) * HOURS_PER_DAY
    shifted_panel = apply_shift(panel, change, step=change_step)
    data_file = folder / "hours.parquet"
    pd.concat(
        pd.DataFrame({"unique_id": series.id, "ds": series.timestamps, "y": series.y})
        for series in shifted_panel.series
    ).to_parquet(data_file)
    root = Root(folder / "root")
    root.slot.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(resolve_ledger_url(root, None))
    scales = np.array(
        [
            seasonal_error(series.y[: plan.history * HOURS_PER_DAY], season=HOURS_PER_DAY)
            for series in shifted_panel.series
        ]
    )
    nights: dict[str, list[NightResult]] = {name: [] for name in MODELS}
    errors: dict[str, list[np.ndarray]] = {name: [] for name in (*MODELS, NAIVE)}
    for night in range(plan.nights):
        midnight = (plan.history + night) * HOURS_PER_DAY
        histories = [series.take_first(midnight) for series in shifted_panel.series]
        if night:
            record_actuals(ledger, histories)
        data = DataSource(str(data_file), freq="h", cutoff=str(histories[0].end))
        for name in MODELS:
            nights[name].append(simulate_night(name, data, make_spec(panel, plan, name), root, plan, first=night == 0))
        scale = scales * (change.factor if night >= plan.change else 1.0)
        actual = np.stack([series.y[midnight : midnight + HOURS_PER_DAY] for series in shifted_panel.series])
        predictors: dict[str, ForecastFunction] = {name: serve_champion(name, root, ledger) for name in MODELS} | {
            NAIVE: seasonal_naive(HOURS_PER_DAY)
        }
        for name, predict in predictors.items():
            errors[name].append(np.abs(mean_forecasts(predict, histories) - actual).mean(axis=1) / scale)
        print(
            table_row(night, nights, {name: float(night_errors[-1].mean()) for name, night_errors in errors.items()}),
            flush=True,
        )
    ledger.close()
    return SimulationResult(
        change, plan, nights, {name: np.array(night_errors) for name, night_errors in errors.items()}
    )


def make_spec(panel: Panel, plan: SimulationPlan, name: str) -> Spec:
    """Returns the first preset for hourly data, made small enough to simulate two weeks in minutes."""
    history = replace(panel, series=[series.take_first(plan.history * HOURS_PER_DAY) for series in panel.series])
    fields = build_candidate_specs(history, horizon=HOURS_PER_DAY, name=name)[0].model_dump()
    for field, value in plan.spec_fields.items():
        fields[field] = {**fields[field], **value} if isinstance(value, Mapping) else value
    return Spec.parse(fields, where="benchmarks/week.py")


def simulate_night(
    name: str, data: DataSource, spec: Spec, root: Root, plan: SimulationPlan, *, first: bool
) -> NightResult:
    """Simulates one night of one model: monitoring, and retraining if it is due."""
    findings = [] if first else [finding for finding in build_monitoring_report(root, name).findings if finding.calls]
    reasons: Sequence[str] = ()
    if first or name == NIGHTLY:
        reasons = ("the first night" if first else "every night",)
    elif name == IF_NEEDED:
        reasons = check_triggers(
            name,
            read_panel(data.for_spec(spec)),
            root,
            min_new_steps=plan.new_steps,
            checks=[lambda: [finding.reason for finding in findings]],
        ).reasons
    if not reasons:
        return NightResult(findings)
    started = time.perf_counter()
    result = retrain(data, spec, root, RetrainOptions(trigger="schedule", policy=POLICY))
    return NightResult(findings, reasons, result.verdict, time.perf_counter() - started)


def serve_champion(name: str, root: Root, ledger: Ledger) -> ForecastFunction:
    """Returns the forecast function of the champion; like a service, it records its forecasts in the ledger."""
    version = find_champion(Registry(root.store_uri), name)
    if version is None:
        sys.exit(f"Expected the gate to promote the first {name} model; it rejected the model. Train more steps.")
    predictor = Predictor(artifact.load_bundle(fetch_bundle(version, root)))
    model, naming = ModelIdentity(name, version.number, version.digest), SeriesNaming(ledger.salt, keep_ids=False)

    def forecast(series: Sequence[Series], horizon: int) -> list[Any]:
        outcomes = predictor.forecast_batch(series, horizon)
        forecasts = [outcome for outcome in outcomes if isinstance(outcome, Forecast)]
        now = series[0].end.timestamp()  # type: ignore[union-attr]
        ledger.record(
            build_records(
                predictor, model, series, forecasts, naming=naming, adaptive_state=None, made_at=[now] * len(series)
            )
        )
        return outcomes

    return forecast


def mean_forecasts(predict: ForecastFunction, histories: Sequence[Series]) -> Float64[np.ndarray, "series horizon"]:
    """Returns the forecasts of the next day; raises the error of a series that has no forecast."""
    outcomes = predict(histories, HOURS_PER_DAY)
    for outcome in outcomes:
        if not isinstance(outcome, Forecast):
            raise outcome
    return np.stack([outcome.mean for outcome in outcomes if isinstance(outcome, Forecast)])


def record_actuals(ledger: Ledger, histories: Sequence[Series]) -> None:
    """Records the last day of the histories in the ledger."""
    observed = [
        ObservedSeries(
            series_key(ledger.salt, series.id, series.start),
            encode_timestamps(series.timestamps[-HOURS_PER_DAY:]),
            series.y[-HOURS_PER_DAY:].tolist(),
        )  # type: ignore[arg-type]
        for series in histories
    ]
    ledger.observe(observed, now=histories[0].end.timestamp())  # type: ignore[union-attr]


def table_row(
    night: int, nights: Mapping[str, Sequence[NightResult]], mase: Mapping[str, float], *, emphasis: str = ""
) -> str:
    """Formats a row of the table: errors of the day, and the result of the last night for each model."""
    findings = ", ".join(finding.name for finding in nights[FROZEN][-1].findings)
    cells = [f"{value:.3f}" for value in mase.values()] + [
        findings,
        nights[NIGHTLY][-1].summary,
        nights[IF_NEEDED][-1].summary,
    ]
    return f"| {emphasis}{night + 1}{emphasis} | {' | '.join(cells)} |"

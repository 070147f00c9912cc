"""The nights of a service: truth comes in, the monitor looks, what is trained is judged, and champions forecast.

Used by week.py, which says on what and tells what came of it.
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
from pipelines.promotion.gate import Verdict
from pipelines.promotion.promote import fetch_bundle, find_champion
from pipelines.retraining.retrain import retrain_once
from pipelines.retraining.triggers import check_triggers
from pipelines.settings import Root
from pipelines.sources import DataSource

HOURS_PER_DAY = 24
FROZEN, NIGHTLY, IF_NEEDED, NAIVE = "frozen", "nightly", "if_needed", "seasonal naive"
MODELS = (FROZEN, NIGHTLY, IF_NEEDED)


class PlannedShift(NamedTuple):
    """What becomes of the series: all of them are multiplied, and every second one comes some hours later than before."""

    name: str
    factor: float
    hours: int


class SimulationPlan(NamedTuple):
    """How long, and with what.

    Attributes:
        history: Days that are known on the first night.
        nights: That are lived through.
        change: The night from which on everything is different.
        fields: Of the specification, beside those of the preset.
        new_steps: That call for a training if_needed, whatever the monitor says.
    """

    history: int
    nights: int
    change: int
    spec_fields: Mapping[str, Any]
    new_steps: int = 14 * HOURS_PER_DAY


class NightResult(NamedTuple):
    """What happened to one model in one night.

    Attributes:
        noticed: What the monitor found wrong with the champion, before anything was trained.
        asked: Why it was trained; empty where it was not.
        verdict: The gate's, of what was trained.
        seconds: Of training and judging.
    """

    findings: Sequence[Finding] = ()
    reasons: Sequence[str] = ()
    verdict: Verdict | None = None
    seconds: float = 0.0

    @property
    def promoted(self) -> bool:
        """Whether another forecasts from this night on."""
        return self.verdict is not None and self.verdict.should_promote

    @property
    def proved_better(self) -> bool:
        """Whether what was refused had proved better than the champion."""
        passed = [] if self.verdict is None else [one.passed for one in self.verdict.checks if one.name == CHAMPION]
        return not self.promoted and True in passed

    @property
    def summary(self) -> str:
        """What happened, in a few words."""
        if self.verdict is None:
            return ""
        return "promoted" if self.promoted else f"refused ({', '.join(self.verdict.failed_checks)})"


class SimulationResult(NamedTuple):
    """All nights under one change.

    Attributes:
        change: Which.
        plan: By which they were lived.
        nights: By model.
        errors: By model, and of seasonal naive: scaled absolute errors by night and series, each in units of the seasonal naive
            error of the history before the first night, times the factor from the change on.
    """

    change: PlannedShift
    plan: SimulationPlan
    nights: Mapping[str, Sequence[NightResult]]
    errors: Mapping[str, Float64[np.ndarray, "night series"]]


def apply_shift(panel: Panel, change: PlannedShift, *, step: int) -> Panel:
    """The panel with a change from step `step` on, in all series or in every second one."""

    def one(place: int, series: Series) -> Series:
        y = series.y.copy()
        later = change.hours if place % 2 else 0
        y[step:] = change.factor * series.y[step - later : len(y) - later]
        return replace(series, y=y)

    return panel._replace(series=[one(place, series) for place, series in enumerate(panel.series)])


def simulate_nights(panel: Panel, change: PlannedShift, plan: SimulationPlan, folder: Path) -> SimulationResult:
    """Lives through all nights, in a fresh root in `folder`, with the truth of `panel`."""
    at = (plan.history + plan.change) * HOURS_PER_DAY
    truth = apply_shift(panel, change, step=at)
    file = folder / "hours.parquet"
    pd.concat(pd.DataFrame({"unique_id": one.id, "ds": one.timestamps, "y": one.y}) for one in truth.series).to_parquet(
        file
    )
    root = Root(folder / "root")
    root.slot.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(resolve_ledger_url(root, None))
    scales = np.array(
        [seasonal_error(one.y[: plan.history * HOURS_PER_DAY], season=HOURS_PER_DAY) for one in truth.series]
    )
    nights: dict[str, list[NightResult]] = {name: [] for name in MODELS}
    errors: dict[str, list[np.ndarray]] = {name: [] for name in (*MODELS, NAIVE)}
    for night in range(plan.nights):
        midnight = (plan.history + night) * HOURS_PER_DAY
        known = [one.take_first(midnight) for one in truth.series]
        if night:
            record_actuals(ledger, known)
        data = DataSource(str(file), freq="h", cutoff=str(known[0].end))
        for name in MODELS:
            nights[name].append(simulate_night(name, data, make_spec(panel, plan, name), root, plan, first=night == 0))
        scale = scales * (change.factor if night >= plan.change else 1.0)
        actual = np.stack([one.y[midnight : midnight + HOURS_PER_DAY] for one in truth.series])
        asked: dict[str, ForecastFunction] = {name: serve_champion(name, root, ledger) for name in MODELS} | {
            NAIVE: seasonal_naive(HOURS_PER_DAY)
        }
        for name, ask in asked.items():
            errors[name].append(np.abs(mean_forecasts(ask, known) - actual).mean(axis=1) / scale)
        print(table_row(night, nights, {name: float(found[-1].mean()) for name, found in errors.items()}), flush=True)
    ledger.close()
    return SimulationResult(change, plan, nights, {name: np.array(found) for name, found in errors.items()})


def make_spec(panel: Panel, plan: SimulationPlan, name: str) -> Spec:
    """The first preset of hourly data, made small enough for two weeks in minutes."""
    known = panel._replace(series=[one.take_first(plan.history * HOURS_PER_DAY) for one in panel.series])
    fields = build_candidate_specs(known, horizon=HOURS_PER_DAY, name=name)[0].model_dump()
    for field, value in plan.spec_fields.items():
        fields[field] = {**fields[field], **value} if isinstance(value, Mapping) else value
    return Spec.parse(fields, where="benchmarks/week.py")


def simulate_night(
    name: str, data: DataSource, spec: Spec, root: Root, plan: SimulationPlan, *, first: bool
) -> NightResult:
    """One night of one model: the monitor looks, and it is trained again where that is asked for."""
    noticed = [] if first else [one for one in build_monitoring_report(root, name).findings if one.calls]
    asked: Sequence[str] = ()
    if first or name == NIGHTLY:
        asked = ("the first night" if first else "every night",)
    elif name == IF_NEEDED:
        asked = check_triggers(
            name, data, root, min_new_steps=plan.new_steps, checks=[lambda: [one.reason for one in noticed]]
        ).reasons
    if not asked:
        return NightResult(noticed)
    started = time.perf_counter()
    done = retrain_once(data, spec, root, trigger="schedule").result
    return NightResult(noticed, asked, done.verdict, time.perf_counter() - started)


def serve_champion(name: str, root: Root, ledger: Ledger) -> ForecastFunction:
    """The champion, as a service asks it: what it says is kept in the ledger."""
    version = find_champion(Registry(root.store_uri), name)
    if version is None:
        sys.exit(f"The gate refused the first {name} model; there is nothing to serve. Give it more steps.")
    predictor = Predictor(artifact.load_bundle(fetch_bundle(version, root)))
    model, keeping = ModelIdentity(name, version.number, version.digest), SeriesNaming(ledger.salt, keep_ids=False)

    def ask(series: Sequence[Series], horizon: int) -> list[Any]:
        told = predictor.forecast_batch(series, horizon)
        good = [one for one in told if isinstance(one, Forecast)]
        now = series[0].end.timestamp()  # type: ignore[union-attr]
        ledger.record(
            build_records(
                predictor, model, series, good, naming=keeping, adaptive_state=None, made_at=[now] * len(series)
            )
        )
        return told

    return ask


def mean_forecasts(predict: ForecastFunction, histories: Sequence[Series]) -> Float64[np.ndarray, "series horizon"]:
    """The forecasts of the next day; a refusal is raised, for there is none to expect."""
    told = predict(histories, HOURS_PER_DAY)
    for one in told:
        if not isinstance(one, Forecast):
            raise one
    return np.stack([one.mean for one in told if isinstance(one, Forecast)])


def record_actuals(ledger: Ledger, histories: Sequence[Series]) -> None:
    """The last day of what is known comes to the ledger."""
    observed = [
        ObservedSeries(
            series_key(ledger.salt, one.id, one.start),
            encode_timestamps(one.timestamps[-HOURS_PER_DAY:]),
            one.y[-HOURS_PER_DAY:].tolist(),
        )  # type: ignore[arg-type]
        for one in histories
    ]
    ledger.observe(observed, now=histories[0].end.timestamp())  # type: ignore[union-attr]


def table_row(
    night: int, nights: Mapping[str, Sequence[NightResult]], mase: Mapping[str, float], *, emphasis: str = ""
) -> str:
    """A row of a table: errors of the day, and what the last of some nights was to each model."""
    noticed = ", ".join(one.name for one in nights[FROZEN][-1].findings)
    told = [f"{value:.3f}" for value in mase.values()] + [
        noticed,
        nights[NIGHTLY][-1].summary,
        nights[IF_NEEDED][-1].summary,
    ]
    return f"| {emphasis}{night + 1}{emphasis} | {' | '.join(told)} |"

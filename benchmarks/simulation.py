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
from forecaster.evaluation.baselines import Ask, seasonal_naive
from forecaster.ledger.recording import Keeping, made
from forecaster.ledger.records import Observed, Told, key_of, ticks
from forecaster.ledger.store import Ledger
from forecaster.metrics import seasonal_error
from forecaster.prediction.predictor import Predictor
from forecaster.registry.registry import CHAMPION, Registry
from forecaster.series import Forecast, Panel, Series
from forecaster.shapes import Float64
from forecaster.spec import Spec
from forecaster.training.presets import candidates
from pipelines.monitoring.monitor import Finding, ledger_of, look
from pipelines.promotion.gate import Verdict
from pipelines.promotion.promote import champion_of, fetch
from pipelines.retraining.retrain import retrain_once
from pipelines.retraining.triggers import need
from pipelines.settings import Root
from pipelines.sources import Data

DAY = 24
FROZEN, NIGHTLY, IF_NEEDED, NAIVE = "frozen", "nightly", "if_needed", "seasonal naive"
MODELS = (FROZEN, NIGHTLY, IF_NEEDED)


class Change(NamedTuple):
    """What becomes of the series: all of them are multiplied, and every second one comes some hours later than before."""

    name: str
    factor: float
    hours: int


class Plan(NamedTuple):
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
    fields: Mapping[str, Any]
    new_steps: int = 14 * DAY


class Night(NamedTuple):
    """What happened to one model in one night.

    Attributes:
        noticed: What the monitor found wrong with the champion, before anything was trained.
        asked: Why it was trained; empty where it was not.
        verdict: The gate's, of what was trained.
        seconds: Of training and judging.
    """

    noticed: Sequence[Finding] = ()
    asked: Sequence[str] = ()
    verdict: Verdict | None = None
    seconds: float = 0.0

    @property
    def promoted(self) -> bool:
        """Whether another forecasts from this night on."""
        return self.verdict is not None and self.verdict.promote

    @property
    def proven(self) -> bool:
        """Whether what was refused had proved better than the champion."""
        passed = [] if self.verdict is None else [one.passed for one in self.verdict.checks if one.name == CHAMPION]
        return not self.promoted and True in passed

    @property
    def told(self) -> str:
        """What happened, in a few words."""
        if self.verdict is None:
            return ""
        return "promoted" if self.promoted else f"refused ({', '.join(self.verdict.failed)})"


class Lived(NamedTuple):
    """All nights under one change.

    Attributes:
        change: Which.
        plan: By which they were lived.
        nights: By model.
        errors: By model, and of seasonal naive: scaled absolute errors by night and series, each in units of the seasonal naive
            error of the history before the first night, times the factor from the change on.
    """

    change: Change
    plan: Plan
    nights: Mapping[str, Sequence[Night]]
    errors: Mapping[str, Float64[np.ndarray, "night series"]]


def changed(panel: Panel, change: Change, *, at: int) -> Panel:
    """The panel with a change from step `at` on, in all series or in every second one."""

    def one(place: int, series: Series) -> Series:
        y = series.y.copy()
        later = change.hours if place % 2 else 0
        y[at:] = change.factor * series.y[at - later : len(y) - later]
        return replace(series, y=y)

    return panel._replace(series=[one(place, series) for place, series in enumerate(panel.series)])


def live(panel: Panel, change: Change, plan: Plan, folder: Path) -> Lived:
    """Lives through all nights, in a fresh root in `folder`, with the truth of `panel`."""
    at = (plan.history + plan.change) * DAY
    truth = changed(panel, change, at=at)
    file = folder / "hours.parquet"
    pd.concat(pd.DataFrame({"unique_id": one.id, "ds": one.stamps, "y": one.y}) for one in truth.series).to_parquet(
        file
    )
    root = Root(folder / "root")
    root.slot.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(ledger_of(root, None))
    scales = np.array([seasonal_error(one.y[: plan.history * DAY], season=DAY) for one in truth.series])
    nights: dict[str, list[Night]] = {name: [] for name in MODELS}
    errors: dict[str, list[np.ndarray]] = {name: [] for name in (*MODELS, NAIVE)}
    for night in range(plan.nights):
        midnight = (plan.history + night) * DAY
        known = [one.until(midnight) for one in truth.series]
        if night:
            tell(ledger, known)
        data = Data(str(file), freq="h", cutoff=str(known[0].end))
        for name in MODELS:
            nights[name].append(spend(name, data, specified(panel, plan, name), root, plan, first=night == 0))
        scale = scales * (change.factor if night >= plan.change else 1.0)
        actual = np.stack([one.y[midnight : midnight + DAY] for one in truth.series])
        asked: dict[str, Ask] = {name: served(name, root, ledger) for name in MODELS} | {NAIVE: seasonal_naive(DAY)}
        for name, ask in asked.items():
            errors[name].append(np.abs(means(ask, known) - actual).mean(axis=1) / scale)
        print(row(night, nights, {name: float(found[-1].mean()) for name, found in errors.items()}), flush=True)
    ledger.close()
    return Lived(change, plan, nights, {name: np.array(found) for name, found in errors.items()})


def specified(panel: Panel, plan: Plan, name: str) -> Spec:
    """The first preset of hourly data, made small enough for two weeks in minutes."""
    known = panel._replace(series=[one.until(plan.history * DAY) for one in panel.series])
    fields = candidates(known, horizon=DAY, name=name)[0].model_dump()
    for field, value in plan.fields.items():
        fields[field] = {**fields[field], **value} if isinstance(value, Mapping) else value
    return Spec.parse(fields, where="benchmarks/week.py")


def spend(name: str, data: Data, spec: Spec, root: Root, plan: Plan, *, first: bool) -> Night:
    """One night of one model: the monitor looks, and it is trained again where that is asked for."""
    noticed = [] if first else [one for one in look(root, name).findings if one.calls]
    asked: Sequence[str] = ()
    if first or name == NIGHTLY:
        asked = ("the first night" if first else "every night",)
    elif name == IF_NEEDED:
        asked = need(
            name, data, root, min_new=plan.new_steps, watches=[lambda: [one.reason for one in noticed]]
        ).reasons
    if not asked:
        return Night(noticed)
    started = time.perf_counter()
    done = retrain_once(data, spec, root, trigger="schedule").done
    return Night(noticed, asked, done.verdict, time.perf_counter() - started)


def served(name: str, root: Root, ledger: Ledger) -> Ask:
    """The champion, as a service asks it: what it says is kept in the ledger."""
    version = champion_of(Registry(root.store), name)
    if version is None:
        sys.exit(f"The gate refused the first {name} model; there is nothing to serve. Give it more steps.")
    predictor = Predictor(artifact.load(fetch(version, root)))
    model, keeping = Told(name, version.number, version.digest), Keeping(ledger.salt, clear=False)

    def ask(series: Sequence[Series], horizon: int) -> list[Any]:
        told = predictor.forecast_each(series, horizon)
        good = [one for one in told if isinstance(one, Forecast)]
        now = series[0].end.timestamp()  # type: ignore[union-attr]
        ledger.record(made(predictor, model, series, good, keeping=keeping, drift=None, at=[now] * len(series)))
        return told

    return ask


def means(ask: Ask, known: Sequence[Series]) -> Float64[np.ndarray, "series horizon"]:
    """The forecasts of the next day; a refusal is raised, for there is none to expect."""
    told = ask(known, DAY)
    for one in told:
        if not isinstance(one, Forecast):
            raise one
    return np.stack([one.mean for one in told if isinstance(one, Forecast)])


def tell(ledger: Ledger, known: Sequence[Series]) -> None:
    """The last day of what is known comes to the ledger."""
    observed = [
        Observed(key_of(ledger.salt, one.id, one.start), ticks(one.stamps[-DAY:]), one.y[-DAY:].tolist())  # type: ignore[arg-type]
        for one in known
    ]
    ledger.observe(observed, at=known[0].end.timestamp())  # type: ignore[union-attr]


def row(night: int, nights: Mapping[str, Sequence[Night]], mase: Mapping[str, float], *, mark: str = "") -> str:
    """A row of a table: errors of the day, and what the last of some nights was to each model."""
    noticed = ", ".join(one.name for one in nights[FROZEN][-1].noticed)
    told = [f"{value:.3f}" for value in mase.values()] + [noticed, nights[NIGHTLY][-1].told, nights[IF_NEEDED][-1].told]
    return f"| {mark}{night + 1}{mark} | {' | '.join(told)} |"

"""Trials one after another: each is proposed when the one before has ended, fitted, reported and recorded in a run."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import NamedTuple

from forecaster.errors import BadSpec, NonFiniteLoss
from forecaster.progress import Progress
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.fit import FitResult, fit
from pipelines.settings import Root
from pipelines.tracking.run import RunDataset, TrackedRun, open_run
from pipelines.tuning.results import get_value, rank_trials
from pipelines.tuning.search_space import SearchSpace, apply_params, format_params, get_current_values
from pipelines.tuning.study import DONE, PRUNED, PruningCallback, Study, Trial, TrialResult

TRIGGER = "tune"


class SearchContext(NamedTuple):
    """What every trial of a search needs."""

    panel: Panel
    base_spec: Spec  # the center of the search
    space: SearchSpace
    dataset: RunDataset
    root: Root
    study: Study
    parent_run: TrackedRun
    n_trials: int
    accelerator: str
    devices: str
    progress: Progress


def run_trial(search: SearchContext) -> None:
    """Trains one specification; an inconsistent one is rejected without training and does not count as a trial."""
    trial = search.study.ask(get_current_values(search.base_spec, search.space))
    trial_number = search.study.count_trained() + 1
    try:
        spec = apply_params(search.base_spec, trial.params)
    except BadSpec as error:
        search.study.finish_trial(trial, None, fault=error.message)
        return
    started, pruning_callback = time.monotonic(), PruningCallback(trial)
    with search.progress.phase(f"trial {trial_number} of {search.n_trials}", spec.training.steps):
        search.progress.update(0, format_params(trial.params))
        try:
            fitted, fault = _fit_trial(search, spec, trial, pruning_callback, trial_number=trial_number), None
        except NonFiniteLoss as error:
            fitted, fault = None, error.message
        value = None if fitted is None or pruning_callback.was_pruned else fitted.scores["valid/rollout"]
        search.study.finish_trial(trial, value, seconds=time.monotonic() - started, fault=fault)
        report_trial(search, search.study.get_results()[-1], steps=0 if fitted is None else fitted.steps)


def open_trial_run(search: SearchContext, spec: Spec, *, trial_number: int) -> AbstractContextManager[TrackedRun]:
    """Opens the run of a trial, a child of the search's run."""
    return open_run(
        spec,
        search.dataset,
        root=search.root.path,
        tracking_uri=search.root.tracking_uri,
        trigger=TRIGGER,
        parent_run_id=search.parent_run.id,
        run_name=f"trial {trial_number}",
        tags={"trial": str(trial_number)},
    )


def record_fit(
    run: TrackedRun, spec: Spec, *, score: float, epochs: int, steps: int, seconds: float, state: str
) -> None:
    """Records the result of a trial in its run."""
    run.log_headline_metrics({"train/seconds": seconds, "train/windows_per_s": steps * spec.training.batch / seconds})
    run.set_tag("state", state)
    run.logger.log_metrics({"tune/value": score}, epochs)


def _fit_trial(
    search: SearchContext, spec: Spec, trial: Trial, pruning_callback: PruningCallback, *, trial_number: int
) -> FitResult:
    """Fits one specification and records it in a child run of the search's run; raises NonFiniteLoss."""
    started = time.monotonic()
    with open_trial_run(search, spec, trial_number=trial_number) as run:
        search.study.start_trial(trial, trial_number=trial_number, run_id=run.id)
        fitted = fit(
            search.panel,
            spec,
            loggers=[run.logger],
            callbacks=[pruning_callback],
            accelerator=search.accelerator,
            devices=search.devices,
            progress=search.progress,
        )
        record_fit(
            run,
            spec,
            score=fitted.scores["valid/rollout"],
            epochs=fitted.epochs,
            steps=fitted.steps,
            seconds=time.monotonic() - started,
            state=PRUNED if pruning_callback.was_pruned else DONE,
        )
    return fitted


def report_trial(search: SearchContext, result: TrialResult, *, steps: int) -> None:
    """Reports the result of a trial, and records the best one so far."""
    outcome = (
        result.state
        if result.state != PRUNED
        else f"pruned after {result.epochs} epochs"
        if result.fault is None
        else "diverged"
    )
    ranked = rank_trials(search.study.get_results())
    best = f"; the best is {ranked[0].value:.4g} of trial {ranked[0].trial}" if ranked else ""
    value = "" if result.value is None else f"MASE {result.value:.4g}, "
    search.progress.update(steps, f"{value}{outcome}{best}")
    if ranked:
        search.parent_run.logger.log_metrics({"tune/value": get_value(ranked[0])}, result.trial)

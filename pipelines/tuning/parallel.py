"""Trials in batches of a fixed size: proposed together, fitted anywhere, and ended in the order of their numbers.

So a search is a function of its seed and of the size of a batch, whatever fits the trials and how fast.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from forecaster.errors import BadSpec, NonFiniteLoss
from forecaster.progress.steps import RunSteps
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.fit import fit
from forecaster.training.lightning import Logger
from pipelines.tuning.search_space import apply_params, get_current_values
from pipelines.tuning.study import DONE, PRUNED, PendingTrial, PruningCallback, PruningSnapshot, TrialOutcome
from pipelines.tuning.trials import SearchContext, open_trial_run, record_fit, report_trial


class _TrialStep(NamedTuple):
    """A trial to fit: its number in Optuna, and its specification."""

    number: int
    spec: Spec


class _EpochRecorder(Logger):
    """A Lightning logger that keeps the metrics of each epoch."""

    name, version = "epochs", ""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keeps the metrics of an epoch."""
        self.metrics.append(({name: float(value) for name, value in metrics.items()}, step or 0))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the specification is known."""


def run_batch(search: SearchContext, *, run_steps: RunSteps | None) -> None:
    """Trains the specifications of a batch, or what is left of one that was interrupted.

    Inconsistent specifications are rejected while the batch is proposed, and count as no trial.

    Args:
        search: The search.
        run_steps: What fits the trials elsewhere; None fits one after another in this process.
    """
    study = search.study
    if not any(trial.outcome is not None for trial in study.get_pending_trials()):
        _propose_batch(search)
    pending = study.get_pending_trials()
    steps = [
        _TrialStep(trial.number, apply_params(search.base_spec, trial.params))
        for trial in pending
        if trial.outcome is None
    ]
    fit_step = partial(
        _fit_step, search.panel, study.take_snapshot(), accelerator=search.accelerator, devices=search.devices
    )
    label = f"trials {pending[0].trial} to {pending[-1].trial} of {search.n_trials}"
    with search.progress.phase(label, len(pending)):
        for number, outcome in enumerate(run_steps(fit_step, steps) if run_steps else map(fit_step, steps), start=1):
            study.store_outcome(outcome)
            search.progress.update(len(pending) - len(steps) + number, "fitted")
        for trial in study.get_pending_trials():
            _record_trial(search, trial)
            study.finish_pending_trial(trial)
            report_trial(search, study.get_results()[-1], steps=len(pending))


def _propose_batch(search: SearchContext) -> None:
    """Lets the sampler propose the trials that the current batch still lacks."""
    study = search.study
    first, batch = study.count_trained() + 1, len(study.get_pending_trials())
    while batch < study.parallel:
        trial = study.ask(get_current_values(search.base_spec, search.space))
        try:
            apply_params(search.base_spec, trial.params)
        except BadSpec as error:
            study.finish_trial(trial, None, fault=error.message)
            continue
        study.add_to_batch(trial, trial_number=first + batch)
        batch += 1


def _fit_step(
    panel: Panel, snapshot: PruningSnapshot, step: _TrialStep, *, accelerator: str, devices: str
) -> TrialOutcome:
    """Fits the specification of a trial, in any process."""
    recorder, pruning_callback = _EpochRecorder(), PruningCallback(snapshot.open_trial())
    started, score, fault, epochs, steps = time.monotonic(), None, None, 0, 0
    try:
        fitted = fit(
            panel,
            step.spec,
            loggers=[recorder],
            callbacks=[pruning_callback],
            accelerator=accelerator,
            devices=devices,
        )
        score, epochs, steps = fitted.scores["valid/rollout"], fitted.epochs, fitted.steps
    except NonFiniteLoss as error:
        fault = error.message
    return TrialOutcome(
        number=step.number,
        score=score,
        was_pruned=pruning_callback.was_pruned,
        reported=pruning_callback.reported,
        metrics=recorder.metrics,
        epochs=epochs,
        steps=steps,
        seconds=time.monotonic() - started,
        fault=fault,
    )


def _record_trial(search: SearchContext, trial: PendingTrial) -> None:
    """Records the outcome of a trial in a child run of the search's run."""
    outcome, spec = trial.outcome, apply_params(search.base_spec, trial.params)
    assert outcome is not None, "all trials of a batch have been fitted"
    try:
        with open_trial_run(search, spec, trial_number=trial.trial) as run:
            search.study.start_recording(trial, run_id=run.id)
            for metrics, steps in outcome.metrics:
                run.logger.log_metrics(metrics, steps)
            if outcome.score is None:
                raise NonFiniteLoss(outcome.fault or "The network diverged.")
            record_fit(
                run,
                spec,
                score=outcome.score,
                epochs=outcome.epochs,
                steps=outcome.steps,
                seconds=outcome.seconds,
                state=PRUNED if outcome.was_pruned else DONE,
            )
    except NonFiniteLoss:
        return  # its run has failed, as that of a trial that diverges in this process

"""The trials of a search in Optuna, stored in SQLite so that a killed search can be resumed. Only this file uses Optuna."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from forecaster.errors import MissingPackage, TrainingError
from forecaster.storage.locks import open_locked
from forecaster.training.lightning import pl
from pipelines.tuning.search_space import Choices, Range, SearchSpace

try:
    import optuna
except ImportError as error:
    raise MissingPackage(
        "Expected the package 'optuna', which tuning needs; found none. Install the extra that includes it: "
        "pip install 'recurrent-forecaster[tune]'.",
        where="optuna",
    ) from error
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from optuna.trial import Trial as Trial

DONE, PRUNED, REFUSED = "done", "pruned", "refused"
_SAMPLER_STARTUP_TRIALS = 10  # random trials before the sampler uses a model of earlier ones
_PRUNER_STARTUP_TRIALS = 5  # completed trials before one is pruned
_MIN_TRIALS_FOR_IMPORTANCE = 6  # completed trials below which importances are not computed
_RUN, _TRIAL, _RUN_ID, _SECONDS, _FAULT = "run", "trial", "run_id", "seconds", "fault"
_PARALLEL, _OUTCOME = "parallel", "outcome"


class TrialResult(NamedTuple):
    """A trial that has finished: it was completed, pruned or rejected."""

    trial: int | None  # number among the trained trials, from 1; None if the specification was rejected
    state: str  # done, pruned, refused
    value: float | None  # best free-running error on the validation windows; the last one if pruned
    epochs: int
    seconds: float | None
    run_id: str | None
    params: dict[str, Any]
    fault: str | None  # why it was rejected or did not complete


class TrialOutcome(NamedTuple):
    """What the fit of a trial gave, wherever it ran; stored before the trials of its batch are finished in order.

    Attributes:
        number: The number of the trial in Optuna.
        score: The error of the kept epoch; None if the network diverged.
        was_pruned: Whether the fit was stopped early.
        reported: The free-running error of each epoch, which decides about this and later trials.
        metrics: The metrics of each epoch, and the optimiser steps before them.
        epochs, steps: The epochs and optimiser steps of the fit.
        seconds: The seconds of the fit.
        fault: Why the network diverged.
    """

    number: int
    score: float | None
    was_pruned: bool
    reported: Sequence[float]
    metrics: Sequence[tuple[Mapping[str, float], int]]
    epochs: int
    steps: int
    seconds: float
    fault: str | None

    @property
    def value(self) -> float | None:
        """The value of the trial; None if it was pruned."""
        return None if self.was_pruned else self.score


class PendingTrial(NamedTuple):
    """A trial of a batch that has not ended: its number in Optuna, that among the trained trials, parameters and outcome."""

    number: int
    trial: int
    params: dict[str, Any]
    outcome: TrialOutcome | None


class PruningSnapshot(NamedTuple):
    """What decides whether a trial is pruned, at the start of its batch: the completed trials and the pruner.

    It is sent to the process that fits the trial.
    """

    completed: Sequence[FrozenTrial]
    pruner: optuna.pruners.BasePruner

    def open_trial(self) -> Trial:
        """Returns a trial in memory that is pruned as one of the study."""
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=self.pruner)
        study.add_trials(self.completed)
        return study.ask()


class Study:
    """The trials of one search, in a store that outlives the process.

    The next parameters are a function of the seed, of the finished trials and, in a parallel search, of those of the same batch
    that were proposed before. So a resumed search makes the same trials as an uninterrupted one.

    Attributes:
        parallel: The number of trials of a batch, which are proposed before any of them has ended.
    """

    def __init__(self, study: optuna.Study, space: SearchSpace, *, seed: int, parallel: int = 1) -> None:
        self._study, self._seed, self.parallel = study, seed, parallel
        self._distributions = {path: _build_distribution(choices) for path, choices in space.items()}

    @property
    def run(self) -> Mapping[str, str] | None:
        """The id and the store of the unfinished search's tracked run, as they were set; None if there is none."""
        run: Mapping[str, str] | None = self._study.user_attrs.get(_RUN)
        return run

    @run.setter
    def run(self, run: Mapping[str, str] | None) -> None:
        self._study.set_user_attr(_RUN, run)

    def fail_stale_trials(self) -> list[str | None]:
        """Marks trials that a kill left running as failed; returns their run ids, None where a run was not yet opened.

        The trials of a batch stay, since the others of the batch were proposed beside them.
        """
        stale_trials = self._study.get_trials(states=[TrialState.RUNNING])
        for trial in stale_trials:
            if self.parallel == 1 or _TRIAL not in trial.user_attrs:
                self._study.tell(trial.number, state=TrialState.FAIL)
        return [trial.user_attrs.get(_RUN_ID) for trial in stale_trials]

    def ask(self, initial_params: Mapping[str, Any]) -> Trial:
        """Returns the next trial; the first one has the initial parameters."""
        n_proposed = len(self._get_finished_trials()) + len(self.get_pending_trials())
        sampler_seed = int(np.random.SeedSequence([self._seed, n_proposed]).generate_state(1)[0])
        self._study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=_SAMPLER_STARTUP_TRIALS,
            multivariate=True,
            constant_liar=self.parallel > 1,  # keeps away from the trials of the same batch
            seed=sampler_seed,
        )
        # A killed process may have left an enqueued trial.
        if not n_proposed and not self._study.get_trials(states=[TrialState.WAITING]):
            self._study.enqueue_trial(dict(initial_params))
        return self._study.ask(self._distributions)

    def add_to_batch(self, trial: Trial, *, trial_number: int) -> None:
        """Makes a trial one of the current batch, with its number among the trained trials."""
        trial.set_user_attr(_TRIAL, trial_number)

    def get_pending_trials(self) -> list[PendingTrial]:
        """Returns the trials of the current batch, in the order of their numbers."""
        return [
            PendingTrial(trial.number, trial.user_attrs[_TRIAL], dict(trial.params), _parse_outcome(trial))
            for trial in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
            if _TRIAL in trial.user_attrs
        ]

    def take_snapshot(self) -> PruningSnapshot:
        """Returns what decides whether the trials of the current batch are pruned."""
        return PruningSnapshot(self._study.get_trials(states=[TrialState.COMPLETE]), self._study.pruner)

    def store_outcome(self, outcome: TrialOutcome) -> None:
        """Stores what the fit of a trial gave, which a resumed search does not repeat."""
        self._get_trial(outcome.number).set_user_attr(_OUTCOME, outcome._asdict())

    def start_recording(self, pending: PendingTrial, *, run_id: str) -> None:
        """Stores the run id of a trial whose outcome is recorded."""
        self._get_trial(pending.number).set_user_attr(_RUN_ID, run_id)

    def finish_pending_trial(self, pending: PendingTrial) -> None:
        """Ends a trial with its outcome, as if it had reported its epochs itself."""
        outcome, trial = pending.outcome, self._get_trial(pending.number)
        assert outcome is not None, "all trials of a batch have been fitted"
        for epoch, value in enumerate(outcome.reported):
            trial.report(value, epoch)
        self.finish_trial(trial, outcome.value, seconds=outcome.seconds, fault=outcome.fault)

    def start_trial(self, trial: Trial, *, trial_number: int, run_id: str) -> None:
        """Stores the number and the run id of a trial."""
        trial.set_user_attr(_TRIAL, trial_number)
        trial.set_user_attr(_RUN_ID, run_id)

    def finish_trial(
        self, trial: Trial, value: float | None, *, seconds: float | None = None, fault: str | None = None
    ) -> None:
        """Stores the result of a trial: completed with a value, or pruned if `value` is None."""
        if seconds is not None:
            trial.set_user_attr(_SECONDS, seconds)
        if fault is not None:
            trial.set_user_attr(_FAULT, fault)
        self._study.tell(trial, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)

    def get_results(self) -> list[TrialResult]:
        """Returns all finished trials, in order."""
        return [_build_result(trial) for trial in self._get_finished_trials()]

    def count_trained(self) -> int:
        """Returns the number of finished trials that were trained."""
        return sum(result.state != REFUSED for result in self.get_results())

    def count_kept(self) -> int:
        """Returns the number of trials that a resumed search does not train again, also those of an unfinished batch."""
        return self.count_trained() + sum(trial.outcome is not None for trial in self.get_pending_trials())

    def compute_importances(self) -> dict[str, float]:
        """Computes the share of each field, including its interactions, in the variance of the trials' values; largest first.

        Functional ANOVA (Hutter, Hoos and Leyton-Brown 2014) of the logarithm of the values, so that a single outlier does not
        dominate. Empty if too few trials were completed, or if all values are equal.
        """
        values = [result.value for result in self.get_results() if result.state == DONE]
        if len(values) < _MIN_TRIALS_FOR_IMPORTANCE or len(set(values)) == 1:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        importances = optuna.importance.get_param_importances(
            self._study, evaluator=evaluator, target=_compute_log_value
        )
        return {path: float(share) for path, share in importances.items()}

    def _get_trial(self, number: int) -> Trial:
        [frozen] = [trial for trial in self._study.get_trials(deepcopy=False) if trial.number == number]
        return Trial(self._study, frozen._trial_id)

    def _get_finished_trials(self) -> Sequence[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])


@contextmanager
def open_study(
    lock_folder: Path,
    storage_url: str,
    study_name: str,
    space: SearchSpace,
    *,
    seed: int,
    parallel: int = 1,
    warm_up_epochs: int,
) -> Iterator[Study]:
    """Creates or resumes the study of that name, and holds its lock for as long as the block lasts.

    A trial is pruned after an epoch in which its best value so far is worse than the median of the other trials at that epoch.

    Args:
        lock_folder: Folder of the lock files.
        storage_url: Address of the database.
        study_name: Name of the study.
        space: The search space.
        seed: Seed of the sampler.
        parallel: Number of trials of a batch.
        warm_up_epochs: Number of first epochs in which no trial is pruned.
    Raises:
        TrainingError: The same search is running in another process.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _hold_search_lock(lock_folder / f"{study_name}.lock"):
        with open_locked(
            lock_folder / "tune.lock", timeout_s=None
        ):  # processes that create tables concurrently would fail
            storage = optuna.storages.RDBStorage(storage_url)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=_PRUNER_STARTUP_TRIALS, n_warmup_steps=warm_up_epochs)
        study = optuna.create_study(storage=storage, study_name=study_name, pruner=pruner, load_if_exists=True)
        study.set_user_attr(_PARALLEL, parallel)
        try:
            yield Study(study, space, seed=seed, parallel=parallel)
        finally:
            storage.remove_session()
            storage.engine.dispose()


class PruningCallback(pl.Callback):
    """Reports the free-running error of each epoch to a trial, and stops the fit if the trial should be pruned."""

    def __init__(self, trial: Trial) -> None:
        self.was_pruned, self.reported = False, list[float]()
        self._trial = trial

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs before the fit's own callbacks, which still record this epoch."""
        value, n_epochs = float(trainer.callback_metrics["valid/rollout"]), trainer.current_epoch + 1
        self.reported.append(value)
        self._trial.report(value, trainer.current_epoch)
        if n_epochs != trainer.max_epochs and self._trial.should_prune():
            self.was_pruned = trainer.should_stop = True


@contextmanager
def _hold_search_lock(lock_path: Path) -> Iterator[None]:
    try:
        lock = open_locked(lock_path)
    except BlockingIOError as error:
        raise TrainingError(
            f"Expected no other process in the same search; one is already running (it holds {lock_path}). Wait for it, or "
            "choose another --seed.",
            where=str(lock_path),
        ) from error
    with lock:
        yield


def _build_distribution(choices: Choices) -> BaseDistribution:
    if not isinstance(choices, Range):
        return CategoricalDistribution(choices)
    if isinstance(choices.low, int) and isinstance(choices.high, int):
        return IntDistribution(choices.low, choices.high, log=True)
    return FloatDistribution(choices.low, choices.high, log=True)


def _compute_log_value(trial: FrozenTrial) -> float:
    assert trial.value is not None, "importances are computed from completed trials only"
    return math.log(max(trial.value, 1e-12))


def _parse_outcome(trial: FrozenTrial) -> TrialOutcome | None:
    fields = trial.user_attrs.get(_OUTCOME)
    return None if fields is None else TrialOutcome(**fields)


def _build_result(trial: FrozenTrial) -> TrialResult:
    number = trial.user_attrs.get(_TRIAL)
    is_completed = trial.state == TrialState.COMPLETE
    return TrialResult(
        number,
        REFUSED if number is None else DONE if is_completed else PRUNED,
        trial.value,
        len(trial.intermediate_values),
        trial.user_attrs.get(_SECONDS),
        trial.user_attrs.get(_RUN_ID),
        dict(trial.params),
        trial.user_attrs.get(_FAULT),
    )

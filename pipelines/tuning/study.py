"""The one file that knows Optuna: a search that is kept in SQLite, and that a kill does not end."""

from __future__ import annotations

import fcntl
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl

from forecaster.errors import MissingPackage, TrainingError
from pipelines.tuning.search_space import Choices, Range, SearchSpace

try:
    import optuna
except ImportError as error:
    raise MissingPackage(
        "Tuning needs the package 'optuna', which is not installed. Install the extra that has it: "
        "pip install 'forecaster[tune]'.",
        where="optuna",
    ) from error
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from optuna.trial import Trial as Trial

DONE, PRUNED, REFUSED = "done", "pruned", "refused"
_SAMPLER_STARTUP_TRIALS = 10  # trials before the sampler has an opinion
_PRUNER_STARTUP_TRIALS = 5  # trials that are compared with before one is pruned
_MIN_TRIALS_FOR_IMPORTANCE = 6  # of fewer trials nothing can be told
_RUN, _TRIAL, _RUN_ID, _SECONDS, _FAULT = "run", "trial", "run_id", "seconds", "fault"


class TrialResult(NamedTuple):
    """A trial that has ended."""

    trial: int | None  # counts those that were trained, from 1; None where the specification was refused
    state: str  # done, pruned, refused
    value: float | None  # the best rollout on validation windows; where pruned, the last
    epochs: int
    seconds: float | None
    run_id: str | None
    params: dict[str, Any]
    fault: str | None  # why it was refused, or did not come to its end


class Study:
    """The trials of one search, in a store that outlives the process.

    What is tried next is a function of the seed and of the trials that ended: a search that was killed tries what it would
    have tried.
    """

    def __init__(self, study: optuna.Study, space: SearchSpace, *, seed: int) -> None:
        self._study, self._seed = study, seed
        self._distributions = {path: _build_distribution(choices) for path, choices in space.items()}

    @property
    def run(self) -> Mapping[str, str] | None:
        """The tracked run of a search that has not ended yet, and its store, as they were set."""
        found: Mapping[str, str] | None = self._study.user_attrs.get(_RUN)
        return found

    @run.setter
    def run(self, run: Mapping[str, str] | None) -> None:
        self._study.set_user_attr(_RUN, run)

    def fail_stale_trials(self) -> list[str | None]:
        """Marks trials as failed that a kill left running; their runs, if they had come so far."""
        left = self._study.get_trials(states=[TrialState.RUNNING])
        for one in left:
            self._study.tell(one.number, state=TrialState.FAIL)
        return [one.user_attrs.get(_RUN_ID) for one in left]

    def ask(self, initial_params: Mapping[str, Any]) -> Trial:
        """What to try next: at first what is given."""
        ended = len(self._get_finished_trials())
        chance = int(np.random.SeedSequence([self._seed, ended]).generate_state(1)[0])
        self._study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=_SAMPLER_STARTUP_TRIALS, multivariate=True, constant_liar=False, seed=chance
        )
        if not ended and not self._study.get_trials(states=[TrialState.WAITING]):  # a kill may have left one
            self._study.enqueue_trial(dict(initial_params))
        return self._study.ask(self._distributions)

    def start_trial(self, trial: Trial, *, trial_number: int, run_id: str) -> None:
        """Notes which trial it is, and its run."""
        trial.set_user_attr(_TRIAL, trial_number)
        trial.set_user_attr(_RUN_ID, run_id)

    def finish_trial(
        self, trial: Trial, value: float | None, *, seconds: float | None = None, fault: str | None = None
    ) -> None:
        """Notes how a trial ended: with a value, or else pruned."""
        if seconds is not None:
            trial.set_user_attr(_SECONDS, seconds)
        if fault is not None:
            trial.set_user_attr(_FAULT, fault)
        self._study.tell(trial, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)

    def get_results(self) -> list[TrialResult]:
        """All trials that have ended, in their order."""
        return [_build_result(one) for one in self._get_finished_trials()]

    def compute_importances(self) -> dict[str, float]:
        """The share of each field, and of those it goes with, in how differently trials did; most first.

        Functional ANOVA (Hutter, Hoos and Leyton-Brown 2014) of the logarithm, so that one that went astray does not decide
        alone. Empty where too few trials were done, or all did alike.
        """
        values = [one.value for one in self.get_results() if one.state == DONE]
        if len(values) < _MIN_TRIALS_FOR_IMPORTANCE or len(set(values)) == 1:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(self._study, evaluator=evaluator, target=_compute_log_value)
        return {path: float(share) for path, share in found.items()}

    def _get_finished_trials(self) -> Sequence[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])


@contextmanager
def open_study(
    lock_folder: Path, storage_url: str, study_name: str, space: SearchSpace, *, seed: int, warm_up_epochs: int
) -> Iterator[Study]:
    """A study of that name, begun or gone on with, for as long as the block lasts.

    A trial is pruned after an epoch in which its best rollout so far is worse than the median of the others' at that epoch.

    Args:
        folder: For the locks.
        store: The address of the database.
        name: Of the study.
        space: What is chosen from.
        seed: Of what is left to chance.
        warm_up: Epochs in which no trial is pruned.
    Raises:
        TrainingError: the same search is running in another process.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lock_folder.mkdir(parents=True, exist_ok=True)
    with _hold_search_lock(lock_folder / f"{study_name}.lock"):
        with (lock_folder / "tune.lock").open("w") as lock:  # two that make the tables at once would both fail
            fcntl.flock(lock, fcntl.LOCK_EX)
            storage = optuna.storages.RDBStorage(storage_url)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=_PRUNER_STARTUP_TRIALS, n_warmup_steps=warm_up_epochs)
        study = optuna.create_study(storage=storage, study_name=study_name, pruner=pruner, load_if_exists=True)
        try:
            yield Study(study, space, seed=seed)
        finally:
            storage.remove_session()
            storage.engine.dispose()


class PruningCallback(pl.Callback):
    """Tells a trial the rollout of each epoch, and ends the fit where the others did better."""

    def __init__(self, trial: Trial, report_status: Callable[[str], None]) -> None:
        self.was_pruned = False
        self._trial, self._report_status = trial, report_status

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the fit's own bookkeeping, which still records this epoch."""
        value, done = float(trainer.callback_metrics["valid/rollout"]), trainer.current_epoch + 1
        self._trial.report(value, trainer.current_epoch)
        self._report_status(f"epoch {done} of {trainer.max_epochs}: {value:.4g}")
        if done != trainer.max_epochs and self._trial.should_prune():
            self.was_pruned = trainer.should_stop = True


@contextmanager
def _hold_search_lock(lock_path: Path) -> Iterator[None]:
    with lock_path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                f"The same search is running already (it holds {lock_path}). Wait for it, or choose another --seed.",
                where=str(lock_path),
            ) from error
        yield


def _build_distribution(choices: Choices) -> BaseDistribution:
    if not isinstance(choices, Range):
        return CategoricalDistribution(choices)
    if isinstance(choices.low, int) and isinstance(choices.high, int):
        return IntDistribution(choices.low, choices.high, log=True)
    return FloatDistribution(choices.low, choices.high, log=True)


def _compute_log_value(trial: FrozenTrial) -> float:
    assert trial.value is not None, "only trials that were done are asked"
    return math.log(max(trial.value, 1e-12))


def _build_result(trial: FrozenTrial) -> TrialResult:
    count = trial.user_attrs.get(_TRIAL)
    done = trial.state == TrialState.COMPLETE
    return TrialResult(
        count,
        REFUSED if count is None else DONE if done else PRUNED,
        trial.value,
        len(trial.intermediate_values),
        trial.user_attrs.get(_SECONDS),
        trial.user_attrs.get(_RUN_ID),
        dict(trial.params),
        trial.user_attrs.get(_FAULT),
    )

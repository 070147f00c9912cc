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
from pipelines.tuning.search_space import Choices, Range, Searched

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
_BY_CHANCE = 10  # trials before the sampler has an opinion
_UNPRUNED = 5  # trials that are compared with before one is pruned
_LEAST_FOR_IMPORTANCE = 6  # of fewer trials nothing can be told
_RUN, _TRIAL, _RUN_ID, _SECONDS, _FAULT = "run", "trial", "run_id", "seconds", "fault"


class Tried(NamedTuple):
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

    def __init__(self, study: optuna.Study, space: Searched, *, seed: int) -> None:
        self._study, self._seed = study, seed
        self._distributions = {path: _distribution(choices) for path, choices in space.items()}

    @property
    def run(self) -> Mapping[str, str] | None:
        """The tracked run of a search that has not ended yet, and its store, as they were set."""
        found: Mapping[str, str] | None = self._study.user_attrs.get(_RUN)
        return found

    @run.setter
    def run(self, run: Mapping[str, str] | None) -> None:
        self._study.set_user_attr(_RUN, run)

    def give_up_leftovers(self) -> list[str | None]:
        """Marks trials as failed that a kill left running; their runs, if they had come so far."""
        left = self._study.get_trials(states=[TrialState.RUNNING])
        for one in left:
            self._study.tell(one.number, state=TrialState.FAIL)
        return [one.user_attrs.get(_RUN_ID) for one in left]

    def ask(self, first: Mapping[str, Any]) -> Trial:
        """What to try next: at first what is given."""
        ended = len(self._ended())
        chance = int(np.random.SeedSequence([self._seed, ended]).generate_state(1)[0])
        self._study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=_BY_CHANCE, multivariate=True, constant_liar=False, seed=chance
        )
        if not ended and not self._study.get_trials(states=[TrialState.WAITING]):  # a kill may have left one
            self._study.enqueue_trial(dict(first))
        return self._study.ask(self._distributions)

    def begin(self, trial: Trial, *, count: int, run_id: str) -> None:
        """Notes which trial it is, and its run."""
        trial.set_user_attr(_TRIAL, count)
        trial.set_user_attr(_RUN_ID, run_id)

    def end(self, trial: Trial, value: float | None, *, seconds: float | None = None, fault: str | None = None) -> None:
        """Notes how a trial ended: with a value, or else pruned."""
        if seconds is not None:
            trial.set_user_attr(_SECONDS, seconds)
        if fault is not None:
            trial.set_user_attr(_FAULT, fault)
        self._study.tell(trial, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)

    def tried(self) -> list[Tried]:
        """All trials that have ended, in their order."""
        return [_tried(one) for one in self._ended()]

    def importance(self) -> dict[str, float]:
        """The share of each field, and of those it goes with, in how differently trials did; most first.

        Functional ANOVA (Hutter, Hoos and Leyton-Brown 2014) of the logarithm, so that one that went astray does not decide
        alone. Empty where too few trials were done, or all did alike.
        """
        values = [one.value for one in self.tried() if one.state == DONE]
        if len(values) < _LEAST_FOR_IMPORTANCE or len(set(values)) == 1:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(self._study, evaluator=evaluator, target=_logarithm)
        return {path: float(share) for path, share in found.items()}

    def _ended(self) -> Sequence[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])


@contextmanager
def opened(folder: Path, store: str, name: str, space: Searched, *, seed: int, warm_up: int) -> Iterator[Study]:
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
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / f"{name}.lock"):
        with (folder / "tune.lock").open("w") as lock:  # two that make the tables at once would both fail
            fcntl.flock(lock, fcntl.LOCK_EX)
            storage = optuna.storages.RDBStorage(store)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED, n_warmup_steps=warm_up)
        study = optuna.create_study(storage=storage, study_name=name, pruner=pruner, load_if_exists=True)
        try:
            yield Study(study, space, seed=seed)
        finally:
            storage.remove_session()
            storage.engine.dispose()


class Reporter(pl.Callback):
    """Tells a trial the rollout of each epoch, and ends the fit where the others did better."""

    def __init__(self, trial: Trial, status: Callable[[str], None]) -> None:
        self.pruned = False
        self._trial, self._status = trial, status

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the fit's own bookkeeping, which still records this epoch."""
        value, done = float(trainer.callback_metrics["valid/rollout"]), trainer.current_epoch + 1
        self._trial.report(value, trainer.current_epoch)
        self._status(f"epoch {done} of {trainer.max_epochs}: {value:.4g}")
        if done != trainer.max_epochs and self._trial.should_prune():
            self.pruned = trainer.should_stop = True


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                f"The same search is running already (it holds {path}). Wait for it, or choose another --seed.",
                where=str(path),
            ) from error
        yield


def _distribution(choices: Choices) -> BaseDistribution:
    if not isinstance(choices, Range):
        return CategoricalDistribution(choices)
    if isinstance(choices.low, int) and isinstance(choices.high, int):
        return IntDistribution(choices.low, choices.high, log=True)
    return FloatDistribution(choices.low, choices.high, log=True)


def _logarithm(one: FrozenTrial) -> float:
    assert one.value is not None, "only trials that were done are asked"
    return math.log(max(one.value, 1e-12))


def _tried(one: FrozenTrial) -> Tried:
    count = one.user_attrs.get(_TRIAL)
    done = one.state == TrialState.COMPLETE
    return Tried(
        count,
        REFUSED if count is None else DONE if done else PRUNED,
        one.value,
        len(one.intermediate_values),
        one.user_attrs.get(_SECONDS),
        one.user_attrs.get(_RUN_ID),
        dict(one.params),
        one.user_attrs.get(_FAULT),
    )

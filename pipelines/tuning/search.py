"""A search for the specification that rolls out best on the validation windows of some data."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from forecaster.data.batching import repeat_season
from forecaster.data.calendar import usual_season
from forecaster.data.split import hold_out, origins
from forecaster.errors import BadSpec, InputError, NonFiniteLoss, TrainingError
from forecaster.evaluation.validation import comparable_error
from forecaster.metrics import nanmean
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.storage import atomic
from forecaster.training.datamodule import cut
from forecaster.training.fit import Fitted, fit
from pipelines.settings import Root
from pipelines.sources import Data, read
from pipelines.tracking.run import DataSet, Run, end_killed, open_run
from pipelines.tuning.plots import optimization_history, parameter_importance
from pipelines.tuning.search_space import Ground, Searched, own, searched, spec_at, told
from pipelines.tuning.study import DONE, PRUNED, REFUSED, Reporter, Study, Trial, Tried, opened

_TRIGGER = "tune"
_WARM_UP = 4  # one part in so many of a usual trial's epochs, in which no trial is pruned
_log = logging.getLogger(__name__)


class Tuned(NamedTuple):
    """What a search found.

    Attributes:
        spec: Of the best trial.
        value: Its free-running error on the validation windows over seasonal naive's in training (MASE).
        naive: The same of seasonal naive itself.
        tried: Every trial that ended, in their order.
        out: Where the specification was written.
        run_id: Of the search.
    """

    spec: Spec
    value: float
    naive: float
    tried: list[Tried]
    out: Path
    run_id: str

    @property
    def best(self) -> list[Tried]:
        """Trials that were done, the best first."""
        return _ranked(self.tried)


class _Search(NamedTuple):
    """All that a trial needs to know."""

    known: Panel
    spec: Spec  # around which is searched
    space: Searched
    dataset: DataSet
    root: Root
    study: Study
    parent: Run
    trials: int
    status: Callable[[str], None]


def tune(
    data: Data,
    spec: Spec,
    root: Root,
    *,
    out: Path,
    trials: int = 40,
    timeout: float | None = None,
    seed: int = 0,
    test_windows: int = 1,
    status: Callable[[str], None] = lambda _: None,
) -> Tuned:
    """Fits one specification after another, the given one first, and keeps the one with the best rollout on validation windows.

    What the test windows hold is put away before anything is looked at. The same series are judged in every trial: those
    that are long enough for the given specification. A search that was killed goes on with what is left of its trials.

    Args:
        data: Where the panel comes from.
        spec: Around which is searched. What is no line of `space.SPACE` stays as it is.
        root: Where state lives.
        out: Where to write the best specification.
        trials: How many to train, those of an earlier call with the same arguments among them.
        timeout: Seconds after which no further trial is begun; None: no end but that of trials.
        seed: Of the search. Every network has the specification's.
        test_windows: Windows of a horizon at the end of every series that the search never sees.
        status: Is told what is going on, a line each time; the last replaces the one before.
    """
    check_search(spec, trials=trials, timeout=timeout, seed=seed, test_windows=test_windows)
    began = time.monotonic()
    panel = read(data.for_spec(spec))
    for repair in panel.repairs:
        _log.warning("%s: %s", data.source, repair)
    known = _known(panel, spec, test_windows=test_windows)
    cut(known, spec)  # what cannot be trained on is refused before there is a run of it
    space = searched(Ground.of(known, spec))
    name = _name(known, spec, space, seed=seed)
    naive = _seasonal_naive(known, spec)
    dataset = DataSet(data.name, known.digest(), data.source, known.cutoff)
    with opened(root.checkpoints, root.studies, name, space, seed=seed, warm_up=_warm_up(spec)) as study:
        _go_on(study, root, name=name, trials=trials)
        with open_run(
            spec, dataset, root=root.path, uri=root.uri, trigger=_TRIGGER, run_id=_unfinished(study, root)
        ) as parent:
            study.run = {"id": parent.id, "store": root.store}
            search = _Search(known, spec, space, dataset, root, study, parent, trials, status)
            while _trained(study) < trials:
                _try(search)
                if timeout is not None and time.monotonic() - began >= timeout:
                    _log.info("Time is up after %d of %d trials.", _trained(study), trials)
                    break
            tried = study.tried()
            best = _best(tried)
            found = spec_at(spec, best.params)
            atomic.write_text(out, _yaml(found, best, data, naive=naive, of=_trained(study)))
            _record(search, found, best, naive=naive, out=out)
        study.run = None  # more trials will be a run of their own
    return Tuned(found, _value(best), naive, tried, out, parent.id)


def check_search(spec: Spec, *, trials: int, timeout: float | None, seed: int, test_windows: int) -> None:
    """Refuses what no search can be made with; raises InputError."""
    for option, value, least in (
        ("--trials", trials, 1),
        ("--test-windows", test_windows, 0),
        ("--valid-windows", spec.training.valid_windows, 1),
        ("--seed", seed, 0),
    ):
        if value < least:
            raise InputError(
                f"Expected {option} of at least {least}; found {value}. Ask for another number.",
                where=option.strip("-"),
            )
    if timeout is not None and not timeout > 0:
        raise InputError(f"Expected --timeout of more than 0 seconds; found {timeout:g}. Leave it out for no limit.")


def _known(panel: Panel, spec: Spec, *, test_windows: int) -> Panel:
    """What may be looked at, of the series that every trial can be judged by; raises HistoryTooShort."""
    keep = spec.held_out + spec.least + 1
    return hold_out(panel, test_windows * spec.horizon, keep=keep).known


def _name(known: Panel, spec: Spec, space: Searched, *, seed: int) -> str:
    digest = hashlib.sha256(f"{known.digest()}{spec.model_dump_json()}{space!r}{seed}".encode()).hexdigest()
    return f"{spec.name}-{digest[:16]}"


def _seasonal_naive(known: Panel, spec: Spec) -> float:
    """Seasonal naive's error on the validation windows (of all series, where an epoch is judged by some) as trials are scored."""
    horizon, season = spec.horizon, spec.season or usual_season(known.freq)
    lefts = origins(windows=spec.training.valid_windows, horizon=horizon, stride=spec.training.valid_stride)
    errors = []
    for one in known.series:
        scale = comparable_error(one.y[: len(one) - spec.held_out], season=season)
        for left in lefts:
            past, came = one.y[: len(one) - left], one.y[len(one) - left :][:horizon]
            errors.append(np.abs(came - repeat_season(past, season, horizon)) / scale)
    return float(nanmean(np.concatenate(errors)))


def _warm_up(spec: Spec) -> int:
    return max(1, spec.training.steps // spec.training.epoch_steps // _WARM_UP)


def _go_on(study: Study, root: Root, *, name: str, trials: int) -> None:
    """Tells how far an earlier process came, and ends what it left."""
    killed = study.give_up_leftovers()
    end_killed([run_id for run_id in killed if run_id is not None], root=root.path, uri=root.uri)
    if killed or study.tried():
        repeated = f", {len(killed)} broke off and is tried again" if killed else ""
        _log.info("Search %s goes on: %d of %d trials are there%s.", name, _trained(study), trials, repeated)


def _unfinished(study: Study, root: Root) -> str | None:
    run = study.run
    return run["id"] if run is not None and run["store"] == root.store else None


def _trained(study: Study) -> int:
    return sum(one.state != REFUSED for one in study.tried())


def _try(search: _Search) -> None:
    """Trains one specification; one that does not hold together is refused at once, and does not count."""
    trial, count = search.study.ask(own(search.spec, search.space)), _trained(search.study) + 1
    try:
        spec = spec_at(search.spec, trial.params)
    except BadSpec as error:
        search.study.end(trial, None, fault=error.message)
        return
    search.status(f"trial {count} of {search.trials}: {told(trial.params)}")
    started = time.monotonic()
    reporter = Reporter(trial, lambda line: search.status(f"trial {count} of {search.trials}, {line}"))
    try:
        fitted, fault = _fit(search, spec, trial, reporter, count=count), None
    except NonFiniteLoss as error:
        fitted, fault = None, error.message
    finally:
        search.status("")
    value = None if fitted is None or reporter.pruned else fitted.scores["valid/rollout"]
    search.study.end(trial, value, seconds=time.monotonic() - started, fault=fault)
    _tell(search, search.study.tried()[-1])


def _fit(search: _Search, spec: Spec, trial: Trial, reporter: Reporter, *, count: int) -> Fitted:
    """A fit with a run of its own, below that of the search; raises NonFiniteLoss."""
    root, started = search.root, time.monotonic()
    with open_run(
        spec,
        search.dataset,
        root=root.path,
        uri=root.uri,
        trigger=_TRIGGER,
        parent=search.parent.id,
        title=f"trial {count}",
        tags={"trial": str(count)},
    ) as run:
        search.study.begin(trial, count=count, run_id=run.id)
        fitted = fit(search.known, spec, loggers=[run.logger], callbacks=[reporter])
        seconds = time.monotonic() - started
        run.headline({"train/seconds": seconds, "train/windows_per_s": fitted.steps * spec.training.batch / seconds})
        run.tag("state", PRUNED if reporter.pruned else DONE)
        run.logger.log_metrics({"tune/value": fitted.scores["valid/rollout"]}, fitted.epochs)
    return fitted


def _tell(search: _Search, last: Tried) -> None:
    how = (
        last.state
        if last.state != PRUNED
        else f"pruned after {last.epochs} epochs"
        if last.fault is None
        else "diverged"
    )
    ranked = _ranked(search.study.tried())
    best = f"; best {ranked[0].value:.4g} of trial {ranked[0].trial}" if ranked else ""
    value = "" if last.value is None else f" {last.value:.4g},"
    _log.info("trial %s of %d:%s %s in %.0f s%s", last.trial, search.trials, value, how, last.seconds or 0.0, best)
    if ranked:
        search.parent.logger.log_metrics({"tune/value": _value(ranked[0])}, last.trial)


def _ranked(tried: list[Tried]) -> list[Tried]:
    """Those that were done, the best first; of equals the earlier."""
    return sorted((one for one in tried if one.state == DONE), key=_value)


def _value(one: Tried) -> float:
    assert one.value is not None, "what was done has a value"
    return one.value


def _best(tried: list[Tried]) -> Tried:
    ranked = _ranked(tried)
    if not ranked:
        faults = [one.fault for one in tried if one.fault is not None]
        raise TrainingError(
            f"Expected a trial that comes to its end; none of {len(tried)} did. The last says: {faults[-1]}",
            where="trials",
        )
    return ranked[0]


def _yaml(spec: Spec, best: Tried, data: Data, *, naive: float, of: int) -> str:
    head = (
        f"# Found by `forecaster tune` on {data.name}, best of {of} trials: rollout on the last {spec.training.valid_windows} "
        f"validation windows\n# {best.value:.4g} (MASE), seasonal naive {naive:.4g}.\n"
    )
    return head + yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)


def _record(search: _Search, found: Spec, best: Tried, *, naive: float, out: Path) -> None:
    """What the search's own run says of it."""
    run, tried, name = search.parent, search.study.tried(), search.spec.name
    run.logger.log_hyperparams({"best": found.model_dump(), "best.trial": best.trial})
    run.logger.log_metrics({"tune/seasonal_naive": naive, "tune/trials": len([one for one in tried if one.trial])})
    drawn = [
        (one.trial, one.value, one.state == DONE) for one in tried if one.trial is not None and one.value is not None
    ]
    title = f"{name}: rollout on validation windows, by trial"
    run.figure("plots/optimization_history.png", optimization_history(drawn, naive=naive, title=title))
    importance = search.study.importance()
    if importance:
        title = f"{name}: what decides how trials do"
        run.figure("plots/parameter_importance.png", parameter_importance(importance, title=title))
    run.file(out)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trials.csv"
        _table(tried).to_csv(path, index=False)
        run.file(path, "tune")


def _table(tried: list[Tried]) -> pd.DataFrame:
    """A row a trial, refused ones among them."""
    return pd.DataFrame([{**one._asdict(), **one.params} for one in tried]).drop(columns="params")

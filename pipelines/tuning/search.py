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
from forecaster.data.calendar import default_season
from forecaster.data.split import hold_out, rolling_origins
from forecaster.errors import BadSpec, InputError, NonFiniteLoss, TrainingError
from forecaster.evaluation.validation import compute_error_scale
from forecaster.metrics import nanmean
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.storage import atomic
from forecaster.training.datamodule import split_panel
from forecaster.training.fit import FitResult, fit
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel
from pipelines.tracking.run import RunDataset, TrackedRun, mark_runs_killed, open_run
from pipelines.tuning.plots import plot_optimization_history, plot_param_importances
from pipelines.tuning.search_space import (
    SearchScope,
    SearchSpace,
    apply_params,
    build_search_space,
    format_params,
    get_current_values,
)
from pipelines.tuning.study import DONE, PRUNED, REFUSED, PruningCallback, Study, Trial, TrialResult, open_study

_TRIGGER = "tune"
_WARM_UP_DIVISOR = 4  # one part in so many of a usual trial's epochs, in which no trial is pruned
_log = logging.getLogger(__name__)


class TuningResult(NamedTuple):
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
    best_value: float
    seasonal_naive_value: float
    trials: list[TrialResult]
    output_path: Path
    run_id: str

    @property
    def ranked_trials(self) -> list[TrialResult]:
        """Trials that were done, the best first."""
        return _rank(self.trials)


class _SearchContext(NamedTuple):
    """All that a trial needs to know."""

    panel: Panel
    base_spec: Spec  # around which is searched
    space: SearchSpace
    dataset: RunDataset
    root: Root
    study: Study
    parent_run: TrackedRun
    n_trials: int
    report_status: Callable[[str], None]


def tune(
    data: DataSource,
    spec: Spec,
    root: Root,
    *,
    output_path: Path,
    n_trials: int = 40,
    timeout: float | None = None,
    seed: int = 0,
    test_windows: int = 1,
    report_status: Callable[[str], None] = lambda _: None,
) -> TuningResult:
    """Fits one specification after another, the given one first, and keeps the one with the best rollout on validation windows.

    What the test windows hold is put away before anything is looked at. The same series are judged in every trial: those
    that are long enough for the given specification. A search that was killed goes on with what is left of its trials.

    Args:
        data: Where the panel comes from.
        spec: Around which is searched. What is no line of `space.SEARCH_DIMENSIONS` stays as it is.
        root: Where state lives.
        out: Where to write the best specification.
        trials: How many to train, those of an earlier call with the same arguments among them.
        timeout: Seconds after which no further trial is begun; None: no end but that of trials.
        seed: Of the search. Every network has the specification's.
        test_windows: Windows of a horizon at the end of every series that the search never sees.
        status: Is told what is going on, a line each time; the last replaces the one before.
    """
    validate_search(spec, n_trials=n_trials, timeout=timeout, seed=seed, test_windows=test_windows)
    began = time.monotonic()
    panel = read_panel(data.for_spec(spec))
    for repair in panel.repairs:
        _log.warning("%s: %s", data.source, repair)
    known = _select_search_panel(panel, spec, test_windows=test_windows)
    split_panel(known, spec)  # what cannot be trained on is refused before there is a run of it
    space = build_search_space(SearchScope.from_panel(known, spec))
    name = _build_study_name(known, spec, space, seed=seed)
    naive = _score_seasonal_naive(known, spec)
    dataset = RunDataset(data.name, known.digest(), data.source, known.cutoff)
    with open_study(
        root.checkpoints, root.studies_url, name, space, seed=seed, warm_up_epochs=_count_warm_up_epochs(spec)
    ) as study:
        _resume_study(study, root, name=name, n_trials=n_trials)
        with open_run(
            spec,
            dataset,
            root=root.path,
            tracking_uri=root.tracking_uri,
            trigger=_TRIGGER,
            run_id=_find_unfinished_run(study, root),
        ) as parent:
            study.run = {"id": parent.id, "store": root.store_uri}
            search = _SearchContext(known, spec, space, dataset, root, study, parent, n_trials, report_status)
            while _count_trained(study) < n_trials:
                _run_trial(search)
                if timeout is not None and time.monotonic() - began >= timeout:
                    _log.info("Time is up after %d of %d trials.", _count_trained(study), n_trials)
                    break
            tried = study.get_results()
            best = _select_best(tried)
            found = apply_params(spec, best.params)
            atomic.write_text(
                output_path, _format_yaml(found, best, data, seasonal_naive_value=naive, n_trials=_count_trained(study))
            )
            _record_search(search, found, best, seasonal_naive_value=naive, output_path=output_path)
        study.run = None  # more trials will be a run of their own
    return TuningResult(found, _get_value(best), naive, tried, output_path, parent.id)


def validate_search(spec: Spec, *, n_trials: int, timeout: float | None, seed: int, test_windows: int) -> None:
    """Refuses what no search can be made with; raises InputError."""
    for option, value, least in (
        ("--trials", n_trials, 1),
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


def _select_search_panel(panel: Panel, spec: Spec, *, test_windows: int) -> Panel:
    """What may be looked at, of the series that every trial can be judged by; raises HistoryTooShort."""
    keep = spec.validation_steps + spec.min_steps + 1
    return hold_out(panel, test_windows * spec.horizon, min_history=keep).history


def _build_study_name(panel: Panel, spec: Spec, space: SearchSpace, *, seed: int) -> str:
    digest = hashlib.sha256(f"{panel.digest()}{spec.model_dump_json()}{space!r}{seed}".encode()).hexdigest()
    return f"{spec.name}-{digest[:16]}"


def _score_seasonal_naive(panel: Panel, spec: Spec) -> float:
    """Seasonal naive's error on the validation windows (of all series, where an epoch is judged by some) as trials are scored."""
    horizon, season = spec.horizon, spec.season or default_season(panel.freq)
    lefts = rolling_origins(windows=spec.training.valid_windows, horizon=horizon, stride=spec.training.valid_stride)
    errors = []
    for one in panel.series:
        scale = compute_error_scale(one.y[: len(one) - spec.validation_steps], season=season)
        for left in lefts:
            past, came = one.y[: len(one) - left], one.y[len(one) - left :][:horizon]
            errors.append(np.abs(came - repeat_season(past, season, horizon)) / scale)
    return float(nanmean(np.concatenate(errors)))


def _count_warm_up_epochs(spec: Spec) -> int:
    return max(1, spec.training.steps // spec.training.epoch_steps // _WARM_UP_DIVISOR)


def _resume_study(study: Study, root: Root, *, name: str, n_trials: int) -> None:
    """Tells how far an earlier process came, and ends what it left."""
    killed = study.fail_stale_trials()
    mark_runs_killed(
        [run_id for run_id in killed if run_id is not None], root=root.path, tracking_uri=root.tracking_uri
    )
    if killed or study.get_results():
        repeated = f", {len(killed)} broke off and is tried again" if killed else ""
        _log.info("Search %s goes on: %d of %d trials are there%s.", name, _count_trained(study), n_trials, repeated)


def _find_unfinished_run(study: Study, root: Root) -> str | None:
    run = study.run
    return run["id"] if run is not None and run["store"] == root.store_uri else None


def _count_trained(study: Study) -> int:
    return sum(one.state != REFUSED for one in study.get_results())


def _run_trial(search: _SearchContext) -> None:
    """Trains one specification; one that does not hold together is refused at once, and does not count."""
    trial, count = (
        search.study.ask(get_current_values(search.base_spec, search.space)),
        _count_trained(search.study) + 1,
    )
    try:
        spec = apply_params(search.base_spec, trial.params)
    except BadSpec as error:
        search.study.finish_trial(trial, None, fault=error.message)
        return
    search.report_status(f"trial {count} of {search.n_trials}: {format_params(trial.params)}")
    started = time.monotonic()
    reporter = PruningCallback(trial, lambda line: search.report_status(f"trial {count} of {search.n_trials}, {line}"))
    try:
        fitted, fault = _fit_trial(search, spec, trial, reporter, trial_number=count), None
    except NonFiniteLoss as error:
        fitted, fault = None, error.message
    finally:
        search.report_status("")
    value = None if fitted is None or reporter.was_pruned else fitted.scores["valid/rollout"]
    search.study.finish_trial(trial, value, seconds=time.monotonic() - started, fault=fault)
    _log_trial(search, search.study.get_results()[-1])


def _fit_trial(
    search: _SearchContext, spec: Spec, trial: Trial, pruning_callback: PruningCallback, *, trial_number: int
) -> FitResult:
    """A fit with a run of its own, below that of the search; raises NonFiniteLoss."""
    root, started = search.root, time.monotonic()
    with open_run(
        spec,
        search.dataset,
        root=root.path,
        tracking_uri=root.tracking_uri,
        trigger=_TRIGGER,
        parent_run_id=search.parent_run.id,
        run_name=f"trial {trial_number}",
        tags={"trial": str(trial_number)},
    ) as run:
        search.study.start_trial(trial, trial_number=trial_number, run_id=run.id)
        fitted = fit(search.panel, spec, loggers=[run.logger], callbacks=[pruning_callback])
        seconds = time.monotonic() - started
        run.log_headline_metrics(
            {"train/seconds": seconds, "train/windows_per_s": fitted.steps * spec.training.batch / seconds}
        )
        run.set_tag("state", PRUNED if pruning_callback.was_pruned else DONE)
        run.logger.log_metrics({"tune/value": fitted.scores["valid/rollout"]}, fitted.epochs)
    return fitted


def _log_trial(search: _SearchContext, result: TrialResult) -> None:
    how = (
        result.state
        if result.state != PRUNED
        else f"pruned after {result.epochs} epochs"
        if result.fault is None
        else "diverged"
    )
    ranked = _rank(search.study.get_results())
    best = f"; best {ranked[0].value:.4g} of trial {ranked[0].trial}" if ranked else ""
    value = "" if result.value is None else f" {result.value:.4g},"
    _log.info(
        "trial %s of %d:%s %s in %.0f s%s", result.trial, search.n_trials, value, how, result.seconds or 0.0, best
    )
    if ranked:
        search.parent_run.logger.log_metrics({"tune/value": _get_value(ranked[0])}, result.trial)


def _rank(results: list[TrialResult]) -> list[TrialResult]:
    """Those that were done, the best first; of equals the earlier."""
    return sorted((one for one in results if one.state == DONE), key=_get_value)


def _get_value(result: TrialResult) -> float:
    assert result.value is not None, "what was done has a value"
    return result.value


def _select_best(results: list[TrialResult]) -> TrialResult:
    ranked = _rank(results)
    if not ranked:
        faults = [one.fault for one in results if one.fault is not None]
        raise TrainingError(
            f"Expected a trial that comes to its end; none of {len(results)} did. The last says: {faults[-1]}",
            where="trials",
        )
    return ranked[0]


def _format_yaml(
    spec: Spec, best_result: TrialResult, data: DataSource, *, seasonal_naive_value: float, n_trials: int
) -> str:
    head = (
        f"# Found by `forecaster tune` on {data.name}, best of {n_trials} trials: rollout on the last {spec.training.valid_windows} "
        f"validation windows\n# {best_result.value:.4g} (MASE), seasonal naive {seasonal_naive_value:.4g}.\n"
    )
    return head + yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)


def _record_search(
    search: _SearchContext, best_spec: Spec, best_result: TrialResult, *, seasonal_naive_value: float, output_path: Path
) -> None:
    """What the search's own run says of it."""
    run, tried, name = search.parent_run, search.study.get_results(), search.base_spec.name
    run.logger.log_hyperparams({"best": best_spec.model_dump(), "best.trial": best_result.trial})
    run.logger.log_metrics(
        {"tune/seasonal_naive": seasonal_naive_value, "tune/trials": len([one for one in tried if one.trial])}
    )
    drawn = [
        (one.trial, one.value, one.state == DONE) for one in tried if one.trial is not None and one.value is not None
    ]
    title = f"{name}: rollout on validation windows, by trial"
    run.log_figure(
        "plots/optimization_history.png",
        plot_optimization_history(drawn, seasonal_naive_value=seasonal_naive_value, title=title),
    )
    importance = search.study.compute_importances()
    if importance:
        title = f"{name}: what decides how trials do"
        run.log_figure("plots/parameter_importance.png", plot_param_importances(importance, title=title))
    run.log_artifact(output_path)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trials.csv"
        _build_trials_table(tried).to_csv(path, index=False)
        run.log_artifact(path, "tune")


def _build_trials_table(results: list[TrialResult]) -> pd.DataFrame:
    """A row a trial, refused ones among them."""
    return pd.DataFrame([{**one._asdict(), **one.params} for one in results]).drop(columns="params")

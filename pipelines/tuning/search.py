"""Hyperparameter search: finds the specification with the smallest free-running error on the validation windows."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from forecaster.bundle.pretrained.base import zero_shot_predictor
from forecaster.data.calendar import default_season
from forecaster.data.split import hold_out
from forecaster.errors import BadSpec, InputError
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.baselines import build_baselines
from forecaster.evaluation.validation import compute_error_scale
from forecaster.metrics import nanmean
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.progress.steps import RunSteps
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.storage import atomic
from forecaster.training.datamodule import split_panel
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel
from pipelines.tracking.run import RunDataset, mark_runs_killed, open_run
from pipelines.tuning.parallel import run_batch
from pipelines.tuning.results import TuningResult, format_header, get_value, record_search, select_best
from pipelines.tuning.search_space import SearchScope, SearchSpace, apply_params, build_search_space
from pipelines.tuning.study import Study, open_study
from pipelines.tuning.trials import TRIGGER, SearchContext, run_trial

_WARM_UP_DIVISOR = 4  # no trial is pruned in the first epochs: a trial's usual number over this
_log = logging.getLogger(__name__)


def tune(
    data: DataSource,
    spec: Spec,
    root: Root,
    *,
    panel: Panel | None = None,
    output_path: Path,
    n_trials: int = 40,
    timeout: float | None = None,
    seed: int = 0,
    test_windows: int = 1,
    parallel: int = 1,
    accelerator: str = "auto",
    devices: str = "1",
    run_steps: RunSteps | None = None,
    progress: Progress = NO_PROGRESS,
) -> TuningResult:
    """Fits one specification per trial, the given one first, and keeps that with the best rollout on the validation windows.

    The test windows are removed before anything else is done with the data. All trials are scored on the same series: those
    that are long enough for the given specification. A killed search is resumed with its remaining trials.

    Args:
        data: Source of the panel.
        spec: Center of the search. Fields that are not in `search_space.SEARCH_DIMENSIONS` keep their values.
        root: Folder of all state.
        panel: The panel of the data, if it was read already.
        output_path: File to write the best specification to.
        n_trials: Number of trials to train, including those of earlier calls with the same arguments; whole batches are trained.
        timeout: Seconds after which no further trial or batch is started; None for no limit.
        seed: Seed of the search. Every network is trained with the seed of the specification.
        test_windows: Number of windows of one horizon at the end of every series that the search does not use.
        parallel: Number of trials that are proposed together, before any of them has a result. Like the seed, it is a part of
            the search: where and how fast they are fitted is not.
        accelerator, devices: As for `forecaster.training.fit.fit`.
        run_steps: What fits the trials of a batch elsewhere; by default one after another in this process.
        progress: Receives a phase for each trial or batch.
    """
    validate_search(spec, n_trials=n_trials, timeout=timeout, seed=seed, test_windows=test_windows, parallel=parallel)
    n_trials = -(-n_trials // parallel) * parallel
    started = time.monotonic()
    panel = read_panel(data.for_spec(spec)) if panel is None else panel
    for repair in panel.repairs:
        _log.warning("%s: %s", data.source, repair)
    search_panel = _select_search_panel(panel, spec, test_windows=test_windows)
    split_panel(search_panel, spec)  # rejects data that cannot be trained on before a run is opened
    space = build_search_space(SearchScope.from_panel(search_panel, spec))
    name = _build_study_name(search_panel, spec, space, seed=seed, parallel=parallel)
    season = spec.season or default_season(panel.freq)
    baseline_values = _score_baselines(search_panel, spec, season=season)
    dataset = RunDataset(data.name, search_panel.digest, data.source, search_panel.cutoff)
    with open_study(
        root.checkpoints,
        root.studies_url,
        name,
        space,
        seed=seed,
        parallel=parallel,
        warm_up_epochs=_count_warm_up_epochs(spec),
    ) as study:
        _resume_study(study, root, name=name, n_trials=n_trials)
        with open_run(
            spec,
            dataset,
            root=root.path,
            tracking_uri=root.tracking_uri,
            trigger=TRIGGER,
            action="tune",
            run_id=_find_unfinished_run(study, root),
        ) as parent_run:
            study.run = {"id": parent_run.id, "store": root.store_uri}
            search = SearchContext(
                search_panel,
                spec,
                space,
                dataset,
                root,
                study,
                parent_run,
                n_trials,
                accelerator,
                devices,
                progress,
            )
            is_sequential = parallel == 1 and run_steps is None
            run_next = run_trial if is_sequential else partial(run_batch, run_steps=run_steps)
            while study.count_trained() < n_trials:
                with _explain_interrupt(study, n_trials=n_trials):
                    run_next(search)
                if timeout is not None and time.monotonic() - started >= timeout:
                    _log.info("The timeout was reached after %d of %d trials.", study.count_trained(), n_trials)
                    break
            results = study.get_results()
            best = select_best(results)
            best_spec = apply_params(spec, best.params)
            header = format_header(
                best_spec, best, data, baseline_values=baseline_values, n_trials=study.count_trained()
            )
            atomic.write_text(output_path, header + yaml.safe_dump(best_spec.model_dump(mode="json"), sort_keys=False))
            record_search(parent_run, study, best_spec, best, baseline_values=baseline_values, output_path=output_path)
        study.run = None  # further trials get a run of their own
    return TuningResult(best_spec, get_value(best), baseline_values, season, results, output_path, parent_run.id)


def validate_search(
    spec: Spec, *, n_trials: int, timeout: float | None, seed: int, test_windows: int, parallel: int = 1
) -> None:
    """Validates the options of a search, and that a search can start from its specification; raises InputError."""
    if spec.training.initial == "base":
        raise BadSpec(
            "Expected training.initial 'random', because a search changes the network, to which the pretrained weights would not "
            "fit; found 'base'. Search from another specification, or fine-tune this one with `forecaster train --config`.",
            where="training.initial",
        )
    for option, value, minimum in (
        ("--trials", n_trials, 1),
        ("--parallel", parallel, 1),
        ("--test-windows", test_windows, 0),
        ("--valid-windows", spec.training.valid_windows, 1),
        ("--seed", seed, 0),
    ):
        if value < minimum:
            raise InputError(
                f"Expected {option} of at least {minimum}; found {value}. Use another number.",
                where=option.strip("-"),
            )
    if timeout is not None and not timeout > 0:
        raise InputError(f"Expected --timeout of more than 0 seconds; found {timeout:g}. Omit it for no limit.")


def select_history(panel: Panel, spec: Spec, *, test_windows: int) -> Panel:
    """Removes the test windows, and the series that are too short for the specification; raises HistoryTooShort."""
    return hold_out(panel, test_windows * spec.horizon, min_history=spec.min_steps + 1).history


def _select_search_panel(panel: Panel, spec: Spec, *, test_windows: int) -> Panel:
    """Removes the test windows, and the series that are too short for all trials; raises HistoryTooShort."""
    min_history = spec.validation_steps + spec.min_steps + 1
    return hold_out(panel, test_windows * spec.horizon, min_history=min_history).history


def _build_study_name(panel: Panel, spec: Spec, space: SearchSpace, *, seed: int, parallel: int) -> str:
    batches = f" parallel {parallel}" if parallel > 1 else ""
    identity = f"{panel.digest}{spec.to_identity_json()}{space!r}{seed}{batches}"
    return f"{spec.name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _score_baselines(panel: Panel, spec: Spec, *, season: int) -> dict[str, float]:
    """Scores the baselines on the validation windows like the trials (MASE).

    All series are used, also where an epoch of a trial is scored on a sample of them.
    """
    windows, stride = spec.training.valid_windows, spec.training.valid_stride
    pretrained = zero_shot_predictor(panel.freq, horizon=spec.horizon, season=season)
    forecasters = build_baselines(season=season, pretrained=pretrained)
    result = backtest(
        panel,
        forecasters,
        horizon=spec.horizon,
        windows=windows,
        stride=stride,
        season=season,
        min_history=spec.min_steps,
    )
    scales = np.array(
        [
            compute_error_scale(series.y[: len(series) - spec.validation_steps], season=season)
            for series in result.series
        ]
    )
    return {
        name: float(nanmean(np.abs(result.actual - forecasts) / scales[:, None, None]))
        for name, forecasts in result.forecasts.items()
    }


def _count_warm_up_epochs(spec: Spec) -> int:
    return max(1, spec.training.steps // spec.training.epoch_steps // _WARM_UP_DIVISOR)


def _resume_study(study: Study, root: Root, *, name: str, n_trials: int) -> None:
    """Ends the trials and runs that a killed process left open, and logs the progress of the search."""
    stale_run_ids = study.fail_stale_trials()
    mark_runs_killed(
        [run_id for run_id in stale_run_ids if run_id is not None], root=root.path, tracking_uri=root.tracking_uri
    )
    n_kept = study.count_kept()
    n_repeated = len(stale_run_ids) - (n_kept - study.count_trained())
    if stale_run_ids or study.get_results():
        repeated = "was interrupted and is repeated" if n_repeated == 1 else "were interrupted and are repeated"
        note = f", {n_repeated} {repeated}" if n_repeated else ""
        _log.info("Search %s is resumed: %d of %d trials are done%s.", name, n_kept, n_trials, note)


def _find_unfinished_run(study: Study, root: Root) -> str | None:
    run = study.run
    return run["id"] if run is not None and run["store"] == root.store_uri else None


@contextmanager
def _explain_interrupt(study: Study, *, n_trials: int) -> Iterator[None]:
    """Adds a note to an interrupt that says which trials are kept."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(
            f"{study.count_kept()} of {n_trials} trials are kept; the same command continues after them."
        )
        raise

"""One training: fit, backtest, write the bundle, and track all of it in one run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from forecaster.bundle import artifact
from forecaster.data.symbols import SYMBOL_SCORES_FACT
from forecaster.engines.statistical.blend import NETWORK, format_blend_weights
from forecaster.errors import InputError
from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.baselines import ForecastFunction
from forecaster.evaluation.calibration import add_quantiles
from forecaster.evaluation.interval_plots import plot_interval_bands, plot_reliability
from forecaster.evaluation.plots import plot_calibration, plot_error_by_step, plot_origins
from forecaster.evaluation.scores import INTERVALS, SCORED_LEVELS, score_table
from forecaster.evaluation.validation import build_validation_batches, compute_exposure_gap
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.registry.registry import CHALLENGER
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.storage import atomic
from forecaster.training.fit import FitResult, fit_digest
from forecaster.training.model_card import render_model_card
from forecaster.training.selection import CandidateScore
from forecaster.training.sequence import describe_left_out, prepare_training, train_model
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel
from pipelines.tracking import backtests
from pipelines.tracking.run import RunDataset, TrackedRun, UnrecordedRun, open_run
from pipelines.training.interruptions import explain_interrupt, lock_checkpoint_folder, read_run_id
from pipelines.training.retrain_key import RETRAIN_KEY_TAG

TRACKED_LEVELS = tuple(
    sorted(round((1 + side * share) / 2, 6) for share in INTERVALS for side in (-1, 1))
)  # levels of the quantiles recorded with a run

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOptions:
    """How a training is tested and recorded.

    Attributes:
        test_windows: Rolling origins that are held out from the fit, one horizon apart; 0 trains on all data without a test.
        trigger: What started the training, for the run's tags.
        candidates: The specifications among which this one was chosen, for the run.
        selection_reason: Why it was chosen, in a sentence, for the run and the facts of the bundle.
        record: Whether the training is recorded in a run; without MLflow it cannot be.
        accelerator, devices: As for `forecaster.training.fit.fit`.

    Raises InputError if the number of test windows is negative.
    """

    test_windows: int = 1
    trigger: str = "cli"
    candidates: Sequence[CandidateScore] = ()
    selection_reason: str = ""
    record: bool = True
    accelerator: str = "auto"
    devices: str = "1"

    def __post_init__(self) -> None:
        if self.test_windows < 0:
            raise InputError(
                f"Expected --test-windows of at least 0; found {self.test_windows}. Use 0 test windows to train on all data.",
                where="test_windows",
            )


_DEFAULT_OPTIONS = TrainOptions()


class TrainingResult(NamedTuple):
    """The bundle that a training wrote, and its scores."""

    bundle: Path
    digest: str
    run_id: str | None  # None if the training was not recorded
    model: FittedModel
    scores: Mapping[str, Mapping[str, float]]  # by forecaster: mase, rmsse, smape, mae; or those of symbols
    backtest: Backtest | None  # None if nothing was held out for a test
    advice: str | None = None  # what to try if a baseline was better in the test


def train(
    data: DataSource,
    spec: Spec,
    root: Root,
    options: TrainOptions = _DEFAULT_OPTIONS,
    *,
    panel: Panel | None = None,
    retrain_key: str | None = None,
    initial: FittedModel | None = None,
    reference_forecasters: Mapping[str, ForecastFunction | Predictor] | None = None,
    progress: Progress = NO_PROGRESS,
) -> TrainingResult:
    """Fits a model on all but the last test windows, backtests it on them, writes its bundle, and tracks all of it in a run.

    With `options.record` false there is no run: the bundle has a name of its own and no fact `run_id`.

    Args:
        data: Where the panel comes from.
        spec: The specification of the model.
        root: The root folder. A training that was killed resumes from its last epoch when it is started again.
        options: How the training is tested and recorded.
        panel: The panel of the data, if it was read already.
        retrain_key: The key of the retraining; a tag of the run, and one of the bundle's facts.
        initial: The model whose weights to start from; by default they are random.
        reference_forecasters: Additional forecasters to backtest at the same cutoffs.
        progress: Receives the phases of the training.
    """
    panel = read_panel(data.for_spec(spec)) if panel is None else panel
    for repair in panel.repairs:
        _log.warning("%s: %s", data.source, repair)
    # Data that cannot be trained on are rejected before a run is created.
    training_panel = prepare_training(panel, spec, test_windows=options.test_windows)
    left_out = describe_left_out(panel, spec, test_windows=options.test_windows)
    if left_out is not None:
        _log.warning("%s: %s", data.source, left_out)
    dataset = RunDataset(data.name, training_panel.digest, data.source, training_panel.cutoff)
    tags = {
        RETRAIN_KEY_TAG: retrain_key,
        "asked_cutoff": data.cutoff,
        "dropped_partial": None if panel.dropped_partial is None else str(len(panel.dropped_partial)),
        "refit": str(spec.training.refit).lower(),
        "selection": options.selection_reason or None,
    } | _describe_candidates(options.candidates)
    with lock_checkpoint_folder(get_checkpoint_folder(training_panel, spec, root, initial=initial)) as folder:
        with explain_interrupt(folder, "finished epochs"), ExitStack() as stack:
            if options.record:
                with progress.phase("tracking"):
                    run = stack.enter_context(
                        open_run(
                            spec,
                            dataset,
                            root=root.path,
                            tracking_uri=root.tracking_uri,
                            trigger=options.trigger,
                            action="train" if retrain_key is None else "retrain",
                            run_id=read_run_id(folder),
                            tags={name: value for name, value in tags.items() if value is not None},
                        )
                    )
                    progress.update(0, f"run {run.id}")
                atomic.write_text(folder / "run_id", run.id)
            else:
                run = UnrecordedRun(name=spec.name)
            run.log_curve("choice/error", [candidate.error for candidate in options.candidates])
            run_fact = {"run_id": run.id} if run.is_recorded else {}
            key_fact = {} if retrain_key is None else {RETRAIN_KEY_TAG: retrain_key}
            reason_fact = {"selection": options.selection_reason} if options.selection_reason else {}
            trained = train_model(
                panel,
                spec,
                test_windows=options.test_windows,
                training_panel=training_panel,
                initial=initial,
                reference_forecasters=reference_forecasters,
                facts={**run_fact, "data": data.name, **key_fact, **reason_fact},
                checkpoint_folder=folder,
                loggers=[run.logger],
                accelerator=options.accelerator,
                devices=options.devices,
                progress=progress,
            )
            model, result, result_with_quantiles = trained.model, trained.backtest, None
            if spec.training.refit:
                run.logger.log_metrics({"refit/steps": trained.fitted.best_steps})
            if result is not None and run.is_recorded:
                result_with_quantiles = add_quantiles(result, {CHALLENGER: model}, levels=SCORED_LEVELS)
                _log_figures(run, result_with_quantiles)  # uploaded while the bundle is written
            with progress.phase("bundle"):
                bundle = root.bundles / run.id
                _remove_leftovers(bundle)
                card = render_model_card(model)
                digest = artifact.save_bundle(model, bundle, card=card)
                run.set_tag("bundle_digest", digest)
                if model.blend_weights:
                    run.set_tag("blend", format_blend_weights(model.blend_weights))
                run.log_model_card(card)
                if run.is_recorded:
                    _log_scores(run, spec, trained.fitted, result_with_quantiles, seconds=trained.seconds)
        shutil.rmtree(folder)
    run_id = run.id if run.is_recorded else None
    scores = model.facts["backtest"] or model.facts.get(SYMBOL_SCORES_FACT, {})
    return TrainingResult(bundle, digest, run_id, model, scores, result, trained.advice)


def get_checkpoint_folder(training_panel: Panel, spec: Spec, root: Root, *, initial: FittedModel | None) -> Path:
    """Returns the checkpoint folder of a training; it exists only while the training is unfinished."""
    return root.checkpoints / fit_digest(training_panel, spec, initial)[:16]


def _remove_leftovers(bundle: Path) -> None:
    """Removes what a killed training left: drafts, and the bundle, which is written again.

    The rename makes the removal of the bundle atomic: another kill leaves the whole bundle or none.
    """
    for draft in bundle.parent.glob(f".{bundle.name}.*"):
        shutil.rmtree(draft, ignore_errors=True)
    if bundle.exists():
        shutil.rmtree(bundle.rename(bundle.with_name(f".{bundle.name}.old")))


def _describe_candidates(candidates: Sequence[CandidateScore]) -> dict[str, str]:
    """Returns tags that describe the candidates and which of them was chosen."""
    if not candidates:
        return {}
    chosen = next(candidate for candidate in candidates if candidate.is_chosen)
    tried = ", ".join(f"{candidate.description} {candidate.error:.4g}" for candidate in candidates)
    return {"chosen": chosen.description, "tried": tried}


def _log_figures(run: TrackedRun, result: Backtest) -> None:
    """Logs the figures of a test."""
    run.log_figure("plots/forecast.png", plot_origins(result, CHALLENGER))
    run.log_figure("plots/error_by_horizon.png", plot_error_by_step(result))
    if result.quantiles:
        run.log_figure("plots/calibration.png", plot_calibration(result))
        run.log_figure("plots/reliability.png", plot_reliability(result))
        run.log_figure("plots/intervals.png", plot_interval_bands(result, CHALLENGER))


def _log_scores(run: TrackedRun, spec: Spec, fitted: FitResult, result: Backtest | None, *, seconds: float) -> None:
    """Logs all metrics that runs are compared by, under the names that all runs share."""
    num_windows = (fitted.steps - fitted.resumed_steps + spec.training.refit * fitted.best_steps) * spec.training.batch
    if num_windows:  # otherwise the fit finished before a kill, and was logged then or not at all
        run.log_headline_metrics({"train/seconds": seconds, "train/windows_per_s": num_windows / seconds})
    if result is None:
        return
    batches = build_validation_batches(
        result.series,
        context=fitted.model.network.window_length(max(map(len, result.series))),
        horizon=spec.horizon,
        windows=result.actual.shape[1],
        season=fitted.model.season,
        encoding=fitted.model.encoding,
        channels=spec.channels,
    )
    run.log_headline_metrics({"bt/exposure_gap": compute_exposure_gap(fitted.model.networks, batches)})
    if NETWORK in result.forecasts:
        network_scores = result.scores(NETWORK)
        run.log_headline_metrics({f"bt_pure/{name}": network_scores[name] for name in ("mase", "rmsse", "smape")})
    levels = TRACKED_LEVELS if result.quantiles else ()
    backtests.record_backtest(run, result, score_table(result), model_name=CHALLENGER, levels=levels)

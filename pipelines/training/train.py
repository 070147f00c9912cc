"""One training: fit, backtest, write the bundle, and track all of it in one run."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from forecaster.bundle import artifact
from forecaster.data.profile import build_training_profile
from forecaster.data.split import hold_out
from forecaster.errors import InputError, TrainingError
from forecaster.evaluation.backtest import Backtest, backtest
from forecaster.evaluation.baselines import ForecastFunction, seasonal_naive
from forecaster.evaluation.blend_weights import BlendWeights, fit_blend
from forecaster.evaluation.calibration import add_quantiles, calibrate_model
from forecaster.evaluation.plots import plot_calibration, plot_error_by_step, plot_origins
from forecaster.evaluation.scores import INTERVALS, SCORED_LEVELS, score_table
from forecaster.evaluation.validation import build_validation_batches, compute_exposure_gap
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.registry.registry import CHALLENGER
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.statistical.blend import NETWORK, format_blend_weights, require_packages
from forecaster.storage import atomic
from forecaster.storage.locks import open_locked
from forecaster.training.datamodule import split_panel
from forecaster.training.fit import FitResult, fit, fit_digest, refit
from forecaster.training.lightning import pl
from pipelines.promotion.gate import SEASONAL_NAIVE
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel
from pipelines.tracking import backtests
from pipelines.tracking.run import RunDataset, TrackedRun, open_run
from pipelines.training.model_card import compute_reliable_horizon, render_model_card, replace_nonfinite
from pipelines.training.retrain_key import RETRAIN_KEY_TAG

TRACKED_LEVELS = tuple(
    sorted(round((1 + side * share) / 2, 6) for share in INTERVALS for side in (-1, 1))
)  # levels of the quantiles recorded with a run

_log = logging.getLogger(__name__)


class EpochLogger(pl.Callback):
    """Logs one line per epoch, for output that cannot show a progress bar."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the previous epoch: at its own end its scores are not complete yet."""
        self._log_epoch(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the last epoch."""
        self._log_epoch(trainer)

    def _log_epoch(self, trainer: pl.Trainer) -> None:
        scores = ", ".join(f"{name} {float(value):.4g}" for name, value in sorted(trainer.callback_metrics.items()))
        if scores:
            _log.info("epoch %d of %s: %s", trainer.current_epoch, trainer.max_epochs, scores)


class CandidateScore(NamedTuple):
    """The description of a candidate specification, and its error on the validation windows."""

    description: str
    error: float


@dataclass(frozen=True)
class TrainOptions:
    """How a training is tested, recorded and shown.

    Attributes:
        test_windows: Rolling origins that are held out from the fit, one horizon apart; 0 trains on all data without a test.
        trigger: What started the training, for the run's tags.
        candidates: The specifications among which this one was chosen, for the run.
        show_progress: Whether to show a progress bar; otherwise one line per epoch is logged.

    Raises InputError if the number of test windows is negative.
    """

    test_windows: int = 1
    trigger: str = "cli"
    candidates: Sequence[CandidateScore] = ()
    show_progress: bool = False

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
    run_id: str
    model: FittedModel
    scores: Mapping[str, Mapping[str, float]]  # by forecaster: mase, rmsse, smape, mae
    backtest: Backtest | None  # None if nothing was held out for a test


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
) -> TrainingResult:
    """Fits a model on all but the last test windows, backtests it on them, writes its bundle, and tracks all of it in a run.

    Args:
        data: Where the panel comes from.
        spec: The specification of the model.
        root: The root folder. A training that was killed resumes from its last epoch when it is started again.
        options: How the training is tested, recorded and shown.
        panel: The panel of the data, if it was read already.
        retrain_key: The key of the retraining; a tag of the run, and one of the bundle's facts.
        initial: The model whose weights to start from; by default they are random.
        reference_forecasters: Additional forecasters to backtest at the same cutoffs.
    """
    panel = read_panel(data.for_spec(spec)) if panel is None else panel
    for repair in panel.repairs:
        _log.warning("%s: %s", data.source, repair)
    training_panel = select_training_panel(panel, spec, options.test_windows)
    split_panel(training_panel, spec)  # data that cannot be trained on are rejected before a run is created
    require_packages(spec.blend)
    dataset = RunDataset(data.name, training_panel.digest, data.source, training_panel.cutoff)
    tags = {
        RETRAIN_KEY_TAG: retrain_key,
        "asked_cutoff": data.cutoff,
        "refit": str(spec.training.refit).lower(),
    } | _describe_candidates(options.candidates)
    with _lock_checkpoint_folder(get_checkpoint_folder(training_panel, spec, root, initial=initial)) as folder:
        with open_run(
            spec,
            dataset,
            root=root.path,
            tracking_uri=root.tracking_uri,
            trigger=options.trigger,
            run_id=_read_if_exists(folder / "run_id"),
            tags={name: value for name, value in tags.items() if value is not None},
        ) as run:
            atomic.write_text(folder / "run_id", run.id)
            run.log_curve("choice/error", [candidate.error for candidate in options.candidates])
            started = time.monotonic()
            callbacks = [] if options.show_progress else [EpochLogger()]
            fitted = fit(
                training_panel,
                spec,
                initial=initial,
                checkpoint=folder / "last.ckpt",
                loggers=[run.logger],
                callbacks=callbacks,
                progress=options.show_progress,
            )
            fitted, blend_weights = _calibrate_and_blend(fitted, training_panel, spec)
            if spec.training.refit:
                refitted = refit(
                    training_panel,
                    fitted,
                    initial=initial,
                    checkpoint=folder / "whole.ckpt",
                    callbacks=callbacks,
                    progress=options.show_progress,
                )
                fitted = fitted._replace(model=refitted)
                run.logger.log_metrics({"refit/steps": fitted.best_steps})
            seconds = time.monotonic() - started
            model, result, result_with_quantiles = fitted.model, None, None
            if options.test_windows:
                network_only = {NETWORK: Predictor(replace(model, blend_weights={}))} if model.blend_weights else {}
                result = run_test_backtest(
                    panel,
                    model,
                    reference_forecasters={**network_only, **(reference_forecasters or {})},
                    test_windows=options.test_windows,
                )
                result_with_quantiles = add_quantiles(result, {CHALLENGER: model}, levels=SCORED_LEVELS)
                _log_figures(run, result_with_quantiles)  # uploaded while the bundle is written
            facts = _build_facts(data, panel, training_panel, fitted, result, blend_weights, run_id=run.id)
            key_fact = {} if retrain_key is None else {RETRAIN_KEY_TAG: retrain_key}
            model = replace(model, facts={**model.facts, **facts, **key_fact})  # the fit has recorded facts too
            bundle = root.bundles / run.id
            _remove_leftovers(bundle)
            card = render_model_card(model)
            digest = artifact.save_bundle(model, bundle, card=card)
            run.set_tag("bundle_digest", digest)
            if model.blend_weights:
                run.set_tag("blend", format_blend_weights(model.blend_weights))
            run.log_model_card(card)
            _log_scores(run, spec, fitted, result_with_quantiles, seconds=seconds)
        shutil.rmtree(folder)
    return TrainingResult(bundle, digest, run.id, model, facts["backtest"], result)


def _calibrate_and_blend(fitted: FitResult, panel: Panel, spec: Spec) -> tuple[FitResult, BlendWeights | None]:
    """Calibrates the intervals of the fitted model on the validation windows, and fits the weights of its blend there."""
    windows, stride, blend_weights = spec.training.valid_windows, spec.training.valid_stride, None
    if not windows:
        return fitted, None
    if spec.blend:
        model, blend_weights = fit_blend(fitted.model, panel, windows=windows, stride=stride)
        _log.info("blend: %s", format_blend_weights(blend_weights.weights))
    else:
        model = calibrate_model(fitted.model, panel, windows=windows, stride=stride)
    return fitted._replace(model=model), blend_weights


def run_test_backtest(
    panel: Panel,
    model: FittedModel,
    *,
    reference_forecasters: Mapping[str, ForecastFunction | Predictor],
    test_windows: int,
) -> Backtest:
    """Backtests a trained model, the reference forecasters and seasonal naive on the last windows."""
    spec, season = model.spec, model.season
    forecasters = {CHALLENGER: Predictor(model), **reference_forecasters, SEASONAL_NAIVE: seasonal_naive(season)}
    return backtest(
        panel, forecasters, horizon=spec.horizon, windows=test_windows, season=season, min_history=spec.min_steps + 1
    )


def get_checkpoint_folder(training_panel: Panel, spec: Spec, root: Root, *, initial: FittedModel | None) -> Path:
    """Returns the checkpoint folder of a training; it exists only while the training is unfinished."""
    return root.checkpoints / fit_digest(training_panel, spec, initial)[:16]


def select_training_panel(panel: Panel, spec: Spec, test_windows: int) -> Panel:
    """Returns the part of the panel before the test windows, without the series that are too short for it."""
    return (
        hold_out(panel, test_windows * spec.horizon, min_history=spec.min_steps + 1).history if test_windows else panel
    )


@contextmanager
def _lock_checkpoint_folder(folder: Path) -> Iterator[Path]:
    """Creates and locks the checkpoint folder of one fit; raises TrainingError if another process holds the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    lock_path = folder.with_name(f"{folder.name}.lock")
    try:
        lock = open_locked(lock_path)
    except BlockingIOError as error:
        raise TrainingError(
            f"Expected no other process to run this training; it is already running (lock {lock_path}). Wait for it to "
            "finish, or change the specification.",
            where=str(folder),
        ) from error
    with lock:
        yield folder


def _remove_leftovers(bundle: Path) -> None:
    """Removes what a killed training left: drafts, and the bundle, which is written again.

    The rename makes the removal of the bundle atomic: another kill leaves the whole bundle or none.
    """
    for draft in bundle.parent.glob(f".{bundle.name}.*"):
        shutil.rmtree(draft, ignore_errors=True)
    if bundle.exists():
        shutil.rmtree(bundle.rename(bundle.with_name(f".{bundle.name}.old")))


def _read_if_exists(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _build_facts(
    data: DataSource,
    panel: Panel,
    training_panel: Panel,
    fitted: FitResult,
    result: Backtest | None,
    blend_weights: BlendWeights | None,
    *,
    run_id: str,
) -> dict[str, Any]:
    names = [] if result is None else list(result.forecasts)
    blend = (
        {}
        if blend_weights is None
        else {"blend": {**blend_weights._asdict(), "errors": replace_nonfinite(blend_weights.errors)}}
    )
    return blend | {
        "run_id": run_id,
        "data": data.name,
        "data_digest": training_panel.digest,
        "series": len(training_panel.series) - len(fitted.excluded_ids),
        "left_out": len(panel.series) - len(training_panel.series) + len(fitted.excluded_ids),
        "epochs": fitted.epochs,
        "steps": fitted.steps,
        "validation": fitted.scores,
        "test_windows": 0 if result is None else result.actual.shape[1],
        "backtest": {} if result is None else {name: replace_nonfinite(result.scores(name)) for name in names},
        "reliable_horizon": None if result is None else compute_reliable_horizon(result),
        "inputs": build_training_profile(
            training_panel.series, context=fitted.model.spec.context, season=fitted.model.season
        ).model_dump(mode="json"),
    }


def _describe_candidates(candidates: Sequence[CandidateScore]) -> dict[str, str]:
    """Returns tags that describe the candidates and the best of them."""
    if not candidates:
        return {}
    best = min(candidates, key=lambda candidate: candidate.error)
    tried = ", ".join(f"{candidate.description} {candidate.error:.4g}" for candidate in candidates)
    return {"chosen": best.description, "tried": tried}


def _log_figures(run: TrackedRun, result: Backtest) -> None:
    """Logs the figures of a test."""
    run.log_figure("plots/forecast.png", plot_origins(result, CHALLENGER))
    run.log_figure("plots/error_by_horizon.png", plot_error_by_step(result))
    if result.quantiles:
        run.log_figure("plots/calibration.png", plot_calibration(result))


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

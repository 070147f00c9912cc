"""A training: fit, backtest, bundle, and one tracked run of it all."""

from __future__ import annotations

import fcntl
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl

from forecaster.bundle import artifact
from forecaster.data.profile import build_training_profile
from forecaster.data.split import hold_out
from forecaster.errors import TrainingError
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
from forecaster.training.datamodule import split_panel
from forecaster.training.fit import FitResult, fit, fit_digest, refit
from pipelines.promotion.gate import SEASONAL_NAIVE
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel, validate_test_windows
from pipelines.tracking import backtests
from pipelines.tracking.run import RunDataset, TrackedRun, open_run
from pipelines.training.model_card import compute_reliable_horizon, render_model_card, replace_nonfinite
from pipelines.training.retrain_key import RETRAIN_KEY_TAG

TRACKED_LEVELS = tuple(
    sorted(round((1 + side * share) / 2, 6) for share in INTERVALS for side in (-1, 1))
)  # kept with a run

_log = logging.getLogger(__name__)


class EpochLogger(pl.Callback):
    """A line an epoch in the log, for terminals that cannot show a bar."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tells of the epoch before: at its own end its scores are not complete yet."""
        self._log_epoch(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tells of the last epoch."""
        self._log_epoch(trainer)

    def _log_epoch(self, trainer: pl.Trainer) -> None:
        scores = ", ".join(f"{name} {float(value):.4g}" for name, value in sorted(trainer.callback_metrics.items()))
        if scores:
            _log.info("epoch %d of %s: %s", trainer.current_epoch, trainer.max_epochs, scores)


class CandidateScore(NamedTuple):
    """A specification that was tried before one was chosen: what it is, and its error on validation windows."""

    description: str
    error: float


class TrainingResult(NamedTuple):
    """A bundle on disk, and how it did."""

    bundle: Path
    digest: str
    run_id: str
    forecaster: FittedModel
    scores: Mapping[str, Mapping[str, float]]  # by forecaster: mase, rmsse, smape, mae
    backtest: Backtest | None  # None where nothing was held out to test on


def train(
    data: DataSource,
    spec: Spec,
    root: Root,
    *,
    panel: Panel | None = None,
    retrain_key: str | None = None,
    initial: FittedModel | None = None,
    reference_forecasters: Mapping[str, ForecastFunction | Predictor] | None = None,
    test_windows: int = 1,
    trigger: str = "cli",
    candidates: Sequence[CandidateScore] = (),
    show_progress: bool = False,
) -> TrainingResult:
    """Fits a forecaster on all but the last test windows, backtests it there, writes its bundle, and tracks it all.

    Args:
        data: Where the panel comes from.
        spec: What to make.
        root: Where state lives. A training killed there goes on from its last epoch when it is started again.
        panel: What was read of the data, if it has been.
        key: What makes it the same as another retraining; tagged, and among the bundle's facts.
        initial: Whose weights to start from; random ones, if not given.
        rivals: Further forecasters to ask at the same cutoffs.
        test_windows: Rolling origins kept from the fit altogether, a horizon apart; 0 trains on everything, untested.
        trigger: What started it, for the run's tags.
        tried: From what the specification was chosen, for the run.
        progress: Whether to show a progress bar.
    """
    validate_test_windows(test_windows)
    panel = read_panel(data.for_spec(spec)) if panel is None else panel
    for repair in panel.repairs:
        _log.warning("%s: %s", data.source, repair)
    known = _select_training_panel(panel, spec, test_windows)
    split_panel(known, spec)  # what cannot be trained on is refused before there is a run of it
    require_packages(spec.blend)
    dataset = RunDataset(data.name, known.digest(), data.source, known.cutoff)
    asked_for = {
        RETRAIN_KEY_TAG: retrain_key,
        "asked_cutoff": data.cutoff,
        "refit": str(spec.training.refit).lower(),
    } | _describe_candidates(candidates)
    with _lock_checkpoint_folder(
        get_checkpoint_folder(panel, spec, root, initial=initial, test_windows=test_windows)
    ) as place:
        with open_run(
            spec,
            dataset,
            root=root.path,
            tracking_uri=root.tracking_uri,
            trigger=trigger,
            run_id=_read_if_exists(place / "run_id"),
            tags={name: value for name, value in asked_for.items() if value is not None},
        ) as run:
            atomic.write_text(place / "run_id", run.id)
            run.log_curve("choice/error", [one.error for one in candidates])
            started = time.monotonic()
            callbacks = [] if show_progress else [EpochLogger()]
            fitted = fit(
                known,
                spec,
                initial=initial,
                checkpoint=place / "last.ckpt",
                loggers=[run.logger],
                callbacks=callbacks,
                progress=show_progress,
            )
            fitted, weighed = _calibrate_and_blend(fitted, known, spec)
            if spec.training.refit:
                whole = refit(
                    known,
                    fitted,
                    initial=initial,
                    checkpoint=place / "whole.ckpt",
                    callbacks=callbacks,
                    progress=show_progress,
                )
                fitted = fitted._replace(model=whole)
                run.logger.log_metrics({"refit/steps": fitted.best_steps})
            seconds = time.monotonic() - started
            forecaster, result, told = fitted.model, None, None
            if test_windows:
                alone = {NETWORK: Predictor(replace(forecaster, blend_weights={}))} if forecaster.blend_weights else {}
                result = run_test_backtest(
                    panel,
                    forecaster,
                    reference_forecasters={**alone, **(reference_forecasters or {})},
                    test_windows=test_windows,
                )
                told = add_quantiles(result, {CHALLENGER: forecaster}, levels=SCORED_LEVELS)
                _log_figures(run, told)  # while the bundle is written
            facts = _build_facts(data, panel, known, fitted, result, weighed, run_id=run.id)
            finished = replace(
                forecaster, facts=facts if retrain_key is None else {**facts, RETRAIN_KEY_TAG: retrain_key}
            )
            bundle = root.bundles / run.id
            _remove_leftovers(bundle)
            card = render_model_card(finished)
            digest = artifact.save_bundle(finished, bundle, card=card)
            run.set_tag("bundle_digest", digest)
            if finished.blend_weights:
                run.set_tag("blend", format_blend_weights(finished.blend_weights))
            run.log_model_card(card)
            _log_scores(run, spec, fitted, told, seconds=seconds, test_windows=test_windows)
        shutil.rmtree(place)
    return TrainingResult(bundle, digest, run.id, finished, facts["backtest"], result)


def _calibrate_and_blend(fitted: FitResult, panel: Panel, spec: Spec) -> tuple[FitResult, BlendWeights | None]:
    """The fitted forecaster with what the validation windows say of it: intervals, and the weights of its blend."""
    windows, stride, weighed = spec.training.valid_windows, spec.training.valid_stride, None
    if not windows:
        return fitted, None
    if spec.blend:
        forecaster, weighed = fit_blend(fitted.model, panel, windows=windows, stride=stride)
        _log.info("blend: %s", format_blend_weights(weighed.weights))
    else:
        forecaster = calibrate_model(fitted.model, panel, windows=windows, stride=stride)
    return fitted._replace(model=forecaster), weighed


def run_test_backtest(
    panel: Panel,
    forecaster: FittedModel,
    *,
    reference_forecasters: Mapping[str, ForecastFunction | Predictor],
    test_windows: int,
) -> Backtest:
    """The test of a training: the forecaster, its rivals and seasonal naive on the last windows."""
    spec, season = forecaster.spec, forecaster.season
    asked = {CHALLENGER: Predictor(forecaster), **reference_forecasters, SEASONAL_NAIVE: seasonal_naive(season)}
    return backtest(
        panel, asked, horizon=spec.horizon, windows=test_windows, season=season, min_history=spec.min_steps + 1
    )


def get_checkpoint_folder(
    panel: Panel, spec: Spec, root: Root, *, initial: FittedModel | None, test_windows: int
) -> Path:
    """Where a training is under way, if it is: a folder that is gone when it has ended well."""
    return root.checkpoints / fit_digest(_select_training_panel(panel, spec, test_windows), spec, initial)[:16]


def _select_training_panel(panel: Panel, spec: Spec, test_windows: int) -> Panel:
    return (
        hold_out(panel, test_windows * spec.horizon, min_history=spec.min_steps + 1).history if test_windows else panel
    )


@contextmanager
def _lock_checkpoint_folder(folder: Path) -> Iterator[Path]:
    """The folder of one fit; refuses a second process that would train the same thing at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                f"The same training is running already (it holds {lock.name}). Wait for it, or change the specification.",
                where=str(folder),
            ) from error
        yield folder


def _remove_leftovers(bundle: Path) -> None:
    """Takes away what a training killed here left: drafts, and a bundle that is written anew; a kill leaves it or nothing."""
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
        "data_digest": training_panel.digest(),
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
    """What the specification was chosen from, and the best, in words."""
    if not candidates:
        return {}
    best = min(candidates, key=lambda one: one.error)
    return {"chosen": best.description, "tried": ", ".join(f"{one.description} {one.error:.4g}" for one in candidates)}


def _log_figures(run: TrackedRun, result: Backtest) -> None:
    """The pictures of a test."""
    run.log_figure("plots/forecast.png", plot_origins(result, CHALLENGER))
    run.log_figure("plots/error_by_horizon.png", plot_error_by_step(result))
    if result.quantiles:
        run.log_figure("plots/calibration.png", plot_calibration(result))


def _log_scores(
    run: TrackedRun,
    spec: Spec,
    fitted: FitResult,
    result: Backtest | None,
    *,
    seconds: float,
    test_windows: int,
) -> None:
    """Everything that runs are compared by, under the names that all runs share."""
    made = (fitted.steps - fitted.resumed_steps + spec.training.refit * fitted.best_steps) * spec.training.batch
    if made:  # else all was fitted before a kill, and was recorded then or never
        run.log_headline_metrics({"train/seconds": seconds, "train/windows_per_s": made / seconds})
    if result is None:
        return
    origins = build_validation_batches(
        result.series,
        context=fitted.model.network.window_length(max(map(len, result.series))),
        horizon=spec.horizon,
        windows=test_windows,
        season=fitted.model.season,
        encoding=fitted.model.encoding,
        channels=spec.channels,
    )
    run.log_headline_metrics({"bt/exposure_gap": compute_exposure_gap(fitted.model.networks, origins)})
    if NETWORK in result.forecasts:
        pure = result.scores(NETWORK)
        run.log_headline_metrics({f"bt_pure/{name}": pure[name] for name in ("mase", "rmsse", "smape")})
    levels = TRACKED_LEVELS if result.quantiles else ()
    backtests.record_backtest(run, result, score_table(result), model_name=CHALLENGER, levels=levels)

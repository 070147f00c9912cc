"""The whole sequence of a training: fit, calibrate or blend, refit, test on held-out windows, state the facts."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from forecaster.bundle.pretrained.base import zero_shot_predictor
from forecaster.data.on_disk.tape import count_steps
from forecaster.data.profile import build_training_profile
from forecaster.data.split import hold_out, sample_panel
from forecaster.data.symbols import SYMBOL_SCORES_FACT
from forecaster.engines.statistical.blend import NETWORK, format_blend_weights, require_packages
from forecaster.evaluation.backtest import Backtest, backtest
from forecaster.evaluation.baselines import ForecastFunction, build_baselines
from forecaster.evaluation.blend_weights import BlendWeights, fit_blend
from forecaster.evaluation.calibration import calibrate_model, choose_untrained_windows
from forecaster.evaluation.symbol_backtest import SymbolBacktest, backtest_symbols
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.registry.registry import CHALLENGER
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.advice import advise_on_test
from forecaster.training.datamodule import split_panel
from forecaster.training.fit import FitResult, fit, refit
from forecaster.training.lightning import Logger, pl
from forecaster.training.model_card import compute_reliable_horizon, describe_sample, replace_nonfinite
from forecaster.training.vocabulary import settle_vocabulary

_log = logging.getLogger(__name__)


class TrainedModel(NamedTuple):
    """The result of a training.

    Attributes:
        model: The fitted and calibrated model, with the facts of its training.
        fitted: The fit, with the same model before the facts were added.
        backtest: Its test, in which the model has the name `CHALLENGER`; None if no window was held out.
        seconds: The duration of everything before the test.
        advice: What to try if a baseline was better in the test; None if none was.
        symbol_test: The test of a model of symbols, in place of `backtest`.
    """

    model: FittedModel
    fitted: FitResult
    backtest: Backtest | None
    seconds: float
    advice: str | None = None
    symbol_test: SymbolBacktest | None = None


def prepare_training(panel: Panel, spec: Spec, *, test_windows: int) -> Panel:
    """Returns the part of the panel before the test windows; raises the errors of data that cannot be trained on."""
    panel, spec = settle_vocabulary(panel, spec, held_out_steps=test_windows * spec.horizon)
    training_panel = select_training_panel(panel, spec, test_windows)
    split_panel(training_panel, spec)
    require_packages(spec.blend)
    return training_panel


def train_model(
    panel: Panel,
    spec: Spec,
    *,
    test_windows: int = 1,
    training_panel: Panel | None = None,
    initial: FittedModel | None = None,
    reference_forecasters: Mapping[str, ForecastFunction | Predictor] | None = None,
    facts: Mapping[str, Any] | None = None,
    checkpoint_folder: Path | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[pl.Callback] = (),
    accelerator: str = "auto",
    devices: str = "1",
    progress: Progress = NO_PROGRESS,
) -> TrainedModel:
    """Fits a model on all but the last test windows, calibrates it, and backtests it on these windows.

    Args:
        panel: All data.
        spec: The specification of the model.
        test_windows: Rolling origins that are held out from the fit, one horizon apart; 0 trains on all data without a test.
        training_panel: The result of `prepare_training`, if the caller has it.
        initial: The model whose weights to start from; by default they are random.
        reference_forecasters: Additional forecasters to backtest at the same cutoffs.
        facts: Further facts of the model, such as the name of the data.
        checkpoint_folder: The folder of the checkpoints, from which an interrupted training resumes; None writes none.
        loggers, callbacks, accelerator, devices: As for `fit`.
        progress: Receives the phases: fit, calibration, refit, test.
    """
    panel, spec = settle_vocabulary(panel, spec, held_out_steps=test_windows * spec.horizon)
    if training_panel is None:
        training_panel = prepare_training(panel, spec, test_windows=test_windows)
    started = time.monotonic()
    with progress.phase("fit", spec.training.steps):
        fitted = fit(
            training_panel,
            spec,
            initial=initial,
            checkpoint=None if checkpoint_folder is None else checkpoint_folder / "last.ckpt",
            loggers=loggers,
            callbacks=callbacks,
            accelerator=accelerator,
            devices=devices,
            progress=progress,
        )
        progress.update(fitted.steps, _describe_fit(fitted))
    fitted, blend_weights = _calibrate_and_blend(fitted, training_panel, spec, progress)
    if spec.training.refit:
        with progress.phase("refit", fitted.best_steps):
            refitted = refit(
                training_panel,
                fitted,
                initial=initial,
                checkpoint=None if checkpoint_folder is None else checkpoint_folder / "whole.ckpt",
                callbacks=callbacks,
                accelerator=accelerator,
                devices=devices,
                progress=progress,
            )
            progress.update(fitted.best_steps, f"all data, {fitted.best_steps} steps")
        fitted = fitted._replace(model=refitted)
    seconds = time.monotonic() - started
    model, result, symbol_test = fitted.model, None, None
    if test_windows and spec.head.is_symbolic:
        with progress.phase("test"):
            symbol_test = backtest_symbols(
                panel,
                model,
                name=CHALLENGER,
                horizon=spec.horizon,
                windows=test_windows,
                min_history=spec.min_steps + 1,
            )
            progress.update(0, f"{len(symbol_test.series)} series")
    elif test_windows:
        network_only = {NETWORK: Predictor(replace(model, blend_weights={}))} if model.blend_weights else {}
        result = run_test_backtest(
            panel,
            model,
            reference_forecasters={**network_only, **(reference_forecasters or {})},
            test_windows=test_windows,
            progress=progress,
        )
    training_facts = _build_facts(panel, training_panel, fitted, result, blend_weights, test_windows=test_windows)
    if symbol_test is not None:
        training_facts["test_windows"] = test_windows
        training_facts[SYMBOL_SCORES_FACT] = {
            name: replace_nonfinite(symbol_test.scores(name)) for name in symbol_test.predictions
        }
    if training_facts["evaluated_series"]:
        progress.report(describe_sample(training_facts["evaluated_series"], training_facts["series"]))
    model = replace(model, facts={**model.facts, **(facts or {}), **training_facts})  # the fit has recorded facts too
    advice = None if result is None else advise_on_test(result, fitted)
    return TrainedModel(model, fitted, result, seconds, advice, symbol_test)


def run_test_backtest(
    panel: Panel,
    model: FittedModel,
    *,
    reference_forecasters: Mapping[str, ForecastFunction | Predictor],
    test_windows: int,
    progress: Progress = NO_PROGRESS,
) -> Backtest:
    """Backtests a trained model, the reference forecasters and the baselines on the last windows.

    A panel of very many series is tested on a sample of them (`sample_panel`).
    """
    spec, season = model.spec, model.season
    pretrained = zero_shot_predictor(model.freq, horizon=spec.horizon, season=season, models=[model])
    baselines = build_baselines(season=season, pretrained=pretrained)
    forecasters = {CHALLENGER: Predictor(model), **reference_forecasters, **baselines}
    return backtest(
        sample_panel(panel, windows=test_windows),
        forecasters,
        horizon=spec.horizon,
        windows=test_windows,
        season=season,
        min_history=spec.min_steps + 1,
        progress=progress,
        phase="test",
    )


def select_training_panel(panel: Panel, spec: Spec, test_windows: int) -> Panel:
    """Returns the part of the panel before the test windows, without the series that are too short for it."""
    return (
        hold_out(panel, test_windows * spec.horizon, min_history=spec.min_steps + 1).history if test_windows else panel
    )


class LeftOut(NamedTuple):
    """The series that are too short to be trained on.

    Attributes:
        ids: Their ids.
        longest: The id of the longest of them; empty if there are none.
        longest_steps: Its number of steps.
        min_steps: The number of steps of the shortest series that would be trained on.
    """

    ids: tuple[str, ...]
    longest: str
    longest_steps: int
    min_steps: int


def find_left_out(panel: Panel, spec: Spec, *, test_windows: int) -> LeftOut:
    """Finds the series that `train_model` does not train on: those without a step to predict after `spec.min_steps` of history.

    The steps of the test are held out of each series, and those of the validation too unless the model is refitted on them.
    """
    held_out = test_windows * spec.horizon + (0 if spec.training.refit else spec.validation_steps)
    min_steps = held_out + spec.min_steps + 1
    lengths = count_steps(panel.series)
    indices = np.flatnonzero(lengths < min_steps)
    if not len(indices):
        return LeftOut((), "", 0, min_steps)
    longest = int(indices[np.argmax(lengths[indices])])
    ids = tuple(panel.series[index].id for index in indices.tolist())
    return LeftOut(ids, panel.series[longest].id, int(lengths[longest]), min_steps)


def describe_left_out(panel: Panel, spec: Spec, *, test_windows: int) -> str | None:
    """Describes the series that are too short to be trained on, and what to do; None if there are none.

    Nothing is left out of a model that is used without training; if all series are too short, the training raises an error.
    """
    left_out = find_left_out(panel, spec, test_windows=test_windows)
    if not spec.training.steps or len(left_out.ids) in (0, len(panel.series)):
        return None
    validation_steps = 0 if spec.training.refit else spec.validation_steps
    held_out = {"validation": validation_steps, "test": test_windows * spec.horizon}
    parts = "".join(f", {steps} of {name}" for name, steps in held_out.items() if steps)
    return (
        f"{len(left_out.ids)} of {len(panel.series)} series are too short to be trained on; the longest of them, "
        f"{left_out.longest!r}, has {left_out.longest_steps} steps, and {left_out.min_steps} are needed ({spec.min_steps} of "
        f"history, 1 to predict{parts}). They are forecast nevertheless if they have {spec.min_steps} steps. Send longer "
        "histories, or choose a lower `min_history`, a shorter horizon or fewer windows."
    )


def _describe_fit(fitted: FitResult) -> str:
    """Describes the result of a fit for its finished phase."""
    if "valid/cross_entropy" in fitted.scores:
        scores = fitted.scores
        return (
            f"cross-entropy {scores['valid/cross_entropy']:.4g} nats, perplexity {scores['valid/perplexity']:.4g}, accuracy "
            f"{scores['valid/accuracy']:.1%} of the next symbol on the validation windows, {fitted.epochs} epochs"
        )
    error = fitted.scores.get("valid/rollout")
    best = "" if error is None else f"MASE {error:.4g} on the validation windows, "
    return f"{best}{fitted.epochs} epochs"


def _calibrate_and_blend(
    fitted: FitResult, panel: Panel, spec: Spec, progress: Progress
) -> tuple[FitResult, BlendWeights | None]:
    """Calibrates the intervals of the fitted model on the validation windows, and fits the weights of its blend there."""
    if not spec.training.valid_windows or spec.head.is_symbolic:
        return fitted, None
    windows, stride = _choose_calibration_windows(panel, spec)
    sample = sample_panel(panel, windows=windows)
    if not spec.blend:
        model = calibrate_model(fitted.model, sample, windows=windows, stride=stride, progress=progress)
        return fitted._replace(model=model), None
    model, blend_weights = fit_blend(fitted.model, sample, windows=windows, stride=stride, progress=progress)
    _log.info("blend: %s", format_blend_weights(blend_weights.weights))
    return fitted._replace(model=model), blend_weights


def _choose_calibration_windows(panel: Panel, spec: Spec) -> tuple[int, int | None]:
    """Returns the windows on which intervals are calibrated, and the steps between them."""
    if spec.training.steps or spec.blend:
        return spec.training.valid_windows, spec.training.valid_stride
    return choose_untrained_windows(panel, horizon=spec.horizon)


def _build_facts(
    panel: Panel,
    training_panel: Panel,
    fitted: FitResult,
    result: Backtest | None,
    blend_weights: BlendWeights | None,
    *,
    test_windows: int,
) -> dict[str, Any]:
    names = [] if result is None else list(result.forecasts)
    blend = (
        {}
        if blend_weights is None
        else {"blend": {**blend_weights._asdict(), "errors": replace_nonfinite(blend_weights.errors)}}
    )
    spec = fitted.model.spec
    num_left_out = len(find_left_out(panel, spec, test_windows=test_windows).ids)
    return blend | {
        "data_digest": training_panel.digest,
        "series": len(panel.series) - num_left_out,
        "left_out": num_left_out,
        "dropped_partial": None if panel.dropped_partial is None else len(panel.dropped_partial),
        "evaluated_series": _count_evaluated_series(training_panel, fitted.model.spec, result),
        "epochs": fitted.epochs,
        "steps": fitted.steps,
        "validation": fitted.scores,
        "test_windows": 0 if result is None else result.actual.shape[1],
        "backtest": {} if result is None else {name: replace_nonfinite(result.scores(name)) for name in names},
        "scale_note": None if result is None else result.scale_note,
        "reliable_horizon": None if result is None else compute_reliable_horizon(result),
        "inputs": None
        if spec.head.is_symbolic
        else build_training_profile(
            training_panel.series, context=fitted.model.spec.context, season=fitted.model.season
        ).model_dump(mode="json"),
    }


def _count_evaluated_series(panel: Panel, spec: Spec, result: Backtest | None) -> dict[str, int] | None:
    """Returns how many series the intervals were calibrated on and the model was tested on; None if these were all."""
    counts, size = {}, len(panel.series)
    if spec.training.valid_windows:
        windows, _ = _choose_calibration_windows(panel, spec)
        counts["calibration"] = len(sample_panel(panel, windows=windows).series)
    if result is not None:
        counts["test"] = len(result.series) + len(result.excluded_ids)
    return counts if any(count < size for count in counts.values()) else None

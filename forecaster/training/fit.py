"""Fitting: from a panel and a specification to a fitted model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster.bundle.pretrained.base import specialize_base
from forecaster.data.calendar import default_season
from forecaster.data.encoding import Encoding, fit_encoding
from forecaster.data.symbols import recode_panel
from forecaster.data.windows import derive_epoch_seed
from forecaster.evaluation.validation import (
    ValidationErrors,
    arrange_origin_errors,
    score_batch,
    score_origins,
)
from forecaster.model.regressor import Regressor, build_network
from forecaster.model.weights import copy_weights
from forecaster.prediction.bounds import NON_NEGATIVE_FACT, decide_non_negative
from forecaster.prediction.predictor import FittedModel
from forecaster.prediction.scaled_range import SCALED_RANGE_FACT, learn_scaled_range
from forecaster.prediction.shape_range import SHAPE_RANGE_FACT
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.allocator import keep_freed_memory
from forecaster.training.checkpoint import AtomicCheckpointIO, BestWeightsCallback, add_derived_scores
from forecaster.training.datamodule import STEPS_PER_CHUNK, WindowDataModule
from forecaster.training.devices import check_device_count, count_devices, parse_devices
from forecaster.training.lightning import Logger, keep_interrupts, pl, quiet_lightning
from forecaster.training.module import TrainingModule
from forecaster.training.processes import (
    SharedBatchStrategy,
    TrainingProcess,
    start_processes,
    validate_shares,
)
from forecaster.training.progress_callback import ProgressCallback
from forecaster.training.vocabulary import settle_vocabulary


class FitResult(NamedTuple):
    """The result of a fit.

    Attributes:
        model: The fitted model, with the best weights.
        scores: train/loss; valid/loss, one_step, rollout and exposure_gap of the best epoch.
        epochs: Number of epochs.
        steps: Number of optimiser steps.
        resumed_steps: Those of them made by an earlier process, before a resume.
        best_steps: Steps after which the best weights were reached.
        excluded_ids: Ids of the series that are too short to train on.
        validation_errors: The errors of the best epoch by series and window; None without validation windows.
    """

    model: FittedModel
    scores: dict[str, float]
    epochs: int
    steps: int
    resumed_steps: int
    best_steps: int
    excluded_ids: tuple[str, ...]
    validation_errors: ValidationErrors | None = None


def fit(
    panel: Panel,
    spec: Spec,
    *,
    validation: Panel | None = None,
    initial: FittedModel | None = None,
    checkpoint: Path | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[pl.Callback] = (),
    accelerator: str = "auto",
    devices: str = "1",
    progress: Progress = NO_PROGRESS,
    label: str = "",
    steps_per_chunk: int = STEPS_PER_CHUNK,
    process: TrainingProcess | None = None,
) -> FitResult:
    """Trains a model; on CPU the same arguments give bitwise the same weights, interrupted or not.

    The process keeps the memory of its tensors from here on, up to a gigabyte (`keep_freed_memory`).

    Args:
        panel: All data up to the cutoff. Its last steps (`Spec.validation_steps`) choose the best epoch and are not trained on.
        spec: The specification of the model. A symbols head without a vocabulary gets that of the training data.
        validation: Whole sequences that choose the best epoch in place of the last steps of the panel, of a specification with
            `valid_windows: 0`.
        initial: A model whose weights to start from, such as the champion; of the same network, on data of the same columns.
        checkpoint: File for the progress; a fit with the same panel and spec resumes from it. The caller removes it.
        loggers: They get `train/loss` and the validation scores of each epoch.
        callbacks: Further Lightning callbacks. A batch they see holds those of several optimiser steps.
        accelerator: "auto" uses a GPU where there is one; or another name that Lightning's Trainer accepts.
        devices: Devices, as Lightning's Trainer accepts them: "1", or "2," for the one with the index 2. With several, as many
            processes share every batch; the result is that of one process up to rounding.
        progress: Its current phase receives the optimiser steps, of which there are `spec.training.steps` at most.
        label: The end of the text that describes these steps.
        steps_per_chunk: The most optimiser steps between two callback calls of Lightning. It changes no weight.
        process: Which of several processes this is, where they have been started already.
    Raises:
        HistoryTooShort, NonFiniteLoss, CheckpointMismatch; BadSpec where `initial` is of a different network or a batch cannot be
        shared by the devices; TrainingError where one of several processes is lost.
    """
    count = count_devices(devices)
    if count > 1 and process is None and spec.training.steps:
        validate_shares(spec, count=count)
        train_share = partial(
            fit,
            panel,
            spec,
            initial=initial,
            checkpoint=checkpoint,
            accelerator=accelerator,
            devices=devices,
            steps_per_chunk=steps_per_chunk,
        )
        with start_processes(partial(_fit_share, train_share), count=count) as first_process:
            return train_share(
                loggers=loggers, callbacks=callbacks, progress=progress, label=label, process=first_process
            )
    keep_freed_memory()
    panel, spec = settle_vocabulary(panel, spec)
    if validation is not None:
        validation = recode_panel(validation, spec.head.vocabulary)
        assert not spec.training.valid_windows, "the last steps and whole sequences are not both held out"
    season = spec.season or default_season(panel.freq)
    encoding = fit_encoding(panel, calendar=spec.calendar, covariates=spec.covariates, static=spec.static)
    networks = [
        build_network(
            spec,
            seed=seed,
            season=season,
            num_covariates=encoding.num_covariates,
            static_cardinalities=encoding.static_cardinalities,
        )
        for seed in _member_seeds(spec)
    ]
    if initial is not None and spec.training.steps:
        copy_weights(initial.networks, networks, name=initial.spec.name)
    elif spec.training.initial == "base":  # without steps the model is the pretrained network, whatever the champion is
        initial = specialize_base(panel.freq, horizon=spec.horizon, season=season).to_fitted_model()
        copy_weights(initial.networks * len(networks), networks, name=initial.spec.name)
    module = TrainingModule(networks, spec)
    data = WindowDataModule(
        panel,
        spec,
        networks[0],
        encoding,
        season=season,
        steps_per_chunk=steps_per_chunk,
        validation=validation,
    )
    if not spec.training.steps:
        assert initial is not None, "random weights need steps"
        return _use_initial_weights(panel, spec, networks, data, encoding, season=season, initial=initial)
    digest = fit_digest(panel, spec, initial)
    if validation is not None:
        digest = hashlib.sha256(f"{digest}{validation.digest}".encode()).hexdigest()
    best_callback = BestWeightsCallback(
        checkpoint,
        fit_digest=digest,
        patience=spec.training.patience,
        has_validation=bool(data.validation_batches),
        seed=spec.training.seed,
        is_symbolic=spec.head.is_symbolic,
    )
    resume = checkpoint if checkpoint is not None and checkpoint.exists() else None
    with keep_interrupts(), quiet_lightning():
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=parse_devices(devices),
            strategy="auto" if process is None else SharedBatchStrategy(process),
            max_epochs=data.num_epochs,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            limit_val_batches=len(data.validation_batches),
            logger=list(loggers) or False,
            callbacks=[best_callback, ProgressCallback(progress, label=label), *callbacks],
            plugins=[AtomicCheckpointIO(fit_digest=digest)],
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        check_device_count(trainer, devices, expected=1 if process is None else process.count)
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    module.load_state_dict(best_callback.best_weights)
    network, *other_networks = (member.cpu().eval() for member in module.cpu().networks)
    facts: dict[str, Any] = {NON_NEGATIVE_FACT: decide_non_negative(panel, spec)}
    scaled_range = learn_scaled_range(panel, spec, season=season)
    if scaled_range is not None:
        facts[SCALED_RANGE_FACT] = [scaled_range.low, scaled_range.high]
    model = FittedModel(
        spec,
        panel.freq,
        season,
        panel.cutoff,
        encoding,
        network,
        facts=facts,
        other_networks=tuple(other_networks),
    )
    return FitResult(
        model,
        best_callback.scores,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        resumed_steps=best_callback.resumed_steps,
        best_steps=best_callback.best_step,
        excluded_ids=data.excluded_ids,
        validation_errors=_arrange_validation_errors(data, best_callback.origin_errors, model),
    )


def _fit_share(train_share: Callable[..., FitResult], process: TrainingProcess) -> None:
    """Trains in one of several processes; the first one returns the result."""
    train_share(process=process)


def _arrange_validation_errors(
    data: WindowDataModule, origin_errors: Tensor | None, model: FittedModel
) -> ValidationErrors | None:
    """Arranges the errors of the best epoch; a checkpoint of an earlier version has none, and the model is scored again."""
    if not data.validation_series:
        return None
    training = model.spec.training
    return arrange_origin_errors(
        data.validation_series,
        score_origins(model.networks, data.validation_batches) if origin_errors is None else origin_errors.numpy(),
        horizon=model.spec.horizon,
        windows=training.valid_windows,
        stride=training.valid_stride,
    )


def _use_initial_weights(
    panel: Panel,
    spec: Spec,
    networks: Sequence[Regressor],
    data: WindowDataModule,
    encoding: Encoding,
    *,
    season: int,
    initial: FittedModel,
) -> FitResult:
    """Returns the result of a fit without steps: the initial weights, and their scores on the validation windows."""
    [network] = networks
    facts = {name: initial.facts[name] for name in (SHAPE_RANGE_FACT,) if name in initial.facts}
    facts[NON_NEGATIVE_FACT] = decide_non_negative(panel, spec)
    model = FittedModel(spec, panel.freq, season, panel.cutoff, encoding, network.eval(), facts=facts)
    with torch.inference_mode():
        batches = [(score_batch(network, batch), len(batch.seasonal_error)) for batch in data.validation_batches]
    scores = {
        f"valid/{name}": float(
            np.average([float(getattr(score, name)) for score, _ in batches], weights=[n for _, n in batches])
        )
        for name in (("loss", "one_step", "rollout") if batches else ())
    }
    origin_errors = torch.cat([score.origin_rollout for score, _ in batches]) if batches else None
    return FitResult(
        model,
        add_derived_scores(scores),
        epochs=0,
        steps=0,
        resumed_steps=0,
        best_steps=0,
        excluded_ids=data.excluded_ids,
        validation_errors=_arrange_validation_errors(data, origin_errors, model),
    )


def _member_seeds(spec: Spec) -> list[int]:
    """Returns the weight seed of each member; the first is that of a single network."""
    seed = spec.training.seed
    return [seed, *(derive_epoch_seed(seed, member) for member in range(1, spec.members))]


def refit(
    panel: Panel,
    first_fit: FitResult,
    *,
    initial: FittedModel | None = None,
    checkpoint: Path | None = None,
    callbacks: Sequence[pl.Callback] = (),
    accelerator: str = "auto",
    devices: str = "1",
    progress: Progress = NO_PROGRESS,
) -> FittedModel:
    """Trains again on the whole panel, for the number of steps that was best on the data `fit` held out.

    The model keeps its specification, and the calibration and blend of `first_fit`: no data is held out to find new ones on.
    """
    spec = first_fit.model.spec
    training = spec.training.model_copy(update={"steps": first_fit.best_steps, "valid_windows": 0, "refit": False})
    refitted = fit(
        panel,
        spec.model_copy(update={"training": training}),
        initial=initial,
        checkpoint=checkpoint,
        callbacks=callbacks,
        accelerator=accelerator,
        devices=devices,
        progress=progress,
    )
    first_model = first_fit.model
    return replace(
        refitted.model, spec=spec, calibration=first_model.calibration, blend_weights=first_model.blend_weights
    )


def fit_digest(panel: Panel, spec: Spec, initial: FittedModel | None = None) -> str:
    """Identifies a fit by its data, its specification and its initial weights, which determine the result."""
    inputs = f"{panel.digest}{spec.to_identity_json()}".encode()
    weights = (
        [] if initial is None else [value for member in initial.networks for value in member.state_dict().values()]
    )
    return hashlib.sha256(b"".join([inputs, *(value.numpy().tobytes() for value in weights)])).hexdigest()

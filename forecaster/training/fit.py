"""Fitting: a panel and a specification in, a forecaster out."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from forecaster.data.calendar import default_season
from forecaster.data.encoding import fit_encoding
from forecaster.data.windows import derive_epoch_seed
from forecaster.errors import BadSpec
from forecaster.model.regressor import Regressor, build_network
from forecaster.prediction.predictor import FittedModel
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.allocator import keep_freed_memory
from forecaster.training.checkpoint import AtomicCheckpointIO, BestWeightsCallback
from forecaster.training.datamodule import STEPS_PER_CHUNK, WindowDataModule
from forecaster.training.module import TrainingModule


class FitResult(NamedTuple):
    """What a fit gives: the forecaster, with the best weights seen, and how it came to be."""

    model: FittedModel
    scores: dict[str, float]  # train/loss; valid/loss, one_step, rollout and exposure_gap of the kept epoch
    epochs: int
    steps: int
    resumed_steps: int  # of these, made by an earlier process that was killed
    best_steps: int  # after which the kept weights were there
    excluded_ids: tuple[str, ...]  # series too short to learn from


def fit(
    panel: Panel,
    spec: Spec,
    *,
    initial: FittedModel | None = None,
    checkpoint: Path | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[pl.Callback] = (),
    accelerator: str = "auto",
    progress: bool = False,
    steps_per_chunk: int = STEPS_PER_CHUNK,
) -> FitResult:
    """Trains a forecaster; on CPU the same arguments give bitwise the same weights, interrupted or not.

    The process keeps the memory of its tensors from here on, up to a gigabyte (`keep_freed_memory`).

    Args:
        panel: All that may be known. Its last steps (`Spec.held_out`) choose the best epoch and are not trained on.
        spec: What to make.
        initial: Whose weights to start from, such as the champion's; of the same network, on data of the same columns.
        checkpoint: Where to keep progress; a fit with the same panel and spec goes on from it. The caller removes it.
        loggers: Get `train/loss` and the validation scores of each epoch.
        callbacks: Further Lightning callbacks. What they see as a batch holds those of several optimiser steps.
        accelerator: "auto" takes a GPU where there is one.
        progress: Whether to show a progress bar.
        steps_at_once: Optimiser steps between two looks of Lightning and its callbacks, at the most. It changes no weight.
    Raises:
        HistoryTooShort, NonFiniteLoss, CheckpointMismatch; BadSpec where `initial` is of another network.
    """
    keep_freed_memory()
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
    if initial is not None:
        _load_initial_weights(initial, networks)
    module = TrainingModule(networks, spec)
    windows = WindowDataModule(panel, spec, networks[0], encoding, season=season, steps_per_chunk=steps_per_chunk)
    identity = fit_digest(panel, spec, initial)
    keeper = BestWeightsCallback(
        checkpoint,
        fit_digest=identity,
        patience=spec.training.patience,
        has_validation=bool(windows.validation_batches),
        seed=spec.training.seed,
    )
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=windows.num_epochs,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        limit_val_batches=len(windows.validation_batches),
        logger=list(loggers) or False,
        callbacks=[keeper, *callbacks],
        plugins=[AtomicCheckpointIO(fit_digest=identity)],
        enable_checkpointing=True,
        enable_progress_bar=progress,
        enable_model_summary=False,
    )
    resume = checkpoint if checkpoint is not None and checkpoint.exists() else None
    at_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=windows, ckpt_path=resume, weights_only=True)
    except SystemExit as left:
        if isinstance(left.__context__, KeyboardInterrupt):  # Lightning makes an exit of it, and is deaf to another
            signal.signal(signal.SIGINT, at_interrupt)
            raise left.__context__ from None
        raise
    module.load_state_dict(keeper.best_weights)
    network, *others = (one.cpu().eval() for one in module.cpu().networks)
    forecaster = FittedModel(spec, panel.freq, season, panel.cutoff, encoding, network, other_networks=tuple(others))
    return FitResult(
        forecaster,
        keeper.scores,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        resumed_steps=keeper.resumed_steps,
        best_steps=keeper.best_step,
        excluded_ids=windows.excluded_ids,
    )


def _member_seeds(spec: Spec) -> list[int]:
    """One for the weights of each member; the first is that of a network alone."""
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
    progress: bool = False,
) -> FittedModel:
    """Trains anew on all of a panel, for as long as proved best on what `fit` held out of it.

    The forecaster keeps its specification, and the calibration and blend of `first_fit`: nothing is left to find others on.
    """
    spec = first_fit.model.spec
    steps = spec.training.model_copy(update={"steps": first_fit.best_steps, "valid_windows": 0, "refit": False})
    again = fit(
        panel,
        spec.model_copy(update={"training": steps}),
        initial=initial,
        checkpoint=checkpoint,
        callbacks=callbacks,
        accelerator=accelerator,
        progress=progress,
    )
    before = first_fit.model
    return replace(again.model, spec=spec, calibration=before.calibration, blend_weights=before.blend_weights)


def _load_initial_weights(initial: FittedModel, networks: Sequence[Regressor]) -> None:
    """The weights of as many members; further ones keep their random weights."""
    for network, before in zip(networks, initial.networks, strict=False):
        weights = before.state_dict()
        mine = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        theirs = {name: tuple(value.shape) for name, value in weights.items()}
        if mine != theirs:
            odd = next(name for name in (*mine, *theirs) if mine.get(name) != theirs.get(name))
            raise BadSpec(
                f"Expected a network of {initial.spec.name!r}'s shape to start from; {odd} is {mine.get(odd)} here and "
                f"{theirs.get(odd)} there. Use its specification, or start from random weights.",
                where=odd,
            )
        network.load_state_dict(weights)


def fit_digest(panel: Panel, spec: Spec, initial: FittedModel | None = None) -> str:
    """Identifies a fit: its data, its specification and what it starts from, hence its weights."""
    known = f"{panel.digest()}{spec.model_dump_json()}".encode()
    weights = [] if initial is None else [value for one in initial.networks for value in one.state_dict().values()]
    return hashlib.sha256(b"".join([known, *(value.numpy().tobytes() for value in weights)])).hexdigest()

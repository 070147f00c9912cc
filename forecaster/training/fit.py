"""Fitting: a panel and a specification in, a forecaster out."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from forecaster.data.calendar import usual_season
from forecaster.data.encoding import learn
from forecaster.data.windows import mix
from forecaster.model.regressor import build
from forecaster.predict import Forecaster
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.allocator import keep_memory
from forecaster.training.checkpoint import DurableIO, Keeper
from forecaster.training.datamodule import STEPS_AT_ONCE, Windows
from forecaster.training.module import SequenceRegressor


class Fitted(NamedTuple):
    """What a fit gives: the forecaster, with the best weights seen, and how it came to be."""

    forecaster: Forecaster
    scores: dict[str, float]  # train/loss, valid/loss, valid/one_step, valid/rollout of the kept epoch
    epochs: int
    steps: int
    steps_before: int  # of these, made by an earlier process that was killed
    left_out: tuple[str, ...]  # series too short to learn from


def fit(
    panel: Panel,
    spec: Spec,
    *,
    checkpoint: Path | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[pl.Callback] = (),
    accelerator: str = "auto",
    progress: bool = False,
    steps_at_once: int = STEPS_AT_ONCE,
) -> Fitted:
    """Trains a forecaster; on CPU the same arguments give bitwise the same weights, interrupted or not.

    The process keeps the memory of its tensors from here on, up to a gigabyte (`keep_memory`).

    Args:
        panel: All that may be known. Its last `valid_windows * horizon` steps choose the best epoch and are not trained on.
        spec: What to make.
        checkpoint: Where to keep progress; a fit with the same panel and spec goes on from it. The caller removes it.
        loggers: Get `train/loss` and the validation scores of each epoch.
        callbacks: Further Lightning callbacks. What they see as a batch holds those of several optimiser steps.
        accelerator: "auto" takes a GPU where there is one.
        progress: Whether to show a progress bar.
        steps_at_once: Optimiser steps between two looks of Lightning and its callbacks, at the most. It changes no weight.
    Raises:
        HistoryTooShort, NonFiniteLoss, CheckpointMismatch.
    """
    keep_memory()
    season = spec.season or usual_season(panel.freq)
    encoding = learn(panel, calendar=spec.calendar, covariates=spec.covariates, static=spec.static)
    networks = [
        build(spec, seed=seed, season=season, covariates=encoding.width, groups=encoding.sizes) for seed in _seeds(spec)
    ]
    module = SequenceRegressor(networks, spec)
    windows = Windows(panel, spec, networks[0], encoding, season=season, steps_at_once=steps_at_once)
    identity = fit_digest(panel, spec)
    keeper = Keeper(
        checkpoint,
        fit_digest=identity,
        patience=spec.training.patience,
        monitored=bool(windows.trials),
        seed=spec.training.seed,
    )
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=windows.epochs,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        limit_val_batches=len(windows.trials),
        logger=list(loggers) or False,
        callbacks=[keeper, *callbacks],
        plugins=[DurableIO(fit_digest=identity)],
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
    forecaster = Forecaster(spec, panel.freq, season, panel.cutoff, encoding, network, others=tuple(others))
    return Fitted(
        forecaster,
        keeper.scores,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        steps_before=keeper.steps_before,
        left_out=windows.left_out,
    )


def _seeds(spec: Spec) -> list[int]:
    """One for the weights of each member; the first is that of a network alone."""
    seed = spec.training.seed
    return [seed, *(mix(seed, member) for member in range(1, spec.members))]


def fit_digest(panel: Panel, spec: Spec) -> str:
    """Identifies a fit: its data and its specification, hence its weights."""
    return hashlib.sha256(f"{panel.digest()}{spec.model_dump_json()}".encode()).hexdigest()

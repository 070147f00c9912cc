"""Checkpoints that survive a kill; a resumed fit ends with exactly the weights of an uninterrupted one.

One file holds the whole state: weights, optimiser, loop counters, the best weights so far and the epochs since then. It is
written at the end of an epoch to a temporary file, synced, and renamed, while the next epoch begins. Nothing is saved within an
epoch: every epoch draws its windows and its dropout from (seed, epoch) alone, so resuming at an epoch's end repeats nothing.
"""

from __future__ import annotations

import io
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch

from forecaster.data.windows import derive_epoch_seed
from forecaster.errors import CheckpointMismatch, NonFiniteLoss
from forecaster.metrics import perplexity
from forecaster.storage import atomic
from forecaster.storage.failpoints import fail_point
from forecaster.training.lightning import Checkpoint, TorchCheckpointIO, pl
from forecaster.training.module import TrainingModule

CHECKPOINT_STATE_KEY = "Keeper"  # part of the checkpoint format, so that checkpoints of earlier versions can be resumed


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to the checkpoint's own folder and syncs; Lightning's implementation goes through $TMPDIR, and never syncs.

    Waiting for the disk takes as long as several steps, so a thread does it. At most one checkpoint is being written at a
    time, and none after the fit has ended, whether it succeeded or failed.

    Loads only checkpoints of one fit: Lightning would load the weights of another before any callback could reject them.
    """

    def __init__(self, *, fit_digest: str) -> None:
        self.fit_digest = fit_digest
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending_write: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes the checkpoint atomically. Raises the error of the previous write, if it failed."""
        assert storage_options is None
        content = io.BytesIO()
        torch.save(checkpoint, content)
        self._wait_for_write()
        fail_point("checkpoint.before_write")
        self._pending_write = self._writer.submit(
            atomic.write_file, Path(path), lambda file: file.write(content.getbuffer())
        )

    def teardown(self) -> None:
        """Waits until everything is written; Lightning calls it at the end of a fit."""
        self._writer.shutdown()
        self._wait_for_write()

    def _wait_for_write(self) -> None:
        if self._pending_write is not None:
            self._pending_write.result()
            fail_point("checkpoint.written")

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Loads tensors and plain values only, whatever the arguments.

        Raises CheckpointMismatch unless the checkpoint is of the same fit.
        """
        try:
            checkpoint = cast("dict[str, Any]", torch.load(path, map_location="cpu", weights_only=True))
            digest = checkpoint["callbacks"][CHECKPOINT_STATE_KEY]["fit"]
        except Exception as error:  # torch raises many error types
            raise CheckpointMismatch(
                f"Expected a checkpoint of this fit; {path} cannot be read ({type(error).__name__}). Remove it to train anew.",
                where=str(path),
            ) from error
        if digest != self.fit_digest:
            raise CheckpointMismatch(
                f"Expected a checkpoint of this fit; {path} belongs to different data or a different specification. "
                "Remove it, or use another root.",
                where=str(path),
            )
        return checkpoint


class BestWeightsCallback(Checkpoint):
    """Logs the scores of each epoch, keeps the best weights, stops early, and saves the whole state.

    Training stops with NonFiniteLoss on a score that is not finite, and early when no epoch improved on the best for `patience`
    epochs. Lightning's EarlyStopping does not remember across a resume that it had stopped, and lets a NaN be saved.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        fit_digest: str,
        patience: int,
        has_validation: bool,
        seed: int,
        is_symbolic: bool = False,
    ) -> None:
        self.is_symbolic = is_symbolic
        self.path, self.fit_digest = path, fit_digest
        self.patience, self.has_validation, self.seed = patience, has_validation, seed
        self.best_score = float("inf")
        self.best_epoch = -1
        self.best_step = 0
        self.best_weights: dict[str, torch.Tensor] = {}
        self.scores: dict[str, float] = {}
        self.origin_errors: torch.Tensor | None = None  # None after a resume from a checkpoint without them
        self.steps = self.resumed_steps = 0

    @property
    def state_key(self) -> str:
        """The key of the callback's state in a checkpoint."""
        return CHECKPOINT_STATE_KEY

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops a resumed fit whose patience was already exhausted."""
        trainer.should_stop = self._should_stop(trainer.current_epoch)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seeds dropout by the epoch alone."""
        torch.manual_seed(derive_epoch_seed(self.seed, trainer.current_epoch))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs, compares and saves; it runs after validation and all other callbacks."""
        scores = add_derived_scores(
            {name: float(value) for name, value in trainer.callback_metrics.items()}, is_symbolic=self.is_symbolic
        )
        for logger in trainer.loggers:  # not through Lightning, which would count batches of several steps
            logger.log_metrics(scores, trainer.global_step)
        self._check_finite(scores, trainer)
        self.steps = trainer.global_step
        monitored = "valid/cross_entropy" if self.is_symbolic else "valid/rollout"
        score = scores[monitored] if self.has_validation else -float(trainer.current_epoch + 1)
        if score < self.best_score:
            self.best_score, self.best_epoch, self.scores = score, trainer.current_epoch, scores
            module = cast("TrainingModule", pl_module)
            self.best_weights, self.origin_errors = module.averaged_weights(), module.copy_origin_errors()
            self.best_step = trainer.global_step
        if self._should_stop(trainer.current_epoch + 1):
            trainer.should_stop = True
        if self.path is not None:
            trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that a resume needs."""
        return {
            "fit": self.fit_digest,
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "best_step": self.best_step,
            "steps": self.steps,
            "best_weights": self.best_weights,
            "scores": self.scores,
            "origin_errors": self.origin_errors,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state from a checkpoint of the same fit."""
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]
        self.best_step = state_dict["best_step"]
        self.steps = self.resumed_steps = state_dict["steps"]  # set here, as a fit that had ended does not start again
        self.best_weights, self.scores = state_dict["best_weights"], state_dict["scores"]
        self.origin_errors = state_dict.get("origin_errors")

    def _should_stop(self, epochs_done: int) -> bool:
        return bool(self.patience) and self.has_validation and epochs_done - 1 - self.best_epoch >= self.patience

    def _check_finite(self, scores: dict[str, float], trainer: pl.Trainer) -> None:
        invalid = next((name for name, value in scores.items() if value != value or abs(value) == float("inf")), None)
        if invalid is not None:
            raise NonFiniteLoss(
                f"Expected a finite loss; {invalid} is {scores[invalid]} at the end of epoch {trainer.current_epoch} "
                f"(step {trainer.global_step}). This epoch was discarded. Lower the learning rate or the gradient "
                "clip, or check the data for extreme values.",
                where=invalid,
            )


def add_derived_scores(scores: dict[str, float], *, is_symbolic: bool = False) -> dict[str, float]:
    """Adds the scores that follow from others.

    These are the free-running over the teacher-forced error, as `compute_exposure_gap` defines it, unless the teacher-forced
    error is missing or zero; and, of a network of symbols, cross-entropy, perplexity and accuracy of the next symbol, and the
    accuracy of the rollout.
    """
    derived: dict[str, float] = {}
    if scores.get("valid/one_step"):
        derived["valid/exposure_gap"] = scores["valid/rollout"] / scores["valid/one_step"]
    if is_symbolic and "valid/loss" in scores:
        derived["valid/cross_entropy"] = scores["valid/loss"]
        derived["valid/perplexity"] = float(perplexity(scores["valid/loss"]))
        derived["valid/accuracy"] = 1.0 - scores["valid/one_step"]
        derived["valid/rollout_accuracy"] = 1.0 - scores["valid/rollout"]
    return scores | derived

"""Reports the progress of a fit: optimiser steps, epochs and the validation error."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from forecaster.progress import Progress
from forecaster.training.lightning import pl


class ProgressCallback(pl.Callback):
    """Updates the current phase after every chunk of optimiser steps and after every epoch.

    Args:
        progress: Receives the completed optimiser steps.
        label: The end of the text that describes them, such as the description of a variant.
    """

    def __init__(self, progress: Progress, *, label: str = "") -> None:
        self._progress, self._label = progress, label

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows where a resumed fit continues."""
        self._update(trainer, trainer.current_epoch + 1)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Shows the steps of an epoch."""
        self._update(trainer, trainer.current_epoch + 1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows the error of an epoch, which was validated before."""
        self._update(trainer, trainer.current_epoch + 1)

    def _update(self, trainer: pl.Trainer, epoch: int) -> None:
        scores = trainer.callback_metrics
        score = "" if "valid/rollout" not in scores else f"MASE {float(scores['valid/rollout']):.4g}"
        parts = (f"epoch {min(epoch, trainer.max_epochs or epoch)} of {trainer.max_epochs}", score, self._label)
        self._progress.update(trainer.global_step, ", ".join(part for part in parts if part))


class PretrainingProgressCallback(pl.Callback):
    """Updates the current phase after every optimiser step: the loss of the last epoch, and the steps per second.

    Args:
        progress: Receives the completed optimiser steps.
        clock: Returns the present in seconds.
    """

    def __init__(self, progress: Progress, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress, self._clock = progress, clock
        self._started, self._first_step, self._loss = clock(), 0, ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows where a resumed pretraining continues; the rate counts from there."""
        self._started, self._first_step = self._clock(), trainer.global_step
        self._progress.update(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Shows a step."""
        rate = (trainer.global_step - self._first_step) / max(1e-9, self._clock() - self._started)
        self._progress.update(trainer.global_step, f"{self._loss}{rate:.1f} steps/s")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps the loss of an epoch for the display."""
        self._loss = f"loss {float(trainer.callback_metrics['train/loss']):.4g}, "

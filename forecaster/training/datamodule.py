"""What Lightning trains and validates on: one tape on the device, cut by index. No samples in Python, no workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytorch_lightning as pl
import torch

from forecaster.data.split import hold_out, origins
from forecaster.data.windows import Anchors, Example, Feed, Tape, stack
from forecaster.errors import HistoryTooShort
from forecaster.metrics import nanmean, seasonal_error
from forecaster.series import Panel, Series
from forecaster.spec import Spec
from forecaster.training.module import Trial

ROWS_AT_ONCE = 4096


class Windows(pl.LightningDataModule):
    """Training windows before the cut, validation origins after it.

    Raises HistoryTooShort, with the longest series, where a specification asks for more steps than there are.
    """

    def __init__(self, panel: Panel, spec: Spec, *, season: int) -> None:
        super().__init__()
        steps = spec.training.valid_windows * spec.horizon
        split = hold_out(panel, steps, keep=spec.least + 1)
        self.spec = spec
        self.left_out = split.left_out
        self.trials = _trials(split.whole.series, spec, season=season) if steps else []
        self._anchors = Anchors.of(Tape.record(split.known.series, lead=spec.context), least=spec.least)
        if not torch.isfinite(self._anchors.tape.values).any():
            raise HistoryTooShort("No series has an observed value to train on. Send a history with observations.")

    @property
    def epochs(self) -> int:
        """How many epochs make the steps asked for."""
        return -(-self.spec.training.steps // self.spec.training.epoch_steps)

    def train_dataloader(self) -> Feed:
        """The feed of the trainer's current epoch; asked for anew at each."""
        assert self.trainer is not None
        device, training, epoch = self.trainer.strategy.root_device, self.spec.training, self.trainer.current_epoch
        steps = min(training.steps - epoch * training.epoch_steps, training.epoch_steps)
        return Feed(self._anchors.to(device), self.spec.context, training.batch, max(1, steps), training.seed, epoch)

    def val_dataloader(self) -> list[Trial]:
        """The validation origins, in few large batches."""
        return self.trials


def _trials(series: Sequence[Series], spec: Spec, *, season: int) -> list[Trial]:
    """Every origin of every series as rows of a few batches."""
    rows = list(_origins(series, spec, season=season))
    return [_batch(rows[first : first + ROWS_AT_ONCE], spec) for first in range(0, len(rows), ROWS_AT_ONCE)]


def _origins(series: Sequence[Series], spec: Spec, *, season: int) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """(history, future, seasonal error) of each origin."""
    windows, horizon = spec.training.valid_windows, spec.horizon
    for one in series:
        scale = comparable_error(one.y[: -windows * horizon], season=season)
        for left in origins(windows=windows, horizon=horizon):
            cut = len(one) - left
            yield one.y[:cut], one.y[cut : cut + horizon], scale


def _batch(rows: Sequence[tuple[np.ndarray, np.ndarray, float]], spec: Spec) -> Trial:
    histories, futures, scales = zip(*rows, strict=True)
    example = Example(stack(histories, context=spec.context), torch.from_numpy(np.stack(futures)))
    return Trial(example, torch.tensor(scales, dtype=torch.float64))


def comparable_error(history: np.ndarray, *, season: int) -> float:
    """The seasonal naive's error; where there is none (short or constant), the mean size of the values, or one."""
    for scale in (seasonal_error(history, season=season), float(nanmean(np.abs(history)))):
        if np.isfinite(scale) and scale > 0:
            return scale
    return 1.0

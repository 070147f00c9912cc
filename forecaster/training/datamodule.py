"""What Lightning trains and validates on: one tape on the device, cut by index. No samples in Python, no workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as pl
import torch

from forecaster.data.batching import channels_of
from forecaster.data.calendar import check_calendar
from forecaster.data.encoding import Encoding
from forecaster.data.split import Split, hold_out
from forecaster.data.windows import Anchors, Feed, Tape
from forecaster.errors import BadSpec, HistoryTooShort
from forecaster.evaluation.validation import Trial, comparable_error, trials
from forecaster.frequency import tell
from forecaster.model.regressor import Regressor
from forecaster.series import Panel, Series
from forecaster.shapes import Float64
from forecaster.spec import Spec

STEPS_AT_ONCE = 25  # a progress bar moves often enough, and what Lightning does between them is a small part
VALUES_AT_ONCE = 1 << 20  # bounds the memory that windows of many steps take
MOST_ORIGINS = (
    8192  # that an epoch is judged by: of more series some are chosen, or judging would take longer than training
)


class Windows(pl.LightningDataModule):
    """Training windows before the cut, validation origins after it: MOST_ORIGINS of them at the most, of series evenly chosen.

    Raises HistoryTooShort.
    """

    def __init__(
        self,
        panel: Panel,
        spec: Spec,
        network: Regressor,
        encoding: Encoding,
        *,
        season: int,
        steps_at_once: int = STEPS_AT_ONCE,
    ) -> None:
        super().__init__()
        windows, horizon = spec.training.valid_windows, spec.horizon
        split = cut(panel, spec)
        self.spec, self.context = spec, network.lead + spec.context
        self.future = network.block * max(1, spec.training.unroll)
        self.left_out = split.left_out
        self.trials: Sequence[Trial] = []
        if windows:
            judged = _evenly(split.whole.series, most=max(1, MOST_ORIGINS // windows))
            self.trials = trials(
                judged,
                context=network.shown(max(map(len, judged))),
                horizon=horizon,
                windows=windows,
                stride=spec.training.valid_stride,
                season=season,
                encoding=encoding,
                channels=spec.channels,
            )
        tape = Tape.record(
            split.known.series, context=self.context, horizon=self.future, encoding=encoding, channels=spec.channels
        )
        if spec.training.weighting == "seasonal_error":
            tape = tape._replace(errors=_errors(split.known.series, spec.channels, season=season))
        self._anchors = Anchors.of(tape, least=spec.least)
        values = (
            spec.members * spec.training.batch * (self.context + self.future) * (2 + len(spec.lags) + encoding.width)
        )
        self._at_once = max(1, min(steps_at_once, VALUES_AT_ONCE // values))

    @property
    def epochs(self) -> int:
        """How many epochs make the steps asked for."""
        return -(-self.spec.training.steps // self.spec.training.epoch_steps)

    def train_dataloader(self) -> Feed:
        """The feed of the trainer's current epoch; asked for anew at each."""
        assert self.trainer is not None
        training, epoch = self.spec.training, self.trainer.current_epoch
        self._anchors = self._anchors.to(self.trainer.strategy.root_device)
        steps = min(training.steps - epoch * training.epoch_steps, training.epoch_steps)
        return Feed(
            self._anchors,
            self.context,
            self.future,
            training.batch * self.spec.members,
            max(1, steps),
            training.seed,
            epoch,
            at_once=self._at_once,
            recent=training.recent,
        )

    def val_dataloader(self) -> Batches:
        """The validation origins, in few large batches."""
        return Batches(self.trials)


def cut(panel: Panel, spec: Spec) -> Split:
    """What is trained on, and what is held out to validate on.

    Raises HistoryTooShort where there are fewer steps than the specification asks for, or none was observed; BadSpec where
    calendar features are asked of numbered steps, or a channel's values are none that the head can mean; CovariateUnknown
    where a channel is not there.
    """
    check_calendar(spec.calendar, freq=panel.freq)
    split = hold_out(panel, spec.held_out, keep=spec.least + 1)
    if not any(np.isfinite(one.y).any() for one in split.known.series):
        raise HistoryTooShort(
            "Expected an observed value to train on; no series has one before what is held out. "
            "Send a history with observations."
        )
    for one in split.whole.series:
        _check_channels(one, spec)
    return split


def _check_channels(one: Series, spec: Spec) -> None:
    channels = channels_of(one, spec.channels)
    odd = ~np.isnan(channels) & ((channels < 0) | (channels != np.floor(channels)))
    if spec.head.counts and odd.any():
        step, number = np.argwhere(odd)[0]
        raise BadSpec(
            f"Expected whole numbers of 0 or more in the channel {spec.channels[number]!r}, which a {spec.head.kind} head is to "
            f"foretell; series {one.id!r} has {channels[step, number]:g} at {tell(one.stamp(int(step)))}. Choose another "
            "head, or leave the channel out.",
            where=one.id,
        )


def _errors(
    series: Sequence[Series], channels: Sequence[str], *, season: int
) -> Float64[torch.Tensor, "series target"]:
    targets = [[one.y, *channels_of(one, channels).T] for one in series]
    return torch.tensor([[comparable_error(y, season=season) for y in each] for each in targets], dtype=torch.float64)


def _evenly(series: Sequence[Series], *, most: int) -> Sequence[Series]:
    if len(series) <= most:
        return series
    return [series[place * len(series) // most] for place in range(most)]


@dataclass(frozen=True)
class Batches:
    """A data loader of ready batches; Lightning takes a bare list for a list of data loaders."""

    trials: Sequence[Trial]

    def __len__(self) -> int:
        return len(self.trials)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.trials)

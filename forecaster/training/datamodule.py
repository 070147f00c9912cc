"""What Lightning trains and validates on: one tape on the device, cut by index. No samples in Python, no workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as pl
import torch

from forecaster.data.batching import stack_channels
from forecaster.data.calendar import validate_calendar_features
from forecaster.data.encoding import Encoding
from forecaster.data.split import PanelSplit, hold_out
from forecaster.data.windows import CutoffIndex, EpochBatches, PanelTensor
from forecaster.errors import BadSpec, HistoryTooShort
from forecaster.evaluation.validation import ValidationBatch, build_validation_batches, compute_error_scale
from forecaster.frequency import format_timestamp
from forecaster.model.regressor import Regressor
from forecaster.series import Panel, Series
from forecaster.shapes import Float64
from forecaster.spec import Spec

STEPS_PER_CHUNK = 25  # a progress bar moves often enough, and what Lightning does between them is a small part
MAX_VALUES_PER_CHUNK = 1 << 20  # bounds the memory that windows of many steps take
MAX_VALIDATION_ORIGINS = (
    8192  # that an epoch is judged by: of more series some are chosen, or judging would take longer than training
)


class WindowDataModule(pl.LightningDataModule):
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
        steps_per_chunk: int = STEPS_PER_CHUNK,
    ) -> None:
        super().__init__()
        windows, horizon = spec.training.valid_windows, spec.horizon
        split = split_panel(panel, spec)
        self.spec, self.context = spec, network.pre_context + spec.context
        self.future_steps = network.block * max(1, spec.training.unroll)
        self.excluded_ids = split.excluded_ids
        self.validation_batches: Sequence[ValidationBatch] = []
        if windows:
            judged = _subsample_evenly(split.full.series, limit=max(1, MAX_VALIDATION_ORIGINS // windows))
            self.validation_batches = build_validation_batches(
                judged,
                context=network.window_length(max(map(len, judged))),
                horizon=horizon,
                windows=windows,
                stride=spec.training.valid_stride,
                season=season,
                encoding=encoding,
                channels=spec.channels,
            )
        tape = PanelTensor.from_series(
            split.history.series,
            context=self.context,
            horizon=self.future_steps,
            encoding=encoding,
            channels=spec.channels,
        )
        if spec.training.weighting == "seasonal_error":
            tape = tape._replace(error_scales=_seasonal_errors(split.history.series, spec.channels, season=season))
        self._cutoffs = CutoffIndex.from_panel_tensor(tape, min_history=spec.min_steps)
        values = (
            spec.members
            * spec.training.batch
            * (self.context + self.future_steps)
            * (2 + len(spec.lags) + encoding.num_covariates)
        )
        self._steps_per_chunk = max(1, min(steps_per_chunk, MAX_VALUES_PER_CHUNK // values))

    @property
    def num_epochs(self) -> int:
        """How many epochs make the steps asked for."""
        return -(-self.spec.training.steps // self.spec.training.epoch_steps)

    def train_dataloader(self) -> EpochBatches:
        """The feed of the trainer's current epoch; asked for anew at each."""
        assert self.trainer is not None
        training, epoch = self.spec.training, self.trainer.current_epoch
        self._cutoffs = self._cutoffs.to(self.trainer.strategy.root_device)
        steps = min(training.steps - epoch * training.epoch_steps, training.epoch_steps)
        return EpochBatches(
            self._cutoffs,
            self.context,
            self.future_steps,
            training.batch * self.spec.members,
            max(1, steps),
            training.seed,
            epoch,
            batches_per_chunk=self._steps_per_chunk,
            recent=training.recent,
        )

    def val_dataloader(self) -> ValidationLoader:
        """The validation origins, in few large batches."""
        return ValidationLoader(self.validation_batches)


def split_panel(panel: Panel, spec: Spec) -> PanelSplit:
    """What is trained on, and what is held out to validate on.

    Raises HistoryTooShort where there are fewer steps than the specification asks for, or none was observed; BadSpec where
    calendar features are asked of numbered steps, or a channel's values are none that the head can mean; CovariateUnknown
    where a channel is not there.
    """
    validate_calendar_features(spec.calendar, freq=panel.freq)
    split = hold_out(panel, spec.validation_steps, min_history=spec.min_steps + 1)
    if not any(np.isfinite(one.y).any() for one in split.history.series):
        raise HistoryTooShort(
            "Expected an observed value to train on; no series has one before what is held out. "
            "Send a history with observations."
        )
    for one in split.full.series:
        _check_channels(one, spec)
    return split


def _check_channels(series: Series, spec: Spec) -> None:
    channels = stack_channels(series, spec.channels)
    odd = ~np.isnan(channels) & ((channels < 0) | (channels != np.floor(channels)))
    if spec.head.is_count and odd.any():
        step, number = np.argwhere(odd)[0]
        raise BadSpec(
            f"Expected whole numbers of 0 or more in the channel {spec.channels[number]!r}, which a {spec.head.kind} head is to "
            f"foretell; series {series.id!r} has {channels[step, number]:g} at {format_timestamp(series.timestamp_at(int(step)))}. Choose another "
            "head, or leave the channel out.",
            where=series.id,
        )


def _seasonal_errors(
    series: Sequence[Series], channels: Sequence[str], *, season: int
) -> Float64[torch.Tensor, "series target"]:
    targets = [[one.y, *stack_channels(one, channels).T] for one in series]
    return torch.tensor(
        [[compute_error_scale(y, season=season) for y in each] for each in targets], dtype=torch.float64
    )


def _subsample_evenly(series: Sequence[Series], *, limit: int) -> Sequence[Series]:
    if len(series) <= limit:
        return series
    return [series[place * len(series) // limit] for place in range(limit)]


@dataclass(frozen=True)
class ValidationLoader:
    """A data loader of ready batches; Lightning takes a bare list for a list of data loaders."""

    batches: Sequence[ValidationBatch]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[ValidationBatch]:
        return iter(self.batches)

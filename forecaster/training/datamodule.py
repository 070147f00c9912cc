"""Lightning's data: one panel tensor on the device, or a panel on disk, sliced by index. No worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from forecaster.data.batching import stack_channels
from forecaster.data.calendar import validate_calendar_features
from forecaster.data.encoding import Encoding
from forecaster.data.on_disk.tape import TapeSeries
from forecaster.data.on_disk.windows import TapeWindows
from forecaster.data.split import PanelSplit, hold_out, sample_evenly
from forecaster.data.windows import CutoffIndex, EpochBatches, PanelTensor
from forecaster.errors import BadSpec, HistoryTooShort, NoData
from forecaster.evaluation.validation import (
    ValidationBatch,
    build_sequence_batches,
    build_validation_batches,
    compute_error_scale,
)
from forecaster.frequency.timestamps import format_timestamp
from forecaster.model.regressor import Regressor
from forecaster.series import Panel, Series
from forecaster.shapes import Float64
from forecaster.spec import Spec
from forecaster.training.lightning import pl

STEPS_PER_CHUNK = 25  # few enough to move a progress bar, enough to make Lightning's overhead between chunks small
MAX_VALUES_PER_CHUNK = 1 << 20  # bounds the memory of long windows
MAX_VALIDATION_ORIGINS = 8192
"""Origins that validate an epoch. More series are subsampled, as validation would otherwise take longer than training."""


class WindowDataModule(pl.LightningDataModule):
    """Training windows before the cutoff, and validation origins after it, or whole sequences of another panel.

    At most MAX_VALIDATION_ORIGINS origins are used, of evenly chosen series. Raises HistoryTooShort.
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
        validation: Panel | None = None,
    ) -> None:
        super().__init__()
        windows, horizon = spec.training.valid_windows, spec.horizon
        split = split_panel(panel, spec)
        self.spec, self.context = spec, network.pre_context + spec.context
        self.future_steps = network.block * max(1, spec.training.unroll)
        self.excluded_ids = split.excluded_ids
        self.validation_batches: Sequence[ValidationBatch] = []
        self.validation_series: Sequence[Series] = []
        if windows:
            self.validation_series = validation_series = sample_evenly(
                split.full.series, limit=max(1, MAX_VALIDATION_ORIGINS // windows)
            )
            self.validation_batches = build_validation_batches(
                validation_series,
                context=network.window_length(max(map(len, validation_series))),
                horizon=horizon,
                windows=windows,
                stride=spec.training.valid_stride,
                season=season,
                encoding=encoding,
                channels=spec.channels,
                num_symbols=network.num_symbols,
            )
        if validation is not None:
            self.validation_batches = build_sequence_batches(
                sample_evenly(validation.series, limit=MAX_VALIDATION_ORIGINS),
                context=network.pre_context + network.segment,
                num_symbols=network.num_symbols,
                encoding=encoding,
            )
        if spec.head.is_symbolic:
            _check_known_targets(self.validation_batches)
        self._cutoffs = CutoffIndex.from_source(
            _build_source(
                split.history.series,
                spec,
                encoding,
                context=self.context,
                future_steps=self.future_steps,
                season=season,
            ),
            min_history=spec.min_steps,
        )
        values = (
            spec.members
            * spec.training.batch
            * (self.context + self.future_steps)
            * (2 + (1 + len(spec.lags)) * max(1, len(spec.head.vocabulary)) + encoding.num_covariates)
        )
        self._steps_per_chunk = max(1, min(steps_per_chunk, MAX_VALUES_PER_CHUNK // values))

    @property
    def num_epochs(self) -> int:
        """The epochs that make the configured number of steps."""
        return -(-self.spec.training.steps // self.spec.training.epoch_steps)

    def train_dataloader(self) -> EpochBatches:
        """Returns the batches of the trainer's current epoch; Lightning calls it at each epoch."""
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
            share=self.trainer.global_rank,
            num_shares=self.trainer.world_size,
        )

    def val_dataloader(self) -> ValidationLoader:
        """Returns the validation origins, in a few large batches."""
        return ValidationLoader(self.validation_batches)


def _build_source(
    series: Sequence[Series], spec: Spec, encoding: Encoding, *, context: int, future_steps: int, season: int
) -> PanelTensor | TapeWindows:
    """Returns the source of the training examples: a tensor with all series, or the windows of a panel on disk."""
    source = (
        TapeWindows.from_series(series, encoding=encoding, channels=spec.channels)
        if isinstance(series, TapeSeries)
        else PanelTensor.from_series(
            series, context=context, horizon=future_steps, encoding=encoding, channels=spec.channels
        )
    )
    if spec.training.weighting != "seasonal_error":
        return source
    return source._replace(error_scales=_seasonal_errors(series, spec.channels, season=season))


def split_panel(panel: Panel, spec: Spec) -> PanelSplit:
    """Splits a panel into the part to train on and the part held out for validation.

    Raises HistoryTooShort where there are fewer steps than the specification needs, or none was observed; BadSpec where
    calendar features are used with integer steps, or a channel's values do not suit the head; CovariateUnknown where a channel
    is missing.
    """
    validate_calendar_features(spec.calendar, freq=panel.freq)
    split = hold_out(panel, spec.validation_steps, min_history=spec.min_steps + 1)
    if not any(np.isfinite(series.y).any() for series in split.history.series):
        raise HistoryTooShort(
            "Expected an observed value to train on; no series has one before the steps held out for validation. "
            "Provide a history with observations."
        )
    for series in split.full.series if spec.channels else ():
        _check_channels(series, spec)
    return split


def _check_channels(series: Series, spec: Spec) -> None:
    channels = stack_channels(series, spec.channels)
    invalid = ~np.isnan(channels) & ((channels < 0) | (channels != np.floor(channels)))
    if spec.head.is_count and invalid.any():
        step, index = np.argwhere(invalid)[0]
        raise BadSpec(
            f"Expected whole numbers of 0 or more in the channel {spec.channels[index]!r}, which a {spec.head.kind} head "
            f"predicts; series {series.id!r} has {channels[step, index]:g} at "
            f"{format_timestamp(series.timestamp_at(int(step)))}. Use another head, or leave the channel out.",
            where=series.id,
        )


def _check_known_targets(batches: Sequence[ValidationBatch]) -> None:
    """Raises NoData if there are validation batches, and none has a symbol of the vocabulary."""
    if batches and not any(bool((batch.example.future > 0).any()) for batch in batches):
        raise NoData(
            "Expected a known symbol among those held out for validation; none of them occurs in the training data. Hold out "
            "more (`training.valid_windows`, `horizon`), whole sequences, or nothing (`training: {valid_windows: 0}`).",
            where="training.valid_windows",
        )


def _seasonal_errors(
    series: Sequence[Series], channels: Sequence[str], *, season: int
) -> Float64[torch.Tensor, "series target"]:
    scales = torch.empty((len(series), 1 + len(channels)), dtype=torch.float64)
    for row, item in enumerate(series):
        for target, y in enumerate([item.y, *stack_channels(item, channels).T]):
            scales[row, target] = compute_error_scale(y, season=season)
    return scales


@dataclass(frozen=True)
class ValidationLoader:
    """A data loader of ready batches; Lightning takes a bare list for a list of data loaders."""

    batches: Sequence[ValidationBatch]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[ValidationBatch]:
        return iter(self.batches)

"""Windows (the input histories of a network) and training examples, gathered by index from one tensor with the whole panel.

A network predicts y and all channels. Where targets are stacked, each row of a window becomes one row per target, y first; the
axis of these rows is named `target_row`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from forecaster.data.batching import pad_histories, stack_channels
from forecaster.data.encoding import Encoding
from forecaster.series import Series
from forecaster.shapes import Float, Float64, Int


class Window(NamedTuple):
    """The observed history, one row per series. A window has no field for the future.

    Attributes:
        values: In units of the data, latest last. NaN marks a step that was not observed. The steps before a row's first
            observation are padding, which never changes a recurrent state.
        covariates: The encoded covariates of the same steps; None if the network reads none.
        static: Category indices of each row; None if the network reads none.
        channels: The channels of the same steps, in their units, with NaN as in `values`. The first observation of a row is
            that of any target.
    """

    values: Float64[Tensor, "row step"]
    covariates: Float[Tensor, "row step covariate"] | None = None
    static: Int[Tensor, "row static"] | None = None
    channels: Float64[Tensor, "row step channel"] | None = None

    @property
    def targets(self) -> Float64[Tensor, "target_row step"]:
        """The values and the channels, stacked."""
        return stack_targets(self.values, self.channels)

    def slice_steps(self, steps: slice) -> Window:
        """Returns the window with a slice of its steps."""
        covariates, channels = (
            None if field is None else field[:, steps] for field in (self.covariates, self.channels)
        )
        return Window(self.values[:, steps], covariates, self.static, channels)

    def to(self, device: str | torch.device) -> Window:
        """Returns the window on a device."""
        return Window(*(None if field is None else field.to(device) for field in self))  # type: ignore[arg-type]


class Example(NamedTuple):
    """A window with the actuals that follow it.

    Attributes:
        window: The history.
        future: The actuals of y and of the channels over the horizon.
        future_covariates: The covariates of the horizon.
        error_scale: The error of the seasonal naive on the whole history of each target, where the loss is scaled by it.
    """

    window: Window
    future: Float64[Tensor, "target_row horizon"]
    future_covariates: Float[Tensor, "row horizon covariate"] | None = None
    error_scale: Float64[Tensor, "target_row"] | None = None


def stack_targets(
    values: Float64[Tensor, "row step"], channels: Float64[Tensor, "row step channel"] | None
) -> Float64[Tensor, "target_row step"]:
    """Stacks y and the channels of each row as separate rows."""
    if channels is None:
        return values
    return torch.cat([values[:, None], channels.transpose(1, 2)], dim=1).flatten(0, 1)


def unstack_targets(
    stacked: Float64[Tensor, "target_row step"], *, num_targets: int
) -> tuple[Float64[Tensor, "row step"], Float64[Tensor, "row step channel"] | None]:
    """Inverts `stack_targets`."""
    if num_targets == 1:
        return stacked, None
    targets = stacked.reshape(-1, num_targets, stacked.shape[1])
    return targets[:, 0], targets[:, 1:].transpose(1, 2)


def build_window(
    histories: Sequence[Float64[np.ndarray, "_"]],
    *,
    context: int,
    covariates: Sequence[Float64[np.ndarray, "_ covariate"]] = (),
    static: Sequence[Int[np.ndarray, "static"]] = (),
    channels: Sequence[Float64[np.ndarray, "_ channel"]] = (),
) -> Window:
    """Builds a window of the last `context` steps of every history and its columns, padded on the left."""
    return Window(
        torch.from_numpy(pad_histories(histories, context=context, fill_value=np.nan)),
        torch.from_numpy(pad_histories(covariates, context=context, fill_value=0.0)).float()
        if len(covariates)
        else None,
        torch.from_numpy(np.stack(static)) if len(static) else None,
        torch.from_numpy(pad_histories(channels, context=context, fill_value=np.nan)) if len(channels) else None,
    )


@runtime_checkable
class ExampleSource(Protocol):
    """The values of all series, of which examples are gathered: a `PanelTensor`, or the windows of a panel on disk."""

    @property
    def starts(self) -> Int[Tensor, "series"]:
        """The position of each series' first value."""

    @property
    def lengths(self) -> Int[Tensor, "series"]:
        """The number of values of each series."""

    @property
    def device(self) -> torch.device:
        """The device of the examples."""

    def to(self, device: str | torch.device, /) -> Self:
        """Returns the source for a training on a device."""

    def extract_examples(
        self,
        positions: Int[Tensor, "row"],
        *,
        context: int,
        horizon: int,
        series_indices: Int[Tensor, "row"],
    ) -> Example:
        """Gathers the examples of series whose first future value is at `positions`."""


class PanelTensor(NamedTuple):
    """All series concatenated in one tensor, with gaps of NaN between them, so that no example overlaps a neighbouring series.

    Attributes:
        values: The values and the gaps.
        starts: The position of each series' first value.
        lengths: The number of values of each series.
        covariates: The encoded covariates of the same positions; None if there are none.
        static: The category indices of each series; None if there are none.
        channels: The channels of the same positions, with NaN in the gaps; None if there are none.
        error_scales: The error of the seasonal naive, of y and of each channel; None if the loss is not scaled by it.
    """

    values: Float64[Tensor, "position"]
    starts: Int[Tensor, "series"]
    lengths: Int[Tensor, "series"]
    covariates: Float[Tensor, "position covariate"] | None = None
    static: Int[Tensor, "series static"] | None = None
    channels: Float64[Tensor, "position channel"] | None = None
    error_scales: Float64[Tensor, "series target"] | None = None

    @classmethod
    def from_series(
        cls,
        series: Sequence[Series],
        *,
        context: int,
        horizon: int,
        encoding: Encoding | None = None,
        channels: Sequence[str] = (),
        future_steps: int = 0,
    ) -> PanelTensor:
        """Concatenates the series for examples with up to `context` steps before their cutoff and `horizon` steps after it.

        Covariates are also stored for `future_steps` steps after the end of each series. Raises CovariateUnknown if a series
        lacks a channel or covariate.
        """
        gap, lengths = max(context, horizon) + future_steps, np.array([len(item) for item in series], dtype=np.int64)
        starts = np.cumsum(lengths + gap) - lengths
        values = np.full(int((lengths + gap).sum()) + horizon, np.nan)
        for item, start in zip(series, starts, strict=True):
            values[start : start + len(item)] = item.y
        covariates = static = channel_values = None
        if encoding is not None and encoding.num_covariates:
            columns = np.zeros((len(values), encoding.num_covariates), dtype=np.float32)
            for item, start in zip(series, starts, strict=True):
                columns[start : start + len(item) + future_steps] = encoding.encode_covariates(
                    item, future_steps=future_steps
                )
            covariates = torch.from_numpy(columns)
        if encoding is not None and encoding.static:
            static = torch.from_numpy(np.stack([encoding.encode_static(item) for item in series]))
        if channels:
            channel_columns = np.full((len(values), len(channels)), np.nan)
            for item, start in zip(series, starts, strict=True):
                channel_columns[start : start + len(item)] = stack_channels(item, channels)
            channel_values = torch.from_numpy(channel_columns)
        return cls(
            values=torch.from_numpy(values),
            starts=torch.from_numpy(starts),
            lengths=torch.from_numpy(lengths),
            covariates=covariates,
            static=static,
            channels=channel_values,
        )

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.values.device

    def to(self, device: str | torch.device, /) -> PanelTensor:
        """Returns the panel tensor on a device."""
        return PanelTensor(*(None if field is None else field.to(device) for field in self))  # type: ignore[arg-type]

    def extract_examples(
        self,
        positions: Int[Tensor, "row"],
        *,
        context: int,
        horizon: int,
        series_indices: Int[Tensor, "row"] | None = None,
    ) -> Example:
        """Gathers the examples whose first future value is at `positions`.

        `series_indices` are the series of the examples; without them, examples have no static features and no error scale.
        """
        steps = positions[:, None] + torch.arange(-context, horizon, device=self.values.device)
        covariates, channels = (
            None if column is None else column[steps] for column in (self.covariates, self.channels)
        )
        static = None if self.static is None or series_indices is None else self.static[series_indices]
        full = Window(self.values[steps], covariates, static, channels)
        future = full.slice_steps(slice(context, None))
        error_scale = (
            None if self.error_scales is None or series_indices is None else self.error_scales[series_indices].flatten()
        )
        return Example(full.slice_steps(slice(context)), future.targets, future.covariates, error_scale)


@dataclass(frozen=True)
class CutoffIndex:
    """The possible cutoffs of training examples, numbered from 0 to len - 1 without a list of them.

    The cutoffs of a series leave at least `min_history` values before and one value after. `cumulative_counts` are the
    cumulative numbers of cutoffs per series.
    """

    source: ExampleSource
    min_history: int
    cumulative_counts: Int[Tensor, "series_indices"]

    @classmethod
    def from_source(cls, source: ExampleSource, *, min_history: int) -> CutoffIndex:
        """Returns the cutoffs of all series of a source."""
        return cls(source, min_history, torch.cumsum((source.lengths - min_history).clamp(min=0), 0))

    def to(self, device: torch.device) -> CutoffIndex:
        """Returns the index and its source for a training on a device; the index is where the examples are."""
        source = self.source.to(device)
        return CutoffIndex(source, self.min_history, self.cumulative_counts.to(source.device))

    def __len__(self) -> int:
        return int(self.cumulative_counts[-1]) if len(self.cumulative_counts) else 0

    def series_indices(self, indices: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Returns the series index of each cutoff index."""
        return torch.searchsorted(self.cumulative_counts, indices, right=True)

    def positions(self, indices: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Returns the position in the source of each cutoff index."""
        series = self.series_indices(indices)
        count = (self.source.lengths[series] - self.min_history).clamp(min=0)
        offset = indices - (self.cumulative_counts[series] - count)
        return self.source.starts[series] + self.min_history + offset

    def sample(
        self, count: int, generator: torch.Generator, *, recent: float = 0.0, horizon: int = 1
    ) -> Int[Tensor, "count"]:
        """Draws cutoff indices with replacement; on the CPU, where the generator is.

        With `recent` 0, all cutoffs are equally likely. Otherwise all series are equally likely, and the distance of the cutoff
        from the end of its series is one horizon plus an exponential variate with a mean of `recent` horizons. If the series has
        no cutoff that far from its end, the cutoff is drawn uniformly from the series.
        """
        if not recent:
            return torch.randint(len(self), (count,), generator=generator)
        cumulative_counts = self.cumulative_counts.cpu()
        counts = cumulative_counts.diff(prepend=cumulative_counts[:1] * 0)
        non_empty = counts.nonzero()[:, 0]
        series = non_empty[torch.randint(len(non_empty), (count,), generator=generator)]
        uniform = torch.rand(2, count, generator=generator, dtype=torch.float64)
        distance = horizon + (-recent * horizon * torch.log1p(-uniform[0])).long()
        uniform_distance = 1 + (uniform[1] * counts[series]).long()
        return cumulative_counts[series] - torch.where(distance <= counts[series], distance, uniform_distance)


@dataclass(frozen=True)
class EpochBatches:
    """The training examples of one epoch: `num_batches` batches with cutoffs from `CutoffIndex.sample`.

    The examples are the same for the same seed and epoch. Iteration yields chunks of `batches_per_chunk` concatenated batches;
    the last chunk may have fewer. One of several processes that share the batches gets every `num_shares`-th row of each of them,
    from the row `share` on.
    """

    cutoffs: CutoffIndex
    context: int
    horizon: int
    batch_size: int
    num_batches: int
    seed: int
    epoch: int
    batches_per_chunk: int = 1
    recent: float = 0.0
    share: int = 0
    num_shares: int = 1

    def __len__(self) -> int:
        return -(-self.num_batches // self.batches_per_chunk)

    def __iter__(self) -> Iterator[Example]:
        source = self.cutoffs.source
        generator = torch.Generator().manual_seed(derive_epoch_seed(self.seed, self.epoch))
        count = self.num_batches * self.batch_size
        indices = self.cutoffs.sample(count, generator, recent=self.recent, horizon=self.horizon)
        indices = indices.reshape(-1, self.batch_size)[:, self.share :: self.num_shares].flatten().contiguous()
        chunk_size = self.batches_per_chunk * self.batch_size // self.num_shares
        indices = indices.to(source.device)
        for first in range(0, len(indices), chunk_size):
            chunk = indices[first : first + chunk_size]
            yield source.extract_examples(
                self.cutoffs.positions(chunk),
                context=self.context,
                horizon=self.horizon,
                series_indices=self.cutoffs.series_indices(chunk),
            )


def derive_epoch_seed(seed: int, epoch: int) -> int:
    """Derives the seed of an epoch from the training seed."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))

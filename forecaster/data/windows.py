"""Windows: the histories a network starts from, gathered by index from one tensor that holds the whole panel.

A network foretells y and the channels alike. One of these targets of one row is a track; the tracks of a row lie side by
side, y first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster.data.batching import pad_histories, stack_channels
from forecaster.data.encoding import Encoding
from forecaster.series import Series
from forecaster.shapes import Float, Float64, Int


class Window(NamedTuple):
    """What is known, one row a series. There is no place for the future here.

    Attributes:
        values: In units of the data, latest last. NaN marks a step that was not observed; those before a row's first
            observation are padding, and never touch a state.
        covariates: Of the same steps, as numbers; None if the network reads none.
        static: Numbers of the categories of each row; None likewise.
        channels: Of the same steps, each in its own units; NaN likewise. A row begins with the first observation of any.
    """

    values: Float64[Tensor, "row step"]
    covariates: Float[Tensor, "row step covariate"] | None = None
    static: Int[Tensor, "row static"] | None = None
    channels: Float64[Tensor, "row step channel"] | None = None

    @property
    def targets(self) -> Float64[Tensor, "track step"]:
        """The values and the channels."""
        return stack_targets(self.values, self.channels)

    def slice_steps(self, steps: slice) -> Window:
        """Some of its steps."""
        covariates, channels = (
            None if field is None else field[:, steps] for field in (self.covariates, self.channels)
        )
        return Window(self.values[:, steps], covariates, self.static, channels)

    def to(self, device: str | torch.device) -> Window:
        """The window on a device."""
        return Window(*(None if field is None else field.to(device) for field in self))  # type: ignore[arg-type]


class Example(NamedTuple):
    """A window and what came after it.

    Attributes:
        window: What was known.
        future: What came, of y and of the channels.
        ahead: The covariates of those steps: they were known ahead.
        error: That of the seasonal naive forecast on the whole track, where errors are to count in units of it.
    """

    window: Window
    future: Float64[Tensor, "track horizon"]
    future_covariates: Float[Tensor, "row horizon covariate"] | None = None
    error_scale: Float64[Tensor, "track"] | None = None


def stack_targets(
    values: Float64[Tensor, "row step"], channels: Float64[Tensor, "row step channel"] | None
) -> Float64[Tensor, "track step"]:
    """Y and the channels of each row as rows of their own."""
    if channels is None:
        return values
    return torch.cat([values[:, None], channels.transpose(1, 2)], dim=1).flatten(0, 1)


def unstack_targets(
    stacked: Float64[Tensor, "track step"], *, num_targets: int
) -> tuple[Float64[Tensor, "row step"], Float64[Tensor, "row step channel"] | None]:
    """The inverse of `stack_targets`."""
    if num_targets == 1:
        return stacked, None
    whole = stacked.reshape(-1, num_targets, stacked.shape[1])
    return whole[:, 0], whole[:, 1:].transpose(1, 2)


def build_window(
    histories: Sequence[Float64[np.ndarray, "_"]],
    *,
    context: int,
    covariates: Sequence[Float64[np.ndarray, "_ covariate"]] = (),
    static: Sequence[Int[np.ndarray, "static"]] = (),
    channels: Sequence[Float64[np.ndarray, "_ channel"]] = (),
) -> Window:
    """The last `context` values of every history as one window, padded on the left; the columns of the same steps."""
    return Window(
        torch.from_numpy(pad_histories(histories, context=context, fill_value=np.nan)),
        torch.from_numpy(pad_histories(covariates, context=context, fill_value=0.0)).float()
        if len(covariates)
        else None,
        torch.from_numpy(np.stack(static)) if len(static) else None,
        torch.from_numpy(pad_histories(channels, context=context, fill_value=np.nan)) if len(channels) else None,
    )


class PanelTensor(NamedTuple):
    """All series end to end in one tensor, with NaN between them, so that no example reaches into a neighbour.

    Attributes:
        values: The values and the gaps.
        first: Where each series' first value lies on the tape.
        length: How many values each series has.
        covariates: Of the same places; None if there are none.
        static: Of each series; None if there are none.
        channels: Of the same places, with NaN in the gaps; None if there are none.
        errors: Of the seasonal naive forecast, of y and of each channel; None where nobody asks.
    """

    values: Float64[Tensor, "place"]
    starts: Int[Tensor, "series"]
    lengths: Int[Tensor, "series"]
    covariates: Float[Tensor, "place covariate"] | None = None
    static: Int[Tensor, "series static"] | None = None
    channels: Float64[Tensor, "place channel"] | None = None
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
        """Lays the series on a tape for examples of up to so many steps before and after their cut.

        Covariates lie there for `ahead` steps after a series' end too. Raises CovariateUnknown if one lacks a channel.
        """
        gap, lengths = max(context, horizon) + future_steps, np.array([len(one) for one in series], dtype=np.int64)
        firsts = np.cumsum(lengths + gap) - lengths
        values = np.full(int((lengths + gap).sum()) + horizon, np.nan)
        for one, first in zip(series, firsts, strict=True):
            values[first : first + len(one)] = one.y
        covariates = static = others = None
        if encoding is not None and encoding.num_covariates:
            columns = np.zeros((len(values), encoding.num_covariates), dtype=np.float32)
            for one, first in zip(series, firsts, strict=True):
                columns[first : first + len(one) + future_steps] = encoding.encode_covariates(
                    one, future_steps=future_steps
                )
            covariates = torch.from_numpy(columns)
        if encoding is not None and encoding.static:
            static = torch.from_numpy(np.stack([encoding.encode_static(one) for one in series]))
        if channels:
            beside = np.full((len(values), len(channels)), np.nan)
            for one, first in zip(series, firsts, strict=True):
                beside[first : first + len(one)] = stack_channels(one, channels)
            others = torch.from_numpy(beside)
        whose = torch.from_numpy(firsts), torch.from_numpy(lengths)
        return cls(torch.from_numpy(values), *whose, covariates, static, others)

    def to(self, device: str | torch.device) -> PanelTensor:
        """The tape on a device."""
        return PanelTensor(*(None if field is None else field.to(device) for field in self))  # type: ignore[arg-type]

    def extract_examples(
        self,
        positions: Int[Tensor, "row"],
        *,
        context: int,
        horizon: int,
        series_indices: Int[Tensor, "row"] | None = None,
    ) -> Example:
        """The examples whose first future value lies at `positions` of the tape; `series_indices` says whose they are."""
        steps = positions[:, None] + torch.arange(-context, horizon, device=self.values.device)
        columns, channels = (None if column is None else column[steps] for column in (self.covariates, self.channels))
        static = None if self.static is None or series_indices is None else self.static[series_indices]
        whole = Window(self.values[steps], columns, static, channels)
        after = whole.slice_steps(slice(context, None))
        error = (
            None if self.error_scales is None or series_indices is None else self.error_scales[series_indices].flatten()
        )
        return Example(whole.slice_steps(slice(context)), after.targets, after.covariates, error)


@dataclass(frozen=True)
class CutoffIndex:
    """Every place where a training example may be cut: an index without a list of its members.

    A series of n values gives the cuts that leave at least `min_history` values before and one after.
    """

    panel_tensor: PanelTensor
    min_history: int
    cumulative_counts: Int[Tensor, "series_indices"]

    @classmethod
    def from_panel_tensor(cls, panel_tensor: PanelTensor, *, min_history: int) -> CutoffIndex:
        """The anchors of a tape."""
        return cls(panel_tensor, min_history, torch.cumsum((panel_tensor.lengths - min_history).clamp(min=0), 0))

    def to(self, device: torch.device) -> CutoffIndex:
        """The anchors, tape and all, on a device."""
        return CutoffIndex(self.panel_tensor.to(device), self.min_history, self.cumulative_counts.to(device))

    def __len__(self) -> int:
        return int(self.cumulative_counts[-1]) if len(self.cumulative_counts) else 0

    def series_indices(self, indices: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The series of the anchors with these numbers, 0 to len - 1."""
        return torch.searchsorted(self.cumulative_counts, indices, right=True)

    def positions(self, indices: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The places on the tape of the anchors with these numbers, 0 to len - 1."""
        series = self.series_indices(indices)
        count = (self.panel_tensor.lengths[series] - self.min_history).clamp(min=0)
        within = indices - (self.cumulative_counts[series] - count)
        return self.panel_tensor.starts[series] + self.min_history + within

    def sample(
        self, count: int, generator: torch.Generator, *, recent: float = 0.0, horizon: int = 1
    ) -> Int[Tensor, "count"]:
        """The numbers of anchors drawn with replacement; on the CPU, where the generator is.

        All alike; or, with `recent`, every series alike, at a distance from its end that is exponential with a mean of so many
        horizons, with a whole horizon after them where there is one.
        """
        if not recent:
            return torch.randint(len(self), (count,), generator=generator)
        ends = self.cumulative_counts.cpu()
        each = ends.diff(prepend=ends[:1] * 0)
        those = each.nonzero()[:, 0]
        series = those[torch.randint(len(those), (count,), generator=generator)]
        uniform = torch.rand(2, count, generator=generator, dtype=torch.float64)
        back = horizon + (-recent * horizon * torch.log1p(-uniform[0])).long()
        anywhere = 1 + (uniform[1] * each[series]).long()
        return ends[series] - torch.where(back <= each[series], back, anywhere)


@dataclass(frozen=True)
class EpochBatches:
    """The training examples of one epoch: `num_batches` batches drawn as `CutoffIndex.sample` does, the same for the same seed and epoch.

    Gathered are those of `batches_per_chunk` batches together, one after the other; the last may be fewer.
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

    def __len__(self) -> int:
        return -(-self.num_batches // self.batches_per_chunk)

    def __iter__(self) -> Iterator[Example]:
        tape = self.cutoffs.panel_tensor
        draw = torch.Generator().manual_seed(derive_epoch_seed(self.seed, self.epoch))
        drawn = self.cutoffs.sample(self.num_batches * self.batch_size, draw, recent=self.recent, horizon=self.horizon)
        numbers = drawn.to(tape.values.device)
        for first in range(0, len(numbers), self.batches_per_chunk * self.batch_size):
            some = numbers[first : first + self.batches_per_chunk * self.batch_size]
            places, series = self.cutoffs.positions(some), self.cutoffs.series_indices(some)
            yield tape.extract_examples(places, context=self.context, horizon=self.horizon, series_indices=series)


def derive_epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for every epoch."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))

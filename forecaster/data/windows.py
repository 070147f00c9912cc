"""Windows: the histories a network starts from, gathered by index from one tensor that holds the whole panel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster.series import Series
from forecaster.shapes import Float64, Int


class Window(NamedTuple):
    """What is known, one row a series. There is no place for the future here.

    Attributes:
        values: In units of the data, latest last. NaN marks a step that was not observed; those before a row's first
            observation are padding, and never touch a state.
    """

    values: Float64[Tensor, "row context"]


class Example(NamedTuple):
    """A window and what came after it."""

    window: Window
    future: Float64[Tensor, "row horizon"]


def stack(histories: Sequence[Float64[np.ndarray, "_"]], *, context: int) -> Window:
    """The last `context` values of every history as one window, padded on the left."""
    values = np.full((len(histories), context), np.nan)
    for row, history in enumerate(histories):
        tail = history[-context:]
        values[row, context - len(tail) :] = tail
    return Window(torch.from_numpy(values))


class Tape(NamedTuple):
    """All series end to end in one tensor, `lead` NaN before each, so that no window reaches into a neighbour.

    Attributes:
        values: The values and the leads.
        first: Where each series' first value lies on the tape.
        length: How many values each series has.
    """

    values: Float64[Tensor, "place"]
    first: Int[Tensor, "series"]
    length: Int[Tensor, "series"]

    @classmethod
    def record(cls, series: Sequence[Series], *, lead: int) -> Tape:
        """Lays the series on a tape for windows of up to `lead` steps."""
        lengths = np.array([len(one) for one in series], dtype=np.int64)
        firsts = np.cumsum(lengths + lead) - lengths
        values = np.full(int((lengths + lead).sum()), np.nan)
        for one, first in zip(series, firsts, strict=True):
            values[first : first + len(one)] = one.y
        return cls(torch.from_numpy(values), torch.from_numpy(firsts), torch.from_numpy(lengths))

    def to(self, device: torch.device) -> Tape:
        """The tape on a device."""
        return Tape(*(field.to(device) for field in self))

    def cut(self, places: Int[Tensor, "row"], *, context: int, horizon: int) -> Example:
        """The examples whose first future value lies at `places` of the tape."""
        steps = torch.arange(-context, horizon, device=self.values.device)
        values = self.values[places[:, None] + steps]
        return Example(Window(values[:, :context]), values[:, context:])


@dataclass(frozen=True)
class Anchors:
    """Every place where a training example may be cut: an index without a list of its members.

    A series of n values gives the cuts that leave at least `least` values before and one after.
    """

    tape: Tape
    least: int
    cumulative: Int[Tensor, "series"]

    @classmethod
    def of(cls, tape: Tape, *, least: int) -> Anchors:
        """The anchors of a tape."""
        return cls(tape, least, torch.cumsum((tape.length - least).clamp(min=0), 0))

    def to(self, device: torch.device) -> Anchors:
        """The anchors, tape and all, on a device."""
        return Anchors(self.tape.to(device), self.least, self.cumulative.to(device))

    def __len__(self) -> int:
        return int(self.cumulative[-1]) if len(self.cumulative) else 0

    def places(self, numbers: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The places on the tape of the anchors with these numbers, 0 to len - 1."""
        series = torch.searchsorted(self.cumulative, numbers, right=True)
        count = (self.tape.length[series] - self.least).clamp(min=0)
        within = numbers - (self.cumulative[series] - count)
        return self.tape.first[series] + self.least + within


@dataclass(frozen=True)
class Feed:
    """The training examples of one epoch: `steps` batches drawn with replacement, the same for the same seed and epoch."""

    anchors: Anchors
    context: int
    batch: int
    steps: int
    seed: int
    epoch: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Example]:
        tape = self.anchors.tape
        draw = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        numbers = torch.randint(len(self.anchors), (self.steps, self.batch), generator=draw)
        for places in self.anchors.places(numbers.to(tape.values.device)):
            yield tape.cut(places, context=self.context, horizon=1)


def mix(seed: int, epoch: int) -> int:
    """A seed of its own for every epoch."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))

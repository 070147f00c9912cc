"""A panel on disk, the tape: one array of float64 per column that is mapped into memory, and the bounds of each series in it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from forecaster.frequency.timestamps import Timestamps, timestamp_at
from forecaster.series import Series
from forecaster.shapes import Bool, Float64, Int


@dataclass(frozen=True, eq=False)
class MappedColumn:
    """The values of one column of all series, in a file that is mapped for reading.

    Attributes:
        values: The values for passes over whole series; the system reads ahead.
        scattered: The same values for reads of single windows; the system reads only the pages that are touched.
    """

    values: Float64[np.ndarray, "position"]
    scattered: Float64[np.ndarray, "position"]

    @classmethod
    def from_file(cls, descriptor: int) -> MappedColumn:
        """Maps a file of float64; the map stays valid after the file is closed or deleted."""
        maps = [mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) for _ in range(2)]
        if hasattr(mmap, "MADV_RANDOM"):
            maps[1].madvise(mmap.MADV_RANDOM)
        return cls(*(np.frombuffer(column, dtype="<f8") for column in maps))


@dataclass(frozen=True, eq=False)
class StaticColumn:
    """A static feature of all series: the index of each series' label."""

    codes: Int[np.ndarray, "series"]
    labels: Sequence[str]


@dataclass(frozen=True, eq=False)
class PanelTape:
    """The columns of a panel on disk, without gaps between the series.

    Attributes:
        freq: The frequency of all series.
        ids: Their ids, as text of variable length.
        first_timestamps: The timestamp of the first value of each series.
        starts: The position of this value.
        lengths: The number of values of each series.
        values: The target.
        channels: Past-only columns by name, at the positions of the target.
        static: Static features by name.
    """

    freq: str
    ids: np.ndarray
    first_timestamps: Timestamps
    starts: Int[np.ndarray, "series"]
    lengths: Int[np.ndarray, "series"]
    values: MappedColumn
    channels: Mapping[str, MappedColumn]
    static: Mapping[str, StaticColumn]


class TapeSeries(Sequence[Series]):
    """Series of a tape, made on access: their values are views of the map, and a list of them would take much memory.

    Attributes:
        tape: The tape.
        rows: The indices of these series in the tape.
        lengths: The number of first values of each that belong to it.
    """

    def __init__(self, tape: PanelTape, rows: Int[np.ndarray, "series"], lengths: Int[np.ndarray, "series"]) -> None:
        self.tape, self.rows, self.lengths = tape, rows, lengths

    @classmethod
    def from_tape(cls, tape: PanelTape) -> TapeSeries:
        """Returns all series of a tape."""
        return cls(tape, np.arange(len(tape.starts)), tape.lengths)

    @property
    def starts(self) -> Int[np.ndarray, "series"]:
        """The position of the first value of each series."""
        starts: Int[np.ndarray, "series"] = self.tape.starts[self.rows]
        return starts

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Series: ...
    @overload
    def __getitem__(self, index: slice) -> TapeSeries: ...
    def __getitem__(self, index: int | slice) -> Series | TapeSeries:
        if isinstance(index, slice):
            return self.select(index)
        row, length = int(self.rows[index]), int(self.lengths[index])
        tape = self.tape
        span = slice(int(tape.starts[row]), int(tape.starts[row]) + length)
        return Series(
            str(tape.ids[row]),
            timestamp_at(tape.first_timestamps, row),
            tape.freq,
            tape.values.values[span],
            static={name: column.labels[column.codes[row]] for name, column in tape.static.items()},
            channels={name: column.values[span] for name, column in tape.channels.items()},
        )

    def __iter__(self) -> Iterator[Series]:
        return map(self.__getitem__, range(len(self)))

    def select(self, chosen: slice | Bool[np.ndarray, "series"] | Int[np.ndarray, "chosen"]) -> TapeSeries:
        """Returns the chosen series."""
        return TapeSeries(self.tape, self.rows[chosen], self.lengths[chosen])

    def drop_last(self, steps: int) -> TapeSeries:
        """Returns the series without their last values, as by `Series.take_first`."""
        return TapeSeries(self.tape, self.rows, self.lengths - steps)


def count_steps(series: Sequence[Series]) -> Int[np.ndarray, "series"]:
    """Returns the length of each series; those of a tape are not made for it."""
    return (
        series.lengths if isinstance(series, TapeSeries) else np.array([len(item) for item in series], dtype=np.int64)
    )

"""Writes a tape, one part of the panel after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Self

import numpy as np
import pandas as pd

from forecaster.data.frames.rows import natural_key
from forecaster.data.on_disk.tape import MappedColumn, PanelTape, StaticColumn, TapeSeries
from forecaster.errors import BadStamp, InputError
from forecaster.frequency.timestamps import Timestamps
from forecaster.series import Series
from forecaster.shapes import Float64

_BYTES_PER_VALUE = 8


class TapeWriter:
    """Writes series into nameless files, which the system deletes when the last map of them is gone, also after a kill.

    It is a context manager, which closes the files; their maps stay valid.

    Args:
        folder: The folder of the files.
        static, channels: The columns that every series has.
    """

    def __init__(self, folder: Path, *, static: Sequence[str] = (), channels: Sequence[str] = ()) -> None:
        self._folder = folder
        self._values = _open_column(folder)
        self._channels = {name: _open_column(folder) for name in channels}
        self._labels: dict[str, dict[str, int]] = {name: {} for name in static}
        self._codes: dict[str, list[int]] = {name: [] for name in static}
        self._ids: dict[str, None] = {}
        self._lengths: list[int] = []
        self._first_timestamps: list[Timestamps] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._values, *self._channels.values()):
            file.close()

    def find_known_id(self, ids: Iterable[str]) -> str | None:
        """Returns the first of these ids that has been written; None if there is none."""
        return next((series_id for series_id in ids if series_id in self._ids), None)

    def append(self, series: Sequence[Series]) -> None:
        """Writes further series; raises BadStamp for timestamps of another kind, InputError if the disk is full."""
        self._append_timestamps(series)
        with _explain_full_disk(self._folder):
            self._values.write(_to_bytes([item.y for item in series]))
            for name, file in self._channels.items():
                file.write(_to_bytes([item.channels[name] for item in series]))
        for name, labels in self._labels.items():
            self._codes[name] += [labels.setdefault(item.static[name], len(labels)) for item in series]
        self._lengths += [len(item) for item in series]
        self._ids |= dict.fromkeys(item.id for item in series)

    @property
    def first_timestamps(self) -> Timestamps:
        """The first timestamp of every series written so far."""
        return self._first_timestamps[0].append(self._first_timestamps[1:])

    @property
    def num_series(self) -> int:
        """The number of series written so far."""
        return len(self._ids)

    def finish(self, *, freq: str) -> TapeSeries:
        """Maps what was written; the series are in the order of their ids, as in any panel."""
        lengths = np.array(self._lengths, dtype=np.int64)
        starts, ids = np.cumsum(lengths) - lengths, list(self._ids)
        order = np.arange(len(ids))
        if any(earlier > later for earlier, later in pairwise(map(natural_key, ids))):
            order = np.array(sorted(range(len(ids)), key=lambda row: natural_key(ids[row])), dtype=np.int64)
        with _explain_full_disk(self._folder):
            columns = {name: _map(file) for name, file in self._channels.items()}
            values = _map(self._values)
        tape = PanelTape(
            freq,
            np.array(ids, dtype=np.dtypes.StringDType())[order],
            self.first_timestamps[order],
            starts[order],
            lengths[order],
            values,
            columns,
            {
                name: StaticColumn(np.array(self._codes[name], dtype=np.int64)[order], list(labels))
                for name, labels in self._labels.items()
            },
        )
        return TapeSeries.from_tape(tape)

    def _append_timestamps(self, series: Sequence[Series]) -> None:
        timestamps: Timestamps = pd.Index([item.start for item in series])
        first = series[0].start
        if isinstance(timestamps, pd.DatetimeIndex) and isinstance(first, pd.Timestamp):
            timestamps = timestamps.as_unit(first.unit)
        if self._first_timestamps and timestamps.dtype != self._first_timestamps[0].dtype:
            raise BadStamp(
                f"Expected timestamps of one kind in all rows; the first series have {self._first_timestamps[0].dtype}, series "
                f"{series[0].id!r} has {timestamps.dtype}. Use one format, or declare the zone (`zone`).",
                where=series[0].id,
            )
        self._first_timestamps.append(timestamps)


def _open_column(folder: Path) -> IO[bytes]:
    """Opens a file without a name, which is closed once it is mapped."""
    with _explain_full_disk(folder):
        return TemporaryFile(dir=folder)


@contextmanager
def _explain_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"Expected room for a copy of the values in {folder}; the system reports: {error.strerror or error}. Free space "
            f"there ({_BYTES_PER_VALUE} bytes for each value), or use another folder.",
            where=str(folder),
        ) from error


def _map(file: IO[bytes]) -> MappedColumn:
    file.flush()
    return MappedColumn.from_file(file.fileno())


def _to_bytes(values: Sequence[Float64[np.ndarray, "_"]]) -> memoryview:
    return np.concatenate(values, dtype="<f8").data

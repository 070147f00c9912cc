"""Reads Parquet files of any size into a panel on disk, a part of the rows at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.data.frames import columns as cells
from forecaster.data.frames.panel import to_panel
from forecaster.data.frames.rows import ColumnNames
from forecaster.data.on_disk.writer import TapeWriter
from forecaster.errors import InputError, NoData, SourceNotFound
from forecaster.frequency.names import canonical_frequency
from forecaster.frequency.timestamps import normalize_frequency
from forecaster.installation import require_package
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.series import Panel

ROWS_PER_PART = 1 << 20
"""Rows that are converted together; a series that has more is converted whole."""
_ROWS_PER_BATCH = 1 << 16
_BUFFER_BYTES = 1 << 20  # that are read from a column at once
_MAX_REPAIRS = 5  # messages that are listed
_MAX_REASON = 200  # characters of the message of pyarrow


class ParquetSource(NamedTuple):
    """Parquet files, and how to read them.

    Attributes:
        path: A file, or a folder of files; parts of folder names such as `unique_id=a` are columns (Hive partitions).
        freq: Frequency, as in `to_panel`; None infers it from the first part.
        columns: The names of the columns.
        zone: Time zone, as in `to_panel`.
        static, channels: Further columns, as in `to_panel`.
    """

    path: Path
    freq: str | int | None = None
    columns: ColumnNames = ColumnNames()
    zone: str | None = None
    static: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()

    @property
    def listed_columns(self) -> list[str]:
        """All columns that are read."""
        return list(dict.fromkeys([*self.columns, *self.static, *self.channels]))


def read_parquet_panel(
    source: ParquetSource, *, folder: Path, rows_per_part: int = ROWS_PER_PART, progress: Progress = NO_PROGRESS
) -> Panel:
    """Reads Parquet files into a panel on disk; `to_panel` validates the series, a part of them at a time.

    The rows of each series have to be together, in any order of the series. The result is the panel that `to_panel` makes of
    all rows, with two exceptions: an inferred frequency is that of the first part, and counts as declared in the others; and
    repairs of several parts are counted rather than listed.

    Args:
        source: The files.
        folder: An existing folder on a disk, for a copy of the values (8 bytes each) that lasts as long as the panel.
        rows_per_part: Rows that are converted together.
        progress: Receives the number of rows read, in the current phase.
    Raises:
        SourceNotFound: There is no such file or folder.
        InputError: The rows of a series are not together, or the file is not Parquet; or a subclass, as `to_panel`.
        MissingPackage: pyarrow is not installed.
    """
    freq = None if source.freq is None else normalize_frequency(source.freq, where="freq")
    repairs: list[str] = []
    num_rows = 0
    with TapeWriter(folder, static=source.static, channels=source.channels) as writer:
        for frame in _iterate_parts(source, rows_per_part):
            num_rows += len(frame)
            try:
                part = _to_panel(frame, source, freq)
            except NoData as error:  # another part may have values
                repairs.append(error.message)
                continue
            freq = freq or part.freq
            repairs += part.repairs
            _validate_new_ids(part, writer, source)
            writer.append(part.series)
            progress.update(num_rows, f"{writer.num_series} series")
        if freq is None or not writer.num_series:
            raise NoData(
                f"Expected at least one observed value in {source.path}; found none in {num_rows} rows. Send a history.",
                where=str(source.path),
            )
        name = canonical_frequency(freq, writer.first_timestamps)
        return Panel(writer.finish(freq=name), name, tuple(_summarize_repairs(repairs)))


def _to_panel(frame: pd.DataFrame, source: ParquetSource, freq: str | None) -> Panel:
    return to_panel(
        frame, freq=freq, columns=source.columns, zone=source.zone, static=source.static, channels=source.channels
    )


def count_rows(source: ParquetSource) -> int:
    """Returns the number of rows, from the footers of the files; raises as `read_parquet_panel`."""
    return int(_open_dataset(source).count_rows())


def _iterate_parts(source: ParquetSource, rows_per_part: int) -> Iterator[pd.DataFrame]:
    """Yields the rows in parts that end where a series ends."""
    arrow: Any = import_module("pyarrow")
    pending: list[Any] = []
    with _explain_unreadable(source):
        for batch in _open_dataset(source).to_batches(
            columns=source.listed_columns, batch_size=_ROWS_PER_BATCH, batch_readahead=1, fragment_readahead=1
        ):
            pending.append(batch)
            if sum(item.num_rows for item in pending) < rows_per_part:
                continue
            table = arrow.Table.from_batches(pending)
            boundary = _find_last_change(table[source.columns.unique_id])
            if boundary:
                yield table.slice(0, boundary).to_pandas(ignore_metadata=True)
            pending = table.slice(boundary).to_batches()
        table = arrow.Table.from_batches(pending) if pending else None
        if table is not None and table.num_rows:
            yield table.to_pandas(ignore_metadata=True)


def _find_last_change(ids: Any) -> int:
    """Returns the row at which the series of the last row begins."""
    compute: Any = import_module("pyarrow.compute")
    is_other = compute.fill_null(compute.not_equal(ids, ids[-1]), True).to_numpy()
    others = np.flatnonzero(is_other)
    return int(others[-1]) + 1 if len(others) else 0


def _open_dataset(source: ParquetSource) -> Any:
    """Opens the files; parts of folder names are text, so that 007 is an id as it is."""
    require_package("pyarrow", purpose="Parquet")
    arrow: Any = import_module("pyarrow")
    datasets: Any = import_module("pyarrow.dataset")
    if not source.path.exists():
        raise SourceNotFound(
            f"Expected a Parquet file or a folder of Parquet files at {source.path}; there is nothing. Correct the path.",
            where=str(source.path),
        )
    # Buffers of whole files, which pyarrow reads ahead by default, would stay in memory until the end of each file.
    reads = datasets.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True, buffer_size=_BUFFER_BYTES)
    parquet = datasets.ParquetFileFormat(default_fragment_scan_options=reads)
    with _explain_unreadable(source):
        dataset = datasets.dataset(source.path, format=parquet, partitioning="hive")
        fragment = next(dataset.get_fragments(), None)
        if fragment is not None and (keys := datasets.get_partition_keys(fragment.partition_expression)):
            as_text = datasets.partitioning(arrow.schema([(name, arrow.string()) for name in keys]), flavor="hive")
            dataset = datasets.dataset(source.path, format=parquet, partitioning=as_text)
    if not dataset.files:
        raise NoData(
            f"Expected Parquet files in {source.path}; the folder has none. Add files.", where=str(source.path)
        )
    cells.validate_columns(
        pd.DataFrame(columns=dataset.schema.names, index=[0]),
        required=source.columns,
        optional=[*source.static, *source.channels],
    )
    return dataset


@contextmanager
def _explain_unreadable(source: ParquetSource) -> Iterator[None]:
    """Translates the errors of pyarrow; raises InputError."""
    arrow: Any = import_module("pyarrow")
    try:
        yield
    except (arrow.ArrowException, OSError) as error:
        raise InputError(
            f"Expected Parquet files with the same columns in {source.path}; found one that cannot be read "
            f"({' '.join(str(error).split())[:_MAX_REASON]}). Keep only such files there; a panel on disk is read from no other "
            "format.",
            where=str(source.path),
        ) from error


def _validate_new_ids(part: Panel, writer: TapeWriter, source: ParquetSource) -> None:
    """Raises InputError if a series has rows in an earlier part too."""
    known = writer.find_known_id(item.id for item in part.series)
    if known is None:
        return
    name = source.columns.unique_id
    raise InputError(
        f"Expected the rows of each series together in {source.path}; series {known!r} has more rows after those of others. "
        f"Sort the rows by {name!r}, or write one folder per series ({name}=.../). Files that correct earlier ones need a panel "
        "in memory.",
        where=known,
    )


def _summarize_repairs(repairs: Sequence[str]) -> Iterator[str]:
    """Yields the first messages, and how many more there are."""
    counts = Counter(repairs)
    for message, count in list(counts.items())[:_MAX_REPAIRS]:
        yield message if count == 1 else f"{message} (in {count} parts of the rows)"
    if len(counts) > _MAX_REPAIRS:
        yield f"{sum(counts.values()) - sum(list(counts.values())[:_MAX_REPAIRS])} further messages of other parts of the rows"

"""Reads one table from one file: CSV, compressed CSV, or Parquet."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import IO, Any, NamedTuple

import pandas as pd

from forecaster.errors import InputError
from pipelines.sources.data import DataSource


class SourceFile(NamedTuple):
    """A file on this machine or in a store.

    Attributes:
        name: The file name.
        location: The path or URL, for messages.
        open_content: Returns the path, or a new stream of the bytes on every call.
    """

    name: str
    location: str
    open_content: Callable[[], Path | IO[bytes]]


def is_table_name(name: str) -> bool:
    """Whether a file name has a supported suffix."""
    return name.endswith(tuple(_READERS))


def read_table(file: SourceFile, data: DataSource) -> pd.DataFrame:
    """Reads the frame of a file with a supported suffix; raises InputError if it cannot be read."""
    reader = next(reader for suffix, reader in _READERS.items() if file.name.endswith(suffix))
    try:
        return reader(file, data)
    except (ValueError, OSError, EOFError, zlib.error) as error:  # parser and Arrow errors are ValueErrors
        raise InputError(
            f"Expected a readable table in {file.location}; {' '.join(str(error).split())}. Save the file again, as UTF-8.",
            where=file.location,
        ) from error


def _read_csv(file: SourceFile, data: DataSource) -> pd.DataFrame:
    """Reads ids and static columns as text: 007 is not 7, and NA may be the id of a series."""
    compression: Any = "gzip" if file.name.endswith(".gz") else None
    header = pd.read_csv(file.open_content(), nrows=0, compression=compression).columns
    missing_markers = {name: _MISSING_VALUE_MARKERS for name in header if name != data.columns.unique_id}
    text_columns: dict[Hashable, Any] = dict.fromkeys([data.columns.unique_id, *data.static], str)
    return pd.read_csv(
        file.open_content(),
        dtype=text_columns,
        na_values=missing_markers,
        keep_default_na=False,
        low_memory=False,
        compression=compression,
    )


# Cell texts that mean "not observed" in a column of values.
_MISSING_VALUE_MARKERS = ["", "#N/A", "<NA>", "N/A", "n/a", "NA", "NaN", "nan", "-nan", "NULL", "null", "None"]
_READERS: dict[str, Callable[[SourceFile, DataSource], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".parquet": lambda file, _: pd.read_parquet(file.open_content()),
}
TABLE_SUFFIXES = tuple(_READERS)

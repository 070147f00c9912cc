"""One table in one file: CSV, compressed CSV, or Parquet."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import IO, Any, NamedTuple

import pandas as pd

from forecaster.errors import InputError
from pipelines.sources.data import DataSource


class SourceFile(NamedTuple):
    """A file, here or in a store.

    Attributes:
        name: Its own name.
        told: What people call it: its path or address.
        opened: Answers its path, or its bytes; each time anew.
    """

    name: str
    location: str
    open_content: Callable[[], Path | IO[bytes]]


def is_table_name(name: str) -> bool:
    """Whether a name ends as those of tables do."""
    return name.endswith(tuple(_READERS))


def read_table(file: SourceFile, data: DataSource) -> pd.DataFrame:
    """The frame in a file whose name is that of a table; raises InputError where it cannot be read."""
    read = next(reader for suffix, reader in _READERS.items() if file.name.endswith(suffix))
    try:
        return read(file, data)
    except (ValueError, OSError, EOFError, zlib.error) as error:  # parser and Arrow errors are ValueErrors
        raise InputError(
            f"Expected a readable table in {file.location}; {' '.join(str(error).split())}. Write it anew, as UTF-8.",
            where=file.location,
        ) from error


def _read_csv(file: SourceFile, data: DataSource) -> pd.DataFrame:
    """Ids and static columns stay text: 007 is not 7, and a series may be called NA."""
    packed: Any = "gzip" if file.name.endswith(".gz") else None
    header = pd.read_csv(file.open_content(), nrows=0, compression=packed).columns
    empty = {name: _MISSING_VALUE_MARKERS for name in header if name != data.columns.unique_id}
    text: dict[Hashable, Any] = dict.fromkeys([data.columns.unique_id, *data.static], str)
    return pd.read_csv(
        file.open_content(), dtype=text, na_values=empty, keep_default_na=False, low_memory=False, compression=packed
    )


# What means "not observed" in a column of values.
_MISSING_VALUE_MARKERS = ["", "#N/A", "<NA>", "N/A", "n/a", "NA", "NaN", "nan", "-nan", "NULL", "null", "None"]
_READERS: dict[str, Callable[[SourceFile, DataSource], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".parquet": lambda file, _: pd.read_parquet(file.open_content()),
}
TABLE_SUFFIXES = tuple(_READERS)

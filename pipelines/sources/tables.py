"""Reads one table from one file: CSV, compressed CSV, or Parquet."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pandas as pd

from forecaster.data.frames import columns as cells
from forecaster.errors import MissingColumn
from pipelines.sources.csv_tables import read_csv
from pipelines.sources.data import DataSource
from pipelines.sources.source_files import SourceFile, SourceTable, unreadable


def is_table_name(name: str) -> bool:
    """Whether a file name has a supported suffix, in small letters or capitals."""
    return name.lower().endswith(TABLE_SUFFIXES)


def read_table(file: SourceFile, data: DataSource) -> SourceTable:
    """Reads the table of a file with a supported suffix; raises InputError if it cannot be read."""
    reader = next(reader for suffix, reader in _READERS.items() if file.name.lower().endswith(suffix))
    try:
        table = reader(file, data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise unreadable(
            file,
            f"it is not a complete gzip file ({error})",
            "Compress it again, or name it .csv if it is not compressed",
        ) from error
    except UnicodeError as error:
        raise unreadable(file, f"it is not text in UTF-8 ({error})", "Save the file as UTF-8") from error
    except (ValueError, OSError) as error:  # parser and Arrow errors are ValueErrors
        raise unreadable(
            file, " ".join(str(error).split()).rstrip("."), "Write the file again, or use another"
        ) from error
    try:
        return add_missing_ids(table, data)
    except MissingColumn as error:
        raise MissingColumn(f"{file.location}: {error.message}", where=file.location) from error


def add_missing_ids(table: SourceTable, data: DataSource) -> SourceTable:
    """Returns a table with an id column (`forecaster.data.frames.columns.add_missing_ids`)."""
    frame, messages = cells.add_missing_ids(table.frame, data.columns)
    return SourceTable(frame, (*table.repairs, *messages))


def _read_parquet(file: SourceFile, data: DataSource) -> SourceTable:
    """Reads a Parquet file. Ids that are text become categories, which take a fraction of the memory."""
    frame = pd.read_parquet(
        file.open_content(),
        engine="pyarrow",
        read_dictionary=[data.columns.unique_id],
        to_pandas_kwargs={"split_blocks": True, "self_destruct": True},
    )
    return SourceTable(frame, ())


_READERS: dict[str, Callable[[SourceFile, DataSource], SourceTable]] = {
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".parquet": _read_parquet,
}
TABLE_SUFFIXES = tuple(_READERS)

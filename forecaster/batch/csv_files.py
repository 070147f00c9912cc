"""CSV files of a data set: their rows and bounds of ids, and their rows as text, a block at a time."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.csv as pacsv  # type: ignore[import-untyped]

from forecaster.data.frames.columns import MISSING_VALUE_MARKERS
from forecaster.errors import InputError

CSV_SUFFIXES = (".csv", ".csv.gz")
_BROKEN_FILE = (OSError, EOFError, zlib.error)  # the last two of compressed ones
_BLOCK_BYTES = 16 << 20  # bounds the memory of a reader


class CsvIds(NamedTuple):
    """The rows of a file, and the first and the last id in the order of their UTF-8 bytes; None if a row has no id."""

    rows: int
    lowest: str | None
    highest: str | None


def is_csv(name: str) -> bool:
    """Whether a file name has a suffix of CSV."""
    return name.lower().endswith(CSV_SUFFIXES)


def open_csv(file: Any, name: str) -> Any:
    """Returns the text of a CSV file as bytes, decompressed if its name ends in .gz."""
    return gzip.GzipFile(fileobj=file) if name.lower().endswith(".gz") else file


def read_csv_header(content: Any, *, where: str) -> list[str]:
    """Reads the names of the columns, and returns to the start; raises InputError."""
    try:
        line = content.readline().decode("utf-8-sig")
        content.seek(0)
    except (UnicodeDecodeError, *_BROKEN_FILE) as error:
        raise _unreadable(where, error) from error
    return next(csv.reader([line]), [])


def read_csv_ids(content: Any, column: str, *, where: str) -> CsvIds:
    """Reads the ids of all rows; raises InputError."""
    rows, bounds, has_missing = 0, list[str](), False
    for table in iter_csv(content, (column,), (), where=where):
        ids = table.column(column)
        rows, has_missing = rows + len(ids), has_missing or ids.null_count > 0
        lowest_and_highest = pc.min_max(ids.cast(pa.binary())).as_py()
        bounds += [value.decode() for value in lowest_and_highest.values() if value is not None]
    if has_missing or not bounds:
        return CsvIds(rows, None, None)
    return CsvIds(rows, min(bounds, key=str.encode), max(bounds, key=str.encode))


def iter_csv(content: Any, columns: Sequence[str], numbers: Sequence[str], *, where: str) -> Iterator[pa.Table]:
    """Yields some columns as text, in which empty cells are null.

    Of columns that hold numbers, the other marks of missing values are null too, and true and false are 1 and 0. Other cells stay
    as they are, so that one that is no number concerns its series only.
    """
    try:
        reader = pacsv.open_csv(
            content,
            read_options=pacsv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            convert_options=pacsv.ConvertOptions(
                include_columns=list(columns),
                column_types=dict.fromkeys(columns, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        yield reader.schema.empty_table()  # a file may have a header only
        for batch in reader:
            yield _clean_numbers(pa.Table.from_batches([batch]), numbers)
    except (pa.ArrowInvalid, pa.ArrowKeyError, *_BROKEN_FILE) as error:
        raise _unreadable(where, error) from error


def _clean_numbers(table: pa.Table, names: Sequence[str]) -> pa.Table:
    for name in names:
        cells = pc.utf8_trim_whitespace(table.column(name))
        is_missing = pc.is_in(cells, value_set=pa.array(MISSING_VALUE_MARKERS))
        lowered = pc.utf8_lower(cells)
        cells = pc.if_else(pc.equal(lowered, "true"), "1", pc.if_else(pc.equal(lowered, "false"), "0", cells))
        cells = pc.if_else(is_missing, pa.scalar(None, pa.string()), cells)
        table = table.set_column(table.schema.get_field_index(name), name, cells)
    return table


def _unreadable(where: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split()).rstrip(".")
    return InputError(
        f"Expected a CSV file with commas in UTF-8 at {where}; {reason}. Write it again, or use Parquet.", where=where
    )

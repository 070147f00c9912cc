"""Reads the actuals of an archive: of a data set that may also hold the histories, only the rows that forecasts need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.csv as pacsv  # type: ignore[import-untyped]

from forecaster.batch.archive import list_nights, open_archive
from forecaster.batch.scores import GROUPS, Actuals
from forecaster.batch.source import InputColumns, Piece, open_source
from forecaster.batch.stores import Store
from forecaster.data.frames.rows import ColumnNames
from forecaster.errors import InputError

_BATCH_ROWS = 1 << 20


def read_actuals(
    location: str,
    archive: str,
    *,
    as_of: str | Sequence[str] | None = None,
    by: Sequence[str] = (),
    y_column: str = "y",
) -> Actuals:
    """Reads the actuals at and after the first step of the forecasts.

    Args:
        location: A CSV file, a Parquet file, or a folder of Parquet files; a path or URL.
        archive: The archive, whose columns of ids and timestamps the actuals have.
        as_of, by: As for `score_archive`: the nights to score, and the groups.
        y_column: The column of the actuals.
    Raises:
        NoData, MissingColumn, SourceNotFound: There are no actuals, or they lack a column.
        InputError: The file cannot be read.
    """
    nights = list_nights(archive)
    names = ColumnNames(nights[0].id_column, nights[0].ds_column, y_column)
    groups = tuple(name for name in by if name not in GROUPS)
    if location.lower().endswith(".csv"):
        return Actuals(_read_csv(location, names), y_column)
    source = open_source(location, InputColumns(names.unique_id, (names.ds, names.y, *groups)))
    first = _find_first_step(archive, as_of, names.ds)
    _, row_groups = source.summarize()
    pieces = [Piece(group.file, group.number, group.number + 1) for group in row_groups]
    tables = (table for piece in pieces for table in source.iter_rows(piece, batch_rows=_BATCH_ROWS))
    return Actuals(pa.concat_tables(_keep_later(tables, names.ds, first), promote_options="permissive"), y_column)


def _read_csv(location: str, names: ColumnNames) -> pa.Table:
    folder, _, name = location.rpartition("/")
    store = Store(folder or ("/" if location.startswith("/") else "."))
    with store.open_file(name) as file:
        try:
            return pacsv.read_csv(
                file,
                convert_options=pacsv.ConvertOptions(
                    column_types={names.unique_id: pa.string(), names.y: pa.float64()}
                ),
            )
        except pa.ArrowInvalid as error:
            raise InputError(
                f"Expected a CSV file of actuals at {store.shown_location}/{name}; {error}. Write it again, or use Parquet.",
                where=name,
            ) from error


def _find_first_step(archive: str, as_of: str | Sequence[str] | None, column: str) -> pa.Scalar:
    """Returns the first timestamp of the forecasts."""
    batches = open_archive(archive, as_of=as_of).to_batches(columns=[column])
    return min((pc.min(batch.column(0)) for batch in batches if batch.num_rows), key=lambda value: value.as_py())


def _keep_later(tables: Iterator[pa.Table], column: str, first: pa.Scalar) -> Iterator[pa.Table]:
    """Yields the rows from a timestamp on; of timestamps of another kind, which are refused later, all."""
    for table in tables:
        ds = table.column(column)
        try:
            yield table.filter(pc.greater_equal(ds.cast(first.type), first))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            yield table

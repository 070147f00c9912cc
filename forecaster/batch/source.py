"""The data sets of a batch: files of one folder or one file, their row groups and fingerprint, and their rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from forecaster.batch.csv_files import is_csv, iter_csv, open_csv, read_csv_header, read_csv_ids
from forecaster.batch.stores import Store
from forecaster.errors import DuplicateColumn, InputError, MissingColumn, NoData

PARQUET_SUFFIX = ".parquet"
_MAGIC_BYTES = 8  # the length of the footer and `PAR1`, at the end of a file

IdValue = str | int
"""A bound of the ids of a row group; text is compared by its UTF-8 bytes, as Parquet and Arrow do."""


class IdRange(NamedTuple):
    """Ids above `after` and up to `until`; None is unbounded."""

    after: IdValue | None = None
    until: IdValue | None = None


class RowGroup(NamedTuple):
    """A row group: the index of its file, its number, its rows, and bounds of its ids (None if the file has no statistics)."""

    file: int
    number: int
    rows: int
    lowest: IdValue | None
    highest: IdValue | None


class Piece(NamedTuple):
    """The row groups from `first` to before `stop` of a file, given by its index."""

    file: int
    first: int
    stop: int


class InputSummary(NamedTuple):
    """What identifies an input: the number of files and rows, and a digest of names, sizes and footers of all files.

    Of CSV files, the digest has the contents.
    """

    files: int
    rows: int
    fingerprint: str


@dataclass(frozen=True)
class InputColumns:
    """The columns that are read.

    Attributes:
        unique_id: The ids.
        others: The others.
        numbers: Those of the others that hold numbers, as far as the text of CSV files does not say it.
    """

    unique_id: str
    others: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()

    @property
    def listed(self) -> tuple[str, ...]:
        """All of them."""
        return (self.unique_id, *self.others)


@dataclass(frozen=True)
class Source:
    """The files of a data set, sorted by name.

    Attributes:
        location: The folder or file, a path or a URL.
        columns: The columns to read. Some may be in names of folders (`region=north/part.parquet`) rather than in the files.
        files: The names of the files below the folder.
    """

    location: str
    columns: InputColumns
    files: tuple[str, ...]

    @cached_property
    def _store(self) -> Store:
        return Store(self.location)

    @property
    def is_shared(self) -> bool:
        """Whether other processes can read the files."""
        return self._store.is_shared

    @property
    def shown_location(self) -> str:
        """The location without a password."""
        return self._store.shown_location

    def summarize(self) -> tuple[InputSummary, list[RowGroup]]:
        """Reads the footers of all files.

        Raises:
            MissingColumn: A file lacks a column.
            InputError: A file cannot be read.
        """
        sizes = self._store.list_files()
        digest, groups = hashlib.sha256(), list[RowGroup]()
        for index, name in enumerate(self.files):
            if is_csv(name):
                content = self._store.compute_digest(name).sha256
                groups.append(self._describe_csv(index, name))
            else:
                with self._store.open_file(name) as file:
                    content = hashlib.sha256(_read_footer(file)).hexdigest()
                    groups += self._list_row_groups(index, self._open_parquet(file, name))
            digest.update(json.dumps([name, sizes.get(name, 0), content]).encode())
        return InputSummary(len(self.files), sum(group.rows for group in groups), digest.hexdigest()), groups

    def read(self, pieces: Sequence[Piece], ids: IdRange = IdRange()) -> pa.Table:  # noqa: B008 (immutable)
        """Returns the rows of some row groups whose ids lie in a range; ids are text."""
        tables = [table for piece in pieces for table in self._iter_piece(piece, ids, batch_rows=None)]
        return concat_rows(tables, where=self.shown_location)

    def iter_rows(self, piece: Piece, *, batch_rows: int) -> Iterator[pa.Table]:
        """Yields the rows of a piece in tables of a bounded size, so that a large row group needs little memory."""
        yield from self._iter_piece(piece, IdRange(), batch_rows=batch_rows)

    def iter_ids(self, piece: Piece, ids: IdRange = IdRange()) -> Iterator[pa.Array]:  # noqa: B008 (immutable)
        """Yields the ids of a piece, as text, without reading its other columns."""
        name = self.columns.unique_id
        source = Source(self.location, InputColumns(name), self.files)
        for table in source._iter_piece(piece, ids, batch_rows=1 << 20, only=(name,)):
            yield table.column(name).combine_chunks()

    def _iter_piece(
        self, piece: Piece, ids: IdRange, *, batch_rows: int | None, only: tuple[str, ...] | None = None
    ) -> Iterator[pa.Table]:
        name = self.files[piece.file]
        wanted, folders = only or self.columns.listed, parse_folder_names(name)
        in_file = [column for column in wanted if column not in folders]
        with self._store.open_file(name) as file:
            for table in self._iter_file(file, name, piece, in_file, batch_rows=batch_rows):
                for column in wanted:
                    if column in folders:
                        table = table.append_column(column, pa.repeat(pa.scalar(folders[column]), table.num_rows))
                yield self._with_text_ids(_decode(table.select(list(wanted))), ids)

    def _iter_file(
        self, file: Any, name: str, piece: Piece, columns: Sequence[str], *, batch_rows: int | None
    ) -> Iterator[pa.Table]:
        """Yields the rows of a piece of a file, as Parquet has them or as the text of CSV."""
        if is_csv(name):
            in_numbers = [column for column in columns if column in self.columns.numbers]
            yield from iter_csv(open_csv(file, name), columns, in_numbers, where=self._show(name))
            return
        parquet, numbers = self._open_parquet(file, name), list(range(piece.first, piece.stop))
        if batch_rows is None:
            yield parquet.read_row_groups(numbers, columns=columns, use_threads=False)
            return
        for batch in parquet.iter_batches(batch_rows, row_groups=numbers, columns=columns, use_threads=False):
            yield pa.Table.from_batches([batch])

    def _with_text_ids(self, table: pa.Table, ids: IdRange) -> pa.Table:
        name = self.columns.unique_id
        column = table.column(name)
        if ids.after is not None:
            table = table.filter(pc.greater(column, ids.after))
            column = table.column(name)
        if ids.until is not None:
            table = table.filter(pc.less_equal(column, ids.until))
            column = table.column(name)
        index = table.schema.get_field_index(name)
        return table.set_column(index, name, column.cast(pa.string()))

    def _show(self, name: str) -> str:
        return f"{self._store.shown_location}/{name}"

    def _open_parquet(self, file: Any, name: str) -> pq.ParquetFile:
        try:
            parquet = pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"Expected a Parquet file at {self._show(name)}; {str(error).rstrip('.')}. Write it again, or remove it.",
                where=self._show(name),
            ) from error
        self._validate_columns(parquet.schema_arrow.names, name)
        return parquet

    def _validate_columns(self, in_file: Sequence[str], name: str) -> None:
        """Raises MissingColumn unless every column is in a file or in the folders around it."""
        available = {*in_file, *parse_folder_names(name)}
        missing = [column for column in self.columns.listed if column not in available]
        if missing:
            raise MissingColumn(
                f"Expected the columns {', '.join(self.columns.listed)} in {self._show(name)}; {', '.join(missing)} not found. "
                "Add them, or name other columns.",
                where=missing[0],
            )

    def _describe_csv(self, index: int, name: str) -> RowGroup:
        """Reads the ids of a CSV file, which is one row group."""
        with self._store.open_file(name) as file:
            names = read_csv_header(open_csv(file, name), where=self._show(name))
        self._validate_columns(names, name)
        repeated = [column for column in self.columns.listed if names.count(column) > 1]
        if repeated:
            raise DuplicateColumn(
                f"Expected one column {repeated[0]!r} in {self._show(name)}; it exists more than once. Drop or rename one.",
                where=repeated[0],
            )
        folders, unique_id = parse_folder_names(name), self.columns.unique_id
        first = next((column for column in self.columns.listed if column not in folders), None)
        if first is None:
            raise MissingColumn(
                f"Expected a column that is not in the folders of {self._show(name)}; found none. Add it.", where=name
            )
        with self._store.open_file(name) as file:
            found = read_csv_ids(open_csv(file, name), first, where=self._show(name))
        if first != unique_id:
            return RowGroup(index, 0, found.rows, folders[unique_id], folders[unique_id])
        return RowGroup(index, 0, found.rows, found.lowest, found.highest)

    def _list_row_groups(self, index: int, parquet: pq.ParquetFile) -> Iterator[RowGroup]:
        folders, name = parse_folder_names(self.files[index]), self.columns.unique_id
        metadata = parquet.metadata
        position = None if name in folders else list(metadata.schema.names).index(name)
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            bounds = (folders[name],) * 2 if position is None else _read_id_bounds(group.column(position))
            yield RowGroup(index, number, group.num_rows, *bounds)


def open_source(location: str, columns: InputColumns, *, suffixes: tuple[str, ...] = (PARQUET_SUFFIX,)) -> Source:
    """Finds the files of a folder with its subfolders, or one file; names beginning with `_` or `.` are left out.

    Raises NoData if there is no such file; SourceNotFound or SourceUnavailable if the location cannot be read.
    """
    store = Store(location)
    if store.is_file():
        folder, _, name = store.location.rpartition("/")
        return Source(folder or ("/" if location.startswith("/") else "."), columns, (name,))
    files = tuple(
        name
        for name in store.list_files()
        if name.lower().endswith(suffixes) and not any(part.startswith(("_", ".")) for part in name.split("/"))
    )
    if not files:
        raise NoData(
            f"Expected a file ending in {' or '.join(suffixes)}, or a folder of such files, at {store.shown_location}; found "
            "none. Check the path; write other formats as Parquet first.",
            where=store.shown_location,
        )
    return Source(location, columns, files)


def concat_rows(tables: Sequence[pa.Table], *, where: str) -> pa.Table:
    """Returns the rows of tables as one; raises NoData without tables, and InputError if their columns have other types."""
    if not tables:
        raise NoData(f"Expected rows in {where}; found none. Write the files again, or remove them.", where=where)
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pa.ArrowTypeError as error:
        raise InputError(
            f"Expected files with the same types of columns in {where}; {str(error).rstrip('.')}. Write them with one type.",
            where=where,
        ) from error


def parse_folder_names(name: str) -> dict[str, str]:
    """Returns the columns in the folders of a file's name: `region=north/part.parquet` has region north, as in Hive."""
    pairs = (part.partition("=") for part in name.split("/")[:-1] if "=" in part)
    return {unquote(column): unquote(value) for column, _, value in pairs}


def _read_footer(file: Any) -> bytes:
    """Returns the last bytes of a Parquet file: its metadata with the positions, sizes and statistics of all columns."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _MAGIC_BYTES))
    end = file.read(_MAGIC_BYTES)
    length = int.from_bytes(end[:4], "little")
    file.seek(max(0, size - _MAGIC_BYTES - length))
    footer: bytes = file.read(min(length, size))
    file.seek(0)
    return footer


def _read_id_bounds(column: pq.ColumnChunkMetaData) -> tuple[IdValue | None, IdValue | None]:
    statistics = column.statistics
    if statistics is None or not statistics.has_min_max:
        return None, None
    lowest, highest = statistics.min, statistics.max
    if isinstance(lowest, bool) or not isinstance(lowest, (str, int)) or not isinstance(highest, (str, int)):
        return None, None
    if statistics.null_count:  # rows without an id lie in no range
        return None, None
    return lowest, highest


def _decode(table: pa.Table) -> pa.Table:
    """Returns a table without dictionary encoding, because files may have different dictionaries."""
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(field.type.value_type))
    return table

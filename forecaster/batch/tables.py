"""Arrow tables to the rows of histories, and forecasts, rejects and warnings to Arrow tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from forecaster.batch.reading import Histories, ReadOptions
from forecaster.data.forecast_table import MODEL_COLUMN, collect_columns
from forecaster.data.frames.rows import ColumnNames
from forecaster.errors import DuplicateColumn, ForecasterError, InputError, MissingColumn
from forecaster.frequency.timestamps import is_integer_frequency
from forecaster.series import Forecast


class TableStyle(NamedTuple):
    """What the tables of a result take over from the histories.

    Attributes:
        names: The names of the columns.
        ids: The distinct ids, in the type of the histories.
        id_texts: Their texts, the ids of the series.
        time_type: The type of the timestamps.
    """

    names: ColumnNames
    ids: pa.Array
    id_texts: list[str]
    time_type: pa.DataType

    def take_ids(self, texts: Sequence[str | None]) -> pa.Array:
        """Returns the ids of series in the type of the histories."""
        index = {text: position for position, text in enumerate(self.id_texts)}
        return self.ids.take(pa.array([None if text is None else index[text] for text in texts], pa.int64()))


class OpenedTable(NamedTuple):
    """The histories of a table, and the style of its results."""

    histories: Histories
    style: TableStyle


def open_histories(data: Any, options: ReadOptions, *, future: Any, static: Any) -> OpenedTable:
    """Reads a table as the rows of histories.

    Raises:
        MissingColumn, DuplicateColumn: A table lacks an id column, or has a column twice.
        InputError: `future` or `static` do not belong to the model, or `static` has two rows for a series.
    """
    names = options.names
    table = to_table(data, argument="table", id_column=names.unique_id)
    if static is not None:
        table = _join_static(table, to_table(static, argument="static", id_column=names.unique_id), options)
    wanted = [*names, *options.covariates, *options.static, *options.channels]
    table = table.select([name for name in dict.fromkeys(wanted) if name in table.column_names])
    encoded = _encode_ids(table.column(names.unique_id))
    codes = np.asarray(encoded.indices.fill_null(-1))
    rows = _to_rows(table.drop_columns(names.unique_id))
    id_texts = [str(series_id) for series_id in encoded.dictionary.to_pylist()]
    rows.insert(0, names.unique_id, _to_categories(codes, encoded.dictionary, id_texts))
    time_type = table.schema.field(names.ds).type if names.ds in table.column_names else pa.null()
    style = TableStyle(names, encoded.dictionary, id_texts, time_type)
    later = None if future is None else _open_future(future, style, options)
    return OpenedTable(Histories(rows, codes, later), style)


def build_forecasts(
    forecasts: Sequence[Forecast], planned: Mapping[str, float], style: TableStyle, *, model_freq: str
) -> pa.Table:
    """Builds one row per series and step ahead; `planned` has the quantile of each column."""
    unique_id, ds, _ = style.names
    time_type = _result_time_type(style.time_type, model_freq)
    if not forecasts:
        empty = {unique_id: pa.array([], style.ids.type), ds: pa.array([], time_type)}
        return pa.table(empty | {name: pa.array([], pa.float64()) for name in (MODEL_COLUMN, *planned)})
    columns = collect_columns(forecasts, planned)
    ids = style.take_ids(columns.ids).take(pa.array(np.repeat(np.arange(len(forecasts)), columns.lengths)))
    timestamps = to_arrow_column(pd.Series(columns.ds))
    return pa.table(
        {
            unique_id: ids,
            ds: _cast_timestamps(timestamps, time_type),
            MODEL_COLUMN: pa.array(columns.mean),
            **{name: pa.array(values) for name, values in columns.quantiles.items()},
        }
    )


def build_rejects(rejects: Sequence[tuple[str | None, ForecasterError]], style: TableStyle) -> pa.Table:
    """Builds one row per series without a forecast."""
    return pa.table(
        {
            style.names.unique_id: style.take_ids([series_id for series_id, _ in rejects]),
            "code": pa.array([error.code for _, error in rejects], pa.string()),
            "message": pa.array([error.message for _, error in rejects], pa.string()),
        }
    )


def build_warnings(forecasts: Sequence[Forecast], style: TableStyle) -> pa.Table:
    """Builds one row per warning about a forecast."""
    pairs = [(forecast.id, message) for forecast in forecasts for message in forecast.warnings]
    return pa.table(
        {
            style.names.unique_id: style.take_ids([series_id for series_id, _ in pairs]),
            "message": pa.array([message for _, message in pairs], pa.string()),
        }
    )


def to_arrow_column(values: pd.Series) -> pa.Array | pa.ChunkedArray:
    """Converts a column; pyarrow's own conversion of zoned timestamps gives a warning with pandas 3.1."""
    if values.dtype == object and values.empty:  # its type cannot be inferred
        return pa.array([], type=pa.string())
    if not isinstance(values.dtype, pd.DatetimeTZDtype):
        return pa.Array.from_pandas(values)
    zone = str(values.dt.tz)
    utc = values.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy(dtype="datetime64[us]")
    return pa.array(utc, type=pa.timestamp("us", tz=zone.removeprefix("UTC") or zone))


def to_table(data: Any, *, argument: str, id_column: str) -> pa.Table:
    """Converts an Arrow table or a frame; raises InputError, DuplicateColumn or, without ids, MissingColumn."""
    if isinstance(data, pd.DataFrame):
        names = [str(name) for name in data.columns]
        columns = [_convert_column(data.iloc[:, index], argument=argument) for index in range(len(names))]
        table = pa.Table.from_arrays(columns, names=names)
    elif isinstance(data, pa.RecordBatch):
        table = pa.Table.from_batches([data])
    elif isinstance(data, pa.Table) or hasattr(data, "__arrow_c_stream__"):
        table = _without_views(pa.table(data))
    else:
        raise InputError(
            f"Expected an Arrow table, a record batch or a frame for `{argument}`; found an object of type "
            f"{type(data).__name__}. Convert it to an Arrow table.",
            where=argument,
        )
    repeated = {name for name in table.column_names if table.column_names.count(name) > 1}
    if repeated:
        raise DuplicateColumn(
            f"Expected one column {min(repeated)!r} in `{argument}`; it exists more than once. Drop or rename one.",
            where=min(repeated),
        )
    if id_column not in table.column_names:
        raise MissingColumn(
            f"Expected the column {id_column!r} in `{argument}`; it was not found among: "
            f"{', '.join(table.column_names[:20]) or 'none'}. Rename the column of ids, or declare its name (`columns`).",
            where=id_column,
        )
    return table


def _convert_column(values: pd.Series, *, argument: str) -> pa.Array | pa.ChunkedArray:
    """Converts a column of a frame; raises InputError if its values have several types."""
    try:
        return to_arrow_column(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(
            f"Expected one type in column {str(values.name)!r} of `{argument}`; {str(error).rstrip('.')}. Convert the values.",
            where=str(values.name),
        ) from error


def _without_views(table: pa.Table) -> pa.Table:
    """Returns a table whose text can be selected by index, which Arrow cannot do with the text of polars."""
    for index, field in enumerate(table.schema):
        if pa.types.is_string_view(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(pa.large_string()))
    return table


def _encode_ids(ids: pa.ChunkedArray) -> pa.DictionaryArray:
    """Returns the ids as indices of the distinct ones; the text of all rows is not copied."""
    encoded = ids if pa.types.is_dictionary(ids.type) else ids.dictionary_encode()
    return encoded.unify_dictionaries().combine_chunks()


def _to_categories(codes: np.ndarray, distinct: pa.Array, texts: Sequence[str]) -> Any:
    """Returns the ids of all rows; ids that are not text keep their type, so that two ids with one text are an error."""
    is_text = pa.types.is_string(distinct.type) or pa.types.is_large_string(distinct.type)
    categories: Any = pd.array(list(texts), dtype="str") if is_text else distinct.to_pylist()
    return pd.Categorical.from_codes(codes, categories=categories)


def _to_rows(table: pa.Table) -> pd.DataFrame:
    """Converts columns to pandas without a copy where possible; dates become timestamps."""
    columns = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("us"))
        columns[name] = column.combine_chunks().to_pandas()
    return pd.DataFrame(columns, index=pd.RangeIndex(table.num_rows), copy=False)


def _join_static(table: pa.Table, static: pa.Table, options: ReadOptions) -> pa.Table:
    """Adds the static features of each series to its rows; a series without them has null."""
    unique_id = options.names.unique_id
    ids = static.column(unique_id).combine_chunks().cast(pa.string())
    if len(ids.unique()) < len(ids):
        raise InputError(
            f"Expected one row for each series in `static`; found {len(ids)} rows for {len(ids.unique())} series. Remove the "
            "others.",
            where="static",
        )
    missing = [name for name in options.static if name not in static.column_names and name not in table.column_names]
    if missing:
        raise MissingColumn(
            f"Expected the columns {', '.join(options.static)} in `static`; {', '.join(missing)} not found. Add them.",
            where=missing[0],
        )
    encoded = _encode_ids(table.column(unique_id))
    positions = pc.index_in(encoded.dictionary.cast(pa.string()), value_set=ids).take(encoded.indices)
    for name in options.static:
        if name in static.column_names:
            values = static.column(name).combine_chunks().take(positions)
            table = table.drop_columns(name) if name in table.column_names else table
            table = table.append_column(name, values)
    return table


def _open_future(future: Any, style: TableStyle, options: ReadOptions) -> pd.DataFrame | None:
    """Returns the rows of the future of the series of the histories, with their ids as text; None if there are none."""
    if not options.covariates:
        raise InputError(
            "Expected no `future`, because this model has no covariates. Leave it out, or use a model with covariates.",
            where="future",
        )
    unique_id, ds, y = options.names
    table = to_table(future, argument="future", id_column=unique_id)
    texts = table.column(unique_id).combine_chunks().cast(pa.string())
    is_wanted = pc.is_in(texts, value_set=pa.array(style.id_texts, pa.string()))
    table = table.drop_columns([name for name in (unique_id, y) if name in table.column_names]).filter(is_wanted)
    if not table.num_rows:
        return None
    if ds in table.column_names and pa.types.is_integer(style.time_type):
        table = _with_integer_steps(table, ds)
    rows = _to_rows(table)
    rows.insert(0, unique_id, texts.filter(is_wanted).to_pandas().astype(object))
    return rows


def _with_integer_steps(table: pa.Table, ds: str) -> pa.Table:
    """Returns a table whose steps are numbers, if the text of a CSV file has them."""
    index = table.schema.get_field_index(ds)
    if not pa.types.is_string(table.schema.field(ds).type):
        return table
    try:
        return table.set_column(index, ds, table.column(ds).cast(pa.int64()))
    except pa.ArrowInvalid:
        return table  # refused later, as timestamps of another kind


def _result_time_type(time_type: pa.DataType, model_freq: str) -> pa.DataType:
    if is_integer_frequency(model_freq):
        return time_type if pa.types.is_integer(time_type) else pa.int64()
    return time_type if pa.types.is_timestamp(time_type) or pa.types.is_date(time_type) else pa.timestamp("us")


def _cast_timestamps(timestamps: pa.Array, time_type: pa.DataType) -> pa.Array:
    """Casts timestamps to the type of the histories, unless that would lose their zone or a part of a day."""
    if pa.types.is_timestamp(time_type) and timestamps.type.tz != time_type.tz:
        return timestamps
    try:
        return timestamps.cast(time_type)
    except pa.ArrowInvalid:
        return timestamps

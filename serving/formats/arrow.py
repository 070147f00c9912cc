"""Requests and responses as Arrow IPC streams, for clients that hold columns. pyarrow is imported only when one arrives.

Each row is a series. The columns are `id`, `start`, `freq` (text; `start` may be a timestamp or an integer), `y` (lists of
numbers; null or NaN marks a missing value), `season` (integers; optional), and one column per covariate, static feature and
channel, named `covariates.NAME`, `static.NAME` or `channels.NAME`. The forecast options are JSON in the schema metadata under the
key `forecast`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from pydantic import TypeAdapter, ValidationError

from forecaster.errors import ForecasterError
from serving.asgi.bodies import Body
from serving.errors import ApiError
from serving.formats import parsing
from serving.formats.json_rows import TimestampFormatter
from serving.formats.outcome import SeriesOutcome
from serving.formats.schema import CategoryLabel, ForecastOptions, GridSeries, SeasonField, SeriesId, SeriesInput
from serving.formats.timestamps import FreqField, TimestampsField

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
METADATA_KEY = b"forecast"
_TEXT_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "id": TypeAdapter(list[SeriesId]),
    "start": TypeAdapter(TimestampsField),
    "freq": TypeAdapter(list[FreqField]),
    "season": TypeAdapter(list[SeasonField]),
    "static": TypeAdapter(list[CategoryLabel]),
}
_EPOCH = datetime(1970, 1, 1)
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_COLUMN_PREFIXES = ("covariates", "static", "channels")
_COMPRESSION_FIELD = 3  # index of `compression` in the table RecordBatch of Arrow's Message.fbs


def decode_arrow(body: Body) -> tuple[ForecastOptions, list[SeriesInput]]:
    """Returns the forecast options and the histories of an Arrow IPC stream.

    Raises ApiError: 400 if the body is not such a stream, 415 without pyarrow, 422 for invalid content.
    """
    table = _read_table(bytes(body))
    metadata = (table.schema.metadata or {}).get(METADATA_KEY)
    if metadata is None:
        raise _invalid_request(
            "Expected the forecast options as JSON in the schema metadata under the key `forecast`; found no such key. "
            'Add them, for example {"horizon": 24}.'
        )
    options = parsing.validate_fields(ForecastOptions, parsing.parse_json(metadata))
    names = table.column_names
    missing = [name for name in ("id", "start", "freq", "y") if name not in names]
    unexpected = [
        name
        for name in names
        if name not in ("id", "start", "freq", "season", "y") and name.partition(".")[0] not in _COLUMN_PREFIXES
    ]
    if "symbols" in names:
        raise _invalid_request(
            "Expected the numbers of each series in the column `y`; found `symbols`, which Arrow requests cannot carry. Send "
            "symbols as JSON or NDJSON."
        )
    if missing or unexpected or len(set(names)) < len(names) or not table.num_rows:
        raise _invalid_request(
            "Expected at least one row, and the columns id, start, freq, y and any of season, covariates.NAME, static.NAME and "
            f"channels.NAME, each once; found the columns {', '.join(names)[:300]} and {table.num_rows} rows. "
            "Correct the table."
        )
    texts = {
        name: _read_text_column(table, name) for name in names if name in _TEXT_ADAPTERS or name.startswith("static.")
    }
    lists = {name: _read_list_column(table, name) for name in names if name not in texts}
    names_by_prefix = {prefix: [name for name in names if name.startswith(f"{prefix}.")] for prefix in _COLUMN_PREFIXES}

    def row_columns(prefix: str, row: int) -> dict[str, Any]:
        columns = texts if prefix == "static" else lists
        return {name.removeprefix(f"{prefix}."): columns[name][row] for name in names_by_prefix[prefix]}

    return options, [
        GridSeries.model_construct(
            id=texts["id"][row],
            start=texts["start"][row],
            freq=texts["freq"][row],
            season=texts["season"][row] if "season" in texts else None,
            y=lists["y"][row],
            covariates=row_columns("covariates", row),
            static=row_columns("static", row),
            channels=row_columns("channels", row),
        )
        for row in range(table.num_rows)
    ]


def encode_arrow(model_info: dict[str, Any], outcomes: Sequence[SeriesOutcome], options: ForecastOptions) -> bytes:
    """Encodes the outcomes as a stream with one row per series.

    The columns are id, ds, mean, one per level, samples, state, warnings, error and message; a row without a forecast has an
    error and a message.
    """
    import pyarrow as pa

    formatter = TimestampFormatter()
    results = [None if isinstance(outcome.result, ForecasterError) else outcome.result for outcome in outcomes]
    errors = [outcome.result if isinstance(outcome.result, ForecasterError) else None for outcome in outcomes]
    timestamps = [result and formatter.format(result.forecast.ds, result.style) for result in results]
    are_integers = any(values and isinstance(values[0], int) for values in timestamps)
    number_list = pa.list_(pa.float64())
    columns = {
        "id": pa.array([outcome.id for outcome in outcomes], pa.string()),
        "ds": pa.array(timestamps, pa.list_(pa.int64() if are_integers else pa.string())),
        "mean": pa.array([result and result.forecast.mean for result in results], number_list),
    }
    for level in sorted(options.levels):
        quantiles = [result and result.forecast.quantiles[level] for result in results]
        columns[f"quantiles.{float(level)!r}"] = pa.array(quantiles, number_list)
    if options.samples:
        paths = [None if result is None or result.paths is None else list(result.paths) for result in results]
        columns["samples"] = pa.array(paths, pa.list_(number_list), from_pandas=True)
    if options.return_state:
        columns["state"] = pa.array([result and result.state_token for result in results], pa.string())
    columns["warnings"] = pa.array([result.warnings if result else [] for result in results], pa.list_(pa.string()))
    columns["error"] = pa.array([error and error.code for error in errors], pa.string())
    columns["message"] = pa.array([error and error.message for error in errors], pa.string())
    table = pa.table(columns).replace_schema_metadata({b"model": orjson.dumps(model_info)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _read_table(body: bytes) -> pa.Table:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ApiError(
            "unsupported_media_type",
            "Expected JSON or NDJSON; found Arrow, which needs pyarrow, and that is not installed on this server. Send JSON.",
            where="content-type",
        ) from error
    try:
        _validate_batches(pa, body)
        with pa.ipc.open_stream(pa.py_buffer(body)) as stream:
            table = stream.read_all().combine_chunks()
        table.validate(full=True)  # the client's offsets and texts are used without further checks
    except (pa.ArrowException, OSError, ValueError, struct.error, KeyError) as error:
        raise ApiError(
            "malformed_arrow", "Expected an Arrow IPC stream; found a body that cannot be read as one. Send it again."
        ) from error
    return table


def _validate_batches(pa: Any, body: bytes) -> None:
    """Raises ApiError for compressed and dictionary batches, whose content can be larger than their bytes."""
    for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(body)):
        if message.type == "dictionary" or (message.type == "record batch" and _is_compressed(bytes(message.metadata))):
            raise ApiError(
                "malformed_arrow",
                "Expected batches without compression and without dictionaries; found one. "
                "Compress the whole body with gzip or zstd instead.",
            )


def _is_compressed(metadata: bytes) -> bool:
    """Whether the metadata of a record batch declares compressed buffers; pyarrow does not expose this."""
    root = struct.unpack_from("<I", metadata)[0]
    header = _find_field(metadata, root, 2)
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return _find_field(metadata, batch, _COMPRESSION_FIELD) != 0


def _find_field(data: bytes, table_offset: int, field_index: int) -> int:
    """Returns the offset of a field in a FlatBuffers table, or 0 if the field is absent."""
    vtable = table_offset - struct.unpack_from("<i", data, table_offset)[0]
    size = struct.unpack_from("<H", data, vtable)[0]
    if 4 + 2 * field_index + 2 > size:
        return 0
    offset = struct.unpack_from("<H", data, vtable + 4 + 2 * field_index)[0]
    return table_offset + offset if offset else 0


def _read_text_column(table: pa.Table, name: str) -> list[Any]:
    """Reads a column with one entry per series, validated as the same JSON field would be."""
    import pyarrow as pa

    column = table.column(name)
    if pa.types.is_timestamp(column.type) and name == "start":
        values: list[Any] = list(_read_starts(column))
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_integer(column.type):
        values = column.to_pylist()
    else:
        raise _invalid_request(f"Expected text in the column {name!r}; found {column.type}. Convert the column.")
    try:
        return list(_TEXT_ADAPTERS[name.partition(".")[0]].validate_python(values, strict=True))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        location = ".".join(str(part) for part in first["loc"] if part not in ("text", "number"))
        raise _invalid_request(f"{name}.{location}: {first['msg']}.", where=f"{name}.{location}") from error


def _read_starts(column: Any) -> list[str | None]:
    """Returns timestamps as text.

    A timestamp beyond the years 1 to 9999, or finer than a microsecond, becomes text that is no timestamp, so only its series
    is rejected.
    """
    zone, unit = column.type.tz, column.type.unit
    if zone not in (None, "UTC", "+00:00", "Z"):
        raise _invalid_request(
            f"Expected timestamps in UTC or without a time zone in `start`; found the zone {zone[:40]!r}. "
            "Send text, or convert the column to UTC."
        )
    suffix = "" if zone is None else "+00:00"
    return [None if count is None else _format_start(count, unit, suffix) for count in column.cast("int64").to_pylist()]


def _format_start(count: int, unit: str, suffix: str) -> str:
    microseconds, rest = divmod(count * _NANOSECONDS[unit], 1000)
    try:
        if not rest:
            return (_EPOCH + timedelta(microseconds=microseconds)).isoformat() + suffix
    except OverflowError:
        pass
    return f"{count} {unit} after 1970"


def _read_list_column(table: pa.Table, name: str) -> list[Any]:
    """Reads a column with one list per series: numbers as views of one array, text as lists."""
    import pyarrow as pa

    column = table.column(name)
    list_type = column.type
    is_list = pa.types.is_list(list_type) or pa.types.is_large_list(list_type)
    value_type = list_type.value_type if is_list else None
    if value_type is not None and pa.types.is_string(value_type) and name.startswith("covariates."):
        rows = [row or [] for row in column.to_pylist()]
        if any(not isinstance(text, str) or len(text) > 200 for row in rows for text in row):
            raise _invalid_request(
                f"Expected text of at most 200 characters in the column {name!r}; found a null or a longer text. Correct it.",
                where=name,
            )
        return rows
    if value_type is None or not (pa.types.is_floating(value_type) or pa.types.is_integer(value_type)):
        raise _invalid_request(
            f"Expected lists of numbers in the column {name!r}; found {list_type}. Convert the column.", where=name
        )
    array = column.chunk(0) if column.num_chunks else pa.array([], list_type)
    offsets = array.offsets.to_numpy()
    values = np.asarray(array.values.to_numpy(zero_copy_only=False), dtype=np.float64)
    nulls = array.is_null().to_numpy(zero_copy_only=False)
    spans = zip(offsets[:-1].tolist(), offsets[1:].tolist(), nulls.tolist(), strict=True)
    return [values[:0] if is_null else values[start:stop] for start, stop, is_null in spans]


def _invalid_request(message: str, *, where: str | None = None) -> ApiError:
    return ApiError("invalid_request", message, where=where)

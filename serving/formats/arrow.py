"""The form of Arrow IPC streams, for tools that hold columns already. pyarrow is imported only where one is sent.

A row is a series. Columns: `id`, `start`, `freq` (texts; `start` may be a timestamp or a whole number), `y` (lists of numbers;
null or NaN: not observed), and for each covariate, static value and channel one column named `covariates.RELEASE`, `static.RELEASE` or
`channels.RELEASE`. What is asked of all stands in the schema's metadata as JSON under `forecast`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from pydantic import TypeAdapter, ValidationError

from forecaster.errors import ForecasterError
from serving.errors import ApiError
from serving.formats import parsing
from serving.formats.json_rows import TimestampFormatter
from serving.formats.outcome import SeriesOutcome
from serving.formats.schema import CategoryLabel, ForecastOptions, GridSeries, SeriesId, SeriesInput
from serving.formats.timestamps import FreqField, TimestampsField

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
METADATA_KEY = b"forecast"
_TEXT_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "id": TypeAdapter(list[SeriesId]),
    "start": TypeAdapter(TimestampsField),
    "freq": TypeAdapter(list[FreqField]),
    "static": TypeAdapter(list[CategoryLabel]),
}
_COLUMN_PREFIXES = ("covariates", "static", "channels")
_RECORD_BATCH_MESSAGE, _COMPRESSION_FIELD = (
    3,
    3,
)  # the kind of a message, and the place of a field, in Arrow's Message.fbs


def decode_arrow(body: bytes) -> tuple[ForecastOptions, list[SeriesInput]]:
    """What is asked, and the histories. Raises Problem: 400 for what is no such stream, 415 without pyarrow, 422."""
    table = _read_table(body)
    told = (table.schema.metadata or {}).get(METADATA_KEY)
    if told is None:
        raise _invalid_request(
            "Expected what is asked as JSON in the schema's metadata, under `forecast`; found nothing there."
        )
    ask = parsing.validate_fields(ForecastOptions, parsing.parse_json(told))
    names = table.column_names
    missing = [name for name in ("id", "start", "freq", "y") if name not in names]
    odd = [
        name
        for name in names
        if name not in ("id", "start", "freq", "y") and name.partition(".")[0] not in _COLUMN_PREFIXES
    ]
    if missing or odd or len(set(names)) < len(names) or not table.num_rows:
        raise _invalid_request(
            "Expected one row or more, and the columns id, start, freq, y and any covariates.NAME, static.NAME, "
            f"channels.NAME, each once; found {', '.join(names)[:300]} in {table.num_rows} rows."
        )
    texts = {
        name: _read_text_column(table, name) for name in names if name in _TEXT_ADAPTERS or name.startswith("static.")
    }
    lists = {name: _read_list_column(table, name) for name in names if name not in texts}
    inside = {part: [name for name in names if name.startswith(f"{part}.")] for part in _COLUMN_PREFIXES}

    def columns(part: str, place: int) -> dict[str, Any]:
        held = texts if part == "static" else lists
        return {name.removeprefix(f"{part}."): held[name][place] for name in inside[part]}

    return ask, [
        GridSeries.model_construct(
            id=texts["id"][place],
            start=texts["start"][place],
            freq=texts["freq"][place],
            y=lists["y"][place],
            covariates=columns("covariates", place),
            static=columns("static", place),
            channels=columns("channels", place),
        )
        for place in range(table.num_rows)
    ]


def encode_arrow(model_info: dict[str, Any], outcomes: Sequence[SeriesOutcome], options: ForecastOptions) -> bytes:
    """A stream with a row for each series: id, ds, mean, a column for each level, samples, warnings, error, message."""
    import pyarrow as pa

    stamper = TimestampFormatter()
    good = [None if isinstance(one.result, ForecasterError) else one.result for one in outcomes]
    errors = [one.result if isinstance(one.result, ForecasterError) else None for one in outcomes]
    stamps = [one and stamper.format(one.forecast.ds, one.style) for one in good]
    numbered = any(one and isinstance(one[0], int) for one in stamps)
    numbers = pa.list_(pa.float64())
    columns = {
        "id": pa.array([one.id for one in outcomes], pa.string()),
        "ds": pa.array(stamps, pa.list_(pa.int64() if numbered else pa.string())),
        "mean": pa.array([one and one.forecast.mean for one in good], numbers),
    }
    for level in sorted(options.levels):
        values = [one and one.forecast.quantiles[level] for one in good]
        columns[f"quantiles.{float(level)!r}"] = pa.array(values, numbers)
    if options.samples:
        paths = [None if one is None or one.paths is None else list(one.paths) for one in good]
        columns["samples"] = pa.array(paths, pa.list_(numbers), from_pandas=True)
    if options.return_state:
        columns["state"] = pa.array([one and one.state_token for one in good], pa.string())
    columns["warnings"] = pa.array([one.warnings if one else [] for one in good], pa.list_(pa.string()))
    columns["error"] = pa.array([one and one.code for one in errors], pa.string())
    columns["message"] = pa.array([one and one.message for one in errors], pa.string())
    table = pa.table(columns).replace_schema_metadata({b"model": orjson.dumps(model_info)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    whole: bytes = sink.getvalue().to_pybytes()
    return whole


def _read_table(body: bytes) -> pa.Table:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ApiError(
            "unsupported_media_type",
            "Expected JSON or lines: Arrow needs pyarrow, which is not installed on this server.",
            where="content-type",
        ) from error
    try:
        _validate_batches(pa, body)
        with pa.ipc.open_stream(pa.py_buffer(body)) as stream:
            table = stream.read_all().combine_chunks()
        table.validate(full=True)  # offsets and texts are the sender's, and are used as they are
    except (pa.ArrowException, OSError, ValueError, struct.error, KeyError) as error:
        raise ApiError("malformed_arrow", "Expected an Arrow IPC stream; it cannot be read. Send it again.") from error
    return table


def _validate_batches(pa: Any, body: bytes) -> None:
    """Raises Problem for batches that say more than their bytes: compressed ones, and dictionaries."""
    for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(body)):
        if message.type == "dictionary" or (message.type == "record batch" and _is_compressed(bytes(message.metadata))):
            raise ApiError(
                "malformed_arrow",
                "Expected batches without compression and without dictionaries. Compress the whole body with gzip or zstd.",
            )


def _is_compressed(metadata: bytes) -> bool:
    """Whether a record batch says that its buffers are, which pyarrow does not tell."""
    root = struct.unpack_from("<I", metadata)[0]
    header = _find_field(metadata, root, 2)
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return _find_field(metadata, batch, _COMPRESSION_FIELD) != 0


def _find_field(data: bytes, table_offset: int, field_index: int) -> int:
    """Where a field of a flatbuffer's table is; 0 if it is not there."""
    directory = table_offset - struct.unpack_from("<i", data, table_offset)[0]
    size = struct.unpack_from("<H", data, directory)[0]
    if 4 + 2 * field_index + 2 > size:
        return 0
    offset = struct.unpack_from("<H", data, directory + 4 + 2 * field_index)[0]
    return table_offset + offset if offset else 0


def _read_text_column(table: pa.Table, name: str) -> list[Any]:
    """A column with one entry a series, checked as the same of JSON is."""
    import pyarrow as pa

    column = table.column(name)
    if pa.types.is_timestamp(column.type) and name == "start":
        values: list[Any] = [one and one.isoformat() for one in _read_datetimes(column)]
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_integer(column.type):
        values = column.to_pylist()
    else:
        raise _invalid_request(f"Expected text in the column {name!r}; found {column.type}.")
    try:
        return list(_TEXT_ADAPTERS[name.partition(".")[0]].validate_python(values, strict=True))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("text", "number"))
        raise _invalid_request(f"{name}.{place}: {first['msg']}.", where=f"{name}.{place}") from error


def _read_datetimes(column: Any) -> list[Any]:
    import pyarrow as pa

    zone = column.type.tz
    if zone not in (None, "UTC", "+00:00", "Z"):
        raise _invalid_request(
            f"Expected timestamps in UTC or without a zone in `start`; found {zone[:40]!r}. Write texts, or UTC."
        )
    return list(column.cast(pa.timestamp("us", tz=None if zone is None else "UTC")).to_pylist())


def _read_list_column(table: pa.Table, name: str) -> list[Any]:
    """A column with a list a series: of each, its part of one array of numbers; of texts, lists."""
    import pyarrow as pa

    column = table.column(name)
    kind = column.type
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
    if inner is not None and pa.types.is_string(inner) and name.startswith("covariates."):
        rows = [one or [] for one in column.to_pylist()]
        if any(not isinstance(text, str) or len(text) > 200 for row in rows for text in row):
            raise _invalid_request(
                f"Expected texts of 200 characters at most in the column {name!r}; found others.", where=name
            )
        return rows
    if inner is None or not (pa.types.is_floating(inner) or pa.types.is_integer(inner)):
        raise _invalid_request(f"Expected lists of numbers in the column {name!r}; found {kind}.", where=name)
    array = column.chunk(0) if column.num_chunks else pa.array([], kind)
    ends = array.offsets.to_numpy()
    whole = np.asarray(array.values.to_numpy(zero_copy_only=False), dtype=np.float64)
    absent = array.is_null().to_numpy(zero_copy_only=False)
    pairs = zip(ends[:-1].tolist(), ends[1:].tolist(), absent.tolist(), strict=True)
    return [whole[:0] if nothing else whole[first:last] for first, last, nothing in pairs]


def _invalid_request(message: str, *, where: str | None = None) -> ApiError:
    return ApiError("invalid_request", message, where=where)

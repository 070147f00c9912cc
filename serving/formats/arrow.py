"""The form of Arrow IPC streams, for tools that hold columns already. pyarrow is imported only where one is sent.

A row is a series. Columns: `id`, `start`, `freq` (texts; `start` may be a timestamp or a whole number), `y` (lists of numbers;
null or NaN: not observed), and for each covariate, static value and channel one column named `covariates.NAME`, `static.NAME` or
`channels.NAME`. What is asked of all stands in the schema's metadata as JSON under `forecast`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from pydantic import TypeAdapter, ValidationError

from forecaster.errors import ForecasterError
from serving.errors import Problem
from serving.formats import parsing
from serving.formats.json_rows import Stamper
from serving.formats.outcome import Outcome
from serving.formats.schema import Ask, AskedHistory, GridSeries, Id, Label
from serving.formats.timestamps import AskedFreq, AskedStamps

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
KEY = b"forecast"
_TEXTS: dict[str, TypeAdapter[Any]] = {
    "id": TypeAdapter(list[Id]),
    "start": TypeAdapter(AskedStamps),
    "freq": TypeAdapter(list[AskedFreq]),
    "static": TypeAdapter(list[Label]),
}
_PARTS = ("covariates", "static", "channels")
_RECORD_BATCH, _COMPRESSION = 3, 3  # the kind of a message, and the place of a field, in Arrow's Message.fbs


def read(body: bytes) -> tuple[Ask, list[AskedHistory]]:
    """What is asked, and the histories. Raises Problem: 400 for what is no such stream, 415 without pyarrow, 422."""
    table = _table(body)
    told = (table.schema.metadata or {}).get(KEY)
    if told is None:
        raise _invalid(
            "Expected what is asked as JSON in the schema's metadata, under `forecast`; found nothing there."
        )
    ask = parsing.validated(Ask, parsing.parse(told))
    names = table.column_names
    missing = [name for name in ("id", "start", "freq", "y") if name not in names]
    odd = [name for name in names if name not in ("id", "start", "freq", "y") and name.partition(".")[0] not in _PARTS]
    if missing or odd or len(set(names)) < len(names) or not table.num_rows:
        raise _invalid(
            "Expected one row or more, and the columns id, start, freq, y and any covariates.NAME, static.NAME, "
            f"channels.NAME, each once; found {', '.join(names)[:300]} in {table.num_rows} rows."
        )
    texts = {name: _texts(table, name) for name in names if name in _TEXTS or name.startswith("static.")}
    lists = {name: _lists(table, name) for name in names if name not in texts}
    inside = {part: [name for name in names if name.startswith(f"{part}.")] for part in _PARTS}

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


def write(model: dict[str, Any], done: Sequence[Outcome], ask: Ask) -> bytes:
    """A stream with a row for each series: id, ds, mean, a column for each level, samples, warnings, error, message."""
    import pyarrow as pa

    stamper = Stamper()
    good = [None if isinstance(one.found, ForecasterError) else one.found for one in done]
    errors = [one.found if isinstance(one.found, ForecasterError) else None for one in done]
    stamps = [one and stamper.write(one.forecast.ds, one.style) for one in good]
    numbered = any(one and isinstance(one[0], int) for one in stamps)
    numbers = pa.list_(pa.float64())
    columns = {
        "id": pa.array([one.id for one in done], pa.string()),
        "ds": pa.array(stamps, pa.list_(pa.int64() if numbered else pa.string())),
        "mean": pa.array([one and one.forecast.mean for one in good], numbers),
    }
    for level in sorted(ask.levels):
        values = [one and one.forecast.quantiles[level] for one in good]
        columns[f"quantiles.{float(level)!r}"] = pa.array(values, numbers)
    if ask.samples:
        paths = [None if one is None or one.paths is None else list(one.paths) for one in good]
        columns["samples"] = pa.array(paths, pa.list_(numbers), from_pandas=True)
    if ask.return_state:
        columns["state"] = pa.array([one and one.state for one in good], pa.string())
    columns["warnings"] = pa.array([one.warnings if one else [] for one in good], pa.list_(pa.string()))
    columns["error"] = pa.array([one and one.code for one in errors], pa.string())
    columns["message"] = pa.array([one and one.message for one in errors], pa.string())
    table = pa.table(columns).replace_schema_metadata({b"model": orjson.dumps(model)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    whole: bytes = sink.getvalue().to_pybytes()
    return whole


def _table(body: bytes) -> pa.Table:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise Problem(
            "unsupported_media_type",
            "Expected JSON or lines: Arrow needs pyarrow, which is not installed on this server.",
            where="content-type",
        ) from error
    try:
        _check_plain(pa, body)
        with pa.ipc.open_stream(pa.py_buffer(body)) as stream:
            table = stream.read_all().combine_chunks()
        table.validate(full=True)  # offsets and texts are the sender's, and are used as they are
    except (pa.ArrowException, OSError, ValueError, struct.error, KeyError) as error:
        raise Problem("malformed_arrow", "Expected an Arrow IPC stream; it cannot be read. Send it again.") from error
    return table


def _check_plain(pa: Any, body: bytes) -> None:
    """Raises Problem for batches that say more than their bytes: compressed ones, and dictionaries."""
    for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(body)):
        if message.type == "dictionary" or (message.type == "record batch" and _is_compressed(bytes(message.metadata))):
            raise Problem(
                "malformed_arrow",
                "Expected batches without compression and without dictionaries. Compress the whole body with gzip or zstd.",
            )


def _is_compressed(metadata: bytes) -> bool:
    """Whether a record batch says that its buffers are, which pyarrow does not tell."""
    root = struct.unpack_from("<I", metadata)[0]
    header = _field(metadata, root, 2)
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return _field(metadata, batch, _COMPRESSION) != 0


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table is; 0 if it is not there."""
    directory = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, directory)[0]
    if 4 + 2 * number + 2 > size:
        return 0
    offset = struct.unpack_from("<H", data, directory + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _texts(table: pa.Table, name: str) -> list[Any]:
    """A column with one entry a series, checked as the same of JSON is."""
    import pyarrow as pa

    column = table.column(name)
    if pa.types.is_timestamp(column.type) and name == "start":
        values: list[Any] = [one and one.isoformat() for one in _moments(column)]
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_integer(column.type):
        values = column.to_pylist()
    else:
        raise _invalid(f"Expected text in the column {name!r}; found {column.type}.")
    try:
        return list(_TEXTS[name.partition(".")[0]].validate_python(values, strict=True))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("text", "number"))
        raise _invalid(f"{name}.{place}: {first['msg']}.", where=f"{name}.{place}") from error


def _moments(column: Any) -> list[Any]:
    import pyarrow as pa

    zone = column.type.tz
    if zone not in (None, "UTC", "+00:00", "Z"):
        raise _invalid(
            f"Expected timestamps in UTC or without a zone in `start`; found {zone[:40]!r}. Write texts, or UTC."
        )
    return list(column.cast(pa.timestamp("us", tz=None if zone is None else "UTC")).to_pylist())


def _lists(table: pa.Table, name: str) -> list[Any]:
    """A column with a list a series: of each, its part of one array of numbers; of texts, lists."""
    import pyarrow as pa

    column = table.column(name)
    kind = column.type
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
    if inner is not None and pa.types.is_string(inner) and name.startswith("covariates."):
        rows = [one or [] for one in column.to_pylist()]
        if any(not isinstance(text, str) or len(text) > 200 for row in rows for text in row):
            raise _invalid(
                f"Expected texts of 200 characters at most in the column {name!r}; found others.", where=name
            )
        return rows
    if inner is None or not (pa.types.is_floating(inner) or pa.types.is_integer(inner)):
        raise _invalid(f"Expected lists of numbers in the column {name!r}; found {kind}.", where=name)
    array = column.chunk(0) if column.num_chunks else pa.array([], kind)
    ends = array.offsets.to_numpy()
    whole = np.asarray(array.values.to_numpy(zero_copy_only=False), dtype=np.float64)
    absent = array.is_null().to_numpy(zero_copy_only=False)
    pairs = zip(ends[:-1].tolist(), ends[1:].tolist(), absent.tolist(), strict=True)
    return [whole[:0] if nothing else whole[first:last] for first, last, nothing in pairs]


def _invalid(message: str, *, where: str | None = None) -> Problem:
    return Problem("invalid_request", message, where=where)

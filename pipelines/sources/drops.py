"""Reads a folder of data drops: files delivered one after another, where later files correct the rows of earlier ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from forecaster.data.frames import columns as cells
from forecaster.data.frames import timestamps
from forecaster.errors import BadStamp, InputError, NoData
from forecaster.frequency.timestamps import Timestamps, format_timestamp, timestamps_to_int64
from pipelines.sources.data import DataSource
from pipelines.sources.source_files import SourceFile, SourceTable
from pipelines.sources.stores import SourceFolder
from pipelines.sources.tables import TABLE_SUFFIXES, is_table_name, read_table

_INCOMPLETE_PATTERN = re.compile(r"[._~]|.*\.(tmp|temp|part|partial|incomplete)\.", re.IGNORECASE)
_MAX_NAMES_SHOWN = 3


def sort_by_name(names: Sequence[str]) -> list[str]:
    """Sorts drops from the earliest to the latest: by name, with numbers compared by value.

    Modification times are not used, because they change when files are copied; names do not.
    """

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.split(r"(\d+)", name)
        return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts if part], name

    return sorted(names, key=key)


def is_incomplete(name: str) -> bool:
    """Whether the name marks a file that is being written: `.x.csv`, `_x.csv`, `~x.csv`, `x.tmp.csv`, `x.part.parquet`."""
    return _INCOMPLETE_PATTERN.match(name) is not None


def read_drops(folder: SourceFolder, data: DataSource) -> SourceTable:
    """Reads all rows of a folder of drops. Of several rows of one series and timestamp, the whole row of the last drop counts.

    An empty `y` in a later drop therefore withdraws a value. Errors in a drop name its file.
    """
    files = {file.name: file for file in folder.files}
    complete = [name for name in files if is_table_name(name) and not is_incomplete(name)]
    skipped = sorted(set(files) - set(complete))
    if not complete:
        names_shown = ", ".join(skipped[:_MAX_NAMES_SHOWN]) or "none"
        raise NoData(
            f"Expected files ending in {', '.join(TABLE_SUFFIXES)} in {folder.location}; found {names_shown}. Add files under "
            "their final names, or use another folder.",
            where=folder.location,
        )
    names = sort_by_name(complete)
    tables = [_read_drop(files[name], data) for name in names]
    frames = [table.frame for table in tables]
    ds = _concat_timestamps([frame[data.columns.ds] for frame in frames], [files[name].location for name in names])
    frame = pd.concat([frame.drop(columns=data.columns.ds) for frame in frames], ignore_index=True)
    frame[data.columns.ds] = ds
    drop_index = np.repeat(np.arange(len(frames)), [len(frame) for frame in frames])
    frame, repairs = _apply_corrections(frame, drop_index, names, data)
    repairs += [f"{name}: {repair}" for name, table in zip(names, tables, strict=True) for repair in table.repairs]
    if skipped:
        more = f" and {len(skipped) - _MAX_NAMES_SHOWN} more" if len(skipped) > _MAX_NAMES_SHOWN else ""
        repairs.append(f"skipped files in {folder.location} by name: {', '.join(skipped[:_MAX_NAMES_SHOWN])}{more}")
    return SourceTable(frame, tuple(repairs))


def _read_drop(file: SourceFile, data: DataSource) -> SourceTable:
    """Reads one drop and parses its cells as `to_panel` does; a subclass of InputError gets the file as a prefix."""
    (frame, repairs), names = read_table(file, data), data.columns
    try:
        cells.validate_columns(frame, required=names, optional=[*data.covariates, *data.static, *data.channels])
        ids = cells.parse_ids(frame[names.unique_id], column=names.unique_id)
        parsed = timestamps.parse_timestamp_column(
            frame[names.ds],
            column=names.ds,
            freq=None if data.freq is None else str(data.freq),
            zone=data.zone,
            series_codes=ids.codes,
        )
        parsed_frame = pd.DataFrame(
            {
                names.unique_id: pd.Series(ids.ids[ids.codes], dtype=object),
                names.ds: parsed.timestamps,
                names.y: cells.parse_numbers(frame[names.y], column=names.y)
                if data.vocabulary is None
                else cells.parse_symbols(frame[names.y]),
                **{name: cells.parse_covariate(frame[name], column=name) for name in data.covariates},
                **{name: cells.parse_labels(frame[name]) for name in data.static},
                **{name: cells.parse_numbers(frame[name], column=name) for name in data.channels},
            }
        )
        return SourceTable(parsed_frame, repairs)
    except InputError as error:
        raise type(error)(f"{file.location}: {error.message}", where=file.location) from error


def _concat_timestamps(columns: Sequence[pd.Series], locations: Sequence[str]) -> Timestamps:
    """Joins the timestamps of all drops in one column; raises BadStamp if the drops have different kinds of timestamps."""
    kinds = [_describe_timestamps(column) for column in columns]
    mismatch = next((index for index, kind in enumerate(kinds) if kind != kinds[0]), None)
    if mismatch is not None:
        raise BadStamp(
            f"Expected timestamps of the same kind in all drops; {locations[0]} has {kinds[0]}, {locations[mismatch]} has "
            f"{kinds[mismatch]}. Use one format, or declare the zone.",
            where=locations[mismatch],
        )
    indexes = [pd.Index(column) for column in columns]
    if isinstance(indexes[0], pd.DatetimeIndex) and indexes[0].tz is not None:
        indexes = [index.tz_convert(indexes[0].tz) for index in indexes if isinstance(index, pd.DatetimeIndex)]
    joined: Timestamps = indexes[0].append(indexes[1:])
    return joined


def _describe_timestamps(ds: pd.Series) -> str:
    if not isinstance(ds.dtype, pd.DatetimeTZDtype):
        return "numbers" if pd.api.types.is_integer_dtype(ds) else "timestamps without a zone"
    return "timestamps with a zone"


def _apply_corrections(
    frame: pd.DataFrame, drop_index: np.ndarray, names: Sequence[str], data: DataSource
) -> tuple[pd.DataFrame, list[str]]:
    """Keeps the rows of the last drop of each series and timestamp, sorted; also returns messages about the corrections."""
    ids, ds = frame[data.columns.unique_id], pd.Index(frame[data.columns.ds])
    codes, _ = pd.factorize(ids, sort=True)
    ticks = timestamps_to_int64(ds)
    order = np.lexsort((np.arange(len(frame)), drop_index, ticks, codes))
    codes, ticks, drop_index = codes[order], ticks[order], drop_index[order]
    frame = frame.iloc[order].reset_index(drop=True)
    starts = np.flatnonzero(np.r_[True, (codes[1:] != codes[:-1]) | (ticks[1:] != ticks[:-1])])
    latest = np.maximum.reduceat(drop_index, starts)
    step_index = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(frame)]))
    is_latest = drop_index == latest[step_index]
    # The last row of the previous drop is adjacent to the first row of the last drop.
    after = np.flatnonzero(is_latest & np.r_[False, ~is_latest[:-1]])
    values = frame.drop(columns=[data.columns.unique_id, data.columns.ds])
    previous, current = values.iloc[after - 1].reset_index(drop=True), values.iloc[after].reset_index(drop=True)
    unchanged = ((previous == current) | (previous.isna() & current.isna())).to_numpy(dtype=bool).all(axis=1)
    repairs = []
    if not unchanged.all():
        row = int(after[np.argmin(unchanged)])
        y, at = frame[data.columns.y], _format_timestamp(frame[data.columns.ds][row])
        num_withdrawn = int((previous[data.columns.y].notna() & current[data.columns.y].isna()).sum())
        withdrawn = f", {num_withdrawn} of them withdrawn" if num_withdrawn else ""
        repairs.append(
            f"later drops corrected {int((~unchanged).sum())} rows of earlier ones{withdrawn} (the first: series "
            f"{frame[data.columns.unique_id][row]!r} at {at}, {y[row - 1]} became {y[row]} "
            f"in {names[drop_index[row]]})"
        )
    if unchanged.any():
        repairs.append(f"later drops repeated {int(unchanged.sum())} rows unchanged")
    return frame[is_latest].reset_index(drop=True), repairs


def _format_timestamp(value: Any) -> str:
    return format_timestamp(value if isinstance(value, pd.Timestamp) else int(value))

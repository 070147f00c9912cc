"""A folder of drops: files that came one after the other, of which later ones correct what earlier ones said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.data.frames import columns as cells
from forecaster.data.frames import timestamps
from forecaster.errors import BadStamp, InputError, NoData
from forecaster.frequency import Timestamps, format_timestamp, normalize_frequency, timestamps_to_int64
from pipelines.sources.data import DataSource
from pipelines.sources.stores import SourceFolder
from pipelines.sources.tables import TABLE_SUFFIXES, SourceFile, is_table_name, read_table

_INCOMPLETE_PATTERN = re.compile(r"[._~]|.*\.(tmp|temp|part|partial|incomplete)\.", re.IGNORECASE)
_MAX_NAMES_SHOWN = 3


class SourceTable(NamedTuple):
    """The rows of a folder, and what later drops said otherwise than earlier ones."""

    frame: pd.DataFrame
    repairs: tuple[str, ...]


def sort_by_name(names: Sequence[str]) -> list[str]:
    """Drops, the latest last: by name, numbers in it by their value. Times of files change when they are copied; names do not."""

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.split(r"(\d+)", name)
        return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts if part], name

    return sorted(names, key=key)


def is_incomplete(name: str) -> bool:
    """Whether a file is named as one that is being written: `.x.csv`, `_x.csv`, `~x.csv`, `x.tmp.csv`, `x.part.parquet`."""
    return _INCOMPLETE_PATTERN.match(name) is not None


def read_drops(folder: SourceFolder, data: DataSource) -> SourceTable:
    """All rows of a folder of drops; where several drops have a row of one series and stamp, that of the last, whole.

    An empty `y` in a later drop so takes a value back. What is wrong in one drop names it.
    """
    files = {one.name: one for one in folder.files}
    whole = [name for name in files if is_table_name(name) and not is_incomplete(name)]
    aside = sorted(set(files) - set(whole))
    if not whole:
        found = ", ".join(aside[:_MAX_NAMES_SHOWN]) or "none"
        raise NoData(
            f"Expected files ending in {', '.join(TABLE_SUFFIXES)} in {folder.location}; found {found}. Put them there under their "
            "final names, or give another folder.",
            where=folder.location,
        )
    names = sort_by_name(whole)
    frames = [_read_drop(files[name], data) for name in names]
    ds = _concat_timestamps([frame[data.columns.ds] for frame in frames], [files[name].location for name in names])
    frame = pd.concat([one.drop(columns=data.columns.ds) for one in frames], ignore_index=True)
    frame[data.columns.ds] = ds
    drop = np.repeat(np.arange(len(frames)), [len(one) for one in frames])
    frame, repairs = _apply_corrections(frame, drop, names, data)
    if aside:
        more = f" and {len(aside) - _MAX_NAMES_SHOWN} more" if len(aside) > _MAX_NAMES_SHOWN else ""
        repairs.append(f"left aside in {folder.location}, by their names: {', '.join(aside[:_MAX_NAMES_SHOWN])}{more}")
    return SourceTable(frame, tuple(repairs))


def _read_drop(file: SourceFile, data: DataSource) -> pd.DataFrame:
    """One drop, its cells read as `to_panel` reads them; InputError's kinds with the file in front."""
    frame, names = read_table(file, data), data.columns
    try:
        cells.validate_columns(frame, required=names, optional=[*data.covariates, *data.static, *data.channels])
        ids = cells.parse_ids(frame[names.unique_id], column=names.unique_id)
        freq = None if data.freq is None else normalize_frequency(data.freq, where="freq")
        read = timestamps.parse_timestamp_column(
            frame[names.ds], column=names.ds, freq=freq, zone=data.zone, series_codes=ids.codes
        )
        return pd.DataFrame(
            {
                names.unique_id: pd.Series(ids.ids[ids.codes], dtype=object),
                names.ds: read.timestamps,
                names.y: cells.parse_numbers(frame[names.y], column=names.y),
                **{name: cells.parse_covariate(frame[name], column=name) for name in data.covariates},
                **{name: cells.parse_labels(frame[name]) for name in data.static},
                **{name: cells.parse_numbers(frame[name], column=name) for name in data.channels},
            }
        )
    except InputError as error:
        raise type(error)(f"{file.location}: {error.message}", where=file.location) from error


def _concat_timestamps(columns: Sequence[pd.Series], locations: Sequence[str]) -> Timestamps:
    """The stamps of all drops in one column; drops of different kinds of stamps are refused."""
    kinds = [_describe_timestamps(one) for one in columns]
    odd = next((place for place, kind in enumerate(kinds) if kind != kinds[0]), None)
    if odd is not None:
        raise BadStamp(
            f"Expected stamps of one kind in all drops; {locations[0]} has {kinds[0]}, {locations[odd]} has {kinds[odd]}. Write them "
            "alike, or declare the zone.",
            where=locations[odd],
        )
    moments = [pd.Index(one) for one in columns]
    if isinstance(moments[0], pd.DatetimeIndex) and moments[0].tz is not None:
        moments = [one.tz_convert(moments[0].tz) for one in moments if isinstance(one, pd.DatetimeIndex)]
    joined: Timestamps = moments[0].append(moments[1:])
    return joined


def _describe_timestamps(ds: pd.Series) -> str:
    if not isinstance(ds.dtype, pd.DatetimeTZDtype):
        return "numbers" if pd.api.types.is_integer_dtype(ds) else "stamps without a zone"
    return "stamps with a zone"


def _apply_corrections(
    frame: pd.DataFrame, drop_index: np.ndarray, names: Sequence[str], data: DataSource
) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the last drop of each series and stamp, sorted; and what they changed."""
    ids, ds = frame[data.columns.unique_id], pd.Index(frame[data.columns.ds])
    codes, _ = pd.factorize(ids, sort=True)
    ticks = timestamps_to_int64(ds)
    order = np.lexsort((np.arange(len(frame)), drop_index, ticks, codes))
    codes, ticks, drop_index = codes[order], ticks[order], drop_index[order]
    frame = frame.iloc[order].reset_index(drop=True)
    starts = np.flatnonzero(np.r_[True, (codes[1:] != codes[:-1]) | (ticks[1:] != ticks[:-1])])
    latest = np.maximum.reduceat(drop_index, starts)
    moment = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(frame)]))
    kept = drop_index == latest[moment]
    # The last row of the drop before, and the first of the last drop, lie beside each other.
    after = np.flatnonzero(kept & np.r_[False, ~kept[:-1]])
    values = frame.drop(columns=[data.columns.unique_id, data.columns.ds])
    before, now = values.iloc[after - 1].reset_index(drop=True), values.iloc[after].reset_index(drop=True)
    same = ((before == now) | (before.isna() & now.isna())).to_numpy(dtype=bool).all(axis=1)
    repairs = []
    if not same.all():
        row = int(after[np.argmin(same)])
        y = frame[data.columns.y]
        taken = int((before[data.columns.y].notna() & now[data.columns.y].isna()).sum())
        back = f", {taken} of them taken back" if taken else ""
        repairs.append(
            f"later drops corrected {int((~same).sum())} rows of earlier ones{back} (the first: series "
            f"{frame[data.columns.unique_id][row]!r} at {_format_timestamp(frame[data.columns.ds][row])}, {y[row - 1]} became {y[row]} "
            f"in {names[drop_index[row]]})"
        )
    if same.any():
        repairs.append(f"{int(same.sum())} rows came again unchanged in later drops")
    return frame[kept].reset_index(drop=True), repairs


def _format_timestamp(value: Any) -> str:
    return format_timestamp(value if isinstance(value, pd.Timestamp) else int(value))

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
from forecaster.frequency import Stamps, counts, named, tell
from pipelines.sources.data import Data
from pipelines.sources.stores import Folder
from pipelines.sources.tables import ENDINGS, File, is_table, read_table

_UNDER_WAY = re.compile(r"[._~]|.*\.(tmp|temp|part|partial|incomplete)\.", re.IGNORECASE)
_TOLD = 3


class Drops(NamedTuple):
    """The rows of a folder, and what later drops said otherwise than earlier ones."""

    frame: pd.DataFrame
    repairs: tuple[str, ...]


def in_order(names: Sequence[str]) -> list[str]:
    """Drops, the latest last: by name, numbers in it by their value. Times of files change when they are copied; names do not."""

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.split(r"(\d+)", name)
        return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts if part], name

    return sorted(names, key=key)


def is_under_way(name: str) -> bool:
    """Whether a file is named as one that is being written: `.x.csv`, `_x.csv`, `~x.csv`, `x.tmp.csv`, `x.part.parquet`."""
    return _UNDER_WAY.match(name) is not None


def gather(folder: Folder, data: Data) -> Drops:
    """All rows of a folder of drops; where several drops have a row of one series and stamp, that of the last, whole.

    An empty `y` in a later drop so takes a value back. What is wrong in one drop names it.
    """
    files = {one.name: one for one in folder.files}
    whole = [name for name in files if is_table(name) and not is_under_way(name)]
    aside = sorted(set(files) - set(whole))
    if not whole:
        found = ", ".join(aside[:_TOLD]) or "none"
        raise NoData(
            f"Expected files ending in {', '.join(ENDINGS)} in {folder.told}; found {found}. Put them there under their "
            "final names, or give another folder.",
            where=folder.told,
        )
    names = in_order(whole)
    frames = [_checked(files[name], data) for name in names]
    ds = _joined([frame[data.columns.ds] for frame in frames], [files[name].told for name in names])
    frame = pd.concat([one.drop(columns=data.columns.ds) for one in frames], ignore_index=True)
    frame[data.columns.ds] = ds
    drop = np.repeat(np.arange(len(frames)), [len(one) for one in frames])
    frame, repairs = _corrected(frame, drop, names, data)
    if aside:
        more = f" and {len(aside) - _TOLD} more" if len(aside) > _TOLD else ""
        repairs.append(f"left aside in {folder.told}, by their names: {', '.join(aside[:_TOLD])}{more}")
    return Drops(frame, tuple(repairs))


def _checked(file: File, data: Data) -> pd.DataFrame:
    """One drop, its cells read as `to_panel` reads them; InputError's kinds with the file in front."""
    frame, names = read_table(file, data), data.columns
    try:
        cells.check_there(frame, needed=names, further=[*data.covariates, *data.static, *data.channels])
        ids = cells.names(frame[names.unique_id], column=names.unique_id)
        freq = None if data.freq is None else named(data.freq, where="freq")
        read = timestamps.read(frame[names.ds], column=names.ds, freq=freq, zone=data.zone, series=ids.codes)
        return pd.DataFrame(
            {
                names.unique_id: pd.Series(ids.texts[ids.codes], dtype=object),
                names.ds: read.stamps,
                names.y: cells.numbers(frame[names.y], column=names.y),
                **{name: cells.known_ahead(frame[name], column=name) for name in data.covariates},
                **{name: cells.labels(frame[name]) for name in data.static},
                **{name: cells.numbers(frame[name], column=name) for name in data.channels},
            }
        )
    except InputError as error:
        raise type(error)(f"{file.told}: {error.message}", where=file.told) from error


def _joined(each: Sequence[pd.Series], told: Sequence[str]) -> Stamps:
    """The stamps of all drops in one column; drops of different kinds of stamps are refused."""
    kinds = [_kind(one) for one in each]
    odd = next((place for place, kind in enumerate(kinds) if kind != kinds[0]), None)
    if odd is not None:
        raise BadStamp(
            f"Expected stamps of one kind in all drops; {told[0]} has {kinds[0]}, {told[odd]} has {kinds[odd]}. Write them "
            "alike, or declare the zone.",
            where=told[odd],
        )
    moments = [pd.Index(one) for one in each]
    if isinstance(moments[0], pd.DatetimeIndex) and moments[0].tz is not None:
        moments = [one.tz_convert(moments[0].tz) for one in moments if isinstance(one, pd.DatetimeIndex)]
    joined: Stamps = moments[0].append(moments[1:])
    return joined


def _kind(ds: pd.Series) -> str:
    if not isinstance(ds.dtype, pd.DatetimeTZDtype):
        return "numbers" if pd.api.types.is_integer_dtype(ds) else "stamps without a zone"
    return "stamps with a zone"


def _corrected(
    frame: pd.DataFrame, drop: np.ndarray, names: Sequence[str], data: Data
) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the last drop of each series and stamp, sorted; and what they changed."""
    ids, ds = frame[data.columns.unique_id], pd.Index(frame[data.columns.ds])
    codes, _ = pd.factorize(ids, sort=True)
    ticks = counts(ds)
    order = np.lexsort((np.arange(len(frame)), drop, ticks, codes))
    codes, ticks, drop = codes[order], ticks[order], drop[order]
    frame = frame.iloc[order].reset_index(drop=True)
    starts = np.flatnonzero(np.r_[True, (codes[1:] != codes[:-1]) | (ticks[1:] != ticks[:-1])])
    latest = np.maximum.reduceat(drop, starts)
    moment = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(frame)]))
    kept = drop == latest[moment]
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
            f"{frame[data.columns.unique_id][row]!r} at {_stamp(frame[data.columns.ds][row])}, {y[row - 1]} became {y[row]} "
            f"in {names[drop[row]]})"
        )
    if same.any():
        repairs.append(f"{int(same.sum())} rows came again unchanged in later drops")
    return frame[kept].reset_index(drop=True), repairs


def _stamp(value: Any) -> str:
    return tell(value if isinstance(value, pd.Timestamp) else int(value))

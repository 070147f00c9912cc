"""A long data frame `unique_id, ds, y` in, a Panel out: checked, sorted, on one frequency; or an error that says where."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from forecaster.data.calendar import certain_frequency, offset, step_seconds
from forecaster.errors import (
    BadStamp,
    DuplicateStamp,
    FrequencyUnknown,
    InputError,
    IrregularStamps,
    MissingColumn,
    NotANumber,
)
from forecaster.series import Panel, Series

MOST_STEPS = 50_000_000  # of the grid between a frame's first and last stamp; more is a wrong frequency, not a history


class Columns(NamedTuple):
    """What a frame calls the three columns."""

    unique_id: str = "unique_id"
    ds: str = "ds"
    y: str = "y"


def to_panel(frame: pd.DataFrame, *, freq: str | None = None, columns: Columns | None = None) -> Panel:
    """Checks a long frame and cuts it into series.

    Args:
        frame: One row a series and stamp. NaN in `y` means not observed.
        freq: A pandas offset alias; None to infer it from the longest series, if it is certain.
        columns: The names of the columns, if not `unique_id, ds, y`.
    Raises:
        MissingColumn, NotANumber, BadStamp, DuplicateStamp, IrregularStamps, FrequencyUnknown: with the series and the
            first offending stamp.
    """
    names = columns or Columns()
    _check_columns(frame, names)
    repairs: list[str] = []
    tidy = pd.DataFrame(
        {"unique_id": _ids(frame, names.unique_id), "ds": _stamps(frame, names.ds), "y": _numbers(frame, names.y)}
    )
    if not _is_sorted(tidy):
        tidy = tidy.sort_values(["unique_id", "ds"], kind="stable", ignore_index=True)
        repairs.append("rows were not in order: sorted by series and stamp")
    tidy = _without_duplicates(tidy, repairs)
    bounds = _bounds(tidy["unique_id"])
    declared = freq or _certain(tidy, bounds)
    _check_regular(tidy, declared)
    ids = tidy["unique_id"].to_numpy()
    starts, values = tidy["ds"], tidy["y"].to_numpy()
    series = [Series(str(ids[a]), starts.iloc[a], declared, values[a:b]) for a, b in pairwise(bounds)]
    return Panel(series, declared, tuple(repairs))


def to_frame(panel: Panel) -> pd.DataFrame:
    """The long frame of a panel: the inverse of `to_panel`."""
    return pd.concat(
        [pd.DataFrame({"unique_id": one.id, "ds": one.stamps, "y": one.y}) for one in panel.series], ignore_index=True
    )


def _check_columns(frame: pd.DataFrame, names: Columns) -> None:
    missing = [name for name in names if name not in frame.columns]
    if missing:
        found = ", ".join(map(str, frame.columns[:20])) or "none"
        raise MissingColumn(
            f"Expected the columns {', '.join(names)}; {', '.join(missing)} not found among: {found}. "
            "Rename the columns, or say what they are called (--id-column, --ds-column, --y-column).",
            where=missing[0],
        )
    twice = [name for name in names if list(frame.columns).count(name) > 1]
    if twice:
        raise InputError(
            f"Expected one column {twice[0]!r}; found several. Rename all but one of them.", where=twice[0]
        )
    if frame.empty:
        raise InputError("Expected at least one row of data; found none. Send a history.", where=names.y)


def _ids(frame: pd.DataFrame, name: str) -> pd.Series:
    ids = frame[name]
    if ids.isna().any():
        row = int(np.flatnonzero(ids.isna())[0])
        raise InputError(
            f"Expected an id in every row; column {name!r} is empty in row {row}. Name the series.", where=name
        )
    return ids.astype(str)


def _stamps(frame: pd.DataFrame, name: str) -> pd.Series:
    raw = frame[name]
    if pd.api.types.is_numeric_dtype(raw):
        raise BadStamp(
            f"Expected time stamps in column {name!r}; found bare numbers such as {raw.iloc[0]!r}, whose unit nobody knows. "
            "Write ISO 8601 stamps such as 2026-01-31T00:00:00.",
            where=name,
        )
    try:
        stamps = pd.to_datetime(raw, format="ISO8601") if not pd.api.types.is_datetime64_any_dtype(raw) else raw
    except (ValueError, TypeError) as error:
        raise BadStamp(f"Expected ISO 8601 stamps in column {name!r}; {_first_bad_stamp(raw)}.", where=name) from error
    if stamps.isna().any():
        row = int(np.flatnonzero(stamps.isna())[0])
        raise BadStamp(
            f"Expected a stamp in every row; column {name!r} is empty in row {row}. Fill or drop it.", where=name
        )
    return stamps


def _first_bad_stamp(raw: pd.Series) -> str:
    for row, value in enumerate(raw):
        try:
            pd.to_datetime([value], format="ISO8601")
        except (ValueError, TypeError):
            return f"row {row} holds {value!r}"
    return "stamps with and without time zones, or of different zones, are mixed; write them all in UTC"


def _numbers(frame: pd.DataFrame, name: str) -> pd.Series:
    raw = frame[name]
    if pd.api.types.is_complex_dtype(raw):
        raise NotANumber(f"Expected real numbers in column {name!r}; found complex ones. Correct them.", where=name)
    if pd.api.types.is_bool_dtype(raw) or not pd.api.types.is_numeric_dtype(raw):
        numbers = pd.to_numeric(raw.astype(str).where(raw.notna()), errors="coerce")
        bad = np.flatnonzero(numbers.isna() & raw.notna())
        if len(bad) or pd.api.types.is_bool_dtype(raw):
            row = int(bad[0]) if len(bad) else 0
            raise NotANumber(
                f"Expected numbers in column {name!r}; row {row} holds {raw.iloc[row]!r}. "
                "Correct it, or leave it empty if it was not observed.",
                where=name,
            )
        raw = numbers
    values = raw.astype("float64")
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise NotANumber(
            f"Expected finite numbers in column {name!r}; row {int(infinite[0])} is infinite. "
            "Correct it, or leave it empty if it was not observed.",
            where=name,
        )
    return values


def _is_sorted(tidy: pd.DataFrame) -> bool:
    ids, stamps = tidy["unique_id"].to_numpy(), tidy["ds"]
    same = ids[1:] == ids[:-1]
    ordered = (stamps.diff().iloc[1:] >= pd.Timedelta(0)).to_numpy()
    return bool((ordered | ~same).all()) and len(_bounds(tidy["unique_id"])) - 1 == tidy["unique_id"].nunique()


def _bounds(ids: pd.Series) -> list[int]:
    values = ids.to_numpy()
    return [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]


def _without_duplicates(tidy: pd.DataFrame, repairs: list[str]) -> pd.DataFrame:
    if not tidy.duplicated(["unique_id", "ds"]).any():
        return tidy
    distinct = tidy.drop_duplicates(ignore_index=True)
    clash = distinct[distinct.duplicated(["unique_id", "ds"], keep=False)]
    if len(clash):
        first = clash.iloc[0]
        values = clash.loc[(clash["unique_id"] == first["unique_id"]) & (clash["ds"] == first["ds"]), "y"].tolist()
        raise DuplicateStamp(
            f"Expected one value a stamp; series {first['unique_id']!r} has {values} at {first['ds'].isoformat()}. "
            "Keep one of them, or add them up.",
            where=str(first["unique_id"]),
        )
    repairs.append(f"{len(tidy) - len(distinct)} repeated rows were dropped")
    return distinct


def _certain(tidy: pd.DataFrame, bounds: list[int]) -> str:
    longest = int(np.argmax(np.diff(bounds)))
    a, b = bounds[longest], bounds[longest + 1]
    return infer(pd.DatetimeIndex(tidy["ds"].iloc[a:b]), unique_id=str(tidy["unique_id"].iloc[a]))


def infer(stamps: pd.DatetimeIndex, *, unique_id: str) -> str:
    """The frequency of sorted stamps, when it is certain; names the odd stamp when one spoils a regular grid."""
    try:
        return certain_frequency(stamps, where=unique_id)
    except FrequencyUnknown:
        _raise_for_odd_step(stamps, unique_id)
        raise


def _raise_for_odd_step(stamps: pd.DatetimeIndex, unique_id: str) -> None:
    gaps = np.diff(stamps.asi8)
    if len(gaps) >= 3 and len(np.unique(gaps)) > 1:
        usual = float(np.median(gaps))
        odd = int(np.argmax(np.abs(gaps - usual) > 0.15 * usual))
        if abs(gaps[odd] - usual) > 0.15 * usual:  # months and quarters differ by less
            raise IrregularStamps(
                f"Expected regular stamps; series {unique_id!r} goes from {stamps[odd].isoformat()} to "
                f"{stamps[odd + 1].isoformat()}, unlike its other steps. Fill the gap with empty values, or declare the "
                "frequency if this is regular.",
                where=unique_id,
            )


def _check_regular(tidy: pd.DataFrame, freq: str) -> None:
    """Raises IrregularStamps unless every stamp follows its predecessor of the same series by one step."""
    step, stamps = offset(freq), pd.DatetimeIndex(tidy["ds"])
    seconds = step_seconds(step)
    if seconds is None:
        grid = _grid(stamps, step.base)  # of single steps: series may be out of phase by some of them
        place = grid.get_indexer(stamps)
        off = place < 0
        right = np.diff(place) == step.n
    else:
        clock = stamps if isinstance(step, pd.offsets.Tick) else stamps.tz_localize(None)  # a day may have 23 hours
        off = np.zeros(len(stamps), dtype=bool)
        right = np.diff(clock.as_unit("us").asi8) == round(seconds * 1e6)
    ids = tidy["unique_id"].to_numpy()
    wrong = off.copy()
    wrong[1:] |= ~right & (ids[1:] == ids[:-1])
    if not wrong.any():
        return
    row = int(np.flatnonzero(wrong)[0])
    if off[row]:
        found = f"has a stamp at {stamps[row].isoformat()}, which is not on that grid"
    else:
        found = f"goes from {stamps[row - 1].isoformat()} to {stamps[row].isoformat()}"
    raise IrregularStamps(
        f"Expected stamps one {freq!r} apart; series {str(ids[row])!r} {found}. "
        "Fill gaps with empty values, or declare the right frequency.",
        where=str(ids[row]),
    )


def _grid(stamps: pd.DatetimeIndex, step: pd.offsets.BaseOffset) -> pd.DatetimeIndex:
    first, last = stamps.min(), stamps.max()
    days = (last - first) / pd.Timedelta(days=1)
    if days > MOST_STEPS:
        raise IrregularStamps(
            f"The stamps span {days:.0f} days: more than {MOST_STEPS} steps. Correct the stamps.", where="ds"
        )
    return pd.date_range(first, last, freq=step)

"""Frames for a model that reads values only: all other columns are ignored, whatever they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from forecaster.data.frames import columns as cells
from forecaster.data.frames import timestamps
from forecaster.data.frames.rows import ColumnNames
from forecaster.shapes import Bool, Int

_MAX_LISTED_COLUMNS = 5  # in messages


class ValueRows(NamedTuple):
    """The columns of ids, timestamps and values of a frame.

    Attributes:
        frame: The rows.
        ignored: The names of the other columns.
        messages: What was left out, one line each, besides the columns.
    """

    frame: pd.DataFrame
    ignored: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()


def keep_values(frame: pd.DataFrame, names: ColumnNames, *, freq: str | None, zone: str | None) -> ValueRows:
    """Returns the ids, timestamps and values of a long frame.

    Rows after the last observed value of a series are its known future if another column has values there: they are left out,
    so that the forecast begins at the first of them. A column with one value per series does not count.

    Args:
        frame: A long frame; missing columns of its own are reported by `to_panel`.
        names: The names of its columns `unique_id, ds, y`.
        freq: The declared frequency, to read timestamps.
        zone: The time zone of timestamps without an offset.
    Raises:
        InputError: A subclass of it, for invalid ids or timestamps.
    """
    is_own = np.array([name in set(names) for name in frame.columns], dtype=bool)
    values = frame.loc[:, is_own]
    if is_own.all() or not {names.ds, names.y} <= set(frame.columns):
        return ValueRows(values if {names.ds, names.y} <= set(frame.columns) else frame)
    others = frame.loc[:, ~is_own]
    ignored = tuple(dict.fromkeys(map(str, others.columns)))
    if not values.columns.is_unique or values.empty:
        return ValueRows(values, ignored)
    is_future = _find_known_future(values, others, names, freq=freq, zone=zone)
    if not is_future.any():
        return ValueRows(values, ignored)
    message = (
        f"{int(is_future.sum())} rows without {names.y!r} after the last observed values count as the future, because other "
        "columns have values there: forecasts begin at the first of them"
    )
    return ValueRows(values[~is_future], ignored, (message,))


def describe_ignored_columns(ignored: Sequence[str], *, num_series: int) -> str:
    """Returns the message about columns that a model without covariates did not read."""
    listed = ", ".join(ignored[:_MAX_LISTED_COLUMNS])
    others = f" and {len(ignored) - _MAX_LISTED_COLUMNS} more" if len(ignored) > _MAX_LISTED_COLUMNS else ""
    columns = "column" if len(ignored) == 1 else "columns"
    return (
        f"The {columns} {listed}{others} of {num_series} series {'was' if len(ignored) == 1 else 'were'} ignored: the pretrained "
        "network reads ids, timestamps and values only. Train a model of your own to use covariates, static features or channels."
    )


def _find_known_future(
    values: pd.DataFrame, others: pd.DataFrame, names: ColumnNames, *, freq: str | None, zone: str | None
) -> Bool[np.ndarray, "row"]:
    """Returns which rows come after the last observed value of their series and have values of other columns."""
    is_observed = ~_is_blank(values[names.y])
    nothing = np.zeros(len(values), dtype=bool)
    if is_observed.all():
        return nothing
    codes = np.zeros(len(values), dtype=np.int64)
    if names.unique_id in values:
        codes = cells.parse_ids(values[names.unique_id], column=names.unique_id).codes
    is_known = _has_varying_value(others, codes) & ~is_observed
    if not is_known.any():
        return nothing
    ds = timestamps.parse_timestamp_column(
        values[names.ds], column=names.ds, freq=freq, zone=zone, series_codes=codes
    ).timestamps
    order = np.argsort(np.argsort(ds.asi8 if isinstance(ds, pd.DatetimeIndex) else ds.to_numpy(), kind="stable"))
    last_observed = np.full(int(codes.max()) + 1, -1, dtype=np.int64)
    np.maximum.at(last_observed, codes[is_observed], order[is_observed])
    is_later = (order > last_observed[codes]) & (last_observed[codes] >= 0)
    has_future = np.zeros(len(last_observed), dtype=bool)
    has_future[codes[is_later & is_known]] = True
    return np.asarray(is_later & has_future[codes])


def _has_varying_value(others: pd.DataFrame, codes: Int[np.ndarray, "row"]) -> Bool[np.ndarray, "row"]:
    """Returns which rows have a value in a column that changes within a series."""
    found = np.zeros(len(others), dtype=bool)
    for position in range(others.shape[1]):
        column = others.iloc[:, position]
        is_blank = _is_blank(column)
        texts = pd.Series([str(cell) for cell in column[~is_blank]])
        if (texts.groupby(codes[~is_blank]).nunique() > 1).any():
            found |= ~is_blank
    return found


def _is_blank(column: pd.Series) -> Bool[np.ndarray, "row"]:
    """Returns which cells are missing: NaN, or text without characters."""
    is_blank = np.array(column.isna(), dtype=bool)
    if pd.api.types.is_string_dtype(column.dtype) or column.dtype == object:
        is_blank |= np.array([isinstance(cell, str) and not cell.strip() for cell in column], dtype=bool)
    return is_blank

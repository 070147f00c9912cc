"""The rows of a long frame: parsed columns, sorted by series and timestamp, without duplicates."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import pandas as pd

from forecaster.data.frames import columns as cells
from forecaster.data.frames import timestamps
from forecaster.errors import (
    CovariateUnknown,
    DuplicateStamp,
    StaticChanges,
)
from forecaster.frequency.timestamps import Timestamps, format_timestamp, timestamp_at, timestamps_to_int64
from forecaster.shapes import Float64, Int

_DIGITS = re.compile(r"([0-9]{1,18})")


class ColumnNames(NamedTuple):
    """The names of the three required columns."""

    unique_id: str = "unique_id"
    ds: str = "ds"
    y: str = "y"


class ParsedRows(NamedTuple):
    """The parsed columns of a frame."""

    ids: Any  # object array: the id of each code
    codes: Int[np.ndarray, "row"]
    ds: Timestamps
    y: Float64[np.ndarray, "row"]
    covariates: Mapping[str, np.ndarray]
    static: Mapping[str, np.ndarray]
    channels: Mapping[str, Float64[np.ndarray, "row"]]

    def take(self, selection: np.ndarray) -> ParsedRows:
        """Returns the selected rows; `selection` is a mask or an array of row indices."""
        return ParsedRows(
            self.ids,
            self.codes[selection],
            self.ds[selection],
            self.y[selection],
            {name: values[selection] for name, values in self.covariates.items()},
            {name: values[selection] for name, values in self.static.items()},
            {name: values[selection] for name, values in self.channels.items()},
        )

    def series_bounds(self) -> Int[np.ndarray, "_"]:
        """Returns the first row of each series, and the end of the last series. The rows must be sorted."""
        inner = np.flatnonzero(self.codes[1:] != self.codes[:-1]) + 1
        return np.concatenate([[0], inner, [len(self.codes)]])

    def id_at(self, row: SupportsIndex) -> str:
        """Returns the id of the series that the row belongs to."""
        return str(self.ids[self.codes[row]])

    def format_timestamp_at(self, row: SupportsIndex) -> str:
        """Returns the timestamp of the row as text for a message."""
        return format_timestamp(timestamp_at(self.ds, int(row)))


def parse_rows(
    frame: pd.DataFrame,
    names: ColumnNames,
    *,
    freq: str | None,
    zone: str | None,
    covariates: Sequence[str],
    static: Sequence[str],
    channels: Sequence[str],
    text_covariates: Collection[str] | None,
    repairs: list[str],
) -> ParsedRows:
    """Parses the columns of a frame; what was repaired is appended to `repairs`. Raises a subclass of InputError."""
    ids = cells.parse_ids(frame[names.unique_id], column=names.unique_id)
    timestamp_column = timestamps.parse_timestamp_column(
        frame[names.ds], column=names.ds, freq=freq, zone=zone, series_codes=ids.codes
    )
    repairs.extend(timestamp_column.repairs)
    repairs.extend(cells.describe_similar_ids(ids.ids))
    rows = ParsedRows(
        ids.ids,
        ids.codes,
        timestamp_column.timestamps,
        cells.parse_numbers(frame[names.y], column=names.y),
        {
            name: cells.parse_covariate(
                frame[name], column=name, as_text=None if text_covariates is None else name in text_covariates
            )
            for name in covariates
        },
        {name: cells.parse_labels(frame[name]) for name in static},
        {name: cells.parse_numbers(frame[name], column=name) for name in channels},
    )
    for name, values in {**rows.covariates, **rows.static}.items():
        empty = cells.is_missing(values)
        if empty.any():
            row = int(np.argmax(empty))
            raise CovariateUnknown(
                f"Expected a value of {name!r} in every row; series {rows.id_at(row)!r} has none at "
                f"{rows.format_timestamp_at(row)}. Fill it in, or omit the column.",
                where=rows.id_at(row),
            )
    return rows


def sort_rows(rows: ParsedRows, repairs: list[str]) -> ParsedRows:
    """Returns the rows sorted by id and timestamp, with series codes in the same order.

    Data have the same digest and give the same weights in any order of the rows. Whole series that are not in the order of
    their ids are no repair; rows of a series that are not in order, or are not together, are.
    """
    code, ticks = rows.codes, timestamps_to_int64(rows.ds)
    is_same_series = code[1:] == code[:-1]
    is_backward = is_same_series & (ticks[1:] < ticks[:-1])
    is_orderly = not is_backward.any() and int((~is_same_series).sum()) + 1 == len(rows.ids)
    id_order = order_ids(rows.ids)
    if is_orderly and (id_order == np.arange(len(id_order))).all():
        return rows
    rank = np.empty(len(rows.ids), dtype=np.int64)
    rank[id_order] = np.arange(len(id_order))
    ranked = rows._replace(ids=rows.ids[id_order], codes=rank[code])
    order = np.lexsort((ticks, ranked.codes))
    if not is_orderly:
        moved_count = int((order != np.arange(len(order))).sum())
        repairs.append(f"rows were not in order: sorted by series and timestamp ({moved_count} of {len(order)} moved)")
    return ranked.take(order)


def order_ids(ids: Iterable[str]) -> Int[np.ndarray, "series"]:
    """Returns the indices of ids in the order of the series of a panel."""
    ids = list(ids)
    if _have_digits_at_the_same_places(ids):  # the order of the texts is then that of their numbers
        return np.argsort(np.array(ids), kind="stable")
    keys = [natural_key(series_id) for series_id in ids]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def _have_digits_at_the_same_places(ids: Sequence[str]) -> bool:
    """Whether ids are of one length and have their digits at the same places, such as s001 and s002."""
    length = len(ids[0])
    if not length or any(len(series_id) != length for series_id in ids):
        return False
    characters = np.array(ids).view(np.uint32).reshape(len(ids), -1)
    is_digit = (characters >= ord("0")) & (characters <= ord("9"))
    return bool((is_digit == is_digit[0]).all())


def natural_key(series_id: str) -> tuple[list[tuple[int, int, str]], str]:
    """Returns the key that sorts ids by text, with numbers by value: s9 before s10, as files usually have them."""
    parts = _DIGITS.split(series_id)
    return [
        (0, int(part), "") if part.isascii() and part.isdecimal() else (1, 0, part) for part in parts if part
    ], series_id


def drop_duplicates(rows: ParsedRows, repairs: list[str]) -> ParsedRows:
    """Drops rows that repeat another; raises DuplicateStamp if two rows of one timestamp differ. The rows must be sorted."""
    ticks = timestamps_to_int64(rows.ds)
    is_duplicate = np.zeros(len(ticks), dtype=bool)
    is_duplicate[1:] = (ticks[1:] == ticks[:-1]) & (rows.codes[1:] == rows.codes[:-1])
    if not is_duplicate.any():
        return rows
    duplicate_rows = np.flatnonzero(is_duplicate)
    agree = np.ones(len(duplicate_rows), dtype=bool)
    for values in (rows.y, *rows.covariates.values(), *rows.static.values(), *rows.channels.values()):
        current, previous = values[duplicate_rows], values[duplicate_rows - 1]
        agree &= (current == previous) | (cells.is_missing(current) & cells.is_missing(previous))
    if not agree.all():
        row = int(duplicate_rows[np.argmin(agree)])
        is_same_key = (ticks == ticks[row]) & (rows.codes == rows.codes[row])
        distinct = list(dict.fromkeys(rows.y[is_same_key].tolist()))
        difference = f"{distinct}" if len(distinct) > 1 else "two rows that differ in another column"
        raise DuplicateStamp(
            f"Expected one value per timestamp; series {rows.id_at(row)!r} has {difference} at "
            f"{rows.format_timestamp_at(row)}. Keep one of them, or sum them; if clocks were set back at that time, "
            "declare the zone.",
            where=rows.id_at(row),
        )
    repairs.append(f"{len(duplicate_rows)} repeated rows were dropped")
    return rows.take(~is_duplicate)


def validate_static(rows: ParsedRows) -> None:
    """Raises StaticChanges if a static column changes within a series. The rows must be sorted."""
    within = rows.codes[1:] == rows.codes[:-1]
    for name, values in rows.static.items():
        changes = within & (values[1:] != values[:-1])
        if changes.any():
            row = int(np.argmax(changes)) + 1
            raise StaticChanges(
                f"Expected one value of {name!r} for the whole of series {rows.id_at(row)!r}; it goes from {values[row - 1]!r} "
                f"to {values[row]!r} at {rows.format_timestamp_at(row)}. Correct it, or declare the column as a covariate.",
                where=rows.id_at(row),
            )

"""The columns of a frame, each read strictly: names of series, numbers, labels. Each refuses with the first row at fault."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.errors import BadId, DuplicateColumn, MissingColumn, NoData, NotANumber, ValueOutOfRange
from forecaster.series import MAX_ABS_VALUE
from forecaster.shapes import Float64, Int

MAX_ID_LENGTH = 200  # characters; requests over HTTP take no longer ones
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+(?:\.\d{3})*,\d+\s*")


class SeriesIds(NamedTuple):
    """Whose row is whose."""

    ids: Any  # object array of str, one a series, in order of first appearance
    codes: Int[np.ndarray, "row"]


def validate_columns(frame: pd.DataFrame, *, required: Sequence[str], optional: Sequence[str]) -> None:
    """Raises MissingColumn, DuplicateColumn or NoData unless each column is there once, with one meaning, and a row.

    Args:
        frame: A long frame.
        needed: What it calls `unique_id, ds, y`.
        further: Its covariates, channels and static columns.
    """
    wanted = [*required, *optional]
    missing = [name for name in wanted if name not in frame.columns]
    if missing:
        found = ", ".join(map(str, frame.columns[:20])) or "none"
        in_index = [name for name in missing if name in frame.index.names]
        advice = (
            f"{', '.join(in_index)} is in the index: call reset_index()."
            if in_index
            else "Add the columns, or take them out of the specification's covariates, channels and static."
            if set(missing) <= set(optional)
            else "Rename the columns, or say what they are called (--id-column, --ds-column, --y-column)."
        )
        raise MissingColumn(
            f"Expected the columns {', '.join(wanted)}; {', '.join(missing)} not found among: {found}. {advice}",
            where=missing[0],
        )
    for name in wanted:
        if wanted.count(name) > 1 or list(frame.columns).count(name) > 1:
            raise DuplicateColumn(
                f"Expected one column {name!r} with one meaning; it is there, or was named, more than once. Drop or rename one.",
                where=name,
            )
    if frame.empty:
        raise NoData("Expected at least one row of data; found none. Send a history.", where=required[-1])


def parse_ids(raw: pd.Series, *, column: str) -> SeriesIds:
    """The names of the series as text; raises BadId for what is no name, and where two names would become one."""
    empty = raw.isna().to_numpy()
    if empty.any():
        raise BadId(
            f"Expected an id in every row; column {column!r} is empty in row {_first_true_row(empty)}. Name the series.",
            where=column,
        )
    if raw.dtype == object and pd.api.types.infer_dtype(raw, skipna=False) != "string":
        _validate_distinct_ids(raw, column)
        raw = raw.map(str)
    codes, found = pd.factorize(raw)
    texts = np.array([str(one) for one in found], dtype=object)
    for number, text in enumerate(texts):
        if not text.strip() or len(text) > MAX_ID_LENGTH or _UNPRINTABLE.search(text):
            raise BadId(
                f"Expected ids of 1 to {MAX_ID_LENGTH} printable characters; row {_first_true_row(codes == number)} of column "
                f"{column!r} has {_format_value(text)} of {len(text)}. Rename the series.",
                where=column,
            )
    return SeriesIds(texts, codes.astype(np.int64))


def _validate_distinct_ids(raw: pd.Series, column: str) -> None:
    odd = np.fromiter(
        (isinstance(one, bytes) or not isinstance(one, Hashable) for one in raw), dtype=bool, count=len(raw)
    )
    if odd.any():
        row = _first_true_row(odd)
        raise BadId(
            f"Expected text or numbers as ids in column {column!r}; row {row} holds {_format_value(raw.iloc[row])}. Write ids as text.",
            where=column,
        )
    seen: dict[str, tuple[type, Any]] = {}
    for kind, value in {(type(value), value): None for value in raw}:
        text = str(value)
        other = seen.setdefault(text, (kind, value))
        if other != (kind, value) or other[0] is not kind:
            raise BadId(
                f"Expected different ids to be written differently; column {column!r} has {text!r} as {other[0].__name__} and "
                f"as {kind.__name__}. Write all ids as text.",
                where=column,
            )


def parse_numbers(raw: pd.Series, *, column: str) -> Float64[np.ndarray, "row"]:
    """The column as float64, NaN where it is empty; raises NotANumber, ValueOutOfRange.

    Integers, decimals, nullable numbers and text such as "1.5" are numbers; bools, complex numbers and "1,5" are not.
    """
    values = _to_float64(raw, column)
    finite_or_empty = np.abs(values) <= MAX_ABS_VALUE
    wrong = ~(finite_or_empty | np.isnan(values))
    if wrong.any():
        row = _first_true_row(wrong)
        if np.isinf(values[row]):
            raise NotANumber(
                f"Expected finite numbers in column {column!r}; row {row} is infinite. "
                "Correct it, or leave it empty if it was not observed.",
                where=column,
            )
        raise ValueOutOfRange(
            f"Expected numbers up to {MAX_ABS_VALUE:g} in column {column!r}; row {row} holds {values[row]:g}, whose square "
            "would leave the floating-point numbers. Correct it, or measure in a larger unit.",
            where=column,
        )
    return values


def _to_float64(raw: pd.Series, column: str) -> Float64[np.ndarray, "row"]:
    odd_kind = pd.api.types.is_bool_dtype(raw) or pd.api.types.is_complex_dtype(raw)
    if pd.api.types.is_numeric_dtype(raw) and not odd_kind:
        with np.errstate(over="ignore"):  # of a wider float: infinite, and refused as such
            return np.asarray(raw.to_numpy(dtype=np.float64, na_value=np.nan))
    empty = raw.isna().to_numpy()
    if odd_kind:
        bad = ~empty
    else:
        read = pd.to_numeric(raw.astype(str).where(~empty), errors="coerce")
        values = np.asarray(read.to_numpy(dtype=np.float64, na_value=np.nan))
        bad = np.isnan(values) & ~empty
        if raw.dtype == object:
            bad |= np.fromiter((isinstance(value, (bool, np.bool_)) for value in raw), dtype=bool, count=len(raw))
    if bad.any():
        row = _first_true_row(bad)
        raise NotANumber(
            f"Expected numbers in column {column!r}; row {row} holds {_format_value(raw.iloc[row])}. {_suggest_fix(raw.iloc[row])}",
            where=column,
        )
    return values if not odd_kind else np.full(len(raw), np.nan)


def _suggest_fix(value: Any) -> str:
    if isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value):
        return "Write a decimal point instead of the comma."
    if isinstance(value, (bool, np.bool_)):
        return "Write 0 and 1 if these are counts."
    return "Correct it, or leave it empty if it was not observed."


def parse_covariate(raw: pd.Series, *, column: str) -> np.ndarray:
    """A covariate: float64 (bools become 0 and 1), or an object array of text; empty cells are NaN or None.

    Raises NotANumber, ValueOutOfRange.
    """
    if pd.api.types.is_bool_dtype(raw):
        return np.asarray(raw.to_numpy(dtype=np.float64, na_value=np.nan))
    if pd.api.types.is_numeric_dtype(raw) or not _is_text(raw):
        return parse_numbers(raw, column=column)
    return parse_labels(raw)


def describe_dropped_channel_values(
    channels: Mapping[str, Float64[np.ndarray, "step"]],
    *,
    history_ends: Int[np.ndarray, "series"],
    lengths: Int[np.ndarray, "series"],
) -> Iterator[str]:
    """What is told of channels that go on where the history has ended and only covariates are known."""
    for name, values in channels.items():
        later = np.arange(len(values)) >= np.repeat(history_ends, lengths)
        left = int((later & ~np.isnan(values)).sum())
        if left:
            yield (
                f"{left} values of channel {name!r} after the last observed `y` of their series were left aside: call it a "
                "covariate if it is known ahead"
            )


def parse_labels(raw: pd.Series) -> np.ndarray:
    """The column as an object array of text; None where it is empty."""
    texts = raw.astype(str).to_numpy(dtype=object)
    texts[raw.isna().to_numpy()] = None
    return np.asarray(texts)


def is_missing(values: np.ndarray) -> np.ndarray:
    """Which cells of what `parse_numbers`, `parse_covariate` or `parse_labels` answered are empty."""
    return np.asarray(pd.isna(values))


def _is_text(raw: pd.Series) -> bool:
    kept: pd.Series = raw.dropna()
    if isinstance(kept.dtype, pd.CategoricalDtype):
        kept = pd.Series(kept.cat.categories)
    return pd.api.types.infer_dtype(kept, skipna=True) in ("string", "empty")


def _first_true_row(mask: np.ndarray) -> int:
    return int(np.argmax(mask))


def _format_value(value: Any) -> str:
    told = repr(value.item() if isinstance(value, np.generic) else value)
    return told if len(told) <= 60 else f"{told[:57]}..."

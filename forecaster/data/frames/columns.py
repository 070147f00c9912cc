"""Strict parsers for the columns of a frame: series ids, numbers, labels. Errors name the first invalid row."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.errors import BadId, DuplicateColumn, MissingColumn, NoData, NotANumber, ValueOutOfRange
from forecaster.series import MAX_ABS_VALUE
from forecaster.shapes import Float64, Int

# Cell texts of CSV files that mean "not observed" in a column of values.
MISSING_VALUE_MARKERS = ["", "#N/A", "<NA>", "N/A", "n/a", "NA", "NaN", "nan", "-nan", "NULL", "null", "None"]
MAX_ID_LENGTH = 200  # characters; HTTP requests do not accept longer ids
_DEFAULT_ID = "unique_id"
_MAX_LISTED_PAIRS = 3  # pairs of similar ids listed in a message
_INVISIBLE = re.compile("[\u200b-\u200d\u2060\ufeff]")  # characters without a width
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_NUMBER_LIKE = re.compile(r"\s*[+-]?[.,]?\d|\s*[+-]?(?:nan|inf)", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+(?:\.\d{3})*,\d+\s*")


class SeriesIds(NamedTuple):
    """The distinct ids, and the index of the id of each row."""

    ids: Any  # object array of str, one per series, in order of first appearance
    codes: Int[np.ndarray, "row"]


def validate_columns(frame: pd.DataFrame, *, required: Sequence[str], optional: Sequence[str]) -> None:
    """Validates that each column exists exactly once and has one meaning, and that the frame has at least one row.

    Args:
        frame: A long frame.
        required: The names of its columns `unique_id, ds, y`.
        optional: The names of its covariates, channels and static columns.
    Raises:
        MissingColumn, DuplicateColumn, NoData.
    """
    wanted = [*required, *optional]
    missing = [name for name in wanted if name not in frame.columns]
    if missing:
        existing = ", ".join(map(str, frame.columns[:20])) or "none"
        in_index = [name for name in missing if name in frame.index.names]
        advice = (
            f"{', '.join(in_index)} is in the index: call reset_index()."
            if in_index
            else "Add the columns, or remove them from the specification's covariates, channels and static."
            if set(missing) <= set(optional)
            else "Rename the columns, or declare their names (`columns`)."
        )
        if _DEFAULT_ID in missing and not in_index:
            advice += f" The column {_DEFAULT_ID} may be absent if all rows are one series."
        raise MissingColumn(
            f"Expected the columns {', '.join(wanted)}; {', '.join(missing)} not found among: {existing}. {advice}",
            where=missing[0],
        )
    for name in wanted:
        if wanted.count(name) > 1 or list(frame.columns).count(name) > 1:
            raise DuplicateColumn(
                f"Expected one column {name!r} with one meaning; it exists, or was declared, more than once. "
                "Drop or rename one.",
                where=name,
            )
    if frame.empty:
        raise NoData("Expected at least one row of data; found none. Send a history.", where=required[-1])


def add_missing_ids(frame: pd.DataFrame, names: Sequence[str]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Returns a frame with an id column, and a message if it was added: rows without ids are one series, named after `y`.

    An id column whose name was declared is not added.

    Args:
        frame: A long frame.
        names: The names of its columns `unique_id, ds, y`.
    Raises:
        MissingColumn: A timestamp occurs twice, so that the rows are of several series.
    """
    unique_id, ds, y = names
    if unique_id != _DEFAULT_ID or unique_id in [*frame.columns, *frame.index.names]:
        return frame, ()
    if not {ds, y} <= set(frame.columns) or list(frame.columns).count(ds) > 1:
        return frame, ()  # the caller reports this first
    if frame[ds].duplicated().any():
        raise MissingColumn(
            f"Expected the columns {', '.join(names)}; {unique_id} not found among: "
            f"{', '.join(map(str, frame.columns[:20]))}, and timestamps occur twice, so that the rows are of several series. "
            "Rename the columns, or declare their names (`columns`).",
            where=unique_id,
        )
    return frame.assign(**{unique_id: y}), (f"there is no column {unique_id!r}: all rows are one series, {y!r}",)


def parse_ids(raw: pd.Series, *, column: str) -> SeriesIds:
    """Returns the ids as text. Raises BadId for an invalid id, and for two different ids with the same text."""
    is_empty = raw.isna().to_numpy()
    if is_empty.any():
        raise BadId(
            f"Expected an id in every row; column {column!r} is empty in row {_first_true_row(is_empty)}. Name the series.",
            where=column,
        )
    if raw.dtype == object and pd.api.types.infer_dtype(raw, skipna=False) != "string":
        _validate_distinct_ids(raw, column)
        raw = raw.map(str)
    codes, distinct_ids = _factorize(raw)
    texts = np.array([str(series_id) for series_id in distinct_ids], dtype=object)
    for code, text in enumerate(texts):
        if not text.strip() or len(text) > MAX_ID_LENGTH or _UNPRINTABLE.search(text):
            raise BadId(
                f"Expected ids of 1 to {MAX_ID_LENGTH} printable characters; row {_first_true_row(codes == code)} of "
                f"column {column!r} has {_format_value(text)} with {len(text)} characters. Rename the series.",
                where=column,
            )
    return SeriesIds(texts, codes)


def _factorize(raw: pd.Series) -> tuple[Int[np.ndarray, "row"], Any]:
    """Returns the code of each row, in 32 bits, and the distinct ids in order of first appearance.

    The rows of a series usually stand together, so that only the first id of each run has to be looked up.
    """
    if len(raw) > np.iinfo(np.int32).max:
        codes, distinct_ids = pd.factorize(raw)
        return codes.astype(np.int64), distinct_ids
    ids = raw.array
    is_first = np.ones(len(raw), dtype=bool)
    if not isinstance(raw.dtype, pd.CategoricalDtype):
        is_first[1:] = np.asarray(ids[1:] != ids[:-1], dtype=bool)
    else:
        is_first[1:] = ids.codes[1:] != ids.codes[:-1]
    starts = np.flatnonzero(is_first)
    codes, distinct_ids = pd.factorize(raw.take(starts))
    return np.repeat(codes.astype(np.int32), np.diff(starts, append=len(raw))), distinct_ids


def describe_similar_ids(ids: Any) -> Iterator[str]:
    """Yields a message if some ids differ only by blanks or by their Unicode form, so that they look alike."""
    if all(series_id.isascii() and " " not in series_id for series_id in ids):
        return
    first_by_key: dict[str, str] = {}
    similar: list[tuple[str, str]] = []
    for series_id in ids:
        key = "".join(_INVISIBLE.sub("", unicodedata.normalize("NFKC", series_id)).split())
        first = first_by_key.setdefault(key, series_id)
        if first != series_id:
            similar.append((first, series_id))
    if similar:
        yield (
            f"{len(similar)} ids differ from another only by blanks or by their Unicode form, and remain series of their own: "
            f"{', '.join(f'{first!a} and {second!a}' for first, second in similar[:_MAX_LISTED_PAIRS])}"
            f"{' and more' if len(similar) > _MAX_LISTED_PAIRS else ''}"
        )


def _validate_distinct_ids(raw: pd.Series, column: str) -> None:
    is_invalid = np.fromiter(
        (isinstance(value, bytes) or not isinstance(value, Hashable) for value in raw), dtype=bool, count=len(raw)
    )
    if is_invalid.any():
        row = _first_true_row(is_invalid)
        raise BadId(
            f"Expected text or numbers as ids in column {column!r}; row {row} holds {_format_value(raw.iloc[row])}. "
            "Write ids as text.",
            where=column,
        )
    kind_and_value_by_text: dict[str, tuple[type, Any]] = {}
    for kind, value in {(type(value), value): None for value in raw}:
        text = str(value)
        previous = kind_and_value_by_text.setdefault(text, (kind, value))
        if previous != (kind, value) or previous[0] is not kind:
            raise BadId(
                f"Expected different ids to have different text; column {column!r} has {text!r} as {previous[0].__name__} "
                f"and as {kind.__name__}. Write all ids as text.",
                where=column,
            )


def parse_numbers(raw: pd.Series, *, column: str) -> Float64[np.ndarray, "row"]:
    """Returns the column as float64, with NaN for empty cells.

    Integers, decimals, nullable numbers and text such as "1.5" are numbers; bools, complex numbers and "1,5" are not.

    Raises:
        NotANumber, ValueOutOfRange.
    """
    values = _to_float64(raw, column)
    is_invalid = np.less_equal(values, MAX_ABS_VALUE)
    is_invalid &= np.greater_equal(values, -MAX_ABS_VALUE)
    is_invalid |= np.isnan(values)
    np.logical_not(is_invalid, out=is_invalid)
    if is_invalid.any():
        row = _first_true_row(is_invalid)
        if np.isinf(values[row]):
            raise NotANumber(
                f"Expected finite numbers in column {column!r}; row {row} is infinite. "
                "Correct it, or leave it empty if it was not observed.",
                where=column,
            )
        raise ValueOutOfRange(
            f"Expected numbers up to {MAX_ABS_VALUE:g} in column {column!r}; row {row} holds {values[row]:g}; sums of "
            "its square would overflow float64. Correct it, or use a larger unit.",
            where=column,
        )
    return values


def _to_float64(raw: pd.Series, column: str) -> Float64[np.ndarray, "row"]:
    is_unsupported_kind = pd.api.types.is_bool_dtype(raw) or pd.api.types.is_complex_dtype(raw)
    if pd.api.types.is_numeric_dtype(raw) and not is_unsupported_kind:
        with np.errstate(over="ignore"):  # a wider float may overflow to infinity, which is rejected later
            return np.asarray(raw.to_numpy(dtype=np.float64, na_value=np.nan))
    empty = raw.isna().to_numpy()
    if is_unsupported_kind:
        is_invalid = ~empty
    else:
        parsed = pd.to_numeric(raw.astype(str).where(~empty), errors="coerce")
        values = np.asarray(parsed.to_numpy(dtype=np.float64, na_value=np.nan))
        is_invalid = np.isnan(values) & ~empty
        if raw.dtype == object:
            is_invalid |= np.fromiter(
                (isinstance(value, (bool, np.bool_)) for value in raw), dtype=bool, count=len(raw)
            )
    if is_invalid.any():
        row = _first_true_row(is_invalid)
        raise NotANumber(
            f"Expected numbers in column {column!r}; row {row} holds {_format_value(raw.iloc[row])}. "
            f"{_suggest_fix(raw.iloc[row])}",
            where=column,
        )
    return values if not is_unsupported_kind else np.full(len(raw), np.nan)


def _suggest_fix(value: Any) -> str:
    if isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value):
        return "Write a decimal point instead of the comma."
    if isinstance(value, (bool, np.bool_)):
        return "Write 0 and 1 if these are counts."
    return "Correct it, or leave it empty if it was not observed."


def parse_covariate(raw: pd.Series, *, column: str, as_text: bool | None = None) -> np.ndarray:
    """Returns a covariate as float64 (bools become 0 and 1) or as an object array of text.

    Empty cells become NaN or None. Raises NotANumber, ValueOutOfRange.

    Args:
        raw: The column.
        column: Its name.
        as_text: Whether it is read as text; None decides by its cells.
    """
    if as_text:
        return parse_labels(raw)
    if pd.api.types.is_bool_dtype(raw):
        return np.asarray(raw.to_numpy(dtype=np.float64, na_value=np.nan))
    if as_text is False or pd.api.types.is_numeric_dtype(raw) or not _is_text(raw):
        return parse_numbers(raw, column=column)
    return parse_labels(raw)


def describe_dropped_channel_values(
    channels: Mapping[str, Float64[np.ndarray, "step"]],
    *,
    history_ends: Int[np.ndarray, "series"],
    lengths: Int[np.ndarray, "series"],
) -> Iterator[str]:
    """Yields a repair message for each channel with values after the end of the history, which are dropped."""
    for name, values in channels.items():
        is_future = np.arange(len(values)) >= np.repeat(history_ends, lengths)
        dropped_count = int((is_future & ~np.isnan(values)).sum())
        if dropped_count:
            yield (
                f"{dropped_count} values of channel {name!r} after the last observed `y` of their series were dropped: "
                "declare it as a covariate if its future is known"
            )


def parse_labels(raw: pd.Series) -> np.ndarray:
    """Returns the column as an object array of text, with None for empty cells."""
    texts = raw.astype(str).to_numpy(dtype=object)
    texts[raw.isna().to_numpy()] = None
    return np.asarray(texts)


def parse_symbols(raw: pd.Series) -> np.ndarray:
    """Returns a column of symbols as an object array of text, with None for empty cells.

    Numbers are the symbols of their text, whole ones without a decimal point: 404 in a column of integers and of floats.
    """
    if pd.api.types.is_numeric_dtype(raw) and not pd.api.types.is_bool_dtype(raw):
        texts = np.array([_format_number(cell) for cell in raw.tolist()], dtype=object)
    else:
        texts = raw.astype(str).to_numpy(dtype=object)
    texts[raw.isna().to_numpy() | (texts == "")] = None
    return np.asarray(texts)


def _format_number(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def is_symbol_column(raw: pd.Series) -> bool:
    """Whether a column holds symbols rather than numbers: its cells are text, and none of them begins like a number."""
    if pd.api.types.is_numeric_dtype(raw) or pd.api.types.is_bool_dtype(raw) or not _is_text(raw):
        return False
    texts = raw.dropna().astype(str)
    return bool((texts != "").any()) and not texts.str.match(_NUMBER_LIKE).any()


def is_missing(values: np.ndarray) -> np.ndarray:
    """Returns the mask of empty cells in a result of `parse_numbers`, `parse_covariate` or `parse_labels`."""
    return np.asarray(pd.isna(values))


def _is_text(raw: pd.Series) -> bool:
    present: pd.Series = raw.dropna()
    if isinstance(present.dtype, pd.CategoricalDtype):
        present = pd.Series(present.cat.categories)
    return pd.api.types.infer_dtype(present, skipna=True) in ("string", "empty")


def _first_true_row(mask: np.ndarray) -> int:
    return int(np.argmax(mask))


def _format_value(value: Any) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."

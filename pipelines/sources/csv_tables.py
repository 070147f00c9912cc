"""Reads CSV files: detects the delimiter and decimal commas, and names the line of a fault."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import pandas as pd

from forecaster.data.frames.columns import MISSING_VALUE_MARKERS
from forecaster.errors import InputError, NoData
from pipelines.sources.data import DataSource
from pipelines.sources.source_files import SourceFile, SourceTable, unreadable

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_BOOLS = {"True", "False", "true", "false", "TRUE", "FALSE"}
_NUMBER_WITH_COMMA = re.compile(r"\s*[+-]?\d+(?:,\d+)?(?:[eE][+-]?\d+)?\s*")
_THOUSANDS = re.compile(r"\s*[+-]?[1-9]\d{0,2},\d{3}\s*")


class _Header(NamedTuple):
    """The first line of a CSV file."""

    delimiter: str
    names: list[str]  # without the blanks around them; a name may occur twice
    has_blanks: bool


def read_csv(file: SourceFile, data: DataSource) -> SourceTable:
    """Reads ids, static columns, symbols and declared text as text: 007 is not 7, and NA may be the id of a series or a category.

    Raises InputError with the first invalid line; NoData for an empty file.
    """
    header = _read_header(file, data)
    options: dict[str, Any] = {"sep": header.delimiter, "compression": "gzip" if file.is_gzip else None}
    try:
        raw_names = list(pd.read_csv(file.open_content(), nrows=0, **options).columns)
        names = dict(zip(raw_names, header.names, strict=True)) if len(raw_names) == len(header.names) else {}
        text_covariates = data.text_covariates or ()
        symbol_columns = set() if data.vocabulary is None else {data.columns.y}
        text_columns = {data.columns.unique_id, *data.static, *text_covariates, *symbol_columns}
        category_columns = {*data.static, *data.covariates, *symbol_columns}
        dtypes: dict[Hashable, Any] = {raw: str for raw, name in names.items() if name in text_columns}
        markers = {
            raw: [""] if name in category_columns else MISSING_VALUE_MARKERS
            for raw, name in names.items()
            if name != data.columns.unique_id
        }
        frame = pd.read_csv(
            file.open_content(), dtype=dtypes, na_values=markers, keep_default_na=False, low_memory=False, **options
        )
    except pd.errors.ParserError:
        _raise_for_invalid_line(file, header)
        raise
    is_uneven = len(frame) > 0 and (not isinstance(frame.index, pd.RangeIndex) or frame.iloc[:, -1].isna().any())
    if is_uneven or not names:  # rows of other lengths may have been read without an error
        _raise_for_invalid_line(file, header)
    frame.columns = pd.Index(header.names)
    if header.names.count(data.columns.unique_id) == 1 and any(
        "\n" in str(name) for name in frame[data.columns.unique_id].unique()
    ):
        _raise_for_invalid_line(file, header)
    repairs = [] if header.delimiter == "," else [f"columns are separated by {_DELIMITERS[header.delimiter]}"]
    if header.has_blanks:
        repairs.append("blanks around column names were removed")
    for name in dict.fromkeys([data.columns.y, *data.channels, *data.covariates]):
        if header.names.count(name) == 1 and name not in text_columns:
            frame[name], has_commas = _parse_column(frame[name], header.delimiter, is_category=name in data.covariates)
            if has_commas:
                repairs.append(f"decimal commas in column {name!r} were read as points")
    return SourceTable(frame, tuple(repairs))


def _read_header(file: SourceFile, data: DataSource) -> _Header:
    with _open_text(file) as lines:
        line = next((line for line in lines if line.strip()), "")
    if not line:
        raise NoData(
            f"Expected a readable table in {file.location}; the file is empty. Write it again with a header, or use another.",
            where=file.location,
        )
    wanted = {*data.columns, *data.covariates, *data.static, *data.channels}
    splits = {delimiter: next(csv.reader([line], delimiter=delimiter)) for delimiter in _DELIMITERS}

    def count_matches(delimiter: str) -> tuple[int, int]:
        return sum(name.strip() in wanted for name in splits[delimiter]), len(splits[delimiter])

    delimiter = max(_DELIMITERS, key=count_matches)
    names = [name.strip() for name in splits[delimiter]]
    return _Header(delimiter, names, names != splits[delimiter])


def _parse_column(raw: pd.Series, delimiter: str, *, is_category: bool) -> tuple[pd.Series, bool]:
    """Returns a column with numbers where all of its cells are numbers, and whether they have decimal commas.

    A text column keeps its cells: NA and None are categories there, and missing values among numbers.
    """
    if pd.api.types.is_numeric_dtype(raw) or pd.api.types.is_bool_dtype(raw):
        return raw, False
    is_missing = raw.isna() | raw.isin(MISSING_VALUE_MARKERS)
    texts = raw[~is_missing].astype(str)
    with_comma = texts[texts.str.contains(",", regex=False)]
    # 1,234 may be a thousand or a fraction, so it is not converted unless other cells decide it.
    has_commas = (
        delimiter != ","
        and len(with_comma) > 0
        and texts.str.fullmatch(_NUMBER_WITH_COMMA).all()
        and not with_comma.str.fullmatch(_THOUSANDS).all()
    )
    if has_commas:
        numbers = pd.to_numeric(raw.where(~is_missing).astype(object).str.replace(",", ".", regex=False))
        return numbers, True
    if is_category and len(texts) and pd.to_numeric(texts, errors="coerce").notna().all():
        return pd.to_numeric(raw.where(~is_missing)), False
    if is_category and len(texts) and texts.isin(_BOOLS).all():
        return raw.where(~is_missing), False
    return raw, False


@contextmanager
def _open_text(file: SourceFile) -> Iterator[IO[str]]:
    content = file.open_content()
    with content.open("rb") if isinstance(content, Path) else content as stored:
        unpacked: Any = gzip.GzipFile(fileobj=stored) if file.is_gzip else stored
        with io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline="") as text:
            yield text


def _raise_for_invalid_line(file: SourceFile, header: _Header) -> None:
    """Raises InputError for the first line with another number of fields than the header, or with an open quote."""
    width, end_of_previous = len(header.names), 0
    with _open_text(file) as text:
        reader = csv.reader(text, delimiter=header.delimiter, strict=True)
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise unreadable(
                    file,
                    f"in line {end_of_previous + 1} a quote is not closed, or is followed by text ({error})",
                    "Close the quote, or double quotes within a field",
                ) from error
            if fields is None:
                return
            if fields and len(fields) != width:
                raise _uneven_line(file, fields, width, line=end_of_previous + 1)
            end_of_previous = reader.line_num


def _uneven_line(file: SourceFile, fields: Sequence[str], width: int, *, line: int) -> InputError:
    if any("\n" in field for field in fields):
        return unreadable(file, f"the quote that begins in line {line} spans several lines", "Close the quote")
    return unreadable(
        file,
        f"line {line} has {len(fields)} fields and the header {width}",
        "Write one field for each column, empty if it was not observed, and quote fields that contain the delimiter",
    )

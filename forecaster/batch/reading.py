"""Reads the series of a table one by one as far as errors are concerned: one that cannot be read does not affect the others."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from forecaster.data.frames.columns import validate_columns
from forecaster.data.frames.future import append_future
from forecaster.data.frames.panel import to_panel
from forecaster.data.frames.rows import ColumnNames, order_ids
from forecaster.errors import BadId, ForecasterError, InputError, NoData, rename_arguments
from forecaster.series import Panel, Series
from forecaster.shapes import Int

_SERIES_AT_ONCE = 256  # series that are read together where some are invalid
_FUTURE_ARGUMENT = {"X_df": "`future`"}


class ReadOptions(NamedTuple):
    """How the series of a table are read, as the arguments of `to_panel`.

    Attributes:
        names: The names of the columns `unique_id, ds, y`.
        freq: The declared frequency; None reads that of the model.
        zone: The time zone of timestamps without an offset.
        covariates, static, channels: The other columns that the model reads.
        text_covariates: The covariates that are text.
        model_freq: The frequency of the model.
    """

    names: ColumnNames
    freq: str | None
    zone: str | None
    covariates: tuple[str, ...]
    static: tuple[str, ...]
    channels: tuple[str, ...]
    text_covariates: tuple[str, ...]
    model_freq: str


class Histories(NamedTuple):
    """The rows of a table, and those of the future of its covariates.

    Attributes:
        rows: The rows; the column of ids is categorical.
        codes: The series of each row, -1 without an id.
        future: The rows of the future of these series, None without covariates.
    """

    rows: pd.DataFrame
    codes: Int[np.ndarray, "row"]
    future: pd.DataFrame | None


class ReadSeries(NamedTuple):
    """The series that could be read, the id and the error of each other series, and messages about repairs."""

    series: list[Series]
    rejects: list[tuple[str | None, ForecasterError]]
    repairs: tuple[str, ...]


def read_series(histories: Histories, options: ReadOptions) -> ReadSeries:
    """Reads the series of a table; raises MissingColumn or DuplicateColumn, which concern all of them."""
    if not len(histories.rows):
        return ReadSeries([], [], ())
    others = [*options.covariates, *options.static, *options.channels]
    validate_columns(histories.rows, required=options.names, optional=others)
    rejects: list[tuple[str | None, ForecasterError]] = []
    is_named = histories.codes >= 0
    if not is_named.all():
        row = int(np.argmin(is_named))
        rejects.append((None, _describe_missing_ids(options.names.unique_id, row, int((~is_named).sum()))))
        histories = histories._replace(rows=histories.rows[is_named], codes=histories.codes[is_named])
    if not len(histories.rows):
        return ReadSeries([], rejects, ())
    texts = np.array([str(each) for each in histories.rows[options.names.unique_id].cat.categories], dtype=object)
    series: list[Series] = []
    repairs: list[str] = []
    parts = [histories]
    while parts:
        part = parts.pop()
        codes = np.unique(part.codes)
        try:
            panel = _read_panel(part, options)
        except InputError as error:
            if len(codes) == 1:
                rejects.append((texts[codes[0]], error))
            else:
                parts.extend(_split(part, codes, suspect=np.flatnonzero(texts == error.where)))
            continue
        series.extend(panel.series)
        repairs.extend(panel.repairs)
        if len(panel.series) < len(codes):
            read_ids = {item.id for item in panel.series}
            rejects.extend((text, _describe_empty(text)) for text in texts[codes] if text not in read_ids)
    rank = {texts[code]: position for position, code in enumerate(order_ids(texts).tolist())}
    series.sort(key=lambda item: rank[item.id])
    rejects.sort(key=lambda reject: -1 if reject[0] is None else rank[reject[0]])
    return ReadSeries(series, rejects, tuple(repairs))


def _split(part: Histories, codes: Int[np.ndarray, "series"], *, suspect: Int[np.ndarray, "_"]) -> Iterator[Histories]:
    """Yields parts of histories that cannot be read together: many series in parts of a few, of which the suspect is set apart.

    Args:
        part: The histories.
        codes: Their series.
        suspect: The series that the error names; empty if it names none.
    """
    if len(codes) > _SERIES_AT_ONCE:
        order = np.argsort(part.codes, kind="stable")
        rows, sorted_codes = part.rows.iloc[order], part.codes[order]
        bounds = np.append(np.searchsorted(sorted_codes, codes[::_SERIES_AT_ONCE]), len(rows)).tolist()
        for first, last in pairwise(bounds):
            yield part._replace(rows=rows[first:last].reset_index(drop=True), codes=sorted_codes[first:last])
        return
    is_suspect = np.isin(codes, suspect)
    chosen = codes[is_suspect] if is_suspect.any() else codes[: len(codes) // 2]
    in_chosen = np.isin(part.codes, chosen)
    for selection in (in_chosen, ~in_chosen):
        yield part._replace(rows=part.rows[selection].reset_index(drop=True), codes=part.codes[selection])


def _read_panel(histories: Histories, options: ReadOptions) -> Panel:
    rows, names = histories.rows, options.names
    later = None
    if histories.future is not None:
        ids = {str(series_id) for series_id in rows[names.unique_id].unique()}
        later = histories.future[histories.future[names.unique_id].isin(ids)]
    if later is not None and len(later):  # columns without rows would change the types of the others
        plain = rows.assign(**{names.unique_id: rows[names.unique_id].map(str).astype(object)})
        try:
            rows = append_future(
                plain, later, names, covariates=options.covariates, static=options.static, zone=options.zone
            )
        except InputError as error:
            error.message = rename_arguments(error.message, _FUTURE_ARGUMENT)
            error.args = (error.message,)
            raise
    return to_panel(
        rows,
        freq=options.freq,
        assumed_freq=options.model_freq,
        columns=names,
        zone=options.zone,
        covariates=options.covariates,
        static=options.static,
        channels=options.channels,
        text_covariates=options.text_covariates,
    )


def _describe_empty(series_id: str) -> NoData:
    return NoData(
        f"Expected at least one observed value; series {series_id!r} is empty. Send a history.", where=series_id
    )


def _describe_missing_ids(column: str, row: int, count: int) -> BadId:
    return BadId(
        f"Expected an id in every row; column {column!r} is empty in {count} rows, the first of them row {row}. Name the series.",
        where=column,
    )

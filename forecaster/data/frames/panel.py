"""Converts a long data frame `unique_id, ds, y` to a validated, sorted Panel of one frequency, and back."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from forecaster.data.calendar import candidate_frequencies, describe_fixed_day, infer_frequency, list_working_days
from forecaster.data.frames import columns as cells
from forecaster.data.frames import grid, timestamps
from forecaster.data.frames.rows import ColumnNames, ParsedRows, drop_duplicates, parse_rows, sort_rows, validate_static
from forecaster.errors import (
    CovariateUnknown,
    FrequencyUnknown,
    IrregularStamps,
    NoData,
)
from forecaster.frequency.names import canonical_frequency
from forecaster.frequency.timestamps import (
    Timestamps,
    format_timestamp,
    normalize_frequency,
    timestamp_at,
    timestamps_to_int64,
)
from forecaster.series import Panel, Series
from forecaster.shapes import Float64, Int

_MAX_LISTED_IDS = 3  # ids listed in a repair message
_MAX_LISTED_FREQUENCIES = 2  # frequencies suggested in an error message


def to_panel(
    frame: pd.DataFrame,
    *,
    freq: str | int | pd.offsets.BaseOffset | timedelta | None = None,
    columns: ColumnNames | None = None,
    zone: str | None = None,
    covariates: Sequence[str] = (),
    static: Sequence[str] = (),
    channels: Sequence[str] = (),
    text_covariates: Collection[str] | None = None,
    assumed_freq: str | None = None,
) -> Panel:
    """Validates a long frame and splits it into series. docs/data.md lists every case and its outcome.

    Args:
        frame: One row per series and timestamp. NaN in `y` means not observed. An absent row means the same if the
            frequency is declared or proven.
        freq: A pandas offset or its alias, custom business days (`C-1111110`), or an integer; None infers it from the longest
            series if it is unambiguous. The panel has its canonical name.
        columns: The column names, if they are not `unique_id, ds, y`.
        zone: The time zone of timestamps without an offset; timestamps with an offset are converted to it.
        covariates: Columns with a known future. Rows without `y` after the last observed step are then that future.
        static: Columns that are constant within a series.
        channels: Columns known for the past only. As in `y`, NaN means not observed.
        text_covariates: The covariates that are read as text, the others as numbers: the categories that a model has learned,
            `encoding.categories`. None decides by the cells of each column, as for the training of a model.
        assumed_freq: What replaces the inference without `freq`, such as the frequency of a model. A series with gaps between
            most of its rows is then rejected, as if the frequency were inferred.
    Raises:
        InputError: A subclass of it, with the series and the first invalid row or timestamp.
    """
    names = columns or ColumnNames()
    frame, messages = cells.add_missing_ids(frame, names)
    cells.validate_columns(frame, required=names, optional=[*covariates, *static, *channels])
    repairs = list(messages)
    declared = None if freq is None else normalize_frequency(freq, where="freq")
    rows = parse_rows(
        frame,
        names,
        freq=declared,
        zone=zone,
        covariates=covariates,
        static=static,
        channels=channels,
        text_covariates=text_covariates,
        repairs=repairs,
    )
    rows = drop_duplicates(sort_rows(rows, repairs), repairs)
    bounds = rows.series_bounds()
    gaps_allowed = True
    if declared is None and assumed_freq is not None:
        declared = assumed_freq
    elif declared is None:
        declared, gaps_allowed = _infer_panel_frequency(rows, bounds)
    lengths, aligned = np.diff(bounds), rows
    if len(rows.y) > grid.MAX_TOTAL_STEPS or not grid.is_regular(rows.ds, declared, bounds):
        positions = grid.compute_grid_positions(rows.ds, declared, np.repeat(bounds[:-1], lengths))
        owner = None if freq is not None else "longest series" if assumed_freq is None else "model"
        _validate_positions(rows, positions, declared, allow_gaps=gaps_allowed, owner=owner)
        lengths = grid.compute_series_lengths(positions, bounds, ids=rows.ids, freq=declared)
        aligned = _align_to_grid(rows, positions, bounds, lengths, repairs)
    name = canonical_frequency(declared, rows.ds[bounds[:-1]])
    return Panel(_build_series(rows, aligned, bounds, lengths, name, repairs), name, tuple(repairs))


def to_frame(panel: Panel) -> pd.DataFrame:
    """Returns the long frame of a panel, the inverse of `to_panel`.

    It contains covariates with their known future, static columns and channels.
    """
    return pd.concat([_series_to_frame(series) for series in panel.series], ignore_index=True)


def infer_series_frequency(sorted_timestamps: Timestamps, *, unique_id: str) -> str:
    """Returns the frequency of sorted timestamps.

    Raises FrequencyUnknown if it is ambiguous, and IrregularStamps with the first irregular step if there is one.
    """
    if not isinstance(sorted_timestamps, pd.DatetimeIndex):
        timestamps.reject_date_like_numbers(sorted_timestamps, where=unique_id)
    try:
        return infer_frequency(sorted_timestamps, where=unique_id)
    except FrequencyUnknown:
        _raise_for_irregular_step(sorted_timestamps, unique_id)
        raise


def _infer_panel_frequency(rows: ParsedRows, bounds: Int[np.ndarray, "_"]) -> tuple[str, bool]:
    """Returns the frequency of the longest series, and whether it is proven, so that absent rows can count as gaps."""
    longest = int(np.argmax(np.diff(bounds)))
    start, end = bounds[longest], bounds[longest + 1]
    series_timestamps, unique_id = rows.ds[start:end], rows.id_at(start)
    try:
        return infer_frequency(series_timestamps, where=unique_id), bool(end - start > grid.MIN_CONFIRMING_RUN)
    except FrequencyUnknown as error:
        if len(series_timestamps) > grid.MIN_CONFIRMING_RUN:
            first = np.zeros(len(series_timestamps), dtype=np.int64)
            for candidates in candidate_frequencies(series_timestamps):
                proven = [
                    freq
                    for freq in candidates
                    if grid.confirms_frequency(grid.compute_grid_positions(series_timestamps, freq, first))
                ]
                if len(proven) == 1:
                    return proven[0], True
                if proven:
                    break
        _raise_for_irregular_step(series_timestamps, unique_id)
        raise error


def _raise_for_irregular_step(sorted_timestamps: Timestamps, unique_id: str) -> None:
    gaps = np.diff(timestamps_to_int64(sorted_timestamps))
    if len(gaps) >= 3 and len(np.unique(gaps)) > 1:
        usual = float(np.median(gaps))
        odd = int(np.argmax(np.abs(gaps - usual) > 0.15 * usual))
        if abs(gaps[odd] - usual) > 0.15 * usual:  # lengths of months and quarters differ by less
            before = format_timestamp(timestamp_at(sorted_timestamps, odd))
            after = format_timestamp(timestamp_at(sorted_timestamps, odd + 1))
            fitting = _list_declarable_frequencies(sorted_timestamps)
            advice = (
                f"Fill the gap with empty values, or declare the frequency if this is regular (`freq`={' or '.join(fitting)})."
                if fitting
                else describe_fixed_day(sorted_timestamps)
                or "Correct the timestamps: no known frequency has all of them."
            )
            raise IrregularStamps(
                f"Expected regular timestamps; series {unique_id!r} goes from {before} to {after}, unlike its other steps. "
                f"{advice}",
                where=unique_id,
            )


def _list_declarable_frequencies(sorted_timestamps: Timestamps) -> list[str]:
    """Returns the quoted frequencies that have all these timestamps, with gaps, so that they are accepted when declared."""
    candidates = [freq for tier in candidate_frequencies(sorted_timestamps) for freq in tier]
    if isinstance(sorted_timestamps, pd.DatetimeIndex):
        candidates += list_working_days(sorted_timestamps)
    first = np.zeros(len(sorted_timestamps), dtype=np.int64)
    fitting = []
    for freq in candidates:
        positions = grid.compute_grid_positions(sorted_timestamps, freq, first)
        share = len(sorted_timestamps) / (1 + int(positions.step[-1]))
        if not positions.is_off_grid.any() and share >= 1 - grid.MAX_MISSING_SHARE:
            fitting.append((-share, repr(freq)))
    return [name for _, name in sorted(fitting)[:_MAX_LISTED_FREQUENCIES]]


def _validate_positions(
    rows: ParsedRows, positions: grid.GridPositions, freq: str, *, allow_gaps: bool, owner: str | None
) -> None:
    """Raises IrregularStamps for the first timestamp that is off the grid or, if gaps are not allowed, follows a gap.

    A frequency that was not declared, but is that of an `owner`, is also rejected if most steps of another series are gaps.
    """
    within = np.concatenate([[False], rows.codes[1:] == rows.codes[:-1]])
    gap = np.concatenate([[False], np.diff(positions.step) != 1]) & within
    wrong = positions.is_off_grid if allow_gaps else positions.is_off_grid | gap
    if wrong.any():
        row = int(np.argmax(wrong))
        problem = f"goes from {rows.format_timestamp_at(row - 1)} to {rows.format_timestamp_at(row)}"
        if positions.is_off_grid[row]:
            problem = f"has a timestamp at {rows.format_timestamp_at(row)}, which is not on that grid"
        zoned = isinstance(rows.ds, pd.DatetimeIndex) and rows.ds.tz is not None
        zone_advice = (
            "; if these are days in a zone with daylight saving time, declare the zone (`zone`)" if zoned else ""
        )
        of_series = rows.ds[rows.codes == rows.codes[row]]
        fixed_day = describe_fixed_day(of_series) if positions.is_off_grid[row] else ""
        advice = fixed_day or f"Fill gaps with empty values, or declare the right frequency (`freq`){zone_advice}."
        raise IrregularStamps(
            f"Expected timestamps one {freq!r} apart; series {rows.id_at(row)!r} {problem}. {advice}",
            where=rows.id_at(row),
        )
    if owner is not None and gap.any():
        series_count = len(rows.ids)
        gap_counts = np.bincount(rows.codes[gap], minlength=series_count)
        step_counts = np.bincount(rows.codes[within], minlength=series_count)
        sparse = (2 * gap_counts > step_counts) & (step_counts > 1)
        if sparse.any():
            sparse_code = int(np.argmax(sparse))
            row = int(np.argmax(gap & (rows.codes == sparse_code)))
            raise IrregularStamps(
                f"Expected timestamps one {freq!r} apart, as in the {owner}; series {rows.id_at(row)!r} has gaps "
                f"between most of its rows, the first from {rows.format_timestamp_at(row - 1)} to "
                f"{rows.format_timestamp_at(row)}. Declare the frequency (`freq`) if these are gaps; put series of another "
                "frequency in a separate file.",
                where=rows.id_at(row),
            )


def _align_to_grid(
    rows: ParsedRows,
    positions: grid.GridPositions,
    bounds: Int[np.ndarray, "_"],
    lengths: Int[np.ndarray, "series"],
    repairs: list[str],
) -> ParsedRows:
    """Returns `y` and channels with one value per step of the grid, NaN for absent rows.

    All other fields, also `codes` and `ds`, keep one value per row.
    """
    absent = lengths - np.diff(bounds)
    if not absent.any():
        return rows
    worst = int(np.argmax(absent))
    if rows.covariates:
        worst = int(np.argmax(absent > 0))
        row = int(bounds[worst] + np.argmax(np.diff(positions.step[bounds[worst] : bounds[worst + 1]]) != 1))
        raise CovariateUnknown(
            f"Expected covariates at every step; series {rows.id_at(row)!r} has no row after "
            f"{rows.format_timestamp_at(row)}; {absent[worst]} rows are absent in total. Add these rows with their "
            "covariates and an empty `y`.",
            where=rows.id_at(row),
        )
    repairs.append(
        f"{int(absent.sum())} absent rows in {int((absent > 0).sum())} of {len(lengths)} series were inserted as not "
        f"observed (most in {rows.id_at(int(bounds[worst]))!r}: {int(absent[worst])})"
    )
    grid_index = np.repeat(np.cumsum(lengths) - lengths, np.diff(bounds)) + positions.step

    def spread_over_grid(values: Float64[np.ndarray, "row"]) -> Float64[np.ndarray, "step"]:
        steps = np.full(int(lengths.sum()), np.nan)
        steps[grid_index] = values
        return steps

    return rows._replace(
        y=spread_over_grid(rows.y), channels={name: spread_over_grid(values) for name, values in rows.channels.items()}
    )


def _build_series(
    rows: ParsedRows,
    aligned: ParsedRows,
    bounds: Int[np.ndarray, "_"],
    lengths: Int[np.ndarray, "series"],
    freq: str,
    repairs: list[str],
) -> list[Series]:
    """Builds one Series per id; series without any observed value are excluded and reported in `repairs`."""
    step_starts = np.cumsum(lengths) - lengths
    last_observed = _find_last_observed(aligned.y, lengths)
    validate_static(rows)
    is_empty = last_observed < 0
    ids, start_timestamps = rows.ids[rows.codes[bounds[:-1]]], rows.ds[bounds[:-1]].tolist()
    if is_empty.all():
        raise NoData(
            f"Expected at least one observed value; all {len(ids)} series, such as {str(ids[0])!r}, are empty. "
            "Send a history.",
            where=str(ids[0]),
        )
    if is_empty.any():
        repairs.append(
            f"{int(is_empty.sum())} series without any observed value were excluded: {_format_ids(ids[is_empty])}"
        )
    step_ends = step_starts + (last_observed + 1 if rows.covariates else lengths)
    if not rows.covariates:
        repairs.extend(_describe_unobserved_ends(ids, aligned, last_observed=last_observed, lengths=lengths))
    if rows.covariates:
        repairs.extend(
            cells.describe_dropped_channel_values(
                aligned.channels, history_ends=np.where(is_empty, step_starts + lengths, step_ends), lengths=lengths
            )
        )
    spans = zip(range(len(ids)), step_starts.tolist(), step_ends.tolist(), lengths.tolist(), strict=True)
    first_rows, empty = bounds[:-1].tolist(), is_empty.tolist()
    nothing: dict[str, Any] = {}  # one for all series of the panel, which may be many
    return [
        Series(
            str(ids[index]),
            start_timestamps[index],
            freq,
            aligned.y[start:end],
            {name: values[start : start + length] for name, values in aligned.covariates.items()} or nothing,
            {name: str(values[first_rows[index]]) for name, values in rows.static.items()} or nothing,
            {name: values[start:end] for name, values in aligned.channels.items()} or nothing,
        )
        for index, start, end, length in spans
        if not empty[index]
    ]


def _find_last_observed(
    values: Float64[np.ndarray, "step"], lengths: Int[np.ndarray, "series"]
) -> Int[np.ndarray, "series"]:
    """Returns the index of the last observed step of each series, -1 where nothing was observed."""
    ends = np.cumsum(lengths)
    last_observed = lengths - 1
    for index in np.flatnonzero(np.isnan(values[ends - 1])).tolist():
        observed = np.flatnonzero(~np.isnan(values[ends[index] - lengths[index] : ends[index]]))
        last_observed[index] = observed[-1] if len(observed) else -1
    return last_observed


def _describe_unobserved_ends(
    ids: Any, aligned: ParsedRows, *, last_observed: Int[np.ndarray, "series"], lengths: Int[np.ndarray, "series"]
) -> Iterator[str]:
    """Yields a message if series end with steps at which neither `y` nor a channel is observed: their forecasts start later."""
    for values in aligned.channels.values():
        last_observed = np.maximum(last_observed, _find_last_observed(values, lengths))
    counts = np.where(last_observed < 0, 0, lengths - 1 - last_observed)
    if counts.any():
        worst = int(np.argmax(counts))
        yield (
            f"{int(counts.sum())} rows without `y` at the end of {int((counts > 0).sum())} of {len(lengths)} series count as "
            f"steps that were not observed, and their forecasts start later (most in {str(ids[worst])!r}: {int(counts[worst])}): "
            "leave the rows out to forecast from the last observed value"
        )


def _format_ids(ids: Any) -> str:
    listed = ", ".join(repr(str(series_id)) for series_id in ids[:_MAX_LISTED_IDS])
    return listed if len(ids) <= _MAX_LISTED_IDS else f"{listed} and {len(ids) - _MAX_LISTED_IDS} more"


def _series_to_frame(series: Series) -> pd.DataFrame:
    future_timestamps = (
        series.future_timestamps(series.covariate_horizon) if series.covariate_horizon else series.timestamps[:0]
    )
    return pd.DataFrame(
        {
            "unique_id": series.id,
            "ds": series.timestamps.append(future_timestamps),
            "y": np.append(series.y, np.full(series.covariate_horizon, np.nan)),
            **series.covariates,
            **series.static,
            **{
                name: np.append(values, np.full(series.covariate_horizon, np.nan))
                for name, values in series.channels.items()
            },
        }
    )

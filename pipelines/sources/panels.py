"""Reads the panel of a data source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import numpy as np
import pandas as pd

from forecaster.data.datasets import load_hospital, make_sine_trend
from forecaster.data.frames import columns as cells
from forecaster.data.frames import timestamps
from forecaster.data.frames.other_columns import ValueRows, describe_ignored_columns, keep_values
from forecaster.data.frames.panel import to_panel
from forecaster.data.frames.rows import ColumnNames
from forecaster.data.partial_periods import check_partial_periods
from forecaster.data.summary import describe_size
from forecaster.errors import BadStamp, NoData
from forecaster.frequency.timestamps import Timestamp, Timestamps, format_timestamp, normalize_frequency
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.series import Panel
from pipelines.sources.data import DataSource
from pipelines.sources.database import run_query
from pipelines.sources.drops import read_drops
from pipelines.sources.source_files import SourceTable
from pipelines.sources.stores import SourceFolder, find_source
from pipelines.sources.tables import add_missing_ids, read_table

BUILT_IN_DATASETS: dict[str, Callable[[], pd.DataFrame]] = {"hospital": load_hospital, "sine_trend": make_sine_trend}


def read_panel(data: DataSource, *, now: datetime | None = None, progress: Progress = NO_PROGRESS) -> Panel:
    """Reads the panel of a source, as the phase "reading".

    `now`, with a time zone, is used only to drop periods that have not ended yet.

    Raises subclasses of InputError with the source, the column and the row or timestamp; SourceUnavailable if a store or a
    database does not respond; MissingPackage if the package that reads the source is not installed.
    """
    with progress.phase("reading"):
        panel = _read_panel(data, now)
        progress.update(0, describe_size(panel))
    return panel


def _read_panel(data: DataSource, now: datetime | None) -> Panel:
    is_built_in = data.source in BUILT_IN_DATASETS and not data.is_query
    if is_built_in:
        data = data._replace(columns=ColumnNames(), covariates=(), static=(), channels=())
    if data.freq is not None:  # settled here; everything below takes the name as it is
        data = data._replace(freq=normalize_frequency(data.freq, where="freq"))
    table = _read_rows(data)
    frame, messages = (table.frame, ()) if data.cutoff is None else _keep_until(table.frame, data, data.cutoff)
    values = ValueRows(frame)
    if data.values_only:
        freq = None if data.freq is None else str(data.freq)
        values = keep_values(frame, data.columns, freq=freq, zone=data.zone)
    panel = to_panel(
        values.frame,
        freq=data.freq,
        columns=data.columns,
        zone=data.zone,
        covariates=data.covariates,
        static=data.static,
        channels=data.channels,
        text_covariates=data.text_covariates,
        vocabulary=data.vocabulary,
    )
    if values.ignored:
        messages = (*messages, describe_ignored_columns(values.ignored, num_series=len(panel.series)))
    panel = replace(panel, repairs=(*table.repairs, *messages, *values.messages, *panel.repairs))
    return check_partial_periods(panel, now=now, drop=True)[0] if data.drop_partial else panel


def _read_rows(data: DataSource) -> SourceTable:
    if data.is_query:
        return add_missing_ids(SourceTable(run_query(data.source), ()), data)
    if data.source in BUILT_IN_DATASETS:
        return SourceTable(BUILT_IN_DATASETS[data.source](), ())
    source = find_source(data.source, alternatives=f"one of the data sets {', '.join(BUILT_IN_DATASETS)}")
    return read_drops(source, data) if isinstance(source, SourceFolder) else read_table(source, data)


def _keep_until(frame: pd.DataFrame, data: DataSource, cutoff: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Returns the rows up to a cutoff, regardless of their arrival, and messages about the ignored rows.

    With known future covariates, the later rows remain without `y` and channels.
    """
    names = data.columns
    cells.validate_columns(frame, required=names, optional=[*data.covariates, *data.static, *data.channels])
    ids = cells.parse_ids(frame[names.unique_id], column=names.unique_id)
    ds = timestamps.parse_timestamp_column(
        frame[names.ds],
        column=names.ds,
        freq=None if data.freq is None else str(data.freq),
        zone=data.zone,
        series_codes=ids.codes,
    ).timestamps
    last = _parse_cutoff(cutoff, ds)
    is_later = np.asarray(ds > last)
    if is_later.all():
        raise NoData(
            f"Expected rows up to the cutoff {format_timestamp(last)}; the first row is at {format_timestamp(ds.min())}. Use a "
            "later --cutoff.",
            where="cutoff",
        )
    if not is_later.any():
        return frame, ()
    messages = (f"ignored {int(is_later.sum())} rows after the cutoff {format_timestamp(last)}",)
    if not data.covariates:
        return frame[~is_later], messages
    past_only = [names.y, *data.channels]
    return frame.assign(**{name: frame[name].mask(is_later) for name in past_only}), messages


def _parse_cutoff(text: str, timestamps: Timestamps) -> Timestamp:
    """Parses a cutoff to the kind of the given timestamps; a cutoff without an offset is in their zone."""
    if not isinstance(timestamps, pd.DatetimeIndex):
        if text.removeprefix("-").isdecimal():
            return int(text)
        raise BadStamp(
            f"Expected a whole number as the cutoff, because the data have integer steps; found {text!r}. Write for example "
            "--cutoff 120.",
            where="cutoff",
        )
    try:
        moment = None if text.strip().isdecimal() else pd.Timestamp(text)
    except ValueError:
        moment = None
    if moment is None or pd.isna(moment):
        raise BadStamp(
            f"Expected a timestamp as the cutoff; found {text!r}. Write it like 2026-01-31 or 2026-01-31T06:00.",
            where="cutoff",
        )
    if moment.tz is None:
        return (
            moment
            if timestamps.tz is None
            else moment.tz_localize(timestamps.tz, ambiguous=True, nonexistent="shift_forward")
        )
    if timestamps.tz is None:
        raise BadStamp(
            f"Expected a cutoff without a UTC offset, because the timestamps have none; found {text!r}. Omit the offset, or "
            "declare the zone of the timestamps.",
            where="cutoff",
        )
    return moment.tz_convert(timestamps.tz)

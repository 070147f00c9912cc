"""From what a command calls its data to a panel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from forecaster.data.datasets import load_hospital, make_sine_trend
from forecaster.data.frames import columns as cells
from forecaster.data.frames import timestamps
from forecaster.data.frames.panel import to_panel
from forecaster.errors import BadStamp, NoData
from forecaster.frequency import Timestamp, Timestamps, format_timestamp, normalize_frequency
from forecaster.series import Panel
from pipelines.sources.data import DataSource
from pipelines.sources.database import run_query
from pipelines.sources.drops import SourceTable, read_drops
from pipelines.sources.stores import SourceFolder, find_source
from pipelines.sources.tables import read_table

BUILT_IN_DATASETS: dict[str, Callable[[], pd.DataFrame]] = {"hospital": load_hospital, "sine_trend": make_sine_trend}


def read_panel(data: DataSource) -> Panel:
    """The panel of a source; raises InputError's kinds, with the source, the column and the row or stamp.

    Raises SourceUnavailable where a store or a database does not answer, MissingPackage where what asks it is not installed.
    """
    ships = data.source in BUILT_IN_DATASETS and not data.is_query
    if ships:
        data = DataSource(data.source, data.freq, zone=data.zone, cutoff=data.cutoff)
    drops = _read_rows(data)
    frame, told = (drops.frame, ()) if data.cutoff is None else _keep_until(drops.frame, data, data.cutoff)
    panel = to_panel(
        frame,
        freq=data.freq,
        columns=data.columns,
        zone=data.zone,
        covariates=data.covariates,
        static=data.static,
        channels=data.channels,
    )
    return panel._replace(repairs=(*drops.repairs, *told, *panel.repairs))


def _read_rows(data: DataSource) -> SourceTable:
    if data.is_query:
        return SourceTable(run_query(data.source), ())
    if data.source in BUILT_IN_DATASETS:
        return SourceTable(BUILT_IN_DATASETS[data.source](), ())
    found = find_source(data.source, alternatives=f"one of the data sets {', '.join(BUILT_IN_DATASETS)}")
    return read_drops(found, data) if isinstance(found, SourceFolder) else SourceTable(read_table(found, data), ())


def _keep_until(frame: pd.DataFrame, data: DataSource, cutoff: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The rows up to a cutoff, whenever they arrived. What is known ahead was known then: later rows lose `y` and channels."""
    names = data.columns
    cells.validate_columns(frame, required=names, optional=[*data.covariates, *data.static, *data.channels])
    ids = cells.parse_ids(frame[names.unique_id], column=names.unique_id)
    freq = None if data.freq is None else normalize_frequency(data.freq, where="freq")
    found = timestamps.parse_timestamp_column(
        frame[names.ds], column=names.ds, freq=freq, zone=data.zone, series_codes=ids.codes
    ).timestamps
    last = _parse_cutoff(cutoff, found)
    later = np.asarray(found > last)
    if later.all():
        raise NoData(
            f"Expected rows up to the cutoff {format_timestamp(last)}; the first is of {format_timestamp(found.min())}. Ask for a later --cutoff.",
            where="cutoff",
        )
    if not later.any():
        return frame, ()
    told = (f"{int(later.sum())} rows after the cutoff {format_timestamp(last)} were left aside",)
    if not data.covariates:
        return frame[~later], told
    unseen = [names.y, *data.channels]
    return frame.assign(**{name: frame[name].mask(later) for name in unseen}), told


def _parse_cutoff(text: str, timestamps: Timestamps) -> Timestamp:
    """A cutoff, of the kind of the stamps it cuts; one without an offset is of their zone."""
    if not isinstance(timestamps, pd.DatetimeIndex):
        if text.removeprefix("-").isdecimal():
            return int(text)
        raise BadStamp(
            f"Expected a whole number as the cutoff, since the steps are numbered; found {text!r}. Give such as --cutoff 120.",
            where="cutoff",
        )
    try:
        moment = None if text.strip().isdecimal() else pd.Timestamp(text)
    except ValueError:
        moment = None
    if moment is None or pd.isna(moment):
        raise BadStamp(
            f"Expected a stamp as the cutoff; found {text!r}. Write it like 2026-01-31 or 2026-01-31T06:00.",
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
            f"Expected a cutoff without an offset, since the stamps have none; found {text!r}. Leave it out, or declare the "
            "zone of the stamps.",
            where="cutoff",
        )
    return moment.tz_convert(timestamps.tz)

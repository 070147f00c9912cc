"""From what a command calls its data to a panel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from forecaster.data.datasets import hospital, sine_trend
from forecaster.data.frames import columns as cells
from forecaster.data.frames import timestamps
from forecaster.data.frames.panel import to_panel
from forecaster.errors import BadStamp, NoData
from forecaster.frequency import Stamp, Stamps, named, tell
from forecaster.series import Panel
from pipelines.sources.data import Data
from pipelines.sources.database import ask
from pipelines.sources.drops import Drops, gather
from pipelines.sources.stores import Folder, find
from pipelines.sources.tables import read_table

BUILT_IN: dict[str, Callable[[], pd.DataFrame]] = {"hospital": hospital, "sine_trend": sine_trend}


def read(data: Data) -> Panel:
    """The panel of a source; raises InputError's kinds, with the source, the column and the row or stamp.

    Raises SourceUnavailable where a store or a database does not answer, MissingPackage where what asks it is not installed.
    """
    ships = data.source in BUILT_IN and not data.is_query
    if ships:
        data = Data(data.source, data.freq, zone=data.zone, cutoff=data.cutoff)
    drops = _rows(data)
    frame, told = (drops.frame, ()) if data.cutoff is None else _until(drops.frame, data, data.cutoff)
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


def _rows(data: Data) -> Drops:
    if data.is_query:
        return Drops(ask(data.source), ())
    if data.source in BUILT_IN:
        return Drops(BUILT_IN[data.source](), ())
    found = find(data.source, further=f"one of the data sets {', '.join(BUILT_IN)}")
    return gather(found, data) if isinstance(found, Folder) else Drops(read_table(found, data), ())


def _until(frame: pd.DataFrame, data: Data, cutoff: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The rows up to a cutoff, whenever they arrived. What is known ahead was known then: later rows lose `y` and channels."""
    names = data.columns
    cells.check_there(frame, needed=names, further=[*data.covariates, *data.static, *data.channels])
    ids = cells.names(frame[names.unique_id], column=names.unique_id)
    freq = None if data.freq is None else named(data.freq, where="freq")
    found = timestamps.read(frame[names.ds], column=names.ds, freq=freq, zone=data.zone, series=ids.codes).stamps
    last = _cutoff(cutoff, found)
    later = np.asarray(found > last)
    if later.all():
        raise NoData(
            f"Expected rows up to the cutoff {tell(last)}; the first is of {tell(found.min())}. Ask for a later --cutoff.",
            where="cutoff",
        )
    if not later.any():
        return frame, ()
    told = (f"{int(later.sum())} rows after the cutoff {tell(last)} were left aside",)
    if not data.covariates:
        return frame[~later], told
    unseen = [names.y, *data.channels]
    return frame.assign(**{name: frame[name].mask(later) for name in unseen}), told


def _cutoff(text: str, among: Stamps) -> Stamp:
    """A cutoff, of the kind of the stamps it cuts; one without an offset is of their zone."""
    if not isinstance(among, pd.DatetimeIndex):
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
        return moment if among.tz is None else moment.tz_localize(among.tz, ambiguous=True, nonexistent="shift_forward")
    if among.tz is None:
        raise BadStamp(
            f"Expected a cutoff without an offset, since the stamps have none; found {text!r}. Leave it out, or declare the "
            "zone of the stamps.",
            where="cutoff",
        )
    return moment.tz_convert(among.tz)

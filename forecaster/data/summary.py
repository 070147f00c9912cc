"""What a panel is like, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from forecaster.data.calendar import usual_horizon, usual_season
from forecaster.frequency import Stamp
from forecaster.series import Panel

_SHARE_AHEAD = 5  # a suggested horizon takes at most one part in so many of a usual series


class Summary(NamedTuple):
    """What a panel is like."""

    series: int
    freq: str
    zone: str | None
    first: Stamp
    last: Stamp
    shortest: int
    median: int
    longest: int
    steps: int
    missing: int  # steps not observed, gaps among them
    constant: tuple[str, ...]  # ids of series with one observed value only, again and again
    covariates: tuple[str, ...]
    static: tuple[str, ...]
    ahead: int  # steps for which the covariates of every series are known
    channels: Mapping[str, int]  # steps not observed, by name
    season: int  # suggested
    horizon: int  # suggested


def summarise(panel: Panel) -> Summary:
    """Counts, spans and suggestions for a panel with at least one observed value a series."""
    series = panel.series
    lengths = np.array([len(one) for one in series])
    median = int(np.median(lengths))
    starts: list[Any] = [one.start for one in series]  # all numbers, or all moments
    zone = getattr(starts[0], "tz", None)
    return Summary(
        series=len(series),
        freq=panel.freq,
        zone=None if zone is None else str(zone),
        first=min(starts),
        last=panel.cutoff,
        shortest=int(lengths.min()),
        median=median,
        longest=int(lengths.max()),
        steps=int(lengths.sum()),
        missing=sum(int(np.isnan(one.y).sum()) for one in series),
        constant=tuple(one.id for one in series if float(np.nanmin(one.y)) == float(np.nanmax(one.y))),
        covariates=tuple(series[0].covariates),
        static=tuple(series[0].static),
        ahead=min(one.ahead for one in series),
        channels={name: sum(int(np.isnan(one.channels[name]).sum()) for one in series) for name in series[0].channels},
        season=usual_season(panel.freq),
        horizon=max(1, min(usual_horizon(panel.freq), median // _SHARE_AHEAD)),
    )

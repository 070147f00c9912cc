"""What a panel is like, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from forecaster.data.calendar import default_horizon, default_season
from forecaster.frequency import Timestamp
from forecaster.series import Panel

_MIN_HORIZONS_PER_SERIES = 5  # a suggested horizon takes at most one part in so many of a usual series


class PanelSummary(NamedTuple):
    """What a panel is like."""

    num_series: int
    freq: str
    zone: str | None
    start: Timestamp
    end: Timestamp
    min_length: int
    median_length: int
    max_length: int
    total_steps: int
    missing_steps: int  # steps not observed, gaps among them
    constant_ids: tuple[str, ...]  # ids of series with one observed value only, again and again
    covariates: tuple[str, ...]
    static: tuple[str, ...]
    covariate_horizon: int  # steps for which the covariates of every series are known
    missing_by_channel: Mapping[str, int]  # steps not observed, by name
    suggested_season: int  # suggested
    suggested_horizon: int  # suggested


def summarize_panel(panel: Panel) -> PanelSummary:
    """Counts, spans and suggestions for a panel with at least one observed value a series."""
    series = panel.series
    lengths = np.array([len(one) for one in series])
    median = int(np.median(lengths))
    starts: list[Any] = [one.start for one in series]  # all numbers, or all moments
    zone = getattr(starts[0], "tz", None)
    return PanelSummary(
        num_series=len(series),
        freq=panel.freq,
        zone=None if zone is None else str(zone),
        start=min(starts),
        end=panel.cutoff,
        min_length=int(lengths.min()),
        median_length=median,
        max_length=int(lengths.max()),
        total_steps=int(lengths.sum()),
        missing_steps=sum(int(np.isnan(one.y).sum()) for one in series),
        constant_ids=tuple(one.id for one in series if float(np.nanmin(one.y)) == float(np.nanmax(one.y))),
        covariates=tuple(series[0].covariates),
        static=tuple(series[0].static),
        covariate_horizon=min(one.covariate_horizon for one in series),
        missing_by_channel={
            name: sum(int(np.isnan(one.channels[name]).sum()) for one in series) for name in series[0].channels
        },
        suggested_season=default_season(panel.freq),
        suggested_horizon=max(1, min(default_horizon(panel.freq), median // _MIN_HORIZONS_PER_SERIES)),
    )

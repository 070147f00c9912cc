"""Summary of a panel for inspection before training, with a suggested season and horizon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from forecaster.data.calendar import default_horizon, default_season
from forecaster.data.on_disk.tape import count_steps
from forecaster.frequency.timestamps import Timestamp
from forecaster.series import Panel

_MIN_HORIZONS_PER_SERIES = 5  # a series of median length has at least this many suggested horizons


class PanelSummary(NamedTuple):
    """Counts, spans and suggestions for a panel."""

    num_series: int
    freq: str
    zone: str | None
    start: Timestamp
    end: Timestamp
    min_length: int
    median_length: int
    max_length: int
    total_steps: int
    missing_steps: int  # steps without an observed value
    constant_ids: tuple[str, ...]  # series whose observed values are all equal
    covariates: tuple[str, ...]
    static: tuple[str, ...]
    covariate_horizon: int  # future steps for which every series has covariates
    missing_by_channel: Mapping[str, int]  # steps without an observed value, by channel name
    suggested_season: int
    suggested_horizon: int


def summarize_panel(panel: Panel) -> PanelSummary:
    """Summarizes a panel; every series needs at least one observed value."""
    panel_series = panel.series
    lengths = count_steps(panel_series)
    median = int(np.median(lengths))
    starts: list[Any] = [series.start for series in panel_series]  # all integers, or all datetimes
    zone = getattr(starts[0], "tz", None)
    return PanelSummary(
        num_series=len(panel_series),
        freq=panel.freq,
        zone=None if zone is None else str(zone),
        start=min(starts),
        end=panel.cutoff,
        min_length=int(lengths.min()),
        median_length=median,
        max_length=int(lengths.max()),
        total_steps=int(lengths.sum()),
        missing_steps=sum(int(np.isnan(series.y).sum()) for series in panel_series),
        constant_ids=tuple(
            series.id for series in panel_series if float(np.nanmin(series.y)) == float(np.nanmax(series.y))
        ),
        covariates=tuple(panel_series[0].covariates),
        static=tuple(panel_series[0].static),
        covariate_horizon=min(series.covariate_horizon for series in panel_series),
        missing_by_channel={
            name: sum(int(np.isnan(series.channels[name]).sum()) for series in panel_series)
            for name in panel_series[0].channels
        },
        suggested_season=default_season(panel.freq),
        suggested_horizon=max(1, min(default_horizon(panel.freq), median // _MIN_HORIZONS_PER_SERIES)),
    )


def describe_size(panel: Panel) -> str:
    """Describes the size of a panel in a few words."""
    steps = int(count_steps(panel.series).sum())
    return f"{len(panel.series)} series, {steps} steps"

"""Splits by time into history and held-out steps, and rolling origins. Splits are never random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from forecaster.data.on_disk.tape import TapeSeries, count_steps
from forecaster.errors import HistoryTooShort
from forecaster.series import Panel, Series
from forecaster.shapes import Int

MAX_EVALUATED_ORIGINS = 1 << 17
"""Origins of a calibration or a test. Panels with more are sampled: the errors of so many tell those of the others."""


class PanelSplit(NamedTuple):
    """A panel that is cut a number of steps before its end. Only `full` has the held-out steps."""

    history: Panel
    full: Panel
    excluded_ids: tuple[str, ...]  # series that are too short for the split


def hold_out(panel: Panel, steps: int, *, min_history: int = 1) -> PanelSplit:
    """Holds out the last `steps` values of every series; series that keep fewer than `min_history` values are excluded.

    Raises HistoryTooShort if no series is long enough.
    """
    series = panel.series
    is_long_enough = count_steps(series) >= steps + min_history
    if not is_long_enough.any():
        longest = max(series, key=len)
        raise HistoryTooShort(
            f"Holding out {steps} steps and keeping {min_history} needs a series of {steps + min_history} steps; the longest, "
            f"{longest.id!r}, has {len(longest)}, so at most {max(0, len(longest) - min_history)} can be held out. Send a longer "
            "history, or choose a shorter horizon, context or fewer windows.",
            where=longest.id,
        )
    full = select_series(series, np.flatnonzero(is_long_enough))
    history = (
        full.drop_last(steps) if isinstance(full, TapeSeries) else [item.take_first(len(item) - steps) for item in full]
    )
    excluded_ids = tuple(series[index].id for index in np.flatnonzero(~is_long_enough).tolist())
    whole = replace(panel, series=full, dropped_partial=None)
    return PanelSplit(replace(whole, series=history), whole, excluded_ids)


def select_series(series: Sequence[Series], indices: Int[np.ndarray, "chosen"]) -> Sequence[Series]:
    """Returns the series at some indices; those of a panel on disk stay there."""
    return series.select(indices) if isinstance(series, TapeSeries) else [series[index] for index in indices.tolist()]


def sample_evenly(series: Sequence[Series], *, limit: int) -> Sequence[Series]:
    """Returns at most `limit` series, evenly chosen."""
    if len(series) <= limit:
        return series
    return select_series(series, np.arange(limit) * len(series) // limit)


def sample_panel(panel: Panel, *, windows: int) -> Panel:
    """Returns a panel of evenly chosen series with at most MAX_EVALUATED_ORIGINS origins; a smaller panel as it is."""
    series = sample_evenly(panel.series, limit=max(1, MAX_EVALUATED_ORIGINS // windows))
    return panel if series is panel.series else replace(panel, series=series)


def rolling_origins(*, windows: int, horizon: int, stride: int | None = None) -> range:
    """Returns the distance of each rolling origin from the end in steps, oldest first; the last is one horizon from the end.

    Origins are `stride` steps apart; the default is one horizon.
    """
    stride = stride or horizon
    return range(horizon + (windows - 1) * stride, horizon - 1, -stride)

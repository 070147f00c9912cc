"""Splits by time into history and held-out steps, and rolling origins. Splits are never random."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from forecaster.errors import HistoryTooShort
from forecaster.series import Panel


class PanelSplit(NamedTuple):
    """A panel that is cut a number of steps before its end. Only `full` has the held-out steps."""

    history: Panel
    full: Panel
    excluded_ids: tuple[str, ...]  # series that are too short for the split


def hold_out(panel: Panel, steps: int, *, min_history: int = 1) -> PanelSplit:
    """Holds out the last `steps` values of every series; series that keep fewer than `min_history` values are excluded.

    Raises HistoryTooShort if no series is long enough.
    """
    long_enough = [series for series in panel.series if len(series) >= steps + min_history]
    if not long_enough:
        longest = max(panel.series, key=len)
        raise HistoryTooShort(
            f"Holding out {steps} steps and keeping {min_history} needs a series of {steps + min_history} steps; the longest, "
            f"{longest.id!r}, has {len(longest)}, so at most {max(0, len(longest) - min_history)} can be held out. Send a longer "
            "history, or choose a shorter horizon, context or fewer windows.",
            where=longest.id,
        )
    history = replace(
        panel, series=[series.take_first(len(series) - steps) for series in long_enough], dropped_partial=None
    )
    included_ids = {series.id for series in long_enough}
    excluded_ids = tuple(series.id for series in panel.series if series.id not in included_ids)
    return PanelSplit(history, replace(history, series=long_enough), excluded_ids)


def rolling_origins(*, windows: int, horizon: int, stride: int | None = None) -> range:
    """Returns the distance of each rolling origin from the end in steps, oldest first; the last is one horizon from the end.

    Origins are `stride` steps apart; the default is one horizon.
    """
    stride = stride or horizon
    return range(horizon + (windows - 1) * stride, horizon - 1, -stride)

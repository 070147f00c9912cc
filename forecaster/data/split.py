"""Cutting by time: what was known, and what came after. Never at random."""

from __future__ import annotations

from typing import NamedTuple

from forecaster.errors import HistoryTooShort
from forecaster.series import Panel


class PanelSplit(NamedTuple):
    """A panel cut some steps before its end; the truth after the cut is in other hands than the past."""

    history: Panel
    full: Panel
    excluded_ids: tuple[str, ...]  # ids of series too short to give up so many steps


def hold_out(panel: Panel, steps: int, *, min_history: int = 1) -> PanelSplit:
    """Cuts the last `steps` values off every series that keeps at least `min_history` of them; the others are left out.

    Raises HistoryTooShort if no series is long enough.
    """
    long_enough = [one for one in panel.series if len(one) >= steps + min_history]
    if not long_enough:
        longest = max(panel.series, key=len)
        raise HistoryTooShort(
            f"Holding out {steps} steps and keeping {min_history} needs a series of {steps + min_history} steps; the longest, "
            f"{longest.id!r}, has {len(longest)}. Send a longer history, or ask for a shorter horizon, context or fewer windows.",
            where=longest.id,
        )
    known = Panel([one.take_first(len(one) - steps) for one in long_enough], panel.freq, panel.repairs)
    kept = {one.id for one in long_enough}
    left_out = tuple(one.id for one in panel.series if one.id not in kept)
    return PanelSplit(known, Panel(long_enough, panel.freq, panel.repairs), left_out)


def rolling_origins(*, windows: int, horizon: int, stride: int | None = None) -> range:
    """How many steps before the end each rolling origin lies, oldest first: the last has a horizon left.

    They are `stride` apart, a horizon if that is not given.
    """
    apart = stride or horizon
    return range(horizon + (windows - 1) * apart, horizon - 1, -apart)

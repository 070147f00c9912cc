"""What is remembered of the steps that a series no longer holds: no more than a season of numbers, however many they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from forecaster.shapes import Float64

StateArrays = Mapping[str, np.ndarray]
STATE_ARRAY_DTYPES: Mapping[str, str] = {
    **dict.fromkeys(("hidden", "cell", "output", "recent", "bound", "static"), "float32"),
    **dict.fromkeys(("shift", "width", "profile", "size"), "float64"),
    "begun": "bool",
    "time": "int64",
}
"""What the arrays of a rollout's memory are made of."""


@dataclass(frozen=True, eq=False)
class HistorySummary:
    """What came before the first held step of a history, as far as forecasts and intervals ask for it.

    Attributes:
        latest: The latest observed value of each phase of the season, those of the season right before the first held
            step; NaN where the phase was never observed.
        last: The latest observed value of all; NaN without any.
        changes: Sums of the absolute changes over a season, and from one observed value to the next, that do not lie
            between held values.
        counts: How many those were.
        memories: Of networks that read whole histories: by the number of held steps that were read by then, all that the
            rollout of each member carried, as plain arrays by name.
    """

    last_season_values: Float64[np.ndarray, "phase"]
    last_value: float
    change_sums: tuple[float, float]
    change_counts: tuple[int, int]
    rollout_states: Mapping[int, Sequence[StateArrays]] = field(default_factory=dict)

    @property
    def season(self) -> int:
        """Steps of the season it was made for."""
        return len(self.last_season_values)

    def mean_seasonal_change(self, values: Float64[np.ndarray, "held"]) -> float:
        """The mean absolute change over a season of all steps, the held ones with those before; NaN without any."""
        here = np.abs(values[self.season :] - values[: -self.season])
        count = self.change_counts[0] + int((~np.isnan(here)).sum())
        return (self.change_sums[0] + float(np.nansum(here))) / count if count else float("nan")

    def find_resume_step(self, end: int, *, segment: int) -> int | None:
        """The latest place that there are memories of, from which on whole segments lead to `end`; None without."""
        fitting = (place for place in self.rollout_states if place <= end and (end - place) % segment == 0)
        return max(fitting, default=None)


def history_scale(
    y: Float64[np.ndarray, "step"], season: int, *, history_summary: HistorySummary | None = None
) -> float:
    """The size of a history's changes: what errors are measured in, at calibration and at prediction alike.

    The mean absolute change over a season; without such a pair, from one observed value to the next. Zero where the
    history never changes, NaN where nothing was observed. Steps that are held no longer count with what is remembered.
    """
    y = np.asarray(y, dtype=np.float64)
    known = y[~np.isnan(y)]
    if history_summary is not None and not np.isnan(history_summary.last_value):
        known = np.concatenate([[history_summary.last_value], known])
    if not len(known):
        return float("nan")
    sums, counts = (
        ((0.0, 0.0), (0, 0))
        if history_summary is None
        else (history_summary.change_sums, history_summary.change_counts)
    )
    for changes, before, pairs in zip((y[season:] - y[:-season], np.diff(known)), sums, counts, strict=True):
        here = int((~np.isnan(changes)).sum())
        size = (before + float(np.nansum(np.abs(changes)))) / (here + pairs) if here + pairs else float("nan")
        if size > 0:
            return size
    return 0.0


def drop_and_summarize(
    y: Float64[np.ndarray, "step"], history_summary: HistorySummary | None, *, cut: int, season: int
) -> tuple[Float64[np.ndarray, "held"], HistorySummary]:
    """The values from `cut` on, at least a season of them, and what is remembered of those before."""
    assert 0 <= cut <= len(y) - season, f"{len(y) - cut} held steps are less than a season of {season}"
    dropped, seen = y[:cut], ~np.isnan(y[:cut])
    known = (
        dropped[seen]
        if history_summary is None or np.isnan(history_summary.last_value)
        else np.concatenate([[history_summary.last_value], dropped[seen]])
    )
    seasonal, stepwise = y[season : cut + season] - y[:cut], np.diff(known)
    before = np.full(season, np.nan) if history_summary is None else history_summary.last_season_values
    sums, counts = (
        ((0.0, 0.0), (0, 0))
        if history_summary is None
        else (history_summary.change_sums, history_summary.change_counts)
    )
    return y[cut:], HistorySummary(
        _fill_last_season(np.concatenate([before, dropped]), season),
        float(known[-1]) if len(known) else float("nan"),
        (sums[0] + float(np.nansum(np.abs(seasonal))), sums[1] + float(np.abs(stepwise).sum())),
        (counts[0] + int((~np.isnan(seasonal)).sum()), counts[1] + len(stepwise)),
    )


def _fill_last_season(values: Float64[np.ndarray, "step"], season: int) -> Float64[np.ndarray, "phase"]:
    """The last season of values, each gap filled with the latest observed value of its phase."""
    padded = np.concatenate([np.full(-len(values) % season, np.nan), values]).reshape(-1, season)
    seen = ~np.isnan(padded)
    rows = np.where(seen, np.arange(len(padded))[:, None], 0).max(axis=0)
    return np.asarray(padded[rows, np.arange(season)])

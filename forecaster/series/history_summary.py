"""Summary statistics of the dropped steps of a truncated series. Their size is about one season, however long the history was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from forecaster.shapes import Float64

StateArrays = Mapping[str, np.ndarray]
STATE_ARRAY_DTYPES: Mapping[str, str] = {
    **dict.fromkeys(("hidden", "cell", "output", "recent", "bound", "static"), "float32"),
    **dict.fromkeys(("shift", "width", "profile", "size", "statistics"), "float64"),
    "begun": "bool",
    "time": "int64",
}
"""The dtype of each array of a rollout state."""


_MAX_VALUES_AT_ONCE = 1 << 20  # of histories whose scales are computed together


@dataclass(frozen=True, eq=False)
class HistorySummary:
    """The steps before the first held step of a history, as far as forecasts and intervals depend on them.

    Attributes:
        last_season_values: The latest observed value of each phase of the season, in the order of the season right before
            the first held step; NaN where a phase was never observed.
        last_value: The latest observed value; NaN if there is none.
        change_sums: Sums of the absolute changes over a season, and from one observed value to the next, without the changes
            between two held values.
        change_counts: The number of changes in each sum.
        rollout_states: For networks that read whole histories: the rollout state of each member, as plain arrays by name.
            The key is the number of held steps that the state has read.
        lowest: The lowest observed value; NaN if there is none, or if it was not kept.
        highest: The highest observed value; NaN likewise.
    """

    last_season_values: Float64[np.ndarray, "phase"]
    last_value: float
    change_sums: tuple[float, float]
    change_counts: tuple[int, int]
    rollout_states: Mapping[int, Sequence[StateArrays]] = field(default_factory=dict)
    lowest: float = math.nan
    highest: float = math.nan

    @property
    def season(self) -> int:
        """The season of the summary, in steps."""
        return len(self.last_season_values)

    def mean_seasonal_change(self, values: Float64[np.ndarray, "held"]) -> float:
        """Returns the mean absolute change over a season, of the held and the dropped steps; NaN if there is no such pair."""
        changes = np.abs(values[self.season :] - values[: -self.season])
        count = self.change_counts[0] + int((~np.isnan(changes)).sum())
        return (self.change_sums[0] + float(np.nansum(changes))) / count if count else float("nan")

    def find_resume_step(self, end: int, *, segment: int) -> int | None:
        """Returns the latest step with a stored state that is a whole number of segments before `end`; None if there is none."""
        candidates = (step for step in self.rollout_states if step <= end and (end - step) % segment == 0)
        return max(candidates, default=None)


def history_scale(
    y: Float64[np.ndarray, "step"], season: int, *, history_summary: HistorySummary | None = None
) -> float:
    """Returns the scale of a history: the unit of errors in calibration and in prediction.

    It is the mean absolute change over a season, or, if no such pair was observed or it is zero, from one observed value to
    the next. It is zero if the history never changes, and NaN if nothing was observed. Dropped steps are included through
    `history_summary`.
    """
    y = np.asarray(y, dtype=np.float64)
    if history_summary is None and len(y) > season:
        total = float(np.abs(y[season:] - y[:-season]).sum())
        if total > 0:  # and not NaN: nearly every history
            return total / (len(y) - season)
    observed = y[~np.isnan(y)]
    if history_summary is not None and not np.isnan(history_summary.last_value):
        observed = np.concatenate([[history_summary.last_value], observed])
    if not len(observed):
        return float("nan")
    sums, counts = (
        ((0.0, 0.0), (0, 0))
        if history_summary is None
        else (history_summary.change_sums, history_summary.change_counts)
    )
    for changes, earlier_sum, earlier_count in zip(
        (y[season:] - y[:-season], np.diff(observed)), sums, counts, strict=True
    ):
        count = int((~np.isnan(changes)).sum())
        scale = (
            (earlier_sum + float(np.nansum(np.abs(changes)))) / (count + earlier_count)
            if count + earlier_count
            else float("nan")
        )
        if scale > 0:
            return scale
    return 0.0


def history_scales(
    histories: Sequence[Float64[np.ndarray, "_"]],
    season: int,
    summaries: Sequence[HistorySummary | None] | None = None,
) -> Float64[np.ndarray, "history"]:
    """Returns `history_scale` of each history, to the bit; those of one length at once."""
    scales = np.full(len(histories), np.nan)
    rows_by_length: dict[int, list[int]] = {}
    for row, history in enumerate(histories):
        if summaries is None or summaries[row] is None:
            rows_by_length.setdefault(len(history), []).append(row)
    for length, rows in rows_by_length.items():
        at_once = max(1, _MAX_VALUES_AT_ONCE // max(1, length))
        for first in range(0, len(rows) if length > season else 0, at_once):
            batch = rows[first : first + at_once]
            values = np.array([histories[row] for row in batch], dtype=np.float64)
            scales[batch] = np.abs(values[:, season:] - values[:, :-season]).sum(axis=1) / (length - season)
    for row in np.flatnonzero(~(scales > 0)).tolist():  # missing values, dropped steps, no seasonal change
        summary = None if summaries is None else summaries[row]
        scales[row] = history_scale(histories[row], season, history_summary=summary)
    return scales


def find_constant(y: Float64[np.ndarray, "step"], history_summary: HistorySummary | None = None) -> float | None:
    """Returns the value of a constant history: all its observed values, at least two, are equal; None for any other history.

    Dropped steps are included through `history_summary`.
    """
    if y[0] != y[-1] and not np.isnan(y[[0, -1]]).any():
        return None  # nearly every history
    observed, count = y[~np.isnan(y)], 0
    if history_summary is not None and not np.isnan(history_summary.last_value):
        if history_summary.change_sums[1] > 0:
            return None
        observed = np.concatenate([[history_summary.last_value], observed])
        count = history_summary.change_counts[1]
    if count + len(observed) < 2 or (observed != observed[0]).any():
        return None
    return float(observed[0])


def constant_steps(y: Float64[np.ndarray, "step"]) -> int:
    """Returns the number of first steps whose observed values are all equal."""
    is_other = ~np.isnan(y)
    if is_other.any():
        is_other &= y != y[is_other.argmax()]
    return int(is_other.argmax()) if is_other.any() else len(y)


def drop_and_summarize(
    y: Float64[np.ndarray, "step"], history_summary: HistorySummary | None, *, cut: int, season: int
) -> tuple[Float64[np.ndarray, "held"], HistorySummary]:
    """Returns the values from `cut` on (at least a season of them), and the summary of the steps before."""
    assert 0 <= cut <= len(y) - season, f"{len(y) - cut} held steps are fewer than a season of {season}"
    dropped, is_observed = y[:cut], ~np.isnan(y[:cut])
    observed = (
        dropped[is_observed]
        if history_summary is None or np.isnan(history_summary.last_value)
        else np.concatenate([[history_summary.last_value], dropped[is_observed]])
    )
    seasonal_changes, step_changes = y[season : cut + season] - y[:cut], np.diff(observed)
    last_season_values = np.full(season, np.nan) if history_summary is None else history_summary.last_season_values
    sums, counts, extremes = (
        ((0.0, 0.0), (0, 0), (math.nan, math.nan))
        if history_summary is None
        else (
            history_summary.change_sums,
            history_summary.change_counts,
            (history_summary.lowest, history_summary.highest),
        )
    )
    return y[cut:], HistorySummary(
        _fill_last_season(np.concatenate([last_season_values, dropped]), season),
        float(observed[-1]) if len(observed) else float("nan"),
        (sums[0] + float(np.nansum(np.abs(seasonal_changes))), sums[1] + float(np.abs(step_changes).sum())),
        (counts[0] + int((~np.isnan(seasonal_changes)).sum()), counts[1] + len(step_changes)),
        lowest=float(np.fmin.reduce(dropped, initial=extremes[0])),
        highest=float(np.fmax.reduce(dropped, initial=extremes[1])),
    )


def _fill_last_season(values: Float64[np.ndarray, "step"], season: int) -> Float64[np.ndarray, "phase"]:
    """Returns the last season of values; each gap is filled with the latest observed value of its phase."""
    padded = np.concatenate([np.full(-len(values) % season, np.nan), values]).reshape(-1, season)
    is_observed = ~np.isnan(padded)
    rows = np.where(is_observed, np.arange(len(padded))[:, None], 0).max(axis=0)
    return np.asarray(padded[rows, np.arange(season)])

"""The units of prediction intervals: the size of errors that the history of a series suggests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forecaster.data.encoding import find_category
from forecaster.intervals.difficulty import measure_changes
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.head_quantiles import describe_changes
from forecaster.series import Series
from forecaster.series.history_summary import HistorySummary, history_scale, history_scales
from forecaster.shapes import Float64, Int

MIN_RELATIVE_SCALE = 0.01  # unit of errors of a history that never changes, relative to its value; of zeros, absolute


class IntervalUnits:
    """Computes what the calibration of one fitted model is applied with: the unit and the group of each series."""

    def __init__(self, fitted_model: FittedModel | StoredModel) -> None:
        self._season, self._calibration = fitted_model.season, fitted_model.calibration
        self._group_column = fitted_model.spec.group

    def interval_group(self, series: Series) -> str | None:
        """Returns the group whose calibration a series uses; None, and groups without their own table, use that of all series."""
        label = None if self._group_column is None else series.static.get(self._group_column)
        if label is None or self._calibration is None:
            return label
        groups = tuple(self._calibration.groups)
        index = find_category(groups, label)
        return label if index < 0 else groups[index]

    def compute_scale(self, history: Float64[np.ndarray, "_"], history_summary: HistorySummary | None = None) -> float:
        """Returns the scale of a history, the unit of errors in calibration and of quantile offsets.

        The whole history is used, as in benchmarks/intervals.py: a scale from the network's short context is so uncertain that
        intervals are wide and still cover less (docs/experiments.md). Intervals of a history much shorter than those of the
        calibration cover less too.
        """
        return history_scale(history, self._season, history_summary=history_summary)

    def compute_interval_scale(
        self, history: Float64[np.ndarray, "_"], history_summary: HistorySummary | None = None
    ) -> float:
        """Returns the unit of quantile offsets: the scale of a history, or the minimum of one that never changes.

        Without a minimum its intervals would have no width. Calibrations ignore such histories.
        """
        scale = self.compute_scale(history, history_summary)
        if scale != 0:  # NaN if nothing was observed
            return scale
        observed = history[~np.isnan(history)]
        last_value = float(observed[-1]) if len(observed) or history_summary is None else history_summary.last_value
        return minimum_scale(last_value)

    def compute_interval_scales(
        self,
        histories: Sequence[Float64[np.ndarray, "_"]],
        summaries: Sequence[HistorySummary | None] | None = None,
    ) -> Float64[np.ndarray, "history"]:
        """Returns the units of the quantile offsets of histories, with their difficulty; 0 where nothing was observed."""
        scales = history_scales(histories, self._season, summaries)
        for row in np.flatnonzero(scales == 0).tolist():
            scales[row] = self.compute_interval_scale(histories[row], None if summaries is None else summaries[row])
        scales[np.isnan(scales)] = 0.0
        calibration = self._calibration
        if calibration is not None and calibration.short_histories is not None and len(scales):
            steps = _count_observed(histories, summaries)
            scales *= calibration.short_histories.compute_factors(steps)
        if calibration is None or calibration.difficulty is None or not len(scales):
            return scales
        changes = measure_changes(histories, season=self._season)
        has_changes = (changes > 0).any(axis=1)  # otherwise the scale is a minimum width, which has no difficulty
        scales[has_changes] *= calibration.difficulty.compute_factors(changes, scales)[has_changes]
        return scales

    def measure_head_changes(
        self,
        histories: Sequence[Float64[np.ndarray, "_"]],
        summaries: Sequence[HistorySummary | None] | None = None,
    ) -> Float64[np.ndarray, "history change"] | None:
        """Returns what the difficulty of a recalibrated head depends on; None if it has none."""
        if self._calibration is None or self._calibration.difficulty is None:
            return None
        return describe_changes(histories, summaries, season=self._season)


def minimum_scale(value: float) -> float:
    """Returns the unit of errors of a history that has only this value."""
    return MIN_RELATIVE_SCALE * (abs(value) or 1.0)


def _count_observed(
    histories: Sequence[Float64[np.ndarray, "_"]], summaries: Sequence[HistorySummary | None] | None
) -> Int[np.ndarray, "history"]:
    """Returns the number of observed values of each history, dropped steps included."""
    lengths = np.array([len(history) for history in histories])
    observed = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(~np.isnan(np.concatenate(histories)))])
    ends = np.cumsum(lengths)
    counts = np.asarray(observed[ends] - observed[ends - lengths])
    for row, summary in enumerate(summaries or ()):
        if summary is not None and not np.isnan(summary.last_value):
            counts[row] += summary.change_counts[1] + 1  # n values have n - 1 changes
    return counts

"""Runs side by side: their headline metrics, how sure their differences are, and what their specifications differ in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from forecaster.errors import InputError
from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.baselines import SEASONAL_NAIVE
from forecaster.evaluation.significance import SignificanceResult, compare_forecasters
from pipelines.tracking.reader import RunRecord
from pipelines.tracking.run import HEADLINE_METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KEY_COLUMNS = ["unique_id", "cutoff", "step"]
_HIGHER_IS_BETTER = {"bt/skill_vs_snaive", "train/windows_per_s"}
_TARGET_VALUES = {"bt/coverage_80": 0.8, "bt/coverage_95": 0.95}  # what they are meant to be
_NOT_RANKED = {"bt/width_80", "bt/width_95"}  # narrow is no merit by itself
_PREFIX_ORDER = ("bt/", "bt_pure/", "valid/", "tune/", "train/", "serve/")
_TRIAL_METRICS = ("valid/rollout", "tune/value")  # what trials of a search have


class MetricRow(NamedTuple):
    """One metric of every run, None where a run has it not, and the runs that are best at it."""

    metric: str
    values: tuple[float | None, ...]
    best: tuple[int, ...]

    @property
    def differences(self) -> tuple[float | None, ...]:
        """How far each is from the first run."""
        first = self.values[0]
        return tuple(None if first is None or value is None else value - first for value in self.values)


class SpecDifference(NamedTuple):
    """A field of the specification in which runs differ; None where a run has it not."""

    field: str
    values: tuple[str | None, ...]


class RunComparison(NamedTuple):
    """What a comparison found.

    Attributes:
        runs: In the order in which they were named; the first is what the others are held against.
        rows: Headline metrics as the runs recorded them.
        specs: Fields in which their specifications differ.
        shared: Raw forecasts of all runs on the windows they share, by label; None where there are none.
        ids: The series of `shared_backtest`, in its order.
        against: Of every run but the first, how its errors differ from the first's.
        told: What people should know of it.
    """

    runs: Sequence[RunRecord]
    rows: Sequence[MetricRow]
    spec_differences: Sequence[SpecDifference]
    shared_backtest: Backtest | None
    series_ids: Sequence[str]
    comparisons: Mapping[str, SignificanceResult]
    messages: Sequence[str]

    @property
    def labels(self) -> list[str]:
        """What the runs are called."""
        return [one.label for one in self.runs]


def compare_runs(runs: Sequence[RunRecord], *, allow_different_data: bool = False) -> RunComparison:
    """Holds runs against the first of them.

    Raises InputError where they were trained or tested on different data, unless that is allowed: then the test is on the
    windows that they share, if their truth is the same there.
    """
    if len(runs) < 2:
        raise InputError(f"Expected two runs or more to compare; found {len(runs)}. Name another.", where="runs")
    runs = [
        one._replace(label=label)
        for one, label in zip(runs, _make_labels_unique([one.label for one in runs]), strict=True)
    ]
    faults = _find_data_differences(runs)
    if faults and not allow_different_data:
        raise InputError(
            f"Expected runs on the same data; {'; '.join(faults)}. Name runs of the same data, or allow it: --different-data.",
            where="runs",
        )
    told, shared = list(faults), None
    ids: list[str] = []
    against: dict[str, SignificanceResult] = {}
    untested = [one.label for one in runs if one.stored_backtest is None]
    if untested:
        told.append(f"no test of significance: {', '.join(untested)} kept no raw forecasts (it was not tested)")
    else:
        merged = _merge_forecasts(runs)
        if merged.empty:
            told.append("no test of significance: no window was forecast by all of them with the same truth")
        else:
            shared, ids = _build_shared_backtest(merged, [one.label for one in runs])
            first = runs[0].label
            against = {one.label: compare_forecasters(shared, first, one.label) for one in runs[1:]}
    return RunComparison(runs, _build_metric_rows(runs), _find_spec_differences(runs), shared, ids, against, told)


def plot_overlay(comparison: RunComparison, series: str | None = None) -> Figure:
    """What every run said of one series (the first, if none is named); raises InputError where none has it."""
    from forecaster.evaluation.plots import plot_forecast_overlay

    assert comparison.shared_backtest is not None
    name = comparison.series_ids[0] if series is None else series
    if name not in comparison.series_ids:
        raise InputError(
            f"Expected a series that all runs forecast; {name!r} is none of the {len(comparison.series_ids)}, {comparison.series_ids[0]!r} is the first. "
            "Name one of them.",
            where="series",
        )
    merged = _merge_forecasts(comparison.runs)
    shown = merged[merged["unique_id"] == name].sort_values(["cutoff", "step"])
    kept = comparison.runs[0].stored_backtest
    assert kept is not None
    history = kept.histories[kept.histories["unique_id"] == name]
    history = history[history["ds"] <= shown["cutoff"].min()] if len(history) else history
    baseline = SEASONAL_NAIVE if SEASONAL_NAIVE in shown else None
    return plot_forecast_overlay(
        history, shown, comparison.labels, title=f"{name}: forecasts of all runs", baseline=baseline
    )


def plot_error_by_horizon(comparison: RunComparison) -> Figure:
    """The error of every run at each step ahead."""
    from forecaster.evaluation.plots import plot_error_by_step

    assert comparison.shared_backtest is not None
    return plot_error_by_step(comparison.shared_backtest)


def _make_labels_unique(labels: Sequence[str]) -> list[str]:
    """Labels that tell runs apart, from each other and from seasonal naive."""
    found: list[str] = []
    for label in labels:
        others = (f"{label} ({number})" for number in count(2))
        taken = {*found, SEASONAL_NAIVE}
        found.append(label if label not in taken else next(one for one in others if one not in taken))
    return found


def _find_data_differences(runs: Sequence[RunRecord]) -> list[str]:
    """In what the data of runs differ from the first's."""
    first, faults = runs[0], []
    for other in runs[1:]:
        both = f"{first.label} and {other.label}"
        ahead = [one.params.get("horizon") for one in (first, other)]
        if ahead[0] != ahead[1]:
            faults.append(f"the horizons of {both} are {ahead[0]} and {ahead[1]} steps")
        digests = [one.tags.get("data_digest", "unknown") for one in (first, other)]
        # One was digested with its test windows, the other without, where a training meets a backtest.
        if first.dataset_context == other.dataset_context and digests[0] != digests[1]:
            faults.append(f"the data of {both} have the digests {digests[0][:12]} and {digests[1][:12]}")
        if first.stored_backtest is not None and other.stored_backtest is not None:
            faults += _find_window_differences(first.stored_backtest.forecasts, other.stored_backtest.forecasts, both)
    return faults


def _find_window_differences(first: pd.DataFrame, second: pd.DataFrame, pair_label: str) -> list[str]:
    if first["cutoff"].dtype.kind != second["cutoff"].dtype.kind:
        return [f"the cutoffs of {pair_label} are moments here and numbers there"]
    cutoffs = [set(each["cutoff"].unique()) for each in (first, second)]
    if cutoffs[0] != cutoffs[1]:
        odd = [f"{len(each)} from {min(each)} to {max(each)}" for each in cutoffs]
        return [f"the cutoffs of {pair_label} are {odd[0]}, and {odd[1]}"]
    truths = [each[[*_KEY_COLUMNS, "y"]] for each in (first, second)]
    pairs = truths[0].merge(truths[1], on=_KEY_COLUMNS, suffixes=("", "_other"))
    if pairs.empty:
        return [f"{pair_label} were tested on different series"]
    differ = int((~np.isclose(pairs["y"], pairs["y_other"], rtol=1e-12, atol=0, equal_nan=True)).sum())
    return [f"what came is not the same for {pair_label} at {differ} of {len(pairs)} steps"] if differ else []


def _merge_forecasts(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """A row for each series, cutoff and step that all runs forecast with the same truth, a column for each run."""
    whole: pd.DataFrame | None = None
    for one in runs:
        assert one.stored_backtest is not None
        table = one.stored_backtest.forecasts
        if whole is None:
            kept = [name for name in (SEASONAL_NAIVE, "scale", "square_scale") if name in table]
            whole = table[[*_KEY_COLUMNS, "ds", "y", *kept]].assign(
                **{one.label: table[one.stored_backtest.model_column]}
            )
            continue
        if table["cutoff"].dtype.kind != whole["cutoff"].dtype.kind:
            return whole.iloc[:0]
        mine = table[[*_KEY_COLUMNS]].assign(
            **{"_truth": table["y"], one.label: table[one.stored_backtest.model_column]}
        )
        whole = whole.merge(mine, on=_KEY_COLUMNS)
        same = np.isclose(whole["y"], whole.pop("_truth"), rtol=1e-12, atol=0, equal_nan=True)
        whole = whole[same]
    assert whole is not None
    return whole


def _build_shared_backtest(merged: pd.DataFrame, labels: Sequence[str]) -> tuple[Backtest, list[str]]:
    """The backtest that the rows are of; a window that a series has not is NaN throughout."""
    series, ids = pd.factorize(merged["unique_id"])
    window = merged.groupby("unique_id")["cutoff"].rank(method="dense").to_numpy().astype(int) - 1
    step = merged["step"].to_numpy() - 1
    shape = (len(ids), int(window.max()) + 1, int(step.max()) + 1)

    def cube(column: str) -> np.ndarray:
        values = np.full(shape, np.nan)
        values[series, window, step] = merged[column].to_numpy(dtype=np.float64)
        return values

    def of_series(column: str) -> np.ndarray:
        values = np.full(shape[0], np.nan)
        if column in merged:
            values[series] = merged[column].to_numpy(dtype=np.float64)
        return values

    names = [*labels, *([SEASONAL_NAIVE] if SEASONAL_NAIVE in merged else [])]
    made = Backtest(
        series=[],
        cutoffs=[],
        actual=cube("y"),
        forecasts={name: cube(name) for name in names},
        scale=of_series("scale"),
        square_scale=of_series("square_scale"),
        excluded_ids=[],
        stride=_infer_stride(merged, horizon=shape[2]),
    )
    return made, [str(name) for name in ids]


def _infer_stride(merged: pd.DataFrame, *, horizon: int) -> int:
    """Steps between the cutoffs; a horizon where windows do not overlap."""
    one = merged[merged["unique_id"] == merged["unique_id"].iloc[0]].sort_values(["cutoff", "step"])
    cutoffs = one["cutoff"].unique()
    if len(cutoffs) < 2:
        return horizon
    first = one[one["cutoff"] == cutoffs[0]]
    found = first.loc[first["ds"] == cutoffs[1], "step"]
    return int(found.iloc[0]) if len(found) else horizon


def _build_metric_rows(runs: Sequence[RunRecord]) -> list[MetricRow]:
    there = {name for one in runs for name in one.metrics if name in HEADLINE_METRICS or name in _TRIAL_METRICS}
    ordered = sorted(
        there, key=lambda name: (next(n for n, start in enumerate(_PREFIX_ORDER) if name.startswith(start)), name)
    )
    ordered = sorted(ordered, key=lambda name: name != "bt/mase")  # what everything is decided by comes first
    rows = []
    for name in ordered:
        values = tuple(one.metrics.get(name) for one in runs)
        rows.append(MetricRow(name, values, _find_best(name, values)))
    return rows


def _find_best(metric: str, values: Sequence[float | None]) -> tuple[int, ...]:
    """The places of the best; none where fewer than two can be compared, or all are equal."""
    if metric in _NOT_RANKED:
        return ()
    merit = {
        place: (
            abs(value - _TARGET_VALUES[metric])
            if metric in _TARGET_VALUES
            else -value
            if metric in _HIGHER_IS_BETTER
            else value
        )
        for place, value in enumerate(values)
        if value is not None and math.isfinite(value)
    }
    if len(merit) < 2 or len(set(merit.values())) == 1:
        return ()
    return tuple(place for place, value in merit.items() if value == min(merit.values()))


def _find_spec_differences(runs: Sequence[RunRecord]) -> list[SpecDifference]:
    fields = dict.fromkeys(name for one in runs for name in one.params if not name.startswith("best."))
    found = [SpecDifference(name, tuple(one.params.get(name) for one in runs)) for name in fields]
    return [one for one in found if len(set(one.values)) > 1]

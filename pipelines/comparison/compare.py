"""Compares runs: headline metrics, significance of the differences, and differences of the specifications."""

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
_TARGET_VALUES = {"bt/coverage_80": 0.8, "bt/coverage_95": 0.95}  # nominal values
_NOT_RANKED = {"bt/width_80", "bt/width_95"}  # narrow intervals are not better by themselves
_PREFIX_ORDER = ("bt/", "bt_pure/", "valid/", "tune/", "train/", "serve/")
_TRIAL_METRICS = ("valid/rollout", "tune/value")  # metrics of the trials of a search


class MetricRow(NamedTuple):
    """One metric of every run (None if a run does not have it), and the indices of the best runs."""

    metric: str
    values: tuple[float | None, ...]
    best: tuple[int, ...]

    @property
    def differences(self) -> tuple[float | None, ...]:
        """Differences from the first run."""
        first = self.values[0]
        return tuple(None if first is None or value is None else value - first for value in self.values)


class SpecDifference(NamedTuple):
    """A field of the specification in which runs differ; None for a run that does not have it."""

    field: str
    values: tuple[str | None, ...]


class RunComparison(NamedTuple):
    """The result of a comparison.

    Attributes:
        runs: The runs in the given order; the others are compared with the first.
        rows: Headline metrics as the runs recorded them.
        spec_differences: Fields in which the specifications differ.
        shared_backtest: Raw forecasts of all runs, by label, on the windows they share; None if there are none.
        series_ids: The ids of the series of `shared_backtest`, in its order.
        comparisons: For every run but the first, by label, the test of its errors against the first's.
        messages: Warnings for the user.
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
        """The labels of the runs."""
        return [run.label for run in self.runs]


def compare_runs(runs: Sequence[RunRecord], *, allow_different_data: bool = False) -> RunComparison:
    """Compares runs with the first of them.

    Raises InputError if they were trained or tested on different data, unless that is allowed. Then the significance test
    uses the windows that all runs share and on which their actuals are equal.
    """
    if len(runs) < 2:
        raise InputError(f"Expected at least two runs to compare; found {len(runs)}. Give another run.", where="runs")
    runs = [
        run._replace(label=label)
        for run, label in zip(runs, _make_labels_unique([run.label for run in runs]), strict=True)
    ]
    data_differences = _find_data_differences(runs)
    if data_differences and not allow_different_data:
        raise InputError(
            f"Expected runs on the same data; {'; '.join(data_differences)}. Give runs on the same data, or use "
            "--different-data.",
            where="runs",
        )
    messages, shared_backtest = list(data_differences), None
    series_ids: list[str] = []
    comparisons: dict[str, SignificanceResult] = {}
    untested = [run.label for run in runs if run.stored_backtest is None]
    if untested:
        messages.append(f"no significance test: no backtest is stored for {', '.join(untested)}")
    else:
        merged = _merge_forecasts(runs)
        if merged.empty:
            messages.append("no significance test: there is no window that all runs forecast with the same actuals")
        else:
            shared_backtest, series_ids = _build_shared_backtest(merged, [run.label for run in runs])
            first = runs[0].label
            comparisons = {run.label: compare_forecasters(shared_backtest, first, run.label) for run in runs[1:]}
    return RunComparison(
        runs,
        _build_metric_rows(runs),
        _find_spec_differences(runs),
        shared_backtest,
        series_ids,
        comparisons,
        messages,
    )


def plot_overlay(comparison: RunComparison, series: str | None = None) -> Figure:
    """Plots the forecasts of all runs for one series (None: the first); raises InputError if not all runs forecast it."""
    from forecaster.evaluation.plots import plot_forecast_overlay

    assert comparison.shared_backtest is not None
    series_id = comparison.series_ids[0] if series is None else series
    if series_id not in comparison.series_ids:
        raise InputError(
            f"Expected a series that all runs forecast; {series_id!r} is not among these {len(comparison.series_ids)}. Give one "
            f"of them; the first is {comparison.series_ids[0]!r}.",
            where="series",
        )
    merged = _merge_forecasts(comparison.runs)
    forecasts = merged[merged["unique_id"] == series_id].sort_values(["cutoff", "step"])
    stored_backtest = comparison.runs[0].stored_backtest
    assert stored_backtest is not None
    history = stored_backtest.histories[stored_backtest.histories["unique_id"] == series_id]
    history = history[history["ds"] <= forecasts["cutoff"].min()] if len(history) else history
    baseline = SEASONAL_NAIVE if SEASONAL_NAIVE in forecasts else None
    return plot_forecast_overlay(
        history, forecasts, comparison.labels, title=f"{series_id}: forecasts of all runs", baseline=baseline
    )


def plot_error_by_horizon(comparison: RunComparison) -> Figure:
    """Plots the error of every run by step ahead."""
    from forecaster.evaluation.plots import plot_error_by_step

    assert comparison.shared_backtest is not None
    return plot_error_by_step(comparison.shared_backtest)


def _make_labels_unique(labels: Sequence[str]) -> list[str]:
    """Makes labels distinct from each other and from that of seasonal naive, by adding a number."""
    unique_labels: list[str] = []
    for label in labels:
        candidates = (f"{label} ({number})" for number in count(2))
        taken = {*unique_labels, SEASONAL_NAIVE}
        unique_labels.append(
            label if label not in taken else next(candidate for candidate in candidates if candidate not in taken)
        )
    return unique_labels


def _find_data_differences(runs: Sequence[RunRecord]) -> list[str]:
    """Describes the differences between the data of the first run and those of each other run."""
    first, differences = runs[0], []
    for other in runs[1:]:
        pair_label = f"{first.label} and {other.label}"
        horizons = [run.params.get("horizon") for run in (first, other)]
        if horizons[0] != horizons[1]:
            differences.append(f"the horizons of {pair_label} are {horizons[0]} and {horizons[1]} steps")
        digests = [run.tags.get("data_digest", "unknown") for run in (first, other)]
        # The digest of a backtest's data includes the test windows, that of a training's data does not.
        if first.dataset_context == other.dataset_context and digests[0] != digests[1]:
            differences.append(f"the data of {pair_label} have the digests {digests[0][:12]} and {digests[1][:12]}")
        if first.stored_backtest is not None and other.stored_backtest is not None:
            differences += _find_window_differences(
                first.stored_backtest.forecasts, other.stored_backtest.forecasts, pair_label
            )
    return differences


def _find_window_differences(first: pd.DataFrame, second: pd.DataFrame, pair_label: str) -> list[str]:
    if first["cutoff"].dtype.kind != second["cutoff"].dtype.kind:
        return [f"the cutoffs of {pair_label} are of different types, timestamps and integers"]
    cutoffs = [set(forecasts["cutoff"].unique()) for forecasts in (first, second)]
    if cutoffs[0] != cutoffs[1]:
        ranges = [f"{len(cutoff_set)} from {min(cutoff_set)} to {max(cutoff_set)}" for cutoff_set in cutoffs]
        return [f"the cutoffs of {pair_label} are {ranges[0]}, and {ranges[1]}"]
    actuals = [forecasts[[*_KEY_COLUMNS, "y"]] for forecasts in (first, second)]
    pairs = actuals[0].merge(actuals[1], on=_KEY_COLUMNS, suffixes=("", "_other"))
    if pairs.empty:
        return [f"{pair_label} were tested on different series"]
    n_different = int((~np.isclose(pairs["y"], pairs["y_other"], rtol=1e-12, atol=0, equal_nan=True)).sum())
    return [f"the actuals of {pair_label} differ at {n_different} of {len(pairs)} steps"] if n_different else []


def _merge_forecasts(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Merges forecasts: a row per series, cutoff and step that all runs forecast with the same actual, a column per run."""
    merged: pd.DataFrame | None = None
    for run in runs:
        assert run.stored_backtest is not None
        table = run.stored_backtest.forecasts
        if merged is None:
            extra_columns = [name for name in (SEASONAL_NAIVE, "scale", "square_scale") if name in table]
            merged = table[[*_KEY_COLUMNS, "ds", "y", *extra_columns]].assign(
                **{run.label: table[run.stored_backtest.model_column]}
            )
            continue
        if table["cutoff"].dtype.kind != merged["cutoff"].dtype.kind:
            return merged.iloc[:0]
        run_forecasts = table[[*_KEY_COLUMNS]].assign(
            **{"_actual": table["y"], run.label: table[run.stored_backtest.model_column]}
        )
        merged = merged.merge(run_forecasts, on=_KEY_COLUMNS)
        is_same = np.isclose(merged["y"], merged.pop("_actual"), rtol=1e-12, atol=0, equal_nan=True)
        merged = merged[is_same]
    assert merged is not None
    return merged


def _build_shared_backtest(merged: pd.DataFrame, labels: Sequence[str]) -> tuple[Backtest, list[str]]:
    """Reshapes the rows to a backtest, and returns the ids of its series; windows that a series does not have are NaN."""
    series_index, ids = pd.factorize(merged["unique_id"])
    window_index = merged.groupby("unique_id")["cutoff"].rank(method="dense").to_numpy().astype(int) - 1
    step_index = merged["step"].to_numpy() - 1
    shape = (len(ids), int(window_index.max()) + 1, int(step_index.max()) + 1)

    def by_window(column: str) -> np.ndarray:
        values = np.full(shape, np.nan)
        values[series_index, window_index, step_index] = merged[column].to_numpy(dtype=np.float64)
        return values

    def by_series(column: str) -> np.ndarray:
        values = np.full(shape[0], np.nan)
        if column in merged:
            values[series_index] = merged[column].to_numpy(dtype=np.float64)
        return values

    names = [*labels, *([SEASONAL_NAIVE] if SEASONAL_NAIVE in merged else [])]
    backtest = Backtest(
        series=[],
        cutoffs=[],
        actual=by_window("y"),
        forecasts={name: by_window(name) for name in names},
        scale=by_series("scale"),
        square_scale=by_series("square_scale"),
        excluded_ids=[],
        stride=_infer_stride(merged, horizon=shape[2]),
    )
    return backtest, [str(series_id) for series_id in ids]


def _infer_stride(merged: pd.DataFrame, *, horizon: int) -> int:
    """Infers the number of steps between cutoffs; the horizon if windows do not overlap."""
    rows = merged[merged["unique_id"] == merged["unique_id"].iloc[0]].sort_values(["cutoff", "step"])
    cutoffs = rows["cutoff"].unique()
    if len(cutoffs) < 2:
        return horizon
    first_window = rows[rows["cutoff"] == cutoffs[0]]
    steps = first_window.loc[first_window["ds"] == cutoffs[1], "step"]
    return int(steps.iloc[0]) if len(steps) else horizon


def _build_metric_rows(runs: Sequence[RunRecord]) -> list[MetricRow]:
    names = {name for run in runs for name in run.metrics if name in HEADLINE_METRICS or name in _TRIAL_METRICS}
    ordered = sorted(
        names,
        key=lambda name: (next(rank for rank, prefix in enumerate(_PREFIX_ORDER) if name.startswith(prefix)), name),
    )
    ordered = sorted(ordered, key=lambda name: name != "bt/mase")  # the metric that decides comes first
    rows = []
    for name in ordered:
        values = tuple(run.metrics.get(name) for run in runs)
        rows.append(MetricRow(name, values, _find_best(name, values)))
    return rows


def _find_best(metric: str, values: Sequence[float | None]) -> tuple[int, ...]:
    """Returns the indices of the best runs; empty if fewer than two can be compared, or if all are equal."""
    if metric in _NOT_RANKED:
        return ()
    distance = {
        index: (
            abs(value - _TARGET_VALUES[metric])
            if metric in _TARGET_VALUES
            else -value
            if metric in _HIGHER_IS_BETTER
            else value
        )
        for index, value in enumerate(values)
        if value is not None and math.isfinite(value)
    }
    if len(distance) < 2 or len(set(distance.values())) == 1:
        return ()
    return tuple(index for index, value in distance.items() if value == min(distance.values()))


def _find_spec_differences(runs: Sequence[RunRecord]) -> list[SpecDifference]:
    fields = dict.fromkeys(name for run in runs for name in run.params if not name.startswith("best."))
    rows = [SpecDifference(name, tuple(run.params.get(name) for run in runs)) for name in fields]
    return [row for row in rows if len(set(row.values)) > 1]

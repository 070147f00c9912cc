"""Pairs of forecasts and actuals, one row for each step ahead with an actual, and the accuracy of such rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.ledger.records import INTERVAL_LEVELS, RECORDED_LEVELS, ForecastFilter
from forecaster.metrics import pinball, winkler_score
from forecaster.shapes import Float64

if TYPE_CHECKING:
    from forecaster.ledger.store import Ledger


_MSIS_SHARE = 0.95


class AccuracyScore(NamedTuple):
    """Scores of a set of forecast steps; None where they are undefined.

    Attributes:
        n: Pairs of forecast and actual.
        mae: Mean absolute error, in units of the data.
        bias: Mean of forecast less actual: above zero where forecasts are too high.
        mase: Mean of the absolute errors, each over seasonal naive's on the history at that time.
        coverage: By nominal share, the share of actuals within the interval.
        width: By nominal share, the mean width of the interval.
        wql_recorded: The weighted quantile loss of the pairs with all of RECORDED_LEVELS, the mean over these levels. It is not
            the `wql` of a backtest, whose nine deciles the ledger does not have.
        msis_95: Mean interval score of the 95 % intervals, each over seasonal naive's error on the history at that time.
    """

    n: int
    mae: float | None
    bias: float | None
    mase: float | None
    coverage: Mapping[float, float]
    width: Mapping[float, float]
    wql_recorded: float | None
    msis_95: float | None


class Accuracy(NamedTuple):
    """Accuracy of served forecasts.

    Attributes:
        scored: Forecasts with at least one actual.
        overall: Over all steps.
        by_step: By step ahead.
        by_group: By the group of the intervals; empty where no forecast has a group.
    """

    scored: int
    overall: AccuracyScore
    by_step: Mapping[int, AccuracyScore]
    by_group: Mapping[str, AccuracyScore]


def forecast_actual_pairs(ledger: Ledger, selection: ForecastFilter) -> Iterator[pd.DataFrame]:
    """Yields frames with a row for each forecast step that has an actual.

    Columns: forecast (a running number), key, part, origin, ending (the timestamp of its last step), stamp, step, actual, mean,
    scale (NaN: none), unit, and a column for each of RECORDED_LEVELS and, named `("shift", level)`, the shift in spreads that
    it includes.
    """
    num_forecasts = 0
    for rows, actuals in ledger.forecasts_with_actuals(selection):
        frame = _join_actuals(rows, actuals, first_number=num_forecasts)
        num_forecasts += len(rows)
        if len(frame):
            yield frame


def compute_accuracy(
    ledger: Ledger, selection: ForecastFilter, *, check_deadline: Callable[[], object] = lambda: None
) -> Accuracy:
    """Returns the accuracy of the selected forecasts; `check_deadline` is called regularly, and may raise."""
    sums: list[pd.DataFrame] = []
    scored = 0
    for frame in forecast_actual_pairs(ledger, selection):
        check_deadline()
        scored += int(frame["forecast"].nunique())
        sums.append(_sum_errors(frame))
    if not sums:
        return Accuracy(0, _score_from_sums({}), {}, {})
    total = pd.concat(sums).groupby(["part", "step"], dropna=False).sum()
    steps, parts = total.groupby(level="step").sum(), total.groupby(level="part", dropna=True).sum()
    return Accuracy(
        scored,
        _score_from_sums(total.sum().to_dict()),
        {int(str(step)): _score_from_sums(row) for step, row in steps.to_dict("index").items()},
        {str(part): _score_from_sums(row) for part, row in parts.to_dict("index").items()},
    )


def score_pairs(frame: pd.DataFrame) -> AccuracyScore:
    """Returns the score of rows of `forecast_actual_pairs`."""
    return _score_from_sums(_sum_errors(frame).sum().to_dict() if len(frame) else {})


def _join_actuals(rows: Sequence[Any], actuals: Mapping[tuple[str, int], float], *, first_number: int) -> pd.DataFrame:
    # Lists become arrays at the end: small arrays, one for each forecast, would take ten times as long.
    steps: dict[Any, list[Any]] = {
        name: [] for name in ("row", "step", "stamp", "actual", "mean", "unit", *RECORDED_LEVELS)
    }
    shifts: list[list[float]] = []
    for index, row in enumerate(rows):
        stamps, body, key = json.loads(row.stamps), json.loads(row.body), row.key
        observed_steps = [step for step, stamp in enumerate(stamps) if (key, stamp) in actuals]
        shifts.append([body["shifts"].get(repr(level), 0.0) for level in RECORDED_LEVELS])
        steps["row"] += [index] * len(observed_steps)
        steps["step"] += [step + 1 for step in observed_steps]
        steps["stamp"] += [stamps[step] for step in observed_steps]
        steps["actual"] += [actuals[key, stamps[step]] for step in observed_steps]
        forecast_values: dict[Any, Any] = {"mean": body["mean"], "unit": body["units"]}
        forecast_values |= {level: body["quantiles"].get(repr(level)) for level in RECORDED_LEVELS}
        for name, values in forecast_values.items():
            steps[name] += [values[step] for step in observed_steps] if values else [math.nan] * len(observed_steps)
    row_indices = np.array(steps.pop("row"), dtype=np.int64)
    frame = pd.DataFrame({name: np.array(values) for name, values in steps.items()})
    frame["forecast"] = first_number + row_indices
    for name in ("key", "part", "origin", "ending"):
        frame[name] = np.array([getattr(row, name) for row in rows])[row_indices]
    frame["scale"] = np.array([math.nan if row.scale is None else row.scale for row in rows])[row_indices]
    for column, level in enumerate(RECORDED_LEVELS):
        frame["shift", level] = np.array(shifts)[row_indices, column]
    return frame


def _sum_errors(frame: pd.DataFrame) -> pd.DataFrame:
    """Sums errors by group and step."""
    signed = (frame["mean"] - frame["actual"]).to_numpy(np.float64)
    scale = frame["scale"].to_numpy(np.float64)
    usable = np.isfinite(scale) & (scale > 0)
    columns: dict[str, Any] = {
        "n": np.ones(len(frame)),
        "abs": np.abs(signed),
        "signed": signed,
        "scaled_n": usable.astype(np.float64),
        "scaled": np.where(usable, np.abs(signed) / np.where(usable, scale, 1.0), 0.0),
    }
    actual = frame["actual"].to_numpy(np.float64)
    for share, (low, high) in INTERVAL_LEVELS.items():
        lower, upper = frame[low].to_numpy(np.float64), frame[high].to_numpy(np.float64)
        valid = np.isfinite(lower) & np.isfinite(upper)
        columns[f"n_{share}"] = valid.astype(np.float64)
        columns[f"inside_{share}"] = (valid & (lower <= actual) & (actual <= upper)).astype(np.float64)
        columns[f"width_{share}"] = np.where(valid, upper - lower, 0.0)
    columns |= _sum_quantile_losses(frame, actual)
    lower, upper = (frame[level].to_numpy(np.float64) for level in INTERVAL_LEVELS[_MSIS_SHARE])
    interval_scores = winkler_score(actual, lower, upper, level=_MSIS_SHARE) / np.where(usable, scale, np.nan)
    columns["msis_n"] = np.isfinite(interval_scores).astype(np.float64)
    columns["msis"] = np.nan_to_num(interval_scores)
    sums = pd.DataFrame(columns).groupby([frame["part"], frame["step"]], dropna=False).sum()
    return sums.astype(np.float64)


def _sum_quantile_losses(frame: pd.DataFrame, actual: Float64[np.ndarray, "pair"]) -> dict[str, Any]:
    """Returns the quantile loss of each pair and the absolute actual that weights it; 0 where a recorded level is missing."""
    quantiles = np.stack([frame[level].to_numpy(np.float64) for level in RECORDED_LEVELS], axis=1)
    loss = 2 * pinball(actual, quantiles, np.array(RECORDED_LEVELS)).mean(axis=1)
    valid = np.isfinite(loss)
    return {"loss": np.where(valid, loss, 0.0), "loss_size": np.where(valid, np.abs(actual), 0.0)}


def _score_from_sums(sums: Mapping[Any, float]) -> AccuracyScore:
    count = sums.get("n", 0.0)
    coverage = {
        share: sums[f"inside_{share}"] / sums[f"n_{share}"] for share in INTERVAL_LEVELS if sums.get(f"n_{share}")
    }
    return AccuracyScore(
        int(count),
        _ratio(sums.get("abs"), count),
        _ratio(sums.get("signed"), count),
        _ratio(sums.get("scaled"), sums.get("scaled_n")),
        coverage,
        {share: sums[f"width_{share}"] / sums[f"n_{share}"] for share in coverage},
        _ratio(sums.get("loss"), sums.get("loss_size")),
        _ratio(sums.get("msis"), sums.get("msis_n")),
    )


def _ratio(total: float | None, count: float | None) -> float | None:
    """Returns the quotient; None where there is nothing to divide, or the sum is not finite."""
    if not count or total is None or not np.isfinite(total):
        return None
    return float(total / count)

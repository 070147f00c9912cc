"""Scores of a backtest as one tidy table: of every forecaster, over all, by step ahead, and by group of series.

Only windows that every forecaster answered enter a score, so that all are scored on the same.

| metric | what it is |
|---|---|
| `mase`, `rmsse` | errors over seasonal naive's on what was known at the first cutoff (Hyndman and Koehler 2006) |
| `smape`, `mae`, `mse` | as in `forecaster.metrics`; sMAPE from 0 to 200 |
| `skill_vs_snaive` | 1 less MASE over that of seasonal naive: above 0 is better |
| `owa` | M4's overall weighted average, with seasonal naive in the place of Naive 2: below 1 is better |
| `owa_naive2` | M4's own, where Naive 2 was asked |
| `wql` | weighted quantile loss, the mean over the nine deciles (Salinas et al. 2020) |
| `crps` | continuous ranked probability score, scaled as `mase` is: of a forecast without any spread it is the MASE |
| `coverage_80`, `coverage_95` | share of what came that lies within the interval |
| `width_80`, `width_95` | mean width of the interval, in units of the data |
| `stand_ins` | windows at which the forecaster could not be fitted and seasonal naive stood in (or none, if it had no answer) |

`crps` is approximated from the quantiles of LEVELS (Gneiting and Ranjan 2011, by the trapezoidal rule).
Errors are averaged over the windows and steps of each series, then over series. `wql` and `coverage` are pooled over
all windows and steps; they and `width` are of those forecasters alone that have calibrated quantiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from forecaster.errors import CovariateUnknown
from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.baselines import SEASONAL_NAIVE
from forecaster.evaluation.rolling_origins import ForecastArray
from forecaster.metrics import crps_from_quantiles, nanmean, owa, pinball
from forecaster.series import Series
from forecaster.shapes import Float64, Int

DECILES = tuple(round(0.1 * number, 1) for number in range(1, 10))
INTERVALS = (0.8, 0.95)
SCORED_LEVELS = tuple(
    sorted({*DECILES, *(round((1 + side * share) / 2, 6) for share in INTERVALS for side in (-1, 1))})
)
"""The levels whose quantiles the scores of intervals need."""
NAIVE2 = "naive2"

ScoreArray = Float64[
    np.ndarray, "group part"
]  # part 0 is over all steps, part h the step h ahead; group 0 is all series


def score_table(result: Backtest, *, by: str | None = None) -> pd.DataFrame:
    """One row a score: `forecaster, metric, group, step, value`; no group is all series, no step all steps.

    Args:
        result: The backtest. Quantiles are scored where it has those of LEVELS.
        by: A static column: scores of each group of series with the same value, besides.
    Raises:
        CovariateUnknown: a series has no such static column.
    """
    names, codes = group_series(result.series, by)
    found = {name: dict(_error_scores(result, name, codes, len(names))) for name in result.forecasts}
    rows: list[pd.DataFrame] = []
    for name, scores in found.items():
        scores |= _relative_scores(scores, found)
        scores |= dict(_interval_scores(result, name, codes, len(names)))
        rows += [_score_rows(name, metric, names, values) for metric, values in scores.items()]
        rows.append(_score_row(name, "stand_ins", float(len(result.warnings.get(name, ())))))
    return pd.concat(rows, ignore_index=True)


def group_series(series: Sequence[Series], by: str | None) -> tuple[list[str], Int[np.ndarray, "series"]]:
    """The names of the groups of a static column, and which of them each series is of; raises CovariateUnknown."""
    if by is None:
        return [], np.full(len(series), -1, dtype=np.int64)
    for one in series:
        if by not in one.static:
            raise CovariateUnknown(
                f"Expected the static column {by!r} in every series to score groups by; series {one.id!r} has none. "
                "Name a column of the data that says one thing of a whole series.",
                where=by,
            )
    names, codes = np.unique([one.static[by] for one in series], return_inverse=True)
    return [str(name) for name in names], codes.astype(np.int64)


def overall_scores(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """By forecaster, then by metric: the scores over all series and steps."""
    whole = table[table["group"].isna() & table["step"].isna()]
    told: dict[str, dict[str, float]] = {}
    for name, metric, value in zip(whole["forecaster"], whole["metric"], whole["value"], strict=True):
        told.setdefault(name, {})[metric] = float(value)
    return told


def scores_by_step(table: pd.DataFrame, forecaster: str, metric: str) -> list[float]:
    """A score of one forecaster over all series, at each step ahead."""
    some = table[
        (table["forecaster"] == forecaster)
        & (table["metric"] == metric)
        & table["group"].isna()
        & table["step"].notna()
    ]
    return [float(value) for value in some.sort_values("step")["value"]]


class _WeightedSum(NamedTuple):
    """What each series adds to a score: the totals of a group over its weights are the group's score."""

    total: Float64[np.ndarray, "series part"]
    weight: Float64[np.ndarray, "series part"]

    def by_group(self, codes: Int[np.ndarray, "series"], num_groups: int) -> ScoreArray:
        totals, weights = (_sum_by_group(values, codes, num_groups) for values in self)
        return np.asarray(np.divide(totals, weights, out=np.full(totals.shape, np.nan), where=weights > 0))


def _error_scores(
    result: Backtest, name: str, codes: Int[np.ndarray, "series"], num_groups: int
) -> Iterator[tuple[str, ScoreArray]]:
    actual, forecast = (_mask_incomparable(result, cube) for cube in (result.actual, result.forecasts[name]))
    gap, size = np.abs(actual - forecast), np.abs(actual) + np.abs(forecast)
    percent = np.where(size > 0, 200 * gap / np.where(size > 0, size, 1.0), gap)
    squares = gap**2
    for metric, errors in (
        ("mase", _mean_by_step(gap) / result.scale[:, None]),
        ("rmsse", np.sqrt(_mean_by_step(squares) / result.square_scale[:, None])),
        ("smape", _mean_by_step(percent)),
        ("mae", _mean_by_step(gap)),
        ("mse", _mean_by_step(squares)),
    ):
        yield metric, _series_mean(errors).by_group(codes, num_groups)


def _relative_scores(
    scores: Mapping[str, ScoreArray], all_scores: Mapping[str, Mapping[str, ScoreArray]]
) -> dict[str, ScoreArray]:
    """Scores beside those of the naive forecasters that were asked."""
    told: dict[str, ScoreArray] = {}
    for naive, metric in ((SEASONAL_NAIVE, "owa"), (NAIVE2, "owa_naive2")):
        if naive not in all_scores:
            continue
        mase, smape = (
            np.where(all_scores[naive][name] > 0, all_scores[naive][name], np.nan) for name in ("mase", "smape")
        )
        if naive == SEASONAL_NAIVE:
            told["skill_vs_snaive"] = 1 - scores["mase"] / mase
        told[metric] = np.asarray(owa(mase=scores["mase"], smape=scores["smape"], naive2_mase=mase, naive2_smape=smape))
    return told


def _interval_scores(
    result: Backtest, name: str, codes: Int[np.ndarray, "series"], num_groups: int
) -> Iterator[tuple[str, ScoreArray]]:
    if name not in result.quantiles or not set(SCORED_LEVELS) <= set(result.levels):
        return
    actual, levels = _mask_incomparable(result, result.actual), list(result.levels)
    loss = nanmean(
        np.stack(
            [
                pinball(actual, result.quantiles[name][..., [levels.index(level)]], np.array([level]))[..., 0]
                for level in DECILES
            ]
        ),
        axis=0,
    )
    size = np.where(np.isnan(loss), np.nan, np.abs(actual))
    yield "wql", _WeightedSum(2 * _sum_by_step(loss), _sum_by_step(size)).by_group(codes, num_groups)
    places = [levels.index(level) for level in SCORED_LEVELS]
    spread = crps_from_quantiles(actual, result.quantiles[name][..., places], np.array(SCORED_LEVELS))
    yield "crps", _series_mean(_mean_by_step(spread) / result.scale[:, None]).by_group(codes, num_groups)
    for share in INTERVALS:
        low, high = (result.quantiles[name][..., levels.index(round((1 + side * share) / 2, 6))] for side in (-1, 1))
        there = np.isfinite(actual) & np.isfinite(low) & np.isfinite(high)
        inside = np.where(there, (low <= actual) & (actual <= high), np.nan)
        percent = round(100 * share)
        yield (
            f"coverage_{percent}",
            _WeightedSum(_sum_by_step(inside), _sum_by_step(there.astype(float))).by_group(codes, num_groups),
        )
        widths = _mean_by_step(np.where(there, high - low, np.nan))
        yield f"width_{percent}", _series_mean(widths).by_group(codes, num_groups)


def _mask_incomparable(result: Backtest, values: ForecastArray) -> ForecastArray:
    return np.where(result.comparable_mask()[:, :, None], values, np.nan)


def _mean_by_step(errors: ForecastArray) -> Float64[np.ndarray, "series part"]:
    """The mean of each series over all its windows and steps, then over the windows at each step."""
    return np.concatenate([nanmean(errors, axis=(1, 2))[:, None], nanmean(errors, axis=1)], axis=1)


def _sum_by_step(values: ForecastArray) -> Float64[np.ndarray, "series part"]:
    steps = np.nansum(values, axis=1)
    return np.concatenate([steps.sum(axis=1, keepdims=True), steps], axis=1)


def _series_mean(errors: Float64[np.ndarray, "series part"]) -> _WeightedSum:
    there = np.isfinite(errors)
    return _WeightedSum(np.where(there, errors, 0.0), there.astype(np.float64))


def _sum_by_group(
    values: Float64[np.ndarray, "series part"], codes: Int[np.ndarray, "series"], num_groups: int
) -> ScoreArray:
    """All series first, then each group."""
    found = np.zeros((1 + num_groups, values.shape[1]))
    found[0] = values.sum(axis=0)
    if num_groups:
        np.add.at(found, codes + 1, values)
    return found


def _score_rows(forecaster: str, metric: str, group_names: Sequence[str], values: ScoreArray) -> pd.DataFrame:
    parts = values.shape[1]
    steps = pd.array([None, *range(1, parts)], dtype="Int64")
    return pd.DataFrame(
        {
            "forecaster": forecaster,
            "metric": metric,
            "group": pd.array([group for group in (None, *group_names) for _ in range(parts)], dtype="str"),
            "step": pd.concat([pd.Series(steps)] * len(values), ignore_index=True),
            "value": values.ravel(),
        }
    )


def _score_row(forecaster: str, metric: str, value: float) -> pd.DataFrame:
    return _score_rows(forecaster, metric, (), np.array([[value]]))

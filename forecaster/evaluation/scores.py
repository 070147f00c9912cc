"""Scores of a backtest as one tidy table: for every forecaster, overall, by step ahead, and by group of series.

Only windows with a forecast of every forecaster enter a score, so that all are scored on the same windows.

| metric | definition |
|---|---|
| `mase`, `rmsse` | errors over those of seasonal naive on the history before the first cutoff (Hyndman and Koehler 2006) |
| `smape`, `mae`, `mse` | as in `forecaster.metrics`; sMAPE from 0 to 200 |
| `skill_vs_snaive` | 1 less MASE over that of seasonal naive: above 0 is better |
| `owa` | M4's overall weighted average, with seasonal naive instead of Naive 2: below 1 is better |
| `owa_naive2` | M4's own, where Naive 2 is among the forecasters |
| `wql` | weighted quantile loss, the mean over the nine deciles (Salinas et al. 2020) |
| `crps` | continuous ranked probability score, scaled as `mase` is; for a forecast without any spread it equals the MASE |
| `msis_95` | mean scaled interval score of the 95 % interval, as in M4 (Makridakis et al. 2020): lower is better |
| `coverage_80`, `coverage_95` | share of actuals within the interval |
| `width_80`, `width_95` | mean width of the interval, in units of the data |
| `stand_ins` | windows at which the forecaster failed and seasonal naive was used instead (or no forecast was made) |

For a history that is not longer than a season, `mase`, `rmsse`, `crps` and `msis_95` are relative to the error of the last value.
`crps` is approximated from the quantiles of SCORED_LEVELS (Gneiting and Ranjan 2011, by the trapezoidal rule).
Errors are averaged over the windows and steps of each series, then over series. `wql` and `coverage` are pooled over
all windows and steps; they, `crps`, `msis_95` and `width` exist only for forecasters with quantiles.
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
from forecaster.metrics import DECILES, crps_from_quantiles, nanmean, owa, pinball, winkler_score
from forecaster.series import Series
from forecaster.shapes import Float64, Int

INTERVALS = (0.8, 0.95)
MSIS_SHARE = 0.95
"""Nominal coverage of the intervals that `msis_95` scores, as in M4."""
SCORED_LEVELS = tuple(
    sorted({*DECILES, *(round((1 + side * share) / 2, 6) for share in INTERVALS for side in (-1, 1))})
)
"""The quantile levels that the interval scores need."""
NAIVE2 = "naive2"

ScoreArray = Float64[np.ndarray, "group part"]
"""Part 0 is over all steps, part h is the step h ahead; group 0 is all series."""


def score_table(result: Backtest, *, by: str | None = None) -> pd.DataFrame:
    """Returns one row per score: `forecaster, metric, group, step, value`; no group means all series, no step all steps.

    Args:
        result: The backtest. Quantiles are scored where it has those of SCORED_LEVELS.
        by: A static column; adds the scores of each group of series with the same value.
    Raises:
        CovariateUnknown: a series has no such static column.
    """
    names, codes = group_series(result.series, by)
    scores_by_name = {name: dict(_error_scores(result, name, codes, len(names))) for name in result.forecasts}
    rows: list[pd.DataFrame] = []
    for name, scores in scores_by_name.items():
        scores |= _relative_scores(scores, scores_by_name)
        scores |= dict(_interval_scores(result, name, codes, len(names)))
        rows += [_score_rows(name, metric, names, values) for metric, values in scores.items()]
        rows.append(_score_row(name, "stand_ins", float(len(result.warnings.get(name, ())))))
    return pd.concat(rows, ignore_index=True)


def group_series(series: Sequence[Series], by: str | None) -> tuple[list[str], Int[np.ndarray, "series"]]:
    """Returns the group names of a static column, and the group index of each series; raises CovariateUnknown."""
    if by is None:
        return [], np.full(len(series), -1, dtype=np.int64)
    for item in series:
        if by not in item.static:
            raise CovariateUnknown(
                f"Expected the static column {by!r} in every series to score groups by; series {item.id!r} has none. "
                "Use a column of the data that has one value for each whole series.",
                where=by,
            )
    names, codes = np.unique([item.static[by] for item in series], return_inverse=True)
    return [str(name) for name in names], codes.astype(np.int64)


def overall_scores(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Returns the scores over all series and steps, by forecaster and then by metric."""
    rows = table[table["group"].isna() & table["step"].isna()]
    scores: dict[str, dict[str, float]] = {}
    for name, metric, value in zip(rows["forecaster"], rows["metric"], rows["value"], strict=True):
        scores.setdefault(name, {})[metric] = float(value)
    return scores


def scores_by_step(table: pd.DataFrame, forecaster: str, metric: str) -> list[float]:
    """Returns a score of one forecaster over all series, at each step ahead."""
    rows = table[
        (table["forecaster"] == forecaster)
        & (table["metric"] == metric)
        & table["group"].isna()
        & table["step"].notna()
    ]
    return [float(value) for value in rows.sort_values("step")["value"]]


def interval_levels(share: float) -> tuple[float, float]:
    """Returns the levels of the bounds of the central interval with a nominal coverage: 0.1 and 0.9 for 0.8."""
    return round((1 - share) / 2, 6), round((1 + share) / 2, 6)


def interval_bounds(result: Backtest, name: str, *, share: float) -> tuple[ForecastArray, ForecastArray]:
    """Returns the bounds of a forecaster's central intervals; `result.levels` has the levels of this share."""
    levels = list(result.levels)
    low, high = (result.quantiles[name][..., levels.index(level)] for level in interval_levels(share))
    return low, high


def mean_decile_loss(result: Backtest, name: str) -> ForecastArray:
    """Returns twice the pinball loss of each step, the mean over DECILES; NaN where not comparable or unobserved.

    Its sum over the sum of the absolute actuals is `wql`. `result.levels` has all DECILES.
    """
    actual, levels = _mask_incomparable(result, result.actual), list(result.levels)
    loss = np.zeros_like(actual)
    for level in DECILES:  # one level at a time: all at once take nine times the memory
        loss += pinball(actual, result.quantiles[name][..., [levels.index(level)]], np.array([level]))[..., 0]
    return np.asarray(2 * loss / len(DECILES))


class _WeightedSum(NamedTuple):
    """The contribution of each series to a score: a group's score is its sum of totals over its sum of weights."""

    total: Float64[np.ndarray, "series part"]
    weight: Float64[np.ndarray, "series part"]

    def by_group(self, codes: Int[np.ndarray, "series"], num_groups: int) -> ScoreArray:
        totals, weights = (_sum_by_group(values, codes, num_groups) for values in self)
        return np.asarray(np.divide(totals, weights, out=np.full(totals.shape, np.nan), where=weights > 0))


def _error_scores(
    result: Backtest, name: str, codes: Int[np.ndarray, "series"], num_groups: int
) -> Iterator[tuple[str, ScoreArray]]:
    actual, forecast = (_mask_incomparable(result, values) for values in (result.actual, result.forecasts[name]))
    absolute_errors, magnitude = np.abs(actual - forecast), np.abs(actual) + np.abs(forecast)
    percent = np.where(magnitude > 0, 200 * absolute_errors / np.where(magnitude > 0, magnitude, 1.0), absolute_errors)
    squares = absolute_errors**2
    for metric, errors in (
        ("mase", _mean_by_step(absolute_errors) / result.scale[:, None]),
        ("rmsse", np.sqrt(_mean_by_step(squares) / result.square_scale[:, None])),
        ("smape", _mean_by_step(percent)),
        ("mae", _mean_by_step(absolute_errors)),
        ("mse", _mean_by_step(squares)),
    ):
        yield metric, _series_mean(errors).by_group(codes, num_groups)


def _relative_scores(
    scores: Mapping[str, ScoreArray], all_scores: Mapping[str, Mapping[str, ScoreArray]]
) -> dict[str, ScoreArray]:
    """Returns the scores relative to the naive forecasters that are part of the backtest."""
    relative_scores: dict[str, ScoreArray] = {}
    for naive, metric in ((SEASONAL_NAIVE, "owa"), (NAIVE2, "owa_naive2")):
        if naive not in all_scores:
            continue
        mase, smape = (
            np.where(all_scores[naive][name] > 0, all_scores[naive][name], np.nan) for name in ("mase", "smape")
        )
        if naive == SEASONAL_NAIVE:
            relative_scores["skill_vs_snaive"] = 1 - scores["mase"] / mase
        relative_scores[metric] = np.asarray(
            owa(mase=scores["mase"], smape=scores["smape"], naive2_mase=mase, naive2_smape=smape)
        )
    return relative_scores


def _interval_scores(
    result: Backtest, name: str, codes: Int[np.ndarray, "series"], num_groups: int
) -> Iterator[tuple[str, ScoreArray]]:
    if name not in result.quantiles or not set(SCORED_LEVELS) <= set(result.levels):
        return
    actual, levels = _mask_incomparable(result, result.actual), list(result.levels)
    loss = mean_decile_loss(result, name)
    size = np.where(np.isnan(loss), np.nan, np.abs(actual))
    yield "wql", _WeightedSum(_sum_by_step(loss), _sum_by_step(size)).by_group(codes, num_groups)
    level_indices = [levels.index(level) for level in SCORED_LEVELS]
    crps = crps_from_quantiles(actual, result.quantiles[name][..., level_indices], np.array(SCORED_LEVELS))
    yield "crps", _series_mean(_mean_by_step(crps) / result.scale[:, None]).by_group(codes, num_groups)
    low, high = interval_bounds(result, name, share=MSIS_SHARE)
    interval_scores = winkler_score(actual, low, high, level=MSIS_SHARE) / result.scale[:, None, None]
    yield "msis_95", _series_mean(_mean_by_step(interval_scores)).by_group(codes, num_groups)
    for share in INTERVALS:
        low, high = interval_bounds(result, name, share=share)
        valid = np.isfinite(actual) & np.isfinite(low) & np.isfinite(high)
        inside = np.where(valid, (low <= actual) & (actual <= high), np.nan)
        percent = round(100 * share)
        yield (
            f"coverage_{percent}",
            _WeightedSum(_sum_by_step(inside), _sum_by_step(valid.astype(float))).by_group(codes, num_groups),
        )
        widths = _mean_by_step(np.where(valid, high - low, np.nan))
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
    valid = np.isfinite(errors)
    return _WeightedSum(np.where(valid, errors, 0.0), valid.astype(np.float64))


def _sum_by_group(
    values: Float64[np.ndarray, "series part"], codes: Int[np.ndarray, "series"], num_groups: int
) -> ScoreArray:
    """Sums over all series first, then over each group."""
    sums = np.zeros((1 + num_groups, values.shape[1]))
    sums[0] = values.sum(axis=0)
    if num_groups:
        np.add.at(sums, codes + 1, values)
    return sums


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

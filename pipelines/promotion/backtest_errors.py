"""The errors that the promotion gate compares, from the raw forecasts of a backtest."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

import numpy as np

from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.scores import group_series, mean_decile_loss
from forecaster.metrics import nanmean
from forecaster.registry.registry import CHALLENGER, CHAMPION
from forecaster.shapes import Float64
from pipelines.promotion.policy import Policy
from pipelines.promotion.verdict import GroupGain

_EXACT_SHARE = 1e-6  # about the rounding error of networks in float32


def compute_errors(result: Backtest, name: str) -> Float64[np.ndarray, "series window"]:
    """Returns the mean error of each series in each window that all models forecast."""
    scaled = result.scaled_errors(name)
    if not np.isfinite(scaled).any():
        keep = result.comparable_mask()[:, :, None]
        scaled = np.where(keep, np.abs(result.actual - result.forecasts[name]), np.nan)
    return nanmean(scaled, axis=2)


def compute_interval_losses(result: Backtest, name: str) -> Float64[np.ndarray, "series window"]:
    """Returns the quantile loss of each series in each window, the mean over deciles, over the series' scale as for errors."""
    scale = result.scale if np.isfinite(result.scale).any() else np.ones(len(result.scale))
    return nanmean(mean_decile_loss(result, name) / scale[:, None, None], axis=2)


def compute_error_floor(result: Backtest) -> float:
    """Returns the error below which a forecast counts as exact: a tiny share of a series' scale or, without any, of its values.

    Without it, rounding errors would decide, and the gain over a forecast without any error would be infinite.
    """
    if np.isfinite(result.scale).any():
        return _EXACT_SHARE
    return _EXACT_SHARE * float(np.nanmax(np.abs(result.actual), initial=0.0))


def compute_mean_error(errors: Float64[np.ndarray, "series window"]) -> float:
    """Returns the mean over series of their mean errors."""
    return float(nanmean(nanmean(errors, axis=1)))


def compute_group_gains(
    result: Backtest, errors: Mapping[str, Float64[np.ndarray, "series window"]], floor: float, policy: Policy
) -> Iterator[GroupGain]:
    """Yields the gain of every group with at least `policy.group_least` series.

    Groups are the values of the column `policy.group_by`; without one, those of every static column that all series have;
    without static columns, quarters of the series by scale.
    """
    challenger_errors, champion_errors = errors[CHALLENGER], errors[CHAMPION]
    shared = set.intersection(*(set(series.static) for series in result.series)) if result.series else set()
    columns = [policy.group_by] if policy.group_by else sorted(shared)
    groups = [
        (f"{column} {name}", codes == code) for column in columns for name, code, codes in _iter_groups(result, column)
    ]
    if not columns and len(challenger_errors) >= 4:
        rank = np.argsort(np.argsort(np.nan_to_num(result.scale), kind="stable"), kind="stable")
        groups = [
            (f"quarter {number} of 4 by scale", rank * 4 // len(challenger_errors) == number - 1)
            for number in (1, 2, 3, 4)
        ]
    for name, chosen in groups:
        group_errors, reference_errors = challenger_errors[chosen], champion_errors[chosen]
        size = int(np.isfinite(group_errors).any(axis=1).sum())
        if size >= policy.group_least:
            error, reference = (
                max(compute_mean_error(values), floor, sys.float_info.min)
                for values in (group_errors, reference_errors)
            )
            yield GroupGain(name, size, 1 - error / reference)


def _iter_groups(result: Backtest, column: str) -> Iterator[tuple[str, int, np.ndarray]]:
    names, codes = group_series(result.series, column)
    yield from ((name, code, codes) for code, name in enumerate(names))

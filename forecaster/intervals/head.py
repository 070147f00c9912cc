"""The calibration of a head with quantiles: computes the normal scores that its quantiles should have.

The terms level, residual and spread are defined in `calibration.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from forecaster.intervals.adaptive import normal_quantiles
from forecaster.intervals.calibration import Calibration, QuantileTable
from forecaster.intervals.conformal import (
    MIN_RANK_WINDOWS,
    STD_OVER_MEAN_ABS_DEVIATION,
    TABLE_LEVELS,
    ResidualArray,
    fit_window_difficulty,
    flatten_windows,
    rank_quantiles,
    round_significant,
    rows_of_large_groups,
    window_factors,
)
from forecaster.intervals.joint import fit_joint_table, scores_under_table
from forecaster.intervals.normal_scores import compute_scores
from forecaster.shapes import Float64

PRIOR_ORIGINS = 0.5  # weight of a head's own quantiles


def recalibrate_head(
    deviations: Float64[np.ndarray, "series window horizon"],
    offsets: Float64[np.ndarray, "series window horizon level"],
    levels: Sequence[float],
    *,
    changes: Float64[np.ndarray, "series window change"] | None = None,
    groups: Sequence[str | None] | None = None,
    overlap: float = 0.0,
    tails_apart: bool = False,
) -> Calibration:
    """Computes the normal scores of the head that its quantiles should have, pooled over series and steps.

    Only the sizes of scores are used, so that both tails are widened alike and the median stays: on the few origins of short
    series the errors of all series lean to one side by chance (docs/experiments.md, "Intervals"). The scores are shrunk towards
    those of the head itself, with a weight of `PRIOR_ORIGINS` rolling origins, since many series are no substitute for
    several times.

    Args:
        deviations: Actuals relative to the head's median.
        offsets: The head's quantiles relative to its median.
        levels: Their levels, ascending; the median is one of them.
        changes: `measure_changes` of the history of each window with, last, its `history_scale`.
        groups: As for `calibrate`.
        overlap: The share of a window that the next one has in common with it.
        tails_apart: Whether each tail has its own scores, and the median too, as the skewed distribution of small counts needs.
    """
    difficulty = None
    if changes is not None:
        spreads = head_spreads(offsets)
        difficulty = fit_window_difficulty(compute_scores(deviations, offsets, levels), changes, spreads)
    if difficulty is not None and changes is not None:
        offsets = offsets * window_factors(difficulty, changes, spreads)[:, :, None, None]
    scores = compute_scores(deviations, offsets, levels)
    windows = int(np.isfinite(scores).any(axis=(0, 2)).sum())
    origins = 1 + (1 - overlap) * (windows - 1)
    prior = PRIOR_ORIGINS / (origins + PRIOR_ORIGINS)
    pool, paths = _fit_score_table(flatten_windows(scores), prior, tails_apart=tails_apart), flatten_windows(scores)
    under_pool = scores_under_table(paths, np.repeat(np.array(pool.offsets), paths.shape[1], axis=0), TABLE_LEVELS)
    return Calibration(
        steps=(1,),
        levels=TABLE_LEVELS,
        pool=pool,
        groups={
            group: _fit_score_table(flatten_windows(scores[rows]), prior, tails_apart=tails_apart)
            for group, rows in rows_of_large_groups(scores, groups).items()
        },
        unit="head",
        difficulty=difficulty,
        joint=fit_joint_table(under_pool, range(1, paths.shape[1] + 1)),
    )


def head_spreads(offsets: Float64[np.ndarray, "*rows horizon level"]) -> Float64[np.ndarray, "*rows"]:
    """Returns the distance between the outermost quantiles of the head at the first step, the unit of a head's difficulty."""
    return np.asarray(offsets[..., 0, -1] - offsets[..., 0, 0])


def _fit_score_table(scores: ResidualArray, prior: float, *, tails_apart: bool) -> QuantileTable:
    """Fits the table of normal scores at a single step; with few windows it holds the scores of the head itself."""
    nominal = normal_quantiles(TABLE_LEVELS)
    flat = np.sort(scores[np.isfinite(scores)])
    has_ranks = len(scores) >= MIN_RANK_WINDOWS
    offsets = nominal
    if has_ranks:
        copies = 1 if tails_apart else 2
        pooled = flat if tails_apart else np.sort(np.concatenate([flat, -flat]))
        offsets = prior * nominal + (1 - prior) * rank_quantiles(pooled, copies * len(scores))
    basis: Literal["ranks", "gaussian", "assumed"] = "ranks" if has_ranks else "gaussian" if len(scores) else "assumed"
    spread = float(np.abs(flat).mean()) if len(flat) else 1 / STD_OVER_MEAN_ABS_DEVIATION
    return QuantileTable(
        basis=basis,
        windows=len(scores),
        growth=0,
        spreads=(round_significant(spread),),
        offsets=(tuple(round_significant(offset) for offset in offsets),),
    )

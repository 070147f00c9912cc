"""Calibrated quantiles for any point forecaster, from its errors on rolling origins: split conformal prediction.

A *level* is that of a quantile everywhere here: an 80 % interval lies between the levels 0.1 and 0.9. A *residual* is an
error over the scale of the history that was known at its origin; a *spread* is a mean absolute residual.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from statistics import NormalDist
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from forecaster.errors import BundleDamaged, HorizonOutOfRange, InputError
from forecaster.intervals.adaptive import AdaptiveState, normal_quantiles
from forecaster.metrics import nanmean
from forecaster.shapes import Bool, Float64

_TAIL_LEVELS = (0.001, 0.0025, 0.005)
TABLE_LEVELS = tuple(
    sorted(
        round(level, 6)
        for level in {*np.arange(1, 100) / 100, 0.025, 0.975, *_TAIL_LEVELS, *(1 - q for q in _TAIL_LEVELS)}
    )
)
"""The levels a table holds; those between are interpolated along the normal quantile, those beyond extended by it."""

MIN_STEP_RESIDUALS = 100  # residuals from which on a step stands alone; with fewer it borrows from its neighbours
MIN_RANK_WINDOWS = 20  # windows from which on ranks are used; with fewer the shape is assumed to be Gaussian
MIN_GROUP_WINDOWS = 100  # windows from which on a group has a table of its own
MAX_TABLE_NUMBERS = 500_000  # in all tables together: some 5 MB of JSON
MAX_GROUPS = 64
MAX_FACTORS = 10_000
_STD_OVER_MEAN_ABS_DEVIATION = math.sqrt(math.pi / 2)  # standard deviation over mean absolute deviation of a Gaussian

_FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
_NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _StrictModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class QuantileTable(_StrictModel):
    """The quantiles of the residuals of one group, or of all.

    Attributes:
        basis: "ranks" is split conformal; "gaussian" has too few windows for it and takes Student's quantiles of their
            spread; "assumed" has seen no error at all.
        windows: How many windows it stands on.
        growth: Beyond the last step the spread grows as step ** growth.
        spreads: Mean absolute residual, by stored step.
        offsets: By stored step and level, in scales of the history.
    """

    basis: Literal["ranks", "gaussian", "assumed"]
    windows: int = Field(ge=0)
    growth: float = Field(ge=0, le=1)
    spreads: tuple[_NonNegativeFloat, ...]
    offsets: tuple[tuple[_FiniteFloat, ...], ...]


class Calibration(_StrictModel):
    """What is added to a point forecast to make it a quantile; `conformal.json` of a bundle, equal after a round trip.

    Attributes:
        steps: The steps ahead that tables hold, ascending; others are interpolated, or extrapolated beyond the last.
        levels: The levels that tables hold, ascending.
        pool: The table of all series together.
        groups: Tables of groups with enough windows; every other group takes the pool's.
        factors: By series id, what its scale is multiplied by: how much harder than its scale says it has been to forecast.
    """

    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    levels: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(min_length=2)
    pool: QuantileTable
    groups: dict[str, QuantileTable] = Field(default={}, max_length=MAX_GROUPS)
    factors: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default={}, max_length=MAX_FACTORS)

    @classmethod
    def from_json(cls, content: bytes | str) -> Calibration:
        """The calibration that `model_dump_json` wrote; raises BundleDamaged for anything else."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"])) or "the file"
            raise BundleDamaged(
                f"Expected a calibration written by forecaster; {place}: {fault['msg']}. Calibrate again.",
                where="conformal.json",
            ) from error

    def table_for(self, group: str | None = None) -> QuantileTable:
        """The table that answers for a group."""
        return self.pool if group is None else self.groups.get(group, self.pool)

    def compute_offsets(
        self,
        levels: Sequence[float],
        *,
        horizon: int,
        scales: Float64[np.ndarray, "row"],
        groups: Sequence[str | None] | None = None,
        ids: Sequence[str] | None = None,
        adaptive_state: AdaptiveState | None = None,
    ) -> Float64[np.ndarray, "row horizon level"]:
        """What to add to the point forecasts of some rows; never decreasing in level, and no row touches another.

        Args:
            levels: Of the quantiles, in any order.
            horizon: Steps ahead; more than were calibrated are extrapolated.
            scales: `history_scale` of each row.
            groups: Of each row; unknown ones take the pool.
            ids: Of each row, where factors of series are to be used.
            drift: What late actuals have taught since the calibration.
        Raises:
            InputError: a level is not between 0 and 1.
            HorizonOutOfRange: a horizon below one.
        """
        if not all(0 < level < 1 for level in levels):
            raise InputError(
                f"Expected levels above 0 and below 1; found {list(levels)}. Ask for levels such as 0.1, 0.5, 0.9.",
                where="levels",
            )
        if horizon < 1:
            raise HorizonOutOfRange(f"Expected a horizon of at least 1 step; found {horizon}.", where="horizon")
        widths = np.asarray(scales, dtype=np.float64)
        if ids is not None:
            widths = widths * [self.factors.get(one, 1.0) for one in ids]
        names = [None if name not in self.groups else name for name in groups or [None] * len(widths)]
        units = {
            name: self._compute_unit_offsets(levels, horizon, name, adaptive_state) for name in set(names) or {None}
        }
        one = next(iter(units.values())) if len(units) == 1 else np.stack([units[name] for name in names])
        return np.asarray(widths[:, None, None] * one)

    def compute_spreads(
        self,
        *,
        horizon: int,
        scales: Float64[np.ndarray, "row"],
        groups: Sequence[str | None] | None = None,
    ) -> Float64[np.ndarray, "row horizon"]:
        """How far a shift of one spread moves the quantiles of some rows; arguments as those of `compute_offsets`."""
        ahead, stored = np.arange(1, horizon + 1), np.array(self.steps)
        names = [None if name not in self.groups else name for name in groups or [None] * len(scales)]
        told = {}
        for name in set(names):
            spreads, _ = self._arrays_by_group["" if name is None else f"={name}"]
            growth = np.maximum(ahead / stored[-1], 1.0) ** self.table_for(name).growth
            told[name] = np.interp(np.minimum(ahead, stored[-1]), stored, spreads) * growth
        return np.asarray(scales[:, None] * np.stack([told[name] for name in names]))

    def _compute_unit_offsets(
        self, levels: Sequence[float], horizon: int, group: str | None, adaptive_state: AdaptiveState | None
    ) -> Float64[np.ndarray, "horizon level"]:
        """The offsets of a row whose scale is one."""
        spreads, grid = self._arrays_by_group["" if group is None else f"={group}"]
        if adaptive_state is not None:
            # Sorted on the whole grid, so that a quantile does not depend on which others were asked for.
            grid = np.sort(grid + spreads[:, None] * adaptive_state.shifts_at(self.levels), axis=1)
        ahead, stored = np.arange(1, horizon + 1), np.array(self.steps)
        rows = _interpolate_rows(grid.T, stored, np.minimum(ahead, stored[-1])).T
        growth = np.maximum(ahead / stored[-1], 1.0) ** self.table_for(group).growth
        unit = _interpolate_rows(rows, self._normal_quantiles, normal_quantiles(levels))
        return np.asarray(unit * growth[:, None])

    @cached_property
    def _normal_quantiles(self) -> Float64[np.ndarray, "level"]:
        return normal_quantiles(self.levels)

    @cached_property
    def _arrays_by_group(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Spreads and offsets by group; the pool's under the empty name."""
        named = {"": self.pool} | {f"={name}": table for name, table in self.groups.items()}
        return {name: (np.array(table.spreads), np.array(table.offsets)) for name, table in named.items()}

    @model_validator(mode="after")
    def _check_consistency(self) -> Calibration:
        if sorted(set(self.steps)) != list(self.steps) or sorted(set(self.levels)) != list(self.levels):
            raise ValueError("steps and levels must ascend")
        shape = (len(self.steps), len(self.levels))
        for table in (self.pool, *self.groups.values()):
            if len(table.spreads) != shape[0] or {len(row) for row in table.offsets} != {shape[1]}:
                raise ValueError(f"a table must hold {shape[0]} steps of {shape[1]} levels")
            if len(table.offsets) != shape[0] or (np.diff(table.offsets, axis=1) < 0).any():
                raise ValueError(f"a table must hold {shape[0]} steps, and its offsets must not fall with the level")
        return self


def calibrate(
    errors: Float64[np.ndarray, "series window horizon"],
    scales: Float64[np.ndarray, "series *window"],
    *,
    groups: Sequence[str | None] | None = None,
    ids: Sequence[str] | None = None,
) -> Calibration:
    """Quantiles of the errors by step ahead, pooled over series, with the rank of split conformal prediction.

    With n residuals the quantile above the median is the one of rank ceil((n + 1) level), below it floor (Vovk et al.
    2005; Lei et al. 2018, section 2), each tail on its own. A step with fewer than `MIN_STEP_RESIDUALS` residuals borrows those of its
    neighbours, each over the spread of its own step; n remains the number of windows, for steps of a window are not
    independent. What lies beyond the outermost residual is extended from the median through it, in proportion to the
    normal quantile.

    From a backtest of windows that the forecaster was not trained on:

        errors = result.actual - result.forecasts[name]
        scales = np.array([
            [history_scale(one.y[: len(one) - left], season) for left in origins(windows=windows, horizon=horizon)]
            for one in result.series
        ])
        calibrate(errors, scales)

    Args:
        errors: Actual less forecast; NaN where there is none.
        scales: `history_scale` of each series, or of each of its windows, from what was known at the origin alone. Windows
            without a positive scale are left out.
        groups: A label of each series, or None; a group of `MIN_GROUP_WINDOWS` windows has a table of its own.
        ids: Of each series: their factors are learned (empirical Bayes: hardly any effect with few windows).
    """
    scales = np.asarray(scales, dtype=np.float64)
    scales = np.broadcast_to(scales.reshape(len(scales), -1), errors.shape[:2])
    usable = np.isfinite(scales) & (scales > 0)
    residuals = np.where(usable[:, :, None], errors / np.where(usable, scales, 1.0)[:, :, None], np.nan)
    residuals = np.where(np.isfinite(residuals), residuals, np.nan)
    factors: dict[str, float] = {}
    if ids is not None:
        ahead, held_out = _fit_factors(residuals)
        kept = np.argsort(-np.abs(np.log(ahead)), kind="stable")[:MAX_FACTORS]
        factors = {ids[row]: _round_significant(ahead[row]) for row in kept if ahead[row] != 1}
        residuals[kept] /= held_out[kept, :, None]
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups or ()):
        if group is not None:
            members.setdefault(group, []).append(row)
    sizes = {group: int(np.isfinite(residuals[rows]).any(2).sum()) for group, rows in members.items()}
    large = sorted(
        (group for group in sizes if sizes[group] >= MIN_GROUP_WINDOWS), key=lambda group: (-sizes[group], group)
    )
    large = large[:MAX_GROUPS]
    steps = _select_steps(errors.shape[2], table_count=1 + len(large))
    return Calibration(
        steps=tuple(int(step) for step in steps),
        levels=TABLE_LEVELS,
        pool=_fit_table(_flatten_windows(residuals), steps),
        groups={group: _fit_table(_flatten_windows(residuals[members[group]]), steps) for group in sorted(large)},
        factors=factors,
    )


ResidualArray = Float64[np.ndarray, "row step"]  # a row is a window of any series


def _flatten_windows(residuals: Float64[np.ndarray, "series window step"]) -> ResidualArray:
    """All windows that have a residual."""
    flat = residuals.reshape(-1, residuals.shape[2])
    return np.asarray(flat[np.isfinite(flat).any(1)])


def _select_steps(horizon: int, *, table_count: int) -> np.ndarray:
    """The steps to store: all, or as many as keep the record small."""
    most = max(2, MAX_TABLE_NUMBERS // (len(TABLE_LEVELS) * table_count))
    return np.unique(np.linspace(1, horizon, min(horizon, most)).round().astype(int))


def _fit_table(residuals: ResidualArray, steps: np.ndarray) -> QuantileTable:
    spreads, growth = _fit_spreads(residuals)
    if len(residuals) >= MIN_RANK_WINDOWS:
        basis: Literal["ranks", "gaussian", "assumed"] = "ranks"
        offsets = np.stack([_rank_offsets(residuals, spreads, int(step) - 1) for step in steps])
    else:
        basis = "gaussian" if len(residuals) else "assumed"
        offsets = (
            _STD_OVER_MEAN_ABS_DEVIATION
            * spreads[steps - 1, None]
            * _student_t_quantiles(TABLE_LEVELS, windows=len(residuals))
        )
    return QuantileTable(
        basis=basis,
        windows=len(residuals),
        growth=_round_significant(growth),
        spreads=tuple(_round_significant(spread) for spread in spreads[steps - 1]),
        offsets=tuple(tuple(_round_significant(offset) for offset in row) for row in offsets),
    )


def _fit_spreads(residuals: ResidualArray) -> tuple[Float64[np.ndarray, "step"], float]:
    """The spread of each step, and the power with which it grows.

    The power law is fitted to the logarithms by least squares, its power held between 0 (white noise) and 1 (a trend
    missed); a single step is taken for one of a random walk. A step with few residuals is drawn towards the law.
    """
    ahead = np.arange(1, residuals.shape[1] + 1)
    counts = np.isfinite(residuals).sum(0)
    own = nanmean(np.abs(residuals), axis=0) if len(residuals) else np.full(len(ahead), np.nan)
    seen = own > 0
    if not seen.any():
        return (np.sqrt(ahead) if not counts.any() else np.zeros(len(ahead))), 0.5
    x, y = np.log(ahead[seen]), np.log(own[seen])
    growth = float(np.clip(np.polyfit(x, y, 1, w=np.sqrt(counts[seen]))[0], 0, 1)) if seen.sum() > 1 else 0.5
    law = np.average(y - growth * x, weights=counts[seen]) + growth * np.log(ahead)
    weight = np.where(seen, counts / (counts + MIN_RANK_WINDOWS), 0.0)
    return np.exp(weight * np.log(np.where(seen, own, 1.0)) + (1 - weight) * law), growth


def _rank_offsets(
    residuals: ResidualArray, spreads: Float64[np.ndarray, "step"], step_index: int
) -> Float64[np.ndarray, "level"]:
    """The quantiles of one step, from its own residuals or, where they are few, those of the steps around it."""
    present: Bool[np.ndarray, "row step"] = np.isfinite(residuals)
    last, near = residuals.shape[1] - 1, slice(step_index, step_index + 1)
    for reach in range(last + 1):
        near = slice(max(0, step_index - reach), min(last, step_index + reach) + 1)
        if present[:, near].sum() >= MIN_STEP_RESIDUALS:
            break
    unit = np.where(spreads > 0, spreads, 1.0)
    pooled = np.sort((residuals[:, near] * (unit[step_index] / unit[near]))[present[:, near]])
    draws = int(present[:, near].any(1).sum())
    levels = np.array(TABLE_LEVELS)
    above = _upper_quantiles(pooled, draws, np.maximum(levels, 0.5))
    below = -_upper_quantiles(-pooled[::-1], draws, np.maximum(1 - levels, 0.5))
    return np.select([levels > 0.5, levels < 0.5], [above, below], (above + below) / 2)


def _upper_quantiles(
    pooled: Float64[np.ndarray, "_"], window_count: int, levels: Float64[np.ndarray, "_"]
) -> Float64[np.ndarray, "_"]:
    """The residual of rank ceil((draws + 1) level); `pooled` may hold several a draw, and is in order."""
    rank = np.ceil(np.round((window_count + 1) * levels, 9))
    place = np.ceil(np.round(np.minimum(rank, window_count) * len(pooled) / window_count, 9)).astype(int)
    inside = pooled[np.clip(place, 1, len(pooled)) - 1]
    middle = (pooled[(len(pooled) - 1) // 2] + pooled[len(pooled) // 2]) / 2
    reach = normal_quantiles(levels) / NormalDist().inv_cdf(window_count / (window_count + 1))
    beyond = np.maximum(middle + (pooled[-1] - middle) * reach, pooled[-1])
    return np.asarray(np.where(rank > window_count, beyond, inside))


def _student_t_quantiles(levels: Sequence[float], *, windows: int) -> Float64[np.ndarray, "level"]:
    """Student's quantiles with a degree of freedom a window, wide enough for an uncertain centre too.

    Cornish and Fisher's expansion (Abramowitz and Stegun 1964, 26.7.5); three degrees are the least it is good for.
    """
    z, degrees = normal_quantiles(levels), max(windows, 3)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return np.asarray((z + first / degrees + second / degrees**2) * math.sqrt(1 + 1 / degrees))


def _fit_factors(
    residuals: Float64[np.ndarray, "series window step"],
) -> tuple[Float64[np.ndarray, "series"], Float64[np.ndarray, "series window"]]:
    """Each series' spread over that of all, shrunk towards one; and the same as each window's neighbours alone tell it.

    The logarithms of the windows' spreads are taken as the sum of one term a series and one a window; the ratio of the
    two variances says how many windows outweigh the prior (empirical Bayes by moments).
    """
    spreads, _ = _fit_spreads(_flatten_windows(residuals))
    sizes = nanmean(np.abs(residuals) / np.where(spreads > 0, spreads, 1.0), axis=2)
    logs = np.log(np.where(sizes > 0, sizes, np.nan))
    counts = np.isfinite(logs).sum(1)
    known, many = counts > 0, counts > 1
    if many.sum() < 2 or known.sum() < 3:
        return np.ones(len(logs)), np.ones(logs.shape)
    logs = logs - float(nanmean(nanmean(logs[known], axis=1)))
    totals = np.nansum(logs, axis=1)
    means = totals / np.maximum(counts, 1)
    within = float(np.nansum((logs[many] - means[many, None]) ** 2) / (counts[many] - 1).sum())
    between = float(np.var(means[known], ddof=1)) - within * float(np.mean(1 / counts[known]))
    if between <= 0:
        return np.ones(len(logs)), np.ones(logs.shape)
    prior = within / between
    others = totals[:, None] - np.where(np.isfinite(logs), logs, 0.0)
    rest = counts[:, None] - np.isfinite(logs)
    return np.exp(totals / (counts + prior)), np.exp(others / np.maximum(rest + prior, 1e-12))


def _interpolate_rows(
    rows: Float64[np.ndarray, "row place"], knots: np.ndarray, points: np.ndarray
) -> Float64[np.ndarray, "row wanted"]:
    """Linear interpolation along each row, and linear extension beyond its ends."""
    if len(knots) == 1:
        return np.repeat(rows, len(points), axis=1)
    left = np.clip(np.searchsorted(knots, points, side="right") - 1, 0, len(knots) - 2)
    weight = (points - knots[left]) / (knots[left + 1] - knots[left])
    return np.asarray(rows[:, left] * (1 - weight) + rows[:, left + 1] * weight)


def _round_significant(number: float) -> float:
    """Six digits are more than any calibration knows."""
    return float(f"{number:.6g}")

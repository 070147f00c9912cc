"""The calibration of a model: tables of residual quantiles, and the offsets from point forecasts that follow from them.

In this folder a *level* is always that of a quantile: an 80 % interval lies between the levels 0.1 and 0.9. A *residual* is an
error divided by the scale of the history up to its rolling origin and by the factor of its difficulty, or, for a head that is
recalibrated, the normal score of an actual (`normal_scores.py`). A *spread* is a mean absolute residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from forecaster.errors import BundleDamaged, HorizonOutOfRange, InputError, LevelOutOfRange
from forecaster.intervals.adaptive import AdaptiveState, normal_quantiles
from forecaster.intervals.difficulty import CHANGES, Difficulty
from forecaster.intervals.joint import JointTable
from forecaster.intervals.short_histories import ShortHistories
from forecaster.shapes import Float64
from forecaster.spec import StepCount

MAX_GROUPS = 64
MAX_FACTORS = 10_000

_LIMIT = 1e50  # no product of residuals, factors and scales overflows
_FiniteFloat = Annotated[float, Field(ge=-_LIMIT, le=_LIMIT, allow_inf_nan=False)]
_NonNegativeFloat = Annotated[float, Field(ge=0, le=_LIMIT, allow_inf_nan=False)]


class _StrictModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class QuantileTable(_StrictModel):
    """The quantiles of the residuals of one group, or of all series.

    Attributes:
        basis: "ranks" is split conformal; "gaussian" has too few windows for ranks and uses Student's t quantiles, scaled by
            the spread, or the quantiles of the head as they are; "assumed" has no windows at all.
        windows: The number of windows that the table is computed from.
        growth: Beyond the last step, the spread grows as step ** growth.
        spreads: Mean absolute residual, by stored step.
        offsets: Quantiles of the residuals by stored step and level, in units of the history's scale.
    """

    basis: Literal["ranks", "gaussian", "assumed"]
    windows: int = Field(ge=0)
    growth: float = Field(ge=0, le=1)
    spreads: tuple[_NonNegativeFloat, ...]
    offsets: tuple[tuple[_FiniteFloat, ...], ...]


class Calibration(_StrictModel):
    """The offsets from a point forecast to its quantiles; `conformal.json` of a bundle, equal after a round trip.

    Attributes:
        steps: The steps ahead in the tables, ascending; other steps are interpolated, or extrapolated beyond the last.
        levels: The levels in the tables, ascending.
        pool: The table of all series together.
        groups: The tables of groups with enough windows; all other groups use the pool.
        factors: Factors of the scale by series id: how much larger the errors of a series are than its scale suggests.
        unit: What the offsets are in units of: the scale of the history, or the head, whose quantiles are recalibrated. Then the
            offsets are normal scores of the head, and the same at every step.
        difficulty: The factors of scales, or of a head's spread, by the latest changes of a history; None if it has no effect.
        joint: How far bands of whole paths are wider; None if there were too few windows.
        short_histories: The factors of the scales of short histories; None if they were not measured.
        is_rounded: Whether quantiles of counts are whole numbers, as every quantile of a count is.
    """

    steps: tuple[StepCount, ...] = Field(min_length=1)
    levels: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(min_length=2)
    pool: QuantileTable
    groups: dict[str, QuantileTable] = Field(default={}, max_length=MAX_GROUPS)
    factors: dict[str, Annotated[float, Field(gt=0, le=_LIMIT, allow_inf_nan=False)]] = Field(
        default={}, max_length=MAX_FACTORS
    )
    unit: Literal["history", "head"] = "history"
    difficulty: Difficulty | None = None
    joint: JointTable | None = None
    is_rounded: bool = False
    short_histories: ShortHistories | None = None

    @classmethod
    def from_json(cls, content: bytes | str) -> Calibration:
        """Parses the output of `model_dump_json`; raises BundleDamaged for any other content."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            detail = error.errors()[0]
            location = ".".join(map(str, detail["loc"])) or "the file"
            raise BundleDamaged(
                f"Expected a calibration written by forecaster; {location}: {detail['msg']}. Train the model again.",
                where="conformal.json",
            ) from error

    def table_for(self, group: str | None = None) -> QuantileTable:
        """Returns the table of a group; groups without their own table, and None, use the pool."""
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
        """Returns the offsets from point forecasts to quantiles, non-decreasing in level; rows are independent.

        Args:
            levels: The levels of the quantiles, in any order.
            horizon: Steps ahead; steps beyond the calibrated ones are extrapolated.
            scales: `history_scale` of each row, times the factor of its difficulty; 1 for offsets in normal scores.
            groups: The group of each row; unknown groups use the pool.
            ids: The series id of each row, to apply the factors of series.
            adaptive_state: Shifts from actuals since the calibration.
        Raises:
            InputError: A level is not between 0 and 1.
            HorizonOutOfRange: The horizon is below one.
        """
        if not all(0 < level < 1 for level in levels):
            raise InputError(
                f"Expected levels above 0 and below 1; found {list(levels)}. Request levels such as 0.1, 0.5, 0.9.",
                where="levels",
            )
        if horizon < 1:
            raise HorizonOutOfRange(
                f"Expected a horizon of at least 1 step; found {horizon}. Request a longer horizon.", where="horizon"
            )
        widths = np.asarray(scales, dtype=np.float64)
        if ids is not None:
            widths = widths * [self.factors.get(series_id, 1.0) for series_id in ids]
        names = [None if name not in self.groups else name for name in groups or [None] * len(widths)]
        units = {
            name: self._compute_unit_offsets(levels, horizon, name, adaptive_state) for name in set(names) or {None}
        }
        unit_offsets = next(iter(units.values())) if len(units) == 1 else np.stack([units[name] for name in names])
        return np.asarray(widths[:, None, None] * unit_offsets)

    def map_scores(self, scores: Float64[np.ndarray, "*axes"], *, group: str | None) -> Float64[np.ndarray, "*axes"]:
        """Returns, for scores under a head, the scores of the calibrated quantiles at their levels; NaN stays."""
        _, grid = self._arrays_by_group["" if group not in self.groups else f"={group}"]
        mapped = _interpolate_rows(grid[:1], self._normal_quantiles, scores.ravel())
        return np.asarray(mapped[0].reshape(scores.shape))

    def widen_levels(self, levels: Sequence[float], *, horizon: int) -> list[float]:
        """Returns the levels whose quantiles bound whole paths with the probability of `levels`; raises LevelOutOfRange."""
        if self.joint is None:
            raise LevelOutOfRange(
                "Expected a model that was calibrated on at least 20 windows, for bands of whole paths; found one without such "
                "bands. Train it again on more data, or request intervals of single steps.",
                where="joint",
            )
        return [self.joint.widen(level, horizon=horizon) for level in levels]

    def compute_spreads(
        self,
        *,
        horizon: int,
        scales: Float64[np.ndarray, "row"],
        groups: Sequence[str | None] | None = None,
    ) -> Float64[np.ndarray, "row horizon"]:
        """Returns the spread of each row and step in the units of the data; arguments as in `compute_offsets`.

        A shift of one spread in an AdaptiveState moves a quantile by this distance.
        """
        steps_ahead, stored_steps = np.arange(1, horizon + 1), np.array(self.steps)
        names = [None if name not in self.groups else name for name in groups or [None] * len(scales)]
        spreads_by_group = {}
        for name in set(names):
            spreads, _ = self._arrays_by_group["" if name is None else f"={name}"]
            growth = np.maximum(steps_ahead / stored_steps[-1], 1.0) ** self.table_for(name).growth
            spreads_by_group[name] = (
                np.interp(np.minimum(steps_ahead, stored_steps[-1]), stored_steps, spreads) * growth
            )
        return np.asarray(scales[:, None] * np.stack([spreads_by_group[name] for name in names]))

    def _compute_unit_offsets(
        self, levels: Sequence[float], horizon: int, group: str | None, adaptive_state: AdaptiveState | None
    ) -> Float64[np.ndarray, "horizon level"]:
        """Returns the offsets of a row with scale 1."""
        spreads, grid = self._arrays_by_group["" if group is None else f"={group}"]
        if adaptive_state is not None:
            # Sorted on the whole grid, so that a quantile does not depend on which other levels are requested.
            grid = np.sort(grid + spreads[:, None] * adaptive_state.shifts_at(self.levels), axis=1)
        steps_ahead, stored_steps = np.arange(1, horizon + 1), np.array(self.steps)
        rows = _interpolate_rows(grid.T, stored_steps, np.minimum(steps_ahead, stored_steps[-1])).T
        growth = np.maximum(steps_ahead / stored_steps[-1], 1.0) ** self.table_for(group).growth
        unit_offsets = _interpolate_rows(rows, self._normal_quantiles, normal_quantiles(levels))
        return np.asarray(unit_offsets * growth[:, None])

    @cached_property
    def _normal_quantiles(self) -> Float64[np.ndarray, "level"]:
        return normal_quantiles(self.levels)

    @cached_property
    def _arrays_by_group(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Spreads and offsets of each table: the key is "" for the pool, and "=NAME" for a group."""
        tables = {"": self.pool} | {f"={name}": table for name, table in self.groups.items()}
        return {key: (np.array(table.spreads), np.array(table.offsets)) for key, table in tables.items()}

    @model_validator(mode="after")
    def _check_consistency(self) -> Calibration:
        num_changes = len(CHANGES) + (
            self.unit == "head"
        )  # a head compares the scale of the history with its own spread too
        if self.difficulty is not None and len(self.difficulty.weights) != num_changes:
            raise ValueError(f"difficulty: expected {num_changes} weights, found {len(self.difficulty.weights)}")
        if sorted(set(self.steps)) != list(self.steps) or sorted(set(self.levels)) != list(self.levels):
            raise ValueError("steps and levels must be in ascending order")
        shape = (len(self.steps), len(self.levels))
        for table in (self.pool, *self.groups.values()):
            if len(table.spreads) != shape[0] or {len(row) for row in table.offsets} != {shape[1]}:
                raise ValueError(f"a table must hold {shape[0]} steps of {shape[1]} levels")
            if len(table.offsets) != shape[0] or (np.diff(table.offsets, axis=1) < 0).any():
                raise ValueError(
                    f"a table must hold {shape[0]} steps, and its offsets must not decrease with the level"
                )
        return self


def _interpolate_rows(
    rows: Float64[np.ndarray, "row knot"], knots: np.ndarray, points: np.ndarray
) -> Float64[np.ndarray, "row point"]:
    """Interpolates linearly along each row, and extrapolates linearly beyond its ends."""
    if len(knots) == 1:
        return np.repeat(rows, len(points), axis=1)
    left = np.clip(np.searchsorted(knots, points, side="right") - 1, 0, len(knots) - 2)
    weight = (points - knots[left]) / (knots[left + 1] - knots[left])
    return np.asarray(rows[:, left] * (1 - weight) + rows[:, left + 1] * weight)

"""The bounds of forecasts: those of the specification, and zero where the data are not negative (decision 45).

They are applied to finished means, quantiles and sample paths. A rollout is never clipped: it reads what it has predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Self, TypeVar

import numpy as np

from forecaster.errors import ForecasterError
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.series import Forecast, Panel, Series
from forecaster.shapes import Float64, Int
from forecaster.spec import Spec

NON_NEGATIVE_FACT = (
    "non_negative"  # among the facts of a bundle; absent from those of earlier versions, which have no bounds
)
EACH_HISTORY = "each_history"  # value of this fact for a network without training data: the history of a series decides
_SERIES_AT_ONCE = 1024  # whose histories are concatenated, so that a copy takes little memory

ZeroBound = Literal["never", "training_data", "specification", "each_history", "counts"]
"""What makes zero a lower bound: nothing; training data without negative values, or `non_negative: true`, for histories without
negative values and with a warning for others; the history of each series, silently; a head of counts, for any history."""

_NEGATIVE_WARNINGS: Mapping[ZeroBound, str] = {
    "training_data": "The history has negative values, and the data that the model was trained on have none: the forecast is not "
    "bounded at zero.",
    "specification": "The history has negative values, although the specification of the model has `non_negative: true`: the "
    "forecast is not bounded at zero.",
}
_ZERO_REASONS: Mapping[ZeroBound, str] = {
    "training_data": "because no value of the training data is",
    "specification": "as specified",
    "each_history": "if no value of the history is",
    "counts": "because they are counts",
}
_EXCEPTION = " A series whose history lies outside of a bound is forecast without it."
ModelT = TypeVar("ModelT", bound=FittedModel | StoredModel)


class RowBounds(NamedTuple):
    """The bounds of some forecasts; infinite where there is none.

    Attributes:
        lower: The lower bound of each row.
        upper: The upper bound of each row.
        warnings: By row, for those rows whose history switched a bound off.
    """

    lower: Float64[np.ndarray, "*rows"]
    upper: Float64[np.ndarray, "*rows"]
    warnings: Mapping[int, tuple[str, ...]] = {}

    def clip(self, values: Float64[np.ndarray, "*rows_and_axes"]) -> Float64[np.ndarray, "*rows_and_axes"]:
        """Returns the values within the bounds of their rows, the first axes; what is not finite stays as it is.

        With one row, all values have its bounds.
        """
        lower, upper = _expand(self.lower, values.ndim), _expand(self.upper, values.ndim)
        return np.where(np.isfinite(values), np.minimum(np.maximum(values, lower), upper), values)

    def clip_forecasts(self, outcomes: Sequence[Forecast | ForecasterError]) -> list[Forecast | ForecasterError]:
        """Returns the outcomes, one per row, with means and quantiles within the bounds; all have the same steps and levels."""
        rows = [row for row, outcome in enumerate(outcomes) if isinstance(outcome, Forecast)]
        results = list(outcomes)
        forecasts = [outcome for outcome in outcomes if isinstance(outcome, Forecast)]
        if not forecasts:
            return results
        values = np.concatenate(
            [line for forecast in forecasts for line in (forecast.mean, *forecast.quantiles.values())]
        ).reshape(len(forecasts), -1, len(forecasts[0].mean))
        bounds = self if len(rows) == len(results) else RowBounds(self.lower[rows], self.upper[rows])
        is_outside = (values < _expand(bounds.lower, 3)) | (values > _expand(bounds.upper, 3))
        if not is_outside.any():
            return results
        clipped = bounds.clip(values)
        for index in np.flatnonzero(is_outside.any(axis=(1, 2))).tolist():
            forecast, (mean, *quantiles) = forecasts[index], clipped[index]
            results[rows[index]] = replace(
                forecast, mean=mean, quantiles=dict(zip(forecast.quantiles, quantiles, strict=True))
            )
        return results

    def add_warnings(self, outcomes: Sequence[Forecast | ForecasterError]) -> list[Forecast | ForecasterError]:
        """Returns the outcomes, one per row, with the warnings of their rows."""
        results = list(outcomes)
        for row, warnings in self.warnings.items():
            outcome = results[row]
            if isinstance(outcome, Forecast):
                results[row] = replace(outcome, warnings=(*outcome.warnings, *warnings))
        return results


class Bounds(NamedTuple):
    """The bounds of a fitted model.

    Attributes:
        lower: The lower bound of its specification; minus infinity if there is none.
        upper: The upper bound of its specification; infinity if there is none.
        zero: What makes zero a lower bound too.
    """

    lower: float = -np.inf
    upper: float = np.inf
    zero: ZeroBound = "never"

    @classmethod
    def from_facts(cls, spec: Spec, facts: Mapping[str, Any]) -> Self:
        """Returns the bounds of a model with these facts. Without the fact, as in earlier versions, `auto` is no bound."""
        return cls(
            lower=-np.inf if spec.lower is None else spec.lower,
            upper=np.inf if spec.upper is None else spec.upper,
            zero=_find_zero_bound(spec, facts.get(NON_NEGATIVE_FACT)),
        )

    @property
    def is_active(self) -> bool:
        """Whether there is any bound."""
        return self.zero != "never" or self.lower > -np.inf or self.upper < np.inf

    @property
    def lowest(self) -> float:
        """The largest lower bound, zero included; minus infinity if there is none."""
        return self.lower if self.zero == "never" else max(self.lower, 0.0)

    def describe(self) -> str:
        """Describes the bounds in one or two sentences."""
        if not self.is_active:
            return "Forecasts are not bounded."
        parts = [] if self.lower == -np.inf else [f"not below {self.lower:g}, as specified"]
        parts += [] if self.upper == np.inf else [f"not above {self.upper:g}, as specified"]
        parts += [] if self.zero == "never" else [f"not below zero, {_ZERO_REASONS[self.zero]}"]
        exception = "" if self.zero == "counts" and len(parts) == 1 else _EXCEPTION
        return f"Forecasts are {'; '.join(parts)}.{exception}"

    def for_series(self, series: Sequence[Series]) -> RowBounds:
        """Returns the bounds of the forecasts of each series, with warnings where its history lies outside of them."""
        if not series:
            return RowBounds(np.empty(0), np.empty(0))
        lowest, highest = find_extremes(series)
        is_outside = (lowest < self.lowest) | (highest > self.upper)
        if not is_outside.any():
            return RowBounds(np.full(len(series), self.lowest), np.full(len(series), self.upper))
        lower, upper = self._without_violated(lowest, highest)
        descriptions = {
            row: self._describe_violations(lowest[row], highest[row]) for row in np.flatnonzero(is_outside).tolist()
        }
        return RowBounds(lower, upper, {row: warnings for row, warnings in descriptions.items() if warnings})

    def at_origins(self, series: Sequence[Series], history_lengths: Int[np.ndarray, "series window"]) -> RowBounds:
        """Returns the bounds, "series window", of forecasts from rolling origins, each by the history up to there only."""
        if not series:
            return RowBounds(np.empty(history_lengths.shape), np.empty(history_lengths.shape))
        extremes = find_extremes(series)
        lowest, highest = (np.repeat(values[:, None], history_lengths.shape[1], axis=1) for values in extremes)
        is_outside = (extremes[0] < self.lowest) | (extremes[1] > self.upper)
        for row in np.flatnonzero(is_outside).tolist():  # otherwise no part of the series is outside either
            last_steps = (history_lengths[row] - 1).clip(0)
            lowest[row] = np.fmin.accumulate(series[row].y)[last_steps]
            highest[row] = np.fmax.accumulate(series[row].y)[last_steps]
        return RowBounds(*self._without_violated(lowest, highest))

    def _without_violated(
        self, lowest: Float64[np.ndarray, "*rows"], highest: Float64[np.ndarray, "*rows"]
    ) -> tuple[Float64[np.ndarray, "*rows"], Float64[np.ndarray, "*rows"]]:
        """Returns lower and upper bounds without those that a history violates."""
        lower = np.where(lowest < self.lower, -np.inf, self.lower)
        if self.zero == "counts":
            lower = np.maximum(lower, 0.0)
        elif self.zero != "never":
            lower = np.where(lowest < 0, lower, np.maximum(lower, 0.0))
        return lower, np.where(highest > self.upper, np.inf, self.upper)

    def _describe_violations(self, lowest: float, highest: float) -> tuple[str, ...]:
        warnings = []
        if lowest < self.lower:
            warnings.append(
                f"The history has values below the model's lower bound of {self.lower:g}: the forecast is not bounded there."
            )
        if lowest < 0 and self.lower != 0 and self.zero in _NEGATIVE_WARNINGS:
            warnings.append(_NEGATIVE_WARNINGS[self.zero])
        if highest > self.upper:
            warnings.append(
                f"The history has values above the model's upper bound of {self.upper:g}: the forecast is not bounded there."
            )
        return tuple(warnings)


def decide_non_negative(panel: Panel, spec: Spec) -> bool:
    """Decides at training whether forecasts are bounded at zero: for counts, and for data without negative values."""
    if spec.head.is_symbolic:
        return False
    lowest, _ = find_extremes(panel.series)
    return spec.head.is_count or bool((lowest >= 0).any() and not (lowest < 0).any())


def without_bounds(fitted_model: ModelT) -> ModelT:
    """Returns the model with forecasts that are neither clipped nor rounded, to compare engines by them."""
    update = {"lower": None, "upper": None, "non_negative": False}
    calibration = fitted_model.calibration
    if calibration is not None and calibration.is_rounded:
        calibration = calibration.model_copy(update={"is_rounded": False})
    return replace(fitted_model, spec=fitted_model.spec.model_copy(update=update), calibration=calibration)


def round_quantiles(
    series: Sequence[Series], outcomes: Sequence[Forecast | ForecasterError]
) -> list[Forecast | ForecasterError]:
    """Returns the outcomes with quantiles that are whole numbers, for the histories whose values are."""
    return [
        replace(outcome, quantiles={level: np.round(values) for level, values in outcome.quantiles.items()})
        if isinstance(outcome, Forecast) and outcome.quantiles and has_whole_numbers(item.y)
        else outcome
        for item, outcome in zip(series, outcomes, strict=True)
    ]


def has_whole_numbers(values: Float64[np.ndarray, "_"]) -> bool:
    """Whether all observed values are whole numbers."""
    return bool(((values == np.round(values)) | np.isnan(values)).all())


def find_extremes(series: Sequence[Series]) -> tuple[Float64[np.ndarray, "series"], Float64[np.ndarray, "series"]]:
    """Returns the lowest and the highest observed value of each history, dropped steps included; NaN if there is none."""
    if len(series) == 1:
        lowest, highest = (function.reduce(series[0].y, keepdims=True) for function in (np.fmin, np.fmax))
    else:
        parts = []
        for first in range(0, len(series), _SERIES_AT_ONCE):
            histories = [item.y for item in series[first : first + _SERIES_AT_ONCE]]
            values, starts = np.concatenate(histories), np.cumsum([0, *(len(y) for y in histories[:-1])])
            parts.append([function.reduceat(values, starts) for function in (np.fmin, np.fmax)])
        lowest, highest = (np.concatenate(values) for values in zip(*parts, strict=True))
    for row, item in enumerate(series):
        if item.history_summary is not None:
            lowest[row] = np.fmin(lowest[row], item.history_summary.lowest)
            highest[row] = np.fmax(highest[row], item.history_summary.highest)
    return lowest, highest


def _expand(values: Float64[np.ndarray, "*rows"], ndim: int) -> Float64[np.ndarray, "*rows_and_axes"]:
    """Returns the values with further axes of one element, `ndim` in all."""
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def _find_zero_bound(spec: Spec, fact: Any) -> ZeroBound:
    if spec.non_negative != "auto":
        zero: ZeroBound = "specification" if spec.non_negative else "never"
    elif fact == EACH_HISTORY:
        zero = "each_history"
    else:
        zero = "training_data" if fact is True else "never"
    return "counts" if zero != "never" and spec.head.is_count else zero

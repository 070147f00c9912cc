"""What stands in the way of a forecast: a history, covariates, levels or a horizon that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forecaster.data.batching import compute_usable_mask, find_value_error
from forecaster.errors import (
    BadSpec,
    CovariateUnknown,
    ForecasterError,
    FrequencyMismatch,
    HistoryTooShort,
    HorizonOutOfRange,
    LevelOutOfRange,
    NotANumber,
)
from forecaster.frequency import parse_frequency
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.series import Series
from forecaster.statistical.blend import list_statistical_components

_MIN_VECTORIZED_SERIES = 4  # series from which on it takes less time to look at them together


class InputValidator:
    """Finds what stands in the way of forecasts by one forecaster."""

    def __init__(self, fitted_model: FittedModel | StoredModel) -> None:
        self._fitted_model, self._layout, self._offset = (
            fitted_model,
            fitted_model.layout,
            parse_frequency(fitted_model.freq),
        )

    def validate_arguments(self, horizon: int, levels: Sequence[float] = ()) -> None:
        """Raises what stands in the way of forecasts, whatever the series."""
        odd = [level for level in levels if not 0 < level < 1]
        if odd:
            raise LevelOutOfRange(
                f"Expected levels between 0 and 1; found {odd[0]}. Write 0.9 for 90 %.", where="levels"
            )
        if levels and self._fitted_model.calibration is None:
            raise LevelOutOfRange(
                f"Expected no levels: {self._fitted_model.spec.name!r} was not calibrated, so it has point forecasts only. "
                "Train it with valid_windows of 1 or more, or ask without levels.",
                where="levels",
            )
        if horizon < 1:
            raise HorizonOutOfRange(f"Expected a horizon of at least 1 step; found {horizon}.", where="horizon")

    def validate_sampling(self, horizon: int) -> None:
        """Raises what stands in the way of sampled paths, whatever the series."""
        self.validate_arguments(horizon)
        if not self._layout.uniforms_per_draw:
            kind = self._fitted_model.spec.head.kind
            raise BadSpec(
                f"A {kind} head gives no distribution to draw from. Train with head: gaussian, say.", where="head"
            )
        if list_statistical_components(self._fitted_model.blend_weights):
            raise BadSpec(
                f"A blend gives no distribution to draw from, and {self._fitted_model.spec.name!r} is one. Draw from its network "
                "alone: replace(fitted_model, blend_weights={}).",
                where="blend",
            )

    def find_errors(self, series: Sequence[Series], horizon: int) -> list[ForecasterError | None]:
        """What is wrong with each history: they are looked at together, and one by one where that leaves a doubt."""
        forecaster, spec = self._fitted_model, self._fitted_model.spec
        if spec.channels or len(series) < _MIN_VECTORIZED_SERIES:
            return [self.find_error(one, horizon) for one in series]
        lengths = np.array([len(one.y) for one in series])
        doubtful = (lengths < spec.min_steps) | np.array([one.freq != forecaster.freq for one in series])
        doubtful |= ~compute_usable_mask([one.y for one in series], lengths, context=spec.context)
        if spec.covariates or forecaster.encoding.numeric:
            doubtful |= np.array([self._find_covariate_error(one, horizon) is not None for one in series])
        return [
            self.find_error(one, horizon) if doubt else None
            for one, doubt in zip(series, doubtful.tolist(), strict=True)
        ]

    def find_error(self, series: Series, horizon: int) -> ForecasterError | None:
        """What is wrong with a history, if anything."""
        forecaster, needed = self._fitted_model, self._fitted_model.spec.min_steps
        if series.freq != forecaster.freq and parse_frequency(series.freq, where=series.id) != self._offset:
            return FrequencyMismatch(
                f"Series {series.id!r} has the frequency {series.freq!r}; this forecaster learned {forecaster.freq!r}. "
                "Resample the series, or use a forecaster of its frequency.",
                where=series.id,
            )
        if len(series) < needed:
            return HistoryTooShort(
                f"Series {series.id!r} has {len(series)} steps; this forecaster needs at least {needed}. "
                "Send a longer history, or use a forecaster with a shorter context.",
                where=series.id,
            )
        fault = find_value_error(series, forecaster.spec.channels)
        if fault is not None:
            return fault
        if np.isnan(series.y[-forecaster.spec.context :]).all():
            return HistoryTooShort(
                f"Series {series.id!r} has no observed value among its last {forecaster.spec.context} steps. "
                "Send a history with observations.",
                where=series.id,
            )
        return self._find_covariate_error(series, horizon)

    def _find_covariate_error(self, series: Series, horizon: int) -> ForecasterError | None:
        spec = self._fitted_model.spec
        missing = [name for name in spec.covariates if name not in series.covariates]
        if not missing and (not spec.covariates or series.covariate_horizon >= horizon):
            return self._find_numeric_covariate_error(series, horizon)
        found = (
            f"{', '.join(missing)} not found"
            if missing
            else f"they are known for {series.covariate_horizon} steps ahead"
        )
        return CovariateUnknown(
            f"Series {series.id!r} needs the covariates {', '.join(spec.covariates)} for its history and {horizon} steps ahead; "
            f"{found}. Send them, or ask for a shorter horizon.",
            where=series.id,
        )

    def _find_numeric_covariate_error(self, series: Series, horizon: int) -> NotANumber | None:
        """A covariate that is no finite number where the network reads it; one value of it would spoil the whole forecast."""
        first = max(0, len(series) - self._layout.window_length(len(series)))
        for name in self._fitted_model.encoding.numeric:
            column = series.covariates[name][: len(series) + self._layout.round_up_horizon(horizon)]
            if column.dtype == object or not np.isfinite(column[first:]).all():
                return NotANumber(
                    f"Series {series.id!r} needs finite numbers for the covariate {name!r}; it has text, a missing or an infinite "
                    "value. Correct it: only the values themselves may be missing.",
                    where=series.id,
                )
        return None

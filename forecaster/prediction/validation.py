"""Validation of the input of forecasts: history, covariates, levels and horizon."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forecaster.data.batching import compute_usable_mask, find_value_error
from forecaster.engines.statistical.blend import list_statistical_components
from forecaster.errors import (
    BadSpec,
    CovariateUnknown,
    ForecasterError,
    FrequencyMismatch,
    HistoryTooShort,
    HorizonOutOfRange,
    InputError,
    LevelOutOfRange,
    NotANumber,
)
from forecaster.frequency.names import are_same_grid
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.series import Series

_MIN_VECTORIZED_SERIES = 4  # with fewer series, validating them one by one is faster


class InputValidator:
    """Validates the input of forecasts by one fitted model; without a calibration, its head may have quantiles."""

    def __init__(self, fitted_model: FittedModel | StoredModel, *, has_head_quantiles: bool = False) -> None:
        self._fitted_model, self._has_head_quantiles = fitted_model, has_head_quantiles
        self._layout = fitted_model.layout

    def validate_arguments(self, horizon: int, levels: Sequence[float] = ()) -> None:
        """Validates the arguments that all series share; raises LevelOutOfRange or HorizonOutOfRange."""
        invalid_levels = [level for level in levels if not 0 < level < 1]
        if invalid_levels:
            raise LevelOutOfRange(
                f"Expected levels between 0 and 1; found {invalid_levels[0]}. Write 0.9 for 90 %.", where="levels"
            )
        if levels and self._fitted_model.calibration is None and not self._has_head_quantiles:
            raise LevelOutOfRange(
                f"Expected no levels: model {self._fitted_model.spec.name!r} is not calibrated and has point forecasts only. "
                "Train it with valid_windows of 1 or more, or leave levels out.",
                where="levels",
            )
        if horizon < 1:
            raise HorizonOutOfRange(
                f"Expected a horizon of at least 1 step; found {horizon}. Request a longer horizon.", where="horizon"
            )

    def validate_sampling(self, horizon: int) -> None:
        """Validates the arguments of sampling that all series share; raises HorizonOutOfRange or BadSpec."""
        self.validate_arguments(horizon)
        if not self._layout.uniforms_per_draw:
            kind = self._fitted_model.spec.head.kind
            raise BadSpec(
                f"Sampling needs a head with a distribution; model {self._fitted_model.spec.name!r} has a {kind} head. "
                "Train a model with another head, such as gaussian.",
                where="head",
            )
        if list_statistical_components(self._fitted_model.blend_weights):
            raise BadSpec(
                f"Sampling needs a model with a distribution; {self._fitted_model.spec.name!r} is a blend without one. "
                "Sample from its network alone: replace(fitted_model, blend_weights={}).",
                where="blend",
            )

    def find_errors(self, series: Sequence[Series], horizon: int) -> list[ForecasterError | None]:
        """Returns the error of each series, or None. A fast check of all series selects those that are validated one by one."""
        fitted_model, spec = self._fitted_model, self._fitted_model.spec
        if spec.channels or len(series) < _MIN_VECTORIZED_SERIES:
            return [self.find_error(item, horizon) for item in series]
        lengths = np.array([len(item.y) for item in series])
        is_suspect = (lengths < spec.min_steps) | np.array([item.freq != fitted_model.freq for item in series])
        is_suspect |= ~compute_usable_mask([item.y for item in series], lengths, context=spec.context)
        if spec.covariates or fitted_model.encoding.numeric:
            is_suspect |= np.array([self._find_covariate_error(item, horizon) is not None for item in series])
        return [
            self.find_error(item, horizon) if suspect else None
            for item, suspect in zip(series, is_suspect.tolist(), strict=True)
        ]

    def find_scenario_errors(self, scenarios: Sequence[Series], horizon: int) -> list[ForecasterError | None]:
        """Returns the error of each scenario, or None. The history that all scenarios share is validated once."""
        history_error = self._find_history_error(scenarios[0]) if scenarios else None
        return [history_error or self._find_covariate_error(scenario, horizon) for scenario in scenarios]

    def find_error(self, series: Series, horizon: int) -> ForecasterError | None:
        """Returns the error of a series, or None if it can be forecast. Raises FrequencyUnknown for an invalid frequency."""
        return self._find_history_error(series) or self._find_covariate_error(series, horizon)

    def _find_history_error(self, series: Series) -> ForecasterError | None:
        fitted_model, spec = self._fitted_model, self._fitted_model.spec
        if not are_same_grid(series.freq, fitted_model.freq, [series.start], where=series.id):
            return FrequencyMismatch(
                f"Series {series.id!r} has the frequency {series.freq!r}; this model needs {fitted_model.freq!r}. "
                "Resample the series, or use a model of its frequency.",
                where=series.id,
            )
        if len(series) < spec.min_steps:
            return HistoryTooShort(
                f"Series {series.id!r} has {len(series)} steps; this model needs at least {spec.min_steps}. "
                "Send a longer history, or use a model with a shorter context.",
                where=series.id,
            )
        value_error = find_value_error(series, spec.channels)
        if value_error is not None:
            return value_error
        if np.isnan(series.y[-spec.context :]).all():
            return HistoryTooShort(
                f"Series {series.id!r} has no observed value among its last {spec.context} steps; this model needs at least one. "
                "Send a history with observed values.",
                where=series.id,
            )
        return None

    def _find_covariate_error(self, series: Series, horizon: int) -> ForecasterError | None:
        spec = self._fitted_model.spec
        missing = [name for name in spec.covariates if name not in series.covariates]
        if not missing and (not spec.covariates or series.covariate_horizon >= horizon):
            return self._find_covariate_value_error(series, horizon)
        finding = (
            f"{', '.join(missing)} not found"
            if missing
            else f"they are known for {series.covariate_horizon} steps ahead"
        )
        return CovariateUnknown(
            f"Series {series.id!r} needs the covariates {', '.join(spec.covariates)} for its history and {horizon} steps ahead; "
            f"{finding}. Send them, or request a shorter horizon.",
            where=series.id,
        )

    def _find_covariate_value_error(self, series: Series, horizon: int) -> InputError | None:
        """Returns an error for a covariate of another type than in training, or with a non-finite number in the steps read.

        A single such value would make the whole forecast NaN.
        """
        type_error = self._fitted_model.encoding.find_type_error(series)
        if type_error is not None:
            return type_error
        first = max(0, len(series) - self._layout.window_length(len(series)))
        for name in self._fitted_model.encoding.numeric:
            column = series.covariates[name][: len(series) + self._layout.round_up_horizon(horizon)]
            if not np.isfinite(column[first:]).all():
                return NotANumber(
                    f"Series {series.id!r} needs finite numbers for the covariate {name!r}; it has a missing or an infinite "
                    "value. Correct it: only y and channels may have missing values.",
                    where=series.id,
                )
        return None

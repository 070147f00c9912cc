"""What stands in the way of a forecast: a history, covariates, levels or a horizon that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forecaster.data.batching import sound, value_fault
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
from forecaster.frequency import offset
from forecaster.prediction.fitted_model import Forecaster, Stored
from forecaster.series import Series
from forecaster.statistical.blend import fitted_names

_MANY = 4  # series from which on it takes less time to look at them together


class Faults:
    """Finds what stands in the way of forecasts by one forecaster."""

    def __init__(self, forecaster: Forecaster | Stored) -> None:
        self._forecaster, self._outline, self._step = forecaster, forecaster.outline, offset(forecaster.freq)

    def check(self, horizon: int, levels: Sequence[float] = ()) -> None:
        """Raises what stands in the way of forecasts, whatever the series."""
        odd = [level for level in levels if not 0 < level < 1]
        if odd:
            raise LevelOutOfRange(
                f"Expected levels between 0 and 1; found {odd[0]}. Write 0.9 for 90 %.", where="levels"
            )
        if levels and self._forecaster.calibration is None:
            raise LevelOutOfRange(
                f"Expected no levels: {self._forecaster.spec.name!r} was not calibrated, so it has point forecasts only. "
                "Train it with valid_windows of 1 or more, or ask without levels.",
                where="levels",
            )
        if horizon < 1:
            raise HorizonOutOfRange(f"Expected a horizon of at least 1 step; found {horizon}.", where="horizon")

    def check_draws(self, horizon: int) -> None:
        """Raises what stands in the way of sampled paths, whatever the series."""
        self.check(horizon)
        if not self._outline.noise:
            kind = self._forecaster.spec.head.kind
            raise BadSpec(
                f"A {kind} head gives no distribution to draw from. Train with head: gaussian, say.", where="head"
            )
        if fitted_names(self._forecaster.blend):
            raise BadSpec(
                f"A blend gives no distribution to draw from, and {self._forecaster.spec.name!r} is one. Draw from its network "
                "alone: replace(forecaster, blend={}).",
                where="blend",
            )

    def of_each(self, series: Sequence[Series], horizon: int) -> list[ForecasterError | None]:
        """What is wrong with each history: they are looked at together, and one by one where that leaves a doubt."""
        forecaster, spec = self._forecaster, self._forecaster.spec
        if spec.channels or len(series) < _MANY:
            return [self.of(one, horizon) for one in series]
        lengths = np.array([len(one.y) for one in series])
        doubtful = (lengths < spec.least) | np.array([one.freq != forecaster.freq for one in series])
        doubtful |= ~sound([one.y for one in series], lengths, context=spec.context)
        if spec.covariates or forecaster.encoding.numeric:
            doubtful |= np.array([self._covariate_fault(one, horizon) is not None for one in series])
        return [self.of(one, horizon) if doubt else None for one, doubt in zip(series, doubtful.tolist(), strict=True)]

    def of(self, one: Series, horizon: int) -> ForecasterError | None:
        """What is wrong with a history, if anything."""
        forecaster, needed = self._forecaster, self._forecaster.spec.least
        if one.freq != forecaster.freq and offset(one.freq, where=one.id) != self._step:
            return FrequencyMismatch(
                f"Series {one.id!r} has the frequency {one.freq!r}; this forecaster learned {forecaster.freq!r}. "
                "Resample the series, or use a forecaster of its frequency.",
                where=one.id,
            )
        if len(one) < needed:
            return HistoryTooShort(
                f"Series {one.id!r} has {len(one)} steps; this forecaster needs at least {needed}. "
                "Send a longer history, or use a forecaster with a shorter context.",
                where=one.id,
            )
        fault = value_fault(one, forecaster.spec.channels)
        if fault is not None:
            return fault
        if np.isnan(one.y[-forecaster.spec.context :]).all():
            return HistoryTooShort(
                f"Series {one.id!r} has no observed value among its last {forecaster.spec.context} steps. "
                "Send a history with observations.",
                where=one.id,
            )
        return self._covariate_fault(one, horizon)

    def _covariate_fault(self, one: Series, horizon: int) -> ForecasterError | None:
        spec = self._forecaster.spec
        missing = [name for name in spec.covariates if name not in one.covariates]
        if not missing and (not spec.covariates or one.ahead >= horizon):
            return self._number_fault(one, horizon)
        found = f"{', '.join(missing)} not found" if missing else f"they are known for {one.ahead} steps ahead"
        return CovariateUnknown(
            f"Series {one.id!r} needs the covariates {', '.join(spec.covariates)} for its history and {horizon} steps ahead; "
            f"{found}. Send them, or ask for a shorter horizon.",
            where=one.id,
        )

    def _number_fault(self, one: Series, horizon: int) -> NotANumber | None:
        """A covariate that is no finite number where the network reads it; one value of it would spoil the whole forecast."""
        first = max(0, len(one) - self._outline.shown(len(one)))
        for name in self._forecaster.encoding.numeric:
            column = one.covariates[name][: len(one) + self._outline.whole(horizon)]
            if column.dtype == object or not np.isfinite(column[first:]).all():
                return NotANumber(
                    f"Series {one.id!r} needs finite numbers for the covariate {name!r}; it has text, a missing or an infinite "
                    "value. Correct it: only the values themselves may be missing.",
                    where=one.id,
                )
        return None

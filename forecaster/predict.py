"""A Forecaster is what was learned; a Predictor answers with it, one outcome for each series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from forecaster.data.calendar import offset
from forecaster.data.windows import stack
from forecaster.errors import (
    ForecasterError,
    FrequencyMismatch,
    HistoryTooShort,
    HorizonOutOfRange,
    NotANumber,
    RolloutDiverged,
)
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import roll, warm_up
from forecaster.series import Forecast, Series
from forecaster.spec import Spec

ROWS_AT_ONCE = 4096  # bounds the memory of one rollout; larger requests take several


@dataclass(frozen=True, eq=False)
class Forecaster:
    """A fitted forecaster.

    Attributes:
        spec: What it is.
        freq: The frequency it learned.
        season: Steps of a season, for the seasonal naive it is compared with.
        cutoff: The last stamp of the data it was fitted to.
        network: The weights.
        facts: What is known of its making, for the manifest and the card: data digest, versions, scores.
    """

    spec: Spec
    freq: str
    season: int
    cutoff: pd.Timestamp
    network: Regressor
    facts: dict[str, Any] = field(default_factory=dict)


class Predictor:
    """A forecaster ready to answer; it remembers nothing between calls, so threads may share it."""

    def __init__(self, forecaster: Forecaster, *, device: str = "cpu") -> None:
        self.forecaster = forecaster
        self.network = forecaster.network.to(device).eval()
        self._device = device
        self._step = offset(forecaster.freq)

    def forecast(self, series: Series, horizon: int) -> Forecast:
        """The forecast of one series; raises what stands in its way."""
        outcome = self.forecast_each([series], horizon)[0]
        if isinstance(outcome, ForecasterError):
            raise outcome
        return outcome

    def forecast_each(self, series: Sequence[Series], horizon: int) -> list[Forecast | ForecasterError]:
        """One outcome for each series, in order; a bad one never spoils its neighbours.

        Raises HorizonOutOfRange if `horizon` is below one: that spoils them all.
        """
        if horizon < 1:
            raise HorizonOutOfRange(f"Expected a horizon of at least 1 step; found {horizon}.", where="horizon")
        faults = [self._fault(one) for one in series]
        good = [one for one, fault in zip(series, faults, strict=True) if fault is None]
        means = iter(self._means([one.y for one in good], horizon=horizon))
        return [fault or self._outcome(one, next(means)) for one, fault in zip(series, faults, strict=True)]

    def _means(self, histories: Sequence[np.ndarray], *, horizon: int) -> list[np.ndarray]:
        means: list[np.ndarray] = []
        for first in range(0, len(histories), ROWS_AT_ONCE):
            window = stack(histories[first : first + ROWS_AT_ONCE], context=self.forecaster.spec.context)
            with torch.inference_mode():
                memory = warm_up(self.network, type(window)(window.values.to(self._device)))
                means.extend(roll(self.network, memory, horizon=horizon)[0].cpu().numpy())
        return means

    def _fault(self, one: Series) -> ForecasterError | None:
        """What is wrong with a history, if anything."""
        forecaster, needed = self.forecaster, self.forecaster.spec.least
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
        if np.isinf(one.y).any():
            return NotANumber(f"Series {one.id!r} holds an infinite value. Correct it, or send null.", where=one.id)
        if np.isnan(one.y[-forecaster.spec.context :]).all():
            return HistoryTooShort(
                f"Series {one.id!r} has no observed value among its last {forecaster.spec.context} steps. "
                "Send a history with observations.",
                where=one.id,
            )
        return None

    def _outcome(self, one: Series, mean: np.ndarray) -> Forecast | ForecasterError:
        if np.isfinite(mean).all():
            return Forecast(one.id, one.stamps_ahead(len(mean)), mean)
        step = int(np.flatnonzero(~np.isfinite(mean))[0])
        return RolloutDiverged(
            f"The forecast of series {one.id!r} left the finite numbers at step {step + 1} of {len(mean)}. "
            "Ask for a shorter horizon, or check the history for extreme values.",
            where=one.id,
        )

"""The input of the networks: series as padded arrays of values, covariates, static features and channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forecaster.data.batching import pad_histories, stack_channels, take_last
from forecaster.engines.engine import RolloutInput
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.series import Series
from forecaster.shapes import Float, Float64


class RolloutInputBuilder:
    """Builds the input of the networks of one fitted model from series that passed validation."""

    def __init__(self, fitted_model: FittedModel | StoredModel) -> None:
        self._encoding = fitted_model.encoding
        self._channels = fitted_model.spec.channels
        self._layout = fitted_model.layout

    def build(self, series: Sequence[Series], horizon: int, *, context: int | None = None) -> RolloutInput:
        """Builds windows and future covariates, one row per series.

        `context` is the length of the windows; by default they hold all that the networks read of the longest series.
        """
        encoding = self._encoding
        context = context or self._layout.window_length(max(map(len, series)))
        if not (encoding.num_covariates or encoding.static or self._channels):
            return RolloutInput(pad_histories([item.y for item in series], context=context, fill_value=np.nan))
        steps = self._layout.round_up_horizon(horizon)
        tails = [take_last(item, context) for item in series]
        values = pad_histories([tail.y for tail in tails], context=context, fill_value=np.nan)
        covariates = future_covariates = static = channels = None
        if encoding.num_covariates:
            columns = [encoding.encode_covariates(tail, future_steps=steps) for tail in tails]
            past = [column[: len(tail)] for tail, column in zip(tails, columns, strict=True)]
            covariates = pad_histories(past, context=context, fill_value=0.0, dtype=np.float32)
            future_covariates = _stack_float32([column[-steps:] for column in columns])
        if encoding.static:
            static = np.stack([encoding.encode_static(tail) for tail in tails])
        if self._channels:
            stacked = [stack_channels(tail, self._channels) for tail in tails]
            channels = pad_histories(stacked, context=context, fill_value=np.nan)
        return RolloutInput(values, covariates, static, channels, future_covariates)

    def build_window(self, series: Sequence[Series], steps: int) -> RolloutInput:
        """Builds windows of the last `steps` steps, for a warm-up."""
        return self.build(series, 1, context=steps)

    def build_scenarios(self, scenarios: Sequence[Series], horizon: int) -> RolloutInput:
        """Builds one row for the history that all scenarios share, and the future covariates of each scenario.

        If the history has a rollout state to resume from, the row starts after the steps that the state has read.
        """
        resume_step = self.find_resume_step(scenarios[0])
        context = None if resume_step is None else len(scenarios[0]) - resume_step
        inputs = self.build(scenarios[:1], horizon, context=context)
        if len(scenarios) == 1 or inputs.future_covariates is None:
            return inputs
        steps = self._layout.round_up_horizon(horizon)
        tails = [take_last(scenario, self._layout.window_length(len(scenario))) for scenario in scenarios]
        columns = [self._encoding.encode_covariates(tail, future_steps=steps)[-steps:] for tail in tails]
        return inputs._replace(future_covariates=_stack_float32(columns))

    def find_resume_step(self, series: Series) -> int | None:
        """Returns the step from which a stored rollout state of the series is resumed; None if it has no such state."""
        if series.history_summary is None:
            return None
        return series.history_summary.find_resume_step(len(series), segment=self._layout.segment)


def _stack_float32(
    columns: Sequence[Float64[np.ndarray, "ahead covariate"]],
) -> Float[np.ndarray, "row ahead covariate"]:
    return np.stack(columns, dtype=np.float32, casting="same_kind")

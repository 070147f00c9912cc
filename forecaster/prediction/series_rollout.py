"""Rollouts of series: in batches of similar length on the engine of a model, or from the stored state of a history."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from forecaster.engines.engine import Engine, RolloutInput, find_quantile_engine
from forecaster.installation import require_package
from forecaster.prediction.engine_choice import (
    at_temperature,
    choose_sampling_engine,
    combine_engines,
    roll_out_probabilities,
)
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.length_batches import batch_by_length
from forecaster.prediction.rollout_input import RolloutInputBuilder
from forecaster.series import Series
from forecaster.shapes import Float, Float64

if TYPE_CHECKING:
    from forecaster.model.regressor import Regressor
else:
    Regressor = Any  # torch is imported only where it computes

STATE_PURPOSE = "the stored states of a network that reads whole histories"


class SeriesRollout:
    """Rolls out the networks of one fitted model from series that passed validation.

    Point forecasts and quantiles are computed by `engine`. Sample paths and probabilities that it cannot compute are computed by
    `choose_sampling_engine`, on first use. A history with a stored state is resumed from there, in PyTorch.
    """

    def __init__(self, fitted_model: FittedModel | StoredModel, engine: Engine, *, device: str) -> None:
        self.fitted_model, self.engine, self.device = fitted_model, engine, device
        self.layout, self.inputs = fitted_model.layout, RolloutInputBuilder(fitted_model)

    @cached_property
    def networks(self) -> tuple[Regressor, ...]:
        """The networks of all members, on the device."""
        return tuple(network.to(self.device).eval() for network in self.fitted_model.networks)

    @cached_property
    def _sampling_engine(self) -> Engine:
        return choose_sampling_engine(self.fitted_model, self.engine, device=self.device)

    def predict(
        self, series: Sequence[Series], horizon: int, *, levels: Sequence[float] = ()
    ) -> Float64[np.ndarray, "series horizon *level"]:
        """Returns point forecasts or, at levels of the head, quantiles."""
        if any(item.history_summary is not None and item.history_summary.rollout_states for item in series):
            return np.concatenate([self.predict_scenarios([item], horizon, levels=levels) for item in series])
        forecasts = np.empty((len(series), horizon, *([len(levels)] if levels else [])))
        lengths = [len(item.y) for item in series]
        window_lengths = {length: self.layout.window_length(length) for length in set(lengths)}
        for batch in batch_by_length([window_lengths[length] for length in lengths]):
            inputs = self.inputs.build([series[index] for index in batch], horizon)
            forecasts[batch] = _roll_out(self.engine, inputs, horizon, levels)
        return forecasts

    def predict_scenarios(
        self, scenarios: Sequence[Series], horizon: int, *, levels: Sequence[float] = ()
    ) -> Float64[np.ndarray, "scenario horizon *level"]:
        """Returns the point forecasts or quantiles of one history in several scenarios; the history is read once."""
        engine = self._select_resume_engine(scenarios[0], self.engine)
        forecasts = _roll_out(engine, self.inputs.build_scenarios(scenarios, horizon), horizon, levels)
        return np.broadcast_to(forecasts, (len(scenarios), *forecasts.shape[1:]))

    def predict_probabilities(
        self, series: Sequence[Series], horizon: int
    ) -> list[Float64[np.ndarray, "horizon symbol"]]:
        """Returns the probabilities of the next symbols of each series, in the order of the vocabulary."""
        results: dict[int, Float64[np.ndarray, "horizon symbol"]] = {}
        whole: list[int] = []  # series without a stored state, which are computed together
        for index, item in enumerate(series):
            if self.inputs.find_resume_step(item) is None:
                whole.append(index)
            else:
                engine = self._select_resume_engine(item, self._sampling_engine)
                inputs = self.inputs.build_scenarios([item], horizon)
                results[index] = roll_out_probabilities(engine, inputs, horizon=horizon)[0]
        for batch in batch_by_length([self.layout.window_length(len(series[index].y)) for index in whole]):
            indices = [whole[position] for position in batch]
            inputs = self.inputs.build([series[index] for index in indices], horizon)
            rows = roll_out_probabilities(self._sampling_engine, inputs, horizon=horizon)
            results.update(zip(indices, rows, strict=True))
        return [results[index] for index in range(len(series))]

    def draw_paths(
        self,
        scenarios: Sequence[Series],
        horizon: int,
        noise: Float[np.ndarray, "path_target ahead noise"],
        *,
        temperature: float = 1.0,
    ) -> Float64[np.ndarray, "scenario path horizon"]:
        """Draws paths of one history in several scenarios, from one warmed-up state and with the same noise in each.

        Args:
            scenarios: The same history, one series per scenario.
            horizon: Steps ahead.
            noise: Uniforms in (0, 1), as `Engine.roll_out` reads them: for each path, those of y and of each channel in turn.
            temperature: Divides the logits of symbols.
        """
        inputs, num_paths = self.inputs.build_scenarios(scenarios, horizon), len(noise) // self.layout.num_targets
        if len(scenarios) > 1:
            noise = np.tile(noise, (len(scenarios), 1, 1))
            if inputs.future_covariates is not None:
                inputs = inputs._replace(future_covariates=inputs.future_covariates.repeat(num_paths, axis=0))
        engine = self._select_resume_engine(scenarios[0], self._sampling_engine)
        if temperature != 1.0:
            engine = at_temperature(engine, temperature)
        paths = engine.roll_out(inputs, horizon=horizon, noise=noise)
        return paths.reshape(len(scenarios), num_paths, horizon)

    def _select_resume_engine(self, series: Series, default_engine: Engine) -> Engine:
        """Returns an engine that resumes from the stored state of a history; the default engine if there is none."""
        resume_step = self.inputs.find_resume_step(series)
        if resume_step is None or series.history_summary is None:
            return default_engine
        require_package("torch", purpose=STATE_PURPOSE)
        from forecaster.prediction.recurrent_state import engines_from_states

        states = series.history_summary.rollout_states[resume_step]
        return combine_engines(engines_from_states(self.networks, states, device=self.device))


def _roll_out(
    engine: Engine, inputs: RolloutInput, horizon: int, levels: Sequence[float]
) -> Float64[np.ndarray, "row horizon *level"]:
    if not levels:
        return engine.roll_out(inputs, horizon=horizon)
    quantile_engine = find_quantile_engine(engine)
    assert quantile_engine is not None, "the arguments were validated"
    return quantile_engine.roll_out_quantiles(inputs, horizon=horizon, levels=levels)

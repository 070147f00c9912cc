"""A network with a running scale and a block decoder in numpy: how it reads the past, and how it decodes a block."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from forecaster.engines.kernel import WeightArrays
from forecaster.engines.running.backend import NetworkBackend
from forecaster.engines.running.layers import StackSizes, StackState, initial_state
from forecaster.engines.running.past import Past, PastSizes
from forecaster.engines.running.quantile_head import QuantileHead
from forecaster.model.running_sizes import (
    MIN_TIED_SIZE,
    NUM_FORECASTS,
    NUM_STATISTICS,
    PRIOR_WEIGHTS,
    SEASONAL_FORECASTS,
)
from forecaster.shapes import Bool, Float
from forecaster.spec import Layout, Spec


class RowState(NamedTuple):
    """Everything that a rollout carries from one block to the next.

    Attributes:
        stack: State of the recurrence.
        output: What the decoder reads: output of the recurrence, and the embedded features.
        recent: The latest scaled values; gaps are filled with the previous value.
        past: What the network sees of the past.
    """

    stack: StackState
    output: Float[np.ndarray, "row output"]
    recent: Float[np.ndarray, "row back"]
    past: Past

    def repeat(self, copies: int) -> RowState:
        """Repeats the rows, so that several paths fork from each."""
        past = Past(*(part.repeat(copies, axis=0) for part in self.past))
        output, recent = (part.repeat(copies, axis=0) for part in (self.output, self.recent))
        return RowState(self.stack.repeat(copies), output, recent, past)


class PredictedBlock(NamedTuple):
    """A predicted block, in scaled units.

    Attributes:
        values: Point forecasts.
        quantile_steps: Distances between neighbouring quantiles of the head; None unless they were requested.
    """

    values: Float[np.ndarray, "row block"]
    quantile_steps: Float[np.ndarray, "row step block"] | None


class RunningNetwork:
    """The weights of a network, as one backend takes them. It keeps no state between calls."""

    def __init__(self, spec: Spec, weights: WeightArrays, *, season: int, backend: NetworkBackend) -> None:
        """Takes weights whose shapes have been validated, by their names in the bundle."""
        layout = Layout.from_spec(spec, season=season)
        self._spec, self._backend = spec, backend
        self.block, self.segment, self.lookback = layout.block, layout.segment, layout.lookback
        self._past_sizes = PastSizes(season, spec.long_season, spec.segment, layout.block, layout.lookback)
        levels = sorted({*spec.head.levels, 0.5}) if spec.head.kind == "quantile" else []
        self.head = QuantileHead(levels) if levels else None
        weights = self._fold_repeated_features(weights)
        self._embedding = (
            backend.create_dense(weights["embedding.weight"], weights["embedding.bias"], silu=True)
            if spec.network.embed
            else None
        )
        network, num_inputs = spec.network, weights["recurrent.layers.0.weight_ih_l0"].shape[1]
        first_residual = (0 if network.embed else 1) if network.residual else network.layers
        self._stack_sizes = StackSizes(network.cell, network.layers, num_inputs, network.hidden, first_residual)
        self._stack = backend.create_stack(self._stack_sizes, weights)
        self._decoder = backend.create_dense(weights["decoder.weight"], weights["decoder.bias"], silu=True)
        self._create_outputs(weights, num_steps=max(0, len(levels) - 1))

    def _fold_repeated_features(self, weights: WeightArrays) -> WeightArrays:
        """Sums the weights of features that are always equal."""
        if self._spec.features != "seasonal":
            return weights
        name = "embedding.weight" if self._spec.network.embed else "recurrent.layers.0.weight_ih_l0"
        folded = np.zeros((len(weights[name]), self._past_sizes.num_features), dtype=np.float32)
        np.add.at(folded.T, self._past_sizes.feature_sources, weights[name].T)
        return {**weights, name: folded}

    def _create_outputs(self, weights: WeightArrays, *, num_steps: int) -> None:
        """Creates two output layers, by parameter and then by step: for point forecasts, and for the rest of the head."""
        weight = weights["output.weight"].reshape(self.block, -1, weights["output.weight"].shape[1]).swapaxes(0, 1)
        bias = weights["output.bias"].reshape(self.block, -1).T
        parameters = np.arange(len(weight))
        is_step = (parameters > 0) & (parameters <= num_steps)
        self._point_output, self._step_output = (
            self._backend.create_dense(
                weight[chosen].reshape(-1, weight.shape[2]), bias[chosen].reshape(-1), silu=False
            )
            if chosen.any()
            else None
            for chosen in (~is_step, is_step)
        )

    def start(self, rows: int) -> RowState:
        """Returns the state before the first step."""
        zeros = np.zeros((rows, 0), dtype=np.float32)
        past = Past(
            zeros[:, None], np.zeros((rows, 1, 2), dtype=np.float32), zeros[:, None], np.zeros((rows, NUM_STATISTICS))
        )
        recent = np.zeros((rows, self.lookback), dtype=np.float32)
        return RowState(initial_state(self._stack_sizes, rows), zeros, recent, past)

    def read(
        self, values: Float[np.ndarray, "row step"], started: Bool[np.ndarray, "row step"], state: RowState
    ) -> RowState:
        """Reads scaled values, NaN where missing, on from a state."""
        missing = np.isnan(values)
        filled_values = np.concatenate([state.recent, _forward_fill(values, missing, state.recent[:, -1:])], axis=1)
        past = self._backend.read_past(filled_values, started, missing, state.past.statistics, self._past_sizes)
        inputs = past.features
        if self._spec.features == "values":
            inputs = self._scale_segments(filled_values[:, self.lookback :], missing, past)
        embedded = inputs if self._embedding is None else self._embedding(inputs)
        begun = np.ascontiguousarray(started[:, self.segment - 1 :: self.segment])
        output, stack_state = self._stack(embedded, begun, state.stack)
        if self._embedding is not None:
            output = np.concatenate([output, embedded[:, -1]], axis=1)
        last = Past(past.features[:, -1:], past.scales[:, -1:], past.forecasts, past.statistics)
        return RowState(stack_state, output, filled_values[:, -self.lookback :], last)

    def _scale_segments(
        self, filled_values: Float[np.ndarray, "row step"], missing: Bool[np.ndarray, "row step"], past: Past
    ) -> Float[np.ndarray, "row segment feature"]:
        shape = (len(missing), -1, self.segment)
        observed = ~missing.reshape(shape)
        level, unit = past.scales[..., :1], past.scales[..., 1:]
        scaled = (filled_values.reshape(shape) - level) / unit * observed
        return np.concatenate([scaled, observed], axis=2, dtype=np.float32)

    def decode(self, state: RowState, *, with_steps: bool) -> PredictedBlock:
        """Predicts the next block from a state, relative to its level and in its unit."""
        hidden = self._decoder(state.output)
        assert self._point_output is not None, "every head has a location"
        raw = self._point_output(hidden).reshape(len(hidden), -1, self.block)
        level, unit = state.past.scales[:, -1, :1], state.past.scales[:, -1, 1:]
        location = raw[:, 0]
        if self._spec.base == "mixture":
            location = location + combine_forecasts(raw[:, 1:], state.past.forecasts)
        elif self._spec.base != "zero":
            location = location + (self._baseline_forecast(state.recent) - level) / unit
        values = level + unit * location
        if not with_steps:
            return PredictedBlock(values, None)
        assert self.head is not None, "the head has a distribution"
        assert self._step_output is not None, "a quantile head has steps"
        steps = self.head.steps(self._step_output(hidden).reshape(len(hidden), -1, self.block))
        return PredictedBlock(values, unit[:, None] * steps)

    def _baseline_forecast(self, recent: Float[np.ndarray, "row back"]) -> Float[np.ndarray, "row _"]:
        """See `forecaster.model.baseline.baseline_forecast`."""
        season, last = self._past_sizes.season, recent[:, -1:]
        if self._spec.base == "last":
            return last
        ahead = np.arange(self.block)
        if self._spec.base == "seasonal_naive":
            return np.asarray(recent[:, recent.shape[1] - season + ahead % season])
        return np.asarray(last + (last - recent[:, -season - 1, None]) / season * (ahead + 1).astype(np.float32))


def combine_forecasts(
    raw_weights: Float[np.ndarray, "row forecast block"], forecasts: Float[np.ndarray, "row forecast block"]
) -> Float[np.ndarray, "row block"]:
    """See `forecaster.model.running.combine_forecasts`."""
    assert raw_weights.shape[1] == NUM_FORECASTS, "one weight for each simple forecast"
    weights = raw_weights + np.array(PRIOR_WEIGHTS, dtype=np.float32)[:, None]
    seasonal = forecasts[:, :SEASONAL_FORECASTS]
    size = np.sqrt((seasonal**2).mean(axis=2).max(axis=1))[:, None]
    total = weights[:, :SEASONAL_FORECASTS].sum(axis=1)
    tied = 1 - np.tanh((1 - total) * size) / np.maximum(size, np.float32(MIN_TIED_SIZE))
    shift = np.where(size > MIN_TIED_SIZE, tied - total, 0) / SEASONAL_FORECASTS
    return np.asarray((weights * forecasts).sum(axis=1) + shift * seasonal.sum(axis=1))


def _forward_fill(
    values: Float[np.ndarray, "row step"], missing: Bool[np.ndarray, "row step"], previous: Float[np.ndarray, "row 1"]
) -> Float[np.ndarray, "row step"]:
    """Fills every gap with the previous value."""
    if not missing.any():
        return values
    latest = np.maximum.accumulate(np.where(missing, 0, np.arange(1, values.shape[1] + 1)), axis=1)
    return np.take_along_axis(np.concatenate([previous, values], axis=1), latest, axis=1)

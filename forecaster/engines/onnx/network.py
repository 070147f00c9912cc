"""The network in the graph: encodes and decodes as `forecaster.model.regressor` does.

Data values are [row_target, step]: y and every channel of each row. Inputs and outputs of the recurrence are
[segment, row, any].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forecaster.engines.onnx.builder import GraphBuilder, Value
from forecaster.engines.onnx.heads import OnnxHeadParams
from forecaster.engines.onnx.recurrence import (
    CellWeights,
    LayerState,
    OnnxLayer,
    OperatorWeights,
    build_layer,
    run_operator,
)
from forecaster.model.regressor import Regressor


@dataclass(frozen=True)
class OnnxDecoder:
    """The decoder, which takes one step from the recurrence's output for each segment of a block separately.

    Attributes:
        weights: Weights of its GRU cell.
        segment_embeddings: Embedding of each segment position, [segment, 1, embedding]; None without one.
    """

    weights: OperatorWeights
    segment_embeddings: Value | None


@dataclass(frozen=True)
class OnnxNetwork:
    """A network whose weights are constants of a graph.

    Attributes:
        builder: The graph.
        model: The network in torch.
        layers: Layers of the recurrence.
        embeddings: Embedding table of each static category, [category, embedding].
        static_size: Total size of a row's static embeddings.
        decoder: None if the output layer reads the recurrence's output directly.
        weight: Weights of the output layer, by hidden unit, target, point of a segment and parameter.
        bias: Biases of the output layer.
    """

    builder: GraphBuilder
    model: Regressor
    layers: Sequence[OnnxLayer]
    embeddings: Sequence[Value]
    static_size: int
    decoder: OnnxDecoder | None
    weight: np.ndarray
    bias: np.ndarray

    @property
    def segments_per_block(self) -> int:
        """Number of segments in a block."""
        return self.model.block // self.model.segment

    @property
    def num_phases(self) -> int:
        """Number of phases of a scale's profile."""
        return self.model.season if self.model.scaling == "level_season" else 1

    @property
    def needs_recent_values(self) -> bool:
        """Whether a rollout needs the latest values themselves, for lags or the baseline."""
        return bool(self.model.lags) or self.model.base != "zero"

    def embed_static(self, static: Value | None) -> Value | None:
        """Embeds the static categories [row, static] as [row, embedding]."""
        if static is None:
            return None
        category_indices = [
            static.slice_axis(1, column, column + 1).squeeze(1) for column in range(len(self.embeddings))
        ]
        embedded = [
            table.take(indices, axis=0) for table, indices in zip(self.embeddings, category_indices, strict=True)
        ]
        return self.builder.concat(embedded, axis=1)

    def to_segments(self, values: Value, *, width: int = 1) -> Value:
        """Reshapes [row_target, step], or [row, step, width], to [segment, row_target or row, any]."""
        return values.reshape(0, -1, self.model.segment * width).transpose(1, 0, 2)

    def encode(
        self,
        values: Value,
        observed: Value | None,
        filled_values: Value | None,
        covariates: Value | None,
        static: Value | None,
    ) -> Value:
        """Builds the input of each recurrence step.

        Args:
            values: [segment, row_target, point]; 0 where missing.
            observed: The mask of the values, 1 or 0; None in a rollout without channels, where no value is missing.
            filled_values: [row_target, back + step]; needed for lags only.
            covariates: [segment, row, any].
            static: [row, embedding].
        """
        parts = [values] if observed is None else [values, observed]
        for lag in self.model.lags:
            assert filled_values is not None, "lags look back"
            start = self.model.segment - lag  # at most 0: a lagged value lies before the end of `filled_values`
            parts.append(self.to_segments(filled_values.slice_axis(1, self.model.lookback + start, start or None)))
        if self.model.num_targets > 1:
            features_per_target = (2 + len(self.model.lags)) * self.model.segment
            parts = [self.builder.concat(parts, axis=2).reshape(0, -1, self.model.num_targets * features_per_target)]
        parts += [] if covariates is None else [covariates]
        parts += [] if static is None else [static.unsqueeze(0).expand(values.size(0), 1, 1)]
        return self.builder.concat(parts, axis=2)

    def decode(
        self, output: Value, recent: Value | None, covariates: Value | None, segment_embeddings: Value | None
    ) -> OnnxHeadParams:
        """Returns the head's parameters for a block.

        Args:
            output: Output of the recurrence, [1, row, hidden].
            recent: [row_target, back]; needed for the baseline only.
            covariates: Covariates of the block, [segment, row, any].
            segment_embeddings: Embeddings of the segment positions, [segment, row, embedding].
        """
        return OnnxHeadParams(
            self._decoder_outputs(output, covariates, segment_embeddings),
            self.weight,
            self.bias,
            self._baseline_forecast(recent),
        )

    def _decoder_outputs(self, output: Value, covariates: Value | None, segment_embeddings: Value | None) -> Value:
        if self.decoder is None:
            return output
        inputs = self.builder.concat([part for part in (segment_embeddings, covariates) if part is not None], axis=2)
        hidden_size = self.model.recurrent.hidden_size
        initial = (
            output
            if self.segments_per_block == 1
            else output.expand(self.segments_per_block, 1, 1).reshape(1, -1, hidden_size)
        )
        decoder_inputs = inputs if self.segments_per_block == 1 else inputs.reshape(1, -1, inputs.size(2))
        _, state = run_operator(
            "GRU", self.decoder.weights, decoder_inputs, LayerState(initial, None), hidden_size=hidden_size
        )
        return (
            state.hidden
            if self.segments_per_block == 1
            else state.hidden.reshape(self.segments_per_block, -1, hidden_size)
        )

    def _baseline_forecast(self, recent: Value | None) -> Value | None:
        """Returns the baseline forecast of a block, [segment, row_target, point]; `last` is the same for all points."""
        if recent is None or self.model.base == "zero":
            return None
        season, steps = self.model.season, np.arange(1, self.model.block + 1)
        match self.model.base:
            case "last":
                return recent.slice_axis(1, -1).unsqueeze(0)
            case "seasonal_naive":
                indices = self.model.lookback - season + (steps - 1) % season
                return self.to_segments(recent.take(self.builder.integers(indices.tolist()), axis=1))
            case "linear":
                last = recent.slice_axis(1, -1)
                slope = (last - recent.slice_axis(1, -season - 1, -season)) / float(season)
                return self.to_segments(last + slope * self.builder.constant(steps))
            case "mixture":
                raise AssertionError("a network with a running scale has no graph")


def build_onnx_network(builder: GraphBuilder, model: Regressor) -> OnnxNetwork:
    """Adds the weights of a network to a graph."""
    is_supported = not model.is_running and model.decoder_kind != "block" and model.embedding is None
    assert is_supported, "forecaster.engines.onnx.support names the networks that have a graph"
    weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    hidden, segment = model.recurrent.hidden_size, model.segment
    tables = [weights[f"groups.{index}.weight"].copy() for index in range(len(model.groups))]
    for table in tables:
        table[0] = 0.0  # the embedding of an unknown category is zero
    raw = weights["output.weight"].reshape(model.num_targets, segment, model.head.num_params, hidden)
    return OnnxNetwork(
        builder=builder,
        model=model,
        layers=[_build_layer(builder, model, weights, index) for index in range(len(model.recurrent.layers))],
        embeddings=[builder.constant(table) for table in tables],
        static_size=sum(table.shape[1] for table in tables),
        decoder=_build_decoder(builder, weights),
        weight=raw.transpose(3, 0, 1, 2),
        bias=weights["output.bias"].reshape(model.num_targets, segment, model.head.num_params),
    )


def _build_layer(builder: GraphBuilder, model: Regressor, weights: dict[str, np.ndarray], index: int) -> OnnxLayer:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return build_layer(
        builder,
        CellWeights(*(weights[f"recurrent.layers.{index}.{name}_l0"] for name in names)),
        activation={"RNN_TANH": "Tanh", "RNN_RELU": "Relu"}.get(str(model.recurrent.layers[index].mode)),
        constant_inputs=slice(model.segment, 2 * model.segment) if index == 0 and model.num_targets == 1 else slice(0),
        dilation=model.recurrent.dilations[index],
        residual=index >= model.recurrent.first_residual_layer,
    )


def _build_decoder(builder: GraphBuilder, weights: dict[str, np.ndarray]) -> OnnxDecoder | None:
    if "decoder.weight_ih" not in weights:
        return None
    cell = CellWeights(*(weights[f"decoder.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")))
    segment_embeddings = weights["places"]
    return OnnxDecoder(
        cell.to_onnx_order().to_operator_weights(builder),
        builder.constant(segment_embeddings[:, None]) if segment_embeddings.shape[1] else None,
    )

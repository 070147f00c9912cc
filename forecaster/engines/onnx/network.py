"""The network in the graph: what `forecaster.model.regressor` encodes and decodes, once more.

Values of the data are [track, step], as they come: y and every channel of each row. What the recurrence reads and says is
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
    """The one step that the recurrence's output takes for each segment of a block apart.

    Attributes:
        weights: Of a GRU.
        places: What it learned of each segment's place, [segment, 1, place]; None if it knows none.
    """

    weights: OperatorWeights
    segment_embeddings: Value | None


@dataclass(frozen=True)
class OnnxNetwork:
    """A network whose weights are constants of a draft.

    Attributes:
        draft: Where it is written.
        model: What it was built for.
        layers: Its recurrence.
        tables: What it learned of each static category, [number, group].
        groups: How many numbers they give a row in all.
        decoder: None if the output layer reads the recurrence's output as it is.
        weight: Of the output layer, by hidden, target, point of a segment and parameter.
        bias: Likewise.
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
        """Segments of a block."""
        return self.model.block // self.model.segment

    @property
    def num_phases(self) -> int:
        """Of the profile in a scale."""
        return self.model.season if self.model.scaling == "level_season" else 1

    @property
    def needs_recent_values(self) -> bool:
        """Whether a rollout needs the latest values themselves."""
        return bool(self.model.lags) or self.model.base != "zero"

    def embed_static(self, static: Value | None) -> Value | None:
        """What is known of each row for good, [row, group], from its categories, [row, static]."""
        if static is None:
            return None
        numbers = [static.slice_axis(1, place, place + 1).squeeze(1) for place in range(len(self.embeddings))]
        known = [table.take(each, axis=0) for table, each in zip(self.embeddings, numbers, strict=True)]
        return self.builder.concat(known, axis=1)

    def to_segments(self, values: Value, *, width: int = 1) -> Value:
        """[track, step], or [row, step, width], as [segment, track or row, any]."""
        return values.reshape(0, -1, self.model.segment * width).transpose(1, 0, 2)

    def encode(
        self,
        values: Value,
        observed: Value | None,
        filled_values: Value | None,
        covariates: Value | None,
        static: Value | None,
    ) -> Value:
        """What each step of the recurrence reads.

        Args:
            values: [segment, track, point]; 0 where missing.
            observed: Likewise, 1 or 0; None in a rollout without channels, whose values are all there.
            past: [track, back + step]; for lags alone.
            covariates: [segment, row, any].
            static: [row, group].
        """
        parts = [values] if observed is None else [values, observed]
        for lag in self.model.lags:
            assert filled_values is not None, "lags look back"
            short = self.model.segment - lag  # not above 0: what a lag looks up lies before the end of the past
            parts.append(self.to_segments(filled_values.slice_axis(1, self.model.lookback + short, short or None)))
        if self.model.num_targets > 1:
            each = (2 + len(self.model.lags)) * self.model.segment
            parts = [self.builder.concat(parts, axis=2).reshape(0, -1, self.model.num_targets * each)]
        parts += [] if covariates is None else [covariates]
        parts += [] if static is None else [static.unsqueeze(0).expand(values.size(0), 1, 1)]
        return self.builder.concat(parts, axis=2)

    def decode(
        self, output: Value, recent: Value | None, covariates: Value | None, segment_embeddings: Value | None
    ) -> OnnxHeadParams:
        """The parameters of a block.

        Args:
            output: Of the recurrence, [1, row, hidden].
            recent: [track, back]; for a base alone.
            covariates: Of the block, [segment, row, any].
            places: What the decoder learned of places, [segment, row, place].
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
        inputs = self.builder.concat([each for each in (segment_embeddings, covariates) if each is not None], axis=2)
        hidden = self.model.recurrent.hidden_size
        start = (
            output
            if self.segments_per_block == 1
            else output.expand(self.segments_per_block, 1, 1).reshape(1, -1, hidden)
        )
        beside = inputs if self.segments_per_block == 1 else inputs.reshape(1, -1, inputs.size(2))
        _, after = run_operator("GRU", self.decoder.weights, beside, LayerState(start, None), hidden_size=hidden)
        return (
            after.hidden if self.segments_per_block == 1 else after.hidden.reshape(self.segments_per_block, -1, hidden)
        )

    def _baseline_forecast(self, recent: Value | None) -> Value | None:
        """The base's forecast of a block, [segment, track, point]; `last` is the same for all points."""
        if recent is None or self.model.base == "zero":
            return None
        season, steps = self.model.season, np.arange(1, self.model.block + 1)
        match self.model.base:
            case "last":
                return recent.slice_axis(1, -1).unsqueeze(0)
            case "seasonal_naive":
                places = self.model.lookback - season + (steps - 1) % season
                return self.to_segments(recent.take(self.builder.integers(places.tolist()), axis=1))
            case "linear":
                last = recent.slice_axis(1, -1)
                slope = (last - recent.slice_axis(1, -season - 1, -season)) / float(season)
                return self.to_segments(last + slope * self.builder.constant(steps))


def build_onnx_network(builder: GraphBuilder, model: Regressor) -> OnnxNetwork:
    """Puts the weights of a network into a draft."""
    weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    hidden, segment = model.recurrent.hidden_size, model.segment
    tables = [weights[f"groups.{number}.weight"].copy() for number in range(len(model.groups))]
    for table in tables:
        table[0] = 0.0  # an unknown category adds nothing
    raw = weights["output.weight"].reshape(model.num_targets, segment, model.head.num_params, hidden)
    return OnnxNetwork(
        builder=builder,
        model=model,
        layers=[_build_layer(builder, model, weights, number) for number in range(len(model.recurrent.layers))],
        embeddings=[builder.constant(table) for table in tables],
        static_size=sum(table.shape[1] for table in tables),
        decoder=_build_decoder(builder, weights),
        weight=raw.transpose(3, 0, 1, 2),
        bias=weights["output.bias"].reshape(model.num_targets, segment, model.head.num_params),
    )


def _build_layer(builder: GraphBuilder, model: Regressor, weights: dict[str, np.ndarray], number: int) -> OnnxLayer:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return build_layer(
        builder,
        CellWeights(*(weights[f"recurrent.layers.{number}.{name}_l0"] for name in names)),
        constant_inputs=slice(model.segment, 2 * model.segment) if number == 0 and model.num_targets == 1 else slice(0),
        dilation=model.recurrent.dilations[number],
        residual=model.recurrent.residual and number > 0,
    )


def _build_decoder(builder: GraphBuilder, weights: dict[str, np.ndarray]) -> OnnxDecoder | None:
    if "decoder.weight_ih" not in weights:
        return None
    cell = CellWeights(*(weights[f"decoder.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")))
    places = weights["places"]
    return OnnxDecoder(
        cell.to_onnx_order().to_operator_weights(builder),
        builder.constant(places[:, None]) if places.shape[1] else None,
    )

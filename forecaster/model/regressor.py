"""The network: a recurrence over segments of scaled values, and a decoder for the values that follow.

The outputs are the parameters of a head and correct a baseline forecast. The network predicts y and all channels alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from forecaster.model import baseline, running, running_sizes
from forecaster.model.heads import Head, Symbols, create_head
from forecaster.model.recurrent import RecurrentStack, RecurrentState, run_cell
from forecaster.model.stacking import expand_to_rows
from forecaster.shapes import Bool, Float, Float64, Int
from forecaster.spec import Layout, Spec

_SEGMENT_EMBEDDING_SIZE = 16  # size of the direct decoder's embedding of each segment position in the block
_MAX_EMBEDDING_SIZE = 16  # largest embedding size of a static category


class Regressor(nn.Module):
    """Recurrence, decoder and head, in scaled space, together with the settings they were built for.

    In shapes, `row_target` runs over the targets of all rows: y and then the channels of the first row, and so on.

    Attributes:
        layout: What the network reads and predicts (see `forecaster.spec`); its fields are attributes of the network too.
        head: Interprets the outputs.
    """

    def __init__(self, spec: Spec, *, season: int, num_covariates: int, static_cardinalities: Sequence[int]) -> None:
        super().__init__()
        self.scaling, self.transform, self.base, self.season = spec.scaling, spec.transform, spec.base, season
        self.long_season = spec.long_season
        self.layout = layout = Layout.from_spec(spec, season=season)
        self.segment, self.block, self.lags = layout.segment, layout.block, spec.lags
        self.lookback, self.pre_context = layout.lookback, layout.pre_context
        self.context, self.reads, self.num_targets = layout.context, layout.reads, layout.num_targets
        self.head: Head = create_head(spec.head)
        hidden = spec.network.hidden
        sizes = [min(_MAX_EMBEDDING_SIZE, cardinality) for cardinality in static_cardinalities]
        # Index 0 is any category that training did not see; its embedding is zero.
        self.groups = nn.ModuleList(
            nn.Embedding(cardinality + 1, size, padding_idx=0)
            for cardinality, size in zip(static_cardinalities, sizes, strict=True)
        )
        self.is_running, self.features = spec.scaling == "running", spec.features
        self.num_symbols = len(spec.head.vocabulary)  # that each value is expanded to; 0 for numbers
        numbers_per_value = self.num_symbols if spec.head.is_symbolic else 1
        features_per_target = (
            spec.segment * (1 + numbers_per_value * (1 + len(spec.lags)))
            if spec.features == "values"
            else running_sizes.num_features(block=spec.block) + spec.segment * len(spec.lags)
        )
        input_size = self.num_targets * features_per_target + spec.segment * num_covariates + sum(sizes)
        self.embedding = nn.Linear(input_size, hidden) if spec.network.embed else None
        self.recurrent = RecurrentStack(spec.network, input_size=hidden if spec.network.embed else input_size)
        self.output_size = hidden * (1 if self.embedding is None else 2)
        self.origins = spec.training.origins
        # Steps of a block that are trained; a pretrained block may be longer than the horizon.
        self.trained_steps = min(spec.horizon, spec.block) if spec.decoder == "block" else spec.block
        self.num_covariates, self.decoder_kind = num_covariates, spec.decoder
        places = {"rollout": (1, 0), "block": (1, 0), "direct": (spec.block // spec.segment, _SEGMENT_EMBEDDING_SIZE)}
        self.places = nn.Parameter(torch.empty(places[spec.decoder]))
        nn.init.normal_(self.places, std=_SEGMENT_EMBEDDING_SIZE**-0.5)
        self.num_weights = running_sizes.NUM_FORECASTS if spec.base == "mixture" else 0
        params_per_step = self.num_targets * (self.head.num_params + self.num_weights)
        self.decoder: nn.GRUCell | nn.Linear | None
        if spec.decoder == "block":
            self.decoder = nn.Linear(self.output_size + spec.block * num_covariates, 2 * hidden)
            self.output = nn.Linear(2 * hidden, spec.block * params_per_step)
        else:
            decoder_input_size = self.places.shape[1] + spec.segment * num_covariates
            self.decoder = nn.GRUCell(decoder_input_size, self.output_size) if decoder_input_size else None
            self.output = nn.Linear(self.output_size, spec.segment * params_per_step)
        if spec.base != "zero" or spec.scaling in (
            "level_season",
            "running",
        ):  # an untrained network predicts its baseline, or level and season
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)

    def window_length(self, max_history: int) -> int:
        """See `Layout.window_length`."""
        return self.layout.window_length(max_history)

    def embed_static(self, static: Int[Tensor, "row static"] | None, *, rows: int) -> Float[Tensor, "row group"]:
        """Embeds the static categories of each row."""
        if not self.groups:
            return self.output.weight.new_zeros(rows, 0)
        assert static is not None, "the network reads categories"
        unknown = static == 0  # masked here, because under vmap an embedding ignores `padding_idx`
        embeddings = [group(static[:, index]) for index, group in enumerate(self.groups)]
        return torch.cat(
            [embedding.masked_fill(unknown[:, index, None], 0.0) for index, embedding in enumerate(embeddings)], dim=1
        )

    def encode(
        self,
        values: Float[Tensor, "row_target step"],
        observed: Bool[Tensor, "row_target step"],
        filled_values: Float[Tensor, "row_target back_and_step"],
        covariates: Float[Tensor, "row step covariate"] | None,
        statistics: Float64[Tensor, "row_target segment statistic"] | None = None,
    ) -> Float[Tensor, "row segment feature"]:
        """Builds the input of each recurrence step: values (0 where missing), their mask, lags and covariates.

        Symbols are expanded to one number each (one-hot); an unknown one has zeros, and differs from a missing one by the mask.

        No weights are involved; `run_recurrence` adds the static categories, whose embeddings are learned.
        `filled_values` holds the `lookback` values before the first step followed by the steps themselves, gaps filled.
        A lag of a segment is counted back from the *next* segment, whose values the step predicts. All features of y
        precede those of the first channel, and so on; the covariates of the row come last.
        """
        shape = (len(values), -1, self.segment)
        parts = [values.reshape(shape), observed.reshape(shape).float()]
        segments = parts[0].shape[1]
        lags: list[Tensor] = []
        if self.lags:
            segment_ends = self.lookback + self.segment * torch.arange(1, segments + 1, device=values.device)
            slices = filled_values.unfold(1, self.segment, 1)
            lags = [slices[:, segment_ends - lag] for lag in self.lags]
        if isinstance(self.head, Symbols):
            parts[0], *lags = (self.head.expand(part).flatten(2) for part in (parts[0], *lags))
        if statistics is not None:
            recent = filled_values.unfold(1, self.lookback, 1)[:, self.segment :: self.segment]
            level, unit = (part[..., None] for part in self.measure_units(recent, statistics))
            lags = [(lag - level) / unit for lag in lags]
            if self.features == "seasonal":
                parts = [self._view_past(recent, statistics).features]
            else:
                parts[0] = (parts[0] - level) / unit * parts[1]
        parts += lags
        if self.num_targets > 1:
            per_target = torch.cat(parts, dim=-1)
            parts = [per_target.reshape(-1, self.num_targets, segments, per_target.shape[2]).transpose(1, 2).flatten(2)]
        if self.num_covariates:
            assert covariates is not None, "the network reads covariates"
            parts.append(covariates.reshape(len(covariates), segments, -1))
        return torch.cat(parts, dim=-1)

    def run_recurrence(
        self,
        inputs: Float[Tensor, "row segment feature"],
        static: Float[Tensor, "row group"],
        state: RecurrentState,
        mask: Bool[Tensor, "row segment"],
    ) -> tuple[Float[Tensor, "row segment hidden"], RecurrentState]:
        """Runs the recurrence on encoded inputs and static embeddings."""
        if self.groups:
            inputs = torch.cat([inputs, static[:, None].expand(-1, inputs.shape[1], -1)], dim=-1)
        if self.embedding is None:
            outputs, next_state = self.recurrent(inputs, state, mask)
            return outputs, next_state
        features = functional.silu(self.embedding(inputs)) * mask[..., None]
        outputs, next_state = self.recurrent(features, state, mask)
        return torch.cat([outputs, features], dim=-1), next_state

    def decode(
        self,
        output: Float[Tensor, "row *axes hidden"],
        recent: Float[Tensor, "row_target *axes back"],
        future_covariates: Float[Tensor, "row *axes step covariate"] | None,
        statistics: Float64[Tensor, "row_target *axes statistic"] | None = None,
    ) -> Float[Tensor, "row_target *axes step param"]:
        """Returns the head's parameters for the next `block` steps, given the recurrence's output and the latest values.

        They are in the scaled units of the row or, with statistics, in those of the running scale (see `measure_units`).

        Each segment of the block gets one more step of the recurrence's output, with the segment's embedding and its
        covariates as inputs (as in the parallel decoder of Lin et al. 2023). Without such inputs the output is used as is.
        A block decoder has a hidden layer instead, which reads the output and the covariates of the whole block.
        """
        raw = self._decode_outputs(output, future_covariates)
        raw = raw.reshape(*recent.shape[:-1], self.block, self.head.num_params + self.num_weights)
        if self.base == "zero":
            return raw
        if self.base == "mixture":
            assert statistics is not None, "a mixture is in units of the running scale"
            view = self._view_past(recent, statistics)
            mixture = running.combine_forecasts(raw[..., self.head.num_params :], view.forecasts)
            return self.head.shift(raw[..., : self.head.num_params], mixture)
        offset = baseline.baseline_forecast(self.base, recent, season=self.season, steps=self.block)
        if statistics is not None:
            level, unit = (part[..., None] for part in self.measure_units(recent, statistics))
            offset = (offset - level) / unit
        return self.head.shift(raw, offset)

    def is_scored(self, targets: Float64[Tensor, "*axes"]) -> Bool[Tensor, "*axes"]:
        """Whether a target counts in a loss: it was observed and, if it is a symbol, is in the vocabulary."""
        return self.head.is_known(targets) if isinstance(self.head, Symbols) else ~targets.isnan()

    def _view_past(
        self, recent: Float[Tensor, "*axes back"], statistics: Float64[Tensor, "*axes statistic"]
    ) -> running.RunningView:
        return running.view_past(recent, statistics, season=self.season, long_season=self.long_season, block=self.block)

    def _decode_outputs(
        self,
        output: Float[Tensor, "row *axes hidden"],
        future_covariates: Float[Tensor, "row *axes step covariate"] | None,
    ) -> Tensor:
        """Returns the outputs of the last layer, by row, target, axes and step."""
        axes, count = output.shape[:-1], self.places.shape[-2]
        assert future_covariates is not None or not self.num_covariates, "the network reads covariates"
        if isinstance(self.decoder, nn.Linear):
            parts = [output] if future_covariates is None else [output, future_covariates.reshape(*axes, -1)]
            raw: Tensor = self.output(functional.silu(self.decoder(torch.cat(parts, dim=-1))))
            return raw.reshape(*axes, self.num_targets, -1).movedim(-2, 1) if self.num_targets > 1 else raw
        hidden = output
        if self.decoder is not None:
            hidden = output[..., None, :].expand(*axes, count, -1)
            inputs = expand_to_rows(self.places, axes)
            if future_covariates is not None:
                inputs = torch.cat([inputs, future_covariates.reshape(*axes, count, -1)], dim=-1)
            flat = run_cell(self.decoder, inputs.reshape(-1, inputs.shape[-1]), hidden.reshape(-1, hidden.shape[-1]))
            hidden = flat.reshape(hidden.shape)
        raw = self.output(hidden)
        return raw.reshape(*axes, count, self.num_targets, -1).movedim(-2, 1) if self.num_targets > 1 else raw

    def measure_units(
        self,
        recent: Float[Tensor, "row_target *axes back"],
        statistics: Float64[Tensor, "row_target *axes statistic"] | None,
    ) -> running.RunningScale:
        """Returns the level and the unit, in scaled units, that the outputs of `decode` refer to; 0 and 1 unless they run."""
        if statistics is None:
            return running.RunningScale(torch.zeros_like(recent[..., 0]), torch.ones_like(recent[..., 0]))
        return running.measure_running_scale(recent, statistics, season=self.season)


def build_network(
    spec: Spec,
    *,
    seed: int,
    season: int | None = None,
    num_covariates: int = 0,
    static_cardinalities: Sequence[int] = (),
) -> Regressor:
    """Builds a network with random weights that depend only on the specification, the sizes and the seed.

    Args:
        spec: Specification of the network.
        seed: Seed of the weights.
        season: Season of the data, used if the specification leaves it to the frequency.
        num_covariates: Number of known-future covariates per time step.
        static_cardinalities: Number of known values of each static category.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Regressor(
            spec,
            season=season or spec.season or 1,
            num_covariates=num_covariates,
            static_cardinalities=static_cardinalities,
        )

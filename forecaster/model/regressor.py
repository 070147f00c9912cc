"""The network: a recurrence that reads scaled values segment by segment, and a decoder that says what follows.

What it says is the correction of a base forecast, as the parameters of a head; of y, and of every channel in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from forecaster.model import baseline
from forecaster.model.heads import Head, create_head
from forecaster.model.recurrent import RecurrentStack, RecurrentState, run_cell
from forecaster.shapes import Bool, Float, Int
from forecaster.spec import Layout, Spec

_SEGMENT_EMBEDDING_SIZE = 16  # size of what the direct decoder learns of each segment's place in the block
_MAX_EMBEDDING_SIZE = 16  # size of what is learned of each static category, at the most


class Regressor(nn.Module):
    """Recurrence, decoder and head, in scaled space. What they were built for travels with them.

    Attributes:
        outline: How it reads and tells, as `forecaster.spec` says; its parts are attributes too. Each target is a track.
        head: What the outputs mean.
    """

    def __init__(self, spec: Spec, *, season: int, num_covariates: int, static_cardinalities: Sequence[int]) -> None:
        super().__init__()
        self.scaling, self.transform, self.base, self.season = spec.scaling, spec.transform, spec.base, season
        self.layout = outline = Layout.from_spec(spec, season=season)
        self.segment, self.block, self.lags = outline.segment, outline.block, spec.lags
        self.lookback, self.pre_context = outline.lookback, outline.pre_context
        self.context, self.reads, self.num_targets = outline.context, outline.reads, outline.num_targets
        self.head: Head = create_head(spec.head)
        hidden = spec.network.hidden
        sizes = [min(_MAX_EMBEDDING_SIZE, known) for known in static_cardinalities]
        # Number 0 stands for any category not seen in training: it adds nothing.
        self.groups = nn.ModuleList(
            nn.Embedding(known + 1, size, padding_idx=0)
            for known, size in zip(static_cardinalities, sizes, strict=True)
        )
        seen = self.num_targets * (2 + len(spec.lags)) + num_covariates
        self.recurrent = RecurrentStack(spec.network, input_size=spec.segment * seen + sum(sizes))
        self.num_covariates, self.is_direct = num_covariates, spec.decoder == "direct"
        self.places = nn.Parameter(
            torch.randn(spec.block // spec.segment, _SEGMENT_EMBEDDING_SIZE if self.is_direct else 0)
            / _SEGMENT_EMBEDDING_SIZE**0.5
        )
        further = self.places.shape[1] + spec.segment * num_covariates
        self.decoder = nn.GRUCell(further, hidden) if further else None
        self.output = nn.Linear(hidden, self.num_targets * spec.segment * self.head.num_params)
        if (
            spec.base != "zero" or spec.scaling == "level_season"
        ):  # an untrained network is its base, or level and season
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)

    def window_length(self, max_history: int) -> int:
        """As `Layout.window_length`."""
        return self.layout.window_length(max_history)

    def embed_static(self, static: Int[Tensor, "row static"] | None, *, rows: int) -> Float[Tensor, "row group"]:
        """What is known of each row for good: its categories."""
        if not self.groups:
            return self.output.weight.new_zeros(rows, 0)
        assert static is not None, "the network reads categories"
        unknown = static == 0  # masked here: under vmap an embedding forgets that its first row learns nothing
        each = [group(static[:, number]) for number, group in enumerate(self.groups)]
        return torch.cat([one.masked_fill(unknown[:, number, None], 0.0) for number, one in enumerate(each)], dim=1)

    def encode(
        self,
        values: Float[Tensor, "track step"],
        observed: Bool[Tensor, "track step"],
        filled_values: Float[Tensor, "track back_and_step"],
        covariates: Float[Tensor, "row step covariate"] | None,
    ) -> Float[Tensor, "row segment feature"]:
        """What each step of the recurrence reads: its values (0 where missing), whether they were observed, lags, covariates.

        No weight has a part in it; the categories, whose numbers are learned, come to it in `run_recurrence`.
        `filled_values` holds the `lookback` values before the first step and then the steps themselves, gaps filled. A lag of a segment
        is a value that many steps before the *next* segment, whose points are what the step is to foretell. All of y stands
        before all of the first channel, and so on; what is known of the row as a whole comes last.
        """
        shape = (len(values), -1, self.segment)
        parts = [values.reshape(shape), observed.reshape(shape).float()]
        segments = parts[0].shape[1]
        if self.lags:
            ends = self.lookback + self.segment * torch.arange(1, segments + 1, device=values.device)
            runs = filled_values.unfold(1, self.segment, 1)
            parts += [runs[:, ends - lag] for lag in self.lags]
        if self.num_targets > 1:
            each = torch.cat(parts, dim=-1)
            parts = [each.reshape(-1, self.num_targets, segments, each.shape[2]).transpose(1, 2).flatten(2)]
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
        """Runs the recurrence over what was encoded, beside what is known of each row for good."""
        if self.groups:
            inputs = torch.cat([inputs, static[:, None].expand(-1, inputs.shape[1], -1)], dim=-1)
        outputs, after = self.recurrent(inputs, state, mask)
        return outputs, after

    def decode(
        self,
        output: Float[Tensor, "row *axes hidden"],
        recent: Float[Tensor, "track *axes back"],
        future_covariates: Float[Tensor, "row *axes step covariate"] | None,
    ) -> Float[Tensor, "track *axes step param"]:
        """The head's parameters for the next `block` points, given the recurrence's output and the latest values.

        The recurrence's output takes one more step, for each segment of the block apart, with the segment's place and its
        covariates as input (as the parallel decoder of Lin et al. 2023); where there are neither, it is taken as it is.
        """
        axes, count = output.shape[:-1], len(self.places)
        each = output
        if self.decoder is not None:
            each = output[..., None, :].expand(*axes, count, -1)
            inputs = self.places.expand(*axes, count, -1)
            if self.num_covariates:
                assert future_covariates is not None, "the network reads covariates"
                inputs = torch.cat([inputs, future_covariates.reshape(*axes, count, -1)], dim=-1)
            flat = run_cell(self.decoder, inputs.reshape(-1, inputs.shape[-1]), each.reshape(-1, each.shape[-1]))
            each = flat.reshape(each.shape)
        raw: Tensor = self.output(each)
        if self.num_targets > 1:
            raw = raw.reshape(*axes, count, self.num_targets, -1).movedim(-2, 1)
        raw = raw.reshape(*recent.shape[:-1], self.block, self.head.num_params)
        if self.base == "zero":
            return raw
        return self.head.shift(raw, baseline.baseline_forecast(self.base, recent, season=self.season, steps=self.block))


def build_network(
    spec: Spec,
    *,
    seed: int,
    season: int | None = None,
    num_covariates: int = 0,
    static_cardinalities: Sequence[int] = (),
) -> Regressor:
    """A network with random weights: the same for the same specification and seed, whatever was drawn before.

    Args:
        spec: What it is.
        seed: Of its weights.
        season: That of the data, if the specification leaves it to the frequency.
        covariates: How many numbers are known ahead of each time point.
        groups: How many known values each static category has.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Regressor(
            spec,
            season=season or spec.season or 1,
            num_covariates=num_covariates,
            static_cardinalities=static_cardinalities,
        )

"""The head of symbolic sequences: the probability of each symbol of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from forecaster.errors import BadSpec
from forecaster.model.heads.head import FixedSupportHead, clamp_uniform
from forecaster.shapes import Bool, Float


@dataclass(frozen=True)
class Symbols(FixedSupportHead):
    """A categorical distribution over the symbols with the codes 1 to `size`. The code 0, unknown, has no probability.

    Attributes:
        size: Number of symbols.
        temperature: Divides the logits of a draw: below 1 the draws are more often the most probable symbol.
    """

    size: int
    temperature: float = 1.0
    uniforms_per_draw: ClassVar[int] = 1

    @property
    def num_params(self) -> int:
        """One logit per symbol."""
        return self.size

    def at_temperature(self, temperature: float) -> Symbols:
        """Returns the head that draws at another temperature."""
        return replace(self, temperature=temperature)

    def expand(self, codes: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes symbol"]:
        """Expands codes to one number per symbol, 1 for that of the code (one-hot); the code 0 has zeros only."""
        return functional.one_hot(codes.long(), self.size + 1)[..., 1:].to(codes)

    def is_known(self, codes: Float[Tensor, "*axes"]) -> Bool[Tensor, "*axes"]:
        """Whether a code is that of a symbol; NaN and 0 are not."""
        return codes > 0

    def probabilities(self, params: Float[Tensor, "*axes param"]) -> Float[Tensor, "*axes symbol"]:
        """Returns the probability of each symbol."""
        return params.softmax(-1)

    def loss(self, params: Float[Tensor, "*axes param"], target: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Cross-entropy in nats: the negative logarithm of the probability of the target. The caller masks unknown targets."""
        index = (target.long() - 1).clamp(min=0)
        return -params.log_softmax(-1).gather(-1, index[..., None]).squeeze(-1)

    def mean(self, params: Float[Tensor, "*axes param"]) -> Float[Tensor, "*axes"]:
        """The code of the most probable symbol; of several, the first."""
        return 1.0 + params.argmax(-1).to(params)

    def sample(
        self, params: Float[Tensor, "*axes param"], noise: Float[Tensor, "*axes noise"]
    ) -> Float[Tensor, "*axes"]:
        """Draws by inversion: the first symbol up to which the probabilities sum to the uniform or more."""
        cumulative = (params.double() / self.temperature).softmax(-1).cumsum(-1)
        below = (cumulative < clamp_uniform(noise[..., 0]).double()[..., None]).sum(-1)
        return 1.0 + below.clamp(max=self.size - 1).to(params)

    def quantiles(self, params: Float[Tensor, "*axes param"], levels: Sequence[float]) -> Float[Tensor, "*axes level"]:
        """Raises BadSpec: symbols have no order."""
        raise BadSpec(
            "Expected a head of numbers for quantiles; a symbols head has none, because symbols have no order. Use the "
            "probabilities of the symbols.",
            where="head.kind",
        )

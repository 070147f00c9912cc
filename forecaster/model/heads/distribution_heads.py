"""Heads with a likelihood: Gaussian, Student's t, negative binomial, and categorical over bins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from forecaster.model.heads.head import (
    FixedSupportHead,
    LocationHead,
    clamp_uniform,
    enforce_rising,
    levels_tensor,
    to_positive,
    validate_levels,
)
from forecaster.model.quantiles import log_gamma_ratio, negative_binomial_quantile, student_t_coefficients
from forecaster.shapes import Float, Float64


@dataclass(frozen=True)
class Gaussian(LocationHead):
    """A normal distribution: the mean, and the standard deviation after a softplus."""

    num_params: ClassVar[int] = 2
    uniforms_per_draw: ClassVar[int] = 1

    def loss(self, params: Float[Tensor, "*axes param"], target: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Negative log density (Salinas et al. 2020, section 3.1)."""
        width = to_positive(params[..., 1])
        return ((target - params[..., 0]) / width) ** 2 / 2 + width.log() + math.log(2 * math.pi) / 2

    def sample(
        self, params: Float[Tensor, "*axes param"], noise: Float[Tensor, "*axes noise"]
    ) -> Float[Tensor, "*axes"]:
        """Draws by inversion."""
        normal: Tensor = torch.special.ndtri(clamp_uniform(noise[..., 0]))
        return params[..., 0] + to_positive(params[..., 1]) * normal

    def quantiles(self, params: Float[Tensor, "*axes param"], levels: Sequence[float]) -> Float[Tensor, "*axes level"]:
        """Exact quantiles."""
        normal = torch.special.ndtri(levels_tensor(levels)).to(params)
        return enforce_rising(params[..., :1] + to_positive(params[..., 1:]) * normal)


@dataclass(frozen=True)
class StudentT(LocationHead):
    """Student's t distribution: location, scale and degrees of freedom (always above 2; 3 for zero outputs).

    The scale is not the standard deviation, which is scale * sqrt(nu / (nu - 2)).
    """

    num_params: ClassVar[int] = 3
    uniforms_per_draw: ClassVar[int] = 2

    def loss(self, params: Float[Tensor, "*axes param"], target: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Negative log density."""
        scale, df = self._scale_and_df(params)
        z = (target - params[..., 0]) / scale
        constant = log_gamma_ratio(df / 2) - (df * math.pi).log() / 2 - scale.log()
        return (df + 1) / 2 * (z**2 / df).log1p() - constant

    def sample(
        self, params: Float[Tensor, "*axes param"], noise: Float[Tensor, "*axes noise"]
    ) -> Float[Tensor, "*axes"]:
        """Bailey's polar method (1994) with radius and angle drawn directly, so that no draw is rejected."""
        scale, df = self._scale_and_df(params)
        radius = (df * torch.expm1(-2 / df * clamp_uniform(noise[..., 0]).log())).sqrt()
        return params[..., 0] + scale * radius * (2 * math.pi * noise[..., 1]).cos()

    def quantiles(self, params: Float[Tensor, "*axes param"], levels: Sequence[float]) -> Float[Tensor, "*axes level"]:
        """Evaluates a polynomial in 1/nu per level, fitted to quantiles that were computed by inverting the distribution."""
        scale, df = self._scale_and_df(params)
        x = (4 / df - 1)[..., None]
        *rest, first = torch.from_numpy(student_t_coefficients(validate_levels(levels))).to(params)
        value, last = first.expand(*x.shape[:-1], -1), torch.zeros_like(x)
        for coefficient in reversed(rest[1:]):  # Clenshaw 1955
            value, last = coefficient + 2 * x * value - last, value
        log_ratio = rest[0] + x * value - last
        normal = torch.special.ndtri(levels_tensor(levels)).to(params)
        return enforce_rising(params[..., :1] + scale[..., None] * normal * log_ratio.exp())

    def _scale_and_df(
        self, params: Float[Tensor, "*axes param"]
    ) -> tuple[Float[Tensor, "*axes"], Float[Tensor, "*axes"]]:
        return to_positive(params[..., 1]), 2 + to_positive(params[..., 2])


@dataclass(frozen=True)
class NegativeBinomial(FixedSupportHead):
    """Counts with mean mu and variance mu + alpha mu² (Salinas et al. 2020, section 3.1), both after a softplus.

    The head is for unscaled count data (non-negative integers). Zero outputs mean mu = alpha = 1; alpha is at least 1e-4
    (nearly Poisson). Draws and quantiles are exact for mu up to 1e4; beyond, they are those of the gamma distribution with
    the same mean and variance. The number of iterations depends on the data, so they cannot be exported. The computation
    is in float64, because differences of large log-gammas need it.
    """

    num_params: ClassVar[int] = 2
    uniforms_per_draw: ClassVar[int] = 1

    def loss(self, params: Float[Tensor, "*axes param"], target: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Negative log probability."""
        mean, dispersion = self._mean_and_dispersion(params)
        size, count = 1 / dispersion, target.double()
        spread = dispersion * mean
        log_coefficient = torch.lgamma(count + size) - torch.lgamma(count + 1) - torch.lgamma(size)
        return ((size + count) * spread.log1p() - count * spread.log() - log_coefficient).to(params)

    def mean(self, params: Float[Tensor, "*axes param"]) -> Float[Tensor, "*axes"]:
        """The mean, mu."""
        return to_positive(params[..., 0])

    def sample(
        self, params: Float[Tensor, "*axes param"], noise: Float[Tensor, "*axes noise"]
    ) -> Float[Tensor, "*axes"]:
        """Draws by inversion: the smallest count whose cumulative probability reaches the uniform."""
        return negative_binomial_quantile(*self._mean_and_dispersion(params), clamp_uniform(noise[..., 0]).double()).to(
            params
        )

    def quantiles(self, params: Float[Tensor, "*axes param"], levels: Sequence[float]) -> Float[Tensor, "*axes level"]:
        """Integer counts, computed as draws with the levels as uniforms."""
        mean, dispersion = self._mean_and_dispersion(params)
        level = levels_tensor(levels).to(params.device)
        shape = (*mean.shape, len(level))
        counts = negative_binomial_quantile(
            mean[..., None].expand(shape), dispersion[..., None].expand(shape), level.expand(shape)
        )
        return enforce_rising(counts.to(params))

    def _mean_and_dispersion(
        self, params: Float[Tensor, "*axes param"]
    ) -> tuple[Float64[Tensor, "*axes"], Float64[Tensor, "*axes"]]:
        return to_positive(params[..., 0].double()), to_positive(params[..., 1].double())


@dataclass(frozen=True)
class Categorical(FixedSupportHead):
    """A histogram: the probability of each of `bins` equal bins over [-bound, bound], uniform within a bin.

    Values beyond the bound count as in the outermost bin, so the bound should exceed the range of scaled data.
    """

    bins: int
    bound: float
    uniforms_per_draw: ClassVar[int] = 1

    @property
    def num_params(self) -> int:
        """One logit per bin."""
        return self.bins

    @property
    def bin_width(self) -> float:
        """Width of a bin."""
        return 2 * self.bound / self.bins

    def loss(self, params: Float[Tensor, "*axes param"], target: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Negative log density: cross entropy of the bin plus log(width), comparable with the other likelihoods."""
        index = ((target + self.bound) / self.bin_width).floor().clamp(0, self.bins - 1).long()
        return math.log(self.bin_width) - params.log_softmax(-1).gather(-1, index[..., None]).squeeze(-1)

    def mean(self, params: Float[Tensor, "*axes param"]) -> Float[Tensor, "*axes"]:
        """The expectation. Opposite bins are subtracted first, so that a symmetric histogram gives exactly 0."""
        probability = params.softmax(-1)
        centre = (torch.arange(self.bins, device=params.device) + 0.5) * self.bin_width - self.bound
        return ((probability - probability.flip(-1)) * centre.to(params)).sum(-1) / 2

    def sample(
        self, params: Float[Tensor, "*axes param"], noise: Float[Tensor, "*axes noise"]
    ) -> Float[Tensor, "*axes"]:
        """Draws by inversion, uniform within a bin."""
        probability = params.softmax(-1)
        return self._quantile(probability, probability.cumsum(-1), clamp_uniform(noise[..., 0]))

    def quantiles(self, params: Float[Tensor, "*axes param"], levels: Sequence[float]) -> Float[Tensor, "*axes level"]:
        """The same function as `sample`, with the levels as uniforms."""
        probability = params.softmax(-1)
        cumulative = probability.cumsum(-1)
        return enforce_rising(
            torch.stack(
                [self._quantile(probability, cumulative, level) for level in levels_tensor(levels).to(params)], dim=-1
            )
        )

    def _quantile(
        self,
        probability: Float[Tensor, "*axes bin"],
        cumulative: Float[Tensor, "*axes bin"],
        level: Float[Tensor, "*_"],
    ) -> Float[Tensor, "*axes"]:
        """Sums the fraction of each bin that lies below the quantile."""
        tiny = torch.finfo(probability.dtype).tiny
        below = (1 - (cumulative - level[..., None]) / probability.clamp(min=tiny)).clamp(0, 1)
        return below.sum(-1) * self.bin_width - self.bound

"""Output heads: the loss, point forecast, draws and quantiles of each kind of head.

Everything is in scaled units. Outputs of zero mean "no correction": the forecast of a shiftable head is then 0 with a
spread of about 1. Gradients stay finite for outputs up to 1e12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import NormalDist
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from forecaster.errors import BadSpec
from forecaster.model.quantiles import log_gamma_ratio, negative_binomial_quantile, student_t_coefficients
from forecaster.shapes import Float, Float64
from forecaster.spec import HeadSpec, PointLoss

MIN_SCALE = 1e-4  # lower bound of spreads and dispersions; without it a likelihood rewards overconfidence without limit


@runtime_checkable
class Head(Protocol):
    """Interprets `num_params` network outputs per target value.

    Everything except the draws and quantiles of `NegativeBinomial` takes a fixed number of tensor operations and can
    be exported.

    Attributes:
        num_params: Network outputs per target value.
        uniforms_per_draw: Uniform random numbers per draw; 0 if the head cannot draw.
        is_shiftable: Whether `shift` works, so that the head can correct a baseline.
    """

    @property
    def num_params(self) -> int: ...  # noqa: D102
    @property
    def uniforms_per_draw(self) -> int: ...  # noqa: D102
    @property
    def is_shiftable(self) -> bool: ...  # noqa: D102

    def loss(self, params: Float[Tensor, "*axes param"], target: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Returns the training loss of each element, not averaged. Targets are finite: the caller masks gaps first."""

    def mean(self, params: Float[Tensor, "*axes param"]) -> Float[Tensor, "*axes"]:
        """Returns the point forecast; it is also what is fed back when no path is drawn."""

    def sample(
        self, params: Float[Tensor, "*axes param"], noise: Float[Tensor, "*axes noise"]
    ) -> Float[Tensor, "*axes"]:
        """Draws each element; the result is finite and depends only on the element's own params and uniforms.

        Raises:
            BadSpec: The head has no distribution.
        """

    def quantiles(self, params: Float[Tensor, "*axes param"], levels: Sequence[float]) -> Float[Tensor, "*axes level"]:
        """Returns the quantiles of each element at ascending levels in (0, 1); they never cross.

        Raises:
            BadSpec: The head has no distribution.
        """

    def shift(
        self, params: Float[Tensor, "*axes param"], offset: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes param"]:
        """Returns the params of the same distribution moved by `offset`.

        Raises:
            BadSpec: The head cannot be shifted.
        """


def create_head(spec: HeadSpec) -> Head:
    """Creates the head of a specification."""
    match spec.kind:
        case "point":
            return Point(spec.loss, spec.delta)
        case "quantile":
            return Quantile(tuple(sorted({*spec.levels, 0.5})))
        case "gaussian":
            return Gaussian()
        case "student_t":
            return StudentT()
        case "neg_binomial":
            return NegativeBinomial()
        case "categorical":
            return Categorical(spec.bins, spec.bound)


class _LocationHead:
    """A head whose first parameter is its location: point forecast, draws and quantiles are shifted with it."""

    is_shiftable: ClassVar[bool] = True

    def mean(self, params: Float[Tensor, "*axes param"]) -> Float[Tensor, "*axes"]:
        return params[..., 0]

    def shift(
        self, params: Float[Tensor, "*axes param"], offset: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes param"]:
        return torch.cat([params[..., :1] + offset[..., None], params[..., 1:]], dim=-1)


class _FixedSupportHead:
    """A head with a fixed support, which cannot be shifted."""

    is_shiftable: ClassVar[bool] = False

    def shift(
        self, params: Float[Tensor, "*axes param"], offset: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes param"]:
        raise BadSpec(
            f"A {type(self).__name__} head supports only the base zero, since its values cannot be shifted. "
            "Choose base zero, or a point, quantile, gaussian or student_t head.",
            where="head.kind",
        )


@dataclass(frozen=True)
class Point(_LocationHead):
    """A point forecast: the mean under `mse`, the median under `mae`, and between the two under `huber` (Huber 1964)."""

    criterion: PointLoss = "mse"
    delta: float = 1.0
    num_params: ClassVar[int] = 1
    uniforms_per_draw: ClassVar[int] = 0

    def loss(self, params: Float[Tensor, "*axes param"], target: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Squared error, absolute error, or the Huber loss: e²/2 up to delta and delta (|e| - delta/2) beyond."""
        error = params[..., 0] - target
        match self.criterion:
            case "mse":
                return error**2
            case "mae":
                return error.abs()
            case "huber":
                clipped = error.clamp(-self.delta, self.delta)
                return clipped * (error - clipped / 2)

    def sample(
        self, params: Float[Tensor, "*axes param"], noise: Float[Tensor, "*axes noise"]
    ) -> Float[Tensor, "*axes"]:
        """Raises BadSpec: a point head has no distribution to draw from."""
        raise _no_distribution_error("draws")

    def quantiles(self, params: Float[Tensor, "*axes param"], levels: Sequence[float]) -> Float[Tensor, "*axes level"]:
        """Raises BadSpec: the quantiles of a point forecast come from calibration."""
        raise _no_distribution_error("quantiles")


@dataclass(frozen=True)
class Quantile(_LocationHead):
    """Quantiles at given levels, learned without a distribution (Koenker and Bassett 1978; Wen et al. 2017).

    The outputs are the median and a positive step from each level to the next, so that quantiles cannot cross (as in the
    incremental quantile functions of Park et al. 2022). Quantiles are linear between levels. Beyond the outermost levels
    the tails are exponential and pass through the two outermost quantiles (same paper). Zero outputs give the quantiles
    of the standard normal distribution.

    Attributes:
        levels: Ascending levels, including 0.5 and at least one more.
    """

    levels: tuple[float, ...]
    uniforms_per_draw: ClassVar[int] = 1

    @property
    def num_params(self) -> int:
        """One output for the median and one for each step."""
        return len(self.levels)

    def loss(self, params: Float[Tensor, "*axes param"], target: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Twice the pinball loss, averaged over the levels; approximates the CRPS (Gneiting and Ranjan 2011)."""
        error = target[..., None] - self._knots(params)
        levels = params.new_tensor(self.levels)
        return 2 * torch.maximum(levels * error, (levels - 1) * error).mean(-1)

    def sample(
        self, params: Float[Tensor, "*axes param"], noise: Float[Tensor, "*axes noise"]
    ) -> Float[Tensor, "*axes"]:
        """Draws by inversion: the quantile at the level of the uniform."""
        return params[..., 0] + (self._steps(params) * self._step_fractions(_clamp_uniform(noise[..., 0]))).sum(-1)

    def quantiles(self, params: Float[Tensor, "*axes param"], levels: Sequence[float]) -> Float[Tensor, "*axes level"]:
        """The same function as `sample`, with the levels as uniforms."""
        fractions = self._step_fractions(_levels_tensor(levels)).to(params)
        return _enforce_rising(params[..., :1] + (self._steps(params)[..., None, :] * fractions).sum(-1))

    def _knots(self, params: Float[Tensor, "*axes param"]) -> Float[Tensor, "*axes param"]:
        """Quantiles at the head's own levels: equal to `quantiles` there, but cheaper."""
        steps, median = self._steps(params).unbind(-1), self.levels.index(0.5)
        above = accumulate(steps[median:], torch.add, initial=params[..., 0])
        below = accumulate(reversed(steps[:median]), torch.sub, initial=params[..., 0])
        return torch.stack([*reversed(list(below)[1:]), *above], dim=-1)

    def _steps(self, params: Float[Tensor, "*axes param"]) -> Float[Tensor, "*axes step"]:
        normal = [NormalDist().inv_cdf(level) for level in self.levels]
        return _positive(params[..., 1:]) * params.new_tensor([high - low for low, high in pairwise(normal)])

    def _step_fractions(self, level: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes step"]:
        """Fraction of every step between the median and the quantile at a level; negative below the median."""
        knots = level.new_tensor(self.levels)
        low, high = knots[:-1], knots[1:]
        inside = ((level[..., None] - low) / (high - low)).clamp(0, 1)
        fractions = torch.where(high <= 0.5, inside - 1, inside)
        ends = self.levels
        left = (ends[0] / level).log().clamp(min=0) / math.log(ends[1] / ends[0])
        right = ((1 - ends[-1]) / (1 - level)).log().clamp(min=0) / math.log((1 - ends[-2]) / (1 - ends[-1]))
        step = torch.arange(len(low), device=level.device)
        return fractions - left[..., None] * (step == 0) + right[..., None] * (step == len(low) - 1)


@dataclass(frozen=True)
class Gaussian(_LocationHead):
    """A normal distribution: the mean, and the standard deviation after a softplus."""

    num_params: ClassVar[int] = 2
    uniforms_per_draw: ClassVar[int] = 1

    def loss(self, params: Float[Tensor, "*axes param"], target: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Negative log density (Salinas et al. 2020, section 3.1)."""
        width = _positive(params[..., 1])
        return ((target - params[..., 0]) / width) ** 2 / 2 + width.log() + math.log(2 * math.pi) / 2

    def sample(
        self, params: Float[Tensor, "*axes param"], noise: Float[Tensor, "*axes noise"]
    ) -> Float[Tensor, "*axes"]:
        """Draws by inversion."""
        normal: Tensor = torch.special.ndtri(_clamp_uniform(noise[..., 0]))
        return params[..., 0] + _positive(params[..., 1]) * normal

    def quantiles(self, params: Float[Tensor, "*axes param"], levels: Sequence[float]) -> Float[Tensor, "*axes level"]:
        """Exact quantiles."""
        normal = torch.special.ndtri(_levels_tensor(levels)).to(params)
        return _enforce_rising(params[..., :1] + _positive(params[..., 1:]) * normal)


@dataclass(frozen=True)
class StudentT(_LocationHead):
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
        radius = (df * torch.expm1(-2 / df * _clamp_uniform(noise[..., 0]).log())).sqrt()
        return params[..., 0] + scale * radius * (2 * math.pi * noise[..., 1]).cos()

    def quantiles(self, params: Float[Tensor, "*axes param"], levels: Sequence[float]) -> Float[Tensor, "*axes level"]:
        """Evaluates a polynomial in 1/nu per level, fitted to quantiles that were computed by inverting the distribution."""
        scale, df = self._scale_and_df(params)
        x = (4 / df - 1)[..., None]
        *rest, first = torch.from_numpy(student_t_coefficients(_validate_levels(levels))).to(params)
        value, last = first.expand(*x.shape[:-1], -1), torch.zeros_like(x)
        for coefficient in reversed(rest[1:]):  # Clenshaw 1955
            value, last = coefficient + 2 * x * value - last, value
        log_ratio = rest[0] + x * value - last
        normal = torch.special.ndtri(_levels_tensor(levels)).to(params)
        return _enforce_rising(params[..., :1] + scale[..., None] * normal * log_ratio.exp())

    def _scale_and_df(
        self, params: Float[Tensor, "*axes param"]
    ) -> tuple[Float[Tensor, "*axes"], Float[Tensor, "*axes"]]:
        return _positive(params[..., 1]), 2 + _positive(params[..., 2])


@dataclass(frozen=True)
class NegativeBinomial(_FixedSupportHead):
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
        return _positive(params[..., 0])

    def sample(
        self, params: Float[Tensor, "*axes param"], noise: Float[Tensor, "*axes noise"]
    ) -> Float[Tensor, "*axes"]:
        """Draws by inversion: the smallest count whose cumulative probability reaches the uniform."""
        return negative_binomial_quantile(
            *self._mean_and_dispersion(params), _clamp_uniform(noise[..., 0]).double()
        ).to(params)

    def quantiles(self, params: Float[Tensor, "*axes param"], levels: Sequence[float]) -> Float[Tensor, "*axes level"]:
        """Integer counts, computed as draws with the levels as uniforms."""
        mean, dispersion = self._mean_and_dispersion(params)
        level = _levels_tensor(levels).to(params.device)
        shape = (*mean.shape, len(level))
        counts = negative_binomial_quantile(
            mean[..., None].expand(shape), dispersion[..., None].expand(shape), level.expand(shape)
        )
        return _enforce_rising(counts.to(params))

    def _mean_and_dispersion(
        self, params: Float[Tensor, "*axes param"]
    ) -> tuple[Float64[Tensor, "*axes"], Float64[Tensor, "*axes"]]:
        return _positive(params[..., 0].double()), _positive(params[..., 1].double())


@dataclass(frozen=True)
class Categorical(_FixedSupportHead):
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
        return self._quantile(probability, probability.cumsum(-1), _clamp_uniform(noise[..., 0]))

    def quantiles(self, params: Float[Tensor, "*axes param"], levels: Sequence[float]) -> Float[Tensor, "*axes level"]:
        """The same function as `sample`, with the levels as uniforms."""
        probability = params.softmax(-1)
        cumulative = probability.cumsum(-1)
        return _enforce_rising(
            torch.stack(
                [self._quantile(probability, cumulative, level) for level in _levels_tensor(levels).to(params)], dim=-1
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


def _no_distribution_error(feature: str) -> BadSpec:
    return BadSpec(
        f"A point head has no {feature}: it predicts one number per step. "
        "Calibrate its forecasts for intervals, or choose another head (quantile, gaussian, student_t).",
        where="head.kind",
    )


def _positive(raw: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """A softplus that is 1 at zero and never below MIN_SCALE."""
    return MIN_SCALE + functional.softplus(raw + math.log(math.expm1(1 - MIN_SCALE)))


def _clamp_uniform(uniform: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Keeps uniforms away from 0 and 1, where a quantile may be infinite."""
    step = torch.finfo(uniform.dtype).eps / 2
    return uniform.clamp(step, 1 - step)


def _enforce_rising(quantiles: Float[Tensor, "*axes level"]) -> Float[Tensor, "*axes level"]:
    """Makes quantiles non-decreasing in their levels where they are so close that rounding would reorder them."""
    return quantiles.cummax(-1).values


def _validate_levels(levels: Sequence[float]) -> tuple[float, ...]:
    assert levels, "quantiles need at least one level"
    assert all(low < high for low, high in pairwise((0.0, *levels, 1.0))), (
        f"levels ascend within (0, 1); found {levels}"
    )
    return tuple(levels)


def _levels_tensor(levels: Sequence[float]) -> Float64[Tensor, "level"]:
    return torch.tensor(_validate_levels(levels), dtype=torch.float64)

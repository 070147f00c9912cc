"""Heads without a parametric distribution: a point forecast, and quantiles that never cross."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import NormalDist
from typing import ClassVar

import torch
from torch import Tensor

from forecaster.model.heads.head import (
    LocationHead,
    clamp_uniform,
    enforce_rising,
    levels_tensor,
    no_distribution_error,
    to_positive,
)
from forecaster.shapes import Float
from forecaster.spec import PointLoss


@dataclass(frozen=True)
class Point(LocationHead):
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
        raise no_distribution_error("draws")

    def quantiles(self, params: Float[Tensor, "*axes param"], levels: Sequence[float]) -> Float[Tensor, "*axes level"]:
        """Raises BadSpec: the quantiles of a point forecast come from calibration."""
        raise no_distribution_error("quantiles")


@dataclass(frozen=True)
class Quantile(LocationHead):
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
        return params[..., 0] + (self._steps(params) * self._step_fractions(clamp_uniform(noise[..., 0]))).sum(-1)

    def quantiles(self, params: Float[Tensor, "*axes param"], levels: Sequence[float]) -> Float[Tensor, "*axes level"]:
        """The same function as `sample`, with the levels as uniforms."""
        fractions = self._step_fractions(levels_tensor(levels)).to(params)
        return enforce_rising(params[..., :1] + (self._steps(params)[..., None, :] * fractions).sum(-1))

    def _knots(self, params: Float[Tensor, "*axes param"]) -> Float[Tensor, "*axes param"]:
        """Quantiles at the head's own levels: equal to `quantiles` there, but cheaper."""
        steps, median = self._steps(params).unbind(-1), self.levels.index(0.5)
        above = accumulate(steps[median:], torch.add, initial=params[..., 0])
        below = accumulate(reversed(steps[:median]), torch.sub, initial=params[..., 0])
        return torch.stack([*reversed(list(below)[1:]), *above], dim=-1)

    def _steps(self, params: Float[Tensor, "*axes param"]) -> Float[Tensor, "*axes step"]:
        normal = [NormalDist().inv_cdf(level) for level in self.levels]
        return to_positive(params[..., 1:]) * params.new_tensor([high - low for low, high in pairwise(normal)])

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

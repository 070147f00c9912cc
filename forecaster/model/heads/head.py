"""The contract of an output head, and what several heads share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from forecaster.errors import BadSpec
from forecaster.shapes import Float, Float64

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


class LocationHead:
    """A head whose first parameter is its location: point forecast, draws and quantiles are shifted with it."""

    is_shiftable: ClassVar[bool] = True

    def mean(self, params: Float[Tensor, "*axes param"]) -> Float[Tensor, "*axes"]:
        """Returns the location."""
        return params[..., 0]

    def shift(
        self, params: Float[Tensor, "*axes param"], offset: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes param"]:
        """Moves the location and leaves the other parameters."""
        return torch.cat([params[..., :1] + offset[..., None], params[..., 1:]], dim=-1)


class FixedSupportHead:
    """A head with a fixed support, which cannot be shifted."""

    is_shiftable: ClassVar[bool] = False

    def shift(
        self, params: Float[Tensor, "*axes param"], offset: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes param"]:
        """Raises BadSpec."""
        raise BadSpec(
            f"A {type(self).__name__} head supports only the base zero, since its values cannot be shifted. "
            "Choose base zero, or a point, quantile, gaussian or student_t head.",
            where="head.kind",
        )


def no_distribution_error(feature: str) -> BadSpec:
    """The error of a point head that has to give draws or quantiles."""
    return BadSpec(
        f"A point head has no {feature}: it predicts one number per step. "
        "Calibrate its forecasts for intervals, or choose another head (quantile, gaussian, student_t).",
        where="head.kind",
    )


def to_positive(raw: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """A softplus that is 1 at zero and never below MIN_SCALE."""
    return MIN_SCALE + functional.softplus(raw + math.log(math.expm1(1 - MIN_SCALE)))


def clamp_uniform(uniform: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Keeps uniforms away from 0 and 1, where a quantile may be infinite."""
    step = torch.finfo(uniform.dtype).eps / 2
    return uniform.clamp(step, 1 - step)


def enforce_rising(quantiles: Float[Tensor, "*axes level"]) -> Float[Tensor, "*axes level"]:
    """Makes quantiles non-decreasing in their levels where they are so close that rounding would reorder them."""
    return quantiles.cummax(-1).values


def validate_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """Asserts that levels ascend strictly within (0, 1)."""
    assert levels, "quantiles need at least one level"
    assert all(low < high for low, high in pairwise((0.0, *levels, 1.0))), (
        f"levels ascend within (0, 1); found {levels}"
    )
    return tuple(levels)


def levels_tensor(levels: Sequence[float]) -> Float64[Tensor, "level"]:
    """Validated levels in float64."""
    return torch.tensor(validate_levels(levels), dtype=torch.float64)

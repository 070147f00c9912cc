"""Output heads in the graph: the point forecasts and draws of `forecaster.model.heads`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

import numpy as np
from numpy.polynomial import Chebyshev

from forecaster.engines.onnx.builder import F32, F64, GraphBuilder, Value
from forecaster.model.heads import MIN_SCALE, Categorical, Gaussian, Head, NegativeBinomial, Point, Quantile, StudentT
from forecaster.shapes import Float

_UNIFORM_MARGIN = float(np.finfo(np.float32).eps / 2)  # distance that uniforms keep from 0 and 1
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class OnnxHeadParams:
    """The parameters of a head for every time point of a block; each is computed on demand.

    Attributes:
        hidden: Input of the output layer, [segment, row, hidden].
        weight: Weights of the output layer, by target, point and parameter.
        bias: Biases of the output layer.
        shift: Added to the first parameter, [segment, row_target, point]; None adds nothing.
    """

    hidden: Value
    weight: Float[np.ndarray, "hidden target point param"]
    bias: Float[np.ndarray, "target point param"]
    shift: Value | None

    def parameter(self, index: int) -> Value:
        """Computes one parameter, [segment, row_target, point]."""
        targets, points, _ = self.bias.shape
        raw = self._project(self.weight[..., index], self.bias[..., index])
        raw = raw.reshape(0, -1, points) if targets > 1 else raw
        return raw + self.shift if index == 0 and self.shift is not None else raw

    def parameters_from(self, start: int) -> Value:
        """Computes all parameters from `start` on, none of which is shifted: [segment, row_target, point, param]."""
        _, points, params = self.bias[..., start:].shape
        return self._project(self.weight[..., start:], self.bias[..., start:]).reshape(0, -1, points, params)

    def _project(self, weight: np.ndarray, bias: np.ndarray) -> Value:
        builder = self.hidden.builder
        return self.hidden @ builder.constant(weight.reshape(len(weight), -1)) + builder.constant(bias.reshape(-1))


def point_forecast(head: Head, params: OnnxHeadParams) -> Value:
    """Computes the point forecast, [segment, row_target, point]."""
    match head:
        case NegativeBinomial():
            return _positive(params.parameter(0))
        case Categorical():
            probability = params.parameters_from(0).softmax()
            bins = np.arange(head.bins)
            mirrored = probability.take(probability.builder.integers(bins[::-1].tolist()), axis=3)
            center = probability.builder.constant((bins + 0.5) * head.bin_width - head.bound)
            return ((probability - mirrored) * center).sum(3, keepdims=False) / 2.0
        case _:
            return params.parameter(0)


def can_sample(head: Head) -> bool:
    """Whether the graph can draw paths: the iterations of a negative binomial's draws depend on the data, so it cannot."""
    return not isinstance(head, (Point, NegativeBinomial))


def prepare_noise(head: Head, noise: Value) -> list[Value]:
    """Computes what draws need of uniforms [path_target, step, noise] alone: [path_target, step, any] each, for `sample`."""
    first = noise.slice_axis(2, 0, 1).clip(_UNIFORM_MARGIN, 1 - _UNIFORM_MARGIN)
    match head:
        case Quantile():
            return [_step_fractions(first, head.levels)]
        case Gaussian():
            return [_normal_quantile(first)]
        case StudentT():
            return [first.log(), (noise.slice_axis(2, 1, 2) * (2 * math.pi)).cos()]
        case _:
            return [first]


def sample(head: Head, params: OnnxHeadParams, prepared: Sequence[Value]) -> Value:
    """Draws each point, [segment, row_target, point], from prepared noise, [segment, row_target, point, any] each."""
    match head:
        case Quantile():
            normal = [NormalDist().inv_cdf(level) for level in head.levels]
            widths = np.array([high - low for low, high in pairwise(normal)])
            steps = _positive(params.parameters_from(1)) * params.hidden.builder.constant(widths)
            return params.parameter(0) + (steps * prepared[0]).sum(3, keepdims=False)
        case Gaussian():
            return params.parameter(0) + _positive(params.parameter(1)) * prepared[0].squeeze(3)
        case StudentT():
            log_uniform, cosine = (each.squeeze(3) for each in prepared)
            df = _positive(params.parameter(2)) + 2.0
            radius = (df * _expm1(-2.0 / df * log_uniform)).sqrt()
            return params.parameter(0) + _positive(params.parameter(1)) * radius * cosine
        case Categorical():
            probability = params.parameters_from(0).softmax()
            exceeded = (probability.cumsum(3) - prepared[0]) / probability.clip(_TINY, None)
            return (1.0 - exceeded).clip(0.0, 1.0).sum(3, keepdims=False) * head.bin_width - head.bound
    raise AssertionError(f"{type(head).__name__} cannot be drawn in the graph")


def _positive(raw: Value) -> Value:
    return (raw + math.log(math.expm1(1 - MIN_SCALE))).softplus() + MIN_SCALE


def _expm1(x: Value) -> Value:
    """exp(x) - 1 without cancellation, as tanh(x / 2) (exp(x) + 1)."""
    return (x * 0.5).tanh() * (x.exp() + 1.0)


def _step_fractions(level: Value, levels: Sequence[float]) -> Value:
    """Fraction of every step between the median and the quantile at a level, [row_target, step, 1]."""
    builder, knots, count = level.builder, np.array(levels, dtype=np.float32), len(levels) - 1
    low, high = knots[:-1], knots[1:]
    fractions_inside = ((level - builder.constant(low)) / builder.constant(high - low)).clip(0.0, 1.0)
    fractions = fractions_inside - builder.constant((high <= 0.5).astype(np.float32))
    left = (levels[0] / level).log().clip(0.0, None) / math.log(levels[1] / levels[0])
    right = ((1 - levels[-1]) / (1.0 - level)).log().clip(0.0, None) / math.log((1 - levels[-2]) / (1 - levels[-1]))
    step = np.arange(count)
    return fractions - left * builder.constant(step == 0) + right * builder.constant(step == count - 1)


def _normal_quantile(uniform: Value) -> Value:
    """The normal quantile of uniforms that keep `_UNIFORM_MARGIN` from 0 and 1.

    With p the smaller tail, the quantile is a smooth function of sqrt(-2 log p), which a polynomial approximates to 1e-11.
    """
    precise = uniform.cast(F64)
    builder, is_upper = precise.builder, precise > 0.5
    radius = (builder.where(is_upper, 1.0 - precise, precise).log() * -2.0).sqrt()
    ends = (math.sqrt(2 * math.log(2)), math.sqrt(-2 * math.log(_UNIFORM_MARGIN / 2)))
    polynomial = Chebyshev.interpolate(_normal_tail_quantile, 24, domain=list(ends))
    x = (radius - (ends[0] + ends[1]) / 2) / ((ends[1] - ends[0]) / 2)
    magnitude = _clenshaw(builder, x, polynomial.coef)
    return builder.where(is_upper, magnitude, -magnitude).cast(F32)


def _normal_tail_quantile(radius: Float[np.ndarray, "_"]) -> Float[np.ndarray, "_"]:
    return np.array([-NormalDist().inv_cdf(math.exp(-r * r / 2)) for r in radius])


def _clenshaw(builder: GraphBuilder, x: Value, coefficients: Float[np.ndarray, "_"]) -> Value:
    """Evaluates a Chebyshev series (Clenshaw 1955)."""
    *_, last = coefficients
    two_x = x * 2.0
    value, previous = builder.constant(last, F64) + x * 0.0, x * 0.0
    for coefficient in coefficients[-2:0:-1]:
        value, previous = two_x * value - previous + float(coefficient), value
    return x * value - previous + float(coefficients[0])

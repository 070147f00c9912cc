"""Special functions that torch lacks: quantiles of Student's t and of the negative binomial, and a ratio of gammas."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import torch
from numpy.polynomial.chebyshev import chebpts1, chebvander
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from forecaster.shapes import Float, Float64

MAX_EXACT_MEAN = 1e4  # largest mean of a negative binomial whose draws and quantiles are exact


def log_gamma_ratio(n: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Returns log(Gamma(n + 1/2) / Gamma(n)) for n > 0 without cancellation.

    Uses Gamma(n + 1) = n Gamma(n) three times, then the expansion of DLMF 5.11.13; the error is below 1e-8 for n >= 1.
    """
    x = 1 / (n + 3)
    series = x * (-1 / 8 + x**2 * (1 / 192 + x**2 * (-1 / 640 + x**2 * (17 / 14336))))
    shift = (0.5 / n).log1p() + (0.5 / (n + 1)).log1p() + (0.5 / (n + 2)).log1p()
    return (n + 3).log() / 2 + series - shift


@lru_cache(maxsize=64)
def student_t_coefficients(levels: tuple[float, ...]) -> Float64[np.ndarray, "degree level"]:
    """Returns Chebyshev coefficients of log(t / z) in 4 / nu - 1, where t is Student's and z the normal quantile.

    At each node, t is computed as sqrt(nu) tan(angle). In terms of the angle the density is cos(angle) ** (nu - 1), which is
    smooth enough for a Gauss-Legendre rule to integrate to rounding error. The density decreases, so Newton's method never
    overshoots the root when it starts at z, on its left.
    """
    # The upper half suffices by symmetry. At the median t / z only has a limit, so a level nearby is used;
    # beyond 1 - 1e-7 the ratio is held constant.
    level = np.clip(np.maximum(levels, 1 - np.asarray(levels)), 0.5 + 1e-4, 1 - 1e-7)
    normal = np.array([NormalDist().inv_cdf(p) for p in level])
    nodes, weights = leggauss(200)

    x = chebpts1(25)
    df = (4 / (x + 1))[:, None]
    half_circle = [math.sqrt(math.pi) * math.exp(math.lgamma(nu / 2) - math.lgamma(nu / 2 + 0.5)) for nu in df[:, 0]]
    area = (level - 0.5) * np.array(half_circle)[:, None]
    angle = np.arctan(normal / np.sqrt(df))
    for _ in range(40):
        inside = angle[..., None] * (nodes + 1) / 2
        integral = angle / 2 * (np.cos(inside) ** (df[..., None] - 1) @ weights)
        angle = angle + (area - integral) / np.cos(angle) ** (df - 1)
    log_ratio = np.log(np.sqrt(df) * np.tan(angle) / normal)
    return np.asarray(np.linalg.solve(chebvander(x, len(x) - 1), log_ratio))


def negative_binomial_quantile(
    mean: Float64[Tensor, "*axes"], dispersion: Float64[Tensor, "*axes"], level: Float64[Tensor, "*axes"]
) -> Float64[Tensor, "*axes"]:
    """Returns the smallest count whose cumulative probability reaches a level, by doubling and then bisection."""
    low, high = torch.full_like(mean, -1.0), mean.ceil()
    for _ in range(64):
        too_low = _negative_binomial_cdf(high, mean, dispersion) < level
        if not too_low.any():
            break
        low, high = torch.where(too_low, high, low), torch.where(too_low, 2 * high + 1, high)
    for _ in range(64):
        if not (high - low > 1).any():
            break
        middle = ((low + high) / 2).floor().clamp(min=0)
        reached = _negative_binomial_cdf(middle, mean, dispersion) >= level
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return torch.where(mean.isfinite() & dispersion.isfinite(), high, torch.nan)


def _negative_binomial_cdf(
    count: Float64[Tensor, "*axes"], mean: Float64[Tensor, "*axes"], dispersion: Float64[Tensor, "*axes"]
) -> Float64[Tensor, "*axes"]:
    """P(X <= count) = I_p(1 / alpha, count + 1) with p = 1 / (1 + alpha mu) (DLMF 8.17.24); approximate for large means."""
    large = mean > MAX_EXACT_MEAN
    if not large.any():
        return _exact_negative_binomial_cdf(count, mean, dispersion)
    capped_mean = torch.where(large, 1.0, mean)
    # For large means: the gamma distribution with the same mean and variance.
    shape = 1 / (dispersion + 1 / mean)
    gamma_cdf = torch.special.gammainc(shape, shape * (count + 0.5) / mean)
    return torch.where(
        large, gamma_cdf, _exact_negative_binomial_cdf(torch.where(large, 0.0, count), capped_mean, dispersion)
    )


def _exact_negative_binomial_cdf(
    count: Float64[Tensor, "*axes"], mean: Float64[Tensor, "*axes"], dispersion: Float64[Tensor, "*axes"]
) -> Float64[Tensor, "*axes"]:
    a, b, spread = 1 / dispersion, count + 1, dispersion * mean
    log_p, log_q = -spread.log1p(), spread.log() - spread.log1p()
    log_front = a * log_p + b * log_q + torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
    swap = log_p.exp() > (a + 1) / (a + b + 2)
    first, second = torch.where(swap, b, a), torch.where(swap, a, b)
    tail = log_front.exp() * _beta_continued_fraction(first, second, torch.where(swap, log_q, log_p).exp()) / first
    return torch.where(swap, 1 - tail, tail)


def _beta_continued_fraction(
    a: Float64[Tensor, "*axes"], b: Float64[Tensor, "*axes"], x: Float64[Tensor, "*axes"]
) -> Float64[Tensor, "*axes"]:
    """The continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method.

    An element stops changing once it has converged, so that its value does not depend on the other elements.
    """
    tiny = 1e-300
    c, d = torch.ones_like(x), 1 / (1 - (a + b) * x / (a + 1)).clamp(min=tiny)
    fraction = d
    active = torch.ones_like(x, dtype=torch.bool)
    for m in range(1, 300):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        previous = fraction
        for term in (even, odd):
            d, c = 1 / _avoid_zero(1 + term * d), _avoid_zero(1 + term / c)
            fraction = torch.where(active, fraction * c * d, fraction)
        active = active & ((fraction - previous).abs() > 1e-13 * previous.abs())
        if not active.any():
            break
    return fraction


def _avoid_zero(values: Float64[Tensor, "*axes"]) -> Float64[Tensor, "*axes"]:
    return torch.where(values.abs() < 1e-300, 1e-300, values)

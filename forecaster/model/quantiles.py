"""What the likelihoods of some heads need and torch has not: quantiles of Student's t and of counts, a ratio of gammas."""

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

MAX_EXACT_MEAN = 1e4  # mean of a negative binomial whose draws and quantiles are exact


def log_gamma_ratio(n: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """The logarithm of Gamma(n + 1/2) / Gamma(n) for n > 0, without the cancellation of the two.

    By Gamma(n + 1) = n Gamma(n) three times, then the expansion of DLMF 5.11.13; the error is below 1e-8 for n >= 1.
    """
    x = 1 / (n + 3)
    series = x * (-1 / 8 + x**2 * (1 / 192 + x**2 * (-1 / 640 + x**2 * (17 / 14336))))
    shift = (0.5 / n).log1p() + (0.5 / (n + 1)).log1p() + (0.5 / (n + 2)).log1p()
    return (n + 3).log() / 2 + series - shift


@lru_cache(maxsize=64)
def student_t_coefficients(levels: tuple[float, ...]) -> Float64[np.ndarray, "degree level"]:
    """Chebyshev coefficients of log(t / z) as a function of 4 / nu - 1, for t the Student and z the normal quantile.

    t is found for each node with t = sqrt(nu) tan(angle), where the density becomes cos(angle) ** (nu - 1): smooth, so that
    a Gauss-Legendre rule integrates it to rounding. It falls, so Newton's method from the left, where z is, never passes
    the root.
    """
    # The upper half, by symmetry. At the median t / z has a limit, taken close by; beyond 1e-7 it is kept as it is there.
    level = np.clip(np.maximum(levels, 1 - np.asarray(levels)), 0.5 + 1e-4, 1 - 1e-7)
    normal = np.array([NormalDist().inv_cdf(one) for one in level])
    nodes, weights = leggauss(200)

    x = chebpts1(25)
    freedom = (4 / (x + 1))[:, None]
    half_circle = [
        math.sqrt(math.pi) * math.exp(math.lgamma(nu / 2) - math.lgamma(nu / 2 + 0.5)) for nu in freedom[:, 0]
    ]
    area = (level - 0.5) * np.array(half_circle)[:, None]
    angle = np.arctan(normal / np.sqrt(freedom))
    for _ in range(40):
        inside = angle[..., None] * (nodes + 1) / 2
        passed = angle / 2 * (np.cos(inside) ** (freedom[..., None] - 1) @ weights)
        angle = angle + (area - passed) / np.cos(angle) ** (freedom - 1)
    log_ratio = np.log(np.sqrt(freedom) * np.tan(angle) / normal)
    return np.asarray(np.linalg.solve(chebvander(x, len(x) - 1), log_ratio))


def negative_binomial_quantile(
    mean: Float64[Tensor, "*axes"], dispersion: Float64[Tensor, "*axes"], level: Float64[Tensor, "*axes"]
) -> Float64[Tensor, "*axes"]:
    """The smallest count whose cumulated probability reaches a level: doubling until it does, then bisection."""
    low, high = torch.full_like(mean, -1.0), mean.ceil()
    for _ in range(64):
        short = _negative_binomial_cdf(high, mean, dispersion) < level
        if not short.any():
            break
        low, high = torch.where(short, high, low), torch.where(short, 2 * high + 1, high)
    for _ in range(64):
        if not (high - low > 1).any():
            break
        middle = ((low + high) / 2).floor().clamp(min=0)
        enough = _negative_binomial_cdf(middle, mean, dispersion) >= level
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return torch.where(mean.isfinite() & dispersion.isfinite(), high, torch.nan)


def _negative_binomial_cdf(
    count: Float64[Tensor, "*axes"], mean: Float64[Tensor, "*axes"], dispersion: Float64[Tensor, "*axes"]
) -> Float64[Tensor, "*axes"]:
    """P(X <= count): I_p(1 / alpha, count + 1) with p = 1 / (1 + alpha mu) (DLMF 8.17.24); of large means, nearly that."""
    large = mean > MAX_EXACT_MEAN
    if not large.any():
        return _exact_negative_binomial_cdf(count, mean, dispersion)
    small = torch.where(large, 1.0, mean)
    # The gamma distribution of the same mean and variance.
    shape = 1 / (dispersion + 1 / mean)
    nearly = torch.special.gammainc(shape, shape * (count + 0.5) / mean)
    return torch.where(large, nearly, _exact_negative_binomial_cdf(torch.where(large, 0.0, count), small, dispersion))


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

    An element stops changing when it has converged, so that it does not depend on how long the others take.
    """
    tiny = 1e-300
    c, d = torch.ones_like(x), 1 / (1 - (a + b) * x / (a + 1)).clamp(min=tiny)
    found = d
    moving = torch.ones_like(x, dtype=torch.bool)
    for m in range(1, 300):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = found
        for term in (even, odd):
            d, c = 1 / _avoid_zero(1 + term * d), _avoid_zero(1 + term / c)
            found = torch.where(moving, found * c * d, found)
        moving = moving & ((found - before).abs() > 1e-13 * before.abs())
        if not moving.any():
            break
    return found


def _avoid_zero(values: Float64[Tensor, "*axes"]) -> Float64[Tensor, "*axes"]:
    return torch.where(values.abs() < 1e-300, 1e-300, values)

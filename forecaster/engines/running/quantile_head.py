"""The quantile head in numpy: `forecaster.model.heads.point_heads.Quantile`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from forecaster.shapes import Float, Float64

_MIN_SCALE = 1e-4  # as in forecaster.model.heads


class QuantileHead:
    """Quantiles that are linear between the levels of a head; a step leads from each level to the next."""

    def __init__(self, levels: Sequence[float]) -> None:
        self._levels = np.array(levels)
        normal = [NormalDist().inv_cdf(level) for level in levels]
        self._gaps = np.array([high - low for low, high in pairwise(normal)], dtype=np.float32)

    def steps(self, raw: Float[np.ndarray, "row step block"]) -> Float[np.ndarray, "row step block"]:
        """Returns the distances between neighbouring quantiles, given the outputs of the network."""
        shifted = raw + np.float32(math.log(math.expm1(1 - _MIN_SCALE)))
        positive = np.maximum(shifted, 0) + np.log1p(np.exp(-np.abs(shifted)))
        return np.asarray((_MIN_SCALE + positive) * self._gaps[:, None])

    def level_fractions(self, levels: tuple[float, ...]) -> Float[np.ndarray, "level step"]:
        """Returns the fractions of `step_fractions` at some levels; those of the latest levels are kept."""
        return _level_fractions(self, levels)

    def step_fractions(self, levels: Float64[np.ndarray, "*axes"]) -> Float64[np.ndarray, "*axes step"]:
        """Returns the fraction of every step between the median and the quantile at a level; negative below the median."""
        low, high, ends = self._levels[:-1], self._levels[1:], self._levels
        inside = np.clip((levels[..., None] - low) / (high - low), 0, 1)
        fractions = np.where(high <= 0.5, inside - 1, inside)
        fractions[..., 0] -= np.maximum(np.log(ends[0] / levels), 0) / math.log(ends[1] / ends[0])
        right = np.maximum(np.log((1 - ends[-1]) / (1 - levels)), 0)
        fractions[..., -1] += right / math.log((1 - ends[-2]) / (1 - ends[-1]))
        return np.asarray(fractions)


@lru_cache(maxsize=64)
def _level_fractions(head: QuantileHead, levels: tuple[float, ...]) -> Float[np.ndarray, "level step"]:
    return head.step_fractions(np.array(levels)).astype(np.float32)

"""A plain network in the compiled kernel with numpy alone: what a server's worker rolls on, without torch.

Which networks are plain, `fused.py` says, and what is computed too; scales are those of `scaling.py`. Both are held equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from forecaster.engines.engine import Known
from forecaster.errors import BundleDamaged
from forecaster.model.recurrence.library import LAYER, Shape, Stack, library
from forecaster.shapes import Bool, Float, Float64, Int
from forecaster.spec import Outline, Scaling, Spec

ALIKE = 1e-14  # as in scaling.py

Weights = Mapping[str, Float[np.ndarray, "..."]]  # by their names in a bundle


class Scale(NamedTuple):
    """scaled = (value - shift - profile) / width; as `scaling.Scale`, of values as they are.

    Attributes:
        shift: Level of each row.
        width: Spread of each row; zero maps all to 0, and back to shift and profile.
        profile: What each phase of the season adds; one zero where there is none.
    """

    shift: Float64[np.ndarray, "row"]
    width: Float64[np.ndarray, "row"]
    profile: Float64[np.ndarray, "row phase"]

    def apply(self, values: Float64[np.ndarray, "row step"]) -> Float[np.ndarray, "row step"]:
        """Data units to the network's, in float32; NaN stays."""
        flat = (self.width == 0)[:, None]
        scaled = (values - self._centre(values.shape[1], 0)) / np.where(flat, 1.0, self.width[:, None])
        told: np.ndarray = np.ascontiguousarray(np.where(flat & ~np.isnan(values), 0.0, scaled), dtype=np.float32)
        return told

    def undo(self, scaled: Float[np.ndarray, "row step"], *, time: int) -> Float64[np.ndarray, "row step"]:
        """The network's units to data units, from `time` steps after the first on."""
        return np.asarray(scaled.astype(np.float64) * self.width[:, None] + self._centre(scaled.shape[1], time))

    def _centre(self, steps: int, time: int) -> Float64[np.ndarray, "row _"]:
        if self.profile.shape[1] == 1:
            return np.asarray((self.shift + self.profile[:, 0])[:, None])
        phases = (time + np.arange(steps)) % self.profile.shape[1]
        return np.asarray(self.shift[:, None] + self.profile[:, phases])


class Plain:
    """A plain network, its weights laid out for the kernel; threads may share it."""

    def __init__(self, spec: Spec, weights: Weights, *, season: int, lanes: int, threads: int = 1) -> None:
        """Lays the weights out.

        Args:
            spec: Of a network that `plain` found to fit.
            weights: By their names in the bundle.
            season: Of the data.
            lanes: Floats of a vector, as the machine has them.
            threads: That share the rows of a call.
        """
        self._spec, self._season, self._threads = spec, season, threads
        self._outline = Outline.of(spec, season=season)
        params = len(weights["output.weight"]) // spec.segment
        shape = Shape(spec.network.cell, spec.network.layers, spec.network.hidden, spec.segment, params)
        self._stack = Stack(shape, weights, lanes=lanes)

    @property
    def draws(self) -> bool:
        """It does not."""
        return False

    def roll(
        self, known: Known, *, horizon: int, noise: Float[np.ndarray, "track ahead noise"] | None = None
    ) -> Float64[np.ndarray, "way horizon"]:
        """As `Engine.roll`."""
        assert noise is None, "it does not draw"
        values, segment = known.values, self._spec.segment
        scale = self._scale(values)
        told = np.empty((len(values), -(-horizon // segment) * segment), dtype=np.float32)
        self._stack.run(values=scale.apply(values), told=told, threads=self._threads)
        return scale.undo(told[:, :horizon], time=values.shape[1])

    def _scale(self, values: Float64[np.ndarray, "row step"]) -> Scale:
        spec = self._spec
        if spec.reads == "history" and values.shape[1] > spec.context:
            return settle(values, spec.scaling, steps=spec.context, season=self._season)
        return measure(values, spec.scaling, season=self._season)


def plain(spec: Spec, weights: Weights, *, season: int, features: int, threads: int = 1) -> Plain | None:
    """The network as the kernel runs it; None where there is no kernel, or it does not know such a network.

    Args:
        spec: Of the network.
        weights: By their names in the bundle; raises BundleDamaged if they are of other shapes.
        season: Of the data.
        features: Covariates and categories that it reads besides.
        threads: That share the rows of a call.
    """
    found, network = library(), spec.network
    lanes = 0 if found is None else found.lanes()
    known = not (features or spec.lags or spec.channels or network.residual or spec.decoder == "direct")
    alone = spec.base == "zero" and spec.transform == "none" and set(network.dilation_of_each) == {1}
    if not (lanes and known and alone and spec.head.shiftable):
        return None
    _check_shapes(spec, weights)
    return Plain(spec, weights, season=season, lanes=lanes, threads=threads)


def _check_shapes(spec: Spec, weights: Weights) -> None:
    hidden, gates = spec.network.hidden, {"gru": 3, "lstm": 4, "elman": 1}[spec.network.cell]
    expected: dict[str, tuple[int, ...]] = {}
    for number in range(spec.network.layers):
        inputs = hidden if number else 2 * spec.segment
        sizes = ((gates * hidden, inputs), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,))
        expected |= {f"recurrent.layers.{number}.{name}": size for name, size in zip(LAYER, sizes, strict=True)}
    rows = len(weights["output.weight"]) if "output.weight" in weights else spec.segment
    expected |= {"output.weight": (rows, hidden), "output.bias": (rows,)}
    odd = [name for name, size in expected.items() if name not in weights or weights[name].shape != size]
    if odd or not rows or rows % spec.segment:
        name = odd[0] if odd else "output.weight"
        found = weights[name].shape if name in weights else None
        raise BundleDamaged(
            f"Expected weights {name!r} of shape {expected[name]}; found {found}. The spec and the weights do not belong "
            "together: train again.",
            where="weights.safetensors",
        )


def measure(values: Float64[np.ndarray, "row context"], scaling: Scaling, *, season: int = 1) -> Scale:
    """The scale of each row, from its observed values; as `scaling.measure`."""
    zero, still = np.zeros(len(values)), np.zeros((len(values), 1))
    if scaling == "none":
        return Scale(zero, zero + 1, still)
    observed = ~np.isnan(values)
    known = np.where(observed, values, 0.0)
    if scaling == "mean_abs":
        return Scale(zero, np.abs(known).sum(1) / observed.sum(1).clip(1), still)
    if scaling == "level_season":
        return _level_season(known, observed, season)
    mean, deviation = _moments(known, observed)
    if scaling == "last":
        return Scale(np.take_along_axis(known, _last_observed(observed), axis=1)[:, 0], deviation, still)
    return Scale(mean, deviation, still)


def settle(values: Float64[np.ndarray, "row step"], scaling: Scaling, *, steps: int, season: int = 1) -> Scale:
    """The scale that each row keeps, as from the first step of the values on; as `scaling.settle`."""
    rows, length = values.shape
    observed = ~np.isnan(values)
    begin = np.where(observed.any(1), observed.argmax(1), length)
    if scaling == "none":
        return measure(values, scaling)
    left: Int[np.ndarray, "_"] = np.arange(rows)
    scale: Scale | None = None
    while scale is None or len(left):
        places = begin[left, None] + np.arange(min(steps, length))
        first = np.take_along_axis(values[left], places.clip(max=length - 1), axis=1)
        first[places >= length] = np.nan
        found = measure(first, scaling, season=season)
        if scale is None:
            scale = found
        else:
            for whole, part in zip(scale, found, strict=True):
                whole[left] = part
        settled = found.width > ALIKE * np.nan_to_num(np.abs(first)).max(1)
        left = left[~settled & (begin[left] + steps < length)]
        steps *= 2
    phases = scale.profile.shape[1]
    turned = (np.arange(phases) - begin[:, None]) % phases
    return scale._replace(profile=np.take_along_axis(scale.profile, turned, axis=1))


def _moments(
    known: Float64[np.ndarray, "row step"], observed: Bool[np.ndarray, "row step"]
) -> tuple[Float64[np.ndarray, "row"], Float64[np.ndarray, "row"]]:
    count = observed.sum(1).clip(1)
    mean = known.sum(1) / count
    return mean, np.sqrt((((known - mean[:, None]) * observed) ** 2).sum(1) / count)


def _last_observed(observed: Bool[np.ndarray, "row step"]) -> Int[np.ndarray, "row 1"]:
    return np.asarray(np.where(observed, np.arange(observed.shape[1]), 0).max(1, keepdims=True))


def _level_season(known: np.ndarray, observed: np.ndarray, season: int) -> Scale:
    """As `scaling._level_season`."""
    steps = known.shape[1]
    clock = np.arange(steps, dtype=np.float64)
    count = observed.sum(1, keepdims=True).clip(1)
    middle = (clock * observed).sum(1, keepdims=True) / count
    mean = known.sum(1, keepdims=True) / count
    spread = (((clock - middle) ** 2) * observed).sum(1, keepdims=True).clip(1e-12)
    slope = ((clock - middle) * (known - mean) * observed).sum(1, keepdims=True) / spread
    rest = (known - mean - slope * (clock - middle)) * observed
    phases = np.arange(steps) % season
    seen, sums = _by_phase(observed.astype(np.float64), season), _by_phase(rest, season)
    profile = np.where(seen >= 2, sums / seen.clip(1), 0.0)
    profile = profile - profile.mean(1, keepdims=True)
    straight = (known - profile[:, phases]) * observed
    late = observed & (clock >= _last_observed(observed) - season + 1)
    level = (straight * late).sum(1) / late.sum(1).clip(1)
    return Scale(level, _moments(straight, observed)[1], profile)


def _by_phase(values: Float64[np.ndarray, "row step"], season: int) -> Float64[np.ndarray, "row phase"]:
    """Sums over the steps of each phase."""
    rows, steps = values.shape
    whole = np.zeros((rows, -(-steps // season), season))
    whole.reshape(rows, -1)[:, :steps] = values
    return np.asarray(whole.sum(1))

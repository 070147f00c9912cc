"""A plain network in the compiled kernel with numpy alone: what a server's worker rolls on, without torch.

Which networks are plain, `fused.py` says, and what is computed too; scales are those of `scaling.py`. Both are held equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from forecaster.engines.engine import RolloutInput
from forecaster.errors import BundleDamaged
from forecaster.model.recurrence.library import LAYER_WEIGHTS, NetworkShape, PackedNetwork, load_library
from forecaster.shapes import Bool, Float, Float64, Int
from forecaster.spec import Layout, Scaling, Spec

WIDTH_TOLERANCE = 1e-14  # as in scaling.py

WeightArrays = Mapping[str, Float[np.ndarray, "..."]]  # by their names in a bundle


class ArrayScale(NamedTuple):
    """scaled = (value - shift - profile) / width; as `scaling.ArrayScale`, of values as they are.

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
        scaled = (values - self._center(values.shape[1], 0)) / np.where(flat, 1.0, self.width[:, None])
        told: np.ndarray = np.ascontiguousarray(np.where(flat & ~np.isnan(values), 0.0, scaled), dtype=np.float32)
        return told

    def undo(self, scaled: Float[np.ndarray, "row step"], *, time: int) -> Float64[np.ndarray, "row step"]:
        """The network's units to data units, from `time` steps after the first on."""
        return np.asarray(scaled.astype(np.float64) * self.width[:, None] + self._center(scaled.shape[1], time))

    def _center(self, steps: int, time: int) -> Float64[np.ndarray, "row _"]:
        if self.profile.shape[1] == 1:
            return np.asarray((self.shift + self.profile[:, 0])[:, None])
        phases = (time + np.arange(steps)) % self.profile.shape[1]
        return np.asarray(self.shift[:, None] + self.profile[:, phases])


class KernelEngine:
    """A plain network, its weights laid out for the kernel; threads may share it."""

    def __init__(self, spec: Spec, weights: WeightArrays, *, season: int, lanes: int, threads: int = 1) -> None:
        """Lays the weights out.

        Args:
            spec: Of a network that `build_kernel_engine` found to fit.
            weights: By their names in the bundle.
            season: Of the data.
            lanes: Floats of a vector, as the machine has them.
            threads: That share the rows of a call.
        """
        self._spec, self._season, self._threads = spec, season, threads
        self._layout = Layout.from_spec(spec, season=season)
        params = len(weights["output.weight"]) // spec.segment
        shape = NetworkShape(spec.network.cell, spec.network.layers, spec.network.hidden, spec.segment, params)
        self._packed_network = PackedNetwork(shape, weights, lanes=lanes)

    @property
    def can_sample(self) -> bool:
        """It does not."""
        return False

    def roll_out(
        self, inputs: RolloutInput, *, horizon: int, noise: Float[np.ndarray, "track ahead noise"] | None = None
    ) -> Float64[np.ndarray, "way horizon"]:
        """As `Backend.roll_out`."""
        assert noise is None, "it does not draw"
        values, segment = inputs.values, self._spec.segment
        scale = self._measure_scale(values)
        told = np.empty((len(values), -(-horizon // segment) * segment), dtype=np.float32)
        self._packed_network.run(values=scale.apply(values), forecast=told, threads=self._threads)
        return scale.undo(told[:, :horizon], time=values.shape[1])

    def _measure_scale(self, values: Float64[np.ndarray, "row step"]) -> ArrayScale:
        spec = self._spec
        if spec.reads == "history" and values.shape[1] > spec.context:
            return settle_scale(values, spec.scaling, initial_steps=spec.context, season=self._season)
        return measure_scale(values, spec.scaling, season=self._season)


def build_kernel_engine(
    spec: Spec, weights: WeightArrays, *, season: int, num_features: int, threads: int = 1
) -> KernelEngine | None:
    """The network as the kernel runs it; None where there is no kernel, or it does not know such a network.

    Args:
        spec: Of the network.
        weights: By their names in the bundle; raises BundleDamaged if they are of other shapes.
        season: Of the data.
        features: Covariates and categories that it reads besides.
        threads: That share the rows of a call.
    """
    found, network = load_library(), spec.network
    lanes = 0 if found is None else found.lanes()
    known = not (num_features or spec.lags or spec.channels or network.residual or spec.decoder == "direct")
    alone = spec.base == "zero" and spec.transform == "none" and set(network.layer_dilations) == {1}
    if not (lanes and known and alone and spec.head.is_shiftable):
        return None
    _check_shapes(spec, weights)
    return KernelEngine(spec, weights, season=season, lanes=lanes, threads=threads)


def _check_shapes(spec: Spec, weights: WeightArrays) -> None:
    hidden, gates = spec.network.hidden, {"gru": 3, "lstm": 4, "elman": 1}[spec.network.cell]
    expected: dict[str, tuple[int, ...]] = {}
    for number in range(spec.network.layers):
        inputs = hidden if number else 2 * spec.segment
        sizes = ((gates * hidden, inputs), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,))
        expected |= {f"recurrent.layers.{number}.{name}": size for name, size in zip(LAYER_WEIGHTS, sizes, strict=True)}
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


def measure_scale(values: Float64[np.ndarray, "row context"], scaling: Scaling, *, season: int = 1) -> ArrayScale:
    """The scale of each row, from its observed values; as `scaling.measure_scale`."""
    zero, still = np.zeros(len(values)), np.zeros((len(values), 1))
    if scaling == "none":
        return ArrayScale(zero, zero + 1, still)
    observed = ~np.isnan(values)
    known = np.where(observed, values, 0.0)
    if scaling == "mean_abs":
        return ArrayScale(zero, np.abs(known).sum(1) / observed.sum(1).clip(1), still)
    if scaling == "level_season":
        return _measure_level_season(known, observed, season)
    mean, deviation = _mean_and_std(known, observed)
    if scaling == "last":
        return ArrayScale(np.take_along_axis(known, _last_observed_index(observed), axis=1)[:, 0], deviation, still)
    return ArrayScale(mean, deviation, still)


def settle_scale(
    values: Float64[np.ndarray, "row step"], scaling: Scaling, *, initial_steps: int, season: int = 1
) -> ArrayScale:
    """The scale that each row keeps, as from the first step of the values on; as `scaling.settle_scale`."""
    rows, length = values.shape
    observed = ~np.isnan(values)
    begin = np.where(observed.any(1), observed.argmax(1), length)
    if scaling == "none":
        return measure_scale(values, scaling)
    left: Int[np.ndarray, "_"] = np.arange(rows)
    scale: ArrayScale | None = None
    while scale is None or len(left):
        places = begin[left, None] + np.arange(min(initial_steps, length))
        first = np.take_along_axis(values[left], places.clip(max=length - 1), axis=1)
        first[places >= length] = np.nan
        found = measure_scale(first, scaling, season=season)
        if scale is None:
            scale = found
        else:
            for whole, part in zip(scale, found, strict=True):
                whole[left] = part
        settled = found.width > WIDTH_TOLERANCE * np.nan_to_num(np.abs(first)).max(1)
        left = left[~settled & (begin[left] + initial_steps < length)]
        initial_steps *= 2
    phases = scale.profile.shape[1]
    turned = (np.arange(phases) - begin[:, None]) % phases
    return scale._replace(profile=np.take_along_axis(scale.profile, turned, axis=1))


def _mean_and_std(
    filled: Float64[np.ndarray, "row step"], observed: Bool[np.ndarray, "row step"]
) -> tuple[Float64[np.ndarray, "row"], Float64[np.ndarray, "row"]]:
    count = observed.sum(1).clip(1)
    mean = filled.sum(1) / count
    return mean, np.sqrt((((filled - mean[:, None]) * observed) ** 2).sum(1) / count)


def _last_observed_index(observed: Bool[np.ndarray, "row step"]) -> Int[np.ndarray, "row 1"]:
    return np.asarray(np.where(observed, np.arange(observed.shape[1]), 0).max(1, keepdims=True))


def _measure_level_season(filled: np.ndarray, observed: np.ndarray, season: int) -> ArrayScale:
    """As `scaling._measure_level_season`."""
    steps = filled.shape[1]
    clock = np.arange(steps, dtype=np.float64)
    count = observed.sum(1, keepdims=True).clip(1)
    middle = (clock * observed).sum(1, keepdims=True) / count
    mean = filled.sum(1, keepdims=True) / count
    spread = (((clock - middle) ** 2) * observed).sum(1, keepdims=True).clip(1e-12)
    slope = ((clock - middle) * (filled - mean) * observed).sum(1, keepdims=True) / spread
    rest = (filled - mean - slope * (clock - middle)) * observed
    phases = np.arange(steps) % season
    seen, sums = _sum_by_phase(observed.astype(np.float64), season), _sum_by_phase(rest, season)
    profile = np.where(seen >= 2, sums / seen.clip(1), 0.0)
    profile = profile - profile.mean(1, keepdims=True)
    straight = (filled - profile[:, phases]) * observed
    late = observed & (clock >= _last_observed_index(observed) - season + 1)
    level = (straight * late).sum(1) / late.sum(1).clip(1)
    return ArrayScale(level, _mean_and_std(straight, observed)[1], profile)


def _sum_by_phase(values: Float64[np.ndarray, "row step"], season: int) -> Float64[np.ndarray, "row phase"]:
    """Sums over the steps of each phase."""
    rows, steps = values.shape
    whole = np.zeros((rows, -(-steps // season), season))
    whole.reshape(rows, -1)[:, :steps] = values
    return np.asarray(whole.sum(1))

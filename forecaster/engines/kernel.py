"""The kernel engine: a whole rollout of a plain network in one call of the compiled kernel, from numpy alone.

The service's workers use it without importing torch; callers with tensors pass views of them (`Tensor.numpy`). All other
networks, and sample paths, are rolled out by `forecaster.model.rollout`, which is the reference for this engine; tests compare
both, and thus the scales here with those of `forecaster.model.scaling`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from forecaster.engines.engine import RolloutInput
from forecaster.errors import BundleDamaged
from forecaster.model.recurrence.library import CELL_CODES, LAYER_WEIGHTS, NetworkShape, PackedNetwork, load_library
from forecaster.shapes import Bool, Float, Float64, Int
from forecaster.spec import Layout, Scaling, Spec

WIDTH_TOLERANCE = 1e-14  # as in forecaster.model.scaling

WeightArrays = Mapping[str, Float[np.ndarray, "..."]]  # weights by their names in a bundle


class ArrayScale(NamedTuple):
    """scaled = (value - shift - profile) / width: `forecaster.model.scaling.Scale` in numpy, without the log transform.

    Attributes:
        shift: Level of each row.
        width: Spread of each row; zero maps every value to 0, and back to shift plus profile.
        profile: Seasonal component of each phase; a single zero without a season.
    """

    shift: Float64[np.ndarray, "row"]
    width: Float64[np.ndarray, "row"]
    profile: Float64[np.ndarray, "row phase"]

    def apply(self, values: Float64[np.ndarray, "row step"]) -> Float[np.ndarray, "row step"]:
        """Converts data units to scaled units, in float32; NaN stays NaN."""
        flat = self.width == 0
        scaled = values - self._center(values.shape[1], 0)
        scaled /= np.where(flat, 1.0, self.width)[:, None]
        scaled[flat] = np.where(np.isnan(values[flat]), np.nan, 0.0)
        return np.ascontiguousarray(scaled, dtype=np.float32)

    def undo(self, scaled: Float[np.ndarray, "row step"], *, time: int = 0) -> Float64[np.ndarray, "row step"]:
        """Converts scaled units to data units, starting `time` steps after the first."""
        return np.asarray(scaled.astype(np.float64) * self.width[:, None] + self._center(scaled.shape[1], time))

    def starting_at(self, time: Int[np.ndarray, "row"]) -> ArrayScale:
        """Returns the same scale with the steps of each row counted from `time` on."""
        phases = self.profile.shape[1]
        rotated = (np.arange(phases) + time[:, None]) % phases
        return self._replace(profile=np.take_along_axis(self.profile, rotated, axis=1))

    def _center(self, steps: int, time: int) -> Float64[np.ndarray, "row _"]:
        if self.profile.shape[1] == 1:
            return np.asarray((self.shift + self.profile[:, 0])[:, None])
        phases = (time + np.arange(steps)) % self.profile.shape[1]
        return np.asarray(self.shift[:, None] + self.profile[:, phases])


class KernelState(NamedTuple):
    """The state of each row at a forecast origin: the start of a rollout.

    Attributes:
        hidden: Hidden states of the recurrence.
        cell: Cell states (LSTM only).
        bound: Scaled values beyond it count as diverged.
        scale: Scale whose profile begins at the origin.
    """

    hidden: Float[np.ndarray, "row layer hidden"]
    cell: Float[np.ndarray, "row layer hidden"] | None
    bound: Float[np.ndarray, "row"]
    scale: ArrayScale

    def select_rows(self, rows: Int[np.ndarray, "selected"]) -> KernelState:
        """Selects rows, in this order."""
        cell = None if self.cell is None else self.cell[rows]
        return KernelState(self.hidden[rows], cell, self.bound[rows], ArrayScale(*(part[rows] for part in self.scale)))


class KernelEngine:
    """A plain network with its weights packed for the kernel; later changes of the weights have no effect.

    The engine keeps no state between calls, so threads may share it. A row's forecast does not depend on the other rows,
    to the bit.
    """

    def __init__(self, spec: Spec, weights: WeightArrays, *, season: int, lanes: int, threads: int = 1) -> None:
        """Packs the weights.

        Args:
            spec: Specification of a network that `build_kernel_engine` accepts.
            weights: Weights by their names in the bundle.
            season: Season of the data.
            lanes: Floats per vector on this machine.
            threads: Number of threads that share the rows of a call.
        """
        self._spec, self._season, self._threads = spec, season, threads
        self._layout = Layout.from_spec(spec, season=season)
        params = len(weights["output.weight"]) // spec.segment
        shape = NetworkShape(spec.network.cell, spec.network.layers, spec.network.hidden, spec.segment, params)
        self._packed_network = PackedNetwork(shape, weights, lanes=lanes)

    @property
    def can_sample(self) -> bool:
        """Always False: the kernel only computes point forecasts."""
        return False

    def roll_out(
        self, inputs: RolloutInput, *, horizon: int, noise: Float[np.ndarray, "path_target ahead noise"] | None = None
    ) -> Float64[np.ndarray, "path horizon"]:
        """See `Engine.roll_out`."""
        assert noise is None, "the kernel cannot draw sample paths"
        values = inputs.values
        scale, forecast = self._measure_scale(values), self._allocate_forecast(len(values), horizon)
        self._packed_network.run(values=scale.apply(values), forecast=forecast, threads=self._threads)
        return scale.undo(forecast[:, :horizon], time=values.shape[1])

    def states_at_origins(self, values: Float64[np.ndarray, "row step"], *, stride: int, count: int) -> KernelState:
        """Returns the states at `count` origins of every row, `stride` steps apart; the last is the end. Rows come first.

        Args:
            values: The histories.
            stride: A multiple of the segment.
            count: Number of origins; some steps must precede the first one.
        """
        rows, steps = values.shape
        scale, shape = self._measure_scale(values), self._packed_network.shape
        hidden = np.empty((rows * count, shape.layers, shape.hidden_size), dtype=np.float32)
        cell = np.empty_like(hidden) if shape.cell == "lstm" else None
        bound = np.empty(rows * count, dtype=np.float32)
        self._packed_network.run(
            values=scale.apply(values),
            states=hidden,
            cells=cell,
            bound=bound,
            origins=count,
            stride=stride // self._spec.segment,
            threads=self._threads,
        )
        time = np.tile(np.arange(steps - (count - 1) * stride, steps + 1, stride), rows)
        repeated = ArrayScale(*(part.repeat(count, axis=0) for part in scale))
        return KernelState(hidden, cell, bound, repeated.starting_at(time))

    def forecast_from(self, state: KernelState, *, horizon: int) -> Float64[np.ndarray, "row horizon"]:
        """Predicts the next values after a state, in data units."""
        forecast = self._allocate_forecast(len(state.hidden), horizon)
        self._packed_network.run(
            states=state.hidden, cells=state.cell, bound=state.bound, forecast=forecast, threads=self._threads
        )
        return state.scale.undo(forecast[:, :horizon])

    def _allocate_forecast(self, rows: int, horizon: int) -> Float[np.ndarray, "row ahead"]:
        segment = self._spec.segment
        return np.empty((rows, -(-horizon // segment) * segment), dtype=np.float32)

    def _measure_scale(self, values: Float64[np.ndarray, "row step"]) -> ArrayScale:
        spec = self._spec
        if spec.reads == "history" and values.shape[1] > spec.context:
            return settle_scale(values, spec.scaling, initial_steps=spec.context, season=self._season)
        return measure_scale(values, spec.scaling, season=self._season)


def build_kernel_engine(
    spec: Spec, weights: WeightArrays, *, season: int, num_features: int, threads: int = 1
) -> KernelEngine | None:
    """Builds the kernel engine of a network; returns None without a kernel, or if it does not support the network.

    A supported (plain) network reads values only and has a shiftable head, whose point forecast is the first of its parameters.
    Its cells are gru, lstm or elman, and its weights float32. It has no direct decoder, dilation, residual layer, baseline,
    running scale or log transform.

    Args:
        spec: Specification of the network.
        weights: Weights by their names in the bundle.
        season: Season of the data.
        num_features: Number of covariates and static categories that the network reads in addition.
        threads: Number of threads that share the rows of a call.
    Raises:
        BundleDamaged: The weights have other shapes than the specification says.
    """
    library, network = load_library(), spec.network
    lanes = 0 if library is None else library.lanes()
    reads_values_only = not (
        num_features or spec.lags or spec.channels or network.residual or network.embed or spec.decoder != "rollout"
    )
    has_simple_output = spec.base == "zero" and spec.transform == "none" and spec.head.is_shiftable
    has_simple_output = has_simple_output and spec.scaling != "running"
    is_float32 = network.cell in CELL_CODES and all(array.dtype == np.float32 for array in weights.values())
    if not (lanes and reads_values_only and has_simple_output and set(network.layer_dilations) == {1} and is_float32):
        return None
    _check_shapes(spec, weights)
    return KernelEngine(spec, weights, season=season, lanes=lanes, threads=threads)


def _check_shapes(spec: Spec, weights: WeightArrays) -> None:
    hidden, gates = spec.network.hidden, {"gru": 3, "lstm": 4, "elman": 1}[spec.network.cell]
    expected: dict[str, tuple[int, ...]] = {}
    for index in range(spec.network.layers):
        inputs = hidden if index else 2 * spec.segment
        sizes = ((gates * hidden, inputs), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,))
        expected |= {f"recurrent.layers.{index}.{name}": size for name, size in zip(LAYER_WEIGHTS, sizes, strict=True)}
    rows = len(weights["output.weight"]) if "output.weight" in weights else spec.segment
    expected |= {"output.weight": (rows, hidden), "output.bias": (rows,)}
    mismatched = [name for name, size in expected.items() if name not in weights or weights[name].shape != size]
    if mismatched or not rows or rows % spec.segment:
        name = mismatched[0] if mismatched else "output.weight"
        found = weights[name].shape if name in weights else None
        raise BundleDamaged(
            f"Expected weights {name!r} of shape {expected[name]}; found {found}. The spec and the weights do not belong "
            "together: train again.",
            where="weights.safetensors",
        )


def measure_scale(values: Float64[np.ndarray, "row context"], scaling: Scaling, *, season: int = 1) -> ArrayScale:
    """See `forecaster.model.scaling.measure_scale`."""
    zero, zero_profile = np.zeros(len(values)), np.zeros((len(values), 1))
    if scaling == "none":
        return ArrayScale(zero, zero + 1, zero_profile)
    observed = ~np.isnan(values)
    filled = np.where(observed, values, 0.0)
    if scaling == "running":
        return _measure_first_change(filled, observed)
    if scaling == "mean_abs":
        return ArrayScale(zero, np.abs(filled).sum(1) / observed.sum(1).clip(1), zero_profile)
    if scaling == "level_season":
        return _measure_level_season(filled, observed, season)
    mean, deviation = _mean_and_std(filled, observed)
    if scaling == "last":
        return ArrayScale(
            np.take_along_axis(filled, _last_observed_index(observed), axis=1)[:, 0], deviation, zero_profile
        )
    return ArrayScale(mean, deviation, zero_profile)


def settle_scale(
    values: Float64[np.ndarray, "row step"], scaling: Scaling, *, initial_steps: int, season: int = 1
) -> ArrayScale:
    """See `forecaster.model.scaling.settle_scale`; the result counts steps from the first step of the values."""
    rows, length = values.shape
    observed = ~np.isnan(values)
    first_observed = np.where(observed.any(1), observed.argmax(1), length)
    if scaling == "none":
        return measure_scale(values, scaling)
    unsettled: Int[np.ndarray, "_"] = np.arange(rows)
    scale: ArrayScale | None = None
    while scale is None or len(unsettled):
        steps = first_observed[unsettled, None] + np.arange(min(initial_steps, length))
        head = np.take_along_axis(values[unsettled], steps.clip(max=length - 1), axis=1)
        head[steps >= length] = np.nan
        head_scale = measure_scale(head, scaling, season=season)
        if scale is None:
            scale = head_scale
        else:
            for field, head_field in zip(scale, head_scale, strict=True):
                field[unsettled] = head_field
        settled = head_scale.width > WIDTH_TOLERANCE * np.nan_to_num(np.abs(head)).max(1)
        unsettled = unsettled[~settled & (first_observed[unsettled] + initial_steps < length)]
        initial_steps *= 2
    return scale.starting_at(-first_observed)


def _mean_and_std(
    filled: Float64[np.ndarray, "row step"], observed: Bool[np.ndarray, "row step"]
) -> tuple[Float64[np.ndarray, "row"], Float64[np.ndarray, "row"]]:
    count = observed.sum(1).clip(1)
    mean = filled.sum(1) / count
    return mean, np.sqrt((((filled - mean[:, None]) * observed) ** 2).sum(1) / count)


def _last_observed_index(observed: Bool[np.ndarray, "row step"]) -> Int[np.ndarray, "row 1"]:
    return np.asarray(np.where(observed, np.arange(observed.shape[1]), 0).max(1, keepdims=True))


def _measure_first_change(filled: np.ndarray, observed: np.ndarray) -> ArrayScale:
    """See `forecaster.model.scaling`."""
    first = np.take_along_axis(filled, observed.argmax(1)[:, None], axis=1)
    distance = np.abs(filled - first)
    is_other = observed & (distance > WIDTH_TOLERANCE * np.abs(first))
    width = np.take_along_axis(distance * is_other, is_other.argmax(1)[:, None], axis=1)
    return ArrayScale(first[:, 0], width[:, 0], np.zeros_like(first))


def _measure_level_season(filled: np.ndarray, observed: np.ndarray, season: int) -> ArrayScale:
    """See `forecaster.model.scaling`."""
    steps = filled.shape[1]
    time = np.arange(steps, dtype=np.float64)
    count = observed.sum(1, keepdims=True).clip(1)
    mean_time = (time * observed).sum(1, keepdims=True) / count
    mean = filled.sum(1, keepdims=True) / count
    spread = (((time - mean_time) ** 2) * observed).sum(1, keepdims=True).clip(1e-12)
    slope = ((time - mean_time) * (filled - mean) * observed).sum(1, keepdims=True) / spread
    residual = (filled - mean - slope * (time - mean_time)) * observed
    phases = np.arange(steps) % season
    count_by_phase, residual_by_phase = (
        _sum_by_phase(observed.astype(np.float64), season),
        _sum_by_phase(residual, season),
    )
    profile = np.where(count_by_phase >= 2, residual_by_phase / count_by_phase.clip(1), 0.0)
    profile = profile - profile.mean(1, keepdims=True)
    deseasonalized = (filled - profile[:, phases]) * observed
    last_season = observed & (time >= _last_observed_index(observed) - season + 1)
    level = (deseasonalized * last_season).sum(1) / last_season.sum(1).clip(1)
    return ArrayScale(level, _mean_and_std(deseasonalized, observed)[1], profile)


def _sum_by_phase(values: Float64[np.ndarray, "row step"], season: int) -> Float64[np.ndarray, "row phase"]:
    """Sums the steps of each phase."""
    rows, steps = values.shape
    padded = np.zeros((rows, -(-steps // season), season))
    padded.reshape(rows, -1)[:, :steps] = values
    return np.asarray(padded.sum(1))

"""The engine of networks with a running scale and a block decoder: from numpy alone, and in the compiled kernel if installed.

`forecaster.model.rollout` is the reference for this engine; tests compare both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from forecaster.engines.engine import RolloutInput
from forecaster.engines.kernel import ArrayScale, WeightArrays, measure_scale, settle_scale
from forecaster.engines.running.backend import NetworkBackend, NumpyBackend
from forecaster.engines.running.kernel_backend import load_kernel_backend
from forecaster.engines.running.layers import NUM_GATES
from forecaster.engines.running.network import RowState, RunningNetwork
from forecaster.engines.spread import widen_block
from forecaster.errors import BundleDamaged
from forecaster.model.recurrence.library import LAYER_WEIGHTS
from forecaster.model.running_sizes import NUM_FORECASTS, num_features
from forecaster.shapes import Bool, Float, Float64, Int
from forecaster.spec import DIVERGENCE_FACTOR, Spec

_SEGMENTS_AT_ONCE = 1 << 13  # over all rows that are read together
_MIN_ROWS_AT_ONCE = 24
_MIN_UNIFORM = float(np.finfo(np.float32).eps) / 2  # as in forecaster.model.heads


class _Batch(NamedTuple):
    """Histories that are read together.

    Attributes:
        rows: Their indices.
        values: Scaled, from the first observed segment of any of them; NaN where missing.
        bound: Scaled forecasts beyond it count as diverged.
    """

    rows: Int[np.ndarray, "row"]
    values: Float[np.ndarray, "row step"]
    bound: Float[np.ndarray, "row"]


class RunningEngine:
    """A network with a running scale, its weights prepared for a backend; later changes of the weights have no effect.

    The engine keeps no state between calls, so threads may share it. In the compiled kernel, a row's forecast does not
    depend on the other rows, to the bit.
    """

    def __init__(self, spec: Spec, weights: WeightArrays, *, season: int, backend: NetworkBackend) -> None:
        """Prepares the weights.

        Args:
            spec: Specification of a network that `build_running_engine` accepts.
            weights: Weights by their names in the bundle.
            season: Season of the data.
            backend: What computes the parts of the network.
        """
        self._spec, self._season = spec, season
        self._network = RunningNetwork(spec, weights, season=season, backend=backend)

    @property
    def can_sample(self) -> bool:
        """Whether the head has a distribution."""
        return self._network.head is not None

    @property
    def has_quantiles(self) -> bool:
        """Whether the head has quantiles."""
        return self._network.head is not None

    def roll_out(
        self, inputs: RolloutInput, *, horizon: int, noise: Float[np.ndarray, "path_target ahead noise"] | None = None
    ) -> Float64[np.ndarray, "path horizon"]:
        """See `Engine.roll_out`."""
        scale = self._measure_scale(inputs.values)
        if noise is None:
            scaled = np.empty((len(inputs.values), horizon))
            for batch in self._batches(inputs.values, scale):
                scaled[batch.rows] = self._roll_out_batch(batch, horizon)
            return scale.undo(scaled)
        copies = len(noise) // len(inputs.values)
        scaled = np.empty((len(noise), horizon))
        for batch in self._batches(inputs.values, scale):
            paths = (batch.rows[:, None] * copies + np.arange(copies)).ravel()
            scaled[paths] = self._roll_out_batch(batch, horizon, noise=noise[paths, :, 0])
        return ArrayScale(*(part.repeat(copies, axis=0) for part in scale)).undo(scaled)

    def roll_out_quantiles(
        self, inputs: RolloutInput, *, horizon: int, levels: Sequence[float]
    ) -> Float64[np.ndarray, "row horizon level"]:
        """See `QuantileEngine.roll_out_quantiles`."""
        scale = self._measure_scale(inputs.values)
        scaled = np.empty((len(inputs.values), horizon, len(levels)))
        for batch in self._batches(inputs.values, scale):
            scaled[batch.rows] = self._roll_out_quantiles(batch, horizon, levels)
        flat = np.ascontiguousarray(scaled.reshape(len(scaled), -1))
        return scale.undo(flat).reshape(scaled.shape)

    def _measure_scale(self, values: Float64[np.ndarray, "row step"]) -> ArrayScale:
        spec = self._spec
        if spec.reads == "history" and values.shape[1] > spec.context:
            return settle_scale(values, spec.scaling, initial_steps=spec.context, season=self._season)
        return measure_scale(values, spec.scaling, season=self._season)

    def _batches(self, values: Float64[np.ndarray, "row step"], scale: ArrayScale) -> Iterator[_Batch]:
        """Yields batches of histories that begin at about the same segment, without the padding before all of them."""
        segment, (rows, steps) = self._spec.segment, values.shape
        scaled = scale.apply(values)
        observed = ~np.isnan(scaled)
        first = np.where(observed.any(axis=1), observed.argmax(axis=1), steps - 1) // segment
        order = np.argsort(first, kind="stable")
        at_once = max(_MIN_ROWS_AT_ONCE, _SEGMENTS_AT_ONCE * segment // steps)
        for begin in range(0, rows, at_once):
            chosen = order[begin : begin + at_once]
            part = scaled[chosen, first[chosen[0]] * segment :]
            largest = np.fmax(np.fmax.reduce(np.abs(part), axis=1), np.float32(1.0))
            yield _Batch(chosen, part, largest * np.float32(DIVERGENCE_FACTOR))

    def _warm_up(self, batch: _Batch) -> RowState:
        started = np.logical_or.accumulate(~np.isnan(batch.values), axis=1)
        return self._network.read(batch.values, started, self._network.start(len(batch.rows)))

    def _roll_out_batch(
        self, batch: _Batch, horizon: int, *, noise: Float[np.ndarray, "path ahead"] | None = None
    ) -> Float[np.ndarray, "path horizon"]:
        state, bound = self._warm_up(batch), batch.bound
        fractions = None
        if noise is not None:
            copies = len(noise) // len(bound)
            state, bound = state.repeat(copies), bound.repeat(copies)
            assert self._network.head is not None, "the head has a distribution"
            uniforms = np.clip(noise, _MIN_UNIFORM, 1 - _MIN_UNIFORM).astype(np.float64)
            fractions = self._network.head.step_fractions(uniforms)
        results = []
        for values, is_valid, _ in self._blocks(state, bound, horizon=horizon, draw_fractions=fractions):
            results.append(np.where(is_valid, values, np.float32(np.nan)))
        return np.concatenate(results, axis=1)[:, :horizon]

    def _roll_out_quantiles(
        self, batch: _Batch, horizon: int, levels: Sequence[float]
    ) -> Float64[np.ndarray, "row horizon level"]:
        assert self._network.head is not None, "the head has a distribution"
        fractions = self._network.head.level_fractions(tuple(levels))
        results, before = [], None
        for values, is_valid, steps in self._blocks(
            self._warm_up(batch), batch.bound, horizon=horizon, with_steps=True
        ):
            assert steps is not None, "the steps were requested"
            offsets = np.maximum.accumulate((fractions @ steps).swapaxes(1, 2), axis=2, dtype=np.float64)
            offsets = widen_block(offsets, before)
            before = offsets[:, -1]
            results.append(np.where(is_valid[:, :, None], values[:, :, None] + offsets, np.nan))
        return np.concatenate(results, axis=1)[:, :horizon]

    def _blocks(
        self,
        state: RowState,
        bound: Float[np.ndarray, "row"],
        *,
        horizon: int,
        with_steps: bool = False,
        draw_fractions: Float64[np.ndarray, "row ahead step"] | None = None,
    ) -> Iterator[tuple[Float[np.ndarray, "row block"], Bool[np.ndarray, "row block"], np.ndarray | None]]:
        """Yields scaled values, whether the row has not diverged, and the steps of the head; each block is fed back."""
        network, valid = self._network, np.ones((len(bound), 1), dtype=bool)
        for first in range(0, horizon, network.block):
            block = network.decode(state, with_steps=with_steps or draw_fractions is not None)
            values = block.values
            if draw_fractions is not None:
                fractions = draw_fractions[:, first : first + network.block].astype(np.float32)
                assert block.quantile_steps is not None, "the steps were requested"
                values = values + np.einsum("rsb,rbs->rb", block.quantile_steps, fractions)
            is_valid = np.logical_and.accumulate(valid & (np.abs(values) <= bound[:, None]), axis=1)
            yield values, is_valid, block.quantile_steps
            valid = is_valid[:, -1:]
            if first + network.block < horizon:
                feedback = np.where(valid, values, np.float32(0.0))
                state = network.read(feedback, np.ones_like(is_valid), state)


def build_running_engine(
    spec: Spec, weights: WeightArrays, *, season: int, num_features: int, backend: NetworkBackend | None = None
) -> RunningEngine | None:
    """Builds the engine of a network with a running scale; returns None if it does not support the network.

    A supported network reads values only and has a block decoder, a point or quantile head and gru, lstm or elman layers without
    dilation, and its weights are float32.

    Args:
        spec: Specification of the network.
        weights: Weights by their names in the bundle.
        season: Season of the data.
        num_features: Number of covariates and static categories that the network reads in addition.
        backend: What computes the parts of the network; by default the kernel, or numpy if it is not installed.
    Raises:
        BundleDamaged: The weights have other shapes than the specification says.
    """
    reads_values_only = not (num_features or spec.lags or spec.channels)
    is_supported = spec.scaling == "running" and spec.decoder == "block" and spec.head.kind in ("point", "quantile")
    is_plain = set(spec.network.layer_dilations) == {1} and spec.network.cell in NUM_GATES
    is_plain = is_plain and all(array.dtype == np.float32 for array in weights.values())
    if not (reads_values_only and is_supported and is_plain):
        return None
    _check_shapes(spec, weights)
    return RunningEngine(spec, weights, season=season, backend=backend or load_kernel_backend() or NumpyBackend())


def _check_shapes(spec: Spec, weights: WeightArrays) -> None:
    for name, size in _expected_shapes(spec).items():
        if name not in weights or weights[name].shape != size:
            found = weights[name].shape if name in weights else None
            raise BundleDamaged(
                f"Expected weights {name!r} of shape {size}; found {found}. The spec and the weights do not belong together: "
                "train again.",
                where="weights.safetensors",
            )


def _expected_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    hidden, gates = spec.network.hidden, NUM_GATES[spec.network.cell]
    inputs = num_features(block=spec.block) if spec.features == "seasonal" else 2 * spec.segment
    output_size = hidden * (2 if spec.network.embed else 1)
    num_levels = len({*spec.head.levels, 0.5}) if spec.head.kind == "quantile" else 1
    num_params = num_levels + (NUM_FORECASTS if spec.base == "mixture" else 0)
    expected: dict[str, tuple[int, ...]] = {}
    if spec.network.embed:
        expected |= {"embedding.weight": (hidden, inputs), "embedding.bias": (hidden,)}
        inputs = hidden
    for index in range(spec.network.layers):
        sizes = ((gates * hidden, hidden if index else inputs), (gates * hidden, hidden), *[(gates * hidden,)] * 2)
        expected |= {f"recurrent.layers.{index}.{name}": size for name, size in zip(LAYER_WEIGHTS, sizes, strict=True)}
    expected |= {"decoder.weight": (2 * hidden, output_size), "decoder.bias": (2 * hidden,)}
    outputs = spec.block * num_params
    return expected | {"output.weight": (outputs, 2 * hidden), "output.bias": (outputs,)}

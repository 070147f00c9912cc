"""A whole rollout in one call of the compiled kernel, for torch callers: each row reads its history and predicts, band by band.

The kernel supports only plain networks, which read values alone and output the recurrence directly. All other networks, and
sample paths, are rolled out by `forecaster.model.rollout`, which is the reference for this engine.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster.engines.engine import RolloutInput
from forecaster.model.recurrence.compiled import load_compiled_backend
from forecaster.model.recurrence.library import NetworkShape, PackedNetwork
from forecaster.model.regressor import Regressor
from forecaster.model.scaling import Scale, measure_scale, settle_scale
from forecaster.shapes import Float, Float64, Int


class KernelState(NamedTuple):
    """The state of each row at a forecast origin: the start of a rollout.

    Attributes:
        hidden: Hidden states of the recurrence.
        cell: Cell states (LSTM only).
        bound: Scaled values beyond it count as diverged.
        scale: Scale whose profile begins at the origin.
    """

    hidden: Float[Tensor, "row layer hidden"]
    cell: Float[Tensor, "row layer hidden"] | None
    bound: Float[Tensor, "row"]
    scale: Scale

    def select_rows(self, rows: Int[Tensor, "selected"]) -> KernelState:
        """Selects rows, in this order."""
        cell = None if self.cell is None else self.cell[rows]
        return KernelState(self.hidden[rows], cell, self.bound[rows], Scale(*(part[rows] for part in self.scale)))


def build_torch_kernel_engine(network: Regressor, *, threads: int | None = None) -> TorchKernelEngine | None:
    """Builds the kernel engine of a network; returns None without a kernel, or if it does not support the network."""
    backend = load_compiled_backend()
    output, recurrent = network.output.weight, network.recurrent
    reads_values_only = not (
        network.lags or network.num_covariates or network.groups or recurrent.residual or network.decoder
    )
    has_simple_output = (
        network.num_targets == 1
        and network.base == "zero"
        and network.transform == "none"
        and set(recurrent.dilations) == {1}
    )
    has_location = network.head.is_shiftable  # then its point forecast is the first of its parameters
    has_fitting_tensors = output.device.type == "cpu" and output.dtype == torch.float32
    is_supported = reads_values_only and has_simple_output and has_location and has_fitting_tensors
    return TorchKernelEngine(network, lanes=backend.lanes, threads=threads) if backend and is_supported else None


class TorchKernelEngine:
    """A plain network with its weights packed for the kernel; later changes of the weights have no effect.

    The engine keeps no state between calls, so threads may share it. A row's forecast does not depend on the other rows,
    to the bit.
    """

    def __init__(self, network: Regressor, *, lanes: int, threads: int | None = None) -> None:
        """Packs the weights.

        Args:
            network: A network that `build_torch_kernel_engine` accepts.
            lanes: Floats per vector on this machine.
            threads: Number of threads that share the rows of a call; default: that of torch.
        """
        recurrent = network.recurrent
        self._network, self._threads = network, threads
        cell = "lstm" if recurrent.has_cell else "gru" if _count_gates(network) == 3 else "elman"
        shape = NetworkShape(
            cell, len(recurrent.layers), recurrent.hidden_size, network.segment, network.head.num_params
        )
        weights = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
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
        with torch.inference_mode():
            return np.asarray(self.forecast(torch.from_numpy(inputs.values), horizon=horizon).numpy())

    def forecast(self, values: Float64[Tensor, "row step"], *, horizon: int) -> Float64[Tensor, "row horizon"]:
        """Predicts the next values, in data units."""
        scale = self._measure_scale(values)
        forecast = self._allocate_forecast(len(values), horizon)
        self._run(values=self._apply_scale(values, scale), forecast=forecast)
        return scale.undo(forecast[:, :horizon], time=values.shape[1])

    def states_at_origins(self, values: Float64[Tensor, "row step"], *, stride: int, count: int) -> KernelState:
        """Returns the states at `count` origins of every row, `stride` steps apart; the last is the end. Rows come first.

        Args:
            values: The histories.
            stride: A multiple of the segment.
            count: Number of origins; some steps must precede the first one.
        """
        rows, steps = values.shape
        scale = self._measure_scale(values)
        hidden = torch.empty(rows * count, self._packed_network.shape.layers, self._packed_network.shape.hidden_size)
        cell = torch.empty_like(hidden) if self._network.recurrent.has_cell else None
        bound = torch.empty(rows * count)
        self._run(
            values=self._apply_scale(values, scale),
            states=hidden,
            cells=cell,
            bound=bound,
            origins=count,
            stride=stride // self._network.segment,
        )
        time = torch.arange(steps - (count - 1) * stride, steps + 1, stride).repeat(rows)
        repeated = Scale(*(part.repeat_interleave(count, dim=0) for part in scale))
        return KernelState(hidden, cell, bound, repeated.starting_at(time))

    def forecast_from(self, state: KernelState, *, horizon: int) -> Float64[Tensor, "row horizon"]:
        """Predicts the next values after a state, in data units."""
        forecast = self._allocate_forecast(len(state.hidden), horizon)
        self._run(states=state.hidden, cells=state.cell, bound=state.bound, forecast=forecast)
        return state.scale.undo(forecast[:, :horizon])

    def _measure_scale(self, values: Tensor) -> Scale:
        network = self._network
        if network.reads == "history" and values.shape[1] > network.context:
            return settle_scale(values, network.scaling, initial_steps=network.context, season=network.season).scale
        return measure_scale(values, network.scaling, season=network.season)

    def _apply_scale(self, values: Tensor, scale: Scale) -> Tensor:
        return scale.apply(values).masked_fill_(values.isnan(), torch.nan).contiguous()

    def _allocate_forecast(self, rows: int, horizon: int) -> Float[Tensor, "row ahead"]:
        return torch.empty(rows, -(-horizon // self._network.segment) * self._network.segment)

    def _run(
        self,
        *,
        values: Tensor | None = None,
        states: Tensor | None = None,
        cells: Tensor | None = None,
        bound: Tensor | None = None,
        forecast: Tensor | None = None,
        origins: int = 0,
        stride: int = 0,
    ) -> None:
        tensors = {"values": values, "states": states, "cells": cells, "bound": bound, "forecast": forecast}
        arrays: dict[str, Any] = {name: None if array is None else array.numpy() for name, array in tensors.items()}
        self._packed_network.run(
            **arrays, origins=origins, stride=stride, threads=self._threads or torch.get_num_threads()
        )


def _count_gates(network: Regressor) -> int:
    layer: Any = network.recurrent.layers[0]
    return int(layer.weight_hh_l0.shape[0]) // network.recurrent.hidden_size

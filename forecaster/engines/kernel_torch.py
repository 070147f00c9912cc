"""A whole rollout in one call of the compiled kernel: rows take all their steps, those known and those foretold, band by band.

It knows the plain network: values alone are read, and what the recurrence says is put out as it is. All others, and draws,
are rolled by `rollout.py`, which this is held to.
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
    """What rows know at some place: where a rollout starts from.

    Attributes:
        hidden: The recurrence.
        cell: Of an LSTM; None otherwise.
        bound: Scaled values beyond it are not believed.
        scale: Whose profile begins at the place.
    """

    hidden: Float[Tensor, "row layer hidden"]
    cell: Float[Tensor, "row layer hidden"] | None
    bound: Float[Tensor, "row"]
    scale: Scale

    def select_rows(self, rows: Int[Tensor, "some"]) -> KernelState:
        """Some of the rows, in this order."""
        cell = None if self.cell is None else self.cell[rows]
        return KernelState(self.hidden[rows], cell, self.bound[rows], Scale(*(part[rows] for part in self.scale)))


def build_torch_kernel_engine(network: Regressor, *, threads: int | None = None) -> TorchKernelEngine | None:
    """The network as the kernel runs it; None where there is no kernel, or it does not know such a network."""
    widest = load_compiled_backend()
    output, recurrent = network.output.weight, network.recurrent
    plain = not (network.lags or network.num_covariates or network.groups or recurrent.residual or network.decoder)
    alone = (
        network.num_targets == 1
        and network.base == "zero"
        and network.transform == "none"
        and set(recurrent.dilations) == {1}
    )
    located = network.head.is_shiftable  # its point forecast is the first of its parameters
    fits = output.device.type == "cpu" and output.dtype == torch.float32
    known = plain and alone and located and fits
    return TorchKernelEngine(network, lanes=widest.lanes, threads=threads) if widest and known else None


class TorchKernelEngine:
    """A plain network, its weights laid out for the kernel: they are those it had when this was made.

    It remembers nothing between calls, so threads may share it. A row's forecast is to the bit the same in any company.
    """

    def __init__(self, network: Regressor, *, lanes: int, threads: int | None = None) -> None:
        """Lays the weights out.

        Args:
            network: One that `build_torch_kernel_engine` found to fit.
            lanes: Floats of a vector, as the machine has them.
            threads: That share the rows of a call; as many as torch has, if not given.
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
        """It does not."""
        return False

    def roll_out(
        self, inputs: RolloutInput, *, horizon: int, noise: Float[np.ndarray, "track ahead noise"] | None = None
    ) -> Float64[np.ndarray, "way horizon"]:
        """As `Backend.roll_out`."""
        assert noise is None, "it does not draw"
        with torch.inference_mode():
            return np.asarray(self.forecast(torch.from_numpy(inputs.values), horizon=horizon).numpy())

    def forecast(self, values: Float64[Tensor, "row step"], *, horizon: int) -> Float64[Tensor, "row horizon"]:
        """The next values after those known, in units of the data."""
        scale = self._measure_scale(values)
        told = self._allocate_forecast(len(values), horizon)
        self._run(values=self._apply_scale(values, scale), forecast=told)
        return scale.undo(told[:, :horizon], time=values.shape[1])

    def states_at_origins(self, values: Float64[Tensor, "row step"], *, stride: int, count: int) -> KernelState:
        """What is known at `count` places of every row, `stride` steps apart, the last of them at the end: row by row.

        Args:
            values: Histories.
            every: A multiple of the segment.
            count: Such that there are steps before the first place.
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
        each = Scale(*(part.repeat_interleave(count, dim=0) for part in scale))
        return KernelState(hidden, cell, bound, each.starting_at(time))

    def forecast_from(self, state: KernelState, *, horizon: int) -> Float64[Tensor, "row horizon"]:
        """The next values, in units of the data."""
        told = self._allocate_forecast(len(state.hidden), horizon)
        self._run(states=state.hidden, cells=state.cell, bound=state.bound, forecast=told)
        return state.scale.undo(told[:, :horizon])

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
        given = {"values": values, "states": states, "cells": cells, "bound": bound, "forecast": forecast}
        arrays: dict[str, Any] = {name: None if array is None else array.numpy() for name, array in given.items()}
        self._packed_network.run(
            **arrays, origins=origins, stride=stride, threads=self._threads or torch.get_num_threads()
        )


def _count_gates(network: Regressor) -> int:
    layer: Any = network.recurrent.layers[0]
    return int(layer.weight_hh_l0.shape[0]) // network.recurrent.hidden_size

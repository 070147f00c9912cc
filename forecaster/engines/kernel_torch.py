"""A whole rollout in one call of the compiled kernel: rows take all their steps, those known and those foretold, band by band.

It knows the plain network: values alone are read, and what the recurrence says is put out as it is. All others, and draws,
are rolled by `rollout.py`, which this is held to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster.engines.engine import Known
from forecaster.model.recurrence.compiled import kernel
from forecaster.model.recurrence.library import Shape, Stack
from forecaster.model.regressor import Regressor
from forecaster.model.scaling import Scale, measure, settle
from forecaster.shapes import Float, Float64, Int


class Reached(NamedTuple):
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

    def pick(self, rows: Int[Tensor, "some"]) -> Reached:
        """Some of the rows, in this order."""
        cell = None if self.cell is None else self.cell[rows]
        return Reached(self.hidden[rows], cell, self.bound[rows], Scale(*(part[rows] for part in self.scale)))


def fused(network: Regressor, *, threads: int | None = None) -> Fused | None:
    """The network as the kernel runs it; None where there is no kernel, or it does not know such a network."""
    widest = kernel()
    output, recurrent = network.output.weight, network.recurrent
    plain = not (network.lags or network.covariates or network.groups or recurrent.residual or network.decoder)
    alone = (
        network.targets == 1
        and network.base == "zero"
        and network.transform == "none"
        and set(recurrent.dilations) == {1}
    )
    located = network.head.shiftable  # its point forecast is the first of its parameters
    fits = output.device.type == "cpu" and output.dtype == torch.float32
    known = plain and alone and located and fits
    return Fused(network, lanes=widest.lanes, threads=threads) if widest and known else None


class Fused:
    """A plain network, its weights laid out for the kernel: they are those it had when this was made.

    It remembers nothing between calls, so threads may share it. A row's forecast is to the bit the same in any company.
    """

    def __init__(self, network: Regressor, *, lanes: int, threads: int | None = None) -> None:
        """Lays the weights out.

        Args:
            network: One that `fused` found to fit.
            lanes: Floats of a vector, as the machine has them.
            threads: That share the rows of a call; as many as torch has, if not given.
        """
        recurrent = network.recurrent
        self._network, self._threads = network, threads
        cell = "lstm" if recurrent.has_cell else "gru" if _gates(network) == 3 else "elman"
        shape = Shape(cell, len(recurrent.layers), recurrent.hidden, network.segment, network.head.params)
        weights = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
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
        with torch.inference_mode():
            return np.asarray(self.forecast(torch.from_numpy(known.values), horizon=horizon).numpy())

    def forecast(self, values: Float64[Tensor, "row step"], *, horizon: int) -> Float64[Tensor, "row horizon"]:
        """The next values after those known, in units of the data."""
        scale = self._scale(values)
        told = self._told(len(values), horizon)
        self._run(values=self._scaled(values, scale), told=told)
        return scale.undo(told[:, :horizon], time=values.shape[1])

    def reach(self, values: Float64[Tensor, "row step"], *, every: int, count: int) -> Reached:
        """What is known at `count` places of every row, `every` steps apart, the last of them at the end: row by row.

        Args:
            values: Histories.
            every: A multiple of the segment.
            count: Such that there are steps before the first place.
        """
        rows, steps = values.shape
        scale = self._scale(values)
        hidden = torch.empty(rows * count, self._stack.shape.layers, self._stack.shape.hidden)
        cell = torch.empty_like(hidden) if self._network.recurrent.has_cell else None
        bound = torch.empty(rows * count)
        self._run(
            values=self._scaled(values, scale),
            states=hidden,
            cells=cell,
            bound=bound,
            places=count,
            every=every // self._network.segment,
        )
        time = torch.arange(steps - (count - 1) * every, steps + 1, every).repeat(rows)
        each = Scale(*(part.repeat_interleave(count, dim=0) for part in scale))
        return Reached(hidden, cell, bound, each.since(time))

    def go_on(self, reached: Reached, *, horizon: int) -> Float64[Tensor, "row horizon"]:
        """The next values, in units of the data."""
        told = self._told(len(reached.hidden), horizon)
        self._run(states=reached.hidden, cells=reached.cell, bound=reached.bound, told=told)
        return reached.scale.undo(told[:, :horizon])

    def _scale(self, values: Tensor) -> Scale:
        network = self._network
        if network.reads == "history" and values.shape[1] > network.context:
            return settle(values, network.scaling, steps=network.context, season=network.season).scale
        return measure(values, network.scaling, season=network.season)

    def _scaled(self, values: Tensor, scale: Scale) -> Tensor:
        return scale.apply(values).masked_fill_(values.isnan(), torch.nan).contiguous()

    def _told(self, rows: int, horizon: int) -> Float[Tensor, "row ahead"]:
        return torch.empty(rows, -(-horizon // self._network.segment) * self._network.segment)

    def _run(
        self,
        *,
        values: Tensor | None = None,
        states: Tensor | None = None,
        cells: Tensor | None = None,
        bound: Tensor | None = None,
        told: Tensor | None = None,
        places: int = 0,
        every: int = 0,
    ) -> None:
        given = {"values": values, "states": states, "cells": cells, "bound": bound, "told": told}
        arrays: dict[str, Any] = {name: None if array is None else array.numpy() for name, array in given.items()}
        self._stack.run(**arrays, places=places, every=every, threads=self._threads or torch.get_num_threads())


def _gates(network: Regressor) -> int:
    layer: Any = network.recurrent.layers[0]
    return int(layer.weight_hh_l0.shape[0]) // network.recurrent.hidden

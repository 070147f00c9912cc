"""A whole rollout in one call of the compiled kernel: rows take all their steps, those known and those foretold, band by band.

It knows the plain network: values alone are read, and what the recurrence says is put out as it is. All others, and draws,
are rolled by `rollout.py`, which this is held to.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster.engine import Known
from forecaster.model.compiled import KINDS, CLayer, kernel, library, openmp
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RUNAWAY
from forecaster.model.scaling import Scale, measure, settle
from forecaster.shapes import Float, Float64, Int

_BAND = 256_000  # bytes of the rows that take their steps together: with the weights, they stay in the second cache
_TALL = 6  # rows of the kernel's tiles
_SMALL = 1_000_000  # multiplications below which a second thread costs more than it gives
_SIZES = ("kind", "layers", "rows", "steps", "blocks", "segment", "hidden", "padded", "places", "every")
_ARRAYS = ("packed", "output", "values", "states", "cells", "bound", "told")


class _Rollout(ctypes.Structure):
    """`struct rollout` of steps.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        ("runaway", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
    ]


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
        found = library()
        assert found is not None, "asked for where it was not compiled"
        self._network, self._lanes, self._threads, self._library = network, lanes, threads, found
        recurrent, hidden = network.recurrent, network.recurrent.hidden
        self._padded = -(-hidden // self._lanes) * self._lanes
        self._sizes: dict[str, Any] = {
            "kind": KINDS["lstm" if recurrent.has_cell else "gru" if _gates(network) == 3 else "elman"],
            "layers": len(recurrent.layers),
            "segment": network.segment,
            "hidden": hidden,
            "padded": self._padded,
            "runaway": RUNAWAY,
        }
        self._packed = self._pack()
        self._output = self._put_out()
        self._row = 4 * (
            2 * (2 * network.segment + hidden * (len(recurrent.layers) - 1)) + 3 * self._sizes["layers"] * self._padded
        )

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
        hidden = torch.empty(rows * count, self._sizes["layers"], self._sizes["hidden"])
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
        segment = self._network.segment
        rows = len(next(one for one in (values, states) if one is not None))
        steps, blocks = (0 if one is None else one.shape[1] // segment for one in (values, told))
        threads = self._threads or torch.get_num_threads()
        if rows * (steps + blocks) * self._packed.numel() < _SMALL:
            threads = 1
        share = min(-(-rows // threads), max(_TALL, _BAND // self._row))
        filled = _Rollout(**self._sizes, rows=rows, steps=steps, blocks=blocks, places=places, every=every)
        for name, array in (
            ("packed", self._packed),
            ("output", self._output),
            ("values", values),
            ("states", states),
            ("cells", cells),
            ("bound", bound),
            ("told", told),
        ):
            if array is not None:
                setattr(filled, name, array.data_ptr())
        if self._library.roll(ctypes.byref(filled), -(-share // _TALL) * _TALL, self._lanes, threads, openmp()):
            raise MemoryError(f"Expected memory for {rows} rows; there is none left. Send fewer rows at once.")

    def _pack(self) -> Tensor:
        sizes = _Rollout(**self._sizes)
        floats = [
            self._library.size_of_packed(ctypes.byref(sizes), layer, self._lanes)
            for layer in range(self._sizes["layers"])
        ]
        packed = torch.empty(sum(floats))
        for number, layer in enumerate(self._network.recurrent.layers):
            weights: dict[str, Any] = {
                name: getattr(layer, f"{theirs}_l0").detach().contiguous()
                for name, theirs in (
                    ("input_weights", "weight_ih"),
                    ("recurrent_weights", "weight_hh"),
                    ("input_bias", "bias_ih"),
                    ("recurrent_bias", "bias_hh"),
                )
            }
            filled = CLayer(
                kind=self._sizes["kind"],
                features=weights["input_weights"].shape[1],
                hidden=self._sizes["hidden"],
                padded=self._padded,
                **{name: array.data_ptr() for name, array in weights.items()},
            )
            self._library.pack(ctypes.byref(filled), packed.data_ptr() + 4 * sum(floats[:number]), self._lanes)
        return packed

    def _put_out(self) -> Tensor:
        """The output layer's weights of each point, one after the other, and then their biases."""
        network, output = self._network, self._network.output
        points = (network.segment, network.head.params)
        weights = output.weight.detach().reshape(*points, -1)[:, 0]
        padding = weights.new_zeros(network.segment, self._padded - weights.shape[1])
        bias = output.bias.detach().reshape(points)[:, 0]
        return torch.cat([torch.cat([weights, padding], dim=1).flatten(), bias])


def _gates(network: Regressor) -> int:
    layer: Any = network.recurrent.layers[0]
    return int(layer.weight_hh_l0.shape[0]) // network.recurrent.hidden

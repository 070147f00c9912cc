"""The parts of a network with a running scale in the compiled kernel: each row is computed independently of the others."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

from forecaster.engines.kernel import WeightArrays
from forecaster.engines.running.layers import StackSizes, StackState
from forecaster.engines.running.past import Past, PastSizes
from forecaster.model.recurrence.library import (
    BAND_BYTES,
    CELL_CODES,
    TILE_ROWS,
    RolloutStruct,
    load_library,
    pack_layers,
)
from forecaster.model.running_sizes import NUM_FORECASTS
from forecaster.shapes import Bool, Float, Float64

_DENSE_SIZES = ("rows", "features", "units", "silu")
_DENSE_ARRAYS = ("inputs", "packed", "bias", "outputs")
_PAST_SIZES = ("rows", "steps", "segment", "season", "long_season", "block", "lookback", "phases", "older", "views")
_PAST_ARRAYS = ("values", "started", "missing", "statistics", "features", "scales", "forecasts")
_PANEL_VECTORS = 4  # of the units of a dense layer that are computed together


class _DenseStruct(ctypes.Structure):
    """Mirrors `struct dense` of steps.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _DENSE_SIZES),
        *((name, ctypes.c_void_p) for name in _DENSE_ARRAYS),
    ]


class _PastStruct(ctypes.Structure):
    """Mirrors `struct past` of steps.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _PAST_SIZES),
        ("log_season", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _PAST_ARRAYS),
    ]


class KernelDense:
    """`DenseLayer` in the kernel, with a copy of its weights."""

    def __init__(
        self, weight: Float[np.ndarray, "unit feature"], bias: Float[np.ndarray, "unit"], *, silu: bool, lanes: int
    ) -> None:
        units, features = weight.shape
        panel = _PANEL_VECTORS * lanes
        padded = np.zeros((-(-units // panel) * panel, features), dtype=np.float32)
        padded[:units] = weight
        self._packed = np.ascontiguousarray(padded.reshape(-1, panel, features).swapaxes(1, 2))
        self._bias = np.zeros(len(padded), dtype=np.float32)
        self._bias[:units] = bias
        self._sizes, self._lanes, self._library = (features, units, int(silu)), lanes, _require_library()

    def __call__(self, inputs: Float[np.ndarray, "*axes feature"]) -> Float[np.ndarray, "*axes unit"]:
        """See `DenseLayer`."""
        inputs = np.ascontiguousarray(inputs)
        features, units, silu = self._sizes
        outputs = np.empty((*inputs.shape[:-1], units), dtype=np.float32)
        addresses = map(_address, (inputs, self._packed, self._bias, outputs))
        struct = _DenseStruct(inputs.size // features, features, units, silu, *addresses)
        self._library.apply_dense(ctypes.byref(struct), self._lanes)
        return outputs


class KernelStack:
    """`Stack` in the kernel, with a copy of its weights."""

    def __init__(self, sizes: StackSizes, weights: WeightArrays, *, lanes: int) -> None:
        padded = -(-sizes.hidden // lanes) * lanes
        self._fields: dict[str, Any] = {
            "kind": CELL_CODES[sizes.cell],
            "layers": sizes.layers,
            "hidden": sizes.hidden,
            "padded": padded,
            "features": sizes.features,
            "residual": sizes.first_residual_layer,
        }
        self._packed = pack_layers(RolloutStruct(**self._fields), weights, lanes=lanes)
        row_floats = 2 * (sizes.features + padded * (2 * sizes.layers + 1)) + sizes.layers * padded
        self._band = max(TILE_ROWS, BAND_BYTES // (4 * row_floats) // TILE_ROWS * TILE_ROWS)
        self._lanes, self._library = lanes, _require_library()

    def __call__(
        self, inputs: Float[np.ndarray, "row step feature"], begun: Bool[np.ndarray, "row step"], state: StackState
    ) -> tuple[Float[np.ndarray, "row hidden"], StackState]:
        """See `Stack`."""
        rows, steps, _ = inputs.shape
        hidden, cell = state.hidden.copy(), state.cell.copy()
        outputs = np.empty((rows, hidden.shape[2]), dtype=np.float32)
        inputs, begun = np.ascontiguousarray(inputs), np.ascontiguousarray(begun)
        arrays = {"packed": self._packed, "states": hidden, "cells": cell, "inputs": inputs, "started": begun}
        addresses = {name: _address(array) for name, array in arrays.items()}
        struct = RolloutStruct(rows=rows, steps=steps, outputs=_address(outputs), **addresses, **self._fields)
        if self._library.roll(ctypes.byref(struct), self._band, self._lanes, 1, None):
            raise _memory_error(rows)
        return outputs, StackState(hidden, cell)


class KernelBackend:
    """`NetworkBackend` in the kernel, on vectors of `lanes` floats."""

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes

    def create_dense(
        self, weight: Float[np.ndarray, "unit feature"], bias: Float[np.ndarray, "unit"], *, silu: bool
    ) -> KernelDense:
        """See `NetworkBackend`."""
        return KernelDense(weight, bias, silu=silu, lanes=self._lanes)

    def create_stack(self, sizes: StackSizes, weights: WeightArrays) -> KernelStack:
        """See `NetworkBackend`."""
        return KernelStack(sizes, weights, lanes=self._lanes)

    def read_past(
        self,
        filled_values: Float[np.ndarray, "row back_and_step"],
        started: Bool[np.ndarray, "row step"],
        missing: Bool[np.ndarray, "row step"],
        statistics: Float64[np.ndarray, "row statistic"],
        sizes: PastSizes,
    ) -> Past:
        """See `NetworkBackend`."""
        rows, steps = started.shape
        segments = steps // sizes.segment
        past = Past(
            np.zeros((rows, segments, sizes.num_features), dtype=np.float32),
            np.zeros((rows, segments, 2), dtype=np.float32),
            np.zeros((rows, NUM_FORECASTS, sizes.block), dtype=np.float32),
            statistics.copy(),
        )
        past.scales[..., 1] = 1.0
        read = [np.ascontiguousarray(array) for array in (filled_values, started, missing)]
        written = (past.statistics, past.features, past.scales, past.forecasts)
        struct = _PastStruct(
            *(rows, steps, sizes.segment, sizes.season, sizes.long_season or 0, sizes.block, sizes.lookback),
            *(sizes.num_phases, sizes.num_older, sizes.num_features, math.log(sizes.season)),
            *map(_address, (*read, *written)),
        )
        if _require_library().view_past(ctypes.byref(struct), self._lanes):
            raise _memory_error(rows)
        return past


def load_kernel_backend() -> KernelBackend | None:
    """Returns the kernel for the widest vectors of this machine; None if there is none or it was not compiled."""
    library = load_library()
    return KernelBackend(library.lanes()) if library is not None and library.lanes() else None


def _require_library() -> ctypes.CDLL:
    library = load_library()
    assert library is not None, "the kernel is not compiled"
    return library


def _address(array: np.ndarray) -> int:
    assert array.flags.c_contiguous, "the kernel needs C-contiguous arrays"
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def _memory_error(rows: int) -> MemoryError:
    return MemoryError(f"Expected memory for {rows} rows; there is none left. Send fewer rows at once.")

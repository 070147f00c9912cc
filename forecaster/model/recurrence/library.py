"""The compiled kernel (steps.c), and a stack of layers laid out for its rollout: numpy alone, no torch."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from forecaster.shapes import Float
from forecaster.spec import DIVERGENCE_FACTOR

logger = logging.getLogger(__name__)

CELL_CODES = {"gru": 0, "lstm": 1, "elman": 2}
LIBRARY_VERSION = 2  # of what steps.c offers
_BAND_BYTES = (
    256_000  # bytes of the rows that take their steps together: with the weights, they stay in the second cache
)
_TILE_ROWS = 6  # rows of the kernel's tiles
_PARALLEL_THRESHOLD = 1_000_000  # multiplications below which a second thread costs more than it gives

LAYER_SIZES = ("kind", "members", "rows", "steps", "features", "hidden", "padded", "pieces", "few")
LAYER_ARRAYS = (
    *("inputs", "hidden_before", "cell_before", "input_weights", "recurrent_weights", "input_bias", "recurrent_bias"),
    *("begun", "outputs", "hidden_after", "cell_after", "gates", "cells"),
    *("d_outputs", "d_hidden_after", "d_cell_after", "d_inputs", "d_hidden_before", "d_cell_before"),
    *("d_input_weights", "d_recurrent_weights", "d_bias"),
)
ROLLOUT_SIZES = ("kind", "layers", "rows", "steps", "blocks", "segment", "hidden", "padded", "places", "every")
ROLLOUT_ARRAYS = ("packed", "output", "values", "states", "cells", "bound", "told")
LAYER_WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")  # of a layer, as the bundle names them


class LayerStruct(ctypes.Structure):
    """`struct layer` of steps.c."""

    _fields_ = [*((name, ctypes.c_int64) for name in LAYER_SIZES), *((name, ctypes.c_void_p) for name in LAYER_ARRAYS)]


@cache
def load_library() -> ctypes.CDLL | None:
    """What was compiled of steps.c; None where it was not, or from another one."""
    places = [Path(__file__).with_name(f"_steps{suffix}") for suffix in EXTENSION_SUFFIXES]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        return None
    loaded = ctypes.CDLL(str(found))
    try:
        version = loaded.version()
    except AttributeError:
        version = 0
    if version != LIBRARY_VERSION:
        logger.warning("%s was compiled from another steps.c and is not used. Install again, to be faster.", found)
        return None
    for function in (loaded.lanes, loaded.run, loaded.roll, loaded.size_of_packed):
        function.restype = ctypes.c_int64
    loaded.run.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    loaded.roll.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    loaded.size_of_packed.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 2]
    loaded.pack.restype, loaded.pack.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return loaded


@cache
def find_openmp() -> int | None:
    """Where torch's own threads are started. Two pools of threads would stand in each other's way."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except AttributeError:
        return None  # another runtime: one thread


class _RolloutStruct(ctypes.Structure):
    """`struct rollout` of steps.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ROLLOUT_SIZES),
        ("runaway", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ROLLOUT_ARRAYS),
    ]


class NetworkShape(NamedTuple):
    """Which networks a stack is of.

    Attributes:
        cell: Of its layers: gru, lstm or elman.
        layers: How many.
        hidden: Units of each.
        segment: Time points that a step reads and tells.
        params: Numbers that the head reads of each point; the first is the forecast.
    """

    cell: str
    layers: int
    hidden_size: int
    segment: int
    num_params: int


class PackedNetwork:
    """The weights of a plain network, laid out for the kernel: a copy. It remembers nothing between calls.

    Attributes:
        shape: Of the network.
    """

    def __init__(self, shape: NetworkShape, weights: Mapping[str, Float[np.ndarray, "..."]], *, lanes: int) -> None:
        """Lays the weights out.

        Args:
            shape: Of the network.
            weights: By their names in the bundle.
            lanes: Floats of a vector, as the machine has them.
        """
        found = load_library()
        assert found is not None, "asked for where it was not compiled"
        self.shape, self._lanes, self._library = shape, lanes, found
        self._padded = -(-shape.hidden_size // lanes) * lanes
        self._sizes: dict[str, Any] = {
            "kind": CELL_CODES[shape.cell],
            "layers": shape.layers,
            "segment": shape.segment,
            "hidden": shape.hidden_size,
            "padded": self._padded,
            "runaway": DIVERGENCE_FACTOR,
        }
        self._packed = self._pack_layers(weights)
        self._packed_output = self._pack_output(weights)
        states = 2 * (2 * shape.segment + shape.hidden_size * (shape.layers - 1)) + 3 * shape.layers * self._padded
        self._row_bytes = 4 * states

    def run(
        self,
        *,
        values: Float[np.ndarray, "row step"] | None = None,
        states: Float[np.ndarray, "place layer hidden"] | None = None,
        cells: Float[np.ndarray, "place layer hidden"] | None = None,
        bound: Float[np.ndarray, "place"] | None = None,
        forecast: Float[np.ndarray, "row ahead"] | None = None,
        origins: int = 0,
        stride: int = 0,
        threads: int = 1,
    ) -> None:
        """Rows take the steps that are known, and those that are to be told; what is given is read, or filled.

        Args:
            values: Scaled, NaN where not observed; the memory of the rows without them.
            states: After the values, at `origins` places, filled; or before what is told, read.
            cells: Of an LSTM, likewise.
            bound: Of each row or place, beyond which it is not believed; likewise.
            told: Filled with what comes next, scaled; whole segments.
            places: How many of each row are kept.
            every: So many segments apart.
            threads: That share the rows.
        """
        segment = self.shape.segment
        rows = len(next(one for one in (values, states) if one is not None))
        steps, blocks = (0 if one is None else one.shape[1] // segment for one in (values, forecast))
        if rows * (steps + blocks) * self._packed.size < _PARALLEL_THRESHOLD:
            threads = 1
        share = min(-(-rows // threads), max(_TILE_ROWS, _BAND_BYTES // self._row_bytes))
        filled = _RolloutStruct(**self._sizes, rows=rows, steps=steps, blocks=blocks, places=origins, every=stride)
        arrays = (self._packed, self._packed_output, values, states, cells, bound, forecast)
        for name, array in zip(ROLLOUT_ARRAYS, arrays, strict=True):
            if array is not None:
                assert array.flags.c_contiguous, "the kernel reads rows end to end"
                setattr(filled, name, array.ctypes.data)
        parallel = find_openmp() if threads > 1 else None
        if self._library.roll(
            ctypes.byref(filled), -(-share // _TILE_ROWS) * _TILE_ROWS, self._lanes, threads, parallel
        ):
            raise MemoryError(f"Expected memory for {rows} rows; there is none left. Send fewer rows at once.")

    def _pack_layers(self, weights: Mapping[str, np.ndarray]) -> Float[np.ndarray, "_"]:
        sizes = _RolloutStruct(**self._sizes)
        floats = [
            self._library.size_of_packed(ctypes.byref(sizes), layer, self._lanes) for layer in range(self.shape.layers)
        ]
        packed = np.empty(sum(floats), dtype=np.float32)
        for number in range(self.shape.layers):
            names = zip(
                ("input_weights", "recurrent_weights", "input_bias", "recurrent_bias"), LAYER_WEIGHTS, strict=True
            )
            own = {ours: _as_float32(weights[f"recurrent.layers.{number}.{theirs}"]) for ours, theirs in names}
            filled = LayerStruct(
                kind=CELL_CODES[self.shape.cell],
                features=own["input_weights"].shape[1],
                hidden=self.shape.hidden_size,
                padded=self._padded,
                **{name: array.ctypes.data for name, array in own.items()},
            )
            self._library.pack(ctypes.byref(filled), packed.ctypes.data + 4 * sum(floats[:number]), self._lanes)
        return packed

    def _pack_output(self, weights: Mapping[str, np.ndarray]) -> Float[np.ndarray, "_"]:
        """The output layer's weights of each point, one after the other, and then their biases."""
        points = (self.shape.segment, self.shape.num_params)
        each = weights["output.weight"].reshape(*points, -1)[:, 0]
        wide = np.zeros((self.shape.segment, self._padded), dtype=np.float32)
        wide[:, : each.shape[1]] = each
        bias = weights["output.bias"].reshape(points)[:, 0]
        return np.concatenate([wide.ravel(), bias.astype(np.float32)])


def _as_float32(array: np.ndarray) -> Float[np.ndarray, "..."]:
    return np.ascontiguousarray(array, dtype=np.float32)

"""The compiled kernel (steps.c), and a stack of layers packed for its rollout; uses numpy only, not torch."""

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
LIBRARY_VERSION = 3  # version of the interface of steps.c
# The kernel does not use Python's headers, so one file serves all versions of Python; earlier builds had the suffix of one.
_LIBRARY_SUFFIXES = (".abi3.so", *(suffix for suffix in EXTENSION_SUFFIXES if suffix != ".abi3.so"))
BAND_BYTES = 256_000  # memory of the rows that step together; with the weights, they fit into the L2 cache
TILE_ROWS = 6  # rows of the kernel's tiles
_PARALLEL_THRESHOLD = 1_000_000  # multiplications below which a second thread does not pay off

LAYER_SIZES = ("kind", "members", "rows", "steps", "features", "hidden", "padded", "pieces", "few")
LAYER_ARRAYS = (
    *("inputs", "hidden_before", "cell_before", "input_weights", "recurrent_weights", "input_bias", "recurrent_bias"),
    *("begun", "outputs", "hidden_after", "cell_after", "gates", "cells"),
    *("d_outputs", "d_hidden_after", "d_cell_after", "d_inputs", "d_hidden_before", "d_cell_before"),
    *("d_input_weights", "d_recurrent_weights", "d_bias"),
)
ROLLOUT_SIZES = (
    "kind",
    "layers",
    "rows",
    "steps",
    "blocks",
    "segment",
    "hidden",
    "padded",
    "places",
    "every",
    "features",
    "residual",
)
ROLLOUT_ARRAYS = ("packed", "output", "values", "states", "cells", "bound", "forecast", "inputs", "started", "outputs")
LAYER_WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")  # of a layer, as named in the bundle


class LayerStruct(ctypes.Structure):
    """Mirrors `struct layer` of steps.c."""

    _fields_ = [*((name, ctypes.c_int64) for name in LAYER_SIZES), *((name, ctypes.c_void_p) for name in LAYER_ARRAYS)]


def find_library() -> Path | None:
    """Returns the file of the compiled kernel; None if it was not compiled."""
    candidates = [Path(__file__).with_name(f"_steps{suffix}") for suffix in _LIBRARY_SUFFIXES]
    return next((candidate for candidate in candidates if candidate.exists()), None)


@cache
def load_library() -> ctypes.CDLL | None:
    """Loads the compiled kernel; returns None, with one warning per process, if there is none of this version of steps.c."""
    path = find_library()
    if path is None:
        logger.warning(
            "The compiled kernel is not installed: onnxruntime computes forecasts and PyTorch trains, both more slowly. "
            "Install the wheel for this machine, or a C compiler and then the package again."
        )
        return None
    library = ctypes.CDLL(str(path))
    try:
        version = library.version()
    except AttributeError:
        version = 0
    if version != LIBRARY_VERSION:
        logger.warning(
            "%s was compiled from another version of steps.c and is not used. Reinstall forecaster for full speed.",
            path,
        )
        return None
    for function in (library.lanes, library.run, library.roll, library.size_of_packed):
        function.restype = ctypes.c_int64
    library.run.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    library.roll.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    library.size_of_packed.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 2]
    library.pack.restype, library.pack.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    library.apply_dense.restype, library.apply_dense.argtypes = None, [ctypes.c_void_p, ctypes.c_int64]
    library.view_past.restype, library.view_past.argtypes = ctypes.c_int64, [ctypes.c_void_p, ctypes.c_int64]
    return library


@cache
def find_openmp() -> int | None:
    """Returns the entry point of the OpenMP runtime that torch uses; two thread pools would compete for the cores."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except AttributeError:
        return None  # another runtime: run on one thread


class RolloutStruct(ctypes.Structure):
    """Mirrors `struct rollout` of steps.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ROLLOUT_SIZES),
        ("runaway", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ROLLOUT_ARRAYS),
    ]


def pack_layers(
    struct: RolloutStruct, weights: Mapping[str, Float[np.ndarray, "..."]], *, lanes: int
) -> Float[np.ndarray, "_"]:
    """Returns the weights of a stack of layers, packed for the kernel.

    Args:
        struct: The sizes of the stack.
        weights: Weights by their names in the bundle.
        lanes: Floats per vector on this machine.
    """
    library = load_library()
    assert library is not None, "the kernel is not compiled"
    sizes = [library.size_of_packed(ctypes.byref(struct), layer, lanes) for layer in range(struct.layers)]
    packed = np.empty(sum(sizes), dtype=np.float32)
    for index in range(struct.layers):
        names = zip(("input_weights", "recurrent_weights", "input_bias", "recurrent_bias"), LAYER_WEIGHTS, strict=True)
        layer_weights = {field: _as_float32(weights[f"recurrent.layers.{index}.{name}"]) for field, name in names}
        layer = LayerStruct(
            kind=struct.kind,
            features=layer_weights["input_weights"].shape[1],
            hidden=struct.hidden,
            padded=struct.padded,
            **{name: array.ctypes.data for name, array in layer_weights.items()},
        )
        library.pack(ctypes.byref(layer), packed.ctypes.data + 4 * sum(sizes[:index]), lanes)
    return packed


class NetworkShape(NamedTuple):
    """The sizes of a network that the kernel can roll out.

    Attributes:
        cell: Kind of cell: gru, lstm or elman.
        layers: Number of layers.
        hidden_size: Units of each layer.
        segment: Time steps that one step of the recurrence reads and predicts.
        num_params: Parameters of the head per time step; the first is the point forecast.
    """

    cell: str
    layers: int
    hidden_size: int
    segment: int
    num_params: int


class PackedNetwork:
    """A copy of a network's weights, packed for the kernel. It keeps no state between calls.

    Attributes:
        shape: Sizes of the network.
    """

    def __init__(self, shape: NetworkShape, weights: Mapping[str, Float[np.ndarray, "..."]], *, lanes: int) -> None:
        """Packs the weights.

        Args:
            shape: Sizes of the network.
            weights: Weights by their names in the bundle.
            lanes: Floats per vector on this machine.
        """
        library = load_library()
        assert library is not None, "the kernel is not compiled"
        self.shape, self._lanes, self._library = shape, lanes, library
        self._padded = -(-shape.hidden_size // lanes) * lanes
        self._sizes: dict[str, Any] = {
            "kind": CELL_CODES[shape.cell],
            "layers": shape.layers,
            "segment": shape.segment,
            "hidden": shape.hidden_size,
            "padded": self._padded,
            "features": 2 * shape.segment,
            "residual": shape.layers,
            "runaway": DIVERGENCE_FACTOR,
        }
        self._packed = pack_layers(RolloutStruct(**self._sizes), weights, lanes=lanes)
        self._packed_output = self._pack_output(weights)
        states = 2 * (2 * shape.segment + shape.hidden_size * (shape.layers - 1)) + 3 * shape.layers * self._padded
        self._row_bytes = 4 * states

    def run(
        self,
        *,
        values: Float[np.ndarray, "row step"] | None = None,
        states: Float[np.ndarray, "origin layer hidden"] | None = None,
        cells: Float[np.ndarray, "origin layer hidden"] | None = None,
        bound: Float[np.ndarray, "origin"] | None = None,
        forecast: Float[np.ndarray, "row ahead"] | None = None,
        origins: int = 0,
        stride: int = 0,
        threads: int = 1,
    ) -> None:
        """Reads the given values, then predicts; the given arrays are read or filled in place.

        In the shapes, `origin` counts the rows, or the origins of all rows.

        Args:
            values: Scaled, NaN where missing; if omitted, the rollout starts from the given states.
            states: With values: filled with the hidden states at `origins` origins. Without: the initial states.
            cells: Cell states of an LSTM, used like `states`.
            bound: Divergence bound of each row or origin, used like `states`.
            forecast: Filled with the scaled forecast; whole segments.
            origins: Number of origins per row whose states are returned.
            stride: Distance of the origins, in segments.
            threads: Number of threads that share the rows.
        """
        segment = self.shape.segment
        rows = len(next(array for array in (values, states) if array is not None))
        steps, blocks = (0 if array is None else array.shape[1] // segment for array in (values, forecast))
        if rows * (steps + blocks) * self._packed.size < _PARALLEL_THRESHOLD:
            threads = 1
        rows_per_band = min(-(-rows // threads), max(TILE_ROWS, BAND_BYTES // self._row_bytes))
        struct = RolloutStruct(**self._sizes, rows=rows, steps=steps, blocks=blocks, places=origins, every=stride)
        arrays = (self._packed, self._packed_output, values, states, cells, bound, forecast)
        for name, array in zip(ROLLOUT_ARRAYS[: len(arrays)], arrays, strict=True):
            if array is not None:
                assert array.flags.c_contiguous, "the kernel needs C-contiguous arrays"
                setattr(struct, name, array.ctypes.data)
        parallel = find_openmp() if threads > 1 else None
        if self._library.roll(
            ctypes.byref(struct), -(-rows_per_band // TILE_ROWS) * TILE_ROWS, self._lanes, threads, parallel
        ):
            raise MemoryError(f"Expected memory for {rows} rows; there is none left. Send fewer rows at once.")

    def _pack_output(self, weights: Mapping[str, np.ndarray]) -> Float[np.ndarray, "_"]:
        """Packs the output layer: the weights of each time step, one after the other, followed by their biases."""
        points = (self.shape.segment, self.shape.num_params)
        per_point = weights["output.weight"].reshape(*points, -1)[:, 0]
        padded = np.zeros((self.shape.segment, self._padded), dtype=np.float32)
        padded[:, : per_point.shape[1]] = per_point
        bias = weights["output.bias"].reshape(points)[:, 0]
        return np.concatenate([padded.ravel(), bias.astype(np.float32)])


def _as_float32(array: np.ndarray) -> Float[np.ndarray, "..."]:
    return np.ascontiguousarray(array, dtype=np.float32)

"""A recurrent layer in a compiled kernel (steps.c): float32 on a CPU, if it was compiled at installation."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from forecaster.model.recurrence.layer import LayerGradients, LayerInputs, LayerOutputs
from forecaster.model.recurrence.library import CELL_CODES, LAYER_ARRAYS, LayerStruct, find_openmp, load_library
from forecaster.shapes import Float

_PACKING_THRESHOLD = 12  # rows times steps below which the weights are read without packing
_PARALLEL_THRESHOLD = 1_000_000  # multiplications below which a second thread does not pay off


@dataclass(frozen=True)
class CompiledBackend:
    """The kernel on vectors of `lanes` floats. Each row is computed independently of the other rows."""

    lanes: int

    def forward(self, layer: LayerInputs, *, keep_for_backward: bool) -> LayerOutputs:
        """See `Backend`."""
        layer = _contiguous(layer)
        *batch_axes, hidden = layer.hidden.shape
        step_axes, empty = layer.inputs.shape[:-1], layer.inputs.new_empty
        padded = -(-hidden // self.lanes) * self.lanes
        outputs, hidden_after = empty(*step_axes, hidden), empty(*batch_axes, hidden)
        cell = empty(*batch_axes, hidden) if layer.kind == "lstm" else None
        gates = empty(*step_axes, 4 * padded) if keep_for_backward and layer.kind != "elman" else None
        cells = empty(*step_axes, padded) if keep_for_backward and layer.kind == "lstm" else None
        arrays = {"outputs": outputs, "hidden_after": hidden_after, "cell_after": cell, "gates": gates, "cells": cells}
        self._call_library(layer, arrays, chunks=_count_chunks(layer))
        return LayerOutputs(outputs, hidden_after, cell, tuple(saved for saved in (gates, cells) if saved is not None))

    def backward(
        self,
        layer: LayerInputs,
        forward_outputs: LayerOutputs,
        grad_outputs: Float[Tensor, "*member row step hidden"] | None,
        grad_hidden: Float[Tensor, "*member row hidden"] | None,
        grad_cell: Float[Tensor, "*member row hidden"] | None,
        *,
        needs_input_grad: bool,
    ) -> LayerGradients:
        """See `Backend`. Weight gradients are summed over threads, so they depend on the number of threads only."""
        layer, chunks = _contiguous(layer), _count_chunks(layer)
        batch_axes, (gates, units) = layer.recurrent_weights.shape[:-2], layer.recurrent_weights.shape[-2:]
        empty = layer.inputs.new_empty
        saved = dict(zip(("gates", "cells"), forward_outputs.saved, strict=False))
        grads = {
            "d_outputs": torch.zeros_like(forward_outputs.outputs)
            if grad_outputs is None
            else grad_outputs.contiguous(),
            "d_hidden_after": None if grad_hidden is None else grad_hidden.contiguous(),
            "d_cell_after": None if grad_cell is None else grad_cell.contiguous(),
        }
        d_inputs = torch.empty_like(layer.inputs) if needs_input_grad else None
        d_hidden = torch.empty_like(layer.hidden)
        d_cell = None if layer.cell is None else torch.empty_like(layer.cell)
        d_input_weights = empty(*batch_axes, chunks, gates, layer.inputs.shape[-1])
        d_recurrent_weights = empty(*batch_axes, chunks, gates, units)
        d_bias = empty(*batch_axes, chunks, gates + units * (layer.kind == "gru"))
        results = {
            "d_inputs": d_inputs,
            "d_hidden_before": d_hidden,
            "d_cell_before": d_cell,
            "d_input_weights": d_input_weights,
            "d_recurrent_weights": d_recurrent_weights,
            "d_bias": d_bias,
        }
        self._call_library(
            layer, {"outputs": forward_outputs.outputs, **saved, **grads, **results}, chunks=chunks, backward=True
        )
        input_bias = recurrent_bias = d_bias.sum(-2)
        if layer.kind == "gru":  # its preactivations are q, r, z, n
            q, rz, n = torch.split(input_bias, [units, 2 * units, units], dim=-1)
            input_bias, recurrent_bias = torch.cat([rz, n], dim=-1), torch.cat([rz, q], dim=-1)
        weights = d_input_weights.sum(-3), d_recurrent_weights.sum(-3)
        return LayerGradients(d_inputs, d_hidden, d_cell, *weights, input_bias, recurrent_bias)

    def _call_library(
        self, layer: LayerInputs, arrays: dict[str, Tensor | None], *, chunks: int, backward: bool = False
    ) -> None:
        *members, rows, steps, features = layer.inputs.shape
        hidden = layer.hidden.shape[-1]
        padded = -(-hidden // self.lanes) * self.lanes
        sizes = (
            CELL_CODES[layer.kind],
            *(members or (1,)),
            rows,
            steps,
            features,
            hidden,
            padded,
            chunks,
            _PACKING_THRESHOLD,
        )
        inputs = (layer.inputs, layer.hidden, layer.cell, *layer[5:], layer.mask)
        pointers = [
            *(None if array is None else array.data_ptr() for array in inputs),
            *[None] * (len(LAYER_ARRAYS) - len(inputs)),
        ]
        struct = LayerStruct(*sizes, *pointers)
        for name, array in arrays.items():
            setattr(struct, name, None if array is None else array.data_ptr())
        library = load_library()
        assert library is not None, "the kernel is not compiled"
        if library.run(ctypes.byref(struct), backward, self.lanes, torch.get_num_threads(), find_openmp()):
            raise MemoryError(
                f"Expected memory for a layer of {rows} rows; there is none left. Send fewer rows at once."
            )


def load_compiled_backend() -> CompiledBackend | None:
    """Returns the kernel for the widest vectors of this machine; None if there is none or it was not compiled."""
    library = load_library()
    return CompiledBackend(library.lanes()) if library is not None and library.lanes() else None


def _count_chunks(layer: LayerInputs) -> int:
    """Returns the number of row chunks per member, so that every thread has work."""
    *members, rows, steps, features = layer.inputs.shape
    gates, hidden = layer.recurrent_weights.shape[-2:]
    threads, num_members = torch.get_num_threads(), members[0] if members else 1
    if num_members % threads == 0 or num_members * rows * steps * gates * (features + hidden) < _PARALLEL_THRESHOLD:
        return 1
    return min(threads, rows)


def _contiguous(layer: LayerInputs) -> LayerInputs:
    return LayerInputs(layer.kind, *(None if array is None else array.contiguous() for array in layer[1:]))  # type: ignore[arg-type]

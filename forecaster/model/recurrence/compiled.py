"""A recurrent layer by a compiled kernel (steps.c): on a CPU, in float32, where it could be compiled when this was installed."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from forecaster.model.recurrence.layer import LayerGradients, LayerInputs, LayerOutputs
from forecaster.model.recurrence.library import CELL_CODES, LAYER_ARRAYS, LayerStruct, find_openmp, load_library
from forecaster.shapes import Float

_PACKING_THRESHOLD = 12  # rows times steps below which the weights are read as they lie
_PARALLEL_THRESHOLD = 1_000_000  # multiplications below which a second thread costs more than it gives


@dataclass(frozen=True)
class CompiledBackend:
    """The kernel on vectors of `lanes` floats. Rows are computed apart: one does not depend on its company."""

    lanes: int

    def forward(self, layer: LayerInputs, *, keep_for_backward: bool) -> LayerOutputs:
        """See `Backend`."""
        layer = _contiguous(layer)
        *lead, hidden = layer.hidden.shape
        each, empty = layer.inputs.shape[:-1], layer.inputs.new_empty
        padded = -(-hidden // self.lanes) * self.lanes
        outputs, after = empty(*each, hidden), empty(*lead, hidden)
        cell = empty(*lead, hidden) if layer.kind == "lstm" else None
        gates = empty(*each, 4 * padded) if keep_for_backward and layer.kind != "elman" else None
        cells = empty(*each, padded) if keep_for_backward and layer.kind == "lstm" else None
        found = {"outputs": outputs, "hidden_after": after, "cell_after": cell, "gates": gates, "cells": cells}
        self._call_library(layer, found, chunks=_count_chunks(layer))
        return LayerOutputs(outputs, after, cell, tuple(kept for kept in (gates, cells) if kept is not None))

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
        """See `Backend`. The weights' slopes are added up by threads: the same for the same number of them."""
        layer, pieces = _contiguous(layer), _count_chunks(layer)
        lead, (gates, units) = layer.recurrent_weights.shape[:-2], layer.recurrent_weights.shape[-2:]
        empty = layer.inputs.new_empty
        kept = dict(zip(("gates", "cells"), forward_outputs.saved, strict=False))
        after = {
            "d_outputs": torch.zeros_like(forward_outputs.outputs)
            if grad_outputs is None
            else grad_outputs.contiguous(),
            "d_hidden_after": None if grad_hidden is None else grad_hidden.contiguous(),
            "d_cell_after": None if grad_cell is None else grad_cell.contiguous(),
        }
        d_inputs = torch.empty_like(layer.inputs) if needs_input_grad else None
        d_hidden = torch.empty_like(layer.hidden)
        d_cell = None if layer.cell is None else torch.empty_like(layer.cell)
        d_input_weights = empty(*lead, pieces, gates, layer.inputs.shape[-1])
        d_recurrent_weights = empty(*lead, pieces, gates, units)
        d_bias = empty(*lead, pieces, gates + units * (layer.kind == "gru"))
        found = {
            "d_inputs": d_inputs,
            "d_hidden_before": d_hidden,
            "d_cell_before": d_cell,
            "d_input_weights": d_input_weights,
            "d_recurrent_weights": d_recurrent_weights,
            "d_bias": d_bias,
        }
        self._call_library(
            layer, {"outputs": forward_outputs.outputs, **kept, **after, **found}, chunks=pieces, backward=True
        )
        input_bias = recurrent_bias = d_bias.sum(-2)
        if layer.kind == "gru":  # its sums are q, r, z, n
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
        read = (layer.inputs, layer.hidden, layer.cell, *layer[5:], layer.mask)
        given = [*(None if one is None else one.data_ptr() for one in read), *[None] * (len(LAYER_ARRAYS) - len(read))]
        filled = LayerStruct(*sizes, *given)
        for name, array in arrays.items():
            setattr(filled, name, None if array is None else array.data_ptr())
        found = load_library()
        assert found is not None, "asked for where it was not compiled"
        if found.run(ctypes.byref(filled), backward, self.lanes, torch.get_num_threads(), find_openmp()):
            raise MemoryError(
                f"Expected memory for a layer of {rows} rows; there is none left. Send fewer rows at once."
            )


def load_compiled_backend() -> CompiledBackend | None:
    """The kernel for the widest vectors of this machine; None where there is none, or it was not compiled."""
    found = load_library()
    return CompiledBackend(found.lanes()) if found is not None and found.lanes() else None


def _count_chunks(layer: LayerInputs) -> int:
    """How many runs of rows each member is cut into: work for every thread."""
    *members, rows, steps, features = layer.inputs.shape
    gates, hidden = layer.recurrent_weights.shape[-2:]
    threads, many = torch.get_num_threads(), members[0] if members else 1
    if many % threads == 0 or many * rows * steps * gates * (features + hidden) < _PARALLEL_THRESHOLD:
        return 1
    return min(threads, rows)


def _contiguous(layer: LayerInputs) -> LayerInputs:
    return LayerInputs(layer.kind, *(None if one is None else one.contiguous() for one in layer[1:]))  # type: ignore[arg-type]

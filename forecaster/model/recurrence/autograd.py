"""One recurrent layer with exact gradients: a single pass over all steps, for one network or for several in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forecaster.model.recurrence import vectorized
from forecaster.model.recurrence.compiled import load_compiled_backend
from forecaster.model.recurrence.layer import Backend, LayerInputs, LayerOutputs
from forecaster.model.recurrence.library import CELL_CODES

_InDims = tuple[int | None, ...]


def compute_layer(layer: LayerInputs, *, backend: Backend | None = None) -> LayerOutputs:
    """Runs a layer over its steps; gradients reach everything that it reads.

    Under `torch.func.vmap` the mapped axis becomes the member axis, and the members run in parallel.

    Args:
        layer: The layer and its inputs.
        backend: Implementation to use; None selects the fastest one.
    """
    backend = backend or _fastest_backend(layer)
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        outputs, hidden, cell, *_ = _LayerFunction.apply(backend, torch.is_grad_enabled(), *layer)  # type: ignore[no-untyped-call]
        return LayerOutputs(outputs, hidden, cell, ())
    return backend.forward(layer, keep_for_backward=False)


def _fastest_backend(layer: LayerInputs) -> Backend:
    """Returns the compiled kernel where it is available and applicable, else torch."""
    compiled = load_compiled_backend()
    is_float32 = layer.inputs.device.type == "cpu" and layer.inputs.dtype == torch.float32
    fits = is_float32 and layer.kind in CELL_CODES
    return vectorized if compiled is None or not fits else compiled


class _LayerFunction(torch.autograd.Function):
    """`Backend.forward`, differentiable. The saved tensors are returned too, so that `vmap` sees them."""

    @staticmethod
    def forward(backend: Backend, keep_for_backward: bool, *layer: Any) -> tuple[Tensor | None, ...]:
        outputs, hidden, cell, saved = backend.forward(LayerInputs(*layer), keep_for_backward=keep_for_backward)
        return outputs, hidden, cell, *saved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        ctx.backend, keep, ctx.kind, *layer = inputs
        if keep:
            ctx.save_for_backward(*layer, *output)
        ctx.mark_non_differentiable(*output[3:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needs_input_grad = ctx.needs_input_grad[3]
        gradients = _LayerGradientFunction.apply(
            ctx.backend, needs_input_grad, ctx.kind, *ctx.saved_tensors, *grads[:3]
        )  # type: ignore[no-untyped-call]
        inputs, hidden, cell, *weights = gradients
        return None, None, None, inputs, hidden, cell, None, *weights

    @staticmethod
    def vmap(info: Any, in_dims: _InDims, *args: Any) -> tuple[tuple[Tensor | None, ...], _InDims]:
        return _apply_batched(_LayerFunction, info.batch_size, in_dims, args)


class _LayerGradientFunction(torch.autograd.Function):
    """`Backend.backward` as a function, so that it can be mapped too. It has no gradient of its own."""

    @staticmethod
    def forward(backend: Backend, needs_input_grad: bool, *args: Any) -> tuple[Tensor | None, ...]:
        layer, (outputs, hidden, cell, *saved), grads = LayerInputs(*args[:9]), args[9:-3], args[-3:]
        return backend.backward(
            layer, LayerOutputs(outputs, hidden, cell, tuple(saved)), *grads, needs_input_grad=needs_input_grad
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_grads: Tensor | None) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            "Expected a first derivative of a recurrence; a second one was requested. Call backward without create_graph."
        )

    @staticmethod
    def vmap(info: Any, in_dims: _InDims, *args: Any) -> tuple[tuple[Tensor | None, ...], _InDims]:
        return _apply_batched(_LayerGradientFunction, info.batch_size, in_dims, args)


def _apply_batched(
    function: type[torch.autograd.Function], num_members: int, in_dims: _InDims, args: Sequence[Any]
) -> tuple[tuple[Tensor | None, ...], _InDims]:
    """Applies a function to all members at once. A mapped function that already has members gets one joint member axis."""
    mask = LayerInputs._fields.index("mask") + 2  # both functions have two arguments before the layer
    nested = args[mask].dim() - (in_dims[mask] is not None) == 3

    def member_first(arg: Any, dim: int | None) -> Any:
        if not isinstance(arg, Tensor):
            return arg
        moved = arg.expand(num_members, *arg.shape) if dim is None else arg.movedim(dim, 0)
        return moved.flatten(0, 1) if nested else moved

    results: tuple[Tensor | None, ...] = function.apply(  # type: ignore[no-untyped-call]
        *(member_first(arg, dim) for arg, dim in zip(args, in_dims, strict=True))
    )
    if nested:
        results = tuple(
            None if result is None else result.view(num_members, -1, *result.shape[1:]) for result in results
        )
    return results, tuple(None if result is None else 0 for result in results)

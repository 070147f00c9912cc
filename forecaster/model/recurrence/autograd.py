"""The recurrence of one layer, with exact gradients: one pass over all steps, of one network or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forecaster.model.recurrence import equations
from forecaster.model.recurrence.compiled import kernel
from forecaster.model.recurrence.layer import Engine, Layer, Pass

_Dims = tuple[int | None, ...]


def run(layer: Layer, *, engine: Engine | None = None) -> Pass:
    """Runs a layer over its steps; gradients go back to all that it reads.

    Under `torch.func.vmap` the mapped axis becomes that of members, and their weights are used side by side.

    Args:
        layer: What to run.
        engine: The way to compute it; None: the fastest there is.
    """
    engine = engine or _fastest(layer)
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        outputs, hidden, cell, *_ = _Recurrence.apply(engine, torch.is_grad_enabled(), *layer)  # type: ignore[no-untyped-call]
        return Pass(outputs, hidden, cell, ())
    return engine.forward(layer, keep=False)


def _fastest(layer: Layer) -> Engine:
    """The compiled kernel where it is and fits, else the equations."""
    compiled = kernel()
    fits = layer.inputs.device.type == "cpu" and layer.inputs.dtype == torch.float32
    return equations if compiled is None or not fits else compiled


class _Recurrence(torch.autograd.Function):
    """`Engine.forward`, differentiable. What is kept for the way back comes out with the rest, for `vmap` to see it."""

    @staticmethod
    def forward(engine: Engine, keep: bool, *layer: Any) -> tuple[Tensor | None, ...]:
        outputs, hidden, cell, kept = engine.forward(Layer(*layer), keep=keep)
        return outputs, hidden, cell, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        ctx.engine, keep, ctx.kind, *read = inputs
        if keep:
            ctx.save_for_backward(*read, *output)
        ctx.mark_non_differentiable(*output[3:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        of_inputs = ctx.needs_input_grad[3]
        found = _Gradient.apply(ctx.engine, of_inputs, ctx.kind, *ctx.saved_tensors, *slopes[:3])  # type: ignore[no-untyped-call]
        inputs, hidden, cell, *weights = found
        return None, None, None, inputs, hidden, cell, None, *weights

    @staticmethod
    def vmap(info: Any, in_dims: _Dims, *args: Any) -> tuple[tuple[Tensor | None, ...], _Dims]:
        return _side_by_side(_Recurrence, info.batch_size, in_dims, args)


class _Gradient(torch.autograd.Function):
    """`Engine.backward`, so that it can be mapped too. It has no gradient of its own."""

    @staticmethod
    def forward(engine: Engine, of_inputs: bool, *args: Any) -> tuple[Tensor | None, ...]:
        layer, (outputs, hidden, cell, *kept), slopes = Layer(*args[:9]), args[9:-3], args[-3:]
        return engine.backward(layer, Pass(outputs, hidden, cell, tuple(kept)), *slopes, of_inputs=of_inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            "Expected a first derivative of a recurrence; a second one was asked for. Call backward without create_graph."
        )

    @staticmethod
    def vmap(info: Any, in_dims: _Dims, *args: Any) -> tuple[tuple[Tensor | None, ...], _Dims]:
        return _side_by_side(_Gradient, info.batch_size, in_dims, args)


def _side_by_side(
    function: type[torch.autograd.Function], members: int, in_dims: _Dims, args: Sequence[Any]
) -> tuple[tuple[Tensor | None, ...], _Dims]:
    """Applies a function to all members at once. Where each is a run of members already, they become one run."""
    begun = Layer._fields.index("begun") + 2  # both functions have two arguments before the layer
    nested = args[begun].dim() - (in_dims[begun] is not None) == 3

    def member_first(arg: Any, dim: int | None) -> Any:
        if not isinstance(arg, Tensor):
            return arg
        moved = arg.expand(members, *arg.shape) if dim is None else arg.movedim(dim, 0)
        return moved.flatten(0, 1) if nested else moved

    found: tuple[Tensor | None, ...] = function.apply(  # type: ignore[no-untyped-call]
        *(member_first(arg, dim) for arg, dim in zip(args, in_dims, strict=True))
    )
    if nested:
        found = tuple(None if one is None else one.view(members, -1, *one.shape[1:]) for one in found)
    return found, tuple(None if one is None else 0 for one in found)

"""What one recurrent layer reads and gives: the contract of every way to compute it."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from forecaster.shapes import Bool, Float
from forecaster.spec import CellKind


class LayerInputs(NamedTuple):
    """A layer and all that it reads. Axes before the row are members: none, or one for networks that run side by side.

    Attributes:
        kind: The cell.
        inputs: One step after another.
        hidden: The state before the first step.
        cell: That of an LSTM.
        begun: False on padding, which lies before the other steps of its row; the state passes over it unchanged.
        input_weights: Gates by features, in the order of torch: r, z, n of a GRU; i, f, g, o of an LSTM.
        recurrent_weights: Gates by hidden.
        input_bias: Of the gates.
        recurrent_bias: Likewise; a GRU's for n is inside the reset.
    """

    kind: CellKind
    inputs: Float[Tensor, "*member row step feature"]
    hidden: Float[Tensor, "*member row hidden"]
    cell: Float[Tensor, "*member row hidden"] | None
    mask: Bool[Tensor, "*member row step"]
    input_weights: Float[Tensor, "*member gate feature"]
    recurrent_weights: Float[Tensor, "*member gate hidden"]
    input_bias: Float[Tensor, "*member gate"]
    recurrent_bias: Float[Tensor, "*member gate"]


class LayerOutputs(NamedTuple):
    """What a layer made of its inputs.

    Attributes:
        outputs: Of each step; 0 on padding.
        hidden: The state after the last step.
        cell: That of an LSTM.
        kept: What the way back needs besides, known to the engine that made it alone.
    """

    outputs: Float[Tensor, "*member row step hidden"]
    hidden: Float[Tensor, "*member row hidden"]
    cell: Float[Tensor, "*member row hidden"] | None
    saved: tuple[Tensor, ...]


class LayerGradients(NamedTuple):
    """The gradient of a loss by what a layer read."""

    inputs: Float[Tensor, "*member row step feature"] | None
    hidden: Float[Tensor, "*member row hidden"]
    cell: Float[Tensor, "*member row hidden"] | None
    input_weights: Float[Tensor, "*member gate feature"]
    recurrent_weights: Float[Tensor, "*member gate hidden"]
    input_bias: Float[Tensor, "*member gate"]
    recurrent_bias: Float[Tensor, "*member gate"]


@runtime_checkable
class Backend(Protocol):
    """A way to compute a layer."""

    def forward(self, layer: LayerInputs, *, keep_for_backward: bool) -> LayerOutputs:
        """Runs over the steps; `saved` is empty unless the way back is wanted."""

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
        """The slopes by what was read, given those by what came out (None: 0). `needs_input_grad`: whether theirs are wanted."""

"""The inputs, outputs and gradients of one recurrent layer, and the contract of its backends."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from forecaster.shapes import Bool, Float
from forecaster.spec import CellKind


class LayerInputs(NamedTuple):
    """A layer with its inputs. An axis before the rows holds members: networks that run in parallel.

    Attributes:
        kind: Kind of cell.
        inputs: Input features of every step.
        hidden: Hidden state before the first step.
        cell: Cell state before the first step (LSTM only).
        mask: False on padding, which precedes all other steps of its row and leaves the state unchanged.
        input_weights: Gates by features, in torch's order: r, z, n for a GRU; i, f, g, o for an LSTM.
        recurrent_weights: Gates by hidden units.
        input_bias: Bias of the gates.
        recurrent_bias: Bias of the gates; for a GRU, the bias of n lies inside the reset.
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
    """The result of running a layer.

    Attributes:
        outputs: Output of each step; 0 on padding.
        hidden: Hidden state after the last step.
        cell: Cell state after the last step (LSTM only).
        saved: Tensors that `backward` needs; only the backend that saved them can interpret them.
    """

    outputs: Float[Tensor, "*member row step hidden"]
    hidden: Float[Tensor, "*member row hidden"]
    cell: Float[Tensor, "*member row hidden"] | None
    saved: tuple[Tensor, ...]


class LayerGradients(NamedTuple):
    """Gradients of a loss with respect to all that a layer reads."""

    inputs: Float[Tensor, "*member row step feature"] | None
    hidden: Float[Tensor, "*member row hidden"]
    cell: Float[Tensor, "*member row hidden"] | None
    input_weights: Float[Tensor, "*member gate feature"]
    recurrent_weights: Float[Tensor, "*member gate hidden"]
    input_bias: Float[Tensor, "*member gate"]
    recurrent_bias: Float[Tensor, "*member gate"]


@runtime_checkable
class Backend(Protocol):
    """An implementation of a layer."""

    def forward(self, layer: LayerInputs, *, keep_for_backward: bool) -> LayerOutputs:
        """Runs over the steps; `saved` is empty unless `keep_for_backward`."""

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
        """Returns the gradients of all that was read, given those of the outputs and final state (None means 0).

        The gradient of the inputs is computed only if `needs_input_grad`.
        """

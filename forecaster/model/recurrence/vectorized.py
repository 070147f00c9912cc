"""A recurrent layer in torch for all steps at once, with a gradient written by hand: on any device and in any precision.

`forecaster.model.recurrence.cells` has the same equations gate by gate; this backend exists because it is faster (decision 46).
All inputs are projected at once. A step is one product with the recurrent weights and a few elementwise operations, and the
weight gradients of all steps are computed at once. Steps come before rows, so that each step is contiguous in memory.

On padding `_SATURATION` is added to or subtracted from a gate's preactivation; the gate is then exactly 1 or 0 and its
gradient is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from forecaster.model.recurrence.layer import LayerGradients, LayerInputs, LayerOutputs
from forecaster.shapes import Float

_SATURATION = 1e30


class _ForwardPass(NamedTuple):
    """The result of the forward pass of a layer.

    Attributes:
        states: Hidden state after each step; on padding the previous one.
        hidden: Hidden state after the last step.
        cell: Cell state after the last step.
        saved: Further tensors for the backward pass; the gates overwrite their preactivations.
    """

    states: Float[Tensor, "member step row hidden"]
    hidden: Float[Tensor, "member row hidden"]
    cell: Float[Tensor, "member row hidden"] | None
    saved: tuple[Tensor, ...]


class _BackwardPass(NamedTuple):
    """Gradients of the preactivations of each step (of the input part and of the recurrent part) and of the first state."""

    grad_input_gates: Float[Tensor, "member step row gate"]
    grad_recurrent_gates: Float[Tensor, "member step row gate"]
    grad_hidden: Float[Tensor, "member row hidden"]
    grad_cell: Float[Tensor, "member row hidden"] | None


def forward(layer: LayerInputs, *, keep_for_backward: bool) -> LayerOutputs:
    """See `Backend`."""
    without_members, layer = layer.mask.dim() == 2, _add_member_axis(layer)
    inputs, padding = _time_major_inputs(layer)
    preactivations = _batched_matmul(inputs, layer.input_weights.mT) + layer.input_bias[:, None, None]
    forward_pass = _FORWARD[layer.kind](layer, preactivations, padding.to(preactivations))
    outputs = forward_pass.states.masked_fill(padding, 0.0).transpose(1, 2)
    outputs_and_state = LayerOutputs(
        outputs,
        forward_pass.hidden,
        forward_pass.cell,
        (preactivations, forward_pass.states, *forward_pass.saved) if keep_for_backward else (),
    )
    return _drop_member_axis(outputs_and_state) if without_members else outputs_and_state


def backward(
    layer: LayerInputs,
    forward_outputs: LayerOutputs,
    grad_outputs: Float[Tensor, "*member row step hidden"] | None,
    grad_hidden: Float[Tensor, "*member row hidden"] | None,
    grad_cell: Float[Tensor, "*member row hidden"] | None,
    *,
    needs_input_grad: bool,
) -> LayerGradients:
    """See `Backend`."""
    if layer.mask.dim() == 2:
        lead_outputs, lead_hidden, lead_cell = (
            None if grad is None else grad[None] for grad in (grad_outputs, grad_hidden, grad_cell)
        )
        saved_outputs = forward_outputs._replace(saved=tuple(tensor[None] for tensor in forward_outputs.saved))
        gradients = backward(
            _add_member_axis(layer),
            saved_outputs,
            lead_outputs,
            lead_hidden,
            lead_cell,
            needs_input_grad=needs_input_grad,
        )
        return LayerGradients(*(None if grad is None else grad[0] for grad in gradients))  # type: ignore[arg-type]
    inputs, padding = _time_major_inputs(layer)
    gates, states, *rest = forward_outputs.saved
    grads = torch.zeros_like(states)
    if grad_outputs is not None:
        grads.copy_(grad_outputs.transpose(1, 2)).masked_fill_(padding, 0.0)
    if grad_hidden is not None:
        grads[:, -1] += grad_hidden
    previous_states = torch.cat([layer.hidden[:, None], states[:, :-1]], dim=1)
    backward_pass = _BACKWARD[layer.kind](
        layer, (gates, previous_states, states, *rest), grads, grad_cell, padding.to(grads)
    )
    return LayerGradients(
        _batched_matmul(backward_pass.grad_input_gates, layer.input_weights).transpose(1, 2)
        if needs_input_grad
        else None,
        backward_pass.grad_hidden,
        backward_pass.grad_cell,
        backward_pass.grad_input_gates.flatten(1, 2).mT @ inputs.flatten(1, 2),
        backward_pass.grad_recurrent_gates.flatten(1, 2).mT @ previous_states.flatten(1, 2),
        backward_pass.grad_input_gates.sum((1, 2)),
        backward_pass.grad_recurrent_gates.sum((1, 2)),
    )


def _gru_forward(layer: LayerInputs, preactivations: Tensor, padding: Tensor) -> _ForwardPass:
    """Cho et al. 2014, equations 5 to 8, with the reset gate after the product; q is the product that is reset."""
    hidden, size = layer.hidden, layer.hidden.shape[-1]
    recurrent_weights_t = layer.recurrent_weights.mT
    b_rz, b_n = torch.split(layer.recurrent_bias[:, None], [2 * size, size], dim=-1)
    preactivations[..., : 2 * size] += b_rz[:, None]
    preactivations[..., size : 2 * size].add_(padding, alpha=_SATURATION)
    states, q = preactivations.new_empty(2, *preactivations.shape[:-1], size)
    rz, n = torch.split(preactivations, [2 * size, size], dim=-1)
    r, z = rz.chunk(2, dim=-1)
    for rz_t, r_t, z_t, n_t, q_t, state in zip(*(tensor.unbind(1) for tensor in (rz, r, z, n, q, states)), strict=True):
        recurrent_part = torch.bmm(hidden, recurrent_weights_t)
        rz_t.add_(recurrent_part[..., : 2 * size]).sigmoid_()  # (5), (6)
        torch.add(recurrent_part[..., 2 * size :], b_n, out=q_t)
        n_t.addcmul_(r_t, q_t).tanh_()  # (8)
        hidden = torch.lerp(n_t, hidden, z_t, out=state)  # (7)
    return _ForwardPass(states, hidden.clone(), None, (q,))


def _gru_backward(
    layer: LayerInputs, saved: tuple[Tensor, ...], grads: Tensor, _grad_cell: Tensor | None, _padding: Tensor
) -> _BackwardPass:
    gates, previous_states, _, q = saved
    size = previous_states.shape[-1]
    r, z, n = gates.chunk(3, dim=-1)
    grad_n_factor = (1 - z) * (1 - n * n)
    grad_gates = torch.cat(
        [grad_n_factor * q * r * (1 - r), (previous_states - n) * z * (1 - z), grad_n_factor * r], dim=-1
    )
    grad_first = torch.zeros_like(layer.hidden)
    grad_steps, grad_states = grad_gates.view(*grad_gates.shape[:-1], 3, size).unbind(1), [grad_first, *grads.unbind(1)]
    for step in reversed(range(len(grad_steps))):
        grad = grad_states[step + 1]
        grad_steps[step].mul_(grad[:, :, None])
        grad_states[step].addcmul_(grad, z[:, step]).baddbmm_(grad_gates[:, step], layer.recurrent_weights)
    return _BackwardPass(
        torch.cat([grad_gates[..., : 2 * size], grad_n_factor * grads], dim=-1), grad_gates, grad_first, None
    )


def _lstm_forward(layer: LayerInputs, preactivations: Tensor, padding: Tensor) -> _ForwardPass:
    """Gers et al. 2000, with a forget gate; Graves 2013, equations 7 to 11, without peephole connections."""
    assert layer.cell is not None, "an LSTM has a cell"
    hidden, cell, size = layer.hidden, layer.cell, layer.hidden.shape[-1]
    recurrent_weights_t = layer.recurrent_weights.mT
    preactivations += layer.recurrent_bias[:, None, None]
    i, f, g, o = preactivations.chunk(4, dim=-1)
    for gate, sign in ((i, -1), (f, 1), (o, -1)):
        gate.add_(padding, alpha=sign * _SATURATION)
    states, cells, cell_tanh = preactivations.new_empty(3, *preactivations.shape[:-1], size)
    steps = (preactivations, preactivations[..., : 2 * size], i, f, g, o, padding, states, cells, cell_tanh)
    for preactivations_t, if_t, i_t, f_t, g_t, o_t, padding_t, state, c, y in zip(
        *(tensor.unbind(1) for tensor in steps), strict=True
    ):
        preactivations_t.baddbmm_(hidden, recurrent_weights_t)
        if_t.sigmoid_()  # (7), (8)
        g_t.tanh_()
        cell = torch.mul(f_t, cell, out=c).addcmul_(i_t, g_t)  # (9)
        o_t.sigmoid_()  # (10)
        torch.tanh(cell, out=y)
        hidden = torch.mul(o_t, y, out=state).addcmul_(padding_t, hidden)  # (11)
    return _ForwardPass(states, hidden.clone(), cell.clone(), (cells, cell_tanh))


def _lstm_backward(
    layer: LayerInputs, saved: tuple[Tensor, ...], grads: Tensor, grad_cell: Tensor | None, padding: Tensor
) -> _BackwardPass:
    assert layer.cell is not None, "an LSTM has a cell"
    gates, previous_states, _, cells, cell_tanh = saved
    size = previous_states.shape[-1]
    i, f, g, o = gates.chunk(4, dim=-1)
    previous_cells = torch.cat([layer.cell[:, None], cells[:, :-1]], dim=1)
    grad_cell_factor = o * (1 - cell_tanh * cell_tanh)
    grad_gates = torch.cat(
        [g * i * (1 - i), previous_cells * f * (1 - f), i * (1 - g * g), cell_tanh * o * (1 - o)], dim=-1
    )
    grad_first, grad_c = (
        torch.zeros_like(layer.hidden),
        torch.zeros_like(layer.cell) if grad_cell is None else grad_cell.clone(),
    )
    grad_steps, grad_states = grad_gates.view(*grad_gates.shape[:-1], 4, size).unbind(1), [grad_first, *grads.unbind(1)]
    for step in reversed(range(len(grad_steps))):
        grad = grad_states[step + 1]
        grad_c.addcmul_(grad, grad_cell_factor[:, step])
        grad_steps[step][:, :, :3].mul_(grad_c[:, :, None])
        grad_steps[step][:, :, 3].mul_(grad)
        grad_c.mul_(f[:, step])
        grad_states[step].addcmul_(grad, padding[:, step]).baddbmm_(grad_gates[:, step], layer.recurrent_weights)
    return _BackwardPass(grad_gates, grad_gates, grad_first, grad_c)


def _elman_forward(
    layer: LayerInputs,
    preactivations: Tensor,
    padding: Tensor,
    *,
    activate: Callable[[Tensor], Tensor] = torch.Tensor.tanh_,
) -> _ForwardPass:
    """Elman 1990: the hidden layer reads the input and a copy of its previous activation."""
    hidden, recurrent_weights_t = layer.hidden, layer.recurrent_weights.mT
    preactivations += layer.recurrent_bias[:, None, None]
    states = torch.empty_like(preactivations)
    for preactivations_t, padding_t, state in zip(
        *(tensor.unbind(1) for tensor in (preactivations, padding, states)), strict=True
    ):
        hidden = torch.lerp(
            activate(preactivations_t.baddbmm_(hidden, recurrent_weights_t)), hidden, padding_t, out=state
        )
    return _ForwardPass(states, hidden.clone(), None, ())


def _elman_backward(
    layer: LayerInputs,
    saved: tuple[Tensor, ...],
    grads: Tensor,
    _grad_cell: Tensor | None,
    padding: Tensor,
    *,
    slope: Tensor | None = None,
) -> _BackwardPass:
    """The slope of the activation at each step is that of tanh unless it is given."""
    _, _, states = saved
    slope = 1 - states * states if slope is None else slope
    grad_gates, grad_first = slope * (1 - padding), torch.zeros_like(layer.hidden)
    grad_states = [grad_first, *grads.unbind(1)]
    for step in reversed(range(grad_gates.shape[1])):
        grad, grad_gates_t = grad_states[step + 1], grad_gates[:, step].mul_(grad_states[step + 1])
        grad_states[step].addcmul_(grad, padding[:, step]).baddbmm_(grad_gates_t, layer.recurrent_weights)
    return _BackwardPass(grad_gates, grad_gates, grad_first, None)


def _relu_forward(layer: LayerInputs, preactivations: Tensor, padding: Tensor) -> _ForwardPass:
    """Le, Jaitly and Hinton 2015: an Elman cell with rectified units."""
    return _elman_forward(layer, preactivations, padding, activate=torch.Tensor.relu_)


def _relu_backward(
    layer: LayerInputs, saved: tuple[Tensor, ...], grads: Tensor, grad_cell: Tensor | None, padding: Tensor
) -> _BackwardPass:
    gates = saved[0]
    return _elman_backward(layer, saved, grads, grad_cell, padding, slope=(gates > 0).to(gates))


_FORWARD = {"gru": _gru_forward, "lstm": _lstm_forward, "elman": _elman_forward, "relu": _relu_forward}
_BACKWARD = {"gru": _gru_backward, "lstm": _lstm_backward, "elman": _elman_backward, "relu": _relu_backward}


def _time_major_inputs(layer: LayerInputs) -> tuple[Float[Tensor, "member step row feature"], Tensor]:
    """Returns the inputs (0 on padding) and the padding, with steps before rows."""
    padding = ~layer.mask.transpose(1, 2)[..., None]
    return layer.inputs.transpose(1, 2).contiguous().masked_fill(padding, 0.0), padding


def _batched_matmul(
    left: Float[Tensor, "member step row inner"], right: Float[Tensor, "member inner column"]
) -> Float[Tensor, "member step row column"]:
    """Multiplies all steps and rows of a member at once."""
    return torch.bmm(left.flatten(1, 2), right).view(*left.shape[:3], -1)


def _add_member_axis(layer: LayerInputs) -> LayerInputs:
    """Adds a member axis to a layer without one."""
    if layer.mask.dim() == 3:
        return layer
    return LayerInputs(layer.kind, *(None if tensor is None else tensor[None] for tensor in layer[1:]))  # type: ignore[arg-type]


def _drop_member_axis(outputs: LayerOutputs) -> LayerOutputs:
    cell = None if outputs.cell is None else outputs.cell[0]
    return LayerOutputs(outputs.outputs[0], outputs.hidden[0], cell, tuple(tensor[0] for tensor in outputs.saved))

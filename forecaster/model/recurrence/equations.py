"""A recurrent layer by its equations, forward and backward, in torch: on any device and in any precision.

All inputs are projected at once, a step is one product with the recurrent weights and a few operations on its result, and the
weights learn from all steps at once. Steps come before rows here, so that a step is one piece of memory.

On padding `_SATURATION` is added to or taken from a gate's sum: the gate is 1 or 0 then, exactly, and its slope is 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from forecaster.model.recurrence.layer import LayerGradients, LayerInputs, LayerOutputs
from forecaster.shapes import Float

_SATURATION = 1e30


class _ForwardPass(NamedTuple):
    """A layer's way through the steps.

    Attributes:
        states: The hidden state after each step; on padding the one before it.
        hidden: After the last.
        cell: Likewise.
        kept: What else a cell needs on its way back; the gates are in the place of their sums.
    """

    states: Float[Tensor, "member step row hidden"]
    hidden: Float[Tensor, "member row hidden"]
    cell: Float[Tensor, "member row hidden"] | None
    saved: tuple[Tensor, ...]


class _BackwardPass(NamedTuple):
    """The way back: slopes by the sums of each step, as the inputs and as the recurrent weights meet them, and by the start."""

    grad_input_gates: Float[Tensor, "member step row gate"]
    grad_recurrent_gates: Float[Tensor, "member step row gate"]
    grad_hidden: Float[Tensor, "member row hidden"]
    grad_cell: Float[Tensor, "member row hidden"] | None


def forward(layer: LayerInputs, *, keep_for_backward: bool) -> LayerOutputs:
    """See `Backend`."""
    alone, layer = layer.mask.dim() == 2, _add_member_axis(layer)
    inputs, padding = _time_major_inputs(layer)
    sums = _batched_matmul(inputs, layer.input_weights.mT) + layer.input_bias[:, None, None]
    path = _FORWARD[layer.kind](layer, sums, padding.to(sums))
    outputs = path.states.masked_fill(padding, 0.0).transpose(1, 2)
    done = LayerOutputs(outputs, path.hidden, path.cell, (sums, path.states, *path.saved) if keep_for_backward else ())
    return _drop_member_axis(done) if alone else done


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
        of_outputs, of_hidden, of_cell = (
            None if slope is None else slope[None] for slope in (grad_outputs, grad_hidden, grad_cell)
        )
        lone = forward_outputs._replace(saved=tuple(kept[None] for kept in forward_outputs.saved))
        found = backward(
            _add_member_axis(layer), lone, of_outputs, of_hidden, of_cell, needs_input_grad=needs_input_grad
        )
        return LayerGradients(*(None if slope is None else slope[0] for slope in found))  # type: ignore[arg-type]
    inputs, padding = _time_major_inputs(layer)
    gates, states, *further = forward_outputs.saved
    slopes = torch.zeros_like(states)
    if grad_outputs is not None:
        slopes.copy_(grad_outputs.transpose(1, 2)).masked_fill_(padding, 0.0)
    if grad_hidden is not None:
        slopes[:, -1] += grad_hidden
    before = torch.cat([layer.hidden[:, None], states[:, :-1]], dim=1)
    back = _BACKWARD[layer.kind](layer, (gates, before, states, *further), slopes, grad_cell, padding.to(slopes))
    return LayerGradients(
        _batched_matmul(back.grad_input_gates, layer.input_weights).transpose(1, 2) if needs_input_grad else None,
        back.grad_hidden,
        back.grad_cell,
        back.grad_input_gates.flatten(1, 2).mT @ inputs.flatten(1, 2),
        back.grad_recurrent_gates.flatten(1, 2).mT @ before.flatten(1, 2),
        back.grad_input_gates.sum((1, 2)),
        back.grad_recurrent_gates.sum((1, 2)),
    )


def _gru_forward(layer: LayerInputs, preactivations: Tensor, padding: Tensor) -> _ForwardPass:
    """Cho et al. 2014, equations 5 to 8, with the reset gate after the product; q is what it meets."""
    hidden, size = layer.hidden, layer.hidden.shape[-1]
    recall = layer.recurrent_weights.mT
    b_rz, b_n = torch.split(layer.recurrent_bias[:, None], [2 * size, size], dim=-1)
    preactivations[..., : 2 * size] += b_rz[:, None]
    preactivations[..., size : 2 * size].add_(padding, alpha=_SATURATION)
    states, q = preactivations.new_empty(2, *preactivations.shape[:-1], size)
    rz, n = torch.split(preactivations, [2 * size, size], dim=-1)
    r, z = rz.chunk(2, dim=-1)
    for rz_t, r_t, z_t, n_t, q_t, state in zip(*(each.unbind(1) for each in (rz, r, z, n, q, states)), strict=True):
        seen = torch.bmm(hidden, recall)
        rz_t.add_(seen[..., : 2 * size]).sigmoid_()  # (5), (6)
        torch.add(seen[..., 2 * size :], b_n, out=q_t)
        n_t.addcmul_(r_t, q_t).tanh_()  # (8)
        hidden = torch.lerp(n_t, hidden, z_t, out=state)  # (7)
    return _ForwardPass(states, hidden.clone(), None, (q,))


def _gru_backward(
    layer: LayerInputs, saved: tuple[Tensor, ...], grads: Tensor, _grad_cell: Tensor | None, _padding: Tensor
) -> _BackwardPass:
    gates, before, _, q = saved
    size = before.shape[-1]
    r, z, n = gates.chunk(3, dim=-1)
    by_n = (1 - z) * (1 - n * n)
    recalled = torch.cat([by_n * q * r * (1 - r), (before - n) * z * (1 - z), by_n * r], dim=-1)
    first = torch.zeros_like(layer.hidden)
    each, earlier = recalled.view(*recalled.shape[:-1], 3, size).unbind(1), [first, *grads.unbind(1)]
    for step in reversed(range(len(each))):
        slope = earlier[step + 1]
        each[step].mul_(slope[:, :, None])
        earlier[step].addcmul_(slope, z[:, step]).baddbmm_(recalled[:, step], layer.recurrent_weights)
    return _BackwardPass(torch.cat([recalled[..., : 2 * size], by_n * grads], dim=-1), recalled, first, None)


def _lstm_forward(layer: LayerInputs, preactivations: Tensor, padding: Tensor) -> _ForwardPass:
    """Gers et al. 2000, with a forget gate; Graves 2013, equations 7 to 11, without their peepholes."""
    assert layer.cell is not None, "an LSTM has a cell"
    hidden, cell, size = layer.hidden, layer.cell, layer.hidden.shape[-1]
    recall = layer.recurrent_weights.mT
    preactivations += layer.recurrent_bias[:, None, None]
    i, f, g, o = preactivations.chunk(4, dim=-1)
    for gate, sign in ((i, -1), (f, 1), (o, -1)):
        gate.add_(padding, alpha=sign * _SATURATION)
    states, cells, squashed = preactivations.new_empty(3, *preactivations.shape[:-1], size)
    steps = (preactivations, preactivations[..., : 2 * size], i, f, g, o, padding, states, cells, squashed)
    for sums_t, if_t, i_t, f_t, g_t, o_t, hold_t, state, c, y in zip(*(each.unbind(1) for each in steps), strict=True):
        sums_t.baddbmm_(hidden, recall)
        if_t.sigmoid_()  # (7), (8)
        g_t.tanh_()
        cell = torch.mul(f_t, cell, out=c).addcmul_(i_t, g_t)  # (9)
        o_t.sigmoid_()  # (10)
        torch.tanh(cell, out=y)
        hidden = torch.mul(o_t, y, out=state).addcmul_(hold_t, hidden)  # (11)
    return _ForwardPass(states, hidden.clone(), cell.clone(), (cells, squashed))


def _lstm_backward(
    layer: LayerInputs, saved: tuple[Tensor, ...], grads: Tensor, grad_cell: Tensor | None, padding: Tensor
) -> _BackwardPass:
    assert layer.cell is not None, "an LSTM has a cell"
    gates, before, _, cells, squashed = saved
    size = before.shape[-1]
    i, f, g, o = gates.chunk(4, dim=-1)
    past = torch.cat([layer.cell[:, None], cells[:, :-1]], dim=1)
    by_cell = o * (1 - squashed * squashed)
    sums = torch.cat([g * i * (1 - i), past * f * (1 - f), i * (1 - g * g), squashed * o * (1 - o)], dim=-1)
    first, slope_c = (
        torch.zeros_like(layer.hidden),
        torch.zeros_like(layer.cell) if grad_cell is None else grad_cell.clone(),
    )
    each, earlier = sums.view(*sums.shape[:-1], 4, size).unbind(1), [first, *grads.unbind(1)]
    for step in reversed(range(len(each))):
        slope = earlier[step + 1]
        slope_c.addcmul_(slope, by_cell[:, step])
        each[step][:, :, :3].mul_(slope_c[:, :, None])
        each[step][:, :, 3].mul_(slope)
        slope_c.mul_(f[:, step])
        earlier[step].addcmul_(slope, padding[:, step]).baddbmm_(sums[:, step], layer.recurrent_weights)
    return _BackwardPass(sums, sums, first, slope_c)


def _elman_forward(layer: LayerInputs, preactivations: Tensor, padding: Tensor) -> _ForwardPass:
    """Elman 1990: the hidden layer reads the input and a copy of itself."""
    hidden, recall = layer.hidden, layer.recurrent_weights.mT
    preactivations += layer.recurrent_bias[:, None, None]
    states = torch.empty_like(preactivations)
    for sums_t, hold_t, state in zip(*(each.unbind(1) for each in (preactivations, padding, states)), strict=True):
        hidden = torch.lerp(sums_t.baddbmm_(hidden, recall).tanh_(), hidden, hold_t, out=state)
    return _ForwardPass(states, hidden.clone(), None, ())


def _elman_backward(
    layer: LayerInputs, saved: tuple[Tensor, ...], grads: Tensor, _grad_cell: Tensor | None, padding: Tensor
) -> _BackwardPass:
    _, _, states = saved
    sums, first = (1 - states * states) * (1 - padding), torch.zeros_like(layer.hidden)
    earlier = [first, *grads.unbind(1)]
    for step in reversed(range(sums.shape[1])):
        slope, of_sums = earlier[step + 1], sums[:, step].mul_(earlier[step + 1])
        earlier[step].addcmul_(slope, padding[:, step]).baddbmm_(of_sums, layer.recurrent_weights)
    return _BackwardPass(sums, sums, first, None)


_FORWARD = {"gru": _gru_forward, "lstm": _lstm_forward, "elman": _elman_forward}
_BACKWARD = {"gru": _gru_backward, "lstm": _lstm_backward, "elman": _elman_backward}


def _time_major_inputs(layer: LayerInputs) -> tuple[Float[Tensor, "member step row feature"], Tensor]:
    """The inputs, 0 on padding, and the padding: steps before rows."""
    padding = ~layer.mask.transpose(1, 2)[..., None]
    return layer.inputs.transpose(1, 2).contiguous().masked_fill(padding, 0.0), padding


def _batched_matmul(
    left: Float[Tensor, "member step row inner"], right: Float[Tensor, "member inner column"]
) -> Float[Tensor, "member step row column"]:
    """One product over all steps and rows."""
    return torch.bmm(left.flatten(1, 2), right).view(*left.shape[:3], -1)


def _add_member_axis(layer: LayerInputs) -> LayerInputs:
    """A layer without an axis of members gets one."""
    if layer.mask.dim() == 3:
        return layer
    return LayerInputs(layer.kind, *(None if one is None else one[None] for one in layer[1:]))  # type: ignore[arg-type]


def _drop_member_axis(outputs: LayerOutputs) -> LayerOutputs:
    cell = None if outputs.cell is None else outputs.cell[0]
    return LayerOutputs(outputs.outputs[0], outputs.hidden[0], cell, tuple(kept[0] for kept in outputs.saved))

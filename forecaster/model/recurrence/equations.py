"""A recurrent layer by its equations, forward and backward, in torch: on any device and in any precision.

All inputs are projected at once, a step is one product with the recurrent weights and a few operations on its result, and the
weights learn from all steps at once. Steps come before rows here, so that a step is one piece of memory.

On padding `_SHUT` is added to or taken from a gate's sum: the gate is 1 or 0 then, exactly, and its slope is 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from forecaster.model.recurrence.layer import Layer, Pass, Slopes
from forecaster.shapes import Float

_SHUT = 1e30


class _Path(NamedTuple):
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
    kept: tuple[Tensor, ...]


class _Return(NamedTuple):
    """The way back: slopes by the sums of each step, as the inputs and as the recurrent weights meet them, and by the start."""

    read: Float[Tensor, "member step row gate"]
    recalled: Float[Tensor, "member step row gate"]
    hidden: Float[Tensor, "member row hidden"]
    cell: Float[Tensor, "member row hidden"] | None


def forward(layer: Layer, *, keep: bool) -> Pass:
    """See `Engine`."""
    alone, layer = layer.begun.dim() == 2, _with_members(layer)
    inputs, padding = _by_step(layer)
    sums = _product(inputs, layer.input_weights.mT) + layer.input_bias[:, None, None]
    path = _FORWARD[layer.kind](layer, sums, padding.to(sums))
    outputs = path.states.masked_fill(padding, 0.0).transpose(1, 2)
    done = Pass(outputs, path.hidden, path.cell, (sums, path.states, *path.kept) if keep else ())
    return _without_members(done) if alone else done


def backward(
    layer: Layer,
    done: Pass,
    outputs: Float[Tensor, "*member row step hidden"] | None,
    hidden: Float[Tensor, "*member row hidden"] | None,
    cell: Float[Tensor, "*member row hidden"] | None,
    *,
    of_inputs: bool,
) -> Slopes:
    """See `Engine`."""
    if layer.begun.dim() == 2:
        of_outputs, of_hidden, of_cell = (None if slope is None else slope[None] for slope in (outputs, hidden, cell))
        lone = done._replace(kept=tuple(kept[None] for kept in done.kept))
        found = backward(_with_members(layer), lone, of_outputs, of_hidden, of_cell, of_inputs=of_inputs)
        return Slopes(*(None if slope is None else slope[0] for slope in found))  # type: ignore[arg-type]
    inputs, padding = _by_step(layer)
    gates, states, *further = done.kept
    slopes = torch.zeros_like(states)
    if outputs is not None:
        slopes.copy_(outputs.transpose(1, 2)).masked_fill_(padding, 0.0)
    if hidden is not None:
        slopes[:, -1] += hidden
    before = torch.cat([layer.hidden[:, None], states[:, :-1]], dim=1)
    back = _BACKWARD[layer.kind](layer, (gates, before, states, *further), slopes, cell, padding.to(slopes))
    return Slopes(
        _product(back.read, layer.input_weights).transpose(1, 2) if of_inputs else None,
        back.hidden,
        back.cell,
        back.read.flatten(1, 2).mT @ inputs.flatten(1, 2),
        back.recalled.flatten(1, 2).mT @ before.flatten(1, 2),
        back.read.sum((1, 2)),
        back.recalled.sum((1, 2)),
    )


def _gru(layer: Layer, sums: Tensor, hold: Tensor) -> _Path:
    """Cho et al. 2014, equations 5 to 8, with the reset gate after the product; q is what it meets."""
    hidden, size = layer.hidden, layer.hidden.shape[-1]
    recall = layer.recurrent_weights.mT
    b_rz, b_n = torch.split(layer.recurrent_bias[:, None], [2 * size, size], dim=-1)
    sums[..., : 2 * size] += b_rz[:, None]
    sums[..., size : 2 * size].add_(hold, alpha=_SHUT)
    states, q = sums.new_empty(2, *sums.shape[:-1], size)
    rz, n = torch.split(sums, [2 * size, size], dim=-1)
    r, z = rz.chunk(2, dim=-1)
    for rz_t, r_t, z_t, n_t, q_t, state in zip(*(each.unbind(1) for each in (rz, r, z, n, q, states)), strict=True):
        seen = torch.bmm(hidden, recall)
        rz_t.add_(seen[..., : 2 * size]).sigmoid_()  # (5), (6)
        torch.add(seen[..., 2 * size :], b_n, out=q_t)
        n_t.addcmul_(r_t, q_t).tanh_()  # (8)
        hidden = torch.lerp(n_t, hidden, z_t, out=state)  # (7)
    return _Path(states, hidden.clone(), None, (q,))


def _gru_back(layer: Layer, kept: tuple[Tensor, ...], slopes: Tensor, _cell: Tensor | None, _hold: Tensor) -> _Return:
    gates, before, _, q = kept
    size = before.shape[-1]
    r, z, n = gates.chunk(3, dim=-1)
    by_n = (1 - z) * (1 - n * n)
    recalled = torch.cat([by_n * q * r * (1 - r), (before - n) * z * (1 - z), by_n * r], dim=-1)
    first = torch.zeros_like(layer.hidden)
    each, earlier = recalled.view(*recalled.shape[:-1], 3, size).unbind(1), [first, *slopes.unbind(1)]
    for step in reversed(range(len(each))):
        slope = earlier[step + 1]
        each[step].mul_(slope[:, :, None])
        earlier[step].addcmul_(slope, z[:, step]).baddbmm_(recalled[:, step], layer.recurrent_weights)
    return _Return(torch.cat([recalled[..., : 2 * size], by_n * slopes], dim=-1), recalled, first, None)


def _lstm(layer: Layer, sums: Tensor, hold: Tensor) -> _Path:
    """Gers et al. 2000, with a forget gate; Graves 2013, equations 7 to 11, without their peepholes."""
    assert layer.cell is not None, "an LSTM has a cell"
    hidden, cell, size = layer.hidden, layer.cell, layer.hidden.shape[-1]
    recall = layer.recurrent_weights.mT
    sums += layer.recurrent_bias[:, None, None]
    i, f, g, o = sums.chunk(4, dim=-1)
    for gate, sign in ((i, -1), (f, 1), (o, -1)):
        gate.add_(hold, alpha=sign * _SHUT)
    states, cells, squashed = sums.new_empty(3, *sums.shape[:-1], size)
    steps = (sums, sums[..., : 2 * size], i, f, g, o, hold, states, cells, squashed)
    for sums_t, if_t, i_t, f_t, g_t, o_t, hold_t, state, c, y in zip(*(each.unbind(1) for each in steps), strict=True):
        sums_t.baddbmm_(hidden, recall)
        if_t.sigmoid_()  # (7), (8)
        g_t.tanh_()
        cell = torch.mul(f_t, cell, out=c).addcmul_(i_t, g_t)  # (9)
        o_t.sigmoid_()  # (10)
        torch.tanh(cell, out=y)
        hidden = torch.mul(o_t, y, out=state).addcmul_(hold_t, hidden)  # (11)
    return _Path(states, hidden.clone(), cell.clone(), (cells, squashed))


def _lstm_back(layer: Layer, kept: tuple[Tensor, ...], slopes: Tensor, cell: Tensor | None, hold: Tensor) -> _Return:
    assert layer.cell is not None, "an LSTM has a cell"
    gates, before, _, cells, squashed = kept
    size = before.shape[-1]
    i, f, g, o = gates.chunk(4, dim=-1)
    past = torch.cat([layer.cell[:, None], cells[:, :-1]], dim=1)
    by_cell = o * (1 - squashed * squashed)
    sums = torch.cat([g * i * (1 - i), past * f * (1 - f), i * (1 - g * g), squashed * o * (1 - o)], dim=-1)
    first, slope_c = torch.zeros_like(layer.hidden), torch.zeros_like(layer.cell) if cell is None else cell.clone()
    each, earlier = sums.view(*sums.shape[:-1], 4, size).unbind(1), [first, *slopes.unbind(1)]
    for step in reversed(range(len(each))):
        slope = earlier[step + 1]
        slope_c.addcmul_(slope, by_cell[:, step])
        each[step][:, :, :3].mul_(slope_c[:, :, None])
        each[step][:, :, 3].mul_(slope)
        slope_c.mul_(f[:, step])
        earlier[step].addcmul_(slope, hold[:, step]).baddbmm_(sums[:, step], layer.recurrent_weights)
    return _Return(sums, sums, first, slope_c)


def _elman(layer: Layer, sums: Tensor, hold: Tensor) -> _Path:
    """Elman 1990: the hidden layer reads the input and a copy of itself."""
    hidden, recall = layer.hidden, layer.recurrent_weights.mT
    sums += layer.recurrent_bias[:, None, None]
    states = torch.empty_like(sums)
    for sums_t, hold_t, state in zip(*(each.unbind(1) for each in (sums, hold, states)), strict=True):
        hidden = torch.lerp(sums_t.baddbmm_(hidden, recall).tanh_(), hidden, hold_t, out=state)
    return _Path(states, hidden.clone(), None, ())


def _elman_back(layer: Layer, kept: tuple[Tensor, ...], slopes: Tensor, _cell: Tensor | None, hold: Tensor) -> _Return:
    _, _, states = kept
    sums, first = (1 - states * states) * (1 - hold), torch.zeros_like(layer.hidden)
    earlier = [first, *slopes.unbind(1)]
    for step in reversed(range(sums.shape[1])):
        slope, of_sums = earlier[step + 1], sums[:, step].mul_(earlier[step + 1])
        earlier[step].addcmul_(slope, hold[:, step]).baddbmm_(of_sums, layer.recurrent_weights)
    return _Return(sums, sums, first, None)


_FORWARD = {"gru": _gru, "lstm": _lstm, "elman": _elman}
_BACKWARD = {"gru": _gru_back, "lstm": _lstm_back, "elman": _elman_back}


def _by_step(layer: Layer) -> tuple[Float[Tensor, "member step row feature"], Tensor]:
    """The inputs, 0 on padding, and the padding: steps before rows."""
    padding = ~layer.begun.transpose(1, 2)[..., None]
    return layer.inputs.transpose(1, 2).contiguous().masked_fill(padding, 0.0), padding


def _product(
    each: Float[Tensor, "member step row inner"], right: Float[Tensor, "member inner column"]
) -> Float[Tensor, "member step row column"]:
    """One product over all steps and rows."""
    return torch.bmm(each.flatten(1, 2), right).view(*each.shape[:3], -1)


def _with_members(layer: Layer) -> Layer:
    """A layer without an axis of members gets one."""
    if layer.begun.dim() == 3:
        return layer
    return Layer(layer.kind, *(None if one is None else one[None] for one in layer[1:]))  # type: ignore[arg-type]


def _without_members(done: Pass) -> Pass:
    cell = None if done.cell is None else done.cell[0]
    return Pass(done.outputs[0], done.hidden[0], cell, tuple(kept[0] for kept in done.kept))

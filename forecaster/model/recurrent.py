"""Elman, GRU and LSTM recurrences with the state as an argument; padding never touches it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from forecaster.shapes import Bool, Float
from forecaster.spec import Cell


class State(NamedTuple):
    """The recurrence of a network: all it knows of the past."""

    hidden: Float[Tensor, "layer row hidden"]
    cell: Float[Tensor, "layer row hidden"] | None  # LSTM only


class Recurrent(nn.Module):
    """A stack of recurrent layers.

    Cells: Elman 1990 (tanh), GRU of Cho et al. 2014 with the reset gate after the product, LSTM of Gers et al. 2000.
    """

    def __init__(self, cell: Cell, *, inputs: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        kind = {"gru": nn.GRU, "lstm": nn.LSTM, "elman": nn.RNN}[cell]
        self.has_cell = cell == "lstm"
        self.layers, self.hidden = layers, hidden
        self.stack = kind(inputs, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)

    def start(self, rows: int, *, like: Tensor) -> State:
        """The state before anything was seen."""
        zero = torch.zeros(self.layers, rows, self.hidden, dtype=torch.float32, device=like.device)
        return State(zero, zero if self.has_cell else None)

    def forward(
        self, inputs: Float[Tensor, "row step feature"], state: State, begun: Bool[Tensor, "row step"]
    ) -> tuple[Float[Tensor, "row step hidden"], State]:
        """Runs over the steps.

        Args:
            inputs: One step after another.
            state: Where to go on from.
            begun: False on padding, which lies before the other steps of its row; the state passes over it unchanged.
        Returns:
            The top layer's output of each step (0 on padding), and the state after the last.
        """
        if bool(begun.all()):
            return self._run(inputs, state)
        return self._run_after_padding(inputs, state, begun)

    def _run(
        self, inputs: Float[Tensor, "row step feature"], state: State
    ) -> tuple[Float[Tensor, "row step hidden"], State]:
        if state.cell is not None:
            outputs, (hidden, cell) = self.stack(inputs, (state.hidden, state.cell))
            return outputs, State(hidden, cell)
        outputs, hidden = self.stack(inputs, state.hidden)
        return outputs, State(hidden, None)

    def _run_after_padding(
        self, inputs: Float[Tensor, "row step feature"], state: State, begun: Bool[Tensor, "row step"]
    ) -> tuple[Float[Tensor, "row step hidden"], State]:
        """Moves every row to the left, runs each over its own length, and moves the outputs back."""
        steps = inputs.shape[1]
        lengths = begun.sum(1)
        clock = torch.arange(steps, device=inputs.device)
        there = (clock + (steps - lengths)[:, None]).clamp(max=steps - 1)
        back = (clock - (steps - lengths)[:, None]).clamp(min=0)
        left = inputs.gather(1, there[:, :, None].expand_as(inputs))
        packed = pack_padded_sequence(left, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        memory = state.hidden if state.cell is None else (state.hidden, state.cell)
        packed_outputs, after = self.stack(packed, memory)
        outputs, _ = pad_packed_sequence(packed_outputs, batch_first=True, total_length=steps)
        outputs = outputs.gather(1, back[:, :, None].expand_as(outputs)).masked_fill(~begun[:, :, None], 0.0)
        hidden, cell = after if isinstance(after, tuple) else (after, None)
        empty = (lengths == 0)[None, :, None]
        kept_cell = None if cell is None or state.cell is None else torch.where(empty, state.cell, cell)
        return outputs, State(torch.where(empty, state.hidden, hidden), kept_cell)

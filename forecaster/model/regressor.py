"""The network: a recurrence that reads scaled values and says, at every step, what the next one will be."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forecaster.model.recurrent import Recurrent, State
from forecaster.shapes import Bool, Float
from forecaster.spec import Spec

FEATURES = 2  # of a step: its scaled value (0 where missing), and whether it was observed


class Regressor(nn.Module):
    """Recurrence and output layer, in scaled space. The scaling it was built for travels with it."""

    def __init__(self, recurrent: Recurrent, spec: Spec) -> None:
        super().__init__()
        self.scaling = spec.scaling
        self.recurrent = recurrent
        self.output = nn.Linear(recurrent.hidden, 1)

    def forward(
        self,
        values: Float[Tensor, "row step"],
        observed: Bool[Tensor, "row step"],
        begun: Bool[Tensor, "row step"],
        state: State,
    ) -> tuple[Float[Tensor, "row step"], State]:
        """The prediction made after each step for the one that follows it, and the state after the last."""
        inputs = torch.stack([values, observed.float()], dim=-1)
        hidden, state = self.recurrent(inputs, state, begun)
        return self.output(hidden).squeeze(-1), state


def build(spec: Spec, *, seed: int) -> Regressor:
    """A network with random weights: the same for the same specification and seed, whatever was drawn before."""
    network = spec.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        recurrent = Recurrent(
            network.cell, inputs=FEATURES, hidden=network.hidden, layers=network.layers, dropout=network.dropout
        )
        return Regressor(recurrent, spec)

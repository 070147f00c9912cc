"""Networks of one shape trained in parallel, with stacked weights: every operation computes the rows of all members at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from forecaster.evaluation.validation import MAX_BATCH_ROWS, ValidationBatch, ValidationScores, repeat_rows, score_batch
from forecaster.model.regressor import Regressor
from forecaster.model.stacking import stack_network
from forecaster.shapes import Float
from forecaster.training.loss import TrainingBatch, UnrolledTargets, compute_member_losses

_DOT_REPLACEMENT = "/"  # torch allows no dot in the name of a parameter


class StackedNetworks(nn.Module):
    """The weights of several networks, each parameter with a leading member axis.

    An element-wise optimiser, such as Adam, trains them as it would train each alone.
    """

    def __init__(self, networks: Sequence[Regressor]) -> None:
        super().__init__()
        buffers = [name for name, _ in networks[0].named_buffers()]
        assert not buffers, f"a network with buffers cannot be stacked: {sorted(buffers)}"
        names = [name for name, _ in networks[0].named_parameters()]
        self.weights = nn.ParameterDict(
            {
                _escape_name(name): nn.Parameter(
                    torch.stack([network.get_parameter(name).detach() for network in networks])
                )
                for name in names
            }
        )
        # In a tuple, as its weights are registered above.
        self._network = (stack_network(networks[0], lambda name: self.weights[_escape_name(name)]),)

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    def train(self, mode: bool = True) -> StackedNetworks:
        """Sets the mode of the networks: dropout applies in training."""
        self._network[0].train(mode)
        return super().train(mode)

    def losses(self, batch: TrainingBatch) -> Float[Tensor, "member"]:
        """Returns the loss of each member on its own batch; every part of `batch` has a leading member axis."""
        *parts, unrolled = batch
        targets = None if unrolled is None else UnrolledTargets(*(part.flatten(0, 1) for part in unrolled))
        rows = TrainingBatch(*(None if part is None else part.flatten(0, 1) for part in parts), targets)  # type: ignore[arg-type, call-arg]
        return compute_member_losses(self._network[0], rows, num_members=len(self))

    def score(self, batch: ValidationBatch) -> ValidationScores | None:
        """Returns the mean scores of the members on a batch, or None if it has too many rows for all members at once."""
        if len(self) * len(batch.seasonal_error) > MAX_BATCH_ROWS:
            return None
        rows = repeat_rows(batch, copies=len(self))
        return score_batch(self._network[0], rows, num_members=len(self))

    def clip_gradient_norm(self, gradients: list[Tensor], *, max_norm: float) -> None:
        """Scales the gradients of each member by one factor, so that their joint norm is at most `max_norm`."""
        norms = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
        factor = (max_norm / (torch.linalg.vector_norm(torch.stack(norms), dim=0) + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, [factor.view(-1, *[1] * (gradient.dim() - 1)) for gradient in gradients])

    def copy_weights_to(self, networks: Sequence[nn.Module]) -> None:
        """Writes the weights of each member into a network."""
        for member, network in enumerate(networks):
            network.load_state_dict({_unescape_name(name): weight[member] for name, weight in self.weights.items()})


def _escape_name(name: str) -> str:
    return name.replace(".", _DOT_REPLACEMENT)


def _unescape_name(name: str) -> str:
    return name.replace(_DOT_REPLACEMENT, ".")

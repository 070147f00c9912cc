"""Networks of one shape trained side by side: their weights are stacked, and one batched recurrence steps through all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from forecaster.model.regressor import Regressor
from forecaster.shapes import Float
from forecaster.training.loss import TrainingBatch, UnrolledTargets, compute_loss

_DOT_REPLACEMENT = "/"  # a dot in the name of a parameter is torch's own


class StackedNetworks(nn.Module):
    """The weights of several networks, each parameter with a leading axis of members.

    An optimiser that works element by element, such as Adam, trains them as it would train each alone.
    """

    def __init__(self, networks: Sequence[Regressor]) -> None:
        super().__init__()
        stacked, buffers = stack_module_state(list(networks))
        assert not buffers, f"a network with buffers cannot be stacked: {sorted(buffers)}"
        self.weights = nn.ParameterDict({_escape_name(name): nn.Parameter(weight) for name, weight in stacked.items()})
        self._template = (_LossModule(networks[0]),)  # in a tuple, so that the weights of one are not those of all

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    def losses(self, batch: TrainingBatch) -> Float[Tensor, "member"]:
        """The loss of each member on a lesson of its own; every part of `batch` has a leading axis of members."""
        [shape] = self._template
        weights = {f"network.{_unescape_name(name)}": weight for name, weight in self.weights.items()}
        *first, beyond = batch
        held = [place for place, part in enumerate(first) if part is not None]

        def one(weights: dict[str, Tensor], parts: list[Tensor], further: tuple[Tensor, ...]) -> Tensor:
            whole: list[Tensor | None] = [None] * len(first)
            for place, part in zip(held, parts, strict=True):
                whole[place] = part
            lesson = TrainingBatch(*whole, unrolled=UnrolledTargets(*further) if further else None)  # type: ignore[arg-type, misc]
            loss: Tensor = functional_call(shape, weights, (lesson,))
            return loss

        parts = [part for part in first if part is not None]
        found: Tensor = vmap(one, randomness="different")(weights, parts, tuple(beyond or ()))
        return found

    def clip_gradient_norm(self, gradients: list[Tensor], *, max_norm: float) -> None:
        """Shrinks the gradients of each member alike, so that their norm together is at most `max_norm`."""
        norm = torch.linalg.vector_norm(torch.cat([one.flatten(1) for one in gradients], dim=1), dim=1)
        share = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(share.reshape(-1, *[1] * (gradient.dim() - 1)))

    def copy_weights_to(self, networks: Sequence[nn.Module]) -> None:
        """Writes the weights of each member into a network."""
        for number, network in enumerate(networks):
            network.load_state_dict({_unescape_name(name): weight[number] for name, weight in self.weights.items()})


class _LossModule(nn.Module):
    """`compute_loss` as a module, for its weights to be exchanged."""

    def __init__(self, network: Regressor) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: TrainingBatch) -> Float[Tensor, ""]:
        return compute_loss(self.network, batch)


def _escape_name(name: str) -> str:
    return name.replace(".", _DOT_REPLACEMENT)


def _unescape_name(name: str) -> str:
    return name.replace(_DOT_REPLACEMENT, ".")

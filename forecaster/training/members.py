"""Networks of one shape trained in parallel: their weights are stacked, and one batched recurrence steps through all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from forecaster.model.regressor import Regressor
from forecaster.shapes import Float
from forecaster.training.loss import TrainingBatch, UnrolledTargets, compute_loss

_DOT_REPLACEMENT = "/"  # torch allows no dot in the name of a parameter


class StackedNetworks(nn.Module):
    """The weights of several networks, each parameter with a leading member axis.

    An element-wise optimiser, such as Adam, trains them as it would train each alone.
    """

    def __init__(self, networks: Sequence[Regressor]) -> None:
        super().__init__()
        stacked, buffers = stack_module_state(list(networks))
        assert not buffers, f"a network with buffers cannot be stacked: {sorted(buffers)}"
        self.weights = nn.ParameterDict({_escape_name(name): nn.Parameter(weight) for name, weight in stacked.items()})
        self._template = (_LossModule(networks[0]),)  # in a tuple, so that its weights are not registered here

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    def losses(self, batch: TrainingBatch) -> Float[Tensor, "member"]:
        """Returns the loss of each member on its own batch; every part of `batch` has a leading member axis."""
        [template] = self._template
        weights = {f"network.{_unescape_name(name)}": weight for name, weight in self.weights.items()}
        *window_parts, unrolled = batch
        present = [index for index, part in enumerate(window_parts) if part is not None]

        def member_loss(weights: dict[str, Tensor], parts: list[Tensor], unrolled_parts: tuple[Tensor, ...]) -> Tensor:
            fields: list[Tensor | None] = [None] * len(window_parts)
            for index, part in zip(present, parts, strict=True):
                fields[index] = part
            member_batch = TrainingBatch(*fields, unrolled=UnrolledTargets(*unrolled_parts) if unrolled_parts else None)  # type: ignore[arg-type, misc]
            loss: Tensor = functional_call(template, weights, (member_batch,))
            return loss

        parts = [part for part in window_parts if part is not None]
        losses: Tensor = vmap(member_loss, randomness="different")(weights, parts, tuple(unrolled or ()))
        return losses

    def clip_gradient_norm(self, gradients: list[Tensor], *, max_norm: float) -> None:
        """Scales the gradients of each member by one factor, so that their joint norm is at most `max_norm`."""
        norm = torch.linalg.vector_norm(torch.cat([gradient.flatten(1) for gradient in gradients], dim=1), dim=1)
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.reshape(-1, *[1] * (gradient.dim() - 1)))

    def copy_weights_to(self, networks: Sequence[nn.Module]) -> None:
        """Writes the weights of each member into a network."""
        for member, network in enumerate(networks):
            network.load_state_dict({_unescape_name(name): weight[member] for name, weight in self.weights.items()})


class _LossModule(nn.Module):
    """`compute_loss` as a module, so that its weights can be replaced."""

    def __init__(self, network: Regressor) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: TrainingBatch) -> Float[Tensor, ""]:
        return compute_loss(self.network, batch)


def _escape_name(name: str) -> str:
    return name.replace(".", _DOT_REPLACEMENT)


def _unescape_name(name: str) -> str:
    return name.replace(_DOT_REPLACEMENT, ".")

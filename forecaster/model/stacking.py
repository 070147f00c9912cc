"""Networks of one shape as a single network with stacked weights: each weight has a leading member axis.

The rows of a batch are those of the first member, then those of the second, and so on. All but the products with weights is
computed per row, so it need not know of members.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from forecaster.shapes import Float, Int

_NetworkT = TypeVar("_NetworkT", bound=nn.Module)
_RECURRENT_MODULES = (nn.RNNBase, nn.GRUCell)  # the recurrence finds the member axis of their weights itself


class StackedLinear(nn.Linear):
    """Linear layers, each applied to the rows of its member."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter) -> None:
        super().__init__(weight.shape[2], weight.shape[1], device="meta")
        self.weight, self.bias = weight, bias

    def forward(self, inputs: Float[Tensor, "row *axes feature"]) -> Float[Tensor, "row *axes output"]:
        """Applies the layers."""
        by_member = inputs.reshape(len(self.weight), -1, inputs.shape[-1])
        return torch.baddbmm(self.bias[:, None], by_member, self.weight.mT).view(*inputs.shape[:-1], -1)


class StackedEmbedding(nn.Module):
    """Embeddings, each applied to the rows of its member."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, codes: Int[Tensor, "row"]) -> Float[Tensor, "row size"]:
        """Looks the codes up."""
        members, cardinality = self.weight.shape[:2]
        first = torch.arange(members, device=codes.device).repeat_interleave(len(codes) // members) * cardinality
        return functional.embedding(codes + first, self.weight.flatten(0, 1))


def stack_network(network: _NetworkT, weight: Callable[[str], nn.Parameter]) -> _NetworkT:
    """Returns a copy of a network whose weights are the stacked ones of the same names; they are shared, not copied."""
    stacked = copy.deepcopy(network)
    for name, module in list(stacked.named_modules()):
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.Linear):
            stacked.set_submodule(name, StackedLinear(weight(f"{prefix}weight"), weight(f"{prefix}bias")))
        elif isinstance(module, nn.Embedding):
            stacked.set_submodule(name, StackedEmbedding(weight(f"{prefix}weight")))
        else:
            own = [parameter for parameter, _ in module.named_parameters(recurse=False)]
            assert not own or isinstance(module, _RECURRENT_MODULES) or module is stacked, f"{name} cannot be stacked"
            for parameter in own:
                setattr(module, parameter, weight(f"{prefix}{parameter}"))
    return stacked


def expand_to_rows(
    values: Float[Tensor, "*member place size"], axes: tuple[int, ...]
) -> Float[Tensor, "row *axes place size"]:
    """Repeats values along the axes of a batch, the first of which are rows; stacked values along the rows of their member."""
    if values.dim() == 2:
        return values.expand(*axes, *values.shape)
    members, *shape = values.shape
    others = [1] * len(axes)
    return values.view(members, *others, *shape).expand(members, axes[0] // members, *axes[1:], *shape).flatten(0, 1)

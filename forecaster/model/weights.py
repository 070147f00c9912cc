"""Weights of all members as one safetensors file, to and from networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights

from forecaster.errors import BundleDamaged
from forecaster.model.regressor import Regressor, build_network
from forecaster.spec import Spec


def serialize_weights(networks: Sequence[Regressor]) -> bytes:
    """The weights of all members as a file."""
    named = _as_module(networks).state_dict()
    return save_weights({name: tensor.detach().cpu().contiguous() for name, tensor in named.items()})


def load_networks(
    spec: Spec, content: bytes, *, season: int, num_covariates: int, static_cardinalities: Sequence[int]
) -> tuple[Regressor, ...]:
    """All members with the weights of a file. Raises BundleDamaged if they do not fit the specification, or are not finite.

    Args:
        spec: Of the networks.
        content: The file.
        season: As `build_network` takes it; so `num_covariates` and `static_cardinalities`.
        covariates: Numbers that are known ahead of each time point.
        groups: Known values of each static category.
    """
    networks = tuple(
        build_network(
            spec, seed=0, season=season, num_covariates=num_covariates, static_cardinalities=static_cardinalities
        ).eval()
        for _ in range(spec.members)
    )
    _load_state_dict(_as_module(networks), content)
    return networks


def _load_state_dict(network: torch.nn.Module, content: bytes) -> None:
    try:
        weights = load_weights(content)
    except SafetensorError as error:
        raise BundleDamaged(
            f"weights.safetensors cannot be read: {error}. Fetch the bundle again.", where="weights.safetensors"
        ) from error
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != expected:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))[0]
        raise BundleDamaged(
            f"Expected weights {odd!r} of shape {expected.get(odd)}; found {found.get(odd)}. The spec and the weights do not "
            "belong together: train again.",
            where="weights.safetensors",
        )
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise BundleDamaged(
                f"Expected finite weights; {name!r} holds NaN or infinity. Train again.", where="weights.safetensors"
            )
    network.load_state_dict(weights)


def _as_module(networks: Sequence[Regressor]) -> torch.nn.Module:
    """All members as one module, their weights under the numbers of the members; one alone needs no number."""
    return networks[0] if len(networks) == 1 else torch.nn.ModuleList(networks)

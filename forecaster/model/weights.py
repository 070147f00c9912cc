"""Weights of all members in one safetensors file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights
from torch.overrides import TorchFunctionMode

from forecaster.errors import BadSpec, BundleDamaged
from forecaster.model.regressor import Regressor, build_network
from forecaster.spec import Spec


def serialize_weights(networks: Sequence[Regressor]) -> bytes:
    """Serializes the weights of all members to one safetensors file."""
    state_dict = _as_module(networks).state_dict()
    return save_weights({name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()})


def load_networks(
    spec: Spec, content: bytes, *, season: int, num_covariates: int, static_cardinalities: Sequence[int]
) -> tuple[Regressor, ...]:
    """Builds all members with the weights of a file.

    Args:
        spec: Specification of the networks.
        content: The safetensors file.
        season: See `build_network`.
        num_covariates: Number of known-future covariates per time step.
        static_cardinalities: Number of known values of each static category.
    Raises:
        BundleDamaged: The weights do not fit the specification or are not finite.
    """

    def build() -> tuple[Regressor, ...]:
        return tuple(
            build_network(
                spec, seed=0, season=season, num_covariates=num_covariates, static_cardinalities=static_cardinalities
            ).eval()
            for _ in range(spec.members)
        )

    # Without memory for weights: a specification may ask for more than the file holds.
    with torch.device("meta"), _WithoutNormalDraws():
        expected = {name: tuple(tensor.shape) for name, tensor in _as_module(build()).state_dict().items()}
    weights = _read_weights(content, expected)
    networks = build()
    _as_module(networks).load_state_dict(weights)
    return networks


def copy_weights(sources: Sequence[Regressor], networks: Sequence[Regressor], *, name: str) -> None:
    """Copies the weights of some networks to others, one by one; those without a counterpart keep their own.

    Raises BadSpec, with the `name` of the model that the sources belong to, if the networks differ.
    """
    for network, source in zip(networks, sources, strict=False):
        weights = source.state_dict()
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        initial_shapes = {name: tuple(value.shape) for name, value in weights.items()}
        if shapes != initial_shapes:
            mismatch = next(key for key in (*shapes, *initial_shapes) if shapes.get(key) != initial_shapes.get(key))
            raise BadSpec(
                f"Expected initial weights of the same shapes; {mismatch} is {shapes.get(mismatch)} in this specification and "
                f"{initial_shapes.get(mismatch)} in {name!r}. Use its specification, or start from random weights.",
                where=mismatch,
            )
        network.load_state_dict(weights)


def _read_weights(content: bytes, expected: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Reads finite weights of the expected names and shapes; raises BundleDamaged for others."""
    try:
        weights = load_weights(content)
    except SafetensorError as error:
        raise BundleDamaged(
            f"weights.safetensors cannot be read: {error}. Fetch the bundle again.", where="weights.safetensors"
        ) from error
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != expected:
        mismatch = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))[0]
        raise BundleDamaged(
            f"Expected weights {mismatch!r} of shape {expected.get(mismatch)}; found {found.get(mismatch)}. The spec and the "
            "weights do not belong together: train again.",
            where="weights.safetensors",
        )
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise BundleDamaged(
                f"Expected finite weights; {name!r} holds NaN or infinity. Train again.", where="weights.safetensors"
            )
    return weights


class _WithoutNormalDraws(TorchFunctionMode):
    """Draws no normal values, for which the device `meta` imports torch's compiler: a second in a new process."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        return given["tensor"] if function is torch.nn.init.normal_ else function(*args, **given)


def _as_module(networks: Sequence[Regressor]) -> torch.nn.Module:
    """Combines all members into one module whose weight names carry the member's number; a single member has none."""
    return networks[0] if len(networks) == 1 else torch.nn.ModuleList(networks)

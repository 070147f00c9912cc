"""Weights are loaded without work that a new process would notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from forecaster.model.regressor import build_network
from forecaster.model.weights import load_networks, serialize_weights
from tests.factories import make_spec

SIZES: dict[str, Any] = {"season": 4, "num_covariates": 1, "static_cardinalities": [3]}


def test_shapes_are_compared_without_drawing_normal_values_on_the_meta_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them there imports torch's compiler, which takes a second."""
    spec = make_spec(decoder="direct", segment=1)
    network = build_network(spec, seed=3, **SIZES)
    draw, devices = torch.Tensor.normal_, []

    def normal_(tensor: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        devices.append(tensor.device.type)
        return draw(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "normal_", normal_)
    [loaded] = load_networks(spec, serialize_weights([network]), **SIZES)
    assert set(devices) == {"cpu"}
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
    assert weights.keys() == network.state_dict().keys()

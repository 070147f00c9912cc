"""The engine of networks with a running scale equals PyTorch, in numpy and in the compiled kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from forecaster.engines.engine import RolloutInput
from forecaster.engines.pytorch import PyTorchEngine
from forecaster.engines.running.backend import Backend, NumpyBackend
from forecaster.engines.running.engine import RunningEngine, build_running_engine
from forecaster.model.regressor import Regressor, build_network
from forecaster.spec import Spec
from tests.factories import make_wave
from tests.parity.test_kernel_rollout import assert_equal_outputs, to_arrays

CONTEXT, HORIZON = 24, 11
RUNNING = {"scaling": "running", "decoder": "block", "features": "seasonal", "base": "mixture", "block_steps": 6}
QUANTILES = {"head": {"kind": "quantile", "levels": [0.1, 0.25, 0.75, 0.9]}}
NETWORK = {"cell": "lstm", "hidden": 20, "layers": 2, "residual": True, "embed": True}
KINDS: dict[str, dict[str, Any]] = {
    "base": QUANTILES,
    "segments": {**QUANTILES, "segment": 3},
    "long season": {**QUANTILES, "segment": 2, "long_season": 12},
    "a short long season": {"long_season": 5},
    "no season": {"season": 1},
    "a season longer than the block": {"season": 7, "context": 42, "segment": 2},
    "whole history": {**QUANTILES, "reads": "history", "segment": 2, "context": 12},
    "values": {"features": "values", "base": "zero", "segment": 2},
    "values, seasonal naive": {"features": "values", "base": "seasonal_naive"},
    "values, linear": {"features": "values", "base": "linear"},
    "values, last": {"features": "values", "base": "last"},
    "values, mixture": {**QUANTILES, "features": "values"},
    "gru": {"network": NETWORK | {"cell": "gru", "embed": False}},
    "elman": {"network": NETWORK | {"cell": "elman", "residual": False}},
    "one layer of five units": {"network": {"cell": "lstm", "hidden": 5}},
    "many units": {"network": NETWORK | {"hidden": 72, "layers": 3}},
}
BACKENDS: dict[str, Backend] = {"numpy": NumpyBackend()}

every_backend = pytest.mark.parametrize("backend", BACKENDS.values(), ids=list(BACKENDS))
every_kind = pytest.mark.parametrize("fields", KINDS.values(), ids=list(KINDS))


def make_running_spec(fields: dict[str, Any]) -> Spec:
    base_fields = {"name": "running", "context": CONTEXT, "horizon": 6, "season": 4, "network": NETWORK}
    return Spec.parse(base_fields | RUNNING | fields, where="a test")


def make_random_network(spec: Spec, *, seed: int = 1) -> Regressor:
    """Builds a network whose outputs are random too; they start at zero."""
    network, generator = (
        build_network(spec, seed=seed).eval().requires_grad_(False),
        torch.Generator().manual_seed(seed),
    )
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / (1 + parameter.shape[-1]) ** 0.5)
    return network


def make_engine(spec: Spec, network: Regressor, backend: Backend) -> RunningEngine:
    engine = build_running_engine(spec, to_arrays(network), season=network.season, num_features=0, backend=backend)
    assert engine is not None
    return engine


def make_histories(rows: int, steps: int = CONTEXT) -> np.ndarray:
    """Rows that are complete, have gaps, begin late, are constant, change once, or are never observed, in turn."""
    rng = np.random.default_rng(0)
    values = np.stack([(1 + row % 3) * make_wave(steps, seed=row) for row in range(rows)])
    values[1::6][rng.random(values[1::6].shape) < 0.3] = np.nan
    values[2::6, : steps // 2 + 1] = np.nan
    values[3::6] = 7.0
    values[4::6, :-2] = 7.0
    values[5::6] = np.nan
    return values


def make_values(network: Regressor, *, rows: int = 14) -> np.ndarray:
    return make_histories(rows, steps=network.window_length(3 * CONTEXT))


@every_backend
@every_kind
def test_the_rollout_equals_the_reference(fields: dict[str, Any], backend: Backend) -> None:
    spec = make_running_spec(fields)
    network = make_random_network(spec)
    inputs = RolloutInput(make_values(network))
    for horizon in (1, 6, HORIZON):
        assert_equal_outputs(
            make_engine(spec, network, backend).roll_out(inputs, horizon=horizon),
            PyTorchEngine(network).roll_out(inputs, horizon=horizon),
        )

"""The engine of networks with a running scale equals PyTorch, in numpy and in the compiled kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from forecaster.engines.engine import EnsembleEngine, RolloutInput
from forecaster.engines.pytorch import PyTorchEngine
from forecaster.engines.running.backend import NetworkBackend, NumpyBackend
from forecaster.engines.running.engine import RunningEngine, build_running_engine
from forecaster.engines.running.kernel_backend import KernelBackend
from forecaster.errors import BundleDamaged
from forecaster.model.regressor import Regressor, build_network
from forecaster.spec import Spec
from tests.factories import make_wave
from tests.parity.test_kernel_rollout import VECTOR_WIDTHS, assert_equal_outputs, to_arrays

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
BACKENDS: dict[str, NetworkBackend] = {"numpy": NumpyBackend()} | {
    f"vectors of {lanes}": KernelBackend(lanes) for lanes in VECTOR_WIDTHS
}

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


def make_engine(spec: Spec, network: Regressor, backend: NetworkBackend) -> RunningEngine:
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
def test_the_rollout_equals_the_reference(fields: dict[str, Any], backend: NetworkBackend) -> None:
    spec = make_running_spec(fields)
    network = make_random_network(spec)
    inputs = RolloutInput(make_values(network))
    for horizon in (1, 6, HORIZON):
        assert_equal_outputs(
            make_engine(spec, network, backend).roll_out(inputs, horizon=horizon),
            PyTorchEngine(network).roll_out(inputs, horizon=horizon),
        )


@every_backend
@pytest.mark.parametrize("fields", [QUANTILES, KINDS["segments"], KINDS["values, mixture"]])
def test_sample_paths_equal_the_reference(fields: dict[str, Any], backend: NetworkBackend) -> None:
    spec = make_running_spec(fields)
    network = make_random_network(spec)
    values, rng = make_values(network), np.random.default_rng(0)
    for rows, paths in ((slice(1, 2), 5), (slice(0, 14), 14)):
        inputs = RolloutInput(values[rows])
        noise = rng.random((paths, 12, 1), dtype=np.float32)
        noise[0, :2, 0] = 0.0, 1.0
        assert_equal_outputs(
            make_engine(spec, network, backend).roll_out(inputs, horizon=HORIZON, noise=noise),
            PyTorchEngine(network).roll_out(inputs, horizon=HORIZON, noise=noise),
        )


@every_backend
@pytest.mark.parametrize("fields", [QUANTILES, KINDS["long season"], KINDS["whole history"], KINDS["values, mixture"]])
def test_quantiles_equal_the_reference(fields: dict[str, Any], backend: NetworkBackend) -> None:
    spec = make_running_spec(fields)
    network, levels = make_random_network(spec), (0.01, 0.1, 0.3, 0.5, 0.62, 0.9, 0.995)
    inputs = RolloutInput(make_values(network))
    engine = make_engine(spec, network, backend)
    quantiles = engine.roll_out_quantiles(inputs, horizon=HORIZON, levels=levels)
    assert_equal_outputs(quantiles, PyTorchEngine(network).roll_out_quantiles(inputs, horizon=HORIZON, levels=levels))
    assert (np.diff(quantiles, axis=2) >= 0).all()
    assert np.array_equal(quantiles[:, :, 3], engine.roll_out(inputs, horizon=HORIZON))
    spread = quantiles[:, :, -1] - quantiles[:, :, 0]
    assert (spread[:, 6:] >= spread[:, 5:6]).all(), "a later block is not narrower than the end of the first"


@every_backend
def test_a_diverging_row_is_nan_from_that_step(backend: NetworkBackend) -> None:
    spec = make_running_spec({"block_steps": 2})
    network, values = make_random_network(spec), make_histories(6)[:3]
    values[1, -1] = 1e6  # so its unit is larger, and its divergence bound too
    network.output.weight.mul_(2000.0)
    actual, expected = (
        engine.roll_out(RolloutInput(values), horizon=HORIZON)
        for engine in (make_engine(spec, network, backend), PyTorchEngine(network))
    )
    assert np.isfinite(actual[:, 0]).all()
    assert np.isnan(actual[:, -1]).all()
    assert np.array_equal(np.isnan(actual), np.isnan(expected))
    assert np.allclose(actual, expected, rtol=1e-3, equal_nan=True)
    alone = make_engine(spec, network, backend).roll_out(RolloutInput(values[:1]), horizon=HORIZON)
    np.testing.assert_allclose(alone, actual[:1], rtol=1e-3)


@pytest.mark.parametrize("lanes", VECTOR_WIDTHS)
@pytest.mark.parametrize("fields", [KINDS["segments"], KINDS["gru"], KINDS["many units"]])
def test_a_row_is_bitwise_equal_in_any_batch_of_the_kernel(fields: dict[str, Any], lanes: int) -> None:
    spec = make_running_spec(fields)
    engine = make_engine(spec, make_random_network(spec), KernelBackend(lanes))
    values = make_histories(300)
    batched = engine.roll_out(RolloutInput(values), horizon=HORIZON)
    for rows in (slice(0, 1), slice(1, 2), slice(3, 12), slice(7, 300)):
        alone = engine.roll_out(RolloutInput(values[rows]), horizon=HORIZON)
        assert np.array_equal(alone, batched[rows], equal_nan=True)


def test_members_are_combined_as_in_pytorch() -> None:
    spec = make_running_spec(QUANTILES)
    networks = [make_random_network(spec, seed=seed) for seed in (1, 2, 3)]
    inputs, noise = RolloutInput(make_histories(1)), np.random.default_rng(0).random((7, 12, 1), dtype=np.float32)
    reference = EnsembleEngine([PyTorchEngine(network) for network in networks])
    for backend in BACKENDS.values():
        engine = EnsembleEngine([make_engine(spec, network, backend) for network in networks])
        assert_equal_outputs(engine.roll_out(inputs, horizon=8), reference.roll_out(inputs, horizon=8))
        assert_equal_outputs(
            engine.roll_out(inputs, horizon=8, noise=noise), reference.roll_out(inputs, horizon=8, noise=noise)
        )
        quantiles = [member.roll_out_quantiles(inputs, horizon=8, levels=[0.2, 0.5]) for member in (engine, reference)]
        assert_equal_outputs(*quantiles)
        assert np.array_equal(quantiles[0][..., 1], engine.roll_out(inputs, horizon=8))


@pytest.mark.parametrize(
    ("fields", "is_supported"),
    [
        ({}, True),
        ({"decoder": "direct", "block_steps": None}, False),
        ({"lags": (4,)}, False),
        ({"channels": ("rain",)}, False),
        ({"head": {"kind": "gaussian"}}, False),
        ({"network": {"hidden": 6, "layers": 2, "dilations": (1, 2)}}, False),
        ({"scaling": "standard", "features": "values", "base": "zero"}, False),
    ],
)
def test_other_networks_are_not_built(fields: dict[str, Any], is_supported: bool) -> None:
    spec = make_running_spec(fields)
    weights = to_arrays(build_network(spec, seed=0))
    double = {name: array.astype(np.float64) for name, array in weights.items()}
    assert (build_running_engine(spec, weights, season=4, num_features=0) is not None) == is_supported
    assert build_running_engine(spec, weights, season=4, num_features=1) is None
    assert build_running_engine(spec, double, season=4, num_features=0) is None


@pytest.mark.parametrize(
    "name", ["embedding.weight", "recurrent.layers.1.weight_hh_l0", "decoder.bias", "output.weight"]
)
def test_weights_of_other_shapes_are_rejected(name: str) -> None:
    spec = make_running_spec({})
    weights = to_arrays(build_network(spec, seed=0))
    with pytest.raises(BundleDamaged, match=f"Expected weights '{name}' of shape"):
        build_running_engine(spec, weights | {name: weights[name][:-1]}, season=4, num_features=0)
    with pytest.raises(BundleDamaged, match="found None"):
        build_running_engine(spec, {key: weights[key] for key in weights if key != name}, season=4, num_features=0)

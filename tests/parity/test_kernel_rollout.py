"""The kernel's rollout equals that of PyTorch for every supported network and instruction set, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from forecaster.engines.engine import RolloutInput
from forecaster.engines.kernel import KernelEngine
from forecaster.engines.kernel import build_kernel_engine as build_numpy_engine
from forecaster.engines.kernel_torch import TorchKernelEngine, build_torch_kernel_engine
from forecaster.engines.pytorch import PyTorchEngine
from forecaster.model.recurrence.compiled import load_compiled_backend
from forecaster.model.regressor import Regressor, build_network
from forecaster.spec import Spec
from tests.factories import make_network, make_spec, make_wave

WIDEST_KERNEL = load_compiled_backend()
SCALINGS = ["none", "mean_abs", "standard", "last", "level_season"]
VECTOR_WIDTHS = [] if WIDEST_KERNEL is None else [lanes for lanes in (8, 16) if lanes <= WIDEST_KERNEL.lanes]
CONTEXT, HORIZON = 24, 7

pytestmark = pytest.mark.skipif(WIDEST_KERNEL is None, reason="the kernel was not compiled")
every_width = pytest.mark.parametrize("lanes", VECTOR_WIDTHS)
every_cell = pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])


def make_supported_network(cell: str, *, hidden: int = 20, layers: int = 1, **fields: Any) -> Regressor:
    network = {"cell": cell, "hidden": hidden, "layers": layers}
    base_fields = {"name": "plain", "context": CONTEXT, "horizon": HORIZON, "season": 4, "network": network}
    built_network = build_network(Spec.parse(base_fields | fields, where="a test"), seed=1).eval().requires_grad_(False)
    for weight in built_network.parameters():
        weight.mul_(1.5)
    return built_network


def make_histories(rows: int, steps: int = CONTEXT) -> np.ndarray:
    """Rows that are complete, have gaps, begin late, are constant, or are never observed, in turn."""
    rng = np.random.default_rng(0)
    values = np.stack([make_wave(steps, seed=row) for row in range(rows)])
    values[1::5][rng.random(values[1::5].shape) < 0.3] = np.nan
    values[2::5, : steps // 2] = np.nan
    values[3::5] = 7.0
    values[4::5] = np.nan
    return values


def assert_equal_outputs(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == np.float64
    assert np.array_equal(np.isnan(actual), np.isnan(expected))
    assert np.allclose(actual, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


# Hidden sizes: less than a vector, several vectors and a remainder, as many vectors as one row takes at once, and more.
@every_width
@every_cell
@pytest.mark.parametrize(("hidden", "layers"), [(5, 1), (20, 3), (64, 1), (72, 2)])
@pytest.mark.parametrize("segment", [1, 4])
def test_the_kernel_rollout_equals_the_reference(cell: str, hidden: int, layers: int, segment: int, lanes: int) -> None:
    network = make_supported_network(cell, hidden=hidden, layers=layers, segment=segment)
    values = make_histories(14)
    assert_equal_outputs(
        TorchKernelEngine(network, lanes=lanes).roll_out(RolloutInput(values), horizon=HORIZON),
        PyTorchEngine(network).roll_out(RolloutInput(values), horizon=HORIZON),
    )


@every_width
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("kind", ["point", "quantile", "gaussian", "student_t"])
def test_the_kernel_equals_the_reference_for_every_scaling_and_location_head(
    scaling: str, kind: str, lanes: int
) -> None:
    network = make_supported_network("gru", scaling=scaling, head={"kind": kind})
    values = make_histories(5)
    assert_equal_outputs(
        TorchKernelEngine(network, lanes=lanes).roll_out(RolloutInput(values), horizon=HORIZON),
        PyTorchEngine(network).roll_out(RolloutInput(values), horizon=HORIZON),
    )


@every_width
@every_cell
@pytest.mark.parametrize("scaling", ["standard", "level_season"])
def test_the_kernel_equals_the_reference_for_full_histories(cell: str, scaling: str, lanes: int) -> None:
    network = make_supported_network(cell, scaling=scaling, reads="history", segment=2)
    values = make_histories(10, steps=3 * CONTEXT)
    assert_equal_outputs(
        TorchKernelEngine(network, lanes=lanes).roll_out(RolloutInput(values), horizon=HORIZON),
        PyTorchEngine(network).roll_out(RolloutInput(values), horizon=HORIZON),
    )


@every_width
@every_cell
def test_the_state_at_an_index_resumes_like_the_history_up_to_it(cell: str, lanes: int) -> None:
    network = make_supported_network(cell, layers=2, scaling="level_season", reads="history", segment=2)
    values = make_histories(10, steps=3 * CONTEXT)[[0, 1, 5, 6]]
    engine = TorchKernelEngine(network, lanes=lanes)
    with torch.inference_mode():
        states = engine.states_at_origins(torch.from_numpy(values), stride=4, count=5)
        forecasts = (
            engine.forecast_from(states.select_rows(torch.arange(20)), horizon=HORIZON).numpy().reshape(4, 5, HORIZON)
        )
    for index in range(5):
        history = values[:, : values.shape[1] - 4 * (4 - index)]
        assert_equal_outputs(
            forecasts[:, index], PyTorchEngine(network).roll_out(RolloutInput(history), horizon=HORIZON)
        )


@every_width
@every_cell
@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_is_bitwise_equal_in_any_batch(cell: str, threads: int, lanes: int) -> None:
    engine, values = (
        TorchKernelEngine(make_supported_network(cell, hidden=72, layers=2), lanes=lanes, threads=threads),
        make_histories(200),
    )
    batched = engine.roll_out(RolloutInput(values), horizon=HORIZON)
    for rows in (slice(0, 1), slice(1, 4), slice(3, 12), slice(7, 200)):
        assert np.array_equal(
            engine.roll_out(RolloutInput(values[rows]), horizon=HORIZON), batched[rows], equal_nan=True
        )


@every_width
def test_a_diverging_row_is_nan_from_that_step_and_affects_no_other(lanes: int) -> None:
    network, values = make_supported_network("gru", scaling="none"), make_histories(7)
    network.output.weight.mul_(20000.0)
    values[0, 3] = 1e6  # its divergence bound is beyond its forecasts
    actual, expected = (
        engine.roll_out(RolloutInput(values), horizon=HORIZON)
        for engine in (TorchKernelEngine(network, lanes=lanes), PyTorchEngine(network))
    )
    assert np.isfinite(actual[0]).all()
    assert np.isnan(actual[1:]).any()
    assert np.array_equal(np.isnan(actual), np.isnan(expected))
    assert np.allclose(actual, expected, rtol=1e-3, equal_nan=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"base": "last"},
        {"decoder": "direct"},
        {"lags": (4,)},
        {"head": {"kind": "categorical"}},
        {"channels": ("rain",)},
    ],
)
def test_unsupported_networks_are_left_to_the_reference(fields: dict[str, Any]) -> None:
    assert build_torch_kernel_engine(make_network(make_spec(**fields))) is None


@pytest.mark.parametrize("fields", [{"residual": True}, {"dilations": (1, 2)}])
def test_unsupported_recurrences_are_left_to_the_reference(fields: dict[str, Any]) -> None:
    spec_fields = {"name": "other", "context": 8, "horizon": 2, "network": {"hidden": 6, "layers": 2} | fields}
    assert build_torch_kernel_engine(build_network(Spec.parse(spec_fields, where="a test"), seed=0)) is None


def make_kernel_spec(cell: str, **fields: Any) -> Spec:
    base_fields = {"name": "plain", "context": CONTEXT, "horizon": HORIZON, "season": 4}
    return Spec.parse(base_fields | fields | {"network": {"cell": cell, "hidden": 20, "layers": 2}}, where="a test")


def to_numpy_weights(network: Regressor) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


@every_width
@every_cell
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("reads", "steps"), [("window", CONTEXT), ("history", 3 * CONTEXT)])
def test_without_torch_the_kernel_rollout_equals_the_reference(
    cell: str, scaling: str, reads: str, steps: int, lanes: int
) -> None:
    if (reads, scaling) == ("history", "last"):
        pytest.skip("the specification is rejected")
    spec = make_kernel_spec(cell, scaling=scaling, reads=reads, segment=2)
    network, values = (
        make_supported_network(cell, layers=2, scaling=scaling, reads=reads, segment=2),
        make_histories(10, steps),
    )
    engine = KernelEngine(spec, to_numpy_weights(network), season=4, lanes=lanes)
    expected = PyTorchEngine(network).roll_out(RolloutInput(values), horizon=HORIZON)
    assert_equal_outputs(engine.roll_out(RolloutInput(values), horizon=HORIZON), expected)
    for row in range(10):
        assert np.array_equal(
            engine.roll_out(RolloutInput(values[[row]]), horizon=HORIZON)[0],
            engine.roll_out(RolloutInput(values), horizon=HORIZON)[row],
            equal_nan=True,
        )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"base": "last"},
        {"decoder": "direct"},
        {"lags": (4,)},
        {"head": {"kind": "categorical"}},
        {"head": {"kind": "gaussian"}},
        {"channels": ("rain",)},
        {"transform": "log"},
        {"network": {"hidden": 6, "layers": 2, "residual": True}},
        {"network": {"hidden": 6, "layers": 2, "dilations": (1, 2)}},
    ],
)
def test_without_torch_the_kernel_supports_the_same_networks(fields: dict[str, Any]) -> None:
    spec = Spec.parse({"name": "other", "context": 8, "horizon": 2} | fields, where="a test")
    network = build_network(spec, seed=0).requires_grad_(False)
    kernel_engine = build_numpy_engine(spec, to_numpy_weights(network), season=1, num_features=0)
    assert (kernel_engine is None) == (build_torch_kernel_engine(network) is None)
    assert build_numpy_engine(spec, to_numpy_weights(network), season=1, num_features=1) is None

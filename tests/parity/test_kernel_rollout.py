"""The kernel's rollout equals that of PyTorch for every supported network and instruction set, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from forecaster.engines.engine import RolloutInput
from forecaster.engines.kernel import KernelEngine, build_kernel_engine
from forecaster.engines.pytorch import PyTorchEngine
from forecaster.model.recurrence.compiled import load_compiled_backend
from forecaster.model.regressor import Regressor
from forecaster.spec import Spec
from tests.factories import make_network, make_wave

WIDEST_KERNEL = load_compiled_backend()
SCALINGS = ["none", "mean_abs", "standard", "last", "level_season"]
VECTOR_WIDTHS = [] if WIDEST_KERNEL is None else [lanes for lanes in (8, 16) if lanes <= WIDEST_KERNEL.lanes]
CONTEXT, HORIZON = 24, 7

pytestmark = pytest.mark.skipif(WIDEST_KERNEL is None, reason="the kernel was not compiled")
every_width = pytest.mark.parametrize("lanes", VECTOR_WIDTHS)
every_cell = pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])


def make_supported_spec(cell: str, *, hidden: int = 20, layers: int = 1, **fields: Any) -> Spec:
    network = {"cell": cell, "hidden": hidden, "layers": layers}
    base_fields = {"name": "plain", "context": CONTEXT, "horizon": HORIZON, "season": 4, "network": network}
    return Spec.parse(base_fields | fields, where="a test")


def to_arrays(network: Regressor) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def make_engine(spec: Spec, network: Regressor, *, lanes: int, threads: int = 1) -> KernelEngine:
    return KernelEngine(spec, to_arrays(network), season=4, lanes=lanes, threads=threads)


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
    spec, values = make_supported_spec(cell, hidden=hidden, layers=layers, segment=segment), make_histories(14)
    network = make_network(spec)
    assert_equal_outputs(
        make_engine(spec, network, lanes=lanes).roll_out(RolloutInput(values), horizon=HORIZON),
        PyTorchEngine(network).roll_out(RolloutInput(values), horizon=HORIZON),
    )


@every_width
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("kind", ["point", "quantile", "gaussian", "student_t"])
def test_the_kernel_equals_the_reference_for_every_scaling_and_location_head(
    scaling: str, kind: str, lanes: int
) -> None:
    spec, values = make_supported_spec("gru", scaling=scaling, head={"kind": kind}), make_histories(5)
    network = make_network(spec)
    assert_equal_outputs(
        make_engine(spec, network, lanes=lanes).roll_out(RolloutInput(values), horizon=HORIZON),
        PyTorchEngine(network).roll_out(RolloutInput(values), horizon=HORIZON),
    )


@every_width
@every_cell
@pytest.mark.parametrize("scaling", [scaling for scaling in SCALINGS if scaling != "last"])
def test_the_kernel_equals_the_reference_for_full_histories(cell: str, scaling: str, lanes: int) -> None:
    spec = make_supported_spec(cell, layers=2, scaling=scaling, reads="history", segment=2)
    network, values = make_network(spec), make_histories(10, steps=3 * CONTEXT)
    engine = make_engine(spec, network, lanes=lanes)
    forecasts = engine.roll_out(RolloutInput(values), horizon=HORIZON)
    assert_equal_outputs(forecasts, PyTorchEngine(network).roll_out(RolloutInput(values), horizon=HORIZON))
    for row in range(10):
        alone = engine.roll_out(RolloutInput(values[[row]]), horizon=HORIZON)
        assert np.array_equal(alone, forecasts[[row]], equal_nan=True)


@every_width
@every_cell
def test_the_state_at_an_index_resumes_like_the_history_up_to_it(cell: str, lanes: int) -> None:
    spec = make_supported_spec(cell, layers=2, scaling="level_season", reads="history", segment=2)
    network, values = make_network(spec), make_histories(10, steps=3 * CONTEXT)[[0, 1, 5, 6]]
    engine = make_engine(spec, network, lanes=lanes)
    states = engine.states_at_origins(values, stride=4, count=5)
    backwards = engine.forecast_from(states.select_rows(np.arange(20)[::-1]), horizon=HORIZON)
    forecasts = backwards[::-1].reshape(4, 5, HORIZON)
    for index in range(5):
        history = values[:, : values.shape[1] - 4 * (4 - index)]
        assert_equal_outputs(
            forecasts[:, index], PyTorchEngine(network).roll_out(RolloutInput(history), horizon=HORIZON)
        )


@every_width
@every_cell
@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_is_bitwise_equal_in_any_batch(cell: str, threads: int, lanes: int) -> None:
    spec, values = make_supported_spec(cell, hidden=72, layers=2), make_histories(200)
    engine = make_engine(spec, make_network(spec), lanes=lanes, threads=threads)
    batched = engine.roll_out(RolloutInput(values), horizon=HORIZON)
    for rows in (slice(0, 1), slice(1, 4), slice(3, 12), slice(7, 200)):
        assert np.array_equal(
            engine.roll_out(RolloutInput(values[rows]), horizon=HORIZON), batched[rows], equal_nan=True
        )


@every_width
def test_a_diverging_row_is_nan_from_that_step_and_affects_no_other(lanes: int) -> None:
    spec, values = make_supported_spec("gru", scaling="none"), make_histories(7)
    network = make_network(spec)
    network.output.weight.mul_(20000.0)
    values[0, 3] = 1e6  # its divergence bound is beyond its forecasts
    actual, expected = (
        engine.roll_out(RolloutInput(values), horizon=HORIZON)
        for engine in (make_engine(spec, network, lanes=lanes), PyTorchEngine(network))
    )
    assert np.isfinite(actual[0]).all()
    assert np.isnan(actual[1:]).any()
    assert np.array_equal(np.isnan(actual), np.isnan(expected))
    assert np.allclose(actual, expected, rtol=1e-3, equal_nan=True)


@pytest.mark.parametrize(
    ("fields", "is_supported"),
    [
        ({}, True),
        ({"head": {"kind": "gaussian"}}, True),
        ({"base": "last"}, False),
        ({"decoder": "direct"}, False),
        ({"lags": (4,)}, False),
        ({"head": {"kind": "categorical"}}, False),
        ({"head": {"kind": "symbols", "vocabulary": ("a", "b")}, "scaling": "none"}, False),
        ({"channels": ("rain",)}, False),
        ({"transform": "log"}, False),
        ({"network": {"hidden": 6, "layers": 2, "residual": True}}, False),
        ({"network": {"hidden": 6, "layers": 2, "dilations": (1, 2)}}, False),
    ],
)
def test_the_kernel_supports_plain_networks_only(fields: dict[str, Any], is_supported: bool) -> None:
    spec = Spec.parse({"name": "other", "context": 8, "horizon": 2} | fields, where="a test")
    weights = to_arrays(make_network(spec))
    double = {name: array.astype(np.float64) for name, array in weights.items()}
    assert (build_kernel_engine(spec, weights, season=1, num_features=0) is not None) == is_supported
    assert build_kernel_engine(spec, weights, season=1, num_features=1) is None
    assert build_kernel_engine(spec, double, season=1, num_features=0) is None

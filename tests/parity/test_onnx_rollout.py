"""The rollout of an ONNX graph equals that of PyTorch, for every cell, head, decoder, scaling and base."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from forecaster.data.windows import Window
from forecaster.engines.engine import RolloutInput
from forecaster.engines.onnx.export import export_onnx
from forecaster.engines.onnx.heads import can_sample
from forecaster.engines.onnx.runner import OnnxEngine, RolloutArrays
from forecaster.engines.pytorch import PyTorchEngine
from forecaster.model import rollout
from forecaster.model.regressor import Regressor, build_network
from forecaster.model.rollout import roll_out, warm_up
from forecaster.spec import Spec
from tests.case_selection import checkerboard_product, sample_cases
from tests.laws.test_channels import CHANNELS, make_channel_windows
from tests.laws.test_every_combination import (
    CELLS,
    DECODERS,
    NUMERIC_HEADS,
    make_networks,
    make_windows,
    scaling_fields,
)

pytestmark = pytest.mark.integration

LONGEST_HORIZON = 13
every_triple = pytest.mark.parametrize(
    ("cell", "head", "decoder"), checkerboard_product(CELLS, NUMERIC_HEADS, DECODERS)
)


def make_rollout_input(window: Window, future_covariates: Tensor | None) -> RolloutInput:
    parts = [None if part is None else part.numpy() for part in (*window, future_covariates)]
    return RolloutInput(*parts)


def select_rows(inputs: RolloutInput, indices: slice) -> RolloutInput:
    return RolloutInput(*(None if part is None else part[indices] for part in inputs))


def select_steps(inputs: RolloutInput, steps: slice) -> RolloutInput:
    parts = (None if part is None else part[:, steps] for part in (inputs.covariates, inputs.channels))
    covariates, channels = parts
    return inputs._replace(values=inputs.values[:, steps], covariates=covariates, channels=channels)


def assert_close_by_row(actual: np.ndarray, expected: np.ndarray, values: np.ndarray) -> None:
    """Equal up to rounding, relative to the magnitude of each row."""
    size = np.nan_to_num(np.fmax.reduce(np.abs(values), axis=1, keepdims=True), nan=1.0)
    assert actual.dtype == np.float64
    assert actual.shape == expected.shape
    assert np.array_equal(np.isnan(actual), np.isnan(expected))
    assert (np.nan_to_num(np.abs(actual - expected)) <= 1e-5 * size).all()


def make_noise(network: Regressor, *, paths: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(paths * network.num_targets, 24, network.head.uniforms_per_draw, generator=generator)
        .clamp(1e-6, 1 - 1e-6)
        .numpy()
    )


@every_triple
def test_the_onnx_rollout_equals_the_reference(cell: str, head: str, decoder: str) -> None:
    """Each triple tests one of five scalings and bases, and the next triple another one, so that every pair occurs."""
    networks = make_networks(cell, head, decoder)
    start = sum(map(ord, cell + head + decoder)) % min(5, len(networks))
    for network in networks[start::5]:
        assert_engines_agree(network, make_rollout_input(*make_windows(network)))


def test_the_onnx_rollout_of_rectified_cells_equals_the_reference() -> None:
    for network in make_networks("relu", "quantile", "rollout")[::4]:
        assert_engines_agree(network, make_rollout_input(*make_windows(network)))


@every_triple
def test_the_onnx_rollout_equals_the_reference_with_channels(cell: str, head: str, decoder: str) -> None:
    """Each triple tests one scaling and base, and the next triple another one."""
    networks = make_networks(cell, head, decoder, channels=CHANNELS)
    network = networks[sum(map(ord, cell + head + decoder)) % len(networks)]
    assert_engines_agree(network, make_rollout_input(*make_channel_windows(network)))


@pytest.mark.parametrize("decoder", ["rollout", pytest.param("direct", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("head", sample_cases(NUMERIC_HEADS, stride=len(NUMERIC_HEADS)))
@pytest.mark.parametrize(
    "cell", ["lstm", *(pytest.param(cell, marks=pytest.mark.nightly) for cell in ("gru", "elman"))]
)
def test_the_onnx_rollout_equals_the_reference_in_every_combination(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder):
        assert_engines_agree(network, make_rollout_input(*make_windows(network)))
    for network in make_networks(cell, head, decoder, channels=CHANNELS):
        assert_engines_agree(network, make_rollout_input(*make_channel_windows(network)))


def assert_engines_agree(network: Regressor, inputs: RolloutInput) -> None:
    """Compares full histories, late starts, gaps and unequal sizes; several horizons, single rows, paths and states."""
    reference, engine = PyTorchEngine(network), OnnxEngine(export_onnx(network))
    expected = reference.roll_out(inputs, horizon=LONGEST_HORIZON)
    for horizon in (1, 7, LONGEST_HORIZON):
        assert_close_by_row(engine.roll_out(inputs, horizon=horizon), expected[:, :horizon], inputs.values)
    for row in (1, 2):
        single = select_rows(inputs, slice(row, row + 1))
        assert_close_by_row(engine.roll_out(single, horizon=5), expected[row : row + 1, :5], single.values)
    assert_paths_agree(network, reference, engine, select_rows(inputs, slice(2, 3)))
    assert_chunks_agree(network, engine, inputs)


def assert_paths_agree(network: Regressor, reference: PyTorchEngine, engine: OnnxEngine, inputs: RolloutInput) -> None:
    assert engine.can_sample == can_sample(network.head)
    if not engine.can_sample:
        return
    noise = make_noise(network, paths=3)
    paths = engine.roll_out(inputs, horizon=7, noise=noise)
    assert_close_by_row(paths, reference.roll_out(inputs, horizon=7, noise=noise), inputs.values)
    assert len(np.unique(paths[:, -1])) == 3


def assert_chunks_agree(network: Regressor, engine: OnnxEngine, inputs: RolloutInput) -> None:
    """A state resumes like PyTorch's; a row that has not begun when the state is returned begins later."""
    cutoff = network.pre_context + 3
    earlier, later = select_steps(inputs, slice(cutoff)), select_steps(inputs, slice(cutoff, None))
    with torch.inference_mode():
        earlier_state = warm_up(network, to_window(earlier))
        state = warm_up(network, to_window(later), earlier_state)
        expected, _ = roll_out(network, state, horizon=7, future_covariates=torch.from_numpy(inputs.future_covariates))
    _, onnx_state = engine.roll_out_with_state(earlier, horizon=1)
    assert_equal_states(onnx_state, earlier_state)
    assert 0 < onnx_state.begun.sum() < len(onnx_state.begun)
    actual, next_state = engine.roll_out_with_state(later, onnx_state, horizon=7)
    assert_close_by_row(actual, expected.numpy(), inputs.values)
    assert_equal_states(next_state, state)
    repeated, unchanged = engine.roll_out_with_state(select_steps(inputs, slice(0)), next_state, horizon=7)
    assert np.array_equal(repeated, actual)
    assert all(
        np.array_equal(part, expected_part)
        for part, expected_part in zip(unchanged, next_state, strict=True)
        if part is not None
    )


def assert_equal_states(actual: RolloutArrays, expected: rollout.RolloutState) -> None:
    torch_parts = {**expected._asdict(), **expected.recurrent_state._asdict(), **expected.scale._asdict()}
    for name, part in actual._asdict().items():
        if name == "time":
            assert part == expected.time
        elif part is None:
            assert name == "recent" or torch_parts[name] is None or not torch_parts[name].numel()
        else:
            scale = torch_parts[name].double().abs().max().clamp(min=1.0)
            np.testing.assert_allclose(part, torch_parts[name].numpy(), rtol=0, atol=1e-5 * float(scale))


def to_window(inputs: RolloutInput) -> Window:
    return Window(*(None if array is None else torch.from_numpy(array) for array in inputs[:4]))


def make_onnx_test_network(
    *, context: int = 12, covariates: int = 0, static_cardinalities: tuple[int, ...] = (), **fields: object
) -> Regressor:
    """A network with weights large enough that all inputs matter, and small enough that rounding errors decay."""
    base_fields = {"name": "law", "context": context, "horizon": 6, "season": 4, "network": {"hidden": 8}}
    network = build_network(
        Spec.parse(base_fields | fields, where="a test"),
        seed=0,
        num_covariates=covariates,
        static_cardinalities=static_cardinalities,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.8 / parameter.shape[-1] ** 0.5)
    return network.eval()


def make_histories(rows: int, steps: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return 50 + np.cumsum(rng.normal(size=(rows, steps)), axis=1) * rng.uniform(0.1, 10, size=(rows, 1))


@pytest.mark.parametrize("steps", [1, 5, 12, 200])
def test_an_onnx_graph_takes_histories_of_any_length(steps: int) -> None:
    network = make_onnx_test_network(
        network={"cell": "lstm", "hidden": 64, "layers": 2, "dilations": (1, 3)}, scaling="level_season"
    )
    inputs = RolloutInput(make_histories(3, steps))
    engine, reference = OnnxEngine(export_onnx(network)), PyTorchEngine(network)
    assert_close_by_row(engine.roll_out(inputs, horizon=9), reference.roll_out(inputs, horizon=9), inputs.values)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cell", ["gru", "lstm", "elman"])
def test_a_large_batch_equals_its_rows(cell: str, threads: int) -> None:
    network = make_onnx_test_network(network={"cell": cell, "hidden": 64, "layers": 2})
    inputs = RolloutInput(make_histories(300, 24))
    inputs.values[::7, :11] = np.nan
    inputs.values[3::5, 13:17] = np.nan
    engine, reference = OnnxEngine(export_onnx(network), threads=threads), PyTorchEngine(network)
    batched = engine.roll_out(inputs, horizon=30)
    assert_close_by_row(batched, reference.roll_out(inputs, horizon=30), inputs.values)
    for row in (0, 3, 299):
        assert_close_by_row(
            engine.roll_out(select_rows(inputs, slice(row, row + 1)), horizon=30),
            batched[row : row + 1],
            inputs.values[row : row + 1],
        )


def test_many_rows_in_several_chunks_equal_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_onnx_test_network(
        head={"kind": "gaussian"}, channels=CHANNELS, covariates=2, static_cardinalities=(3,)
    )
    rng = np.random.default_rng(0)
    inputs = RolloutInput(
        make_histories(5, 12),
        rng.normal(size=(5, 12, 2)).astype(np.float32),
        rng.integers(4, size=(5, 1)),
        rng.normal(size=(5, 12, 2)),
        rng.normal(size=(5, 9, 2)).astype(np.float32),
    )
    noise = rng.uniform(size=(5 * network.num_targets, 9, 1)).astype(np.float32)
    engine = OnnxEngine(export_onnx(network))
    expected = [engine.roll_out(inputs, horizon=9), engine.roll_out(inputs, horizon=9, noise=noise)]
    monkeypatch.setattr("forecaster.engines.onnx.runner.MAX_SEGMENTS_AT_ONCE", 2 * 12)
    actual = [engine.roll_out(inputs, horizon=9), engine.roll_out(inputs, horizon=9, noise=noise)]
    for result, expected_result in zip(actual, expected, strict=True):
        np.testing.assert_allclose(result, expected_result, rtol=1e-5)
    assert_close_by_row(actual[1], PyTorchEngine(network).roll_out(inputs, horizon=9, noise=noise), inputs.values)


@pytest.mark.parametrize("scaling", ["mean_abs", "standard", "last", "level_season", "last of log"])
def test_constant_or_unobserved_rows_agree_with_the_reference(scaling: str) -> None:
    network = make_onnx_test_network(**scaling_fields(scaling), base="last")
    values = np.full((4, 12), 7.0)
    values[1] = 0.0
    values[2] = np.nan
    values[3, :11] = np.nan
    engine, reference = OnnxEngine(export_onnx(network)), PyTorchEngine(network)
    actual = engine.roll_out(RolloutInput(values), horizon=5)
    np.testing.assert_allclose(actual, reference.roll_out(RolloutInput(values), horizon=5), rtol=1e-6)
    assert np.isfinite(actual).all()


@pytest.mark.parametrize("scaling", ["none", "mean_abs", "standard", "level_season", "level_season of log"])
@pytest.mark.parametrize("channels", [(), CHANNELS])
def test_the_scale_of_a_full_history_is_that_of_its_start(scaling: str, channels: tuple[str, ...]) -> None:
    network = make_onnx_test_network(
        reads="history", **scaling_fields(scaling), channels=channels, base="linear", lags=(7,)
    )
    engine, reference = OnnxEngine(export_onnx(network)), PyTorchEngine(network)
    for steps in (10, 12, 13, 70):
        values = make_histories(7, network.pre_context + steps)
        values[:, : network.pre_context] = np.nan
        values[1, : network.pre_context + 5] = np.nan
        values[2, network.pre_context : network.pre_context + 30] = 7.0  # constant for more than the context
        values[3] = 5.0
        values[4] = np.nan
        values[5, : network.pre_context + steps // 2] = np.nan
        values[6, network.pre_context + 3 : network.pre_context + 8] = np.nan
        channel_values = np.stack([values[::-1], 3 * values], axis=2).copy() if channels else None
        inputs = RolloutInput(values, channels=channel_values)
        actual, state = engine.roll_out_with_state(inputs, horizon=9)
        assert_close_by_row(actual, reference.roll_out(inputs, horizon=9), values)
        with torch.inference_mode():
            assert_equal_states(state, warm_up(network, to_window(inputs)))


@pytest.mark.parametrize("scaling", ["standard", "last", "level_season"])
def test_small_changes_at_a_high_level_are_preserved(scaling: str) -> None:
    network = make_onnx_test_network(scaling=scaling)
    steps = np.arange(12.0)
    values = 1e12 + np.round(5 * np.sin(steps))[None]
    actual, expected = (
        engine.roll_out(RolloutInput(values), horizon=6)
        for engine in (OnnxEngine(export_onnx(network)), PyTorchEngine(network))
    )
    np.testing.assert_allclose(actual - 1e12, expected - 1e12, atol=1e-3)
    assert len(np.unique(actual)) == 6


@pytest.mark.parametrize("decoder", ["rollout", "direct"])
def test_a_diverging_row_is_nan_from_the_same_step_and_affects_no_other(decoder: str) -> None:
    network = make_onnx_test_network(
        scaling="none", decoder=decoder, base="linear", network={"cell": "elman", "hidden": 8}
    )
    with torch.no_grad():
        network.output.weight.mul_(3e5)
    values = make_histories(5, 12)
    values[1:3] *= 1e6
    actual, expected = (
        engine.roll_out(RolloutInput(values), horizon=40)
        for engine in (OnnxEngine(export_onnx(network)), PyTorchEngine(network))
    )
    is_diverged = np.isnan(expected)
    assert 0 < is_diverged.any(axis=1).sum() < 5
    assert 0 < is_diverged.sum() < is_diverged.any(axis=1).sum() * 40, "rows diverge only after some steps"
    assert np.array_equal(np.isnan(actual), is_diverged)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_one_history_is_broadcast_over_many_futures() -> None:
    network = make_onnx_test_network(
        covariates=2, static_cardinalities=(3,), lags=(5,), base="seasonal_naive", network={"cell": "lstm", "hidden": 8}
    )
    rng = np.random.default_rng(0)
    single = RolloutInput(
        make_histories(1, 12 + network.pre_context),
        rng.normal(size=(1, 12 + network.pre_context, 2)).astype(np.float32),
        np.array([[2]]),
        None,
        rng.normal(size=(4, 6, 2)).astype(np.float32),
    )
    repeated = RolloutInput(*(np.repeat(part, 4, axis=0) for part in single[:3]), None, single.future_covariates)
    engine = OnnxEngine(export_onnx(network))
    forecast = engine.roll_out(single, horizon=6)
    for inputs in (single, repeated):
        assert_close_by_row(forecast, PyTorchEngine(network).roll_out(inputs, horizon=6), repeated.values)
    assert len(np.unique(forecast[:, -1])) == 4
    forecast_with_state, state = engine.roll_out_with_state(single, horizon=6)
    no_values = single._replace(values=single.values[:, :0], covariates=single.covariates[:, :0])
    resumed, _ = engine.roll_out_with_state(no_values, state, horizon=6)
    assert np.array_equal(forecast, resumed)
    assert np.array_equal(forecast, forecast_with_state)


@pytest.mark.parametrize("head", ["quantile", "gaussian", "student_t", "categorical"])
def test_sample_paths_at_extreme_uniforms_equal_pytorch(head: str) -> None:
    network = make_onnx_test_network(head={"kind": head}, context=4)
    uniforms = np.array([0.0, 1e-30, 1e-9, 1e-4, 0.5 - 1e-7, 0.5, 0.5 + 1e-7, 0.9, 1 - 1e-7, 1.0], dtype=np.float32)
    noise = np.repeat(uniforms[:, None, None], network.head.uniforms_per_draw, axis=2)
    inputs = RolloutInput(make_histories(1, 4))
    actual, expected = (
        engine.roll_out(inputs, horizon=1, noise=noise)
        for engine in (OnnxEngine(export_onnx(network)), PyTorchEngine(network))
    )
    spread = np.ptp(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * spread)
    if head in ("quantile", "gaussian", "categorical"):
        assert (np.diff(actual[:, 0]) >= 0).all()

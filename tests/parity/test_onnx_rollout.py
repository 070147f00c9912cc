"""A rollout as one ONNX graph is the rollout in PyTorch: for every cell, head, decoder, scaling and base."""

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
from tests.case_selection import sample_cases
from tests.laws.test_channels import CHANNELS
from tests.laws.test_channels import make_channel_windows as with_channels
from tests.laws.test_every_combination import HEADS, every_triple, make_networks, make_windows, scaling_fields

pytestmark = pytest.mark.integration

LONGEST_HORIZON = 13


def make_rollout_input(window: Window, ahead: Tensor | None) -> RolloutInput:
    parts = [None if part is None else part.numpy() for part in (*window, ahead)]
    return RolloutInput(*parts)


def select_rows(inputs: RolloutInput, indices: slice) -> RolloutInput:
    return RolloutInput(*(None if part is None else part[indices] for part in inputs))


def select_steps(inputs: RolloutInput, steps: slice) -> RolloutInput:
    columns = (None if part is None else part[:, steps] for part in (inputs.covariates, inputs.channels))
    covariates, channels = columns
    return inputs._replace(values=inputs.values[:, steps], covariates=covariates, channels=channels)


def assert_close_by_row(actual: np.ndarray, expected: np.ndarray, values: np.ndarray) -> None:
    """Equal but for rounding, as large as the values of each row are."""
    size = np.nan_to_num(np.fmax.reduce(np.abs(values), axis=1, keepdims=True), nan=1.0)
    assert actual.dtype == np.float64
    assert actual.shape == expected.shape
    assert np.array_equal(np.isnan(actual), np.isnan(expected))
    assert (np.nan_to_num(np.abs(actual - expected)) <= 1e-5 * size).all()


def make_noise(network: Regressor, *, paths: int) -> np.ndarray:
    draw = torch.Generator().manual_seed(0)
    return (
        torch.rand(paths * network.num_targets, 24, network.head.uniforms_per_draw, generator=draw)
        .clamp(1e-6, 1 - 1e-6)
        .numpy()
    )


@every_triple
def test_the_onnx_rollout_equals_the_reference(cell: str, head: str, decoder: str) -> None:
    """One of five scalings and bases for each triple, another for the next: every pair of choices is there."""
    made = make_networks(cell, head, decoder)
    first = sum(map(ord, cell + head + decoder)) % min(5, len(made))
    for network in made[first::5]:
        assert_engines_agree(network, make_rollout_input(*make_windows(network)))


@every_triple
def test_the_onnx_rollout_equals_the_reference_with_channels(cell: str, head: str, decoder: str) -> None:
    """One scaling and base for each triple, another for the next."""
    made = make_networks(cell, head, decoder, channels=CHANNELS)
    network = made[sum(map(ord, cell + head + decoder)) % len(made)]
    assert_engines_agree(network, make_rollout_input(*with_channels(network)))


@pytest.mark.parametrize("decoder", ["rollout", pytest.param("direct", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("head", sample_cases(HEADS))
@pytest.mark.parametrize("cell", ["lstm", *(pytest.param(one, marks=pytest.mark.nightly) for one in ("gru", "elman"))])
def test_the_onnx_rollout_equals_the_reference_in_every_combination(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder):
        assert_engines_agree(network, make_rollout_input(*make_windows(network)))
    for network in make_networks(cell, head, decoder, channels=CHANNELS):
        assert_engines_agree(network, make_rollout_input(*with_channels(network)))


def assert_engines_agree(network: Regressor, inputs: RolloutInput) -> None:
    """Whole histories, late beginnings, gaps and unequal sizes; several horizons, one row and many, paths, and memories."""
    reference, runner = PyTorchEngine(network), OnnxEngine(export_onnx(network))
    expected = reference.roll_out(inputs, horizon=LONGEST_HORIZON)
    for horizon in (1, 7, LONGEST_HORIZON):
        assert_close_by_row(runner.roll_out(inputs, horizon=horizon), expected[:, :horizon], inputs.values)
    for row in (1, 2):
        alone = select_rows(inputs, slice(row, row + 1))
        assert_close_by_row(runner.roll_out(alone, horizon=5), expected[row : row + 1, :5], alone.values)
    assert_paths_agree(network, reference, runner, select_rows(inputs, slice(2, 3)))
    assert_chunks_agree(network, runner, inputs)


def assert_paths_agree(network: Regressor, reference: PyTorchEngine, runner: OnnxEngine, inputs: RolloutInput) -> None:
    assert runner.can_sample == can_sample(network.head)
    if not runner.can_sample:
        return
    noise = make_noise(network, paths=3)
    paths = runner.roll_out(inputs, horizon=7, noise=noise)
    assert_close_by_row(paths, reference.roll_out(inputs, horizon=7, noise=noise), inputs.values)
    assert len(np.unique(paths[:, -1])) == 3


def assert_chunks_agree(network: Regressor, runner: OnnxEngine, inputs: RolloutInput) -> None:
    """A memory goes on where PyTorch's does; a row that has not begun when it is handed over begins later."""
    cut = network.pre_context + 3
    first, then = select_steps(inputs, slice(cut)), select_steps(inputs, slice(cut, None))
    with torch.inference_mode():
        half = warm_up(network, to_window(first))
        memory = warm_up(network, to_window(then), half)
        expected, _ = roll_out(network, memory, horizon=7, future_covariates=torch.from_numpy(inputs.future_covariates))
    _, handed = runner.roll_out_with_state(first, horizon=1)
    assert_equal_states(handed, half)
    assert 0 < handed.begun.sum() < len(handed.begun)
    found, after = runner.roll_out_with_state(then, handed, horizon=7)
    assert_close_by_row(found, expected.numpy(), inputs.values)
    assert_equal_states(after, memory)
    again, kept = runner.roll_out_with_state(select_steps(inputs, slice(0)), after, horizon=7)
    assert np.array_equal(again, found)
    assert all(np.array_equal(one, other) for one, other in zip(kept, after, strict=True) if one is not None)


def assert_equal_states(actual: RolloutArrays, expected: rollout.RolloutState) -> None:
    torches = {**expected._asdict(), **expected.recurrent_state._asdict(), **expected.scale._asdict()}
    for name, part in actual._asdict().items():
        if name == "time":
            assert part == expected.time
        elif part is None:
            assert name == "recent" or torches[name] is None or not torches[name].numel()
        else:
            size = torches[name].double().abs().max().clamp(min=1.0)
            np.testing.assert_allclose(part, torches[name].numpy(), rtol=0, atol=1e-5 * float(size))


def to_window(inputs: RolloutInput) -> Window:
    return Window(*(None if array is None else torch.from_numpy(array) for array in inputs[:4]))


def make_onnx_test_network(
    *, context: int = 12, covariates: int = 0, groups: tuple[int, ...] = (), **fields: object
) -> Regressor:
    """A network of weights so large that all it reads shows, and so small that rounding dies away."""
    whole = {"name": "law", "context": context, "horizon": 6, "season": 4, "network": {"hidden": 8}}
    network = build_network(
        Spec.parse(whole | fields, where="a test"), seed=0, num_covariates=covariates, static_cardinalities=groups
    )
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.8 / parameter.shape[-1] ** 0.5)
    return network.eval()


def make_histories(rows: int, steps: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    return 50 + np.cumsum(draw.normal(size=(rows, steps)), axis=1) * draw.uniform(0.1, 10, size=(rows, 1))


@pytest.mark.parametrize("steps", [1, 5, 12, 200])
def test_an_onnx_graph_takes_histories_of_any_length(steps: int) -> None:
    network = make_onnx_test_network(
        network={"cell": "lstm", "hidden": 64, "layers": 2, "dilations": (1, 3)}, scaling="level_season"
    )
    whole = RolloutInput(make_histories(3, steps))
    runner, reference = OnnxEngine(export_onnx(network)), PyTorchEngine(network)
    assert_close_by_row(runner.roll_out(whole, horizon=9), reference.roll_out(whole, horizon=9), whole.values)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cell", ["gru", "lstm", "elman"])
def test_a_large_batch_equals_its_rows(cell: str, threads: int) -> None:
    network = make_onnx_test_network(network={"cell": cell, "hidden": 64, "layers": 2})
    whole = RolloutInput(make_histories(300, 24))
    whole.values[::7, :11] = np.nan
    whole.values[3::5, 13:17] = np.nan
    runner, reference = OnnxEngine(export_onnx(network), threads=threads), PyTorchEngine(network)
    found = runner.roll_out(whole, horizon=30)
    assert_close_by_row(found, reference.roll_out(whole, horizon=30), whole.values)
    for row in (0, 3, 299):
        assert_close_by_row(
            runner.roll_out(select_rows(whole, slice(row, row + 1)), horizon=30),
            found[row : row + 1],
            whole.values[row : row + 1],
        )


def test_many_rows_in_several_chunks_equal_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_onnx_test_network(head={"kind": "gaussian"}, channels=CHANNELS, covariates=2, groups=(3,))
    draw = np.random.default_rng(0)
    whole = RolloutInput(
        make_histories(5, 12),
        draw.normal(size=(5, 12, 2)).astype(np.float32),
        draw.integers(4, size=(5, 1)),
        draw.normal(size=(5, 12, 2)),
        draw.normal(size=(5, 9, 2)).astype(np.float32),
    )
    noise = draw.uniform(size=(5 * network.num_targets, 9, 1)).astype(np.float32)
    runner = OnnxEngine(export_onnx(network))
    expected = [runner.roll_out(whole, horizon=9), runner.roll_out(whole, horizon=9, noise=noise)]
    monkeypatch.setattr("forecaster.engines.onnx.runner.MAX_SEGMENTS_AT_ONCE", 2 * 12)
    found = [runner.roll_out(whole, horizon=9), runner.roll_out(whole, horizon=9, noise=noise)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert_close_by_row(found[1], PyTorchEngine(network).roll_out(whole, horizon=9, noise=noise), whole.values)


@pytest.mark.parametrize("scaling", ["mean_abs", "standard", "last", "level_season", "last of log"])
def test_constant_or_unobserved_rows_agree_with_the_reference(scaling: str) -> None:
    network = make_onnx_test_network(**scaling_fields(scaling), base="last")
    values = np.full((4, 12), 7.0)
    values[1] = 0.0
    values[2] = np.nan
    values[3, :11] = np.nan
    runner, reference = OnnxEngine(export_onnx(network)), PyTorchEngine(network)
    found = runner.roll_out(RolloutInput(values), horizon=5)
    np.testing.assert_allclose(found, reference.roll_out(RolloutInput(values), horizon=5), rtol=1e-6)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("scaling", ["none", "mean_abs", "standard", "level_season", "level_season of log"])
@pytest.mark.parametrize("channels", [(), CHANNELS])
def test_the_scale_of_a_full_history_is_that_of_its_start(scaling: str, channels: tuple[str, ...]) -> None:
    network = make_onnx_test_network(
        reads="history", **scaling_fields(scaling), channels=channels, base="linear", lags=(7,)
    )
    runner, reference = OnnxEngine(export_onnx(network)), PyTorchEngine(network)
    for steps in (10, 12, 13, 70):
        values = make_histories(7, network.pre_context + steps)
        values[:, : network.pre_context] = np.nan
        values[1, : network.pre_context + 5] = np.nan
        values[2, network.pre_context : network.pre_context + 30] = 7.0  # all alike for more than the context
        values[3] = 5.0
        values[4] = np.nan
        values[5, : network.pre_context + steps // 2] = np.nan
        values[6, network.pre_context + 3 : network.pre_context + 8] = np.nan
        beside = np.stack([values[::-1], 3 * values], axis=2).copy() if channels else None
        whole = RolloutInput(values, channels=beside)
        found, memory = runner.roll_out_with_state(whole, horizon=9)
        assert_close_by_row(found, reference.roll_out(whole, horizon=9), values)
        with torch.inference_mode():
            assert_equal_states(memory, warm_up(network, to_window(whole)))


@pytest.mark.parametrize("scaling", ["standard", "last", "level_season"])
def test_small_changes_at_a_high_level_are_preserved(scaling: str) -> None:
    network = make_onnx_test_network(scaling=scaling)
    steps = np.arange(12.0)
    values = 1e12 + np.round(5 * np.sin(steps))[None]
    found, expected = (
        engine.roll_out(RolloutInput(values), horizon=6)
        for engine in (OnnxEngine(export_onnx(network)), PyTorchEngine(network))
    )
    np.testing.assert_allclose(found - 1e12, expected - 1e12, atol=1e-3)
    assert len(np.unique(found)) == 6


@pytest.mark.parametrize("decoder", ["rollout", "direct"])
def test_a_diverging_row_is_nan_from_the_same_step_and_affects_no_other(decoder: str) -> None:
    network = make_onnx_test_network(
        scaling="none", decoder=decoder, base="linear", network={"cell": "elman", "hidden": 8}
    )
    with torch.no_grad():
        network.output.weight.mul_(3e5)
    values = make_histories(5, 12)
    values[1:3] *= 1e6
    found, expected = (
        engine.roll_out(RolloutInput(values), horizon=40)
        for engine in (OnnxEngine(export_onnx(network)), PyTorchEngine(network))
    )
    broken = np.isnan(expected)
    assert 0 < broken.any(axis=1).sum() < 5
    assert 0 < broken.sum() < broken.any(axis=1).sum() * 40, "after some steps"
    assert np.array_equal(np.isnan(found), broken)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_one_history_is_broadcast_over_many_futures() -> None:
    network = make_onnx_test_network(
        covariates=2, groups=(3,), lags=(5,), base="seasonal_naive", network={"cell": "lstm", "hidden": 8}
    )
    draw = np.random.default_rng(0)
    one = RolloutInput(
        make_histories(1, 12 + network.pre_context),
        draw.normal(size=(1, 12 + network.pre_context, 2)).astype(np.float32),
        np.array([[2]]),
        None,
        draw.normal(size=(4, 6, 2)).astype(np.float32),
    )
    many = RolloutInput(*(np.repeat(part, 4, axis=0) for part in one[:3]), None, one.future_covariates)
    runner = OnnxEngine(export_onnx(network))
    found = runner.roll_out(one, horizon=6)
    for futures in (one, many):
        assert_close_by_row(found, PyTorchEngine(network).roll_out(futures, horizon=6), many.values)
    assert len(np.unique(found[:, -1])) == 4
    afterwards, memory = runner.roll_out_with_state(one, horizon=6)
    nothing = one._replace(values=one.values[:, :0], covariates=one.covariates[:, :0])
    again, _ = runner.roll_out_with_state(nothing, memory, horizon=6)
    assert np.array_equal(found, again)
    assert np.array_equal(found, afterwards)


@pytest.mark.parametrize("head", ["quantile", "gaussian", "student_t", "categorical"])
def test_sample_paths_at_extreme_uniforms_equal_pytorch(head: str) -> None:
    network = make_onnx_test_network(head={"kind": head}, context=4)
    ends = np.array([0.0, 1e-30, 1e-9, 1e-4, 0.5 - 1e-7, 0.5, 0.5 + 1e-7, 0.9, 1 - 1e-7, 1.0], dtype=np.float32)
    noise = np.repeat(ends[:, None, None], network.head.uniforms_per_draw, axis=2)
    one = RolloutInput(make_histories(1, 4))
    found, expected = (
        engine.roll_out(one, horizon=1, noise=noise)
        for engine in (OnnxEngine(export_onnx(network)), PyTorchEngine(network))
    )
    spread = np.ptp(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * spread)
    if head in ("quantile", "gaussian", "categorical"):
        assert (np.diff(found[:, 0]) >= 0).all()

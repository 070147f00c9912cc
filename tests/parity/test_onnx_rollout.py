"""A rollout as one ONNX graph is the rollout in PyTorch: for every cell, head, decoder, scaling and base."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from forecaster.data.windows import Window
from forecaster.engines.engine import Known
from forecaster.engines.onnx.export import export
from forecaster.engines.onnx.heads import drawable
from forecaster.engines.onnx.runner import GraphRunner, Memory
from forecaster.engines.pytorch import Reference
from forecaster.model import rollout
from forecaster.model.regressor import Regressor, build
from forecaster.model.rollout import roll, warm_up
from forecaster.spec import Spec
from tests.laws.test_channels import CHANNELS
from tests.laws.test_channels import windows as with_channels
from tests.laws.test_every_combination import HEADS, every_triple, networks, scaled, windows
from tests.sweep import some

LONGEST = 13


def known(window: Window, ahead: Tensor | None) -> Known:
    parts = [None if part is None else part.numpy() for part in (*window, ahead)]
    return Known(*parts)


def rows_of(whole: Known, rows: slice) -> Known:
    return Known(*(None if part is None else part[rows] for part in whole))


def steps_of(whole: Known, steps: slice) -> Known:
    columns = (None if part is None else part[:, steps] for part in (whole.covariates, whole.channels))
    covariates, channels = columns
    return whole._replace(values=whole.values[:, steps], covariates=covariates, channels=channels)


def same(found: np.ndarray, expected: np.ndarray, values: np.ndarray) -> None:
    """Equal but for rounding, as large as the values of each row are."""
    size = np.nan_to_num(np.fmax.reduce(np.abs(values), axis=1, keepdims=True), nan=1.0)
    assert found.dtype == np.float64
    assert found.shape == expected.shape
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert (np.nan_to_num(np.abs(found - expected)) <= 1e-5 * size).all()


def uniforms(network: Regressor, *, paths: int) -> np.ndarray:
    draw = torch.Generator().manual_seed(0)
    return torch.rand(paths * network.targets, 24, network.head.noise, generator=draw).clamp(1e-6, 1 - 1e-6).numpy()


@every_triple
def test_the_graph_is_the_rollout(cell: str, head: str, decoder: str) -> None:
    """One of five scalings and bases for each triple, another for the next: every pair of choices is there."""
    made = networks(cell, head, decoder)
    first = sum(map(ord, cell + head + decoder)) % min(5, len(made))
    for network in made[first::5]:
        agree(network, known(*windows(network)))


@every_triple
def test_the_graph_is_the_rollout_with_channels(cell: str, head: str, decoder: str) -> None:
    """One scaling and base for each triple, another for the next."""
    made = networks(cell, head, decoder, channels=CHANNELS)
    network = made[sum(map(ord, cell + head + decoder)) % len(made)]
    agree(network, known(*with_channels(network)))


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["rollout", pytest.param("direct", marks=pytest.mark.sweep)])
@pytest.mark.parametrize("head", some(HEADS))
@pytest.mark.parametrize("cell", ["lstm", *(pytest.param(one, marks=pytest.mark.sweep) for one in ("gru", "elman"))])
def test_the_graph_is_the_rollout_in_every_combination(cell: str, head: str, decoder: str) -> None:
    for network in networks(cell, head, decoder):
        agree(network, known(*windows(network)))
    for network in networks(cell, head, decoder, channels=CHANNELS):
        agree(network, known(*with_channels(network)))


def agree(network: Regressor, whole: Known) -> None:
    """Whole histories, late beginnings, gaps and unequal sizes; several horizons, one row and many, paths, and memories."""
    reference, runner = Reference(network), GraphRunner(export(network))
    expected = reference.roll(whole, horizon=LONGEST)
    for horizon in (1, 7, LONGEST):
        same(runner.roll(whole, horizon=horizon), expected[:, :horizon], whole.values)
    for row in (1, 2):
        alone = rows_of(whole, slice(row, row + 1))
        same(runner.roll(alone, horizon=5), expected[row : row + 1, :5], alone.values)
    paths_agree(network, reference, runner, rows_of(whole, slice(2, 3)))
    chunks_agree(network, runner, whole)


def paths_agree(network: Regressor, reference: Reference, runner: GraphRunner, one: Known) -> None:
    assert runner.draws == drawable(network.head)
    if not runner.draws:
        return
    noise = uniforms(network, paths=3)
    paths = runner.roll(one, horizon=7, noise=noise)
    same(paths, reference.roll(one, horizon=7, noise=noise), one.values)
    assert len(np.unique(paths[:, -1])) == 3


def chunks_agree(network: Regressor, runner: GraphRunner, whole: Known) -> None:
    """A memory goes on where PyTorch's does; a row that has not begun when it is handed over begins later."""
    cut = network.lead + 3
    first, then = steps_of(whole, slice(cut)), steps_of(whole, slice(cut, None))
    with torch.inference_mode():
        half = warm_up(network, window_of(first))
        memory = warm_up(network, window_of(then), half)
        expected, _ = roll(network, memory, horizon=7, ahead=torch.from_numpy(whole.ahead))
    _, handed = runner.go_on(first, horizon=1)
    alike(handed, half)
    assert 0 < handed.begun.sum() < len(handed.begun)
    found, after = runner.go_on(then, handed, horizon=7)
    same(found, expected.numpy(), whole.values)
    alike(after, memory)
    again, kept = runner.go_on(steps_of(whole, slice(0)), after, horizon=7)
    assert np.array_equal(again, found)
    assert all(np.array_equal(one, other) for one, other in zip(kept, after, strict=True) if one is not None)


def alike(found: Memory, expected: rollout.Memory) -> None:
    torches = {**expected._asdict(), **expected.state._asdict(), **expected.scale._asdict()}
    for name, part in found._asdict().items():
        if name == "time":
            assert part == expected.time
        elif part is None:
            assert name == "recent" or torches[name] is None or not torches[name].numel()
        else:
            size = torches[name].double().abs().max().clamp(min=1.0)
            np.testing.assert_allclose(part, torches[name].numpy(), rtol=0, atol=1e-5 * float(size))


def window_of(part: Known) -> Window:
    return Window(*(None if array is None else torch.from_numpy(array) for array in part[:4]))


def make(*, context: int = 12, covariates: int = 0, groups: tuple[int, ...] = (), **fields: object) -> Regressor:
    """A network of weights so large that all it reads shows, and so small that rounding dies away."""
    whole = {"name": "law", "context": context, "horizon": 6, "season": 4, "network": {"hidden": 8}}
    network = build(Spec.parse(whole | fields, where="a test"), seed=0, covariates=covariates, groups=groups)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.8 / parameter.shape[-1] ** 0.5)
    return network.eval()


def histories(rows: int, steps: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    return 50 + np.cumsum(draw.normal(size=(rows, steps)), axis=1) * draw.uniform(0.1, 10, size=(rows, 1))


@pytest.mark.parametrize("steps", [1, 5, 12, 200])
def test_a_graph_takes_histories_of_any_length(steps: int) -> None:
    network = make(network={"cell": "lstm", "hidden": 64, "layers": 2, "dilations": (1, 3)}, scaling="level_season")
    whole = Known(histories(3, steps))
    runner, reference = GraphRunner(export(network)), Reference(network)
    same(runner.roll(whole, horizon=9), reference.roll(whole, horizon=9), whole.values)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cell", ["gru", "lstm", "elman"])
def test_a_large_batch_is_as_its_rows(cell: str, threads: int) -> None:
    network = make(network={"cell": cell, "hidden": 64, "layers": 2})
    whole = Known(histories(300, 24))
    whole.values[::7, :11] = np.nan
    whole.values[3::5, 13:17] = np.nan
    runner, reference = GraphRunner(export(network), threads=threads), Reference(network)
    found = runner.roll(whole, horizon=30)
    same(found, reference.roll(whole, horizon=30), whole.values)
    for row in (0, 3, 299):
        same(
            runner.roll(rows_of(whole, slice(row, row + 1)), horizon=30),
            found[row : row + 1],
            whole.values[row : row + 1],
        )


def test_many_rows_in_several_parts_are_the_rows_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make(head={"kind": "gaussian"}, channels=CHANNELS, covariates=2, groups=(3,))
    draw = np.random.default_rng(0)
    whole = Known(
        histories(5, 12),
        draw.normal(size=(5, 12, 2)).astype(np.float32),
        draw.integers(4, size=(5, 1)),
        draw.normal(size=(5, 12, 2)),
        draw.normal(size=(5, 9, 2)).astype(np.float32),
    )
    noise = draw.uniform(size=(5 * network.targets, 9, 1)).astype(np.float32)
    runner = GraphRunner(export(network))
    expected = [runner.roll(whole, horizon=9), runner.roll(whole, horizon=9, noise=noise)]
    monkeypatch.setattr("forecaster.engines.onnx.runner.SEGMENTS_AT_ONCE", 2 * 12)
    found = [runner.roll(whole, horizon=9), runner.roll(whole, horizon=9, noise=noise)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    same(found[1], Reference(network).roll(whole, horizon=9, noise=noise), whole.values)


@pytest.mark.parametrize("scaling", ["mean_abs", "standard", "last", "level_season", "last of log"])
def test_rows_without_change_or_without_observations_are_no_exception(scaling: str) -> None:
    network = make(**scaled(scaling), base="last")
    values = np.full((4, 12), 7.0)
    values[1] = 0.0
    values[2] = np.nan
    values[3, :11] = np.nan
    runner, reference = GraphRunner(export(network)), Reference(network)
    found = runner.roll(Known(values), horizon=5)
    np.testing.assert_allclose(found, reference.roll(Known(values), horizon=5), rtol=1e-6)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("scaling", ["none", "mean_abs", "standard", "level_season", "level_season of log"])
@pytest.mark.parametrize("channels", [(), CHANNELS])
def test_the_scale_of_a_whole_history_is_that_of_its_beginning(scaling: str, channels: tuple[str, ...]) -> None:
    network = make(reads="history", **scaled(scaling), channels=channels, base="linear", lags=(7,))
    runner, reference = GraphRunner(export(network)), Reference(network)
    for steps in (10, 12, 13, 70):
        values = histories(7, network.lead + steps)
        values[:, : network.lead] = np.nan
        values[1, : network.lead + 5] = np.nan
        values[2, network.lead : network.lead + 30] = 7.0  # all alike for more than the context
        values[3] = 5.0
        values[4] = np.nan
        values[5, : network.lead + steps // 2] = np.nan
        values[6, network.lead + 3 : network.lead + 8] = np.nan
        beside = np.stack([values[::-1], 3 * values], axis=2).copy() if channels else None
        whole = Known(values, channels=beside)
        found, memory = runner.go_on(whole, horizon=9)
        same(found, reference.roll(whole, horizon=9), values)
        with torch.inference_mode():
            alike(memory, warm_up(network, window_of(whole)))


@pytest.mark.parametrize("scaling", ["standard", "last", "level_season"])
def test_small_changes_on_a_high_level_are_not_lost(scaling: str) -> None:
    network = make(scaling=scaling)
    steps = np.arange(12.0)
    values = 1e12 + np.round(5 * np.sin(steps))[None]
    found, expected = (
        engine.roll(Known(values), horizon=6) for engine in (GraphRunner(export(network)), Reference(network))
    )
    np.testing.assert_allclose(found - 1e12, expected - 1e12, atol=1e-3)
    assert len(np.unique(found)) == 6


@pytest.mark.parametrize("decoder", ["rollout", "direct"])
def test_a_row_that_runs_away_is_nan_from_the_same_step_on_and_its_neighbours_do_not_notice(decoder: str) -> None:
    network = make(scaling="none", decoder=decoder, base="linear", network={"cell": "elman", "hidden": 8})
    with torch.no_grad():
        network.output.weight.mul_(3e5)
    values = histories(5, 12)
    values[1:3] *= 1e6
    found, expected = (
        engine.roll(Known(values), horizon=40) for engine in (GraphRunner(export(network)), Reference(network))
    )
    broken = np.isnan(expected)
    assert 0 < broken.any(axis=1).sum() < 5
    assert 0 < broken.sum() < broken.any(axis=1).sum() * 40, "after some steps"
    assert np.array_equal(np.isnan(found), broken)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_one_history_goes_as_many_ways_as_there_are_futures() -> None:
    network = make(covariates=2, groups=(3,), lags=(5,), base="seasonal_naive", network={"cell": "lstm", "hidden": 8})
    draw = np.random.default_rng(0)
    one = Known(
        histories(1, 12 + network.lead),
        draw.normal(size=(1, 12 + network.lead, 2)).astype(np.float32),
        np.array([[2]]),
        None,
        draw.normal(size=(4, 6, 2)).astype(np.float32),
    )
    many = Known(*(np.repeat(part, 4, axis=0) for part in one[:3]), None, one.ahead)
    runner = GraphRunner(export(network))
    found = runner.roll(one, horizon=6)
    for futures in (one, many):
        same(found, Reference(network).roll(futures, horizon=6), many.values)
    assert len(np.unique(found[:, -1])) == 4
    afterwards, memory = runner.go_on(one, horizon=6)
    nothing = one._replace(values=one.values[:, :0], covariates=one.covariates[:, :0])
    again, _ = runner.go_on(nothing, memory, horizon=6)
    assert np.array_equal(found, again)
    assert np.array_equal(found, afterwards)


@pytest.mark.parametrize("head", ["quantile", "gaussian", "student_t", "categorical"])
def test_paths_at_the_ends_of_the_uniforms_are_those_of_pytorch(head: str) -> None:
    network = make(head={"kind": head}, context=4)
    ends = np.array([0.0, 1e-30, 1e-9, 1e-4, 0.5 - 1e-7, 0.5, 0.5 + 1e-7, 0.9, 1 - 1e-7, 1.0], dtype=np.float32)
    noise = np.repeat(ends[:, None, None], network.head.noise, axis=2)
    one = Known(histories(1, 4))
    found, expected = (
        engine.roll(one, horizon=1, noise=noise) for engine in (GraphRunner(export(network)), Reference(network))
    )
    spread = np.ptp(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * spread)
    if head in ("quantile", "gaussian", "categorical"):
        assert (np.diff(found[:, 0]) >= 0).all()

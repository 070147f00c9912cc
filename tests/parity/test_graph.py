"""A rollout as one ONNX graph is the rollout in PyTorch: for every cell, head, decoder, scaling and base."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from forecaster.data.windows import Window
from forecaster.engine import Known
from forecaster.graph.export import export
from forecaster.graph.heads import drawable
from forecaster.graph.runner import GraphRunner, Memory
from forecaster.model import rollout
from forecaster.model.reference import Reference
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import roll, warm_up
from tests.laws.test_every_combination import every_triple, networks, windows

LONGEST = 13


def known(window: Window, ahead: Tensor | None) -> Known:
    parts = [None if part is None else part.numpy() for part in (*window, ahead)]
    return Known(*parts)


def rows_of(whole: Known, rows: slice) -> Known:
    return Known(*(None if part is None else part[rows] for part in whole))


def steps_of(whole: Known, steps: slice) -> Known:
    return whole._replace(values=whole.values[:, steps], covariates=whole.covariates[:, steps])


def same(found: np.ndarray, expected: np.ndarray, values: np.ndarray) -> None:
    """Equal but for rounding, as large as the values of each row are."""
    size = np.nanmax(np.abs(values), axis=1, keepdims=True)
    assert found.dtype == np.float64
    assert found.shape == expected.shape
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert (np.nan_to_num(np.abs(found - expected)) <= 1e-5 * size).all()


def uniforms(network: Regressor, *, paths: int) -> np.ndarray:
    draw = torch.Generator().manual_seed(0)
    return torch.rand(paths, 24, network.head.noise, generator=draw).clamp(1e-6, 1 - 1e-6).numpy()


@every_triple
def test_the_graph_is_the_rollout(cell: str, head: str, decoder: str) -> None:
    """Whole histories, late beginnings, gaps and unequal sizes; several horizons, one row and many, paths, and memories."""
    for network in networks(cell, head, decoder):
        whole = known(*windows(network))
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
        memory = warm_up(network, window_of(then), warm_up(network, window_of(first)))
        expected, _ = roll(network, memory, horizon=7, ahead=torch.from_numpy(whole.ahead))
    _, handed = runner.go_on(first, horizon=1)
    assert handed.begun.tolist() == [True, False, True, True]
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
            assert torches[name] is None or not torches[name].numel()
        else:
            size = torches[name].double().abs().max().clamp(min=1.0)
            np.testing.assert_allclose(part, torches[name].numpy(), rtol=0, atol=1e-5 * float(size))


def window_of(part: Known) -> Window:
    return Window(*(None if array is None else torch.from_numpy(array) for array in part[:3]))

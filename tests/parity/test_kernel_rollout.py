"""A rollout in the compiled kernel is the rollout in PyTorch, for every plain network and instruction set; a row is alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from forecaster.engines.engine import Known
from forecaster.engines.kernel import Plain
from forecaster.engines.kernel import plain as without_torch
from forecaster.engines.kernel_torch import Fused, fused
from forecaster.engines.pytorch import Reference
from forecaster.model.recurrence.compiled import kernel
from forecaster.model.regressor import Regressor, build
from forecaster.spec import Spec
from tests.factories import make_network, make_spec, wave

WIDEST = kernel()
SCALINGS = ["none", "mean_abs", "standard", "last", "level_season"]
WIDTHS = [] if WIDEST is None else [lanes for lanes in (8, 16) if lanes <= WIDEST.lanes]
CONTEXT, HORIZON = 24, 7

pytestmark = pytest.mark.skipif(WIDEST is None, reason="the kernel was not compiled")
every_width = pytest.mark.parametrize("lanes", WIDTHS)
every_cell = pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])


def plain(cell: str, *, hidden: int = 20, layers: int = 1, **fields: Any) -> Regressor:
    network = {"cell": cell, "hidden": hidden, "layers": layers}
    whole = {"name": "plain", "context": CONTEXT, "horizon": HORIZON, "season": 4, "network": network}
    made = build(Spec.parse(whole | fields, where="a test"), seed=1).eval().requires_grad_(False)
    for weight in made.parameters():
        weight.mul_(1.5)
    return made


def histories(rows: int, steps: int = CONTEXT) -> np.ndarray:
    """Whole, with gaps, begun late, flat, and never observed, over and over."""
    draw = np.random.default_rng(0)
    values = np.stack([wave(steps, seed=row) for row in range(rows)])
    values[1::5][draw.random(values[1::5].shape) < 0.3] = np.nan
    values[2::5, : steps // 2] = np.nan
    values[3::5] = 7.0
    values[4::5] = np.nan
    return values


def same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float64
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


# Hidden sizes: less than a vector, vectors and a bit, as many vectors as one row takes at once, and more.
@every_width
@every_cell
@pytest.mark.parametrize(("hidden", "layers"), [(5, 1), (20, 3), (64, 1), (72, 2)])
@pytest.mark.parametrize("segment", [1, 4])
def test_the_kernel_rolls_as_the_reference_does(cell: str, hidden: int, layers: int, segment: int, lanes: int) -> None:
    network = plain(cell, hidden=hidden, layers=layers, segment=segment)
    values = histories(14)
    same(
        Fused(network, lanes=lanes).roll(Known(values), horizon=HORIZON),
        Reference(network).roll(Known(values), horizon=HORIZON),
    )


@every_width
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("kind", ["point", "quantile", "gaussian", "student_t"])
def test_for_every_scaling_and_located_head(scaling: str, kind: str, lanes: int) -> None:
    network = plain("gru", scaling=scaling, head={"kind": kind})
    values = histories(5)
    same(
        Fused(network, lanes=lanes).roll(Known(values), horizon=HORIZON),
        Reference(network).roll(Known(values), horizon=HORIZON),
    )


@every_width
@every_cell
@pytest.mark.parametrize("scaling", ["standard", "level_season"])
def test_for_whole_histories(cell: str, scaling: str, lanes: int) -> None:
    network = plain(cell, scaling=scaling, reads="history", segment=2)
    values = histories(10, steps=3 * CONTEXT)
    same(
        Fused(network, lanes=lanes).roll(Known(values), horizon=HORIZON),
        Reference(network).roll(Known(values), horizon=HORIZON),
    )


@every_width
@every_cell
def test_what_is_reached_at_a_place_goes_on_as_the_history_up_to_there(cell: str, lanes: int) -> None:
    network = plain(cell, layers=2, scaling="level_season", reads="history", segment=2)
    values = histories(10, steps=3 * CONTEXT)[[0, 1, 5, 6]]
    one = Fused(network, lanes=lanes)
    with torch.inference_mode():
        reached = one.reach(torch.from_numpy(values), every=4, count=5)
        told = one.go_on(reached.pick(torch.arange(20)), horizon=HORIZON).numpy().reshape(4, 5, HORIZON)
    for place in range(5):
        upto = values[:, : values.shape[1] - 4 * (4 - place)]
        same(told[:, place], Reference(network).roll(Known(upto), horizon=HORIZON))


@every_width
@every_cell
@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_is_to_the_bit_the_same_in_any_company(cell: str, threads: int, lanes: int) -> None:
    one, values = Fused(plain(cell, hidden=72, layers=2), lanes=lanes, threads=threads), histories(200)
    together = one.roll(Known(values), horizon=HORIZON)
    for rows in (slice(0, 1), slice(1, 4), slice(3, 12), slice(7, 200)):
        assert np.array_equal(one.roll(Known(values[rows]), horizon=HORIZON), together[rows], equal_nan=True)


@every_width
def test_a_row_that_explodes_is_not_a_number_from_there_on_and_harms_nobody_else(lanes: int) -> None:
    network, values = plain("gru", scaling="none"), histories(7)
    network.output.weight.mul_(20000.0)
    values[0, 3] = 1e6  # its bound is beyond what is foretold
    found, expected = (
        engine.roll(Known(values), horizon=HORIZON) for engine in (Fused(network, lanes=lanes), Reference(network))
    )
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1:]).any()
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert np.allclose(found, expected, rtol=1e-3, equal_nan=True)


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
def test_other_networks_are_left_to_the_reference(fields: dict[str, Any]) -> None:
    assert fused(make_network(make_spec(**fields))) is None


@pytest.mark.parametrize("fields", [{"residual": True}, {"dilations": (1, 2)}])
def test_other_recurrences_are_left_to_the_reference(fields: dict[str, Any]) -> None:
    whole = {"name": "other", "context": 8, "horizon": 2, "network": {"hidden": 6, "layers": 2} | fields}
    assert fused(build(Spec.parse(whole, where="a test"), seed=0)) is None


def whole(cell: str, **fields: Any) -> Spec:
    given = {"name": "plain", "context": CONTEXT, "horizon": HORIZON, "season": 4}
    return Spec.parse(given | fields | {"network": {"cell": cell, "hidden": 20, "layers": 2}}, where="a test")


def numpy_weights(network: Regressor) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


@every_width
@every_cell
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("reads", "steps"), [("window", CONTEXT), ("history", 3 * CONTEXT)])
def test_without_torch_the_kernel_rolls_as_the_reference_does(
    cell: str, scaling: str, reads: str, steps: int, lanes: int
) -> None:
    if (reads, scaling) == ("history", "last"):
        pytest.skip("a specification that is refused")
    spec = whole(cell, scaling=scaling, reads=reads, segment=2)
    network, values = plain(cell, layers=2, scaling=scaling, reads=reads, segment=2), histories(10, steps)
    one = Plain(spec, numpy_weights(network), season=4, lanes=lanes)
    expected = Reference(network).roll(Known(values), horizon=HORIZON)
    same(one.roll(Known(values), horizon=HORIZON), expected)
    for row in range(10):
        assert np.array_equal(
            one.roll(Known(values[[row]]), horizon=HORIZON)[0],
            one.roll(Known(values), horizon=HORIZON)[row],
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
def test_without_torch_the_kernel_knows_the_same_networks(fields: dict[str, Any]) -> None:
    spec = Spec.parse({"name": "other", "context": 8, "horizon": 2} | fields, where="a test")
    network = build(spec, seed=0).requires_grad_(False)
    found = without_torch(spec, numpy_weights(network), season=1, features=0)
    assert (found is None) == (fused(network) is None)
    assert without_torch(spec, numpy_weights(network), season=1, features=1) is None

"""The laws of the rollout for every cell, head, decoder, scaling and base: small random weights, one test for each triple."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from forecaster.data.windows import Example, Window
from forecaster.errors import BadSpec
from forecaster.model.regressor import Regressor, build_network
from forecaster.model.rollout import repeat_state, roll_out, start_rollout, warm_up
from forecaster.spec import Spec
from forecaster.training.loss import teacher_forced_loss
from tests.case_selection import checkerboard_product

pytestmark = pytest.mark.integration

HEADS = ["point", "quantile", "gaussian", "student_t", "neg_binomial", "categorical"]
SCALINGS = ["none", "mean_abs", "standard", "last", "level_season", "last of log", "level_season of log"]
BASES = ["zero", "last", "seasonal_naive", "linear"]
CONTEXT, HORIZON = 12, 7

every_triple = pytest.mark.parametrize(
    ("cell", "head", "decoder"), checkerboard_product(["gru", "lstm", "elman"], HEADS, ["rollout", "direct"])
)


def make_networks(cell: str, head: str, decoder: str, *, channels: tuple[str, ...] = ()) -> list[Regressor]:
    """One network for each scaling and base that go together with the head, of alternating segments, lags and layers."""
    made = []
    for number, (scaling, base) in enumerate(product(SCALINGS, BASES)):
        segment, deep = (1, 3)[number % 2], number % 3 == 0
        fields = {
            "name": "law",
            "context": CONTEXT,
            "horizon": 6,
            "season": 4,
            "segment": segment,
            "decoder": decoder,
            "base": base,
            **scaling_fields(scaling),
            "lags": (6,) if number % 4 == 0 else (),
            "channels": channels,
            "head": {"kind": head} if head != "categorical" else {"kind": head, "bins": 11, "bound": 3.0},
            "network": {"cell": cell, "hidden": 5, "layers": 2, "residual": True, "dilations": (1, 2)}
            if deep
            else {"cell": cell, "hidden": 5},
        }
        try:
            spec = Spec.parse(fields, where="law")
        except BadSpec:
            assert head in ("neg_binomial", "categorical")
            continue
        network = build_network(spec, seed=number, num_covariates=2, static_cardinalities=(3,))
        with torch.no_grad():
            draw = torch.Generator().manual_seed(number)
            for parameter in network.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
        made.append(network.eval())
    assert made
    return made


def scaling_fields(scaling: str) -> dict[str, str]:
    """The fields of a scaling, in logarithms or not."""
    kind, _, transform = scaling.partition(" of ")
    return {"scaling": kind, "transform": transform or "none"}


def promised_equivariance(network: Regressor) -> tuple[float, float] | None:
    """By what a series may be multiplied, and what added, without a forecast that would not follow."""
    if network.transform == "log":
        return (7.0, 0.0)
    promises = {"standard": (7.0, 1000.0), "last": (7.0, 1000.0), "level_season": (7.0, 1000.0), "mean_abs": (7.0, 0.0)}
    return promises.get(network.scaling)


def make_windows(network: Regressor, *, rows: int = 4) -> tuple[Window, Tensor]:
    """Counts with a season: a whole history, one that begins late, one with a gap, a large one; and covariates ahead."""
    steps, rng = network.pre_context + CONTEXT, np.random.default_rng(1)
    values = np.round(30 + 8 * np.sin(np.arange(steps) * np.pi / 2) + rng.normal(size=(rows, steps)) * 3)
    values[1, : network.pre_context + 5] = np.nan
    values[2, network.pre_context + 6 : network.pre_context + 8] = np.nan
    values[3] *= 50
    covariates = torch.from_numpy(rng.normal(size=(rows, steps + 24, 2))).float()
    window = Window(torch.from_numpy(values), covariates[:, :steps], torch.tensor([[0], [1], [2], [3]])[:rows])
    return window, covariates[:, steps:]


def select_rows(window: Window, indices: slice) -> Window:
    return Window(*(None if field is None else field[indices] for field in window))


def forecast_window(network: Regressor, window: Window, ahead: Tensor, horizon: int = HORIZON) -> Tensor:
    with torch.inference_mode():
        return roll_out(network, warm_up(network, window), horizon=horizon, future_covariates=ahead)[0]


def assert_close_scaled(actual: Tensor, expected: Tensor, window: Window) -> None:
    size = window.values.nan_to_num(0.0).abs().amax(1, keepdim=True)
    assert ((actual - expected).abs() <= 2e-5 * size).all()


@every_triple
def test_a_longer_horizon_starts_with_the_shorter_one(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder):
        window, ahead = make_windows(network)
        longer, shorter = forecast_window(network, window, ahead, 13), forecast_window(network, window, ahead, 4)
        assert torch.isfinite(longer).all()
        assert_close_scaled(longer[:, :4], shorter, window)


@every_triple
def test_a_forecast_does_not_depend_on_its_batch(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder):
        window, ahead = make_windows(network)
        together = forecast_window(network, window, ahead)
        for row in range(4):
            one = slice(row, row + 1)
            assert_close_scaled(
                forecast_window(network, select_rows(window, one), ahead[one]), together[one], select_rows(window, one)
            )


@every_triple
def test_a_warm_up_in_chunks_equals_one_pass(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder):
        window, ahead = make_windows(network)
        with torch.inference_mode():
            memory, rest = start_rollout(network, window)
            assert rest.covariates is not None
            first = Window(rest.values[:, :6], rest.covariates[:, :6], rest.static)
            second = Window(rest.values[:, 6:], rest.covariates[:, 6:], rest.static)
            chunked = roll_out(
                network,
                warm_up(network, second, warm_up(network, first, memory)),
                horizon=HORIZON,
                future_covariates=ahead,
            )[0]
        assert_close_scaled(chunked, forecast_window(network, window, ahead), window)


@every_triple
def test_a_rollout_resumes_from_its_state(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder):
        window, ahead = make_windows(network)
        with torch.inference_mode():
            before, memory = roll_out(network, warm_up(network, window), horizon=network.block, future_covariates=ahead)
            after, _ = roll_out(network, memory, horizon=3, future_covariates=ahead[:, network.block :])
        assert_close_scaled(
            torch.cat([before, after], dim=1), forecast_window(network, window, ahead, network.block + 3), window
        )


@every_triple
def test_masked_and_padded_values_are_never_read(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder):
        window, ahead = make_windows(network)
        assert window.covariates is not None
        other = window.covariates.clone()
        begun = network.pre_context + 3  # row 1 begins in the segment after this step, whatever the segment's length
        other[1, network.pre_context : begun] = 1e3
        expected = forecast_window(network, window, ahead)
        assert_close_scaled(forecast_window(network, window._replace(covariates=other), ahead), expected, window)


@every_triple
def test_the_loss_and_its_gradients_are_finite(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder):
        window, ahead = make_windows(network)
        future = torch.arange(1.0, network.block + 1).double().expand(4, -1).clone()
        future[0, 0] = torch.nan
        loss = teacher_forced_loss(network, Example(window, future, ahead[:, : network.block]))
        loss.backward()
        assert torch.isfinite(loss)
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


@every_triple
def test_a_forecast_is_equivariant_to_shift_and_scale(cell: str, head: str, decoder: str) -> None:
    checked = 0
    for network in make_networks(cell, head, decoder):
        if (both := promised_equivariance(network)) is None:
            continue
        factor, shift = both
        window, ahead = make_windows(network)
        moved = window._replace(values=factor * window.values + shift)
        assert_close_scaled(
            forecast_window(network, moved, ahead), factor * forecast_window(network, window, ahead) + shift, moved
        )
        checked += 1
    assert checked or head == "neg_binomial"


@every_triple
def test_a_sample_path_depends_on_its_noise_only(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder):
        if head == "point":
            assert not network.head.uniforms_per_draw
            continue
        window, ahead = make_windows(network)
        one = select_rows(window, slice(2, 3))
        noise = torch.rand(3, 24, network.head.uniforms_per_draw, generator=torch.Generator().manual_seed(0)).clamp(
            0.01, 0.99
        )
        with torch.inference_mode():
            memory = repeat_state(warm_up(network, one), copies=3)
            known = ahead[2:3].expand(3, -1, -1)
            paths = roll_out(network, memory, horizon=HORIZON, future_covariates=known, noise=noise)[0]
            alone = roll_out(
                network, warm_up(network, one), horizon=HORIZON, future_covariates=ahead[2:3], noise=noise[1:2]
            )[0]
        assert torch.isfinite(paths).all()
        assert_close_scaled(paths[1:2], alone, one)
        assert not torch.equal(paths[0], paths[1])


@pytest.mark.parametrize("base", BASES[1:])
@pytest.mark.parametrize("decoder", ["rollout", "direct"])
def test_an_untrained_network_predicts_its_base(base: str, decoder: str) -> None:
    spec = Spec(name="law", context=12, horizon=6, season=4, segment=2, base=base, decoder=decoder, scaling="none")  # type: ignore[arg-type]
    network = build_network(spec, seed=0)
    values = torch.arange(1.0, network.pre_context + 13).double()[None]
    with torch.inference_mode():
        found = roll_out(network, warm_up(network, Window(values)), horizon=6)[0][0]
    last = float(values[0, -1])
    expected = {
        "last": [last] * 6,
        "seasonal_naive": [last - 3, last - 2, last - 1, last, last - 3, last - 2],
        "linear": [last + step for step in range(1, 7)],
    }
    np.testing.assert_allclose(found, expected[base], rtol=1e-6)

"""The laws of the rollout for every cell, head, decoder, scaling and base, on small random weights; one test per triple."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from forecaster.data.windows import Example, Window
from forecaster.errors import BadSpec
from forecaster.model.heads import Symbols
from forecaster.model.regressor import Regressor, build_network
from forecaster.model.rollout import repeat_state, roll_out, start_rollout, warm_up
from forecaster.spec import Spec
from forecaster.training.loss import teacher_forced_loss
from tests.case_selection import checkerboard_product, sparse_product

pytestmark = pytest.mark.integration

HEADS = ["point", "quantile", "gaussian", "student_t", "neg_binomial", "categorical", "symbols"]
HEAD_FIELDS = {"categorical": {"bins": 11, "bound": 3.0}, "symbols": {"vocabulary": tuple("abcdefghi")}}
SCALINGS = ["none", "mean_abs", "standard", "last", "level_season", "last of log", "level_season of log"]
BASES = ["zero", "last", "seasonal_naive", "linear"]
CONTEXT, HORIZON = 12, 7

CELLS, DECODERS = ["gru", "lstm", "elman"], ["rollout", "direct"]
every_triple = pytest.mark.parametrize(("cell", "head", "decoder"), checkerboard_product(CELLS, HEADS, DECODERS))
every_value = pytest.mark.parametrize(("cell", "head", "decoder"), sparse_product(CELLS, HEADS, DECODERS))
NUMERIC_HEADS = HEADS[:-1]  # a network of symbols has no channels and no graph, and is not unrolled in training
every_numeric_value = pytest.mark.parametrize(
    ("cell", "head", "decoder"), sparse_product(CELLS, NUMERIC_HEADS, DECODERS)
)


def make_networks(cell: str, head: str, decoder: str, *, channels: tuple[str, ...] = ()) -> list[Regressor]:
    """Builds one network for each scaling and base that the head supports, with alternating segments, lags and layers."""
    networks = []
    for index, (scaling, base) in enumerate(product(SCALINGS, BASES)):
        segment, is_deep = (1, 3)[index % 2], index % 3 == 0
        fields = {
            "name": "law",
            "context": CONTEXT,
            "horizon": 6,
            "season": 4,
            "segment": segment,
            "decoder": decoder,
            "base": base,
            **scaling_fields(scaling),
            "lags": (6,) if index % 4 == 0 else (),
            "channels": channels,
            "head": {"kind": head, **HEAD_FIELDS.get(head, {})},
            "network": {"cell": cell, "hidden": 5, "layers": 2, "residual": True, "dilations": (1, 2)}
            if is_deep
            else {"cell": cell, "hidden": 5},
        }
        try:
            spec = Spec.parse(fields, where="law")
        except BadSpec:
            assert head in ("neg_binomial", "categorical", "symbols")
            continue
        network = build_network(spec, seed=index, num_covariates=2, static_cardinalities=(3,))
        with torch.no_grad():
            generator = torch.Generator().manual_seed(index)
            for parameter in network.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        networks.append(network.eval())
    assert networks
    return networks


def scaling_fields(scaling: str) -> dict[str, str]:
    """Returns the spec fields of a scaling, with or without the log transform."""
    kind, _, transform = scaling.partition(" of ")
    return {"scaling": kind, "transform": transform or "none"}


def promised_equivariance(network: Regressor) -> tuple[float, float] | None:
    """Returns the factor and the shift of a series that its forecast must follow; None if there is no such promise."""
    if network.transform == "log":
        return (7.0, 0.0)
    promises = {"standard": (7.0, 1000.0), "last": (7.0, 1000.0), "level_season": (7.0, 1000.0), "mean_abs": (7.0, 0.0)}
    return promises.get(network.scaling)


def make_windows(network: Regressor, *, rows: int = 4) -> tuple[Window, Tensor]:
    """Seasonal counts: a complete history, one that begins late, one with a gap, a large one; and future covariates."""
    steps, rng = network.pre_context + CONTEXT, np.random.default_rng(1)
    values = np.round(30 + 8 * np.sin(np.arange(steps) * np.pi / 2) + rng.normal(size=(rows, steps)) * 3)
    values[1, : network.pre_context + 5] = np.nan
    values[2, network.pre_context + 6 : network.pre_context + 8] = np.nan
    values[3] *= 50
    if isinstance(network.head, Symbols):
        values %= network.head.size + 1  # codes, some of them unknown
    covariates = torch.from_numpy(rng.normal(size=(rows, steps + 24, 2))).float()
    window = Window(torch.from_numpy(values), covariates[:, :steps], torch.tensor([[0], [1], [2], [3]])[:rows])
    return window, covariates[:, steps:]


def select_rows(window: Window, indices: slice) -> Window:
    return Window(*(None if field is None else field[indices] for field in window))


def forecast_window(network: Regressor, window: Window, future_covariates: Tensor, horizon: int = HORIZON) -> Tensor:
    with torch.inference_mode():
        return roll_out(network, warm_up(network, window), horizon=horizon, future_covariates=future_covariates)[0]


def assert_close_scaled(actual: Tensor, expected: Tensor, window: Window) -> None:
    size = window.values.nan_to_num(0.0).abs().amax(1, keepdim=True)
    assert ((actual - expected).abs() <= 2e-5 * size).all()


@every_value
def test_a_longer_horizon_starts_with_the_shorter_one(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder):
        window, future_covariates = make_windows(network)
        longer, shorter = (
            forecast_window(network, window, future_covariates, 13),
            forecast_window(network, window, future_covariates, 4),
        )
        assert torch.isfinite(longer).all()
        assert_close_scaled(longer[:, :4], shorter, window)


@every_triple
def test_a_forecast_does_not_depend_on_its_batch(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder):
        window, future_covariates = make_windows(network)
        batched = forecast_window(network, window, future_covariates)
        for row in range(4):
            row_slice = slice(row, row + 1)
            assert_close_scaled(
                forecast_window(network, select_rows(window, row_slice), future_covariates[row_slice]),
                batched[row_slice],
                select_rows(window, row_slice),
            )


@every_value
def test_a_warm_up_in_chunks_equals_one_pass(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder):
        window, future_covariates = make_windows(network)
        with torch.inference_mode():
            state, remaining = start_rollout(network, window)
            assert remaining.covariates is not None
            first_part = Window(remaining.values[:, :6], remaining.covariates[:, :6], remaining.static)
            second_part = Window(remaining.values[:, 6:], remaining.covariates[:, 6:], remaining.static)
            chunked = roll_out(
                network,
                warm_up(network, second_part, warm_up(network, first_part, state)),
                horizon=HORIZON,
                future_covariates=future_covariates,
            )[0]
        assert_close_scaled(chunked, forecast_window(network, window, future_covariates), window)


@every_triple
def test_a_rollout_resumes_from_its_state(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder):
        window, future_covariates = make_windows(network)
        with torch.inference_mode():
            first_block, state = roll_out(
                network, warm_up(network, window), horizon=network.block, future_covariates=future_covariates
            )
            rest, _ = roll_out(network, state, horizon=3, future_covariates=future_covariates[:, network.block :])
        assert_close_scaled(
            torch.cat([first_block, rest], dim=1),
            forecast_window(network, window, future_covariates, network.block + 3),
            window,
        )


@every_triple
def test_masked_and_padded_values_are_never_read(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder):
        window, future_covariates = make_windows(network)
        assert window.covariates is not None
        covariates = window.covariates.clone()
        start = network.pre_context + 3  # row 1 begins in the segment after this step, for any segment length
        covariates[1, network.pre_context : start] = 1e3
        expected = forecast_window(network, window, future_covariates)
        assert_close_scaled(
            forecast_window(network, window._replace(covariates=covariates), future_covariates), expected, window
        )


@every_value
def test_the_loss_and_its_gradients_are_finite(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder):
        window, future_covariates = make_windows(network)
        future = torch.arange(1.0, network.block + 1).double().expand(4, -1).clone()
        future[0, 0] = torch.nan
        loss = teacher_forced_loss(network, Example(window, future, future_covariates[:, : network.block]))
        loss.backward()
        assert torch.isfinite(loss)
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


@every_value
def test_a_forecast_is_equivariant_to_shift_and_scale(cell: str, head: str, decoder: str) -> None:
    checked = 0
    for network in make_networks(cell, head, decoder):
        if (promise := promised_equivariance(network)) is None:
            continue
        factor, shift = promise
        window, future_covariates = make_windows(network)
        transformed = window._replace(values=factor * window.values + shift)
        assert_close_scaled(
            forecast_window(network, transformed, future_covariates),
            factor * forecast_window(network, window, future_covariates) + shift,
            transformed,
        )
        checked += 1
    assert checked or head in ("neg_binomial", "symbols")


@every_value
def test_a_sample_path_depends_on_its_noise_only(cell: str, head: str, decoder: str) -> None:
    for network in make_networks(cell, head, decoder):
        if head == "point":
            assert not network.head.uniforms_per_draw
            continue
        window, future_covariates = make_windows(network)
        single = select_rows(window, slice(2, 3))
        noise = torch.rand(3, 24, network.head.uniforms_per_draw, generator=torch.Generator().manual_seed(0)).clamp(
            0.01, 0.99
        )
        with torch.inference_mode():
            state = repeat_state(warm_up(network, single), copies=3)
            repeated = future_covariates[2:3].expand(3, -1, -1)
            paths = roll_out(network, state, horizon=HORIZON, future_covariates=repeated, noise=noise)[0]
            path = roll_out(
                network,
                warm_up(network, single),
                horizon=HORIZON,
                future_covariates=future_covariates[2:3],
                noise=noise[1:2],
            )[0]
        assert torch.isfinite(paths).all()
        assert_close_scaled(paths[1:2], path, single)
        assert not torch.equal(paths[0], paths[1])


@pytest.mark.parametrize("base", BASES[1:])
@pytest.mark.parametrize("decoder", ["rollout", "direct"])
def test_an_untrained_network_predicts_its_base(base: str, decoder: str) -> None:
    spec = Spec(name="law", context=12, horizon=6, season=4, segment=2, base=base, decoder=decoder, scaling="none")  # type: ignore[arg-type]
    network = build_network(spec, seed=0)
    values = torch.arange(1.0, network.pre_context + 13).double()[None]
    with torch.inference_mode():
        forecast = roll_out(network, warm_up(network, Window(values)), horizon=6)[0][0]
    last = float(values[0, -1])
    expected = {
        "last": [last] * 6,
        "seasonal_naive": [last - 3, last - 2, last - 1, last, last - 3, last - 2],
        "linear": [last + step for step in range(1, 7)],
    }
    np.testing.assert_allclose(forecast, expected[base], rtol=1e-6)

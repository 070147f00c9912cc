"""What an explanation says holds for any weights; where it can be known beforehand, it is that."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from forecaster.data.windows import Window
from forecaster.errors import HistoryTooShort
from forecaster.explain.attribution import Explanation, explain
from forecaster.explain.trace import compute_influence, trace_layers
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import start_rollout, warm_up
from forecaster.prediction.predictor import Predictor
from forecaster.series import Series
from tests.factories import START, make_forecaster, make_network, make_series, make_spec, make_wave

SPECS = {
    "gru": {"cell": "gru"},
    "lstm": {"cell": "lstm"},
    "elman": {"cell": "elman"},
    "two layers, dilated": {"cell": "gru", "dilations": (1, 3)},
    "lstm, dilated": {"cell": "lstm", "dilations": (2, 3)},
    "segments": {"cell": "gru", "segment": 4, "decoder": "direct"},
}


def make_named_network(name: str) -> Regressor:
    fields = dict(SPECS[name])
    spec = make_spec(cell=str(fields.pop("cell")))
    dilations = fields.pop("dilations", (1,))
    whole = spec.model_dump() | fields
    whole["network"] |= {"layers": len(dilations), "dilations": dilations}
    return make_network(type(spec).parse(whole, where="a test"))


def make_window(steps: int = 16, *, padding: int = 0) -> Window:
    y = make_wave(steps)
    y[:padding] = np.nan
    return Window(torch.from_numpy(y)[None])


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("name", SPECS)
def test_traced_states_equal_those_of_a_step_by_step_pass(name: str, padding: int) -> None:
    network, window = make_named_network(name), make_window(padding=padding)
    memory, rest = start_rollout(network, window)
    with torch.no_grad():
        traced = trace_layers(network, rest, memory)
        for segment in range(16 // network.segment):
            memory = warm_up(
                network, rest.slice_steps(slice(segment * network.segment, (segment + 1) * network.segment)), memory
            )
            slots = np.cumsum(network.recurrent.dilations) - 1  # of the latest step
            for layer, slot in zip(traced, slots, strict=True):
                if (segment + 1) * network.segment <= padding:
                    assert layer.norm[segment].isnan()
                else:
                    assert layer.norm[segment].item() == pytest.approx(
                        memory.recurrent_state.hidden[slot, 0].norm().item(), rel=1e-4
                    )


def test_traced_gates_follow_the_equations() -> None:
    network, window = make_named_network("gru"), make_window()
    memory, rest = start_rollout(network, window)
    with torch.no_grad():
        gates = trace_layers(network, rest, memory)[0].gates
        last = warm_up(network, rest.slice_steps(slice(15)), memory)
        layer = network.recurrent.layers[0]
        scaled = memory.scale.apply(rest.values)[:, 15:]
        read = torch.cat([scaled, torch.ones_like(scaled)], dim=1)
        sums = (
            read @ layer.weight_ih_l0.T
            + layer.bias_ih_l0
            + last.recurrent_state.hidden[0] @ layer.weight_hh_l0.T
            + layer.bias_hh_l0
        )
    r, z, _ = sums.sigmoid().chunk(3, dim=1)
    assert gates["reset"][15].item() == pytest.approx(r.mean().item(), rel=1e-4)
    assert gates["update"][15].item() == pytest.approx(z.mean().item(), rel=1e-4)
    assert set(gates) == {"reset", "update"}


@pytest.mark.parametrize("name", SPECS)
def test_influence_is_the_norm_of_the_derivative(name: str) -> None:
    network, window = make_named_network(name), make_window()
    memory, rest = start_rollout(network, window)
    found = compute_influence(network, rest, memory)
    from forecaster.model.rollout import encode_inputs

    laid = encode_inputs(network, rest, memory)
    inputs = laid.inputs.detach().requires_grad_()
    _, after = network.recurrent(inputs, memory.recurrent_state, laid.mask)
    whole = after.hidden if after.cell is None else torch.cat([after.hidden, after.cell])
    squares = sum(
        torch.autograd.grad(one, inputs, retain_graph=True)[0].square().sum((0, 2)) for one in whole.flatten()
    )
    assert isinstance(squares, torch.Tensor)
    exact = squares.sqrt()
    large = exact > 0.05 * exact.max()
    assert ((found / exact)[large] - 1).abs().max() < 0.5, "each is estimated from 32 projections"
    assert found.sum().item() == pytest.approx(exact.sum().item(), rel=0.25)


@pytest.mark.parametrize("decay", [0.5, 0.8, 0.9])
def test_the_half_life_of_a_decaying_state_is_that_of_the_decay(decay: float) -> None:
    spec = make_spec(cell="elman", context=200, min_history=4)
    forecaster = make_forecaster(spec)
    layer = forecaster.network.recurrent.layers[0]
    with torch.no_grad():
        layer.weight_ih_l0.mul_(1e-3)
        layer.weight_hh_l0.copy_(decay * torch.eye(6))
        layer.bias_ih_l0.zero_()
        layer.bias_hh_l0.zero_()
    found = explain(forecaster, make_series(make_wave(200)), steps=200)
    assert found.half_life == pytest.approx(np.log(0.5) / np.log(decay), rel=0.05)
    assert found.influence.sum() == pytest.approx(1.0)


def test_the_half_life_of_a_gate_is_that_of_its_mean() -> None:
    forecaster = make_forecaster(make_spec(cell="lstm"))
    found = explain(forecaster, make_series(make_wave(16)))
    share = found.layers[0].gates["forget"].mean()
    assert found.layers[0].half_life == pytest.approx(np.log(0.5) / np.log(share))
    assert explain(make_forecaster(make_spec(cell="elman")), make_series(make_wave(16))).layers[0].half_life is None


def test_a_last_value_network_attributes_everything_to_the_last_value() -> None:
    forecaster = make_forecaster(make_spec(base="last", scaling="none"))
    with torch.no_grad():
        forecaster.network.output.weight.zero_()
        forecaster.network.output.bias.zero_()
    y = make_wave(20)
    found = explain(forecaster, make_series(y), steps=12)
    assert (found.forecast, found.baseline) == (pytest.approx(y[-1], rel=1e-5), 0.0)
    np.testing.assert_allclose(found.attribution, [*np.zeros(11), y[-1]], atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"base": "seasonal_naive"},
        {"lags": [4, 7]},
        {"scaling": "level_season"},
        {"scaling": "last", "transform": "log"},
        {"segment": 4, "decoder": "direct"},
        {"reads": "history"},
        {"channels": ["b"]},
        {"head": {"kind": "gaussian"}},
    ],
)
def test_attributions_add_up_to_the_forecast(fields: dict[str, object]) -> None:
    forecaster = make_forecaster(make_spec(**fields))  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # what corrects a base starts at nothing
        forecaster.network.output.weight.add_(0.3 * torch.randn(forecaster.network.output.weight.shape, generator=draw))
    y = make_wave(60)
    y[[50, 55]] = np.nan
    series = Series("a", START, "h", y, channels={"b": make_wave(60, seed=3)} if "channels" in fields else {})
    found = explain(forecaster, series, steps=20)
    assert found.forecast == pytest.approx(Predictor(forecaster).forecast(series, 5).mean.mean(), rel=1e-4)
    assert abs(found.integration_error) < 0.02 * max(abs(found.forecast - found.baseline), 1e-3), (
        "the integral is of 32 points"
    )
    assert len(found.attribution) == len(found.ds) == len(found.y) >= 16
    assert np.isfinite(found.attribution).all()
    assert (found.attribution[[-10, -5]] == 0).all(), "nothing rests on what was not observed"
    assert np.abs(found.attribution).sum() + sum(np.abs(one).sum() for one in found.channels.values()) > 0
    assert list(found.channels) == (["b"] if "channels" in fields else [])


def test_steps_before_the_context_have_no_attribution_and_a_short_history_is_explained() -> None:
    forecaster = make_forecaster(make_spec())
    found: Explanation = explain(forecaster, make_series(make_wave(40)))
    assert len(found.ds) == 16
    assert found.ds[-1] == make_series(make_wave(40)).end
    short = explain(forecaster, make_series(make_wave(6)))
    assert len(short.attribution) == len(short.layers[0].norm) == 6
    assert np.isfinite(short.layers[0].norm).all()


def test_attributions_average_over_members_and_report_a_blend() -> None:
    spec = make_spec()
    one, two = make_network(spec, seed=1), make_network(spec, seed=2)
    forecaster = make_forecaster(spec)
    both = explain(replace(forecaster, network=one, other_networks=(two,)), make_series(make_wave(30)))
    each = [explain(replace(forecaster, network=network), make_series(make_wave(30))) for network in (one, two)]
    np.testing.assert_allclose(both.attribution, (each[0].attribution + each[1].attribution) / 2, atol=1e-6)
    assert "2 members" in both.notes[0]


def test_a_history_that_cannot_be_forecast_cannot_be_explained() -> None:
    with pytest.raises(HistoryTooShort):
        explain(make_forecaster(make_spec()), make_series(make_wave(2)))

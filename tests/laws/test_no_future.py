"""What comes after a cut changes nothing that was computed before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forecaster.data.encoding import PLAIN
from forecaster.data.split import hold_out
from forecaster.data.windows import Anchors, Feed, Tape, Window
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.validation import trials
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import Memory, begin, roll, warm_up
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.datamodule import Windows
from forecaster.training.fit import fit
from tests.factories import foretell, make_network, make_spec, one_series, panel_of, wave

MARK = 1e9  # no sample has such a value


def changed_from(y: np.ndarray, cut: int) -> np.ndarray:
    other = y.copy()
    other[cut:] = MARK * np.random.default_rng(5).normal(size=len(y) - cut)
    return other


def tensors(memory: Memory) -> list[torch.Tensor]:
    parts = [*memory.state, memory.output, memory.recent, memory.begun, memory.bound, *memory.scale]
    return [part for part in parts if part is not None]


def test_values_after_an_origin_change_neither_its_window_nor_its_scale_nor_its_forecast(
    spec: Spec, network: Regressor
) -> None:
    y, horizon, windows = wave(60), spec.horizon, 3
    for number in range(windows):
        cut = len(y) - (windows - number) * horizon
        found = []
        for values in (y, changed_from(y, cut)):
            trial = trials([one_series(values)], context=spec.context, horizon=horizon, windows=windows, season=4)[0]
            window = Window(trial.example.window.values[number : number + 1])
            memory = warm_up(network, window)
            forecast, after = roll(network, memory, horizon=horizon)
            found.append([window.values, *tensors(memory), forecast, *tensors(after)])
            if number == 0:
                found[-1].append(trial.seasonal_error)
        assert torch.equal(torch.from_numpy(y[cut - spec.context : cut]), found[0][0][0])
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)


def test_origins_that_share_steps_are_those_of_a_backtest_with_their_stride(spec: Spec, forecaster: Forecaster) -> None:
    y, horizon, asked = wave(60), spec.horizon, {"windows": 4, "stride": 2, "season": 4}
    [trial] = trials([one_series(y)], context=spec.context, horizon=horizon, **asked)
    found = backtest(panel_of(y), {"own": Predictor(forecaster)}, horizon=horizon, keep=spec.least, **asked)
    assert np.array_equal(trial.example.future.numpy(), found.actual[0])
    assert trial.seasonal_error.tolist() == pytest.approx([found.scale[0]] * 4)
    for number, window in enumerate(trial.example.window.values):
        cut = len(y) - horizon - (3 - number) * 2
        assert np.array_equal(window.numpy(), y[cut - spec.context : cut])


@pytest.mark.parametrize("stride", [2, 7])
def test_what_validation_looks_ahead_to_is_not_trained_on(stride: int) -> None:
    y = np.append(wave(60), [MARK] * (5 + 2 * stride))
    training = {"steps": 2, "valid_windows": 3, "valid_stride": stride}
    one, other = (
        fit(panel_of(values), make_spec(horizon=5, training=training), accelerator="cpu")
        for values in (y, changed_from(y, 60))
    )
    for name, weights in one.forecaster.network.state_dict().items():
        assert torch.equal(weights, other.forecaster.network.state_dict()[name])


def test_values_after_a_cutoff_do_not_change_a_backtest_up_to_it(spec: Spec, forecaster: Forecaster) -> None:
    ask, horizon, windows = {"net": Predictor(forecaster).forecast_each}, spec.horizon, 3
    y = wave(60)
    for number in range(windows):
        cut = len(y) - (windows - number) * horizon
        one, other = (
            backtest(panel_of(values), ask, horizon=horizon, windows=windows, season=4)
            for values in (y, changed_from(y, cut))
        )
        upto = np.s_[:, : number + 1]
        assert np.array_equal(one.forecasts["net"][upto], other.forecasts["net"][upto])
        assert np.isfinite(one.forecasts["net"]).all()
        assert np.array_equal(one.scale, other.scale)
        assert np.array_equal(one.square_scale, other.square_scale)


def test_a_teacher_forced_prediction_knows_nothing_after_its_step(network: Regressor) -> None:
    y = torch.from_numpy(wave(20))[None]
    memory, _ = begin(network, Window(y))
    whole, _ = foretell(network, Window(y), memory)
    for step in (0, 7, 18):
        other = y.clone()
        other[:, step + 1 :] += 0.5
        predictions, _ = foretell(network, Window(other), memory)
        assert torch.equal(predictions[:, : step + 1], whole[:, : step + 1])
        assert not torch.equal(predictions[:, step + 1 :], whole[:, step + 1 :])


def test_a_window_cut_from_the_tape_ends_before_its_future_and_begins_within_its_series() -> None:
    first, second = wave(30), 1000 + wave(30)
    tape = Tape.record([one_series(first), one_series(second)], context=8, horizon=1)
    place = tape.first[1] + 3
    example = tape.cut(place[None], context=8, horizon=2)
    assert example.window.values[0, :5].isnan().all(), "no value of the neighbour"
    assert example.window.values[0, 5:].tolist() == second[:3].tolist()
    assert example.future[0].tolist() == second[3:5].tolist()


@pytest.mark.parametrize("windows", [1, 2])
def test_no_training_example_reaches_into_the_validation_steps(windows: int) -> None:
    spec = make_spec(training={"valid_windows": windows, "batch": 64})
    held = windows * spec.horizon
    panel = panel_of(changed_from(wave(50), 50 - held), changed_from(wave(31), 31 - held))
    anchors = Windows(panel, spec, make_network(spec), PLAIN, season=4)._anchors
    assert not (anchors.tape.values.abs() > MARK / 1e6).any()
    everything = anchors.tape.cut(anchors.places(torch.arange(len(anchors))), context=spec.context, horizon=1)
    assert not everything.future.isnan().any()
    last = sorted({float(panel.series[0].y[50 - held - 1]), float(panel.series[1].y[31 - held - 1])})
    assert set(last) < set(everything.future.ravel().tolist()), "all that may be learned from is"


def test_a_feed_gives_only_examples_of_its_anchors() -> None:
    tape = Tape.record([one_series(wave(20))], context=6, horizon=1)
    anchors = Anchors.of(tape, least=3)
    allowed = set(wave(20)[3:].tolist())
    seen = {
        value
        for example in Feed(anchors, context=6, horizon=1, batch=32, steps=20, seed=0, epoch=0)
        for value in example.future.ravel().tolist()
    }
    assert seen == allowed


@pytest.mark.parametrize("scaling", ["none", "standard"])
def test_validation_and_test_steps_do_not_change_the_weights(scaling: str) -> None:
    spec = make_spec(scaling=scaling, training={"steps": 3, "epoch_steps": 3, "batch": 8, "valid_windows": 1})
    whole = panel_of(wave(60), wave(55, seed=1))
    other = Panel([one_series(changed_from(one.y, len(one) - 10), name=one.id) for one in whole.series], "h")
    earlier = Panel([one_series(changed_from(one.y, len(one) - 11), name=one.id) for one in whole.series], "h")

    def weights(panel: Panel) -> list[torch.Tensor]:
        known = hold_out(panel, spec.horizon).known
        return list(fit(known, spec, accelerator="cpu").forecaster.network.parameters())

    expected = weights(whole)
    assert all(torch.equal(a, b) for a, b in zip(expected, weights(other), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(expected, weights(earlier), strict=True)), "training steps do"

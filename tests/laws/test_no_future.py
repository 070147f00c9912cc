"""What comes after a cut changes nothing that was computed before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.data.split import hold_out
from forecaster.data.windows import CutoffIndex, EpochBatches, PanelTensor, Window
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.validation import build_validation_batches
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, roll_out, start_rollout, warm_up
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.datamodule import WindowDataModule
from forecaster.training.fit import fit
from tests.factories import make_network, make_panel, make_series, make_spec, make_wave, teacher_forced_predictions

pytestmark = pytest.mark.integration

SENTINEL = 1e9  # no sample has such a value


def change_from(y: np.ndarray, cut: int) -> np.ndarray:
    other = y.copy()
    other[cut:] = SENTINEL * np.random.default_rng(5).normal(size=len(y) - cut)
    return other


def state_tensors(state: RolloutState) -> list[torch.Tensor]:
    parts = [*state.recurrent_state, state.output, state.recent, state.begun, state.bound, *state.scale]
    return [part for part in parts if part is not None]


def test_values_after_an_origin_do_not_change_its_window_scale_or_forecast(spec: Spec, network: Regressor) -> None:
    y, horizon, windows = make_wave(60), spec.horizon, 3
    for number in range(windows):
        cut = len(y) - (windows - number) * horizon
        found = []
        for values in (y, change_from(y, cut)):
            trial = build_validation_batches(
                [make_series(values)], context=spec.context, horizon=horizon, windows=windows, season=4
            )[0]
            window = Window(trial.example.window.values[number : number + 1])
            memory = warm_up(network, window)
            forecast, after = roll_out(network, memory, horizon=horizon)
            found.append([window.values, *state_tensors(memory), forecast, *state_tensors(after)])
            if number == 0:
                found[-1].append(trial.seasonal_error)
        assert torch.equal(torch.from_numpy(y[cut - spec.context : cut]), found[0][0][0])
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)


def test_overlapping_origins_equal_those_of_a_backtest_with_the_same_stride(
    spec: Spec, forecaster: FittedModel
) -> None:
    y, horizon, asked = make_wave(60), spec.horizon, {"windows": 4, "stride": 2, "season": 4}
    [trial] = build_validation_batches([make_series(y)], context=spec.context, horizon=horizon, **asked)
    found = backtest(
        make_panel(y), {"own": Predictor(forecaster)}, horizon=horizon, min_history=spec.min_steps, **asked
    )
    assert np.array_equal(trial.example.future.numpy(), found.actual[0])
    assert trial.seasonal_error.tolist() == pytest.approx([found.scale[0]] * 4)
    for number, window in enumerate(trial.example.window.values):
        cut = len(y) - horizon - (3 - number) * 2
        assert np.array_equal(window.numpy(), y[cut - spec.context : cut])


@pytest.mark.parametrize("stride", [2, 7])
def test_validation_targets_are_not_trained_on(stride: int) -> None:
    y = np.append(make_wave(60), [SENTINEL] * (5 + 2 * stride))
    training = {"steps": 2, "valid_windows": 3, "valid_stride": stride}
    one, other = (
        fit(make_panel(values), make_spec(horizon=5, training=training), accelerator="cpu")
        for values in (y, change_from(y, 60))
    )
    for name, weights in one.model.network.state_dict().items():
        assert torch.equal(weights, other.model.network.state_dict()[name])


def test_values_after_a_cutoff_do_not_change_a_backtest_up_to_it(spec: Spec, forecaster: FittedModel) -> None:
    ask, horizon, windows = {"net": Predictor(forecaster).forecast_batch}, spec.horizon, 3
    y = make_wave(60)
    for number in range(windows):
        cut = len(y) - (windows - number) * horizon
        one, other = (
            backtest(make_panel(values), ask, horizon=horizon, windows=windows, season=4)
            for values in (y, change_from(y, cut))
        )
        upto = np.s_[:, : number + 1]
        assert np.array_equal(one.forecasts["net"][upto], other.forecasts["net"][upto])
        assert np.isfinite(one.forecasts["net"]).all()
        assert np.array_equal(one.scale, other.scale)
        assert np.array_equal(one.square_scale, other.square_scale)


def test_a_teacher_forced_prediction_does_not_depend_on_later_steps(network: Regressor) -> None:
    y = torch.from_numpy(make_wave(20))[None]
    memory, _ = start_rollout(network, Window(y))
    whole, _ = teacher_forced_predictions(network, Window(y), memory)
    for step in (0, 7, 18):
        other = y.clone()
        other[:, step + 1 :] += 0.5
        predictions, _ = teacher_forced_predictions(network, Window(other), memory)
        assert torch.equal(predictions[:, : step + 1], whole[:, : step + 1])
        assert not torch.equal(predictions[:, step + 1 :], whole[:, step + 1 :])


def test_a_window_ends_before_its_target_and_starts_within_its_series() -> None:
    first, second = make_wave(30), 1000 + make_wave(30)
    tape = PanelTensor.from_series([make_series(first), make_series(second)], context=8, horizon=1)
    place = tape.starts[1] + 3
    example = tape.extract_examples(place[None], context=8, horizon=2)
    assert example.window.values[0, :5].isnan().all(), "no value of the neighbour"
    assert example.window.values[0, 5:].tolist() == second[:3].tolist()
    assert example.future[0].tolist() == second[3:5].tolist()


@pytest.mark.parametrize("windows", [1, 2])
def test_no_training_example_overlaps_the_validation_steps(windows: int) -> None:
    spec = make_spec(training={"valid_windows": windows, "batch": 64})
    held = windows * spec.horizon
    panel = make_panel(change_from(make_wave(50), 50 - held), change_from(make_wave(31), 31 - held))
    anchors = WindowDataModule(panel, spec, make_network(spec), EMPTY_ENCODING, season=4)._cutoffs
    assert not (anchors.panel_tensor.values.abs() > SENTINEL / 1e6).any()
    everything = anchors.panel_tensor.extract_examples(
        anchors.positions(torch.arange(len(anchors))), context=spec.context, horizon=1
    )
    assert not everything.future.isnan().any()
    last = sorted({float(panel.series[0].y[50 - held - 1]), float(panel.series[1].y[31 - held - 1])})
    assert set(last) < set(everything.future.ravel().tolist()), "all that may be learned from is"


def test_a_feed_yields_only_examples_of_its_anchors() -> None:
    tape = PanelTensor.from_series([make_series(make_wave(20))], context=6, horizon=1)
    anchors = CutoffIndex.from_panel_tensor(tape, min_history=3)
    allowed = set(make_wave(20)[3:].tolist())
    seen = {
        value
        for example in EpochBatches(anchors, context=6, horizon=1, batch_size=32, num_batches=20, seed=0, epoch=0)
        for value in example.future.ravel().tolist()
    }
    assert seen == allowed


@pytest.mark.parametrize("scaling", ["none", "standard"])
def test_validation_and_test_steps_do_not_change_the_weights(scaling: str) -> None:
    spec = make_spec(scaling=scaling, training={"steps": 3, "epoch_steps": 3, "batch": 8, "valid_windows": 1})
    whole = make_panel(make_wave(60), make_wave(55, seed=1))
    other = Panel([make_series(change_from(one.y, len(one) - 10), name=one.id) for one in whole.series], "h")
    earlier = Panel([make_series(change_from(one.y, len(one) - 11), name=one.id) for one in whole.series], "h")

    def weights(panel: Panel) -> list[torch.Tensor]:
        known = hold_out(panel, spec.horizon).history
        return list(fit(known, spec, accelerator="cpu").model.network.parameters())

    expected = weights(whole)
    assert all(torch.equal(a, b) for a, b in zip(expected, weights(other), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(expected, weights(earlier), strict=True)), "training steps do"

"""Values after a cutoff change nothing that was computed before it."""

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

SENTINEL = 1e9  # far beyond all samples


def change_from(y: np.ndarray, cut: int) -> np.ndarray:
    other = y.copy()
    other[cut:] = SENTINEL * np.random.default_rng(5).normal(size=len(y) - cut)
    return other


def state_tensors(state: RolloutState) -> list[torch.Tensor]:
    parts = [*state.recurrent_state, state.output, state.recent, state.begun, state.bound, *state.scale]
    return [part for part in parts if part is not None]


def test_values_after_an_origin_do_not_change_its_window_scale_or_forecast(spec: Spec, network: Regressor) -> None:
    y, horizon, windows = make_wave(60), spec.horizon, 3
    for origin in range(windows):
        cutoff = len(y) - (windows - origin) * horizon
        results = []
        for values in (y, change_from(y, cutoff)):
            batch = build_validation_batches(
                [make_series(values)], context=spec.context, horizon=horizon, windows=windows, season=4
            )[0]
            window = Window(batch.example.window.values[origin : origin + 1])
            state = warm_up(network, window)
            forecast, final_state = roll_out(network, state, horizon=horizon)
            results.append([window.values, *state_tensors(state), forecast, *state_tensors(final_state)])
            if origin == 0:
                results[-1].append(batch.seasonal_error)
        assert torch.equal(torch.from_numpy(y[cutoff - spec.context : cutoff]), results[0][0][0])
        for expected, actual in zip(*results, strict=True):
            assert torch.equal(expected, actual)


def test_overlapping_origins_equal_those_of_a_backtest_with_the_same_stride(spec: Spec, model: FittedModel) -> None:
    y, horizon, options = make_wave(60), spec.horizon, {"windows": 4, "stride": 2, "season": 4}
    [batch] = build_validation_batches([make_series(y)], context=spec.context, horizon=horizon, **options)
    result = backtest(make_panel(y), {"own": Predictor(model)}, horizon=horizon, min_history=spec.min_steps, **options)
    assert np.array_equal(batch.example.future.numpy(), result.actual[0])
    assert batch.seasonal_error.tolist() == pytest.approx([result.scale[0]] * 4)
    for index, window in enumerate(batch.example.window.values):
        cutoff = len(y) - horizon - (3 - index) * 2
        assert np.array_equal(window.numpy(), y[cutoff - spec.context : cutoff])


@pytest.mark.parametrize("stride", [2, 7])
def test_validation_targets_are_not_trained_on(stride: int) -> None:
    y = np.append(make_wave(60), [SENTINEL] * (5 + 2 * stride))
    training = {"steps": 2, "valid_windows": 3, "valid_stride": stride}
    expected, actual = (
        fit(make_panel(values), make_spec(horizon=5, training=training), accelerator="cpu")
        for values in (y, change_from(y, 60))
    )
    for name, weights in expected.model.network.state_dict().items():
        assert torch.equal(weights, actual.model.network.state_dict()[name])


def test_values_after_a_cutoff_do_not_change_a_backtest_up_to_it(spec: Spec, model: FittedModel) -> None:
    forecasters, horizon, windows = {"net": Predictor(model).forecast_batch}, spec.horizon, 3
    y = make_wave(60)
    for origin in range(windows):
        cutoff = len(y) - (windows - origin) * horizon
        expected, actual = (
            backtest(make_panel(values), forecasters, horizon=horizon, windows=windows, season=4)
            for values in (y, change_from(y, cutoff))
        )
        up_to_origin = np.s_[:, : origin + 1]
        assert np.array_equal(expected.forecasts["net"][up_to_origin], actual.forecasts["net"][up_to_origin])
        assert np.isfinite(expected.forecasts["net"]).all()
        assert np.array_equal(expected.scale, actual.scale)
        assert np.array_equal(expected.square_scale, actual.square_scale)


def test_a_teacher_forced_prediction_does_not_depend_on_later_steps(network: Regressor) -> None:
    y = torch.from_numpy(make_wave(20))[None]
    state, _ = start_rollout(network, Window(y))
    expected, _ = teacher_forced_predictions(network, Window(y), state)
    for step in (0, 7, 18):
        changed = y.clone()
        changed[:, step + 1 :] += 0.5
        predictions, _ = teacher_forced_predictions(network, Window(changed), state)
        assert torch.equal(predictions[:, : step + 1], expected[:, : step + 1])
        assert not torch.equal(predictions[:, step + 1 :], expected[:, step + 1 :])


def test_a_window_ends_before_its_target_and_starts_within_its_series() -> None:
    first, second = make_wave(30), 1000 + make_wave(30)
    tensor = PanelTensor.from_series([make_series(first), make_series(second)], context=8, horizon=1)
    position = tensor.starts[1] + 3
    example = tensor.extract_examples(position[None], context=8, horizon=2)
    assert example.window.values[0, :5].isnan().all(), "no value of the other series"
    assert example.window.values[0, 5:].tolist() == second[:3].tolist()
    assert example.future[0].tolist() == second[3:5].tolist()


@pytest.mark.parametrize("windows", [1, 2])
def test_no_training_example_overlaps_the_validation_steps(windows: int) -> None:
    spec = make_spec(training={"valid_windows": windows, "batch": 64})
    held_out = windows * spec.horizon
    panel = make_panel(change_from(make_wave(50), 50 - held_out), change_from(make_wave(31), 31 - held_out))
    cutoffs = WindowDataModule(panel, spec, make_network(spec), EMPTY_ENCODING, season=4)._cutoffs
    assert not (cutoffs.source.values.abs() > SENTINEL / 1e6).any()
    examples = cutoffs.source.extract_examples(
        cutoffs.positions(torch.arange(len(cutoffs))), context=spec.context, horizon=1
    )
    assert not examples.future.isnan().any()
    last_values = sorted({float(panel.series[0].y[50 - held_out - 1]), float(panel.series[1].y[31 - held_out - 1])})
    assert set(last_values) < set(examples.future.ravel().tolist()), "all earlier values are training targets"


def test_a_feed_yields_only_examples_of_its_anchors() -> None:
    tensor = PanelTensor.from_series([make_series(make_wave(20))], context=6, horizon=1)
    cutoffs = CutoffIndex.from_source(tensor, min_history=3)
    expected = set(make_wave(20)[3:].tolist())
    values = {
        value
        for example in EpochBatches(cutoffs, context=6, horizon=1, batch_size=32, num_batches=20, seed=0, epoch=0)
        for value in example.future.ravel().tolist()
    }
    assert values == expected


@pytest.mark.parametrize("scaling", ["none", "standard"])
def test_validation_and_test_steps_do_not_change_the_weights(scaling: str) -> None:
    spec = make_spec(scaling=scaling, training={"steps": 3, "epoch_steps": 3, "batch": 8, "valid_windows": 1})
    panel = make_panel(make_wave(60), make_wave(55, seed=1))
    changed_later = Panel(
        [make_series(change_from(series.y, len(series) - 10), name=series.id) for series in panel.series], "h"
    )
    changed_earlier = Panel(
        [make_series(change_from(series.y, len(series) - 11), name=series.id) for series in panel.series], "h"
    )

    def weights(panel: Panel) -> list[torch.Tensor]:
        history = hold_out(panel, spec.horizon).history
        return list(fit(history, spec, accelerator="cpu").model.network.parameters())

    expected = weights(panel)
    assert all(torch.equal(a, b) for a, b in zip(expected, weights(changed_later), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(expected, weights(changed_earlier), strict=True)), (
        "training steps change the weights"
    )

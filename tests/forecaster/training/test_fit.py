"""A fit is a function of its panel and its specification: interrupted, resumed or repeated, it gives the same weights."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from forecaster.bundle.pretrained.base import load_base
from forecaster.bundle.pretrained.specification import base_spec
from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.data.windows import CutoffIndex, EpochBatches, PanelTensor
from forecaster.errors import HistoryTooShort, InputError
from forecaster.evaluation.validation import build_validation_batches, compute_exposure_gap, score_batch
from forecaster.model.regressor import build_network
from forecaster.series import Panel
from forecaster.training.datamodule import WindowDataModule
from forecaster.training.devices import validate_device
from forecaster.training.fit import FitResult, fit
from forecaster.training.lightning import pl
from forecaster.training.loss import prepare_batches
from forecaster.training.optimizer import FusedAdam, clip_gradient_norm
from tests.factories import make_panel, make_spec, make_wave
from tests.forecaster.training.fitting import (
    PANEL,
    TRAINING,
    FaultInjector,
    FitRecorder,
    SimulatedCrash,
    copy_weights,
    fit_on_cpu,
    have_equal_weights,
    make_fit_spec,
    raise_crash,
    raise_keyboard_interrupt,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def uninterrupted() -> FitResult:
    """A fit without interruption."""
    return fit_on_cpu(PANEL, make_fit_spec())


@pytest.mark.parametrize(("epoch", "batch"), [(0, 1), (1, None), (1, 0), (2, 2), (3, 1)])
def test_a_fit_resumed_after_a_crash_gives_identical_weights(
    uninterrupted: FitResult, epoch: int, batch: int | None, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "fit.ckpt"
    with pytest.raises(SimulatedCrash):
        fit_on_cpu(PANEL, make_fit_spec(), checkpoint=checkpoint, callbacks=[FaultInjector(epoch, batch, raise_crash)])
    assert checkpoint.exists() == (epoch > 0)
    torch.manual_seed(99)
    recorder = FitRecorder()
    resumed = fit_on_cpu(PANEL, make_fit_spec(), checkpoint=checkpoint, callbacks=[recorder])
    assert len(recorder.losses) == 4 - epoch, "completed epochs are not repeated"
    assert have_equal_weights(copy_weights(resumed.model.network), copy_weights(uninterrupted.model.network))
    assert resumed.scores == uninterrupted.scores
    assert (resumed.epochs, resumed.steps) == (uninterrupted.epochs, uninterrupted.steps) == (4, 11)
    assert resumed.resumed_steps == 3 * epoch


def test_a_fit_interrupted_twice_gives_identical_weights(uninterrupted: FitResult, tmp_path: Path) -> None:
    checkpoint, handler = tmp_path / "fit.ckpt", signal.getsignal(signal.SIGINT)
    for epoch in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            fit_on_cpu(
                PANEL,
                make_fit_spec(),
                checkpoint=checkpoint,
                callbacks=[FaultInjector(epoch, 1, raise_keyboard_interrupt)],
            )
        assert signal.getsignal(signal.SIGINT) is handler, "the interrupt handler is restored"
    resumed = fit_on_cpu(PANEL, make_fit_spec(), checkpoint=checkpoint)
    assert have_equal_weights(copy_weights(resumed.model.network), copy_weights(uninterrupted.model.network))


def test_a_completed_fit_is_not_repeated(uninterrupted: FitResult, tmp_path: Path) -> None:
    for recorder in (FitRecorder(), FitRecorder()):
        repeated = fit_on_cpu(PANEL, make_fit_spec(), checkpoint=tmp_path / "fit.ckpt", callbacks=[recorder])
        assert have_equal_weights(copy_weights(repeated.model.network), copy_weights(uninterrupted.model.network))
        assert repeated.scores == uninterrupted.scores
    assert recorder.losses == [], "nothing was left to train"
    assert [path.name for path in tmp_path.iterdir()] == ["fit.ckpt"]


EARLY_STOPPING = {"steps": 60, "learning_rate": 0.3, "patience": 2}


@pytest.fixture(scope="module")
def early_stopped() -> tuple[FitResult, FitRecorder]:
    """A fit that stops early."""
    recorder = FitRecorder()
    return fit_on_cpu(PANEL, make_fit_spec(**EARLY_STOPPING), callbacks=[recorder]), recorder


def test_a_fit_stops_early_when_the_rollout_score_stops_improving(early_stopped: tuple[FitResult, FitRecorder]) -> None:
    fitted, recorder = early_stopped
    best = int(np.argmin(recorder.rollouts))
    assert len(recorder.rollouts) == fitted.epochs == best + 1 + 2 < 20
    assert all(
        min(recorder.rollouts[: end - 2]) > min(recorder.rollouts[end - 2 : end]) for end in range(3, fitted.epochs)
    )


@pytest.mark.parametrize("moment", ["before the last epoch", "after the patience ran out"])
def test_a_fit_resumed_near_its_early_stop_gives_identical_weights(
    early_stopped: tuple[FitResult, FitRecorder], moment: str, tmp_path: Path
) -> None:
    uninterrupted_fit, _ = early_stopped
    checkpoint = tmp_path / "fit.ckpt"
    if moment == "before the last epoch":
        with pytest.raises(SimulatedCrash):
            fit_on_cpu(
                PANEL,
                make_fit_spec(**EARLY_STOPPING),
                checkpoint=checkpoint,
                callbacks=[FaultInjector(uninterrupted_fit.epochs - 1, None, raise_crash)],
            )
    else:
        fit_on_cpu(PANEL, make_fit_spec(**EARLY_STOPPING), checkpoint=checkpoint)
    recorder = FitRecorder()
    resumed = fit_on_cpu(PANEL, make_fit_spec(**EARLY_STOPPING), checkpoint=checkpoint, callbacks=[recorder])
    assert len(recorder.losses) == (1 if moment == "before the last epoch" else 0)
    assert have_equal_weights(copy_weights(resumed.model.network), copy_weights(uninterrupted_fit.model.network))
    assert (resumed.scores, resumed.epochs) == (uninterrupted_fit.scores, uninterrupted_fit.epochs)


def test_the_best_weights_are_kept_with_their_scores(early_stopped: tuple[FitResult, FitRecorder]) -> None:
    fitted, recorder = early_stopped
    best = int(np.argmin(recorder.rollouts))
    assert best < len(recorder.rollouts) - 1
    best_weights = copy_weights(fitted.model.network)
    assert [have_equal_weights(best_weights, weights) for weights in recorder.weights] == [
        epoch == best for epoch in range(len(recorder.weights))
    ]
    assert fitted.scores["valid/rollout"] == recorder.rollouts[best]
    assert fitted.scores["train/loss"] == pytest.approx(np.mean(recorder.losses[best]), rel=1e-6)
    [batch] = WindowDataModule(
        PANEL, make_fit_spec(), build_network(make_fit_spec(), seed=0), EMPTY_ENCODING, season=4
    ).validation_batches
    with torch.inference_mode():
        assert float(score_batch(fitted.model.network, batch).rollout) == pytest.approx(
            recorder.rollouts[best], rel=1e-6
        )


@pytest.mark.parametrize(("count", "windows", "expected"), [(9000, 2, 4096), (9000, 1, 8192), (100, 2, 100)])
def test_validation_of_many_series_uses_an_evenly_spaced_subset(count: int, windows: int, expected: int) -> None:
    panel = make_panel(*(np.full(30, float(index)) for index in range(count)))
    spec = make_fit_spec(valid_windows=windows)
    batches = WindowDataModule(panel, spec, build_network(spec, seed=0), EMPTY_ENCODING, season=4).validation_batches
    steps = torch.cat([batch.example.future[:, 0] for batch in batches])[::windows].diff()
    assert sum(len(batch.seasonal_error) for batch in batches) == expected * windows
    assert steps.min() >= 1
    assert steps.max() <= -(-count // expected)


def test_the_last_epoch_has_the_remaining_steps() -> None:
    recorder = FitRecorder()
    fitted = fit_on_cpu(PANEL, make_fit_spec(), callbacks=[recorder])
    assert [len(losses) for losses in recorder.losses] == [3, 3, 3, 2]
    assert (fitted.epochs, fitted.steps) == (4, 11)


@pytest.mark.parametrize("steps_per_chunk", [2, 25])
def test_the_number_of_steps_per_call_does_not_change_the_weights(
    uninterrupted: FitResult, steps_per_chunk: int
) -> None:
    fitted = fit_on_cpu(PANEL, make_fit_spec(), steps_per_chunk=steps_per_chunk)
    assert have_equal_weights(copy_weights(fitted.model.network), copy_weights(uninterrupted.model.network))
    assert fitted.scores == pytest.approx(uninterrupted.scores, rel=1e-6)
    assert (fitted.epochs, fitted.steps) == (uninterrupted.epochs, uninterrupted.steps)


def test_batches_prepared_together_equal_batches_prepared_singly() -> None:
    gappy = make_wave(60)
    gappy[20:30] = np.nan
    for decoder, base, lags in [("rollout", "seasonal_naive", (1, 3)), ("direct", "last", ()), ("direct", "zero", ())]:
        spec = make_spec(decoder=decoder, base=base, lags=lags, segment=1)
        network = build_network(spec, seed=0, season=4)
        panel_tensor = PanelTensor.from_series(
            make_panel(gappy, make_wave(20)).series, context=network.pre_context + 16, horizon=network.block
        )
        cutoffs = CutoffIndex.from_source(panel_tensor, min_history=4)
        size = {"context": network.pre_context + 16, "horizon": network.block, "batch_size": 8, "seed": 0, "epoch": 0}
        [combined] = EpochBatches(cutoffs, **size, num_batches=3, batches_per_chunk=3)
        for batch, example in zip(
            prepare_batches(network, combined, batch_size=8), EpochBatches(cutoffs, **size, num_batches=3), strict=True
        ):
            [single] = prepare_batches(network, example, batch_size=8)
            for name, values in batch._asdict().items():
                expected = getattr(single, name)
                assert (values is None) == (expected is None)
                assert values is None or torch.equal(values, expected), name
            assert float(batch.weight.sum()) == pytest.approx(1)


def test_adam_equals_torch_also_after_loading_its_state() -> None:
    rng = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=rng) for shape in ((3, 4), (5,), (1, 0))]
    parameters, torch_parameters = ([torch.nn.Parameter(weight.clone()) for weight in start] for _ in range(2))
    adam, torch_adam = FusedAdam(parameters, learning_rate=0.01), torch.optim.Adam(torch_parameters, lr=0.01)
    for step in range(20):
        gradients = [torch.randn(weight.shape, generator=rng) for weight in start]
        for parameter, gradient in zip(torch_parameters, gradients, strict=True):
            parameter.grad = gradient
        torch_adam.step()
        adam.apply_gradients(gradients[:2])  # the third parameter is empty
        if step == 9:
            state = adam.state_dict()
            adam = FusedAdam(parameters, learning_rate=0.5)
            adam.load_state_dict(state)
        for actual, expected in zip(parameters, torch_parameters, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_gradient_clipping_equals_torch() -> None:
    rng = torch.Generator().manual_seed(0)
    for size in (0.01, 10.0):
        gradients = [size * torch.randn(shape, generator=rng) for shape in ((3, 4), (5,), (1, 0))]
        expected = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        for parameter, gradient in zip(expected, gradients, strict=True):
            parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(expected, 1.0)
        clip_gradient_norm(gradients, max_norm=1.0)
        for parameter, gradient in zip(expected, gradients, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(gradient, parameter.grad)


def test_loggers_receive_the_scores_of_each_epoch_by_optimiser_step() -> None:
    class RecordingLogger(pl.loggers.logger.DummyLogger):
        def __init__(self) -> None:
            super().__init__()
            self.records: list[tuple[int | None, dict[str, float]]] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.records.append((step, metrics))

    logger, names = (
        RecordingLogger(),
        {"train/loss", "valid/loss", "valid/one_step", "valid/rollout", "valid/exposure_gap"},
    )
    fit(PANEL, make_fit_spec(), loggers=[logger], accelerator="cpu")
    assert [(step, set(scores)) for step, scores in logger.records] == [(step, names) for step in (3, 6, 9, 11)]
    for _, scores in logger.records:
        assert scores["valid/exposure_gap"] == scores["valid/rollout"] / scores["valid/one_step"]


def test_the_logged_exposure_gap_is_that_of_the_kept_weights() -> None:
    spec = make_fit_spec(steps=3)
    fitted = fit(PANEL, spec, accelerator="cpu")
    network = fitted.model.network
    batches = build_validation_batches(
        PANEL.series, context=network.window_length(0), horizon=spec.horizon, windows=2, season=4
    )
    assert fitted.scores["valid/exposure_gap"] == pytest.approx(compute_exposure_gap([network], batches), rel=1e-6)
    assert "valid/exposure_gap" not in fit(PANEL, make_fit_spec(valid_windows=0), accelerator="cpu").scores


def test_a_fit_does_not_depend_on_the_global_random_state(uninterrupted: FitResult) -> None:
    torch.manual_seed(123)
    np.random.seed(7)
    torch.rand(17)
    repeated = fit_on_cpu(PANEL, make_fit_spec())
    assert have_equal_weights(copy_weights(repeated.model.network), copy_weights(uninterrupted.model.network))


def test_seed_dropout_and_data_each_change_the_weights(uninterrupted: FitResult) -> None:
    other_panel = Panel([PANEL.series[0]], "h")
    for panel, spec in [
        (PANEL, make_fit_spec(seed=1)),
        (PANEL, make_spec(layers=2, training=TRAINING)),
        (other_panel, make_fit_spec()),
    ]:
        assert not have_equal_weights(
            copy_weights(fit_on_cpu(panel, spec).model.network), copy_weights(uninterrupted.model.network)
        )


def test_initial_weights_depend_on_the_seed_only() -> None:
    spec = make_fit_spec()
    torch.manual_seed(1)
    random_state = torch.get_rng_state()
    network = build_network(spec, seed=3)
    assert torch.equal(torch.get_rng_state(), random_state)
    torch.manual_seed(2)
    assert have_equal_weights(copy_weights(network), copy_weights(build_network(spec, seed=3)))
    assert not have_equal_weights(copy_weights(network), copy_weights(build_network(spec, seed=4)))


def test_without_validation_the_last_weights_are_kept() -> None:
    class LastWeightsCallback(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.weights = copy_weights(pl_module.network)

    callback = LastWeightsCallback()
    fitted = fit_on_cpu(PANEL, make_fit_spec(valid_windows=0, patience=1), callbacks=[callback])
    assert have_equal_weights(copy_weights(fitted.model.network), callback.weights)
    assert (set(fitted.scores), fitted.steps) == ({"train/loss"}, 11)


@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
def test_a_device_of_this_machine_is_accepted(accelerator: str) -> None:
    validate_device(accelerator=accelerator, devices="1")
    assert fit(PANEL, make_fit_spec(steps=1), accelerator=accelerator, devices="1").steps == 1


@pytest.mark.parametrize(
    ("accelerator", "devices", "phrase"),
    [
        pytest.param(
            "cuda",
            "1",
            "the accelerator 'auto'",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there"),
        ),
        ("abacus", "1", "found accelerator 'abacus'"),
        ("cpu", "many", "devices 'many'"),
        ("cpu", "2", "Expected one device"),
    ],
)
def test_a_device_that_is_absent_or_not_one_is_rejected(accelerator: str, devices: str, phrase: str) -> None:
    with pytest.raises(InputError, match=phrase) as raised:
        validate_device(accelerator=accelerator, devices=devices)
    assert "\n" not in raised.value.message


def test_device_auto_selects_an_available_accelerator_and_cpu_the_cpu() -> None:
    devices = {}
    for accelerator in ("auto", "cpu"):
        recorder = FitRecorder()
        fitted = fit(PANEL, make_fit_spec(steps=1), accelerator=accelerator, callbacks=[recorder])
        devices[accelerator] = recorder.device
        assert {weight.device.type for weight in fitted.model.network.parameters()} == {"cpu"}
        assert not fitted.model.network.training
    assert devices["cpu"] == "cpu"
    assert devices["auto"] == ("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")


def test_a_fit_reduces_the_loss() -> None:
    spec = make_spec(training={"steps": 150, "epoch_steps": 50, "batch": 32, "learning_rate": 0.02})
    panel = make_panel(np.sin(np.arange(80) * np.pi / 4))
    fitted = fit_on_cpu(panel, spec)
    assert fitted.scores["valid/rollout"] < 0.35, "an untrained network has 1 or more"


def test_a_fitted_model_describes_itself(uninterrupted: FitResult) -> None:
    model = uninterrupted.model
    assert (model.spec, model.freq, model.season) == (make_fit_spec(), "h", 4)
    assert model.cutoff == PANEL.cutoff
    assert uninterrupted.excluded_ids == ()
    default_season_fit = fit_on_cpu(PANEL, make_fit_spec(steps=1).model_copy(update={"season": None}))
    assert default_season_fit.model.season == 24, "the default season of hourly data"


def test_series_too_short_to_train_on_are_skipped_by_name_and_all_of_them_are_an_error() -> None:
    short = make_panel(make_wave(60), make_wave(14))  # two windows of 5 steps, 4 of history, and one to predict
    assert fit_on_cpu(short, make_fit_spec(steps=1)).excluded_ids == ("series_1",)
    with pytest.raises(HistoryTooShort, match="needs a series of 15 steps"):
        fit_on_cpu(make_panel(make_wave(14)), make_fit_spec())


def test_a_panel_without_observations_cannot_be_fitted() -> None:
    values = np.full(40, np.nan)
    values[-10:] = 1.0
    with pytest.raises(HistoryTooShort, match="no series has one before the steps held out for validation"):
        fit_on_cpu(make_panel(values), make_fit_spec())


def test_gaps_in_the_data_do_not_stop_a_fit() -> None:
    gappy = make_wave(60)
    gappy[np.random.default_rng(0).random(60) < 0.4] = np.nan
    fitted = fit_on_cpu(make_panel(gappy, make_wave(40)), make_fit_spec())
    assert all(np.isfinite(value) for value in fitted.scores.values())


def test_a_fit_without_steps_uses_the_pretrained_network_whatever_the_champion_is() -> None:
    panel = make_panel(make_wave(60), freq="MS")
    training = {"initial": "base", "valid_windows": 1}
    trained = fit(
        panel,
        base_spec(12, horizon=5, training={**training, "steps": 2, "batch": 2, "learning_rate": 0.1}),
        accelerator="cpu",
    ).model
    untrained = fit(
        panel, base_spec(12, horizon=5, training={**training, "steps": 0}), initial=trained, accelerator="cpu"
    )
    expected = load_base().to_fitted_model().network.state_dict()
    weights = untrained.model.network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert untrained.scores["valid/rollout"] > 0
    assert not torch.equal(trained.network.state_dict()["output.weight"], expected["output.weight"])

"""A fit is a function of its panel and its specification: interrupted, resumed, beside another, it gives the same weights."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import DummyLogger

from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.data.windows import CutoffIndex, EpochBatches, PanelTensor
from forecaster.errors import HistoryTooShort
from forecaster.evaluation.validation import build_validation_batches, compute_exposure_gap, score_batch
from forecaster.model.regressor import build_network
from forecaster.series import Panel
from forecaster.training.datamodule import WindowDataModule
from forecaster.training.fit import FitResult, fit
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


@pytest.fixture(scope="module")
def uninterrupted() -> FitResult:
    """The uninterrupted fit."""
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
    watch = FitRecorder()
    resumed = fit_on_cpu(PANEL, make_fit_spec(), checkpoint=checkpoint, callbacks=[watch])
    assert len(watch.losses) == 4 - epoch, "what was done is not done again"
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
        assert signal.getsignal(signal.SIGINT) is handler, "who caught one interrupt hears the next"
    resumed = fit_on_cpu(PANEL, make_fit_spec(), checkpoint=checkpoint)
    assert have_equal_weights(copy_weights(resumed.model.network), copy_weights(uninterrupted.model.network))


def test_a_completed_fit_is_not_repeated(uninterrupted: FitResult, tmp_path: Path) -> None:
    for watch in (FitRecorder(), FitRecorder()):
        again = fit_on_cpu(PANEL, make_fit_spec(), checkpoint=tmp_path / "fit.ckpt", callbacks=[watch])
        assert have_equal_weights(copy_weights(again.model.network), copy_weights(uninterrupted.model.network))
        assert again.scores == uninterrupted.scores
    assert watch.losses == [], "nothing was left to train"
    assert [path.name for path in tmp_path.iterdir()] == ["fit.ckpt"]


EARLY_STOPPING = {"steps": 60, "learning_rate": 0.3, "patience": 2}


@pytest.fixture(scope="module")
def early_stopped() -> tuple[FitResult, FitRecorder]:
    """A fit whose patience runs out."""
    watch = FitRecorder()
    return fit_on_cpu(PANEL, make_fit_spec(**EARLY_STOPPING), callbacks=[watch]), watch


def test_a_fit_stops_early_when_the_rollout_score_stops_improving(early_stopped: tuple[FitResult, FitRecorder]) -> None:
    fitted, watch = early_stopped
    best = int(np.argmin(watch.rollouts))
    assert len(watch.rollouts) == fitted.epochs == best + 1 + 2 < 20
    assert all(min(watch.rollouts[: end - 2]) > min(watch.rollouts[end - 2 : end]) for end in range(3, fitted.epochs))


@pytest.mark.parametrize("moment", ["before the last epoch", "after the patience ran out"])
def test_a_fit_resumed_near_its_early_stop_gives_identical_weights(
    early_stopped: tuple[FitResult, FitRecorder], moment: str, tmp_path: Path
) -> None:
    whole, _ = early_stopped
    checkpoint = tmp_path / "fit.ckpt"
    if moment == "before the last epoch":
        with pytest.raises(SimulatedCrash):
            fit_on_cpu(
                PANEL,
                make_fit_spec(**EARLY_STOPPING),
                checkpoint=checkpoint,
                callbacks=[FaultInjector(whole.epochs - 1, None, raise_crash)],
            )
    else:
        fit_on_cpu(PANEL, make_fit_spec(**EARLY_STOPPING), checkpoint=checkpoint)
    again = FitRecorder()
    resumed = fit_on_cpu(PANEL, make_fit_spec(**EARLY_STOPPING), checkpoint=checkpoint, callbacks=[again])
    assert len(again.losses) == (1 if moment == "before the last epoch" else 0)
    assert have_equal_weights(copy_weights(resumed.model.network), copy_weights(whole.model.network))
    assert (resumed.scores, resumed.epochs) == (whole.scores, whole.epochs)


def test_the_best_weights_are_kept_with_their_scores(early_stopped: tuple[FitResult, FitRecorder]) -> None:
    fitted, watch = early_stopped
    best = int(np.argmin(watch.rollouts))
    assert best < len(watch.rollouts) - 1
    kept = copy_weights(fitted.model.network)
    assert [have_equal_weights(kept, each) for each in watch.weights] == [
        epoch == best for epoch in range(len(watch.weights))
    ]
    assert fitted.scores["valid/rollout"] == watch.rollouts[best]
    assert fitted.scores["train/loss"] == pytest.approx(np.mean(watch.losses[best]), rel=1e-6)
    [batch] = WindowDataModule(
        PANEL, make_fit_spec(), build_network(make_fit_spec(), seed=0), EMPTY_ENCODING, season=4
    ).validation_batches
    with torch.inference_mode():
        assert float(score_batch(fitted.model.network, batch).rollout) == pytest.approx(watch.rollouts[best], rel=1e-6)


@pytest.mark.parametrize(("count", "windows", "expected"), [(9000, 2, 4096), (9000, 1, 8192), (100, 2, 100)])
def test_validation_of_many_series_uses_an_evenly_spaced_subset(count: int, windows: int, expected: int) -> None:
    panel = make_panel(*(np.full(30, float(number)) for number in range(count)))
    spec = make_fit_spec(valid_windows=windows)
    found = WindowDataModule(panel, spec, build_network(spec, seed=0), EMPTY_ENCODING, season=4).validation_batches
    numbers = torch.cat([trial.example.future[:, 0] for trial in found])[::windows].diff()
    assert sum(len(trial.seasonal_error) for trial in found) == expected * windows
    assert numbers.min() >= 1
    assert numbers.max() <= -(-count // expected)


def test_the_last_epoch_has_the_remaining_steps() -> None:
    watch = FitRecorder()
    fitted = fit_on_cpu(PANEL, make_fit_spec(), callbacks=[watch])
    assert [len(losses) for losses in watch.losses] == [3, 3, 3, 2]
    assert (fitted.epochs, fitted.steps) == (4, 11)


@pytest.mark.parametrize("steps_at_once", [2, 25])
def test_the_number_of_steps_per_call_does_not_change_the_weights(uninterrupted: FitResult, steps_at_once: int) -> None:
    fitted = fit_on_cpu(PANEL, make_fit_spec(), steps_at_once=steps_at_once)
    assert have_equal_weights(copy_weights(fitted.model.network), copy_weights(uninterrupted.model.network))
    assert fitted.scores == pytest.approx(uninterrupted.scores, rel=1e-6)
    assert (fitted.epochs, fitted.steps) == (uninterrupted.epochs, uninterrupted.steps)


def test_batches_prepared_together_equal_batches_prepared_singly() -> None:
    gappy = make_wave(60)
    gappy[20:30] = np.nan
    for decoder, base, lags in [("rollout", "seasonal_naive", (1, 3)), ("direct", "last", ()), ("direct", "zero", ())]:
        spec = make_spec(decoder=decoder, base=base, lags=lags, segment=1)
        network = build_network(spec, seed=0, season=4)
        tape = PanelTensor.from_series(
            make_panel(gappy, make_wave(20)).series, context=network.pre_context + 16, horizon=network.block
        )
        anchors = CutoffIndex.from_panel_tensor(tape, min_history=4)
        size = {"context": network.pre_context + 16, "horizon": network.block, "batch_size": 8, "seed": 0, "epoch": 0}
        [together] = EpochBatches(anchors, **size, num_batches=3, batches_per_chunk=3)
        for lesson, example in zip(
            prepare_batches(network, together, batch_size=8), EpochBatches(anchors, **size, num_batches=3), strict=True
        ):
            [alone] = prepare_batches(network, example, batch_size=8)
            for name, found in lesson._asdict().items():
                expected = getattr(alone, name)
                assert (found is None) == (expected is None)
                assert found is None or torch.equal(found, expected), name
            assert float(lesson.weight.sum()) == pytest.approx(1)


def test_adam_equals_torch_also_after_loading_its_state() -> None:
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=draw) for shape in ((3, 4), (5,), (1, 0))]
    mine, theirs = ([torch.nn.Parameter(weight.clone()) for weight in start] for _ in range(2))
    adam, torchs = FusedAdam(mine, learning_rate=0.01), torch.optim.Adam(theirs, lr=0.01)
    for number in range(20):
        gradients = [torch.randn(weight.shape, generator=draw) for weight in start]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient
        torchs.step()
        adam.apply_gradients(gradients[:2])  # the third is empty
        if number == 9:
            state = adam.state_dict()
            adam = FusedAdam(mine, learning_rate=0.5)
            adam.load_state_dict(state)
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_gradient_clipping_equals_torch() -> None:
    draw = torch.Generator().manual_seed(0)
    for size in (0.01, 10.0):
        given = [size * torch.randn(shape, generator=draw) for shape in ((3, 4), (5,), (1, 0))]
        expected = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in given]
        for parameter, gradient in zip(expected, given, strict=True):
            parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(expected, 1.0)
        clip_gradient_norm(given, max_norm=1.0)
        for parameter, gradient in zip(expected, given, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(gradient, parameter.grad)


def test_loggers_receive_the_scores_of_each_epoch_by_optimiser_step() -> None:
    class Book(DummyLogger):
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[tuple[int | None, dict[str, float]]] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.lines.append((step, metrics))

    book, names = Book(), {"train/loss", "valid/loss", "valid/one_step", "valid/rollout", "valid/exposure_gap"}
    fit(PANEL, make_fit_spec(), loggers=[book], accelerator="cpu")
    assert [(step, set(scores)) for step, scores in book.lines] == [(step, names) for step in (3, 6, 9, 11)]
    for _, scores in book.lines:
        assert scores["valid/exposure_gap"] == scores["valid/rollout"] / scores["valid/one_step"]


def test_the_logged_exposure_gap_is_that_of_the_kept_weights() -> None:
    spec = make_fit_spec(steps=3)
    fitted = fit(PANEL, spec, accelerator="cpu")
    network = fitted.model.network
    judged = build_validation_batches(
        PANEL.series, context=network.window_length(0), horizon=spec.horizon, windows=2, season=4
    )
    assert fitted.scores["valid/exposure_gap"] == pytest.approx(compute_exposure_gap([network], judged), rel=1e-6)
    assert "valid/exposure_gap" not in fit(PANEL, make_fit_spec(valid_windows=0), accelerator="cpu").scores


def test_a_fit_does_not_depend_on_the_global_random_state(uninterrupted: FitResult) -> None:
    torch.manual_seed(123)
    np.random.seed(7)
    torch.rand(17)
    again = fit_on_cpu(PANEL, make_fit_spec())
    assert have_equal_weights(copy_weights(again.model.network), copy_weights(uninterrupted.model.network))


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
    before = torch.get_rng_state()
    one = build_network(spec, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert have_equal_weights(copy_weights(one), copy_weights(build_network(spec, seed=3)))
    assert not have_equal_weights(copy_weights(one), copy_weights(build_network(spec, seed=4)))


def test_without_validation_the_last_weights_are_kept() -> None:
    class Last(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.weights = copy_weights(pl_module.network)

    last = Last()
    fitted = fit_on_cpu(PANEL, make_fit_spec(valid_windows=0, patience=1), callbacks=[last])
    assert have_equal_weights(copy_weights(fitted.model.network), last.weights)
    assert (set(fitted.scores), fitted.steps) == ({"train/loss"}, 11)


def test_device_auto_selects_an_available_accelerator_and_cpu_the_cpu() -> None:
    found = {}
    for accelerator in ("auto", "cpu"):
        watch = FitRecorder()
        fitted = fit(PANEL, make_fit_spec(steps=1), accelerator=accelerator, callbacks=[watch])
        found[accelerator] = watch.device
        assert {weight.device.type for weight in fitted.model.network.parameters()} == {"cpu"}
        assert not fitted.model.network.training
    assert found["cpu"] == "cpu"
    assert found["auto"] == ("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")


def test_a_fit_reduces_the_loss() -> None:
    spec = make_spec(training={"steps": 150, "epoch_steps": 50, "batch": 32, "learning_rate": 0.02})
    panel = make_panel(np.sin(np.arange(80) * np.pi / 4))
    fitted = fit_on_cpu(panel, spec)
    assert fitted.scores["valid/rollout"] < 0.35, "an untrained network has 1 and more"


def test_a_fitted_model_describes_itself(uninterrupted: FitResult) -> None:
    forecaster = uninterrupted.model
    assert (forecaster.spec, forecaster.freq, forecaster.season) == (make_fit_spec(), "h", 4)
    assert forecaster.cutoff == PANEL.cutoff
    assert uninterrupted.excluded_ids == ()
    unnamed = fit_on_cpu(PANEL, make_fit_spec(steps=1).model_copy(update={"season": None}))
    assert unnamed.model.season == 24, "the usual one of hours"


def test_series_too_short_to_train_on_are_skipped_by_name_and_all_of_them_are_an_error() -> None:
    short = make_panel(make_wave(60), make_wave(14))  # two windows of 5 steps, 4 of history, and one to predict
    assert fit_on_cpu(short, make_fit_spec(steps=1)).excluded_ids == ("series_1",)
    with pytest.raises(HistoryTooShort, match="needs a series of 15 steps"):
        fit_on_cpu(make_panel(make_wave(14)), make_fit_spec())


def test_a_panel_without_observations_cannot_be_fitted() -> None:
    silent = np.full(40, np.nan)
    silent[-10:] = 1.0
    with pytest.raises(HistoryTooShort, match="no series has one before the steps held out for validation"):
        fit_on_cpu(make_panel(silent), make_fit_spec())


def test_gaps_in_the_data_do_not_stop_a_fit() -> None:
    gappy = make_wave(60)
    gappy[np.random.default_rng(0).random(60) < 0.4] = np.nan
    fitted = fit_on_cpu(make_panel(gappy, make_wave(40)), make_fit_spec())
    assert all(np.isfinite(value) for value in fitted.scores.values())

"""A fit is a function of its panel and its specification: interrupted, resumed, beside another, it gives the same weights."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import DummyLogger

from forecaster.data.encoding import PLAIN
from forecaster.data.windows import Anchors, Feed, Tape
from forecaster.errors import HistoryTooShort
from forecaster.evaluation.validation import exposure_gap, score, trials
from forecaster.model.regressor import build
from forecaster.series import Panel
from forecaster.training.datamodule import Windows
from forecaster.training.fit import Fitted, fit
from forecaster.training.loss import lessons
from forecaster.training.optimizer import Adam, clip_norm
from tests.factories import make_spec, panel_of, wave
from tests.forecaster.training.fitting import (
    PANEL,
    TRAINING,
    Crash,
    Fault,
    Watch,
    crash,
    interrupt,
    on_cpu,
    same,
    spec_of,
    weights,
)


@pytest.fixture(scope="module")
def whole() -> Fitted:
    """The uninterrupted fit."""
    return on_cpu(PANEL, spec_of())


@pytest.mark.parametrize(("epoch", "batch"), [(0, 1), (1, None), (1, 0), (2, 2), (3, 1)])
def test_a_fit_resumed_after_a_crash_ends_in_the_very_weights(
    whole: Fitted, epoch: int, batch: int | None, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "fit.ckpt"
    with pytest.raises(Crash):
        on_cpu(PANEL, spec_of(), checkpoint=checkpoint, callbacks=[Fault(epoch, batch, crash)])
    assert checkpoint.exists() == (epoch > 0)
    torch.manual_seed(99)
    watch = Watch()
    resumed = on_cpu(PANEL, spec_of(), checkpoint=checkpoint, callbacks=[watch])
    assert len(watch.losses) == 4 - epoch, "what was done is not done again"
    assert same(weights(resumed.forecaster.network), weights(whole.forecaster.network))
    assert resumed.scores == whole.scores
    assert (resumed.epochs, resumed.steps) == (whole.epochs, whole.steps) == (4, 11)
    assert resumed.steps_before == 3 * epoch


def test_a_fit_interrupted_twice_ends_in_the_very_weights(whole: Fitted, tmp_path: Path) -> None:
    checkpoint, handler = tmp_path / "fit.ckpt", signal.getsignal(signal.SIGINT)
    for epoch in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            on_cpu(PANEL, spec_of(), checkpoint=checkpoint, callbacks=[Fault(epoch, 1, interrupt)])
        assert signal.getsignal(signal.SIGINT) is handler, "who caught one interrupt hears the next"
    resumed = on_cpu(PANEL, spec_of(), checkpoint=checkpoint)
    assert same(weights(resumed.forecaster.network), weights(whole.forecaster.network))


def test_a_fit_that_was_done_is_done(whole: Fitted, tmp_path: Path) -> None:
    for watch in (Watch(), Watch()):
        again = on_cpu(PANEL, spec_of(), checkpoint=tmp_path / "fit.ckpt", callbacks=[watch])
        assert same(weights(again.forecaster.network), weights(whole.forecaster.network))
        assert again.scores == whole.scores
    assert watch.losses == [], "nothing was left to train"
    assert [path.name for path in tmp_path.iterdir()] == ["fit.ckpt"]


PATIENT = {"steps": 60, "learning_rate": 0.3, "patience": 2}


@pytest.fixture(scope="module")
def impatient() -> tuple[Fitted, Watch]:
    """A fit whose patience runs out."""
    watch = Watch()
    return on_cpu(PANEL, spec_of(**PATIENT), callbacks=[watch]), watch


def test_a_fit_stops_when_no_rollout_was_better_for_so_many_epochs(impatient: tuple[Fitted, Watch]) -> None:
    fitted, watch = impatient
    best = int(np.argmin(watch.rollouts))
    assert len(watch.rollouts) == fitted.epochs == best + 1 + 2 < 20
    assert all(min(watch.rollouts[: end - 2]) > min(watch.rollouts[end - 2 : end]) for end in range(3, fitted.epochs))


@pytest.mark.parametrize("when", ["before the last epoch", "after the patience ran out"])
def test_a_fit_resumed_about_the_end_of_its_patience_ends_in_the_very_weights(
    impatient: tuple[Fitted, Watch], when: str, tmp_path: Path
) -> None:
    whole, _ = impatient
    checkpoint = tmp_path / "fit.ckpt"
    if when == "before the last epoch":
        with pytest.raises(Crash):
            on_cpu(PANEL, spec_of(**PATIENT), checkpoint=checkpoint, callbacks=[Fault(whole.epochs - 1, None, crash)])
    else:
        on_cpu(PANEL, spec_of(**PATIENT), checkpoint=checkpoint)
    again = Watch()
    resumed = on_cpu(PANEL, spec_of(**PATIENT), checkpoint=checkpoint, callbacks=[again])
    assert len(again.losses) == (1 if when == "before the last epoch" else 0)
    assert same(weights(resumed.forecaster.network), weights(whole.forecaster.network))
    assert (resumed.scores, resumed.epochs) == (whole.scores, whole.epochs)


def test_the_best_weights_are_the_ones_kept_with_their_scores(impatient: tuple[Fitted, Watch]) -> None:
    fitted, watch = impatient
    best = int(np.argmin(watch.rollouts))
    assert best < len(watch.rollouts) - 1
    kept = weights(fitted.forecaster.network)
    assert [same(kept, each) for each in watch.weights] == [epoch == best for epoch in range(len(watch.weights))]
    assert fitted.scores["valid/rollout"] == watch.rollouts[best]
    assert fitted.scores["train/loss"] == pytest.approx(np.mean(watch.losses[best]), rel=1e-6)
    [batch] = Windows(PANEL, spec_of(), build(spec_of(), seed=0), PLAIN, season=4).trials
    with torch.inference_mode():
        assert float(score(fitted.forecaster.network, batch).rollout) == pytest.approx(watch.rollouts[best], rel=1e-6)


@pytest.mark.parametrize(("count", "windows", "judged"), [(9000, 2, 4096), (9000, 1, 8192), (100, 2, 100)])
def test_an_epoch_of_very_many_series_is_judged_by_some_of_them_evenly_chosen(
    count: int, windows: int, judged: int
) -> None:
    panel = panel_of(*(np.full(30, float(number)) for number in range(count)))
    spec = spec_of(valid_windows=windows)
    found = Windows(panel, spec, build(spec, seed=0), PLAIN, season=4).trials
    numbers = torch.cat([trial.example.future[:, 0] for trial in found])[::windows].diff()
    assert sum(len(trial.seasonal_error) for trial in found) == judged * windows
    assert numbers.min() >= 1
    assert numbers.max() <= -(-count // judged)


def test_the_last_epoch_has_the_steps_that_are_left() -> None:
    watch = Watch()
    fitted = on_cpu(PANEL, spec_of(), callbacks=[watch])
    assert [len(losses) for losses in watch.losses] == [3, 3, 3, 2]
    assert (fitted.epochs, fitted.steps) == (4, 11)


@pytest.mark.parametrize("steps_at_once", [2, 25])
def test_how_many_steps_are_made_at_once_changes_nothing(whole: Fitted, steps_at_once: int) -> None:
    fitted = on_cpu(PANEL, spec_of(), steps_at_once=steps_at_once)
    assert same(weights(fitted.forecaster.network), weights(whole.forecaster.network))
    assert fitted.scores == pytest.approx(whole.scores, rel=1e-6)
    assert (fitted.epochs, fitted.steps) == (whole.epochs, whole.steps)


def test_lessons_prepared_together_are_the_lessons_of_each_batch() -> None:
    gappy = wave(60)
    gappy[20:30] = np.nan
    for decoder, base, lags in [("rollout", "seasonal_naive", (1, 3)), ("direct", "last", ()), ("direct", "zero", ())]:
        spec = make_spec(decoder=decoder, base=base, lags=lags, segment=1)
        network = build(spec, seed=0, season=4)
        tape = Tape.record(panel_of(gappy, wave(20)).series, context=network.lead + 16, horizon=network.block)
        anchors = Anchors.of(tape, least=4)
        size = {"context": network.lead + 16, "horizon": network.block, "batch": 8, "seed": 0, "epoch": 0}
        [together] = Feed(anchors, **size, steps=3, at_once=3)
        for lesson, example in zip(lessons(network, together, batch=8), Feed(anchors, **size, steps=3), strict=True):
            [alone] = lessons(network, example, batch=8)
            for name, found in lesson._asdict().items():
                expected = getattr(alone, name)
                assert (found is None) == (expected is None)
                assert found is None or torch.equal(found, expected), name
            assert float(lesson.weight.sum()) == pytest.approx(1)


def test_adam_steps_as_that_of_torch_does_also_after_its_state_was_loaded() -> None:
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=draw) for shape in ((3, 4), (5,), (1, 0))]
    mine, theirs = ([torch.nn.Parameter(weight.clone()) for weight in start] for _ in range(2))
    adam, torchs = Adam(mine, learning_rate=0.01), torch.optim.Adam(theirs, lr=0.01)
    for number in range(20):
        gradients = [torch.randn(weight.shape, generator=draw) for weight in start]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient
        torchs.step()
        adam.update(gradients[:2])  # the third is empty
        if number == 9:
            state = adam.state_dict()
            adam = Adam(mine, learning_rate=0.5)
            adam.load_state_dict(state)
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_clipped_gradient_is_that_of_torch() -> None:
    draw = torch.Generator().manual_seed(0)
    for size in (0.01, 10.0):
        given = [size * torch.randn(shape, generator=draw) for shape in ((3, 4), (5,), (1, 0))]
        expected = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in given]
        for parameter, gradient in zip(expected, given, strict=True):
            parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(expected, 1.0)
        clip_norm(given, largest=1.0)
        for parameter, gradient in zip(expected, given, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(gradient, parameter.grad)


def test_loggers_are_told_the_scores_of_each_epoch_by_optimiser_step() -> None:
    class Book(DummyLogger):
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[tuple[int | None, dict[str, float]]] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.lines.append((step, metrics))

    book, names = Book(), {"train/loss", "valid/loss", "valid/one_step", "valid/rollout", "valid/exposure_gap"}
    fit(PANEL, spec_of(), loggers=[book], accelerator="cpu")
    assert [(step, set(scores)) for step, scores in book.lines] == [(step, names) for step in (3, 6, 9, 11)]
    for _, scores in book.lines:
        assert scores["valid/exposure_gap"] == scores["valid/rollout"] / scores["valid/one_step"]


def test_the_exposure_gap_that_is_logged_is_that_of_the_kept_weights() -> None:
    spec = spec_of(steps=3)
    fitted = fit(PANEL, spec, accelerator="cpu")
    network = fitted.forecaster.network
    judged = trials(PANEL.series, context=network.shown(0), horizon=spec.horizon, windows=2, season=4)
    assert fitted.scores["valid/exposure_gap"] == pytest.approx(exposure_gap([network], judged), rel=1e-6)
    assert "valid/exposure_gap" not in fit(PANEL, spec_of(valid_windows=0), accelerator="cpu").scores


def test_a_fit_does_not_depend_on_what_was_drawn_before(whole: Fitted) -> None:
    torch.manual_seed(123)
    np.random.seed(7)
    torch.rand(17)
    again = on_cpu(PANEL, spec_of())
    assert same(weights(again.forecaster.network), weights(whole.forecaster.network))


def test_seed_dropout_and_data_each_change_the_weights(whole: Fitted) -> None:
    other_panel = Panel([PANEL.series[0]], "h")
    for panel, spec in [
        (PANEL, spec_of(seed=1)),
        (PANEL, make_spec(layers=2, training=TRAINING)),
        (other_panel, spec_of()),
    ]:
        assert not same(weights(on_cpu(panel, spec).forecaster.network), weights(whole.forecaster.network))


def test_a_network_is_built_from_its_seed_alone() -> None:
    spec = spec_of()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = build(spec, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(weights(one), weights(build(spec, seed=3)))
    assert not same(weights(one), weights(build(spec, seed=4)))


def test_without_validation_the_last_weights_are_kept() -> None:
    class Last(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.weights = weights(pl_module.network)

    last = Last()
    fitted = on_cpu(PANEL, spec_of(valid_windows=0, patience=1), callbacks=[last])
    assert same(weights(fitted.forecaster.network), last.weights)
    assert (set(fitted.scores), fitted.steps) == ({"train/loss"}, 11)


def test_auto_takes_the_device_there_is_and_cpu_the_cpu() -> None:
    found = {}
    for accelerator in ("auto", "cpu"):
        watch = Watch()
        fitted = fit(PANEL, spec_of(steps=1), accelerator=accelerator, callbacks=[watch])
        found[accelerator] = watch.device
        assert {weight.device.type for weight in fitted.forecaster.network.parameters()} == {"cpu"}
        assert not fitted.forecaster.network.training
    assert found["cpu"] == "cpu"
    assert found["auto"] == ("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")


def test_a_fit_learns() -> None:
    spec = make_spec(training={"steps": 150, "epoch_steps": 50, "batch": 32, "learning_rate": 0.02})
    panel = panel_of(np.sin(np.arange(80) * np.pi / 4))
    fitted = on_cpu(panel, spec)
    assert fitted.scores["valid/rollout"] < 0.35, "an untrained network has 1 and more"


def test_a_fitted_forecaster_says_what_it_is(whole: Fitted) -> None:
    forecaster = whole.forecaster
    assert (forecaster.spec, forecaster.freq, forecaster.season) == (spec_of(), "h", 4)
    assert forecaster.cutoff == PANEL.cutoff
    assert whole.left_out == ()
    unnamed = on_cpu(PANEL, spec_of(steps=1).model_copy(update={"season": None}))
    assert unnamed.forecaster.season == 24, "the usual one of hours"


def test_series_too_short_to_learn_from_are_left_out_by_name_and_all_of_them_are_an_error() -> None:
    short = panel_of(wave(60), wave(14))  # two windows of 5 steps, 4 of history, and one to predict
    assert on_cpu(short, spec_of(steps=1)).left_out == ("series_1",)
    with pytest.raises(HistoryTooShort, match="needs a series of 15 steps"):
        on_cpu(panel_of(wave(14)), spec_of())


def test_nothing_observed_is_nothing_to_learn_from() -> None:
    silent = np.full(40, np.nan)
    silent[-10:] = 1.0
    with pytest.raises(HistoryTooShort, match="no series has one before what is held out"):
        on_cpu(panel_of(silent), spec_of())


def test_gaps_in_the_data_do_not_stop_a_fit() -> None:
    gappy = wave(60)
    gappy[np.random.default_rng(0).random(60) < 0.4] = np.nan
    fitted = on_cpu(panel_of(gappy, wave(40)), spec_of())
    assert all(np.isfinite(value) for value in fitted.scores.values())

"""The recipe around the loss: which windows, in which units, at which rate, and which weights are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from forecaster.data.encoding import PLAIN
from forecaster.data.windows import Anchors, Tape
from forecaster.errors import BadSpec
from forecaster.evaluation.calibration import calibrated
from forecaster.metrics import seasonal_error
from forecaster.model.regressor import build
from forecaster.model.scaling import measure
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.datamodule import Windows
from forecaster.training.fit import fit, fit_digest, refit
from forecaster.training.loss import lessons, loss_of
from forecaster.training.optimizer import Adam, learning_rate
from tests.factories import make_spec, one_series, panel_of, wave

PANEL = panel_of(wave(60), 40 * wave(50, seed=1), wave(40, seed=2))
TRAINING = {"steps": 11, "epoch_steps": 3, "batch": 8, "learning_rate": 0.02, "valid_windows": 2}
RECIPE = {"schedule": "cosine", "average": 0.9, "weighting": "seasonal_error", "recent": 1.5}


def spec_of(fields: dict[str, Any] | None = None, **training: Any) -> Spec:
    return make_spec(
        **{"decoder": "direct", "head": {"kind": "point", "loss": "mae"}} | (fields or {}), training=TRAINING | training
    )


def weights(forecaster: Forecaster) -> dict[str, torch.Tensor]:
    return {
        f"{n}.{name}": value for n, one in enumerate(forecaster.networks) for name, value in one.state_dict().items()
    }


def same(one: Forecaster, other: Forecaster) -> bool:
    mine, theirs = weights(one), weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


class Stop(pl.Callback):
    """Ends the process, as far as a fit can tell, when an epoch begins; what was before it is on disk."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise RuntimeError("stopped")


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("part", [*RECIPE, "all"])
def test_every_part_changes_the_weights_and_an_interrupted_fit_ends_in_the_same(
    part: str, members: int, tmp_path: Path
) -> None:
    chosen = RECIPE if part == "all" else {part: RECIPE[part]}
    spec = spec_of({"members": members}, **chosen)
    whole = fit(PANEL, spec, accelerator="cpu")
    plain = fit(PANEL, spec_of({"members": members}), accelerator="cpu")
    assert not same(whole.forecaster, plain.forecaster)
    checkpoint = tmp_path / "last.ckpt"
    with pytest.raises(RuntimeError, match="stopped"):
        fit(PANEL, spec, checkpoint=checkpoint, callbacks=[Stop()], accelerator="cpu")
    again = fit(PANEL, spec, checkpoint=checkpoint, accelerator="cpu")
    assert again.steps_before == 6
    assert same(whole.forecaster, again.forecaster)
    assert same(whole.forecaster, fit(PANEL, spec, accelerator="cpu", steps_at_once=1).forecaster)


def test_the_average_is_one_of_all_steps_with_the_first_soon_forgotten() -> None:
    draw = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(4, generator=draw))
    adam = Adam([parameter], learning_rate=0.1, average=0.8)
    expected = parameter.detach().clone()
    for number in range(60):
        adam.update([torch.randn(4, generator=draw)], number=number)
        decay = min(0.8, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * parameter.detach()
        torch.testing.assert_close(adam.averages[0], expected)
    assert not torch.allclose(adam.averages[0], parameter)
    plain = Adam([parameter], learning_rate=0.1)
    assert plain.averages[0] is parameter


def test_what_is_validated_and_kept_is_the_average() -> None:
    seen: list[tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]] = []

    class Watch(pl.Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            optimizer = trainer.optimizers[0]
            live = [parameter.detach().clone() for parameter in optimizer.parameters]
            seen.append((live, [one.clone() for one in optimizer.averages], []))

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            optimizer: Any = trainer.optimizers[0]
            seen[-1][2].extend(parameter.detach().clone() for parameter in optimizer.parameters)

    found = fit(PANEL, spec_of(average=0.9, learning_rate=0.1), callbacks=[Watch()], accelerator="cpu")
    for validated, averages, trained in seen:
        assert all(torch.equal(one, other) for one, other in zip(validated, averages, strict=True))
        assert not all(torch.equal(one, other) for one, other in zip(validated, trained, strict=True))
    kept = list(found.forecaster.network.parameters())
    assert any(all(torch.equal(a, b) for a, b in zip(kept, averages, strict=False)) for _, averages, _ in seen)


def test_the_rate_rises_and_falls_to_nothing() -> None:
    rates = [learning_rate(step, peak=0.2, schedule="cosine", steps=1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.2 / 50)
    assert max(rates) == pytest.approx(0.2, rel=0.01)
    assert rates[500] == pytest.approx(0.1)
    assert rates[-1] < 1e-5
    assert np.argmax(rates) == 49
    assert (np.diff(rates[49:]) < 0).all()
    assert {learning_rate(step, peak=0.2, schedule="constant", steps=10) for step in range(10)} == {0.2}
    assert learning_rate(0, peak=0.2, schedule="cosine", steps=1) == 0.2


def anchors(*lengths: int, least: int = 4) -> Anchors:
    series = [one_series(wave(length, seed=number), name=str(number)) for number, length in enumerate(lengths)]
    return Anchors.of(Tape.record(series, context=8, horizon=6), least=least)


def test_recent_windows_are_drawn_near_the_end_of_every_series_alike() -> None:
    each = anchors(500, 40, 3, 1000)
    numbers = each.draw(30_000, torch.Generator().manual_seed(0), recent=2.0, horizon=6)
    assert ((numbers >= 0) & (numbers < len(each))).all()
    series, places = each.series(numbers), each.places(numbers)
    assert torch.bincount(series, minlength=4).div(len(series)).tolist() == pytest.approx(
        [1 / 3, 1 / 3, 0, 1 / 3], abs=0.02
    )
    back = (each.tape.first + each.tape.length)[series] - places
    for long in (0, 3):  # where nearly all distances fit: a horizon, and an exponential of two more on the mean
        mine = back[series == long].double()
        assert mine.min() == 6
        assert mine.mean() == pytest.approx(6 + 2 * 6 - 0.5, abs=0.4)
    assert back[series == 1].max() == 36


def test_a_series_without_a_horizon_is_drawn_from_anywhere() -> None:
    each = anchors(7)
    numbers = each.draw(500, torch.Generator().manual_seed(0), recent=1.0, horizon=6)
    assert sorted(set(numbers.tolist())) == [0, 1, 2]


@pytest.mark.parametrize("scaling", ["standard", "last", "mean_abs", "none"])
def test_an_error_counts_in_units_of_the_seasonal_naives(scaling: str) -> None:
    """An untrained network repeats the last value: its weighted loss is the mean of |y - last| over the seasonal error."""
    spec = spec_of({"scaling": scaling, "base": "last"}, weighting="seasonal_error", valid_windows=0, batch=64)
    panel = Panel([one_series(wave(64)), one_series(30 * wave(64, seed=1), name="b")], "h")
    network = build(spec, seed=0)
    windows = Windows(panel, spec, network, PLAIN, season=4)
    windows.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    example = next(iter(windows.train_dataloader()))
    found = loss_of(network, lessons(network, example, batch=64)[0]).detach()
    came = example.future[:64]
    last = example.window.values[:64, -1:]
    errors = torch.tensor([seasonal_error(one.y, season=4) for one in panel.series])
    which = (last[:, 0] > 5).long()
    expected = ((came - last).abs() / errors[which][:, None]).nanmean()
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_in_logarithms_an_error_counts_at_the_level_of_its_row() -> None:
    values = torch.tensor([[90.0, 110.0, 100.0], [9e6, 1.1e7, 1e7]], dtype=torch.float64)
    scale = measure(values, "last", transform="log")
    moved = scale.undo(torch.full((2, 1), 0.01))[:, 0] - values[:, -1]
    torch.testing.assert_close(scale.unit, moved / 0.01, rtol=1e-3, atol=0.0)
    assert scale.unit.tolist() == pytest.approx([10.0, 1e6], rel=0.01)  # a tenth of the level


@pytest.mark.parametrize("scaling", ["none", "last", "standard", "level_season"])
def test_logarithms_are_undone_whatever_the_values(scaling: Any) -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(size=(6, 24)) * np.array([1e-12, 1.0, 1e12, 3.0, 0.0, 1.0])[:, None]
    values[3, ::2] = 0.0
    values[5] = 7.0
    values = torch.from_numpy(values)
    scale = measure(values, scaling, season=4, transform="log")
    back = scale.undo(scale.apply(values))
    size = values.abs().amax(1, keepdim=True)
    assert ((back - values).abs() <= 1e-5 * size).all()
    assert torch.isfinite(scale.apply(values)).all()


def test_a_season_that_multiplies_is_a_profile_in_logarithms() -> None:
    clock = np.arange(40)
    y = torch.from_numpy(100 * 1.02**clock * np.array([0.5, 1.0, 2.0, 1.0])[clock % 4])[None]
    log, plain = (measure(y, "level_season", season=4, transform=kind) for kind in ("log", "none"))  # type: ignore[arg-type]
    expected = np.log([0.5, 1.0, 2.0, 1.0])
    np.testing.assert_allclose(log.profile[0], expected - expected.mean(), atol=0.02)
    ahead = log.undo(torch.zeros(1, 44))[0, 40:]
    assert float((ahead / ahead.mean())[2]) == pytest.approx(2 / 1.125, rel=0.03)
    assert plain.size.shape == (1, 0)


def test_what_does_not_go_with_logarithms_is_refused() -> None:
    with pytest.raises(BadSpec, match="mean_abs"):
        make_spec(transform="log", scaling="mean_abs")
    with pytest.raises(BadSpec, match="counts"):
        make_spec(transform="log", scaling="none", head={"kind": "neg_binomial"})
    with pytest.raises(BadSpec, match="refit"):
        make_spec(training={"refit": True, "valid_windows": 0})


def test_a_refit_learns_from_all_there_is_for_as_long_as_proved_best() -> None:
    spec = spec_of(refit=True, **RECIPE)
    fitted = fit(PANEL, spec, accelerator="cpu")
    fitted = fitted._replace(forecaster=calibrated(fitted.forecaster, PANEL, windows=2))
    whole = refit(PANEL, fitted, accelerator="cpu")
    assert whole.spec == spec
    assert whole.calibration is fitted.forecaster.calibration
    assert not same(whole, fitted.forecaster)
    alone = spec_of(**RECIPE, steps=fitted.best_steps) if fitted.best_steps else spec
    alone = alone.model_copy(update={"training": alone.training.model_copy(update={"valid_windows": 0})})
    assert same(whole, fit(PANEL, alone, accelerator="cpu").forecaster)
    assert np.isfinite(Predictor(whole).forecast(PANEL.series[0], 5, levels=[0.1, 0.9]).mean).all()


@pytest.mark.parametrize("members", [1, 2])
def test_a_refit_that_is_interrupted_goes_on_and_a_fit_that_had_ended_is_not_made_again(
    members: int, tmp_path: Path
) -> None:
    spec = spec_of({"members": members}, refit=True, epoch_steps=2, **RECIPE)
    fitted = fit(PANEL, spec, checkpoint=tmp_path / "last.ckpt", accelerator="cpu")
    assert fitted.best_steps > 4, "or the refit would end before it is stopped"
    whole = refit(PANEL, fitted, accelerator="cpu")
    with pytest.raises(RuntimeError, match="stopped"):
        refit(PANEL, fitted, checkpoint=tmp_path / "whole.ckpt", callbacks=[Stop()], accelerator="cpu")
    again = fit(PANEL, spec, checkpoint=tmp_path / "last.ckpt", accelerator="cpu")
    assert again.steps_before == again.steps == spec.training.steps
    assert again.best_steps == fitted.best_steps
    assert same(again.forecaster, fitted.forecaster)
    assert same(refit(PANEL, again, checkpoint=tmp_path / "whole.ckpt", accelerator="cpu"), whole)


def test_a_fit_starts_from_the_weights_it_is_given() -> None:
    spec = spec_of(learning_rate=1e-9)
    before = fit(PANEL, spec_of(), accelerator="cpu").forecaster
    warm = fit(PANEL, spec, initial=before, accelerator="cpu").forecaster
    for name, value in weights(warm).items():
        torch.testing.assert_close(value, weights(before)[name], rtol=0.0, atol=1e-6)
    assert len({fit_digest(PANEL, spec), fit_digest(PANEL, spec, before), fit_digest(PANEL, spec, warm)}) == 3
    other = make_spec(decoder="direct", layers=2, training=TRAINING)
    with pytest.raises(BadSpec, match="recurrent") as refused:
        fit(PANEL, other, initial=before, accelerator="cpu")
    assert "start from" in str(refused.value)

"""Options of training besides the loss: sampling of windows, weighting, learning rate, averaged weights, refit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.data.windows import CutoffIndex, PanelTensor
from forecaster.errors import BadSpec
from forecaster.evaluation.calibration import calibrate_model
from forecaster.metrics import seasonal_error
from forecaster.model.regressor import build_network
from forecaster.model.scaling import measure_scale
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.datamodule import WindowDataModule
from forecaster.training.fit import fit, fit_digest, refit
from forecaster.training.lightning import pl
from forecaster.training.loss import compute_loss, prepare_batches
from forecaster.training.optimizer import FusedAdam, scheduled_learning_rate
from tests.factories import make_panel, make_series, make_spec, make_wave

pytestmark = pytest.mark.integration

PANEL = make_panel(make_wave(60), 40 * make_wave(50, seed=1), make_wave(40, seed=2))
TRAINING = {"steps": 11, "epoch_steps": 3, "batch": 8, "learning_rate": 0.02, "valid_windows": 2}
TRAINING_OPTIONS = {"schedule": "cosine", "average": 0.9, "weighting": "seasonal_error", "recent": 1.5}


def make_fit_spec(fields: dict[str, Any] | None = None, **training: Any) -> Spec:
    return make_spec(
        **{"decoder": "direct", "head": {"kind": "point", "loss": "mae"}} | (fields or {}), training=TRAINING | training
    )


def copy_weights(model: FittedModel) -> dict[str, torch.Tensor]:
    return {
        f"{member}.{name}": value
        for member, network in enumerate(model.networks)
        for name, value in network.state_dict().items()
    }


def have_equal_weights(first: FittedModel, second: FittedModel) -> bool:
    first_weights, second_weights = copy_weights(first), copy_weights(second)
    return first_weights.keys() == second_weights.keys() and all(
        torch.equal(first_weights[name], second_weights[name]) for name in first_weights
    )


class StopAtEpoch(pl.Callback):
    """Simulates the end of the process when an epoch begins; everything before it is on disk."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise RuntimeError("stopped")


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("part", [*TRAINING_OPTIONS, "all"])
def test_every_option_changes_the_weights_and_a_resumed_fit_gives_identical_ones(
    part: str, members: int, tmp_path: Path
) -> None:
    options = TRAINING_OPTIONS if part == "all" else {part: TRAINING_OPTIONS[part]}
    spec = make_fit_spec({"members": members}, **options)
    uninterrupted = fit(PANEL, spec, accelerator="cpu")
    plain = fit(PANEL, make_fit_spec({"members": members}), accelerator="cpu")
    assert not have_equal_weights(uninterrupted.model, plain.model)
    checkpoint = tmp_path / "last.ckpt"
    with pytest.raises(RuntimeError, match="stopped"):
        fit(PANEL, spec, checkpoint=checkpoint, callbacks=[StopAtEpoch()], accelerator="cpu")
    resumed = fit(PANEL, spec, checkpoint=checkpoint, accelerator="cpu")
    assert resumed.resumed_steps == 6
    assert have_equal_weights(uninterrupted.model, resumed.model)
    assert have_equal_weights(uninterrupted.model, fit(PANEL, spec, accelerator="cpu", steps_per_chunk=1).model)


def test_the_average_covers_all_steps_and_discounts_the_first() -> None:
    rng = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(4, generator=rng))
    adam = FusedAdam([parameter], learning_rate=0.1, average_decay=0.8)
    expected = parameter.detach().clone()
    for step in range(60):
        adam.apply_gradients([torch.randn(4, generator=rng)], step=step)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach()
        torch.testing.assert_close(adam.averages[0], expected)
    assert not torch.allclose(adam.averages[0], parameter)
    plain = FusedAdam([parameter], learning_rate=0.1)
    assert plain.averages[0] is parameter


def test_the_averaged_weights_are_validated_and_kept() -> None:
    records: list[tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]] = []

    class AveragesRecorder(pl.Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            optimizer = trainer.optimizers[0]
            parameters = [parameter.detach().clone() for parameter in optimizer.trained_parameters]
            records.append((parameters, [average.clone() for average in optimizer.averages], []))

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            optimizer: Any = trainer.optimizers[0]
            records[-1][2].extend(parameter.detach().clone() for parameter in optimizer.trained_parameters)

    result = fit(
        PANEL, make_fit_spec(average=0.9, learning_rate=0.1), callbacks=[AveragesRecorder()], accelerator="cpu"
    )
    for validated, averages, trained in records:
        assert all(torch.equal(weight, other) for weight, other in zip(validated, averages, strict=True))
        assert not all(torch.equal(weight, other) for weight, other in zip(validated, trained, strict=True))
    final_weights = list(result.model.network.parameters())
    assert any(
        all(torch.equal(a, b) for a, b in zip(final_weights, averages, strict=False)) for _, averages, _ in records
    )


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    rates = [scheduled_learning_rate(step, peak=0.2, schedule="cosine", total_steps=1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.2 / 50)
    assert max(rates) == pytest.approx(0.2, rel=0.01)
    assert rates[500] == pytest.approx(0.1)
    assert rates[-1] < 1e-5
    assert np.argmax(rates) == 49
    assert (np.diff(rates[49:]) < 0).all()
    assert {scheduled_learning_rate(step, peak=0.2, schedule="constant", total_steps=10) for step in range(10)} == {0.2}
    assert scheduled_learning_rate(0, peak=0.2, schedule="cosine", total_steps=1) == 0.2


def make_cutoff_index(*lengths: int, min_history: int = 4) -> CutoffIndex:
    series = [make_series(make_wave(length, seed=index), name=str(index)) for index, length in enumerate(lengths)]
    return CutoffIndex.from_source(PanelTensor.from_series(series, context=8, horizon=6), min_history=min_history)


def test_recent_windows_are_sampled_near_the_end_of_every_series() -> None:
    cutoffs = make_cutoff_index(500, 40, 3, 1000)
    indices = cutoffs.sample(30_000, torch.Generator().manual_seed(0), recent=2.0, horizon=6)
    assert ((indices >= 0) & (indices < len(cutoffs))).all()
    series, positions = cutoffs.series_indices(indices), cutoffs.positions(indices)
    assert torch.bincount(series, minlength=4).div(len(series)).tolist() == pytest.approx(
        [1 / 3, 1 / 3, 0, 1 / 3], abs=0.02
    )
    distances = (cutoffs.source.starts + cutoffs.source.lengths)[series] - positions
    for row in (0, 3):  # long series: a horizon plus an exponential with a mean of two horizons
        series_distances = distances[series == row].double()
        assert series_distances.min() == 6
        assert series_distances.mean() == pytest.approx(6 + 2 * 6 - 0.5, abs=0.4)
    assert distances[series == 1].max() == 36


def test_a_series_shorter_than_the_horizon_is_sampled_uniformly() -> None:
    cutoffs = make_cutoff_index(7)
    indices = cutoffs.sample(500, torch.Generator().manual_seed(0), recent=1.0, horizon=6)
    assert sorted(set(indices.tolist())) == [0, 1, 2]


@pytest.mark.parametrize("scaling", ["standard", "last", "mean_abs", "none"])
def test_errors_are_weighted_by_the_seasonal_naive_error(scaling: str) -> None:
    """An untrained network repeats the last value, so its weighted loss is the mean of |y - last| over the seasonal error."""
    spec = make_fit_spec({"scaling": scaling, "base": "last"}, weighting="seasonal_error", valid_windows=0, batch=64)
    panel = Panel([make_series(make_wave(64)), make_series(30 * make_wave(64, seed=1), name="b")], "h")
    network = build_network(spec, seed=0)
    data = WindowDataModule(panel, spec, network, EMPTY_ENCODING, season=4)
    data.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    example = next(iter(data.train_dataloader()))
    loss = compute_loss(network, prepare_batches(network, example, batch_size=64)[0]).detach()
    actuals = example.future[:64]
    last = example.window.values[:64, -1:]
    errors = torch.tensor([seasonal_error(series.y, season=4) for series in panel.series])
    series_index = (last[:, 0] > 5).long()
    expected = ((actuals - last).abs() / errors[series_index][:, None]).nanmean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_with_log_scaling_errors_are_weighted_by_the_level_of_the_row() -> None:
    values = torch.tensor([[90.0, 110.0, 100.0], [9e6, 1.1e7, 1e7]], dtype=torch.float64)
    scale = measure_scale(values, "last", transform="log")
    change = scale.undo(torch.full((2, 1), 0.01))[:, 0] - values[:, -1]
    torch.testing.assert_close(scale.unit, change / 0.01, rtol=1e-3, atol=0.0)
    assert scale.unit.tolist() == pytest.approx([10.0, 1e6], rel=0.01)  # a tenth of the level


@pytest.mark.parametrize("scaling", ["none", "last", "standard", "level_season"])
def test_the_log_transform_is_inverted_for_all_values(scaling: Any) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 24)) * np.array([1e-12, 1.0, 1e12, 3.0, 0.0, 1.0])[:, None]
    values[3, ::2] = 0.0
    values[5] = 7.0
    values = torch.from_numpy(values)
    scale = measure_scale(values, scaling, season=4, transform="log")
    restored = scale.undo(scale.apply(values))
    max_abs = values.abs().amax(1, keepdim=True)
    assert ((restored - values).abs() <= 1e-5 * max_abs).all()
    assert torch.isfinite(scale.apply(values)).all()


def test_multiplicative_seasonality_is_a_profile_in_log_space() -> None:
    clock = np.arange(40)
    y = torch.from_numpy(100 * 1.02**clock * np.array([0.5, 1.0, 2.0, 1.0])[clock % 4])[None]
    log_scale, plain_scale = (
        measure_scale(y, "level_season", season=4, transform=transform) for transform in ("log", "none")
    )  # type: ignore[arg-type]
    expected = np.log([0.5, 1.0, 2.0, 1.0])
    np.testing.assert_allclose(log_scale.profile[0], expected - expected.mean(), atol=0.02)
    forecast = log_scale.undo(torch.zeros(1, 44))[0, 40:]
    assert float((forecast / forecast.mean())[2]) == pytest.approx(2 / 1.125, rel=0.03)
    assert plain_scale.size.shape == (1, 0)


def test_options_incompatible_with_log_scaling_are_rejected() -> None:
    with pytest.raises(BadSpec, match="mean_abs"):
        make_spec(transform="log", scaling="mean_abs")
    with pytest.raises(BadSpec, match="counts"):
        make_spec(transform="log", scaling="none", head={"kind": "neg_binomial"})
    with pytest.raises(BadSpec, match="refit"):
        make_spec(training={"refit": True, "valid_windows": 0})


def test_a_refit_uses_all_data_for_the_best_number_of_steps() -> None:
    spec = make_fit_spec(refit=True, **TRAINING_OPTIONS)
    fitted = fit(PANEL, spec, accelerator="cpu")
    fitted = fitted._replace(model=calibrate_model(fitted.model, PANEL, windows=2))
    refitted = refit(PANEL, fitted, accelerator="cpu")
    assert refitted.spec == spec
    assert refitted.calibration is fitted.model.calibration
    assert not have_equal_weights(refitted, fitted.model)
    reference_spec = make_fit_spec(**TRAINING_OPTIONS, steps=fitted.best_steps) if fitted.best_steps else spec
    reference_spec = reference_spec.model_copy(
        update={"training": reference_spec.training.model_copy(update={"valid_windows": 0})}
    )
    assert have_equal_weights(refitted, fit(PANEL, reference_spec, accelerator="cpu").model)
    assert np.isfinite(Predictor(refitted).forecast(PANEL.series[0], 5, levels=[0.1, 0.9]).mean).all()


@pytest.mark.parametrize("members", [1, 2])
def test_an_interrupted_refit_resumes_and_the_completed_fit_is_not_repeated(members: int, tmp_path: Path) -> None:
    spec = make_fit_spec({"members": members}, refit=True, epoch_steps=2, **TRAINING_OPTIONS)
    fitted = fit(PANEL, spec, checkpoint=tmp_path / "last.ckpt", accelerator="cpu")
    assert fitted.best_steps > 4, "otherwise the refit would end before it is stopped"
    refitted = refit(PANEL, fitted, accelerator="cpu")
    with pytest.raises(RuntimeError, match="stopped"):
        refit(PANEL, fitted, checkpoint=tmp_path / "whole.ckpt", callbacks=[StopAtEpoch()], accelerator="cpu")
    repeated = fit(PANEL, spec, checkpoint=tmp_path / "last.ckpt", accelerator="cpu")
    assert repeated.resumed_steps == repeated.steps == spec.training.steps
    assert repeated.best_steps == fitted.best_steps
    assert have_equal_weights(repeated.model, fitted.model)
    assert have_equal_weights(refit(PANEL, repeated, checkpoint=tmp_path / "whole.ckpt", accelerator="cpu"), refitted)


def test_a_fit_starts_from_the_given_weights() -> None:
    spec = make_fit_spec(learning_rate=1e-9)
    initial = fit(PANEL, make_fit_spec(), accelerator="cpu").model
    warm = fit(PANEL, spec, initial=initial, accelerator="cpu").model
    for name, value in copy_weights(warm).items():
        torch.testing.assert_close(value, copy_weights(initial)[name], rtol=0.0, atol=1e-6)
    assert len({fit_digest(PANEL, spec), fit_digest(PANEL, spec, initial), fit_digest(PANEL, spec, warm)}) == 3
    other = make_spec(decoder="direct", layers=2, training=TRAINING)
    with pytest.raises(BadSpec, match="recurrent") as raised:
        fit(PANEL, other, initial=initial, accelerator="cpu")
    assert "initial weights" in str(raised.value)

"""Members: each is trained as it would be alone, and the forecast is their median."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forecaster.bundle import artifact
from forecaster.data.windows import Example, Window
from forecaster.engines.engine import EnsembleEngine, RolloutInput, ensemble_median
from forecaster.errors import NonFiniteLoss
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.rolling_origins import forecast_all_origins
from forecaster.model.regressor import build_network
from forecaster.prediction.engine_choice import build_onnx_engine
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.spec import Spec
from forecaster.training.fit import FitResult, fit
from forecaster.training.loss import compute_loss, prepare_batches
from forecaster.training.members import StackedNetworks
from forecaster.training.optimizer import FusedAdam, clip_gradient_norm, run_optimizer_steps
from tests.factories import make_panel, make_series, make_spec, make_wave

pytestmark = pytest.mark.integration

PANEL = make_panel(make_wave(60), 4 * make_wave(50, seed=1), make_wave(40, seed=2))
TRAINING = {"steps": 6, "epoch_steps": 3, "batch": 8, "learning_rate": 0.02, "valid_windows": 2}


def fit_members(checkpoint: Path | None = None, callbacks: Any = (), **fields: Any) -> FitResult:
    spec = make_spec(**{"members": 3, "training": TRAINING} | fields)
    return fit(PANEL, spec, checkpoint=checkpoint, callbacks=callbacks, accelerator="cpu")


@pytest.fixture(scope="module")
def three_members() -> FittedModel:
    return fit_members(head={"kind": "gaussian"}).model


def keep_one_member(model: FittedModel, member: int) -> Predictor:
    spec = Spec.parse(model.spec.model_dump() | {"members": 1}, where="one")
    fields = (spec, model.freq, model.season, model.cutoff, model.encoding)
    return Predictor(FittedModel(*fields, model.networks[member]))


def make_batches(steps: int, rows: int, spec: Spec) -> Example:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(steps * rows, spec.context + 1)).cumsum(axis=1)
    values[::5, :3] = np.nan
    values[3, 6] = np.nan
    return Example(Window(torch.from_numpy(values[:, :-1])), torch.from_numpy(values[:, -1:]))


@pytest.mark.parametrize("cell", ["gru", "lstm", "elman"])
@pytest.mark.parametrize("fields", [{}, {"static": ("kind",), "network": {"layers": 2, "residual": True}}])
def test_members_trained_together_equal_members_trained_alone(cell: str, fields: dict[str, Any]) -> None:
    network = {"cell": cell, "hidden": 6} | fields.get("network", {})
    spec = make_spec(**fields | {"network": network})
    cardinalities = (4,) * len(spec.static)
    networks = [build_network(spec, seed=seed, static_cardinalities=cardinalities) for seed in range(3)]
    singles = [build_network(spec, seed=seed, static_cardinalities=cardinalities) for seed in range(3)]
    example = make_batches(4 * 3, 5, spec)
    if cardinalities:
        static = torch.arange(len(example.future))[:, None] % 5
        example = example._replace(window=example.window._replace(static=static))
    stacked = StackedNetworks(networks)
    losses = run_optimizer_steps(
        FusedAdam(stacked.parameters(), learning_rate=0.02),
        stacked.losses,
        prepare_batches(networks[0], example, batch_size=5, num_members=3),
        partial(stacked.clip_gradient_norm, max_norm=0.5),
    )
    stacked.copy_weights_to(networks)
    batches = prepare_batches(networks[0], example, batch_size=5)
    for member, single in enumerate(singles):
        optimizer = FusedAdam(single.parameters(), learning_rate=0.02)
        single_losses = run_optimizer_steps(
            optimizer, partial(compute_loss, single), batches[member::3], partial(clip_gradient_norm, max_norm=0.5)
        )
        torch.testing.assert_close(losses[:, member], single_losses, rtol=1e-4, atol=1e-5)
        for name, weight in single.state_dict().items():
            torch.testing.assert_close(networks[member].state_dict()[name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_members_differ_and_the_forecast_is_their_median(three_members: FittedModel) -> None:
    series = make_series(make_wave(30, seed=5))
    member_means = np.stack([keep_one_member(three_members, member).forecast(series, 9).mean for member in range(3)])
    assert len({tuple(path) for path in member_means}) == 3
    np.testing.assert_allclose(
        Predictor(three_members).forecast(series, 9).mean, np.median(member_means, axis=0), rtol=1e-12
    )


def test_the_first_member_starts_like_a_single_network(three_members: FittedModel) -> None:
    assert len(three_members.networks) == three_members.spec.members == 3
    assert len(fit_members(members=1).model.networks) == 1


def test_a_bundle_keeps_all_members(three_members: FittedModel, tmp_path: Path) -> None:
    artifact.save_bundle(three_members, tmp_path / "bundle", card="")
    loaded = artifact.load_bundle(tmp_path / "bundle")
    series = make_series(make_wave(30, seed=5))
    expected = Predictor(three_members).forecast(series, 9).mean
    assert np.array_equal(Predictor(loaded).forecast(series, 9).mean, expected)
    assert len(loaded.onnx_models) == 3
    engine = build_onnx_engine(loaded)
    assert isinstance(engine, EnsembleEngine)
    np.testing.assert_allclose(
        Predictor(loaded, engine=engine).forecast(series, 9).mean, expected, rtol=1e-5, atol=1e-5
    )


def test_sample_paths_are_split_among_the_members(three_members: FittedModel) -> None:
    series = make_series(make_wave(30, seed=5))
    [paths] = Predictor(three_members).sample_batch([series], 9, paths=7, seed=3)
    [repeated] = Predictor(three_members).sample_batch([series], 9, paths=7, seed=3)
    assert isinstance(paths, np.ndarray)
    assert paths.shape == (7, 9)
    assert np.array_equal(paths, repeated)
    for member in range(3):
        [member_paths] = keep_one_member(three_members, member).sample_batch([series], 9, paths=7, seed=3)
        np.testing.assert_allclose(paths[member::3], member_paths[member::3], rtol=1e-5, atol=1e-5)


def test_predicting_all_origins_with_members_equals_predicting_each(three_members: FittedModel) -> None:
    predictor = Predictor(three_members)
    result = backtest(
        PANEL, {"single": lambda *arguments: predictor.forecast_batch(*arguments)}, horizon=4, windows=3, season=4
    )
    forecasts = forecast_all_origins(predictor, result.series, horizon=4, windows=3)
    np.testing.assert_allclose(forecasts, result.forecasts["single"], rtol=1e-5, atol=1e-5)


def test_the_median_ignores_non_finite_members() -> None:
    forecasts = np.array([[1.0, np.nan, np.nan], [5.0, 2.0, np.inf], [2.0, 4.0, np.nan]])
    assert np.array_equal(ensemble_median(forecasts), [2.0, 3.0, np.nan], equal_nan=True)


def test_a_history_shared_by_all_paths_is_broadcast_to_every_member() -> None:
    class EchoEngine:
        can_sample = True

        def roll_out(self, inputs: RolloutInput, *, horizon: int, noise: Any = None) -> np.ndarray:
            return np.repeat(noise.reshape(len(noise), -1)[:, :1] * 10 + len(inputs.values), horizon, axis=1)

    noise = np.arange(5.0)[:, None, None]
    result = EnsembleEngine([EchoEngine(), EchoEngine()]).roll_out(
        RolloutInput(np.zeros((1, 4))), horizon=2, noise=noise
    )
    assert result[:, 0].tolist() == [1.0, 11.0, 21.0, 31.0, 41.0]
    result = EnsembleEngine([EchoEngine(), EchoEngine()]).roll_out(
        RolloutInput(np.zeros((5, 4))), horizon=2, noise=noise
    )
    assert result[:, 0].tolist() == [3.0, 12.0, 23.0, 32.0, 43.0]


def test_a_member_fit_resumed_after_a_crash_gives_identical_weights(tmp_path: Path) -> None:
    from forecaster.training.lightning import pl

    class CrashCallback(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 1:
                raise RuntimeError("crash")

    fields = {"layers": 2, "dropout": 0.4}
    uninterrupted, checkpoint = fit_members(**fields), tmp_path / "last.ckpt"
    with pytest.raises(RuntimeError, match="crash"):
        fit_members(checkpoint, callbacks=[CrashCallback()], **fields)
    resumed = fit_members(checkpoint, **fields)
    assert resumed.resumed_steps == 3
    assert resumed.scores == uninterrupted.scores
    for actual, expected in zip(resumed.model.networks, uninterrupted.model.networks, strict=True):
        assert all(torch.equal(value, expected.state_dict()[name]) for name, value in actual.state_dict().items())


def test_a_non_finite_loss_in_one_member_stops_the_fit() -> None:
    from forecaster.training.lightning import pl

    class NanMemberCallback(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            weight = next(iter(pl_module.network.parameters()))
            with torch.no_grad():
                weight[1].fill_(torch.nan)

    with pytest.raises(NonFiniteLoss):
        fit_members(callbacks=[NanMemberCallback()])

"""Members: each is trained as it would be alone, and what they say together is their median."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forecaster.bundle import artifact
from forecaster.data.windows import Example, Window
from forecaster.engines.engine import Known, Together, median
from forecaster.errors import NonFiniteLoss
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.rolling_origins import all_origins
from forecaster.model.regressor import build
from forecaster.prediction.predictor import Forecaster, Predictor, graph_engine
from forecaster.spec import Spec
from forecaster.training.fit import Fitted, fit
from forecaster.training.loss import lessons, loss_of
from forecaster.training.members import SideBySide
from forecaster.training.optimizer import Adam, clip_norm, descend
from tests.factories import make_spec, one_series, panel_of, wave

PANEL = panel_of(wave(60), 4 * wave(50, seed=1), wave(40, seed=2))
TRAINING = {"steps": 6, "epoch_steps": 3, "batch": 8, "learning_rate": 0.02, "valid_windows": 2}


def fitted(checkpoint: Path | None = None, callbacks: Any = (), **fields: Any) -> Fitted:
    spec = make_spec(**{"members": 3, "training": TRAINING} | fields)
    return fit(PANEL, spec, checkpoint=checkpoint, callbacks=callbacks, accelerator="cpu")


@pytest.fixture(scope="module")
def three() -> Forecaster:
    return fitted(head={"kind": "gaussian"}).forecaster


def alone(forecaster: Forecaster, member: int) -> Predictor:
    spec = Spec.parse(forecaster.spec.model_dump() | {"members": 1}, where="one")
    fields = (spec, forecaster.freq, forecaster.season, forecaster.cutoff, forecaster.encoding)
    return Predictor(Forecaster(*fields, forecaster.networks[member]))


def batches(steps: int, rows: int, spec: Spec) -> Example:
    draw = np.random.default_rng(0)
    values = draw.normal(size=(steps * rows, spec.context + 1)).cumsum(axis=1)
    values[::5, :3] = np.nan
    values[3, 6] = np.nan
    return Example(Window(torch.from_numpy(values[:, :-1])), torch.from_numpy(values[:, -1:]))


@pytest.mark.parametrize("cell", ["gru", "lstm", "elman"])
@pytest.mark.parametrize("fields", [{}, {"static": ("kind",), "network": {"layers": 2, "residual": True}}])
def test_side_by_side_every_member_learns_what_it_learns_alone(cell: str, fields: dict[str, Any]) -> None:
    network = {"cell": cell, "hidden": 6} | fields.get("network", {})
    spec = make_spec(**fields | {"network": network})
    groups = (4,) * len(spec.static)
    networks = [build(spec, seed=seed, groups=groups) for seed in range(3)]
    twins = [build(spec, seed=seed, groups=groups) for seed in range(3)]
    example = batches(4 * 3, 5, spec)
    if groups:
        static = torch.arange(len(example.future))[:, None] % 5
        example = example._replace(window=example.window._replace(static=static))
    together = SideBySide(networks)
    losses = descend(
        Adam(together.parameters(), learning_rate=0.02),
        together.losses,
        lessons(networks[0], example, batch=5, members=3),
        partial(together.clip_norm, largest=0.5),
    )
    together.fill(networks)
    each = lessons(networks[0], example, batch=5)
    for number, twin in enumerate(twins):
        optimizer = Adam(twin.parameters(), learning_rate=0.02)
        found = descend(optimizer, partial(loss_of, twin), each[number::3], partial(clip_norm, largest=0.5))
        torch.testing.assert_close(losses[:, number], found, rtol=1e-4, atol=1e-5)
        for name, weight in twin.state_dict().items():
            torch.testing.assert_close(networks[number].state_dict()[name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_members_differ_and_their_median_is_the_forecast(three: Forecaster) -> None:
    one = one_series(wave(30, seed=5))
    each = np.stack([alone(three, member).forecast(one, 9).mean for member in range(3)])
    assert len({tuple(path) for path in each}) == 3
    np.testing.assert_allclose(Predictor(three).forecast(one, 9).mean, np.median(each, axis=0), rtol=1e-12)


def test_the_first_member_starts_as_a_network_alone_would(three: Forecaster) -> None:
    assert len(three.networks) == three.spec.members == 3
    assert len(fitted(members=1).forecaster.networks) == 1


def test_a_bundle_keeps_all_members(three: Forecaster, tmp_path: Path) -> None:
    artifact.save(three, tmp_path / "bundle", card="")
    loaded = artifact.load(tmp_path / "bundle")
    one = one_series(wave(30, seed=5))
    expected = Predictor(three).forecast(one, 9).mean
    assert np.array_equal(Predictor(loaded).forecast(one, 9).mean, expected)
    assert len(loaded.graphs) == 3
    engine = graph_engine(loaded)
    assert isinstance(engine, Together)
    np.testing.assert_allclose(Predictor(loaded, engine=engine).forecast(one, 9).mean, expected, rtol=1e-5, atol=1e-5)


def test_paths_are_shared_among_the_members(three: Forecaster) -> None:
    one = one_series(wave(30, seed=5))
    [paths] = Predictor(three).sample_each([one], 9, paths=7, seed=3)
    [again] = Predictor(three).sample_each([one], 9, paths=7, seed=3)
    assert isinstance(paths, np.ndarray)
    assert paths.shape == (7, 9)
    assert np.array_equal(paths, again)
    for member in range(3):
        [own] = alone(three, member).sample_each([one], 9, paths=7, seed=3)
        np.testing.assert_allclose(paths[member::3], own[member::3], rtol=1e-5, atol=1e-5)


def test_all_origins_of_members_are_those_of_asking_at_each(three: Forecaster) -> None:
    predictor = Predictor(three)
    result = backtest(PANEL, {"asked": lambda *ask: predictor.forecast_each(*ask)}, horizon=4, windows=3, season=4)
    found = all_origins(predictor, result.series, horizon=4, windows=3)
    np.testing.assert_allclose(found, result.forecasts["asked"], rtol=1e-5, atol=1e-5)


def test_the_median_leaves_out_what_is_not_finite() -> None:
    told = np.array([[1.0, np.nan, np.nan], [5.0, 2.0, np.inf], [2.0, 4.0, np.nan]])
    assert np.array_equal(median(told), [2.0, 3.0, np.nan], equal_nan=True)


def test_one_row_that_all_paths_share_is_shown_to_every_member() -> None:
    class Echo:
        draws = True

        def roll(self, known: Known, *, horizon: int, noise: Any = None) -> np.ndarray:
            return np.repeat(noise.reshape(len(noise), -1)[:, :1] * 10 + len(known.values), horizon, axis=1)

    noise = np.arange(5.0)[:, None, None]
    told = Together([Echo(), Echo()]).roll(Known(np.zeros((1, 4))), horizon=2, noise=noise)
    assert told[:, 0].tolist() == [1.0, 11.0, 21.0, 31.0, 41.0]
    told = Together([Echo(), Echo()]).roll(Known(np.zeros((5, 4))), horizon=2, noise=noise)
    assert told[:, 0].tolist() == [3.0, 12.0, 23.0, 32.0, 43.0]


def test_a_fit_of_members_goes_on_after_a_crash_to_the_very_weights(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    class Crash(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 1:
                raise RuntimeError("crash")

    deep = {"layers": 2, "dropout": 0.4}
    whole, checkpoint = fitted(**deep), tmp_path / "last.ckpt"
    with pytest.raises(RuntimeError, match="crash"):
        fitted(checkpoint, callbacks=[Crash()], **deep)
    resumed = fitted(checkpoint, **deep)
    assert resumed.steps_before == 3
    assert resumed.scores == whole.scores
    for one, other in zip(resumed.forecaster.networks, whole.forecaster.networks, strict=True):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_loss_that_is_not_finite_in_one_member_stops_all() -> None:
    import pytorch_lightning as pl

    class Spoil(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            weight = next(iter(pl_module.network.parameters()))
            with torch.no_grad():
                weight[1].fill_(torch.nan)

    with pytest.raises(NonFiniteLoss):
        fitted(callbacks=[Spoil()])

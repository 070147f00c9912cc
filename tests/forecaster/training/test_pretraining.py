"""Pretraining: its batches, the weights of its targets, and processes that are killed."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from forecaster.errors import CheckpointMismatch, NonFiniteLoss
from forecaster.spec import NetworkSpec
from forecaster.training.loss import compute_loss
from forecaster.training.pretraining import run as pretraining
from forecaster.training.pretraining.module import PretrainingOptions, SyntheticBatches, draw_group
from forecaster.training.pretraining.networks import (
    FAR_WEIGHT,
    BaseNetworks,
    SyntheticSeries,
    choose_origins,
    prepare_pretraining_batch,
)
from tests.system.processes import CHECKOUT, make_environment, wait_until

TINY = PretrainingOptions(
    steps=6,
    epoch_steps=2,
    segments=64,
    origins=2,
    network=NetworkSpec(cell="lstm", layers=1, hidden=8, residual=True, embed=True),
)
FIELDS = {"network": TINY.network.model_dump()}


@pytest.fixture
def _few_range_series(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learns the ranges of shapes from few series; no weight depends on them."""
    monkeypatch.setattr(pretraining, "_RANGE_SERIES", 200)


def read_batches(options: PretrainingOptions, *, first_step: int, steps: int) -> list[tuple[int, SyntheticSeries]]:
    return list(SyntheticBatches(options, first_step=first_step, steps=steps))


def test_batches_depend_on_the_seed_and_the_step_only() -> None:
    longer = TINY.model_copy(update={"steps": 500, "epoch_steps": 7, "network": NetworkSpec(hidden=3)})
    whole, part = read_batches(TINY, first_step=0, steps=20), read_batches(longer, first_step=15, steps=5)
    assert [season for season, _ in part] == [season for season, _ in whole[15:]]
    for (_, series), (_, expected) in zip(part, whole[15:], strict=True):
        np.testing.assert_array_equal(series.values, expected.values)
        np.testing.assert_array_equal(series.origins, expected.origins)
    other = read_batches(TINY.model_copy(update={"seed": 1}), first_step=0, steps=1)[0][1]
    assert other.values.shape != whole[0][1].values.shape or (other.values != whole[0][1].values).any()


def test_the_networks_of_all_seasons_share_their_weights() -> None:
    networks = BaseNetworks(seed=0, fields=FIELDS)
    shared = dict(networks.shared.named_parameters())
    for season in (1, 4, 24, 5):
        parameters = dict(networks.for_season(season).named_parameters())
        assert parameters.keys() == shared.keys()
        assert all(parameters[name] is shared[name] for name in shared)
    assert networks.for_season(24) is networks.for_season(24)
    assert len(list(networks.parameters())) == len(shared), "the weights of other seasons are not counted again"


def test_origins_are_drawn_after_the_first_seasons_and_include_the_last() -> None:
    rng = np.random.default_rng(0)
    drawn = [choose_origins(rng, segments=30, first=5, count=4) for _ in range(50)]
    for origins in drawn:
        assert origins[-1] == 29
        assert len(origins) in (4, 5)
        assert (np.diff(origins) > 0).all()
    assert set(itertools.chain.from_iterable(map(list, drawn))) == set(range(5, 30))
    assert list(choose_origins(rng, segments=4, first=9, count=3)) == [3], "a short history has its last segment"


def prepare_waves(future_edit: tuple[int, float] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns targets and weights, "row step", after the last segment of two monthly waves; one value may be replaced."""
    network = BaseNetworks(seed=0, fields=FIELDS).for_season(12)
    steps = np.arange(60 + network.block)
    noise = np.random.default_rng(0).normal(size=(2, len(steps)))
    values = np.sin(2 * np.pi * steps / 12) + 0.3 * noise
    if future_edit is not None:
        values[1, 60 + future_edit[0]] = future_edit[1]
    last = np.array([60 // network.segment - 1])
    batch = prepare_pretraining_batch(network, SyntheticSeries(values.astype(np.float32), last))
    return batch.target, batch.weight


def test_steps_beyond_two_seasons_count_less() -> None:
    target, weight = prepare_waves()
    assert target.shape == weight.shape == (2, 48)
    assert weight.sum().item() == pytest.approx(1.0)
    np.testing.assert_allclose(weight[:, 24:] / weight[0, 0], FAR_WEIGHT, rtol=1e-5)
    np.testing.assert_allclose(weight[:, :24], weight[0, 0], rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, 1e7])
def test_missing_and_far_off_targets_are_left_out(value: float) -> None:
    target, weight = prepare_waves((3, value))
    assert weight[1, 3] == 0
    assert (weight > 0).sum() == weight.numel() - 1
    assert weight.sum().item() == pytest.approx(1.0)
    assert target[weight > 0].isfinite().all()


@pytest.mark.usefixtures("_few_range_series")
def test_the_loss_on_other_series_falls() -> None:
    options = TINY.model_copy(update={"steps": 24, "epoch_steps": 12, "learning_rate": 5e-3})
    result = pretraining.pretrain(options, accelerator="cpu")

    def measure(weights: dict[str, torch.Tensor]) -> float:
        networks = BaseNetworks(seed=options.seed, fields=FIELDS)
        networks.shared.load_state_dict(weights)
        with torch.no_grad():
            losses = [
                compute_loss(network, prepare_pretraining_batch(network, series))
                for season, series in draw_group(options, 10**6)[:4]
                for network in [networks.for_season(season)]
            ]
        return float(torch.stack(losses).mean())

    initial = BaseNetworks(seed=options.seed, fields=FIELDS).shared.state_dict()
    assert measure(result.model.network.state_dict()) < measure(initial)
    assert result.model.facts["pretraining"] == options.model_dump(mode="json")
    assert result.model.facts["steps"] == result.steps == 24
    assert result.model.facts["cpu_seconds"] > 0


@pytest.mark.usefixtures("_few_range_series")
def test_a_loss_that_is_not_finite_stops_the_pretraining(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss, match="learning rate"):
        pretraining.pretrain(
            TINY.model_copy(update={"learning_rate": 1e30}), checkpoint=tmp_path / "last.ckpt", accelerator="cpu"
        )
    assert not (tmp_path / "last.ckpt").exists(), "the state of that epoch is not kept"


@pytest.mark.usefixtures("_few_range_series")
def test_a_checkpoint_of_other_options_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "last.ckpt"
    first = pretraining.pretrain(TINY, checkpoint=checkpoint, accelerator="cpu")
    again = pretraining.pretrain(TINY, checkpoint=checkpoint, accelerator="cpu")
    assert again.resumed_steps == again.steps == first.steps == TINY.steps
    assert again.cpu_seconds > first.cpu_seconds / 2 > 0, "the seconds of the first process count"
    for name, weight in first.model.network.state_dict().items():
        torch.testing.assert_close(again.model.network.state_dict()[name], weight, rtol=0, atol=0)
    with pytest.raises(CheckpointMismatch):
        pretraining.pretrain(TINY.model_copy(update={"seed": 1}), checkpoint=checkpoint, accelerator="cpu")


_PROGRAM = """
import sys, time, torch
from pathlib import Path
from forecaster.training.lightning import pl
from forecaster.training.pretraining.run import pretrain
from forecaster.training.pretraining.module import PretrainingOptions
torch.set_num_threads(1)
options = PretrainingOptions.model_validate_json(sys.argv[1])
slow = pl.callbacks.LambdaCallback(on_train_batch_end=lambda *_: time.sleep(0.3))
pretrain(options, checkpoint=Path(sys.argv[2]), callbacks=[slow], accelerator="cpu")
"""


@pytest.mark.integration
@pytest.mark.usefixtures("_few_range_series")
def test_a_killed_pretraining_resumes_to_the_same_weights(tmp_path: Path) -> None:
    options, checkpoint = TINY.model_copy(update={"steps": 10, "epoch_steps": 1}), tmp_path / "last.ckpt"
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, options.model_dump_json(), str(checkpoint)],
        cwd=CHECKOUT,
        env=make_environment(),
    )
    try:
        wait_until(lambda: checkpoint.exists() or process.poll() is not None, pause=0.005)
    finally:
        process.kill()
        assert process.wait(20) == -signal.SIGKILL
    resumed = pretraining.pretrain(options, checkpoint=checkpoint, accelerator="cpu")
    assert 0 < resumed.resumed_steps < options.steps
    uninterrupted = pretraining.pretrain(options, accelerator="cpu")
    assert resumed.loss == uninterrupted.loss
    for name, weight in uninterrupted.model.network.state_dict().items():
        torch.testing.assert_close(resumed.model.network.state_dict()[name], weight, rtol=0, atol=0)

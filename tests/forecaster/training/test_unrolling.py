"""Unrolled training: beside what follows the truth, the network is asked for what follows its own output, as it is used."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from forecaster.data.encoding import PLAIN
from forecaster.data.windows import Example, Window
from forecaster.errors import BadSpec
from forecaster.model.regressor import Regressor, build
from forecaster.model.rollout import roll, warm_up
from forecaster.spec import Spec
from forecaster.training.datamodule import Windows
from forecaster.training.fit import Fitted, fit
from forecaster.training.loss import lessons, loss_of, teacher_forced_loss
from forecaster.training.members import SideBySide
from forecaster.training.optimizer import Adam, clip_norm, descend, unrolled
from tests.factories import make_spec, panel_of, wave
from tests.laws.test_every_combination import HEADS, networks, windows

PANEL = panel_of(wave(60), 4 * wave(50, seed=1), wave(40, seed=2))
TRAINING = {"steps": 12, "epoch_steps": 3, "batch": 8, "learning_rate": 0.02, "valid_windows": 2, "unroll": 4}
BLOCKS = 5


def example_of(network: Regressor, *, blocks: int = BLOCKS) -> Example:
    """Four rows, one that begins late, one with a gap, and what came, with gaps in it."""
    window, ahead = windows(network)
    steps = blocks * network.block
    future = 30 + torch.arange(4.0)[:, None].double() + 5 * torch.sin(torch.arange(steps).double())[None]
    future[0, 1] = torch.nan
    future[2, steps // 2 :] = torch.nan
    future[3] *= 50
    ahead = torch.nn.functional.pad(ahead, (0, 0, 0, max(0, steps - ahead.shape[1])))[:, :steps]
    return Example(window, future.round(), ahead)


def near(example: Example, network: Regressor) -> Example:
    ahead = None if example.ahead is None else example.ahead[:, : network.block]
    return example._replace(future=example.future[:, : network.block], ahead=ahead)


def free_running_loss(network: Regressor, example: Example) -> Tensor:
    """The mean of the head's loss over a rollout, block by block by `roll`, each from the memory after the one before."""
    memory = warm_up(network, example.window)
    target = memory.scale.apply(example.future, time=memory.time)
    counts, losses, block = memory.begun[:, None] & ~target.isnan(), [], network.block
    for first in range(0, target.shape[1], block):
        span = slice(first, first + block)
        known = None if example.ahead is None else example.ahead[:, span]
        params = network.decode(memory.output, memory.recent, known)
        losses.append(network.head.loss(params, target[:, span].nan_to_num(0.0)))
        _, memory = roll(network, memory, horizon=block, ahead=known)
    return torch.cat(losses, dim=1)[counts].mean()


@pytest.mark.parametrize("cell", ["gru", "lstm", "elman"])
@pytest.mark.parametrize("head", HEADS)
def test_half_of_the_loss_is_that_of_the_rollout(head: str, cell: str) -> None:
    for network in networks(cell, head, "rollout"):
        example = example_of(network)
        [lesson] = lessons(network, example, batch=4, unrolled=[BLOCKS])
        forced, free = teacher_forced_loss(network, near(example, network)), free_running_loss(network, example)
        torch.testing.assert_close(loss_of(network, lesson), (forced + free) / 2, rtol=1e-5, atol=1e-5)


def with_channels(segment: int) -> tuple[Regressor, Example]:
    """Two channels, one of which is never observed in one row, and covariates."""
    fields = {"channels": ("p", "q"), "lags": (6,), "base": "last", "min_history": None, "context": 12}
    network = build(make_spec(segment=segment, **fields), seed=0, covariates=2)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.3, generator=torch.Generator().manual_seed(weight.numel()))
    draw, (rows, steps) = np.random.default_rng(3), (4, network.lead + 12)
    values, beside = 5 + draw.normal(size=(rows, steps)), draw.normal(size=(rows, steps, 2))
    beside[2, :, 1] = np.nan
    columns = torch.from_numpy(draw.normal(size=(rows, steps + BLOCKS * segment, 2))).float()
    window = Window(torch.from_numpy(values), columns[:, :steps], channels=torch.from_numpy(beside))
    future = torch.from_numpy(draw.normal(size=(3 * rows, BLOCKS * segment)))
    return network, Example(window, future, columns[:, steps:])


@pytest.mark.parametrize("segment", [1, 3])
def test_channels_are_unrolled_with_y(segment: int) -> None:
    network, example = with_channels(segment)
    [lesson] = lessons(network, example, batch=4, unrolled=[BLOCKS])
    forced, free = teacher_forced_loss(network, near(example, network)), free_running_loss(network, example)
    torch.testing.assert_close(loss_of(network, lesson), (forced + free) / 2, rtol=1e-5, atol=1e-5)


def test_an_error_counts_in_units_of_the_seasonal_naives_after_the_window_too() -> None:
    [network, *_] = networks("gru", "point", "rollout")
    example = example_of(network)
    doubled = example._replace(error=torch.full((4,), 2.0).double())
    for one, k in ((network, 0), (network, BLOCKS)):
        unit = warm_up(one, example.window).scale.unit
        halves = example._replace(error=unit)  # one scaled unit is one of these: all as without
        [plain], [same] = (lessons(one, each, batch=4, unrolled=[k]) for each in (example, halves))
        torch.testing.assert_close(loss_of(one, plain), loss_of(one, same))
    [weighed] = lessons(network, doubled, batch=4, unrolled=[BLOCKS])
    [plain] = lessons(network, example, batch=4, unrolled=[BLOCKS])
    assert weighed.beyond is not None
    assert plain.beyond is not None
    times = (warm_up(network, example.window).scale.unit / 2).clamp(max=100.0).square().float()
    torch.testing.assert_close(weighed.beyond.weight, plain.beyond.weight * times[:, None])


@pytest.mark.parametrize("cell", ["gru", "lstm", "elman"])
def test_the_gradient_goes_back_through_all_that_was_fed(cell: str) -> None:
    """Along the gradient of each weight the loss grows as the gradient says (central differences)."""
    spec = make_spec(cell=cell, scaling="standard", lags=(2,))
    network = build(spec, seed=0).train()
    steps = network.lead + spec.context
    values = torch.from_numpy(np.stack([wave(steps + 8, seed=seed) for seed in range(3)]))
    example = Example(Window(values[:, :steps]), values[:, steps:])
    [lesson] = lessons(network, example, batch=3, unrolled=[8])
    free = lesson._replace(weight=torch.zeros_like(lesson.weight))
    gradients = torch.autograd.grad(loss_of(network, free), list(network.parameters()), materialize_grads=True)
    checked = 0
    for weight, gradient in zip(network.parameters(), gradients, strict=True):
        if not gradient.numel() or not gradient.norm():
            continue
        far = 0.02 * gradient / gradient.norm()
        with torch.no_grad():
            up, down = (loss_of(network, free) for weight.data in (weight.data + far, weight.data - far))
            weight.data += far
        slope = (up - down) / 0.04
        torch.testing.assert_close(slope, gradient.norm(), rtol=2e-2, atol=1e-5)
        checked += 1
    assert checked == 6


def test_where_nothing_is_unrolled_a_lesson_is_what_it_was() -> None:
    for network in networks("lstm", "gaussian", "rollout"):
        example = example_of(network)
        [before] = lessons(network, near(example, network), batch=4)
        for [lesson] in (lessons(network, example, batch=4), lessons(network, example, batch=4, unrolled=[0])):
            assert lesson.beyond is None
            for part, other in zip(lesson, before, strict=True):
                assert (part is None and other is None) or torch.equal(part, other)  # type: ignore[arg-type]


def test_each_lesson_is_unrolled_as_far_as_it_is_told() -> None:
    [network, *_] = networks("gru", "point", "rollout")
    example = example_of(network)
    assert example.ahead is not None
    twice = Example(
        Window(*(torch.cat([field, field]) for field in example.window[:3] if field is not None)),
        torch.cat([example.future, example.future]),
        example.ahead.repeat(2, 1, 1),
    )
    for lesson, k in zip(lessons(network, twice, batch=4, unrolled=[2, 0]), [2, 0], strict=True):
        steps = max(1, k) * network.block
        short = example._replace(future=example.future[:, :steps], ahead=example.ahead[:, :steps])
        [alone] = lessons(network, short, batch=4, unrolled=[k])
        torch.testing.assert_close(loss_of(network, lesson), loss_of(network, alone))


def test_a_row_that_runs_away_is_fed_nothing_and_spoils_nobody() -> None:
    network, example = with_channels(1)
    network.requires_grad_(False)
    [lesson] = lessons(network, example, batch=4, unrolled=[BLOCKS])
    assert lesson.beyond is not None
    weight = lesson.beyond.weight.clone()
    weight[:3] = 0  # of row 0
    bound = lesson.beyond.bound.clone()
    bound[:3] = 0
    expected = loss_of(network, lesson._replace(beyond=lesson.beyond._replace(weight=weight)))
    found = loss_of(network, lesson._replace(beyond=lesson.beyond._replace(weight=weight, bound=bound)))
    assert float(found) == float(expected)
    away = loss_of(network, lesson._replace(beyond=lesson.beyond._replace(bound=bound)))
    assert torch.isfinite(away)
    assert float(away) != float(loss_of(network, lesson))


@pytest.mark.parametrize("cell", ["gru", "lstm", "elman"])
@pytest.mark.parametrize(
    "fields", [{}, {"static": ("kind",), "lags": (3,), "network": {"layers": 2, "residual": True}}]
)
def test_side_by_side_every_member_learns_what_it_learns_alone(cell: str, fields: dict[str, Any]) -> None:
    spec = make_spec(**fields | {"network": {"cell": cell, "hidden": 6} | fields.get("network", {})})
    groups = (4,) * len(spec.static)
    trained, twins = ([build(spec, seed=seed, groups=groups) for seed in range(3)] for _ in range(2))
    draw, steps = np.random.default_rng(0), trained[0].lead + spec.context
    values = draw.normal(size=(4 * 3 * 5, steps + 4)).cumsum(axis=1)
    values[::5, :3] = np.nan
    values[3, 6] = values[7, -2] = np.nan
    static = torch.arange(len(values))[:, None] % 5 if groups else None
    example = Example(Window(torch.from_numpy(values[:, :steps]), static=static), torch.from_numpy(values[:, steps:]))
    together, far = SideBySide(trained), [0, 1, 2, 4]
    losses = descend(
        Adam(together.parameters(), learning_rate=0.02),
        together.losses,
        lessons(trained[0], example, batch=5, members=3, unrolled=far),
        partial(together.clip_norm, largest=0.5),
    )
    together.fill(trained)
    each = lessons(trained[0], example, batch=5, unrolled=[k for k in far for _ in range(3)])
    for number, twin in enumerate(twins):
        optimizer = Adam(twin.parameters(), learning_rate=0.02)
        found = descend(optimizer, partial(loss_of, twin), each[number::3], partial(clip_norm, largest=0.5))
        torch.testing.assert_close(losses[:, number], found, rtol=1e-4, atol=1e-5)
        for name, weight in twin.state_dict().items():
            torch.testing.assert_close(trained[number].state_dict()[name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_it_is_unrolled_further_and_further_and_from_the_middle_on_as_far_as_asked() -> None:
    far = [unrolled(step, most=40, steps=600) for step in range(600)]
    assert far[0] == 0
    assert set(np.diff(far)) == {0, 1}
    assert far[300:] == [40] * 300
    assert far[250] < 40
    assert [unrolled(step, most=3, steps=2) for step in range(2)] == [0, 3]
    assert not any(unrolled(step, most=0, steps=9) for step in range(9))


class Stop(pl.Callback):
    """Ends a fit, as a crash would, when its third epoch begins."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise RuntimeError("stopped")


def fitted(fields: dict[str, Any], training: dict[str, Any], **how: Any) -> Fitted:
    return fit(PANEL, make_spec(**fields, training=TRAINING | training), accelerator="cpu", **how)


def same(one: Fitted, other: Fitted) -> bool:
    mine, theirs = ([network.state_dict() for network in each.forecaster.networks] for each in (one, other))
    return all(torch.equal(a[name], b[name]) for a, b in zip(mine, theirs, strict=True) for name in a)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"calendar": ("hour",), "lags": (5,), "segment": 2, "base": "last", "layers": 2, "dropout": 0.3},
        {"scaling": "last", "transform": "log", "head": {"kind": "gaussian"}},
    ],
)
def test_an_interrupted_fit_ends_in_the_same_weights(fields: dict[str, Any], members: int, tmp_path: Path) -> None:
    fields = fields | {"members": members}
    training = {"weighting": "seasonal_error", "recent": 1.0, "average": 0.9, "schedule": "cosine"}
    whole, plain = fitted(fields, training), fitted(fields, training | {"unroll": 0})
    assert not same(whole, plain)
    checkpoint = tmp_path / "last.ckpt"
    with pytest.raises(RuntimeError, match="stopped"):
        fitted(fields, training, checkpoint=checkpoint, callbacks=[Stop()])
    again = fitted(fields, training, checkpoint=checkpoint)
    assert again.steps_before == 6
    assert again.scores == whole.scores
    assert same(whole, again)
    if not fields.get("dropout"):  # which is drawn in the order of steps, and steps prepare nothing random
        assert same(whole, fitted(fields, training, steps_at_once=1))


@pytest.mark.parametrize(("unroll", "blocks"), [(0, 1), (1, 1), (6, 6)])
def test_the_feed_hands_out_as_much_future_as_is_unrolled(unroll: int, blocks: int) -> None:
    spec = make_spec(segment=2, training=TRAINING | {"unroll": unroll})
    loader = Windows(PANEL, spec, build(spec, seed=0), PLAIN, season=4)
    loader.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    for example in loader.train_dataloader():
        assert example.future.shape[1] == 2 * blocks
        assert not example.future[:, 0].isnan().any()


def test_a_series_that_ends_before_all_is_unrolled_teaches_what_it_has() -> None:
    panel = panel_of(wave(24))
    found = fit(panel, make_spec(training=TRAINING | {"unroll": 50, "valid_windows": 0}), accelerator="cpu")
    assert np.isfinite(found.scores["train/loss"])
    assert all(torch.isfinite(weight).all() for weight in found.forecaster.network.parameters())


def test_unrolled_training_narrows_the_exposure_gap() -> None:
    """Of a fast wave on a slow one."""
    clock = np.arange(150)
    panel = panel_of(np.sin(clock / 4) + 0.5 * np.sin(clock * 1.3))
    gaps = []
    for unroll in (0, 12):
        training = {"steps": 120, "epoch_steps": 120, "batch": 16, "learning_rate": 0.02, "unroll": unroll}
        spec = Spec.parse(
            {"name": "gap", "context": 20, "horizon": 12, "network": {"hidden": 16}, "training": training}, where="gap"
        )
        gaps.append(fit(panel, spec, accelerator="cpu").scores["valid/exposure_gap"])
    assert gaps[1] < 0.8 * gaps[0]


def test_a_direct_decoder_cannot_be_unrolled() -> None:
    with pytest.raises(BadSpec, match=r"training\.unroll.*direct.*found 3.*Leave unroll out"):
        make_spec(decoder="direct", training={"unroll": 3})

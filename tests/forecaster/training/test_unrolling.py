"""Unrolled training: besides teacher forcing, the network is trained on predictions from its own output, as it is used."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.data.windows import Example, Window
from forecaster.errors import BadSpec
from forecaster.model.regressor import Regressor, build_network
from forecaster.model.rollout import roll_out, warm_up
from forecaster.spec import Spec
from forecaster.training.datamodule import WindowDataModule
from forecaster.training.fit import FitResult, fit
from forecaster.training.lightning import pl
from forecaster.training.loss import compute_loss, prepare_batches, teacher_forced_loss
from forecaster.training.members import StackedNetworks
from forecaster.training.optimizer import FusedAdam, clip_gradient_norm, run_optimizer_steps, unrolled_blocks
from tests.factories import make_panel, make_spec, make_wave
from tests.laws.test_every_combination import NUMERIC_HEADS, make_networks, make_windows

pytestmark = pytest.mark.integration

PANEL = make_panel(make_wave(60), 4 * make_wave(50, seed=1), make_wave(40, seed=2))
TRAINING = {"steps": 12, "epoch_steps": 3, "batch": 8, "learning_rate": 0.02, "valid_windows": 2, "unroll": 4}
BLOCKS = 5


def make_example(network: Regressor, *, blocks: int = BLOCKS) -> Example:
    """Four rows, one that begins late, one with a gap; and the actuals, with gaps."""
    window, future_covariates = make_windows(network)
    steps = blocks * network.block
    future = 30 + torch.arange(4.0)[:, None].double() + 5 * torch.sin(torch.arange(steps).double())[None]
    future[0, 1] = torch.nan
    future[2, steps // 2 :] = torch.nan
    future[3] *= 50
    future_covariates = torch.nn.functional.pad(
        future_covariates, (0, 0, 0, max(0, steps - future_covariates.shape[1]))
    )[:, :steps]
    return Example(window, future.round(), future_covariates)


def make_similar_example(example: Example, network: Regressor) -> Example:
    future_covariates = None if example.future_covariates is None else example.future_covariates[:, : network.block]
    return example._replace(future=example.future[:, : network.block], future_covariates=future_covariates)


def reference_free_running_loss(network: Regressor, example: Example) -> Tensor:
    """The mean of the head's loss over a rollout, block by block by `roll_out`, each from the state after the previous one."""
    state = warm_up(network, example.window)
    target = state.scale.apply(example.future, time=state.time)
    valid, losses, block = state.begun[:, None] & ~target.isnan(), [], network.block
    for first in range(0, target.shape[1], block):
        span = slice(first, first + block)
        future_covariates = None if example.future_covariates is None else example.future_covariates[:, span]
        params = network.decode(state.output, state.recent, future_covariates)
        losses.append(network.head.loss(params, target[:, span].nan_to_num(0.0)))
        _, state = roll_out(network, state, horizon=block, future_covariates=future_covariates)
    return torch.cat(losses, dim=1)[valid].mean()


@pytest.mark.parametrize("cell", ["gru", "lstm", "elman"])
@pytest.mark.parametrize("head", NUMERIC_HEADS)
def test_the_loss_averages_teacher_forcing_and_rollout(head: str, cell: str) -> None:
    for network in make_networks(cell, head, "rollout"):
        example = make_example(network)
        [batch] = prepare_batches(network, example, batch_size=4, unrolled_blocks=[BLOCKS])
        forced, free = (
            teacher_forced_loss(network, make_similar_example(example, network)),
            reference_free_running_loss(network, example),
        )
        torch.testing.assert_close(compute_loss(network, batch), (forced + free) / 2, rtol=1e-5, atol=1e-5)


def make_example_with_channels(segment: int) -> tuple[Regressor, Example]:
    """Two channels, one of which is never observed in one row, and covariates."""
    fields = {"channels": ("p", "q"), "lags": (6,), "base": "last", "min_history": None, "context": 12}
    network = build_network(make_spec(segment=segment, **fields), seed=0, num_covariates=2)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.3, generator=torch.Generator().manual_seed(weight.numel()))
    rng, (rows, steps) = np.random.default_rng(3), (4, network.pre_context + 12)
    values, channels = 5 + rng.normal(size=(rows, steps)), rng.normal(size=(rows, steps, 2))
    channels[2, :, 1] = np.nan
    covariates = torch.from_numpy(rng.normal(size=(rows, steps + BLOCKS * segment, 2))).float()
    window = Window(torch.from_numpy(values), covariates[:, :steps], channels=torch.from_numpy(channels))
    future = torch.from_numpy(rng.normal(size=(3 * rows, BLOCKS * segment)))
    return network, Example(window, future, covariates[:, steps:])


@pytest.mark.parametrize("segment", [1, 3])
def test_channels_are_unrolled_with_the_target(segment: int) -> None:
    network, example = make_example_with_channels(segment)
    [batch] = prepare_batches(network, example, batch_size=4, unrolled_blocks=[BLOCKS])
    forced, free = (
        teacher_forced_loss(network, make_similar_example(example, network)),
        reference_free_running_loss(network, example),
    )
    torch.testing.assert_close(compute_loss(network, batch), (forced + free) / 2, rtol=1e-5, atol=1e-5)


def test_unrolled_errors_are_weighted_by_the_seasonal_naive_error() -> None:
    [network, *_] = make_networks("gru", "point", "rollout")
    example = make_example(network)
    doubled = example._replace(error_scale=torch.full((4,), 2.0).double())
    for num_blocks in (0, BLOCKS):
        unit = warm_up(network, example.window).scale.unit
        unit_scaled = example._replace(error_scale=unit)  # an error scale of one scaled unit changes nothing
        [plain], [unit_batch] = (
            prepare_batches(network, sample, batch_size=4, unrolled_blocks=[num_blocks])
            for sample in (example, unit_scaled)
        )
        torch.testing.assert_close(compute_loss(network, plain), compute_loss(network, unit_batch))
    [weighted] = prepare_batches(network, doubled, batch_size=4, unrolled_blocks=[BLOCKS])
    [plain] = prepare_batches(network, example, batch_size=4, unrolled_blocks=[BLOCKS])
    assert weighted.unrolled is not None
    assert plain.unrolled is not None
    factors = (warm_up(network, example.window).scale.unit / 2).clamp(max=100.0).square().float()
    torch.testing.assert_close(weighted.unrolled.weight, plain.unrolled.weight * factors[:, None])


@pytest.mark.parametrize("cell", ["gru", "lstm", "elman"])
def test_the_gradient_flows_through_all_fed_back_predictions(cell: str) -> None:
    """Along the gradient of each weight the loss grows as the gradient says (central differences)."""
    spec = make_spec(cell=cell, scaling="standard", lags=(2,))
    network = build_network(spec, seed=0).train()
    steps = network.pre_context + spec.context
    values = torch.from_numpy(np.stack([make_wave(steps + 8, seed=seed) for seed in range(3)]))
    example = Example(Window(values[:, :steps]), values[:, steps:])
    [batch] = prepare_batches(network, example, batch_size=3, unrolled_blocks=[8])
    rollout_only = batch._replace(weight=torch.zeros_like(batch.weight))
    gradients = torch.autograd.grad(
        compute_loss(network, rollout_only), list(network.parameters()), materialize_grads=True
    )
    checked = 0
    for weight, gradient in zip(network.parameters(), gradients, strict=True):
        if not gradient.numel() or not gradient.norm():
            continue
        step = 0.02 * gradient / gradient.norm()
        with torch.no_grad():
            loss_above, loss_below = (
                compute_loss(network, rollout_only) for weight.data in (weight.data + step, weight.data - step)
            )
            weight.data += step
        slope = (loss_above - loss_below) / 0.04
        torch.testing.assert_close(slope, gradient.norm(), rtol=2e-2, atol=1e-5)
        checked += 1
    assert checked == 6


def test_without_unrolling_an_example_is_unchanged() -> None:
    for network in make_networks("lstm", "gaussian", "rollout"):
        example = make_example(network)
        [expected] = prepare_batches(network, make_similar_example(example, network), batch_size=4)
        for [batch] in (
            prepare_batches(network, example, batch_size=4),
            prepare_batches(network, example, batch_size=4, unrolled_blocks=[0]),
        ):
            assert batch.unrolled is None
            for actual_part, expected_part in zip(batch, expected, strict=True):
                assert (actual_part is None and expected_part is None) or torch.equal(actual_part, expected_part)  # type: ignore[arg-type]


def test_each_batch_is_unrolled_as_far_as_requested() -> None:
    [network, *_] = make_networks("gru", "point", "rollout")
    example = make_example(network)
    assert example.future_covariates is not None
    doubled = Example(
        Window(*(torch.cat([field, field]) for field in example.window[:3] if field is not None)),
        torch.cat([example.future, example.future]),
        example.future_covariates.repeat(2, 1, 1),
    )
    for batch, num_blocks in zip(
        prepare_batches(network, doubled, batch_size=4, unrolled_blocks=[2, 0]), [2, 0], strict=True
    ):
        steps = max(1, num_blocks) * network.block
        short = example._replace(
            future=example.future[:, :steps], future_covariates=example.future_covariates[:, :steps]
        )
        [single] = prepare_batches(network, short, batch_size=4, unrolled_blocks=[num_blocks])
        torch.testing.assert_close(compute_loss(network, batch), compute_loss(network, single))


def test_a_diverging_row_is_not_fed_back_and_affects_no_other() -> None:
    network, example = make_example_with_channels(1)
    network.requires_grad_(False)
    [batch] = prepare_batches(network, example, batch_size=4, unrolled_blocks=[BLOCKS])
    assert batch.unrolled is not None
    weight = batch.unrolled.weight.clone()
    weight[:3] = 0  # of row 0
    bound = batch.unrolled.bound.clone()
    bound[:3] = 0
    expected = compute_loss(network, batch._replace(unrolled=batch.unrolled._replace(weight=weight)))
    loss = compute_loss(network, batch._replace(unrolled=batch.unrolled._replace(weight=weight, bound=bound)))
    assert float(loss) == float(expected)
    diverged_loss = compute_loss(network, batch._replace(unrolled=batch.unrolled._replace(bound=bound)))
    assert torch.isfinite(diverged_loss)
    assert float(diverged_loss) != float(compute_loss(network, batch))


@pytest.mark.parametrize("cell", ["gru", "lstm", "elman"])
@pytest.mark.parametrize(
    "fields", [{}, {"static": ("kind",), "lags": (3,), "network": {"layers": 2, "residual": True}}]
)
def test_members_trained_together_equal_members_trained_alone(cell: str, fields: dict[str, Any]) -> None:
    spec = make_spec(**fields | {"network": {"cell": cell, "hidden": 6} | fields.get("network", {})})
    cardinalities = (4,) * len(spec.static)
    trained, singles = (
        [build_network(spec, seed=seed, static_cardinalities=cardinalities) for seed in range(3)] for _ in range(2)
    )
    rng, steps = np.random.default_rng(0), trained[0].pre_context + spec.context
    values = rng.normal(size=(4 * 3 * 5, steps + 4)).cumsum(axis=1)
    values[::5, :3] = np.nan
    values[3, 6] = values[7, -2] = np.nan
    static = torch.arange(len(values))[:, None] % 5 if cardinalities else None
    example = Example(Window(torch.from_numpy(values[:, :steps]), static=static), torch.from_numpy(values[:, steps:]))
    stacked, unrolled = StackedNetworks(trained), [0, 1, 2, 4]
    losses = run_optimizer_steps(
        FusedAdam(stacked.parameters(), learning_rate=0.02),
        stacked.losses,
        prepare_batches(trained[0], example, batch_size=5, num_members=3, unrolled_blocks=unrolled),
        partial(stacked.clip_gradient_norm, max_norm=0.5),
    )
    stacked.copy_weights_to(trained)
    batches = prepare_batches(
        trained[0], example, batch_size=5, unrolled_blocks=[num_blocks for num_blocks in unrolled for _ in range(3)]
    )
    for member, single in enumerate(singles):
        optimizer = FusedAdam(single.parameters(), learning_rate=0.02)
        single_losses = run_optimizer_steps(
            optimizer, partial(compute_loss, single), batches[member::3], partial(clip_gradient_norm, max_norm=0.5)
        )
        torch.testing.assert_close(losses[:, member], single_losses, rtol=1e-4, atol=1e-5)
        for name, weight in single.state_dict().items():
            torch.testing.assert_close(trained[member].state_dict()[name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_the_unroll_length_increases_to_the_requested_length_at_half_time() -> None:
    num_blocks = [unrolled_blocks(step, max_blocks=40, total_steps=600) for step in range(600)]
    assert num_blocks[0] == 0
    assert set(np.diff(num_blocks)) == {0, 1}
    assert num_blocks[300:] == [40] * 300
    assert num_blocks[250] < 40
    assert [unrolled_blocks(step, max_blocks=3, total_steps=2) for step in range(2)] == [0, 3]
    assert not any(unrolled_blocks(step, max_blocks=0, total_steps=9) for step in range(9))


class StopAtThirdEpoch(pl.Callback):
    """Ends a fit, as a crash would, when its third epoch begins."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise RuntimeError("stopped")


def fit_unrolled(fields: dict[str, Any], training: dict[str, Any], **options: Any) -> FitResult:
    return fit(PANEL, make_spec(**fields, training=TRAINING | training), accelerator="cpu", **options)


def have_equal_weights(first: FitResult, second: FitResult) -> bool:
    first_weights, second_weights = (
        [network.state_dict() for network in result.model.networks] for result in (first, second)
    )
    return all(torch.equal(a[name], b[name]) for a, b in zip(first_weights, second_weights, strict=True) for name in a)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"calendar": ("hour",), "lags": (5,), "segment": 2, "base": "last", "layers": 2, "dropout": 0.3},
        {"scaling": "last", "transform": "log", "head": {"kind": "gaussian"}},
    ],
)
def test_a_resumed_fit_gives_identical_weights(fields: dict[str, Any], members: int, tmp_path: Path) -> None:
    fields = fields | {"members": members}
    training = {"weighting": "seasonal_error", "recent": 1.0, "average": 0.9, "schedule": "cosine"}
    uninterrupted, plain = fit_unrolled(fields, training), fit_unrolled(fields, training | {"unroll": 0})
    assert not have_equal_weights(uninterrupted, plain)
    checkpoint = tmp_path / "last.ckpt"
    with pytest.raises(RuntimeError, match="stopped"):
        fit_unrolled(fields, training, checkpoint=checkpoint, callbacks=[StopAtThirdEpoch()])
    resumed = fit_unrolled(fields, training, checkpoint=checkpoint)
    assert resumed.resumed_steps == 6
    assert resumed.scores == uninterrupted.scores
    assert have_equal_weights(uninterrupted, resumed)
    if not fields.get("dropout"):  # dropout is drawn in the order of steps, which depends on the chunks
        assert have_equal_weights(uninterrupted, fit_unrolled(fields, training, steps_per_chunk=1))


@pytest.mark.parametrize(("unroll", "blocks"), [(0, 1), (1, 1), (6, 6)])
def test_the_feed_provides_as_many_future_steps_as_are_unrolled(unroll: int, blocks: int) -> None:
    spec = make_spec(segment=2, training=TRAINING | {"unroll": unroll})
    data = WindowDataModule(PANEL, spec, build_network(spec, seed=0), EMPTY_ENCODING, season=4)
    data.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    for example in data.train_dataloader():
        assert example.future.shape[1] == 2 * blocks
        assert not example.future[:, 0].isnan().any()


def test_a_series_that_ends_early_is_unrolled_as_far_as_it_goes() -> None:
    panel = make_panel(make_wave(24))
    result = fit(panel, make_spec(training=TRAINING | {"unroll": 50, "valid_windows": 0}), accelerator="cpu")
    assert np.isfinite(result.scores["train/loss"])
    assert all(torch.isfinite(weight).all() for weight in result.model.network.parameters())


def test_unrolled_training_reduces_the_exposure_gap() -> None:
    """The panel is a fast wave on a slow one."""
    clock = np.arange(150)
    panel = make_panel(np.sin(clock / 4) + 0.5 * np.sin(clock * 1.3))
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

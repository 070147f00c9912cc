"""The training loss: the head's loss of the network's prediction of the next block, given the actuals before it or,
unrolled, its own predictions of them.

A training batch holds everything that does not depend on weights: scales, masks, encodings. The batches of many steps are
prepared at once, so that a step costs no more than its arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from forecaster.data.windows import Example, Window
from forecaster.model.heads import Point
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import EncodedInputs, RolloutState, blocks, encode_inputs, start_rollout, updated_bound
from forecaster.model.scaling import measure_scale
from forecaster.shapes import Bool, Float, Float64, Int

MAX_UNIT_WEIGHT = 100.0
"""Largest weight of one scaled unit, in seasonal errors, so that a nearly constant series does not dominate the loss."""

_MIN_STEPS_OF_RUNNING_SCALE = 3  # fewer steps say too little of the unit to be trained on


class UnrolledTargets(NamedTuple):
    """Targets after the window, where the network reads its own predictions. The first block is also predicted at the end of the
    window.

    Attributes:
        started: Whether the target has an observation in the window.
        bound: Scaled values beyond it are taken as diverged, and not fed back.
        target: Scaled actuals; 0 where the weight is 0.
        weight: Of each target in the mean, as in a training batch.
        future_covariates: The covariates of the targets; none, if the network reads none.
    """

    started: Bool[Tensor, "*member track"]
    bound: Float[Tensor, "*member track"]
    target: Float[Tensor, "*member track step"]
    weight: Float[Tensor, "*member track step"]
    future_covariates: Float[Tensor, "*member row step covariate"]


class TrainingBatch(NamedTuple):
    """A batch in the form the loss needs.

    A rollout network predicts the next segment after every segment of the window (windows shifted by one segment); a direct
    network predicts a whole block after each of the last segments (`training.origins`). Targets are in the units of the running
    scale at their origin, where the network has one.

    Attributes:
        inputs: Inputs of each step of the recurrence.
        mask: Whether the row has an observation by the end of each segment.
        filled_values: The values before the first segment and those of the window, scaled, gaps filled.
        target: Scaled actuals; 0 where the weight is 0.
        weight: Of each target in the mean; 0 for unobserved steps and padding. The others have equal weights, or weights that
            express errors in units of the seasonal naive's.
        future_covariates: The covariates of the targets.
        static: Category codes of each row.
        statistics: Those of the running scale after each segment; None for a scale that is measured once.
        origins: Indices of the segments after which a block is predicted; None for the last ones.
        unrolled: Targets after the window; None where the network is not unrolled.
    """

    inputs: Float[Tensor, "*member row segment feature"]
    mask: Bool[Tensor, "*member row segment"]
    filled_values: Float[Tensor, "*member track back_and_step"]
    target: Float[Tensor, "*member track target"]
    weight: Float[Tensor, "*member track target"]
    future_covariates: Float[Tensor, "*axes step covariate"] | None
    static: Int[Tensor, "*member row static"] | None
    statistics: Float64[Tensor, "*member track segment statistic"] | None = None
    origins: Int[Tensor, "origin"] | None = None
    unrolled: UnrolledTargets | None = None


def teacher_forced_loss(network: Regressor, example: Example) -> Float[Tensor, ""]:
    """Returns the mean loss of y and the channels, scaled.

    Unobserved targets do not count, nor do those before the first observation of their series or channel.
    """
    [batch] = prepare_batches(network, example, batch_size=len(example.window.values))
    return compute_loss(network, batch)


def compute_loss(network: Regressor, batch: TrainingBatch) -> Float[Tensor, ""]:
    """Returns the mean loss of a batch, scaled; where there are unrolled targets, they make half of it."""
    return _compute_loss(network, batch, num_members=None)


def compute_member_losses(network: Regressor, batch: TrainingBatch, *, num_members: int) -> Float[Tensor, "member"]:
    """Returns `compute_loss` of each member, given a stacked network and the rows of one member after the other."""
    return _compute_loss(network, batch, num_members=num_members)


def _compute_loss(network: Regressor, batch: TrainingBatch, *, num_members: int | None) -> Float[Tensor, "*member"]:
    """Everything that depends on weights happens here."""
    rows, segment = len(batch.inputs), network.segment
    static = network.embed_static(batch.static, rows=rows)
    start = network.recurrent.initial_state(rows, like=batch.inputs)
    outputs, state = network.run_recurrence(batch.inputs, static, start, batch.mask)
    recent = batch.filled_values.unfold(1, network.lookback, 1)[:, segment::segment]  # before each target
    last = outputs[:, -1], recent[:, -1]
    origins: slice | Tensor = slice(None)
    if batch.origins is not None:
        origins = batch.origins
    elif network.decoder_kind != "rollout":
        origins = slice(-(batch.target.shape[1] // network.block), None)
    statistics = None if batch.statistics is None else batch.statistics[:, origins]
    params = network.decode(outputs[:, origins], recent[:, origins], batch.future_covariates, statistics)
    losses = network.head.loss(params.reshape(*batch.target.shape, -1), batch.target)
    total = _sum_by_member(losses * batch.weight, num_members)
    if batch.unrolled is None:
        return total
    started, bound, target, weight, future_covariates = batch.unrolled
    identity_scale = measure_scale(target.double(), "none")  # the values of a batch are scaled already
    rollout_state = RolloutState(state, *last, started, identity_scale, bound, time=0, static=static)
    count, covariates = target.shape[1] // network.block, future_covariates if network.num_covariates else None
    params_of_blocks = [
        block.params for block in blocks(network, rollout_state, count=count, future_covariates=covariates)
    ]
    unrolled_losses = network.head.loss(torch.cat(params_of_blocks, dim=1), target) * weight
    return total + _sum_by_member(unrolled_losses, num_members)


def _sum_by_member(values: Float[Tensor, "track target"], num_members: int | None) -> Float[Tensor, "*member"]:
    return values.sum() if num_members is None else values.reshape(num_members, -1).sum(1)


@torch.no_grad()
def prepare_batches(
    network: Regressor,
    example: Example,
    *,
    batch_size: int,
    num_members: int | None = None,
    unrolled_blocks: Sequence[int] = (),
) -> Sequence[TrainingBatch]:
    """Prepares the training batches of an example whose rows are those of several batches, one after the other.

    Args:
        network: The network, for its shapes; no weight is read.
        example: Windows and their futures.
        batch_size: Rows of a batch.
        num_members: With members, each part of a training batch has a leading member axis, and this many batches form one.
        unrolled_blocks: How many blocks each training batch is unrolled after the window; empty for none.
    """
    rollout_state, window = start_rollout(network, example.window)
    encoded, units = encode_inputs(network, window, rollout_state), _error_units(network, example, rollout_state)
    origins = network.origins if network.decoder_kind != "rollout" else window.values.shape[1] // network.segment
    actual = torch.cat([window.targets[:, network.segment :], example.future[:, : network.block]], dim=1)
    following = rollout_state.scale.apply(example.future[:, : network.block], time=window.values.shape[1])
    # Those of the window have been scaled already; where they are missing, the weight is 0.
    scaled = torch.cat([encoded.filled_values[:, network.lookback + network.segment :], following], dim=1)
    # By origin: the block that follows each of the last segments.
    target, scaled = (part.unfold(1, network.block, network.segment)[:, -origins:] for part in (actual, scaled))
    started = encoded.started.reshape(len(encoded.started), -1, network.segment).any(2)[:, -origins:, None]
    valid = started & network.is_scored(target)
    if network.trained_steps < network.block:
        valid = valid & (torch.arange(network.block, device=valid.device) < network.trained_steps)
    if encoded.statistics is not None:
        recent = encoded.filled_values.unfold(1, network.lookback, 1)[:, network.segment :: network.segment]
        scale = network.measure_units(recent[:, -origins:], encoded.statistics[:, -origins:])
        scaled = (scaled - scale.level[..., None]) / scale.unit[..., None]
        valid = valid & (encoded.statistics[:, -origins:, :1] >= _MIN_STEPS_OF_RUNNING_SCALE)
        units = None if units is None else (units[:, None] * scale.unit).clamp(max=MAX_UNIT_WEIGHT)
    valid, scaled = valid.flatten(1), scaled.masked_fill(~valid, 0.0).flatten(1)
    count = len(encoded.inputs) // batch_size
    combined = TrainingBatch(
        encoded.inputs,
        encoded.mask,
        encoded.filled_values,
        scaled,
        _target_weights(valid, units, num_batches=count),
        _block_covariates(network, window, example, origins=origins),
        window.static,
        encoded.statistics,
    )
    batch_shape = (count,) if num_members is None else (count // num_members, num_members)
    plain_batches = [TrainingBatch(*parts) for parts in _split_batches(combined[:-1], batch_shape)]  # type: ignore[arg-type]
    if not any(unrolled_blocks):
        return plain_batches
    unrolled = _prepare_unrolled_targets(
        network,
        example,
        window,
        encoded,
        rollout_state,
        [num_blocks for num_blocks in unrolled_blocks for _ in range(count // batch_shape[0])],
    )
    batches = []
    for batch, parts, num_blocks in zip(
        plain_batches, _split_batches(unrolled, batch_shape), unrolled_blocks, strict=True
    ):
        if num_blocks:
            targets = _truncate(UnrolledTargets(*parts), steps=num_blocks * network.block)  # type: ignore[arg-type]
            batch = batch._replace(weight=batch.weight / 2, unrolled=targets)
        batches.append(batch)
    return batches


def _prepare_unrolled_targets(
    network: Regressor,
    example: Example,
    window: Window,
    encoded: EncodedInputs,
    rollout_state: RolloutState,
    unrolled_blocks: Sequence[int],
) -> UnrolledTargets:
    """Returns the targets after the windows of several batches, each unrolled by its own number of blocks.

    Their weights sum to one half per batch.
    """
    future, num_steps = example.future, torch.tensor(unrolled_blocks, device=example.future.device) * network.block
    row_steps = num_steps.repeat_interleave(len(future) // len(num_steps))[:, None]
    valid = (
        encoded.started[:, -1:] & ~future.isnan() & (torch.arange(future.shape[1], device=future.device) < row_steps)
    )
    return UnrolledTargets(
        encoded.started[:, -1],
        updated_bound(network, window, encoded, rollout_state),
        rollout_state.scale.apply(future, time=window.values.shape[1]).masked_fill(~valid, 0.0),
        _target_weights(valid, _error_units(network, example, rollout_state), num_batches=len(num_steps)) / 2,
        encoded.inputs.new_zeros(len(encoded.inputs), future.shape[1], 0)
        if example.future_covariates is None
        else example.future_covariates,
    )


def _truncate(targets: UnrolledTargets, *, steps: int) -> UnrolledTargets:
    return targets._replace(
        target=targets.target[..., :steps],
        weight=targets.weight[..., :steps],
        future_covariates=targets.future_covariates[..., :steps, :],
    )


def _target_weights(
    mask: Bool[Tensor, "track target"], unit: Float[Tensor, "track *origin"] | None, *, num_batches: int
) -> Float[Tensor, "track target"]:
    """Returns weights that make a mean over the valid targets of each of several batches, in units where given."""
    counts = mask.reshape(num_batches, -1).sum(1).clamp(min=1)
    weight = mask / counts.repeat_interleave(len(mask) // num_batches)[:, None]
    if unit is None:
        return weight
    by_origin = unit.reshape(len(mask), -1)
    return weight * by_origin.repeat_interleave(mask.shape[1] // by_origin.shape[1], dim=1)


def _error_units(network: Regressor, example: Example, rollout_state: RolloutState) -> Float[Tensor, "track"] | None:
    """Returns one scaled unit in units of the seasonal naive's error; None where all units count alike."""
    if example.error_scale is None:
        return None
    unit = (rollout_state.scale.unit / example.error_scale).clamp(max=MAX_UNIT_WEIGHT)
    squares = isinstance(network.head, Point) and network.head.criterion == "mse"
    return (unit.square() if squares else unit).float()


def _split_batches(
    record: Iterable[Tensor | None], batch_shape: tuple[int, ...]
) -> Iterator[tuple[Tensor | None, ...]]:
    """Splits the parts of a record into those of several training batches, which lie one after the other."""
    size = math.prod(batch_shape)
    parts = [
        [None] * batch_shape[0]
        if part is None
        else part.reshape(*batch_shape, len(part) // size, *part.shape[1:]).unbind()
        for part in record
    ]
    return zip(*parts, strict=True)


def _block_covariates(
    network: Regressor, window: Window, example: Example, *, origins: int
) -> Float[Tensor, "row origin step covariate"] | None:
    """Returns the covariates of the block that follows each of the last segments of the window."""
    if window.covariates is None or example.future_covariates is None:
        return None
    following = torch.cat(
        [window.covariates[:, network.segment :], example.future_covariates[:, : network.block]], dim=1
    )
    return following.unfold(1, network.block, network.segment)[:, -origins:].transpose(2, 3)

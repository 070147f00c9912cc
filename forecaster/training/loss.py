"""What training minimises: the head's loss of what the network says of the next block, given what came before it, or what
it said itself of what came before it.

A lesson is all of a batch that no weight has a part in: scales, masks, encodings. The lessons of many steps are prepared at
once, so that a step costs what its arithmetic costs.
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
from forecaster.shapes import Bool, Float, Int

MAX_UNIT_WEIGHT = (
    100.0  # seasonal errors that one scaled unit counts for, lest a series that hardly ever moved outweigh all others
)


class UnrolledTargets(NamedTuple):
    """What a network is asked for after its window, where it reads what it said itself. The first block is the one that is
    asked for at the end of the window too.

    Attributes:
        seen: Whether the track has seen an observation in the window.
        bound: Scaled values beyond it are not believed, and not fed back.
        target: What is to be said, scaled; 0 where it does not count.
        weight: Of each target in the mean, as in a lesson.
        ahead: The covariates of the targets; none, if the network reads none.
    """

    started: Bool[Tensor, "*member track"]
    bound: Float[Tensor, "*member track"]
    target: Float[Tensor, "*member track step"]
    weight: Float[Tensor, "*member track step"]
    future_covariates: Float[Tensor, "*member row step covariate"]


class TrainingBatch(NamedTuple):
    """A batch as the loss takes it.

    A rollout network is asked after every segment of the window for the next one (windows shifted by one segment); a direct
    network after the last, for a whole block.

    Attributes:
        inputs: What each step of the recurrence reads.
        begun: Whether the row has seen an observation by the end of each segment.
        past: The values before the first segment and those of the window, scaled, gaps filled.
        target: What is to be said, scaled; 0 where it does not count.
        weight: Of each target in the mean, 0 for the unobserved and the padding: the same for all that count, or such that an
            error counts in units of the seasonal naive's.
        ahead: The covariates of the targets.
        static: Numbers of the categories of each row.
        beyond: What follows the window; None where the network is not unrolled.
    """

    inputs: Float[Tensor, "*member row segment feature"]
    mask: Bool[Tensor, "*member row segment"]
    filled_values: Float[Tensor, "*member track back_and_step"]
    target: Float[Tensor, "*member track target"]
    weight: Float[Tensor, "*member track target"]
    future_covariates: Float[Tensor, "*axes step covariate"] | None
    static: Int[Tensor, "*member row static"] | None
    unrolled: UnrolledTargets | None = None


def teacher_forced_loss(network: Regressor, example: Example) -> Float[Tensor, ""]:
    """The mean loss of y and the channels, scaled; the unobserved do not count, nor what nothing of the same was known before."""
    [lesson] = prepare_batches(network, example, batch_size=len(example.window.values))
    return compute_loss(network, lesson)


def compute_loss(network: Regressor, batch: TrainingBatch) -> Float[Tensor, ""]:
    """The mean loss of a lesson, scaled; half of it is that of what is unrolled. All that depends on weights happens here."""
    rows, segment = len(batch.inputs), network.segment
    static = network.embed_static(batch.static, rows=rows)
    start = network.recurrent.initial_state(rows, like=batch.inputs)
    outputs, state = network.run_recurrence(batch.inputs, static, start, batch.mask)
    recent = batch.filled_values.unfold(1, network.lookback, 1)[:, segment::segment]  # before each target
    last = outputs[:, -1], recent[:, -1]
    params = network.decode(*(last if network.is_direct else (outputs, recent)), batch.future_covariates)
    losses = network.head.loss(params.reshape(*batch.target.shape, -1), batch.target)
    total: Tensor = (losses * batch.weight).sum()
    if batch.unrolled is None:
        return total
    seen, bound, target, weight, ahead = batch.unrolled
    as_it_is = measure_scale(target.double(), "none")  # the values of a lesson are scaled already
    memory = RolloutState(state, *last, seen, as_it_is, bound, time=0, static=static)
    count, known = target.shape[1] // network.block, ahead if network.num_covariates else None
    told = [block.params for block in blocks(network, memory, count=count, future_covariates=known)]
    return total + (network.head.loss(torch.cat(told, dim=1), target) * weight).sum()


@torch.no_grad()
def prepare_batches(
    network: Regressor,
    example: Example,
    *,
    batch_size: int,
    num_members: int | None = None,
    unrolled_blocks: Sequence[int] = (),
) -> Sequence[TrainingBatch]:
    """The lessons of an example whose rows are those of several batches, one after the other.

    With members, each of a lesson's parts has a leading axis of them, and as many batches make one lesson.
    `unrolled_blocks` says for how many blocks each lesson goes on after the window; nothing: for none.
    """
    memory, window = start_rollout(network, example.window)
    laid, unit = encode_inputs(network, window, memory), _error_units(network, example, memory)
    first, ahead = example.future[:, : network.block], example.future_covariates
    if network.is_direct:
        target, time = first, window.values.shape[1]
        began = laid.started[:, -1:].expand_as(target)
    else:
        target, time = torch.cat([window.targets[:, network.segment :], first], dim=1), network.segment
        ahead = _next_segment_covariates(network, window, example)
        seen = laid.started.reshape(len(laid.started), -1, network.segment).any(2)
        began = seen.repeat_interleave(network.segment, dim=1)
    counts = began & ~target.isnan()
    scaled = memory.scale.apply(target, time=time).masked_fill(~counts, 0.0)
    count = len(laid.inputs) // batch_size
    whole = TrainingBatch(
        laid.inputs,
        laid.mask,
        laid.filled_values,
        scaled,
        _target_weights(counts, unit, num_batches=count),
        ahead,
        window.static,
    )
    lead = (count,) if num_members is None else (count // num_members, num_members)
    made = [TrainingBatch(*parts) for parts in _split_batches(whole[:-1], lead)]  # type: ignore[arg-type]
    if not any(unrolled_blocks):
        return made
    beyond = _prepare_unrolled_targets(
        network, example, window, laid, memory, [k for k in unrolled_blocks for _ in range(count // lead[0])]
    )
    batches = []
    for batch, parts, block_count in zip(made, _split_batches(beyond, lead), unrolled_blocks, strict=True):
        if block_count:
            targets = _truncate(UnrolledTargets(*parts), steps=block_count * network.block)  # type: ignore[arg-type]
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
    """What follows the windows of several batches, each of which unrolls so many blocks; the weights make half a mean."""
    future, each = example.future, torch.tensor(unrolled_blocks, device=example.future.device) * network.block
    length = each.repeat_interleave(len(future) // len(each))[:, None]
    counts = encoded.started[:, -1:] & ~future.isnan() & (torch.arange(future.shape[1], device=future.device) < length)
    return UnrolledTargets(
        encoded.started[:, -1],
        updated_bound(network, window, encoded, rollout_state),
        rollout_state.scale.apply(future, time=window.values.shape[1]).masked_fill(~counts, 0.0),
        _target_weights(counts, _error_units(network, example, rollout_state), num_batches=len(each)) / 2,
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
    mask: Bool[Tensor, "track target"], unit: Float[Tensor, "track"] | None, *, num_batches: int
) -> Float[Tensor, "track target"]:
    """Weights that make a mean over what counts of each of so many batches, in units where there are such."""
    each = mask.reshape(num_batches, -1).sum(1).clamp(min=1)
    weight = mask / each.repeat_interleave(len(mask) // num_batches)[:, None]
    return weight if unit is None else weight * unit[:, None]


def _error_units(network: Regressor, example: Example, rollout_state: RolloutState) -> Float[Tensor, "track"] | None:
    """What the error of one scaled unit counts for, in units of the seasonal naive's; None where all units count alike."""
    if example.error_scale is None:
        return None
    unit = (rollout_state.scale.unit / example.error_scale).clamp(max=MAX_UNIT_WEIGHT)
    squares = isinstance(network.head, Point) and network.head.criterion == "mse"
    return (unit.square() if squares else unit).float()


def _split_batches(
    record: Iterable[Tensor | None], batch_shape: tuple[int, ...]
) -> Iterator[tuple[Tensor | None, ...]]:
    """The parts of a record for each of several lessons, which lie one after the other."""
    size = math.prod(batch_shape)
    parts = [
        [None] * batch_shape[0]
        if part is None
        else part.reshape(*batch_shape, len(part) // size, *part.shape[1:]).unbind()
        for part in record
    ]
    return zip(*parts, strict=True)


def _next_segment_covariates(
    network: Regressor, window: Window, example: Example
) -> Float[Tensor, "row segment step covariate"] | None:
    """The covariates of the segment that follows each segment of the window."""
    if window.covariates is None or example.future_covariates is None:
        return None
    following = torch.cat(
        [window.covariates[:, network.segment :], example.future_covariates[:, : network.segment]], dim=1
    )
    return following.reshape(len(following), -1, network.segment, following.shape[2])

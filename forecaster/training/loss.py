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
from forecaster.model.rollout import Laid, Memory, begin, blocks, bound_after, lay
from forecaster.model.scaling import measure
from forecaster.shapes import Bool, Float, Int

MOST = (
    100.0  # seasonal errors that one scaled unit counts for, lest a series that hardly ever moved outweigh all others
)


class Beyond(NamedTuple):
    """What a network is asked for after its window, where it reads what it said itself. The first block is the one that is
    asked for at the end of the window too.

    Attributes:
        seen: Whether the track has seen an observation in the window.
        bound: Scaled values beyond it are not believed, and not fed back.
        target: What is to be said, scaled; 0 where it does not count.
        weight: Of each target in the mean, as in a lesson.
        ahead: The covariates of the targets; none, if the network reads none.
    """

    seen: Bool[Tensor, "*member track"]
    bound: Float[Tensor, "*member track"]
    target: Float[Tensor, "*member track step"]
    weight: Float[Tensor, "*member track step"]
    ahead: Float[Tensor, "*member row step covariate"]


class Lesson(NamedTuple):
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
    begun: Bool[Tensor, "*member row segment"]
    past: Float[Tensor, "*member track back_and_step"]
    target: Float[Tensor, "*member track target"]
    weight: Float[Tensor, "*member track target"]
    ahead: Float[Tensor, "*axes step covariate"] | None
    static: Int[Tensor, "*member row static"] | None
    beyond: Beyond | None = None


def teacher_forced_loss(network: Regressor, example: Example) -> Float[Tensor, ""]:
    """The mean loss of y and the channels, scaled; the unobserved do not count, nor what nothing of the same was known before."""
    [lesson] = lessons(network, example, batch=len(example.window.values))
    return loss_of(network, lesson)


def loss_of(network: Regressor, lesson: Lesson) -> Float[Tensor, ""]:
    """The mean loss of a lesson, scaled; half of it is that of what is unrolled. All that depends on weights happens here."""
    rows, segment = len(lesson.inputs), network.segment
    static = network.describe(lesson.static, rows=rows)
    start = network.recurrent.start(rows, like=lesson.inputs)
    outputs, state = network.recur(lesson.inputs, static, start, lesson.begun)
    recent = lesson.past.unfold(1, network.back, 1)[:, segment::segment]  # before each target
    last = outputs[:, -1], recent[:, -1]
    params = network.decode(*(last if network.direct else (outputs, recent)), lesson.ahead)
    losses = network.head.loss(params.reshape(*lesson.target.shape, -1), lesson.target)
    total: Tensor = (losses * lesson.weight).sum()
    if lesson.beyond is None:
        return total
    seen, bound, target, weight, ahead = lesson.beyond
    as_it_is = measure(target.double(), "none")  # the values of a lesson are scaled already
    memory = Memory(state, *last, seen, as_it_is, bound, time=0, static=static)
    count, known = target.shape[1] // network.block, ahead if network.covariates else None
    told = [block.params for block in blocks(network, memory, count=count, ahead=known)]
    return total + (network.head.loss(torch.cat(told, dim=1), target) * weight).sum()


@torch.no_grad()
def lessons(
    network: Regressor,
    example: Example,
    *,
    batch: int,
    members: int | None = None,
    unrolled: Sequence[int] = (),
) -> Sequence[Lesson]:
    """The lessons of an example whose rows are those of several batches, one after the other.

    With members, each of a lesson's parts has a leading axis of them, and as many batches make one lesson.
    `unrolled` says for how many blocks each lesson goes on after the window; nothing: for none.
    """
    memory, window = begin(network, example.window)
    laid, unit = lay(network, window, memory), _unit(network, example, memory)
    first, ahead = example.future[:, : network.block], example.ahead
    if network.direct:
        target, time = first, window.values.shape[1]
        began = laid.seen[:, -1:].expand_as(target)
    else:
        target, time = torch.cat([window.tracks[:, network.segment :], first], dim=1), network.segment
        ahead = _next_segments(network, window, example)
        seen = laid.seen.reshape(len(laid.seen), -1, network.segment).any(2)
        began = seen.repeat_interleave(network.segment, dim=1)
    counts = began & ~target.isnan()
    scaled = memory.scale.apply(target, time=time).masked_fill(~counts, 0.0)
    count = len(laid.inputs) // batch
    whole = Lesson(laid.inputs, laid.begun, laid.past, scaled, _weight(counts, unit, count=count), ahead, window.static)
    lead = (count,) if members is None else (count // members, members)
    made = [Lesson(*parts) for parts in _split(whole[:-1], lead)]  # type: ignore[arg-type]
    if not any(unrolled):
        return made
    beyond = _beyond(network, example, window, laid, memory, [k for k in unrolled for _ in range(count // lead[0])])
    return [
        one._replace(weight=one.weight / 2, beyond=_until(Beyond(*parts), steps=k * network.block)) if k else one  # type: ignore[arg-type]
        for one, parts, k in zip(made, _split(beyond, lead), unrolled, strict=True)
    ]


def _beyond(
    network: Regressor, example: Example, window: Window, laid: Laid, memory: Memory, unrolled: Sequence[int]
) -> Beyond:
    """What follows the windows of several batches, each of which unrolls so many blocks; the weights make half a mean."""
    future, each = example.future, torch.tensor(unrolled, device=example.future.device) * network.block
    length = each.repeat_interleave(len(future) // len(each))[:, None]
    counts = laid.seen[:, -1:] & ~future.isnan() & (torch.arange(future.shape[1], device=future.device) < length)
    return Beyond(
        laid.seen[:, -1],
        bound_after(network, window, laid, memory),
        memory.scale.apply(future, time=window.values.shape[1]).masked_fill(~counts, 0.0),
        _weight(counts, _unit(network, example, memory), count=len(each)) / 2,
        laid.inputs.new_zeros(len(laid.inputs), future.shape[1], 0) if example.ahead is None else example.ahead,
    )


def _until(beyond: Beyond, *, steps: int) -> Beyond:
    return beyond._replace(
        target=beyond.target[..., :steps], weight=beyond.weight[..., :steps], ahead=beyond.ahead[..., :steps, :]
    )


def _weight(
    counts: Bool[Tensor, "track target"], unit: Float[Tensor, "track"] | None, *, count: int
) -> Float[Tensor, "track target"]:
    """Weights that make a mean over what counts of each of so many batches, in units where there are such."""
    each = counts.reshape(count, -1).sum(1).clamp(min=1)
    weight = counts / each.repeat_interleave(len(counts) // count)[:, None]
    return weight if unit is None else weight * unit[:, None]


def _unit(network: Regressor, example: Example, memory: Memory) -> Float[Tensor, "track"] | None:
    """What the error of one scaled unit counts for, in units of the seasonal naive's; None where all units count alike."""
    if example.error is None:
        return None
    unit = (memory.scale.unit / example.error).clamp(max=MOST)
    squares = isinstance(network.head, Point) and network.head.penalty == "mse"
    return (unit.square() if squares else unit).float()


def _split(record: Iterable[Tensor | None], lead: tuple[int, ...]) -> Iterator[tuple[Tensor | None, ...]]:
    """The parts of a record for each of several lessons, which lie one after the other."""
    size = math.prod(lead)
    parts = [
        [None] * lead[0] if part is None else part.reshape(*lead, len(part) // size, *part.shape[1:]).unbind()
        for part in record
    ]
    return zip(*parts, strict=True)


def _next_segments(
    network: Regressor, window: Window, example: Example
) -> Float[Tensor, "row segment step covariate"] | None:
    """The covariates of the segment that follows each segment of the window."""
    if window.covariates is None or example.ahead is None:
        return None
    following = torch.cat([window.covariates[:, network.segment :], example.ahead[:, : network.segment]], dim=1)
    return following.reshape(len(following), -1, network.segment, following.shape[2])

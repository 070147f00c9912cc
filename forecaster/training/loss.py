"""What training minimises: the head's loss of what the network says of the next block, given what came before it.

A lesson is all of a batch that no weight has a part in: scales, masks, encodings. The lessons of many steps are prepared at
once, so that a step costs what its arithmetic costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from forecaster.data.windows import Example, Window
from forecaster.model.heads import Point
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import begin, lay
from forecaster.shapes import Bool, Float, Int

MOST = (
    100.0  # seasonal errors that one scaled unit counts for, lest a series that hardly ever moved outweigh all others
)


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
    """

    inputs: Float[Tensor, "*member row segment feature"]
    begun: Bool[Tensor, "*member row segment"]
    past: Float[Tensor, "*member track back_and_step"]
    target: Float[Tensor, "*member track target"]
    weight: Float[Tensor, "*member track target"]
    ahead: Float[Tensor, "*axes step covariate"] | None
    static: Int[Tensor, "*member row static"] | None


def teacher_forced_loss(network: Regressor, example: Example) -> Float[Tensor, ""]:
    """The mean loss of y and the channels, scaled; the unobserved do not count, nor what nothing of the same was known before."""
    [lesson] = lessons(network, example, batch=len(example.window.values))
    return loss_of(network, lesson)


def loss_of(network: Regressor, lesson: Lesson) -> Float[Tensor, ""]:
    """The mean loss of a lesson, scaled. All that depends on weights happens here."""
    rows, segment = len(lesson.inputs), network.segment
    start = network.recurrent.start(rows, like=lesson.inputs)
    outputs, _ = network.recur(lesson.inputs, network.describe(lesson.static, rows=rows), start, lesson.begun)
    recent = lesson.past.unfold(1, network.back, 1)[:, segment::segment]  # before each target
    if network.direct:
        outputs, recent = outputs[:, -1], recent[:, -1]
    params = network.decode(outputs, recent, lesson.ahead)
    losses = network.head.loss(params.reshape(*lesson.target.shape, -1), lesson.target)
    total: Tensor = (losses * lesson.weight).sum()
    return total


@torch.no_grad()
def lessons(network: Regressor, example: Example, *, batch: int, members: int | None = None) -> Sequence[Lesson]:
    """The lessons of an example whose rows are those of several batches, one after the other.

    With members, each of a lesson's parts has a leading axis of them, and as many batches make one lesson.
    """
    memory, window = begin(network, example.window)
    laid = lay(network, window, memory)
    if network.direct:
        target, time, ahead = example.future, window.values.shape[1], example.ahead
        began = laid.seen[:, -1:].expand_as(target)
    else:
        target, time = torch.cat([window.tracks[:, network.segment :], example.future], dim=1), network.segment
        ahead = _next_segments(network, window, example)
        seen = laid.seen.reshape(len(laid.seen), -1, network.segment).any(2)
        began = seen.repeat_interleave(network.segment, dim=1)
    counts = began & ~target.isnan()
    scaled = memory.scale.apply(target, time=time).masked_fill(~counts, 0.0)
    count = len(laid.inputs) // batch
    each = counts.reshape(count, -1).sum(1).clamp(min=1)
    weight = counts / each.repeat_interleave(batch * network.targets)[:, None]
    if example.error is not None:
        squares = isinstance(network.head, Point) and network.head.penalty == "mse"
        unit = (memory.scale.unit / example.error).clamp(max=MOST)
        weight = weight * (unit.square() if squares else unit).float()[:, None]
    whole = Lesson(laid.inputs, laid.begun, laid.past, scaled, weight, ahead, window.static)
    lead = (count,) if members is None else (count // members, members)
    parts = [[None] * lead[0] if part is None else part.reshape(*lead, -1, *part.shape[1:]).unbind() for part in whole]
    return [Lesson(*some) for some in zip(*parts, strict=True)]


def _next_segments(
    network: Regressor, window: Window, example: Example
) -> Float[Tensor, "row segment step covariate"] | None:
    """The covariates of the segment that follows each segment of the window."""
    if window.covariates is None or example.ahead is None:
        return None
    following = torch.cat([window.covariates[:, network.segment :], example.ahead], dim=1)
    return following.reshape(len(following), -1, network.segment, following.shape[2])

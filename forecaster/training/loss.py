"""What training minimises: the head's loss of what the network says of the next block, given what came before it."""

from __future__ import annotations

import torch
from torch import Tensor

from forecaster.data.windows import Example, Window
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import begin, read
from forecaster.shapes import Float


def teacher_forced_loss(network: Regressor, example: Example) -> Float[Tensor, ""]:
    """The mean loss of y and the channels, scaled; the unobserved do not count, nor what nothing of the same was known before.

    A rollout network is asked after every segment of the window for the next one (windows shifted by one segment); a direct
    network after the last, for a whole block.
    """
    memory, window = begin(network, example.window)
    outputs, past, after = read(network, window, memory)
    known, future = window.tracks, example.future
    if network.direct:
        params = network.decode(after.output, after.recent, example.ahead)
        target, began = future, after.begun[:, None].expand_as(future)
        scaled = after.scale.apply(target, time=after.time)
    else:
        ends = network.segment * torch.arange(1, outputs.shape[1] + 1, device=past.device)
        recent = past.unfold(1, network.back, 1)[:, ends]
        params = network.decode(outputs, recent, _next_segments(network, window, example)).flatten(1, 2)
        target = torch.cat([known[:, network.segment :], future], dim=1)
        seen = (~known.isnan()).cummax(1).values.reshape(len(known), -1, network.segment)
        began = seen.any(2).repeat_interleave(network.segment, dim=1)
        scaled = after.scale.apply(target, time=network.segment)
    counts = began & ~target.isnan()
    losses = network.head.loss(params, scaled.masked_fill(~counts, 0.0))
    total: Tensor = losses.masked_fill(~counts, 0.0).sum() / counts.sum().clamp(min=1)
    return total


def _next_segments(
    network: Regressor, window: Window, example: Example
) -> Float[Tensor, "row segment step covariate"] | None:
    """The covariates of the segment that follows each segment of the window."""
    if window.covariates is None or example.ahead is None:
        return None
    following = torch.cat([window.covariates[:, network.segment :], example.ahead], dim=1)
    return following.reshape(len(following), -1, network.segment, following.shape[2])

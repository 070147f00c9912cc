"""The memories of histories at many of their places, from reading each once: rows that may roll out beside each other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from forecaster.data.windows import Window
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import Memory, begin, join, pick, warm_up

MEMORIES_AT_ONCE = 1 << 14
_FEW = 6  # stretches at a time
_WIDE = 128  # rows from which on a step costs what its arithmetic costs, and not its calls


def memories(model: Regressor, window: Window, *, every: int, count: int) -> Iterator[Memory]:
    """The memory at `count` places of every row, `every` steps apart, the last of them at the window's end.

    Each is that of a `warm_up` on the window up to its place, where the scale of its row has settled by then (`settle`).

    Args:
        model: One that reads whole histories.
        window: As for `warm_up`.
        every: A multiple of the segment.
        count: Such that there are steps before the first place.
    Returns:
        The places in order, some at once, to bound the memory this takes: all rows of the first, all rows of the second.
    """
    memory, rest = begin(model, window)
    rows, steps = rest.values.shape
    first = steps - (count - 1) * every
    at_once = max(1, MEMORIES_AT_ONCE // rows)
    reached = _at_zero(warm_up(model, rest.part(slice(first)), memory))
    if count == 1:
        yield reached
    last = torch.arange(-rows, 0, device=rest.values.device)
    for done in range(1, count, at_once):
        start, end = first + (done - 1) * every, first + (min(done + at_once, count) - 1) * every
        found = _ends(model, rest.part(slice(start, end)), reached, every=every)
        yield found if done > 1 else join([reached, found])
        reached = pick(found, last)


def _ends(model: Regressor, window: Window, memory: Memory, *, every: int) -> Memory:
    """The memory after every `every` steps of a window that goes on from a memory: all rows of the first place come first.

    The state of a recurrence is known at the end of what it reads. A call for each place would cost far more than its
    arithmetic, so the window is read in a few long stretches, which gives the state where each begins, and then again, all
    stretches beside each other, in the same way.
    """
    rows, steps = window.values.shape
    places = steps // every
    if places <= _FEW or rows >= _WIDE:
        found = [memory]
        for start in range(0, steps, every):
            found.append(_at_zero(warm_up(model, window.part(slice(start, start + every)), found[-1])))
        return join(found[1:])
    each = -(-places // _FEW)
    stretches = -(-places // each)
    heads = [memory]
    for start in range(0, (stretches - 1) * each * every, each * every):
        heads.append(_at_zero(warm_up(model, window.part(slice(start, start + each * every)), heads[-1])))
    side = _beside(window, stretches=stretches, steps=each * every)
    ends = _ends(model, side, join(heads), every=every)
    device = window.values.device
    place, row = torch.arange(places, device=device)[:, None], torch.arange(rows, device=device)
    return pick(ends, ((place % each * stretches + place // each) * rows + row).flatten())


def _beside(window: Window, *, stretches: int, steps: int) -> Window:
    """Stretches of a window as rows: all rows of the first, all rows of the second. The last may be padded at its end."""
    pad = stretches * steps - window.values.shape[1]

    def cut(field: Tensor, empty: float) -> Tensor:
        padded = functional.pad(field, (*[0, 0] * (field.dim() - 2), 0, pad), value=empty)
        return padded.reshape(len(field), stretches, steps, *field.shape[2:]).transpose(0, 1).flatten(0, 1)

    return Window(
        cut(window.values, torch.nan),
        None if window.covariates is None else cut(window.covariates, 0.0),
        None,
        None if window.channels is None else cut(window.channels, torch.nan),
    )


def _at_zero(memory: Memory) -> Memory:
    """The same memory, its time counted from now on: so those of different places can stand beside each other."""
    return memory._replace(scale=memory.scale.since(memory.time), time=0)

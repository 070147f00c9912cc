"""Memories of networks that read whole histories, as plain arrays: taken near the end of a history, and gone on from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from forecaster.data.windows import Window
from forecaster.engines.engine import Engine, Known
from forecaster.engines.pytorch import Reference
from forecaster.history_summary import Arrays
from forecaster.model.recurrent import State
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import Memory, pick, warm_up
from forecaster.model.scaling import Scale, settle
from forecaster.series import Series

_SCALE = ("shift", "width", "profile", "size")
_OTHERS = ("output", "recent", "begun", "bound", "static")


def settled(network: Regressor, known: Known) -> int:
    """After how many of the known steps of a single history its scale stays as it is; more than there are if never."""
    tracks = Window(torch.from_numpy(known.values), channels=_tensor(known.channels)).tracks[:, network.lead :]
    found = settle(tracks, network.scaling, steps=network.context, season=network.season, transform=network.transform)
    return int(found.since.max())


def at_the_end(
    one: Series, networks: Sequence[Regressor], read: Callable[[Sequence[Series], int], Known], *, device: str
) -> dict[int, Sequence[Arrays]]:
    """What every member carries to the places that a forecast may go on from: a segment before the end, and those before.

    `read` gives the last so many steps of some series as networks read them.
    """
    segment = networks[0].segment
    ends = range(len(one) - 2 * segment + 1, len(one) - segment + 1)
    if one.past is None or not one.past.memories:
        window = _window(read([one.until(end) for end in ends], networks[0].shown(len(one))), device)
        with torch.inference_mode():
            whole = [warm_up(network, window) for network in networks]
        rows = enumerate(ends)
        return {
            end: [as_arrays(pick(memory, torch.tensor([row], device=device))) for memory in whole] for row, end in rows
        }
    found: dict[int, Sequence[Arrays]] = {}
    for end in ends:
        place = one.past.place(end, segment=segment)
        assert place is not None, "there are memories of every place in a segment"
        before = one.past.memories[place]
        if place < end:
            window = _window(read([one.until(end)], end - place), device)
            pairs = zip(networks, before, strict=True)
            with torch.inference_mode():
                before = [as_arrays(warm_up(network, window, as_memory(arrays, device))) for network, arrays in pairs]
        found[end] = before
    return found


def going_on(networks: Sequence[Regressor], memories: Sequence[Arrays], *, device: str) -> list[Engine]:
    """What rolls each member on from its memory: what is known to it are whole segments after that."""
    pairs = zip(networks, memories, strict=True)
    return [Reference(network, device=device, before=as_memory(arrays, device)) for network, arrays in pairs]


def as_arrays(memory: Memory) -> Arrays:
    """A memory as plain arrays by name."""
    parts = {"hidden": memory.state.hidden, "cell": memory.state.cell}
    parts |= {name: getattr(memory.scale, name) for name in _SCALE} | {name: getattr(memory, name) for name in _OTHERS}
    return {name: part.cpu().numpy() for name, part in parts.items() if part is not None} | {
        "time": np.array([memory.time])
    }


def as_memory(arrays: Arrays, device: str) -> Memory:
    """The inverse of `as_arrays`, on a device."""
    parts: dict[str, Any] = {name: torch.from_numpy(np.array(array)).to(device) for name, array in arrays.items()}
    state, scale = State(parts["hidden"], parts.get("cell")), Scale(*(parts[name] for name in _SCALE))
    return Memory(state=state, scale=scale, time=int(arrays["time"][0]), **{name: parts[name] for name in _OTHERS})


def _window(known: Known, device: str) -> Window:
    return Window(torch.from_numpy(known.values), *map(_tensor, known[1:4])).to(device)


def _tensor(part: np.ndarray | None) -> Any:
    return None if part is None else torch.from_numpy(part)

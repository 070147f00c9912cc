"""Histories cut down to what a forecaster still asks of them: a forecast from the rest is that from the whole.

A network that reads windows asks for the last of them. One that reads whole histories asks for what its rollout carried to a
place near the end, once its scale is settled; since segments are counted from the end, for that of each place in a segment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from forecaster.blend import LONGEST
from forecaster.data.windows import Window
from forecaster.engine import Known
from forecaster.histories import tail
from forecaster.model.recurrent import State
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import Memory, pick, warm_up
from forecaster.model.scaling import Scale, settle
from forecaster.past import forget
from forecaster.series import Series
from forecaster.spec import Spec

Arrays = Mapping[str, np.ndarray]
KINDS: Mapping[str, str] = {
    **dict.fromkeys(("hidden", "cell", "output", "recent", "bound", "static"), "float32"),
    **dict.fromkeys(("shift", "width", "profile", "size"), "float64"),
    "begun": "bool",
    "time": "int64",
}
"""What the arrays of a memory are made of."""
_SCALE = ("shift", "width", "profile", "size")
_OTHERS = ("output", "recent", "begun", "bound", "static")


def needed(spec: Spec, *, before: int, season: int, blended: bool) -> int:
    """Last steps that forecasts and intervals look at; what they ask of earlier ones is in a Past.

    `before` is how many steps of a window the network looks back on before its context.
    """
    return max(before + spec.context, season, 2 * spec.segment, LONGEST if blended else 0)


def cut_down(
    one: Series, spec: Spec, *, held: int, season: int, memories: Mapping[int, Sequence[Arrays]] | None = None
) -> Series:
    """The last `held` steps, with what is remembered of those before, and only the columns that a forecast asks for.

    Covariates end with the history: what is known ahead then belongs to the request. `memories` are those of a network
    that reads whole histories, by the steps of `one` that were read by then.
    """
    names = {name for name in (*spec.static, spec.group) if name in one.static}
    columns = replace(
        one,
        covariates={name: one.covariates[name][: len(one)] for name in spec.covariates},
        channels={name: one.channels[name] for name in spec.channels},
        static={name: one.static[name] for name in sorted(filter(None, names))},
    )
    cut = len(one) - held
    if cut < 0 or (cut == 0 and not memories):
        return columns
    _, past = forget(one.y, one.past, cut=cut, season=season)
    places = {place - cut: each for place, each in (memories or {}).items()}
    return replace(tail(columns, held), past=replace(past, memories=places))


def settled(network: Regressor, known: Known) -> int:
    """After how many of the known steps of a single history its scale stays as it is; more than there are if never."""
    tracks = Window(torch.from_numpy(known.values), channels=_tensor(known.channels)).tracks[:, network.lead :]
    found = settle(tracks, network.scaling, steps=network.context, season=network.season, transform=network.transform)
    return int(found.since.max())


def latest(one: Series, end: int, *, segment: int) -> int | None:
    """The latest place that there are memories of, from which on whole segments lead to `end`; None without."""
    known = () if one.past is None else one.past.memories
    return max((place for place in known if place <= end and (end - place) % segment == 0), default=None)


def memories_at_the_end(
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
        place = latest(one, end, segment=segment)
        assert place is not None, "there are memories of every place in a segment"
        before = one.past.memories[place]
        if place < end:
            window = _window(read([one.until(end)], end - place), device)
            pairs = zip(networks, before, strict=True)
            with torch.inference_mode():
                before = [as_arrays(warm_up(network, window, as_memory(arrays, device))) for network, arrays in pairs]
        found[end] = before
    return found


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

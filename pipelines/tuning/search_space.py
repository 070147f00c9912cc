"""Where a search looks: one line for each field of a specification that is searched, and what it may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from forecaster.data.calendar import usual_season
from forecaster.series import Panel
from forecaster.spec import Spec

_TIMES = (1, 2, 3, 4, 6)  # multiples of a season, or of a horizon
_SHORTEST_CONTEXT = 4


class Range(NamedTuple):
    """Numbers between two bounds, these among them, evenly in their logarithm."""

    low: float
    high: float


Choices = tuple[Any, ...] | Range
Searched = Mapping[str, Choices]
"""By the dotted path of a field of Spec: what it may be. Holds the specification's own value, and more than that."""


class Ground(NamedTuple):
    """What choices depend on."""

    spec: Spec  # around which is searched
    season: int
    shortest: int  # steps that the shortest series has to train on
    median: int

    @classmethod
    def of(cls, known: Panel, spec: Spec) -> Ground:
        """The ground of a panel, its validation windows not counted."""
        lengths = np.array([len(one) for one in known.series]) - spec.held_out
        season = spec.season or usual_season(known.freq)
        return cls(spec, season, shortest=int(lengths.min()), median=int(np.median(lengths)))


class Field(NamedTuple):
    """A field of the specification that is searched."""

    path: str
    choices: Callable[[Ground], Choices]


def _contexts(ground: Ground) -> Choices:
    """Multiples of season and horizon that leave half of the series a horizon to learn from."""
    found = {unit * times for unit in (ground.season, ground.spec.horizon) for times in _TIMES}
    return tuple(sorted(one for one in found if _SHORTEST_CONTEXT <= one <= ground.median - ground.spec.horizon))


def _segments(ground: Ground) -> Choices:
    """Divisors of season or horizon that some context is a multiple of; with another context, Spec refuses them."""
    contexts = {*_contexts(ground), ground.spec.context}
    longest = max(ground.season, ground.spec.horizon)
    return tuple(
        one
        for one in range(1, longest + 1)
        if (ground.season % one == 0 or ground.spec.horizon % one == 0) and any(each % one == 0 for each in contexts)
    )


def _bases(ground: Ground) -> Choices:
    """Without a season, seasonal naive is the last value."""
    if not ground.spec.head.shiftable:
        return ()
    return ("zero", "last", "linear", "seasonal_naive") if ground.season > 1 else ("zero", "last", "linear")


def _scalings(ground: Ground) -> Choices:
    """A seasonal profile needs every phase twice, in the shortest series too."""
    if ground.spec.head.counts:
        return ()
    profile = ("level_season",) if 1 < ground.season <= ground.shortest // 2 else ()
    return ("none", "mean_abs", "standard", "last", *profile)


def _steps(ground: Ground) -> Choices:
    steps = ground.spec.training.steps
    return (max(1, steps // 2), steps, 2 * steps)


SPACE = (
    Field("network.cell", lambda _: ("gru", "lstm")),
    Field("network.layers", lambda ground: () if ground.spec.network.dilations else (1, 2)),
    Field("network.hidden", lambda _: Range(16, 128)),
    Field("context", _contexts),
    Field("segment", _segments),
    Field("decoder", lambda ground: () if ground.spec.training.unroll else ("rollout", "direct")),
    Field("base", _bases),
    Field("scaling", _scalings),
    Field("transform", lambda ground: () if ground.spec.head.counts else ("none", "log")),
    Field("head.loss", lambda ground: ("mse", "mae", "huber") if ground.spec.head.kind == "point" else ()),
    Field("training.learning_rate", lambda _: Range(3e-4, 3e-2)),
    Field("training.steps", _steps),
    Field("training.batch", lambda _: (32, 64, 128, 256)),
    Field("training.schedule", lambda _: ("constant", "cosine")),
    Field("training.average", lambda _: (0.0, 0.99)),
    Field("training.weighting", lambda _: ("none", "seasonal_error")),
    Field("training.recent", lambda _: (0.0, 2.0, 8.0)),
)


def searched(ground: Ground) -> Searched:
    """What a search around a specification chooses from; fields that would have one value only are left out."""
    found = {field.path: _with_own(field.choices(ground), value_at(ground.spec, field.path)) for field in SPACE}
    return {path: choices for path, choices in found.items() if len(set(choices)) > 1}


def own(spec: Spec, space: Searched) -> dict[str, Any]:
    """The specification's own values of what is searched."""
    return {path: value_at(spec, path) for path in space}


def spec_at(spec: Spec, chosen: Mapping[str, Any]) -> Spec:
    """The specification with the values chosen; raises BadSpec where they do not go together."""
    fields = spec.model_dump()
    for path, value in chosen.items():
        *outer, last = path.split(".")
        place = fields
        for name in outer:
            place = place[name]
        place[last] = value
    fields["min_history"] = min(spec.least, fields["context"])
    return Spec.parse(fields, where=", ".join(f"{path} {value}" for path, value in chosen.items()))


def value_at(spec: Spec, path: str) -> Any:
    """The value of a field, by its dotted path."""
    value: Any = spec
    for name in path.split("."):
        value = getattr(value, name)
    return value


def told(params: Mapping[str, Any]) -> str:
    """What was chosen, in a line for people."""
    named = {path.rpartition(".")[2]: value for path, value in params.items()}
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in named.items()
    )


def _with_own(choices: Choices, value: Any) -> Choices:
    if isinstance(choices, Range):
        return Range(min(choices.low, value), max(choices.high, value))
    return choices if value in choices else (value, *choices)

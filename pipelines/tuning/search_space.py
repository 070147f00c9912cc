"""Where a search looks: one line for each field of a specification that is searched, and what it may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from forecaster.data.calendar import default_season
from forecaster.series import Panel
from forecaster.spec import Spec

_MULTIPLES = (1, 2, 3, 4, 6)  # multiples of a season, or of a horizon
_MIN_CONTEXT = 4


class Range(NamedTuple):
    """Numbers between two bounds, these among them, evenly in their logarithm."""

    low: float
    high: float


Choices = tuple[Any, ...] | Range
SearchSpace = Mapping[str, Choices]
"""By the dotted path of a field of Spec: what it may be. Holds the specification's own value, and more than that."""


class SearchScope(NamedTuple):
    """What choices depend on."""

    spec: Spec  # around which is searched
    season: int
    shortest_length: int  # steps that the shortest series has to train on
    median_length: int

    @classmethod
    def from_panel(cls, panel: Panel, spec: Spec) -> SearchScope:
        """The ground of a panel, its validation windows not counted."""
        lengths = np.array([len(one) for one in panel.series]) - spec.validation_steps
        season = spec.season or default_season(panel.freq)
        return cls(spec, season, shortest_length=int(lengths.min()), median_length=int(np.median(lengths)))


class SearchDimension(NamedTuple):
    """A field of the specification that is searched."""

    path: str
    choices: Callable[[SearchScope], Choices]


def _list_contexts(scope: SearchScope) -> Choices:
    """Multiples of season and horizon that leave half of the series a horizon to learn from."""
    found = {unit * times for unit in (scope.season, scope.spec.horizon) for times in _MULTIPLES}
    return tuple(sorted(one for one in found if _MIN_CONTEXT <= one <= scope.median_length - scope.spec.horizon))


def _list_segments(scope: SearchScope) -> Choices:
    """Divisors of season or horizon that some context is a multiple of; with another context, Spec refuses them."""
    contexts = {*_list_contexts(scope), scope.spec.context}
    longest = max(scope.season, scope.spec.horizon)
    return tuple(
        one
        for one in range(1, longest + 1)
        if (scope.season % one == 0 or scope.spec.horizon % one == 0) and any(each % one == 0 for each in contexts)
    )


def _list_bases(scope: SearchScope) -> Choices:
    """Without a season, seasonal naive is the last value."""
    if not scope.spec.head.is_shiftable:
        return ()
    return ("zero", "last", "linear", "seasonal_naive") if scope.season > 1 else ("zero", "last", "linear")


def _list_scalings(scope: SearchScope) -> Choices:
    """A seasonal profile needs every phase twice, in the shortest series too."""
    if scope.spec.head.is_count:
        return ()
    profile = ("level_season",) if 1 < scope.season <= scope.shortest_length // 2 else ()
    return ("none", "mean_abs", "standard", "last", *profile)


def _list_steps(scope: SearchScope) -> Choices:
    steps = scope.spec.training.steps
    return (max(1, steps // 2), steps, 2 * steps)


SEARCH_DIMENSIONS = (
    SearchDimension("network.cell", lambda _: ("gru", "lstm")),
    SearchDimension("network.layers", lambda ground: () if ground.spec.network.dilations else (1, 2)),
    SearchDimension("network.hidden", lambda _: Range(16, 128)),
    SearchDimension("context", _list_contexts),
    SearchDimension("segment", _list_segments),
    SearchDimension("decoder", lambda ground: () if ground.spec.training.unroll else ("rollout", "direct")),
    SearchDimension("base", _list_bases),
    SearchDimension("scaling", _list_scalings),
    SearchDimension("transform", lambda ground: () if ground.spec.head.is_count else ("none", "log")),
    SearchDimension("head.loss", lambda ground: ("mse", "mae", "huber") if ground.spec.head.kind == "point" else ()),
    SearchDimension("training.learning_rate", lambda _: Range(3e-4, 3e-2)),
    SearchDimension("training.steps", _list_steps),
    SearchDimension("training.batch", lambda _: (32, 64, 128, 256)),
    SearchDimension("training.schedule", lambda _: ("constant", "cosine")),
    SearchDimension("training.average", lambda _: (0.0, 0.99)),
    SearchDimension("training.weighting", lambda _: ("none", "seasonal_error")),
    SearchDimension("training.recent", lambda _: (0.0, 2.0, 8.0)),
)


def build_search_space(scope: SearchScope) -> SearchSpace:
    """What a search around a specification chooses from; fields that would have one value only are left out."""
    found = {
        field.path: _include_value(field.choices(scope), get_spec_value(scope.spec, field.path))
        for field in SEARCH_DIMENSIONS
    }
    return {path: choices for path, choices in found.items() if len(set(choices)) > 1}


def get_current_values(spec: Spec, space: SearchSpace) -> dict[str, Any]:
    """The specification's own values of what is searched."""
    return {path: get_spec_value(spec, path) for path in space}


def apply_params(spec: Spec, params: Mapping[str, Any]) -> Spec:
    """The specification with the values chosen; raises BadSpec where they do not go together."""
    fields = spec.model_dump()
    for path, value in params.items():
        *outer, last = path.split(".")
        place = fields
        for name in outer:
            place = place[name]
        place[last] = value
    fields["min_history"] = min(spec.min_steps, fields["context"])
    return Spec.parse(fields, where=", ".join(f"{path} {value}" for path, value in params.items()))


def get_spec_value(spec: Spec, path: str) -> Any:
    """The value of a field, by its dotted path."""
    value: Any = spec
    for name in path.split("."):
        value = getattr(value, name)
    return value


def format_params(params: Mapping[str, Any]) -> str:
    """What was chosen, in a line for people."""
    named = {path.rpartition(".")[2]: value for path, value in params.items()}
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in named.items()
    )


def _include_value(choices: Choices, value: Any) -> Choices:
    if isinstance(choices, Range):
        return Range(min(choices.low, value), max(choices.high, value))
    return choices if value in choices else (value, *choices)

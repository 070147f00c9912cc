"""The search space: one line for each field of a specification that is searched, with its choices."""

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
    """An inclusive range of numbers, sampled evenly on a logarithmic scale."""

    low: float
    high: float


Choices = tuple[Any, ...] | Range
SearchSpace = Mapping[str, Choices]
"""Choices by the dotted path of a field of Spec; they include the specification's own value and at least one other."""


class SearchScope(NamedTuple):
    """What the choices depend on: the specification and the lengths of the series."""

    spec: Spec  # the center of the search
    season: int
    shortest_length: int  # training steps of the shortest series
    median_length: int

    @classmethod
    def from_panel(cls, panel: Panel, spec: Spec) -> SearchScope:
        """Builds the scope for a panel; the validation windows do not count as training steps."""
        lengths = np.array([len(series) for series in panel.series]) - spec.validation_steps
        season = spec.season or default_season(panel.freq)
        return cls(spec, season, shortest_length=int(lengths.min()), median_length=int(np.median(lengths)))


class SearchDimension(NamedTuple):
    """A field of the specification that is searched."""

    path: str
    choices: Callable[[SearchScope], Choices]


def _list_contexts(scope: SearchScope) -> Choices:
    """Multiples of season and horizon that leave half of the series at least a horizon of training steps."""
    contexts = {unit * times for unit in (scope.season, scope.spec.horizon) for times in _MULTIPLES}
    return tuple(
        sorted(context for context in contexts if _MIN_CONTEXT <= context <= scope.median_length - scope.spec.horizon)
    )


def _list_segments(scope: SearchScope) -> Choices:
    """Divisors of season or horizon that divide at least one context; Spec rejects them with other contexts."""
    contexts = {*_list_contexts(scope), scope.spec.context}
    longest = max(scope.season, scope.spec.horizon)
    return tuple(
        segment
        for segment in range(1, longest + 1)
        if (scope.season % segment == 0 or scope.spec.horizon % segment == 0)
        and any(context % segment == 0 for context in contexts)
    )


def _list_bases(scope: SearchScope) -> Choices:
    """Bases of the forecast; without a season, seasonal naive equals the last value and is left out."""
    if not scope.spec.head.is_shiftable:
        return ()
    return ("zero", "last", "linear", "seasonal_naive") if scope.season > 1 else ("zero", "last", "linear")


def _list_scalings(scope: SearchScope) -> Choices:
    """Scalings; a seasonal profile needs every phase twice in the shortest series."""
    if scope.spec.head.is_count:
        return ()
    seasonal_profile = ("level_season",) if 1 < scope.season <= scope.shortest_length // 2 else ()
    return ("none", "mean_abs", "standard", "last", *seasonal_profile)


def _list_steps(scope: SearchScope) -> Choices:
    steps = scope.spec.training.steps
    return (max(1, steps // 2), steps, 2 * steps)


SEARCH_DIMENSIONS = (
    SearchDimension("network.cell", lambda _: ("gru", "lstm")),
    SearchDimension("network.layers", lambda scope: () if scope.spec.network.dilations else (1, 2)),
    SearchDimension("network.hidden", lambda _: Range(16, 128)),
    SearchDimension("context", _list_contexts),
    SearchDimension("segment", _list_segments),
    SearchDimension("decoder", lambda scope: () if scope.spec.training.unroll else ("rollout", "direct")),
    SearchDimension("base", _list_bases),
    SearchDimension("scaling", _list_scalings),
    SearchDimension("transform", lambda scope: () if scope.spec.head.is_count else ("none", "log")),
    SearchDimension("head.loss", lambda scope: ("mse", "mae", "huber") if scope.spec.head.kind == "point" else ()),
    SearchDimension("training.learning_rate", lambda _: Range(3e-4, 3e-2)),
    SearchDimension("training.steps", _list_steps),
    SearchDimension("training.batch", lambda _: (32, 64, 128, 256)),
    SearchDimension("training.schedule", lambda _: ("constant", "cosine")),
    SearchDimension("training.average", lambda _: (0.0, 0.99)),
    SearchDimension("training.weighting", lambda _: ("none", "seasonal_error")),
    SearchDimension("training.recent", lambda _: (0.0, 2.0, 8.0)),
)


def build_search_space(scope: SearchScope) -> SearchSpace:
    """Builds the search space around a specification; fields with a single possible value are left out."""
    space = {
        dimension.path: _include_value(dimension.choices(scope), get_spec_value(scope.spec, dimension.path))
        for dimension in SEARCH_DIMENSIONS
    }
    return {path: choices for path, choices in space.items() if len(set(choices)) > 1}


def get_current_values(spec: Spec, space: SearchSpace) -> dict[str, Any]:
    """Returns the specification's own values of the searched fields."""
    return {path: get_spec_value(spec, path) for path in space}


def apply_params(spec: Spec, params: Mapping[str, Any]) -> Spec:
    """Returns the specification with the chosen values; raises BadSpec if they are inconsistent."""
    fields = spec.model_dump()
    for path, value in params.items():
        *outer, last = path.split(".")
        target = fields
        for name in outer:
            target = target[name]
        target[last] = value
    fields["min_history"] = min(spec.min_steps, fields["context"])
    return Spec.parse(fields, where=", ".join(f"{path} {value}" for path, value in params.items()))


def get_spec_value(spec: Spec, path: str) -> Any:
    """Returns the value of a field, given by its dotted path."""
    value: Any = spec
    for name in path.split("."):
        value = getattr(value, name)
    return value


def format_params(params: Mapping[str, Any]) -> str:
    """Formats the chosen values in one line, with the last part of each path as the name."""
    values_by_name = {path.rpartition(".")[2]: value for path, value in params.items()}
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values_by_name.items()
    )


def _include_value(choices: Choices, value: Any) -> Choices:
    if isinstance(choices, Range):
        return Range(min(choices.low, value), max(choices.high, value))
    return choices if value in choices else (value, *choices)

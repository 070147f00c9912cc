"""The search space: the choices that the data allow, around any specification."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from forecaster.errors import BadSpec
from forecaster.spec import NetworkSpec, Spec, TrainingSpec
from pipelines.tuning.search_space import (
    SEARCH_DIMENSIONS,
    Range,
    SearchScope,
    apply_params,
    build_search_space,
    format_params,
    get_current_values,
    get_spec_value,
)
from tests.factories import make_panel, make_wave


def make_space_spec(**fields: Any) -> Spec:
    training = TrainingSpec(steps=100, valid_windows=2)
    return Spec.parse(
        {"name": "small", "context": 8, "horizon": 6, "season": 4, "training": training} | fields, where="a test"
    )


def search_conditions(*, shortest: int = 60, median: int = 60, season: int = 4, **fields: Any) -> SearchScope:
    return SearchScope(make_space_spec(**fields), season, shortest, median)


def test_every_dimension_is_a_spec_field_listed_once() -> None:
    paths = [dimension.path for dimension in SEARCH_DIMENSIONS]
    assert len(set(paths)) == len(paths)
    for path in paths:
        get_spec_value(make_space_spec(), path)


def test_the_values_of_the_given_spec_are_among_the_choices() -> None:
    spec = make_space_spec(context=10, network=NetworkSpec(cell="elman", hidden=200, layers=3))
    space = build_search_space(SearchScope(spec, 4, 60, 60))
    current_values = get_current_values(spec, space)
    for path, choices in space.items():
        if isinstance(choices, Range):
            assert choices.low <= current_values[path] <= choices.high, path
        else:
            assert current_values[path] in choices, path
    assert space["network.hidden"] == Range(16, 200)
    assert space["network.cell"] == ("elman", "gru", "lstm")
    assert apply_params(spec, current_values) == spec.model_copy(update={"min_history": 10})


def test_contexts_are_multiples_that_leave_training_data() -> None:
    assert build_search_space(search_conditions(median=60))["context"] == (4, 6, 8, 12, 16, 18, 24, 36)
    assert build_search_space(search_conditions(median=20))["context"] == (4, 6, 8, 12)
    assert "context" not in build_search_space(search_conditions(median=3)), (
        "only the specification's own context is possible"
    )


def test_segments_divide_season_or_horizon_and_a_context() -> None:
    assert build_search_space(search_conditions(median=60))["segment"] == (1, 2, 3, 4, 6)
    assert build_search_space(search_conditions(median=14, season=7))["segment"] == (1, 2, 3, 6, 7)
    assert build_search_space(search_conditions(median=13, season=7, context=8))["segment"] == (1, 2, 3, 6, 7)
    assert build_search_space(search_conditions(median=12, season=7, context=8))["segment"] == (1, 2, 3, 6), (
        "nothing is a multiple of 7"
    )


def test_series_lengths_are_those_of_the_training_data() -> None:
    scope = SearchScope.from_panel(make_panel(make_wave(50), make_wave(60), make_wave(100)), make_space_spec())
    assert (scope.shortest_length, scope.median_length, scope.season) == (50 - 12, 60 - 12, 4)
    assert SearchScope.from_panel(make_panel(make_wave(50)), make_space_spec(season=None)).season == 24, (
        "the default season of hourly data"
    )


@pytest.mark.parametrize(
    ("fields", "excluded"),
    [
        ({"head": {"kind": "categorical"}}, {"base", "head.loss"}),
        ({"head": {"kind": "neg_binomial"}, "scaling": "none"}, {"base", "head.loss", "scaling", "transform"}),
        ({"head": {"kind": "gaussian"}}, {"head.loss"}),
        ({"network": {"layers": 2, "dilations": [1, 2]}}, {"network.layers"}),
        ({"training": {"unroll": 6}}, {"decoder"}),
    ],
)
def test_choices_that_every_spec_rejects_are_excluded(fields: dict[str, Any], excluded: set[str]) -> None:
    paths = {dimension.path for dimension in SEARCH_DIMENSIONS}
    assert set(build_search_space(search_conditions(**fields))) == paths - excluded


def test_a_season_is_searched_only_if_there_is_one() -> None:
    assert "seasonal_naive" in build_search_space(search_conditions())["base"]
    assert "level_season" in build_search_space(search_conditions())["scaling"]
    assert "level_season" not in build_search_space(search_conditions(shortest=7))["scaling"], (
        "too short to contain each phase twice"
    )
    without_season = build_search_space(search_conditions(season=1))
    assert "seasonal_naive" not in without_season["base"]
    assert "level_season" not in without_season["scaling"]


def test_every_single_choice_gives_a_valid_or_rejected_spec() -> None:
    spec, draw = make_space_spec(), np.random.default_rng(0)
    space = build_search_space(search_conditions())
    n_rejected = 0
    for _ in range(300):
        chosen = {
            path: choices.low if isinstance(choices, Range) else choices[draw.integers(len(choices))]
            for path, choices in space.items()
        }
        if chosen["context"] % chosen["segment"] or (chosen["transform"], chosen["scaling"]) == ("log", "mean_abs"):
            n_rejected += 1
            with pytest.raises(BadSpec, match=r"multiple of segment|mean_abs"):
                apply_params(spec, chosen)
            continue
        applied = apply_params(spec, chosen)
        assert get_current_values(applied, space) == chosen
        assert (applied.name, applied.horizon, applied.training.seed) == (spec.name, spec.horizon, spec.training.seed)
    assert 0 < n_rejected < 150, "most choices are valid"


def test_a_longer_context_keeps_the_same_validation_series() -> None:
    assert apply_params(make_space_spec(), {"context": 36}).min_steps == 8
    assert apply_params(make_space_spec(), {"context": 4}).min_steps == 4
    assert apply_params(make_space_spec(min_history=3), {"context": 36}).min_steps == 3


def test_a_choice_is_formatted_in_one_line() -> None:
    assert (
        format_params({"network.cell": "gru", "training.learning_rate": 0.00123456})
        == "cell gru, learning_rate 0.00123"
    )

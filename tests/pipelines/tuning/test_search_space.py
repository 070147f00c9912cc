"""Where a search looks: choices that the data allow, around any specification."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from forecaster.errors import BadSpec
from forecaster.spec import NetworkSpec, Spec, TrainingSpec
from pipelines.tuning.search_space import SPACE, Ground, Range, own, searched, spec_at, told, value_at
from tests.factories import panel_of, wave


def spec_of(**fields: Any) -> Spec:
    training = TrainingSpec(steps=100, valid_windows=2)
    return Spec.parse(
        {"name": "small", "context": 8, "horizon": 6, "season": 4, "training": training} | fields, where="a test"
    )


def ground(*, shortest: int = 60, median: int = 60, season: int = 4, **fields: Any) -> Ground:
    return Ground(spec_of(**fields), season, shortest, median)


def test_every_line_of_the_table_is_a_field_once() -> None:
    paths = [field.path for field in SPACE]
    assert len(set(paths)) == len(paths)
    for path in paths:
        value_at(spec_of(), path)


def test_what_the_specification_says_itself_is_among_the_choices() -> None:
    spec = spec_of(context=10, network=NetworkSpec(cell="elman", hidden=200, layers=3))
    space = searched(Ground(spec, 4, 60, 60))
    mine = own(spec, space)
    for path, choices in space.items():
        if isinstance(choices, Range):
            assert choices.low <= mine[path] <= choices.high, path
        else:
            assert mine[path] in choices, path
    assert space["network.hidden"] == Range(16, 200)
    assert space["network.cell"] == ("elman", "gru", "lstm")
    assert spec_at(spec, mine) == spec.model_copy(update={"min_history": 10})


def test_contexts_are_multiples_that_leave_something_to_learn_from() -> None:
    assert searched(ground(median=60))["context"] == (4, 6, 8, 12, 16, 18, 24, 36)
    assert searched(ground(median=20))["context"] == (4, 6, 8, 12)
    assert "context" not in searched(ground(median=3)), "the specification's own is all there is"


def test_segments_divide_season_or_horizon_and_some_context() -> None:
    assert searched(ground(median=60))["segment"] == (1, 2, 3, 4, 6)
    assert searched(ground(median=14, season=7))["segment"] == (1, 2, 3, 6, 7)
    assert searched(ground(median=13, season=7, context=8))["segment"] == (1, 2, 3, 6, 7)
    assert searched(ground(median=12, season=7, context=8))["segment"] == (1, 2, 3, 6), "nothing is a multiple of 7"


def test_lengths_are_those_of_what_is_trained_on() -> None:
    found = Ground.of(panel_of(wave(50), wave(60), wave(100)), spec_of())
    assert (found.shortest, found.median, found.season) == (50 - 12, 60 - 12, 4)
    assert Ground.of(panel_of(wave(50)), spec_of(season=None)).season == 24, "the usual one of hours"


@pytest.mark.parametrize(
    ("fields", "left_out"),
    [
        ({"head": {"kind": "categorical"}}, {"base", "head.loss"}),
        ({"head": {"kind": "neg_binomial"}, "scaling": "none"}, {"base", "head.loss", "scaling", "transform"}),
        ({"head": {"kind": "gaussian"}}, {"head.loss"}),
        ({"network": {"layers": 2, "dilations": [1, 2]}}, {"network.layers"}),
        ({"training": {"unroll": 6}}, {"decoder"}),
    ],
)
def test_what_a_specification_could_only_refuse_is_not_searched(fields: dict[str, Any], left_out: set[str]) -> None:
    paths = {field.path for field in SPACE}
    assert set(searched(ground(**fields))) == paths - left_out


def test_a_season_is_looked_for_only_where_there_is_one() -> None:
    assert "seasonal_naive" in searched(ground())["base"]
    assert "level_season" in searched(ground())["scaling"]
    assert "level_season" not in searched(ground(shortest=7))["scaling"], "too short to see each phase twice"
    without = searched(ground(season=1))
    assert "seasonal_naive" not in without["base"]
    assert "level_season" not in without["scaling"]


def test_every_choice_alone_makes_a_specification_or_is_refused_as_such() -> None:
    spec, draw = spec_of(), np.random.default_rng(0)
    space = searched(ground())
    refused = 0
    for _ in range(300):
        chosen = {
            path: choices.low if isinstance(choices, Range) else choices[draw.integers(len(choices))]
            for path, choices in space.items()
        }
        if chosen["context"] % chosen["segment"] or (chosen["transform"], chosen["scaling"]) == ("log", "mean_abs"):
            refused += 1
            with pytest.raises(BadSpec, match=r"multiple of segment|mean_abs"):
                spec_at(spec, chosen)
            continue
        found = spec_at(spec, chosen)
        assert own(found, space) == chosen
        assert (found.name, found.horizon, found.training.seed) == (spec.name, spec.horizon, spec.training.seed)
    assert 0 < refused < 150, "most can be tried"


def test_a_longer_context_leaves_the_same_series_to_judge_by() -> None:
    assert spec_at(spec_of(), {"context": 36}).least == 8
    assert spec_at(spec_of(), {"context": 4}).least == 4
    assert spec_at(spec_of(min_history=3), {"context": 36}).least == 3


def test_a_choice_is_told_in_a_line() -> None:
    assert told({"network.cell": "gru", "training.learning_rate": 0.00123456}) == "cell gru, learning_rate 0.00123"

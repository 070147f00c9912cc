"""Charts of errors against the formulas by hand, and measures of inputs on draws that are alike and that are not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from forecaster.data.profile import FEATURES, SHARES, Learned, learn_profile, profile
from forecaster.evaluation.drift_detection import (
    BOUND,
    all_shifted,
    bound_for,
    cusum,
    residual_spread,
    run_length,
    shifted,
)
from tests.factories import one_series


def test_the_chart_is_the_formula_by_hand() -> None:
    chart = cusum(np.array([1.0, -0.25, 2.0, 2.5, -3.0, -3.0]), k=0.5, h=3.0)
    assert chart.up.tolist() == [0.5, 0.0, 1.5, 3.5, 0.0, 0.0]
    assert chart.down.tolist() == [0.0, 0.0, 0.0, 0.0, 2.5, 5.0]
    assert (chart.alarm, chart.side) == (3, "above")
    falling = cusum(np.array([-2.0, -2.0, -2.0]), k=0.5, h=4.0)
    assert (falling.down.tolist(), falling.alarm, falling.side) == ([1.5, 3.0, 4.5], 2, "below")
    assert cusum(np.zeros(0)).alarm is None


def test_one_wild_value_is_no_lasting_change() -> None:
    assert cusum(np.array([0.0, 1e9, 0.0, 0.0])).alarm is None


def test_run_lengths_are_those_of_the_books() -> None:
    """Montgomery 2009, table 9.3: two-sided, k = 1/2, no shift: 168 at h = 4, 465 at h = 5."""
    assert run_length(4.0) == pytest.approx(168, rel=0.02)
    assert run_length(5.0) == pytest.approx(465, rel=0.02)


def test_run_lengths_are_those_of_draws() -> None:
    draw = np.random.default_rng(0)
    lengths = []
    for _ in range(300):
        chart = cusum(draw.normal(size=1500), h=4.0)
        lengths.append(1500 if chart.alarm is None else chart.alarm + 1)
    assert np.mean(lengths) == pytest.approx(168, rel=0.2)


def test_the_bound_rises_so_that_chance_hardly_gives_an_alarm() -> None:
    assert bound_for(5) == BOUND
    h = bound_for(500)
    assert 500 / run_length(h) <= 0.05 < 500 / run_length(h - 0.11)
    draw = np.random.default_rng(1)
    alarms = sum(cusum(draw.normal(size=500), h=h).alarm is not None for _ in range(200))
    assert alarms <= 20


def test_the_spread_is_measured_whatever_the_level_does() -> None:
    draw = np.random.default_rng(2)
    values = draw.normal(0, 3, 4000)
    assert residual_spread(values) == pytest.approx(3, rel=0.05)
    values[2000:] += 50
    assert residual_spread(values) == pytest.approx(3, rel=0.05)


def test_a_profile_is_what_it_says() -> None:
    told = profile(np.array([99.0, 1.0, np.nan, 3.0, 2.0]), context=4, season=1)
    assert told["level"] == 2.0
    assert told["change"] == 1.5
    assert told["missing"] == 0.25
    assert told["spread"] == pytest.approx(math.sqrt(2 / 3) / 1.5)
    assert told["latest"] == 0.0
    assert profile(np.full(4, np.nan), context=4, season=1) == {"missing": 1.0}
    assert set(profile(np.full(9, 7.0), context=4, season=1)) == {"level", "change", "missing"}


def test_the_latest_season_counts_as_a_whole_where_the_window_has_two() -> None:
    told = profile(np.array([1.0, 1.0, 1.0, 5.0]), context=4, season=2)
    assert told["latest"] == pytest.approx((3 - 2) / math.sqrt(3))
    assert profile(np.array([1.0, 1.0, 1.0, 5.0]), context=4, season=3)["latest"] == pytest.approx(3 / math.sqrt(3))
    assert "latest" not in profile(np.array([1.0, 2.0, np.nan, np.nan]), context=4, season=2)


@pytest.mark.parametrize(("season", "noticed"), [(24, False), (1, True)])
def test_a_service_that_is_asked_at_midnight_alone_is_no_change_of_inputs(season: int, noticed: bool) -> None:
    draw, clock = np.random.default_rng(3), np.arange(40 * 24)
    days = [10 + np.cos(2 * np.pi * clock / 24) + 0.2 * draw.normal(size=len(clock)) for _ in range(30)]
    learned = learn_profile([one_series(y) for y in days], context=72, season=season)
    found = all_shifted([profile(y[: 36 * 24], context=72, season=season) for y in days], learned)
    assert (found["latest"].value > found["latest"].bound) == noticed


def profiles(seed: int, *, windows: int, scale: float = 1.0, trend: float = 0.0) -> list[dict[str, float]]:
    draw = np.random.default_rng(seed)
    y = scale * (10 + draw.normal(size=(windows, 24)) + trend * np.arange(24))
    return [profile(row, context=24, season=1) for row in y]


@pytest.fixture(scope="module")
def learned() -> Learned:
    draw = np.random.default_rng(0)
    return learn_profile([one_series(10 + draw.normal(size=480)) for _ in range(50)], context=24, season=1)


def test_what_was_learned_is_small_and_plain(learned: Learned) -> None:
    assert set(learned.quantiles) == set(FEATURES)
    assert {len(values) for values in learned.quantiles.values()} == {len(SHARES)}
    assert len(learned.model_dump_json()) < 1000
    assert Learned.model_validate_json(learned.model_dump_json()) == learned


@pytest.mark.parametrize("windows", [5, 40, 400])
def test_inputs_as_in_training_are_let_pass(learned: Learned, windows: int) -> None:
    for seed in range(10):
        found = all_shifted(profiles(seed, windows=windows), learned)
        assert set(found) == set(FEATURES)
        assert [name for name, one in found.items() if one.value > one.bound] == []


def test_inputs_of_another_kind_are_noticed(learned: Learned) -> None:
    trending = all_shifted(profiles(1, windows=100, trend=0.5), learned)
    assert trending["spread"].value > trending["spread"].bound
    assert trending["latest"].value > trending["latest"].bound
    other_unit = all_shifted(profiles(1, windows=20, scale=1000.0), learned)
    assert {name for name, one in other_unit.items() if one.value > one.bound} == {"level", "change"}
    missing = shifted("missing", [0.5] * 20, learned)
    assert missing is not None
    assert missing.value > missing.bound


def test_the_index_is_the_formula_by_hand(learned: Learned) -> None:
    edges = np.array(learned.quantiles["latest"])
    places = [edges[0] - 1] * 30 + [edges[-1] + 1] * 10
    found = shifted("latest", places, learned)
    shares = (np.array([30.0, *[0.0] * 8, 10.0]) + 0.5) / 45
    assert found is not None
    assert found.value == pytest.approx(float(((shares - 0.1) * np.log(shares / 0.1)).sum()))
    size = 1 / (1 / 40 + 1 / learned.windows)
    assert found.bound == pytest.approx(0.25 + (9 + 3 * math.sqrt(18)) / size)

"""The test that may be looked at any time: seldom wrong however often one looks, quick where there is something to see."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from forecaster.evaluation.sequential_test import apart, capital, standing

ALPHA = 0.05
NAN = float("nan")


def crossings(draw: np.random.Generator, gain: float, *, origins: int, draws: int = 1000) -> np.ndarray:
    """Whether the capital ever says that a challenger is better whose errors are smaller by a share; each is off by 7 %."""
    level = draw.gamma(20, size=(draws, origins))  # what both find difficult
    champion, challenger = (level * draw.gamma(200, size=level.shape) for _ in range(2))
    found = [standing(a, b * (1 - gain)).better for a, b in zip(champion, challenger, strict=True)]
    return np.array(found) >= 1 / ALPHA


def test_an_equal_challenger_is_seldom_called_better_however_often_one_looks() -> None:
    assert crossings(np.random.default_rng(0), 0.0, origins=400).mean() <= ALPHA


def test_a_worse_challenger_is_called_better_even_less() -> None:
    assert crossings(np.random.default_rng(1), -0.02, origins=400).mean() <= ALPHA / 10


@pytest.mark.parametrize(("gain", "origins"), [(0.02, 400), (0.05, 80), (0.2, 15)])
def test_a_better_challenger_is_found_in_time(gain: float, origins: int) -> None:
    assert crossings(np.random.default_rng(2), gain, origins=origins).mean() >= 0.8


@pytest.mark.parametrize("heavy", [1.0, 2.5])
def test_what_is_skewed_and_depends_on_its_past_is_no_excuse(heavy: float) -> None:
    """Observations whose mean, given the past, is zero, but whose spread depends on it: the null hypothesis, no more."""
    draw = np.random.default_rng(3)
    spread = np.minimum(1.0, 0.1 + draw.pareto(heavy, size=(1000, 300)).cumsum(axis=1) % 1)
    skewed = np.where(draw.random(spread.shape) < 0.2, 1.0, -0.25) * spread
    assert np.mean([capital(one).max() >= 1 / ALPHA for one in skewed]) <= ALPHA


@given(arrays.arrays(np.float64, st.integers(0, 40), elements=st.floats(-1, 1)))
def test_capital_is_never_lost_altogether_and_bets_know_no_future(observations: np.ndarray) -> None:
    whole = capital(observations)
    assert (whole > 0).all()
    assert whole[0] == 1
    for end in range(len(observations)):
        np.testing.assert_array_equal(capital(observations[:end]), whole[: end + 1])


def test_capital_is_the_slow_loop() -> None:
    observations = np.random.default_rng(4).uniform(-0.6, 1, size=50)
    wealth, seen = 1.0, [(0.0, 0.25)]
    for one in observations:
        mean, square = (sum(column) / len(seen) for column in zip(*seen, strict=True))
        wealth *= 1 + min(0.9, max(0.0, mean / square)) * one
        seen.append((one, one * one))
    assert capital(observations)[-1] == pytest.approx(wealth)


def test_the_gain_is_of_all_errors_and_the_margin_is_asked_of_both_sides() -> None:
    champion, challenger = np.full(100, 2.0), np.full(100, 1.9)
    found = standing(champion, challenger)
    assert (found.observed, found.worse) == (100, 1.0)
    assert found.gain == pytest.approx(0.05)
    assert found.better > 1e6
    assert standing(challenger, champion).worse == pytest.approx(found.better)
    assert standing(champion, challenger, margin=0.05).better == pytest.approx(1)


def test_nothing_observed_says_nothing() -> None:
    none = np.empty(0)
    assert standing(none, none)[0] == 0
    assert math.isnan(standing(none, none).gain)
    assert standing(none, none)[2:] == (1.0, 1.0)
    assert standing(np.array([NAN, 1.0]), np.array([1.0, NAN])).observed == 0
    assert standing(np.zeros(9), np.zeros(9))[2:] == (1.0, 1.0)


def test_origins_are_a_forecast_apart() -> None:
    def kept(*origins: int, horizon: int) -> list[int]:
        found = np.array(origins, dtype=np.int64)
        return [int(place) for place in apart(found, found + horizon)]

    assert kept(0, 1, 5, 6, 11, 12, 30, horizon=6) == [0, 3, 5, 6]
    assert kept(3, horizon=100) == [0]
    assert kept(horizon=2) == []
    assert apart(np.array([0, 2, 4]), np.array([4, 3, 5])).tolist() == [0, 2]

"""The test that may be looked at any time: seldom wrong however often one looks, quick where there is something to see."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from forecaster.evaluation.sequential_test import betting_capital, select_non_overlapping, sequential_test

ALPHA = 0.05
NAN = float("nan")


def ever_rejects(rng: np.random.Generator, gain: float, *, origins: int, draws: int = 1000) -> np.ndarray:
    """Whether the capital ever says that a challenger is better whose errors are smaller by a share; each is off by 7 %."""
    level = rng.gamma(20, size=(draws, origins))  # what both find difficult
    champion, challenger = (level * rng.gamma(200, size=level.shape) for _ in range(2))
    found = [sequential_test(a, b * (1 - gain)).better for a, b in zip(champion, challenger, strict=True)]
    return np.array(found) >= 1 / ALPHA


def test_an_equal_challenger_is_rarely_declared_better_under_continuous_monitoring() -> None:
    assert ever_rejects(np.random.default_rng(0), 0.0, origins=400).mean() <= ALPHA


def test_a_worse_challenger_is_declared_better_even_less_often() -> None:
    assert ever_rejects(np.random.default_rng(1), -0.02, origins=400).mean() <= ALPHA / 10


@pytest.mark.parametrize(("gain", "origins"), [(0.02, 400), (0.05, 80), (0.2, 15)])
def test_a_better_challenger_is_detected_in_time(gain: float, origins: int) -> None:
    assert ever_rejects(np.random.default_rng(2), gain, origins=origins).mean() >= 0.8


@pytest.mark.parametrize("heavy", [1.0, 2.5])
def test_the_error_rate_holds_for_skewed_and_dependent_observations(heavy: float) -> None:
    """Observations whose mean, given the past, is zero, but whose spread depends on it: the null hypothesis, no more."""
    draw = np.random.default_rng(3)
    spread = np.minimum(1.0, 0.1 + draw.pareto(heavy, size=(1000, 300)).cumsum(axis=1) % 1)
    skewed = np.where(draw.random(spread.shape) < 0.2, 1.0, -0.25) * spread
    assert np.mean([betting_capital(one).max() >= 1 / ALPHA for one in skewed]) <= ALPHA


@given(arrays.arrays(np.float64, st.integers(0, 40), elements=st.floats(-1, 1)))
def test_capital_stays_positive_and_bets_do_not_use_future_observations(observations: np.ndarray) -> None:
    whole = betting_capital(observations)
    assert (whole > 0).all()
    assert whole[0] == 1
    for end in range(len(observations)):
        np.testing.assert_array_equal(betting_capital(observations[:end]), whole[: end + 1])


def test_capital_equals_a_slow_loop() -> None:
    observations = np.random.default_rng(4).uniform(-0.6, 1, size=50)
    wealth, seen = 1.0, [(0.0, 0.25)]
    for one in observations:
        mean, square = (sum(column) / len(seen) for column in zip(*seen, strict=True))
        wealth *= 1 + min(0.9, max(0.0, mean / square)) * one
        seen.append((one, one * one))
    assert betting_capital(observations)[-1] == pytest.approx(wealth)


def test_the_gain_uses_all_errors_and_the_margin_applies_to_both_sides() -> None:
    champion, challenger = np.full(100, 2.0), np.full(100, 1.9)
    found = sequential_test(champion, challenger)
    assert (found.observed, found.worse) == (100, 1.0)
    assert found.gain == pytest.approx(0.05)
    assert found.better > 1e6
    assert sequential_test(challenger, champion).worse == pytest.approx(found.better)
    assert sequential_test(champion, challenger, margin=0.05).better == pytest.approx(1)


def test_no_observations_give_no_decision() -> None:
    none = np.empty(0)
    assert sequential_test(none, none)[0] == 0
    assert math.isnan(sequential_test(none, none).gain)
    assert sequential_test(none, none)[2:] == (1.0, 1.0)
    assert sequential_test(np.array([NAN, 1.0]), np.array([1.0, NAN])).observed == 0
    assert sequential_test(np.zeros(9), np.zeros(9))[2:] == (1.0, 1.0)


def test_origins_are_at_least_one_horizon_apart() -> None:
    def kept(*origins: int, horizon: int) -> list[int]:
        found = np.array(origins, dtype=np.int64)
        return [int(place) for place in select_non_overlapping(found, found + horizon)]

    assert kept(0, 1, 5, 6, 11, 12, 30, horizon=6) == [0, 3, 5, 6]
    assert kept(3, horizon=100) == [0]
    assert kept(horizon=2) == []
    assert select_non_overlapping(np.array([0, 2, 4]), np.array([4, 3, 5])).tolist() == [0, 2]

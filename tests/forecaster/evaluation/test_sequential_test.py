"""The sequential test: rarely wrong under continuous monitoring, and quick to detect a real difference."""

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
    """Returns whether the capital ever rejects for a challenger with errors smaller by `gain`; each error has 7 % of noise."""
    level = rng.gamma(20, size=(draws, origins))  # difficulty of the origin, common to both
    champion, challenger = (level * rng.gamma(200, size=level.shape) for _ in range(2))
    capitals = [sequential_test(a, b * (1 - gain)).better for a, b in zip(champion, challenger, strict=True)]
    return np.array(capitals) >= 1 / ALPHA


def test_an_equal_challenger_is_rarely_declared_better_under_continuous_monitoring() -> None:
    assert ever_rejects(np.random.default_rng(0), 0.0, origins=400).mean() <= ALPHA


def test_a_worse_challenger_is_declared_better_even_less_often() -> None:
    assert ever_rejects(np.random.default_rng(1), -0.02, origins=400).mean() <= ALPHA / 10


@pytest.mark.parametrize(("gain", "origins"), [(0.02, 400), (0.05, 80), (0.2, 15)])
def test_a_better_challenger_is_detected_in_time(gain: float, origins: int) -> None:
    assert ever_rejects(np.random.default_rng(2), gain, origins=origins).mean() >= 0.8


@pytest.mark.parametrize("heavy", [1.0, 2.5])
def test_the_error_rate_holds_for_skewed_and_dependent_observations(heavy: float) -> None:
    """Observations have mean zero given the past, but a spread that depends on it: exactly the null hypothesis."""
    rng = np.random.default_rng(3)
    spread = np.minimum(1.0, 0.1 + rng.pareto(heavy, size=(1000, 300)).cumsum(axis=1) % 1)
    skewed = np.where(rng.random(spread.shape) < 0.2, 1.0, -0.25) * spread
    assert np.mean([betting_capital(observations).max() >= 1 / ALPHA for observations in skewed]) <= ALPHA


@given(arrays.arrays(np.float64, st.integers(0, 40), elements=st.floats(-1, 1)))
def test_capital_stays_positive_and_bets_do_not_use_future_observations(observations: np.ndarray) -> None:
    capital = betting_capital(observations)
    assert (capital > 0).all()
    assert capital[0] == 1
    for end in range(len(observations)):
        np.testing.assert_array_equal(betting_capital(observations[:end]), capital[: end + 1])


def test_capital_equals_a_slow_loop() -> None:
    observations = np.random.default_rng(4).uniform(-0.6, 1, size=50)
    capital, history = 1.0, [(0.0, 0.25)]
    for observation in observations:
        mean, square = (sum(column) / len(history) for column in zip(*history, strict=True))
        capital *= 1 + min(0.9, max(0.0, mean / square)) * observation
        history.append((observation, observation * observation))
    assert betting_capital(observations)[-1] == pytest.approx(capital)


def test_the_gain_uses_all_errors_and_the_margin_applies_to_both_sides() -> None:
    champion, challenger = np.full(100, 2.0), np.full(100, 1.9)
    result = sequential_test(champion, challenger)
    assert (result.observed, result.worse) == (100, 1.0)
    assert result.gain == pytest.approx(0.05)
    assert result.better > 1e6
    assert sequential_test(challenger, champion).worse == pytest.approx(result.better)
    assert sequential_test(champion, challenger, margin=0.05).better == pytest.approx(1)


def test_no_observations_give_no_decision() -> None:
    empty = np.empty(0)
    assert sequential_test(empty, empty)[0] == 0
    assert math.isnan(sequential_test(empty, empty).gain)
    assert sequential_test(empty, empty)[2:] == (1.0, 1.0)
    assert sequential_test(np.array([NAN, 1.0]), np.array([1.0, NAN])).observed == 0
    assert sequential_test(np.zeros(9), np.zeros(9))[2:] == (1.0, 1.0)


def test_origins_are_at_least_one_horizon_apart() -> None:
    def select(*origins: int, horizon: int) -> list[int]:
        timestamps = np.array(origins, dtype=np.int64)
        return [int(index) for index in select_non_overlapping(timestamps, timestamps + horizon)]

    assert select(0, 1, 5, 6, 11, 12, 30, horizon=6) == [0, 3, 5, 6]
    assert select(3, horizon=100) == [0]
    assert select(horizon=2) == []
    assert select_non_overlapping(np.array([0, 2, 4]), np.array([4, 3, 5])).tolist() == [0, 2]

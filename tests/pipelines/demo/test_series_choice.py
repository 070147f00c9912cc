"""The rule by which the demo chooses the series that it shows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from forecaster.series import Series
from pipelines.demo.series_choice import choose_series, compute_season_strength

SEASON, STEPS = 12, 72


def make_monthly_series(amplitude: float, *, name: str = "a", seed: int = 0) -> Series:
    steps = np.arange(STEPS)
    noise = np.random.default_rng(seed).normal(size=STEPS)
    y = 100 + 0.2 * steps + amplitude * np.sin(2 * np.pi * steps / SEASON) + noise
    return Series(name, pd.Timestamp("2000-01-01"), "MS", y)


def test_the_strength_of_a_season_is_its_share_of_the_variance_around_the_trend() -> None:
    strengths = [compute_season_strength(make_monthly_series(amplitude).y, SEASON) for amplitude in (0.0, 1.0, 100.0)]
    assert strengths == sorted(strengths)
    assert strengths[0] < 0.4, "twelve means explain a part of any noise"
    assert strengths[-1] > 0.98
    gaps = make_monthly_series(100.0).y.copy()
    gaps[::7] = np.nan
    assert compute_season_strength(gaps, SEASON) > 0.98


@pytest.mark.parametrize(
    "y", [np.full(STEPS, 5.0), np.zeros(STEPS), np.arange(STEPS), np.arange(20.0), np.full(STEPS, np.nan)]
)
def test_a_history_without_a_season_has_no_strength(y: np.ndarray) -> None:
    assert compute_season_strength(np.asarray(y, dtype=np.float64), SEASON) == pytest.approx(0, abs=0.1)


def test_the_quartiles_of_the_error_are_chosen_among_the_most_seasonal_quarter() -> None:
    histories = [make_monthly_series(50.0 if number % 4 == 0 else 0.0, seed=number) for number in range(80)]
    errors = np.random.default_rng(0).permutation(80).astype(float)
    chosen = choose_series(histories, errors, season=SEASON)
    eligible = sorted(errors[::4])
    assert [choice.error for choice in chosen] == [eligible[5], eligible[10], eligible[14]]
    assert all(choice.series_index % 4 == 0 and errors[choice.series_index] == choice.error for choice in chosen)
    assert [choice.position for choice in chosen] == ["lower quartile", "median", "upper quartile"]


def test_series_without_an_error_are_not_chosen_and_errors_do_not_decide_who_is_eligible() -> None:
    histories = [make_monthly_series(5.0 * number, seed=1) for number in range(12)]
    errors = np.arange(12.0)
    errors[-1] = np.nan
    chosen = choose_series(histories, errors, season=SEASON)
    assert sorted(choice.series_index for choice in chosen) == [8, 9, 10]
    reversed_errors = choose_series(histories, -errors, season=SEASON)
    assert sorted(choice.series_index for choice in reversed_errors) == [8, 9, 10]


def test_fewer_series_than_positions_are_chosen_repeatedly() -> None:
    chosen = choose_series([make_monthly_series(5.0)], np.array([0.5]), season=SEASON)
    assert [choice.series_index for choice in chosen] == [0, 0, 0]

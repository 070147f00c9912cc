"""The choice of the simplest candidate that is not clearly worse, on errors given by hand and on noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from forecaster.evaluation.one_standard_error import choose_simplest, measure_difference
from forecaster.shapes import Float64

Errors = Float64[np.ndarray, "series window"]


def make_errors(series: int, windows: int, *, seed: int = 0) -> Errors:
    return 1 + 0.2 * np.random.default_rng(seed).normal(size=(series, windows))


def test_a_hair_does_not_decide_and_a_clear_difference_does() -> None:
    base, noise = make_errors(50, 5), 0.1 * np.random.default_rng(1).normal(size=(50, 5))
    noise -= noise.mean()
    simple = base + noise + 0.001
    hair = choose_simplest([simple, base])
    assert (hair.chosen, hair.best) == (0, 1)
    assert hair.differences[0].mean == pytest.approx(0.001)
    clear = choose_simplest([base + noise + 0.05, base])
    assert (clear.chosen, clear.best) == (1, 1)
    assert choose_simplest([base, simple]).chosen == 0, "the simplest is the best"


def test_the_first_of_several_equally_good_candidates_is_chosen() -> None:
    base = make_errors(30, 5)
    assert choose_simplest([base + 0.5, base, base]).chosen == 1
    assert choose_simplest([base, base, make_errors(30, 5, seed=1) + 0.2]).chosen == 0


def test_the_standard_error_is_the_larger_of_those_over_series_and_over_windows() -> None:
    by_series = np.arange(12.0)[:, None] + np.zeros((12, 6))
    difference = measure_difference(by_series)
    assert difference.mean == 5.5
    assert difference.standard_error == pytest.approx(np.arange(12.0).std(ddof=1) / math.sqrt(12))
    assert difference.units == "12 series"
    by_window = np.arange(6.0) + np.zeros((12, 1))
    difference = measure_difference(by_window)
    assert difference.standard_error == pytest.approx(np.arange(6.0).std(ddof=1) / math.sqrt(6))
    assert difference.units == "6 windows"


@pytest.mark.parametrize(
    ("series", "windows", "overlap", "units"),
    [
        (12, 3, 1.0, "12 series"),
        (3, 6, 1.0, "6 windows"),
        (3, 3, 1.0, "3 windows of 3 series"),
        (12, 9, 2.0, "9 windows"),  # five fit beside each other
        (12, 8, 2.0, "12 series"),
        (1, 8, 2.0, "8 windows of 1 series"),
    ],
)
def test_few_series_and_few_windows_are_not_relied_on(series: int, windows: int, overlap: float, units: str) -> None:
    by_window = np.arange(float(windows)) + 1e-3 * np.arange(series)[:, None]
    assert measure_difference(by_window, overlap=overlap).units == units


def test_overlapping_windows_count_as_those_that_fit_beside_each_other() -> None:
    differences = make_errors(1, 21)
    separate, overlapping = measure_difference(differences), measure_difference(differences, overlap=4.0)
    assert overlapping.standard_error == pytest.approx(separate.standard_error * math.sqrt(21 / 6))


def test_only_what_all_candidates_have_counts_and_a_diverged_one_is_never_chosen() -> None:
    base = make_errors(20, 5)
    with_gap = base + 0.5
    with_gap[:, 0] = np.nan
    other = base.copy()
    other[:, 0] = -100.0
    choice = choose_simplest([None, with_gap, other])
    assert choice.chosen == choice.best == 2
    assert choice.means[0] == math.inf
    assert choice.means[2] == pytest.approx(base[:, 1:].mean())
    assert choose_simplest([None, None]).chosen == 0
    assert choose_simplest([None, base]).chosen == 1


def test_one_diverged_forecast_is_clearly_worse_although_its_standard_error_is_as_large() -> None:
    base = make_errors(100, 5)
    diverged = base - 0.001
    diverged[7] = 1e4
    choice = choose_simplest([diverged, base])
    assert choice.differences[0].mean < choice.differences[0].standard_error
    assert choice.chosen == 1


def test_a_single_error_is_compared_as_it_is() -> None:
    assert choose_simplest([np.array([[1.01]]), np.array([[1.0]])]).chosen == 1
    assert choose_simplest([np.array([[1.0]]), np.array([[1.0]])]).chosen == 0


@pytest.mark.parametrize(("series", "windows"), [(200, 1), (40, 5), (1, 40)])
def test_of_equally_good_candidates_the_richer_one_is_rarely_chosen(series: int, windows: int) -> None:
    """By chance the richer one has the lower error in one of two draws, and by a standard error in one of six."""
    draws = [np.random.default_rng(seed).normal(size=(2, series, windows)) for seed in range(300)]
    choices = [choose_simplest(list(10 + 0.3 * draw)) for draw in draws]
    assert 0.4 < np.mean([choice.best for choice in choices]) < 0.6
    assert np.mean([choice.chosen for choice in choices]) < 0.22


def test_with_more_evidence_the_better_candidate_is_chosen() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for series in (10, 1000):
        better = [
            choose_simplest([10 + rng.normal(size=(series, 5)), 9.9 + rng.normal(size=(series, 5))]) for _ in range(40)
        ]
        shares.append(np.mean([choice.chosen for choice in better]))
    assert shares[1] > 0.95 > shares[0]

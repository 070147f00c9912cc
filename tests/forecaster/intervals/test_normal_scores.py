"""Normal scores of actuals under a head, and the quantiles that have given scores, are inverse to each other."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecaster.intervals.normal_scores import MAX_SCORE, compute_quantiles, compute_scores

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
NORMAL = np.array([NormalDist().inv_cdf(level) for level in LEVELS])


def test_scores_of_a_normal_head_are_deviations_over_its_standard_deviation() -> None:
    deviations = np.array([-4.0, -1.0, 0.0, 0.3, 2.0, 6.0])
    offsets = np.broadcast_to(2 * NORMAL, (6, 5))
    np.testing.assert_allclose(compute_scores(deviations, offsets, LEVELS), deviations / 2, atol=1e-4)


def test_each_tail_has_its_own_width() -> None:
    offsets = np.where(NORMAL > 0, 3 * NORMAL, NORMAL)[None]
    scores = [float(compute_scores(np.array([value]), offsets, LEVELS)[0]) for value in (-2.0, 6.0)]
    assert scores == pytest.approx([-2.0, 2.0], abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(
    gaps=st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    score=st.floats(-6, 6),
)
def test_quantiles_and_scores_are_inverse(gaps: list[float], score: float) -> None:
    knots = np.cumsum([0.0, *gaps])
    offsets = (knots - knots[2])[None, None]
    value = compute_quantiles(np.array([[score]]), offsets, LEVELS)[0, 0]
    assert compute_scores(value, offsets[0], LEVELS)[0] == pytest.approx(score, abs=2e-3 * (1 + max(gaps) / min(gaps)))


def test_quantiles_are_those_of_the_head_at_its_own_scores_and_rise_with_the_score() -> None:
    offsets = np.sort(np.random.default_rng(0).standard_normal((3, 4, 5)), axis=2)
    offsets -= offsets[:, :, [2]]
    np.testing.assert_allclose(compute_quantiles(np.tile(NORMAL, (3, 1)), offsets, LEVELS), offsets, atol=1e-12)
    scores = np.tile(np.linspace(-3, 3, 41), (3, 1))
    assert (np.diff(compute_quantiles(scores, offsets, LEVELS), axis=2) >= 0).all()


def test_missing_actuals_and_heads_without_spread_have_no_score() -> None:
    offsets = np.stack([NORMAL, NORMAL, np.zeros(5)])
    scores = compute_scores(np.array([np.nan, 1e300, 1.0]), offsets, LEVELS)
    assert np.isnan(scores[[0, 2]]).all()
    assert scores[1] == MAX_SCORE


def test_a_median_at_the_edge_extrapolates_the_line_of_its_neighbour() -> None:
    scores = compute_scores(np.array([-1.0]), np.array([[0.0, 1.2815515655]]), (0.5, 0.9))
    assert scores[0] == pytest.approx(-1.0, abs=1e-4)

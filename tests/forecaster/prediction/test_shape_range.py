"""Histories that are unlike all that a network has learned from are found by numbers without units."""

from __future__ import annotations

import numpy as np
import pytest

from forecaster.prediction.shape_range import (
    SHAPE_FEATURES,
    compute_shape_features,
    find_unfamiliar_features,
    learn_shape_ranges,
    read_shape_ranges,
)

SEASON = 12


def make_walks(count: int, *, steps: int = 120, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list(np.cumsum(rng.standard_normal((count, steps)), axis=1))


def test_features_equal_their_definitions() -> None:
    y = np.random.default_rng(3).standard_normal(60).cumsum()
    y[20:24] = np.nan
    [features] = compute_shape_features([y], season=SEASON)
    change, seasonal, long = (y[lag:] - y[:-lag] for lag in (1, SEASON, 4 * SEASON))
    values = dict(zip(SHAPE_FEATURES, features, strict=True))
    assert values["season"] == pytest.approx(np.log(np.nanmean(np.abs(seasonal)) / np.nanmean(np.abs(change))))
    assert values["jump"] == pytest.approx(np.log(np.nanmax(np.abs(change)) / np.nanmean(np.abs(change))))
    assert values["memory"] == pytest.approx(np.nanmean(change[1:] * change[:-1]) / np.nanmean(change**2))
    assert values["walk"] == pytest.approx(np.log(np.nanmean(long**2) / 4 / np.nanmean(seasonal**2)))
    assert values["missing"] == pytest.approx(4 / 60)


def test_features_have_no_units_and_do_not_depend_on_other_histories() -> None:
    walks = make_walks(5)
    features = compute_shape_features(walks, season=SEASON)
    shifted = compute_shape_features([1e6 + 250.0 * walk for walk in walks], season=SEASON)
    np.testing.assert_allclose(features, shifted, rtol=1e-6)
    alone = np.concatenate([compute_shape_features([walk[:80]], season=SEASON) for walk in walks])
    together = compute_shape_features([*(walk[:80] for walk in walks), *make_walks(3, steps=300)], season=SEASON)
    np.testing.assert_allclose(together[:5], alone)


def test_a_history_with_an_enormous_jump_is_unfamiliar_and_described() -> None:
    ranges = learn_shape_ranges(compute_shape_features(make_walks(2000), season=SEASON))
    ordinary, strange = make_walks(2, seed=9)
    strange[60] += 1e4
    found = list(find_unfamiliar_features([ordinary, strange], ranges, season=SEASON))
    assert found[0] == []
    assert "jump" in {feature.name for feature in found[1]}
    assert "the largest change relative to the mean change is" in "; ".join(feature.describe() for feature in found[1])


@pytest.mark.parametrize("history", [np.full(50, 3.0), np.array([1.0, 2.0]), np.full(30, np.nan)])
def test_a_history_without_features_is_not_judged(history: np.ndarray) -> None:
    ranges = learn_shape_ranges(compute_shape_features(make_walks(500), season=SEASON))
    [found] = find_unfamiliar_features(
        [history], {**ranges, "missing": (0.0, 1.0), "repeats": (0.0, 1.0)}, season=SEASON
    )
    assert found == []


def test_facts_without_ranges_judge_nothing() -> None:
    assert read_shape_ranges({}) is None
    assert read_shape_ranges({"shape_ranges": {"jump": [0.1, 4.0], "unknown": [0, 1]}}) == {"jump": (0.1, 4.0)}

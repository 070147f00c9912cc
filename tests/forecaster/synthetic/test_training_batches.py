"""Batches for pretraining: shapes, missing values, the mixture of seasons, and determinism."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from forecaster.errors import InputError
from forecaster.synthetic.training_batches import SEASON_WEIGHTS, draw_batch, draw_shape, find_length_range


@pytest.mark.parametrize("season", sorted(SEASON_WEIGHTS))
def test_a_batch_is_finite_but_for_missing_values_and_determined_by_its_seed(season: int) -> None:
    arguments = {"season": season, "length": find_length_range(season).shortest + 24, "count": 200}
    first, again, other = (draw_batch(np.random.default_rng(seed), **arguments) for seed in (3, 3, 4))
    assert first.shape == (200, arguments["length"])
    assert first.dtype == np.float32
    assert not np.isinf(first).any()
    assert 0 < np.isnan(first).any(axis=1).mean() < 0.3
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other, equal_nan=True)


def test_the_second_season_is_that_of_the_argument() -> None:
    batches = [
        draw_batch(np.random.default_rng(0), season=24, second_season=second, length=400, count=40)
        for second in (None, 168, 0, 120)
    ]
    np.testing.assert_array_equal(batches[0], batches[1])
    assert not np.array_equal(batches[0], batches[2], equal_nan=True)
    assert not np.array_equal(batches[0], batches[3], equal_nan=True)


def test_seasons_are_as_frequent_as_documented_and_lengths_fill_their_range() -> None:
    rng = np.random.default_rng(0)
    shapes = [draw_shape(rng) for _ in range(6000)]
    seasons = np.array([shape.season for shape in shapes])
    assert sum(SEASON_WEIGHTS.values()) == pytest.approx(100)
    for season, weight in SEASON_WEIGHTS.items():
        assert (seasons == season).mean() == pytest.approx(weight / 100, abs=0.02)
        lengths = [shape.length for shape in shapes if shape.season == season]
        shortest, longest = find_length_range(season)
        assert shortest <= min(lengths)
        assert max(lengths) <= longest
        if weight > 5:
            assert max(lengths) - min(lengths) > 0.9 * (longest - shortest)


def test_shapes_are_determined_by_the_generator() -> None:
    first, again = ([draw_shape(rng) for _ in range(20)] for rng in map(np.random.default_rng, (7, 7)))
    assert first == again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"season": 0}, r"Expected `season` of at least 1; found 0\. Use a larger number"),
        ({"second_season": -1}, r"Expected `second_season` of at least 0; found -1"),
        ({"length": 1}, r"Expected `length` of at least 2; found 1"),
        ({"count": 0}, r"Expected `count` of at least 1; found 0"),
    ],
)
def test_numbers_that_are_too_small_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_batch(np.random.default_rng(0), **{"season": 12, "length": 20, "count": 2, **arguments})

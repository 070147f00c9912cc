"""CUSUM charts against hand computations, and input drift measures on similar and on different samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from forecaster.data.profile import (
    PROFILE_FEATURES,
    QUANTILE_LEVELS,
    TrainingProfile,
    build_training_profile,
    compute_profile,
)
from forecaster.evaluation.drift_detection import (
    CONTROL_LIMIT,
    average_run_length,
    control_limit_for,
    cusum,
    measure_shift,
    measure_shifts,
    moving_range_std,
)
from tests.factories import make_series


def test_the_cusum_chart_equals_the_formula() -> None:
    chart = cusum(np.array([1.0, -0.25, 2.0, 2.5, -3.0, -3.0]), k=0.5, h=3.0)
    assert chart.upper.tolist() == [0.5, 0.0, 1.5, 3.5, 0.0, 0.0]
    assert chart.lower.tolist() == [0.0, 0.0, 0.0, 0.0, 2.5, 5.0]
    assert (chart.alarm, chart.direction) == (3, "above")
    falling = cusum(np.array([-2.0, -2.0, -2.0]), k=0.5, h=4.0)
    assert (falling.lower.tolist(), falling.alarm, falling.direction) == ([1.5, 3.0, 4.5], 2, "below")
    assert cusum(np.zeros(0)).alarm is None


def test_a_single_outlier_is_not_a_change() -> None:
    assert cusum(np.array([0.0, 1e9, 0.0, 0.0])).alarm is None


def test_run_lengths_equal_the_published_tables() -> None:
    """Montgomery 2009, table 9.3: two-sided, k = 1/2, no shift: 168 at h = 4, 465 at h = 5."""
    assert average_run_length(4.0) == pytest.approx(168, rel=0.02)
    assert average_run_length(5.0) == pytest.approx(465, rel=0.02)


def test_run_lengths_equal_simulated_ones() -> None:
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(300):
        chart = cusum(rng.normal(size=1500), h=4.0)
        lengths.append(1500 if chart.alarm is None else chart.alarm + 1)
    assert np.mean(lengths) == pytest.approx(168, rel=0.2)


def test_the_threshold_keeps_false_alarms_rare() -> None:
    assert control_limit_for(5) == CONTROL_LIMIT
    h = control_limit_for(500)
    assert 500 / average_run_length(h) <= 0.05 < 500 / average_run_length(h - 0.11)
    rng = np.random.default_rng(1)
    alarms = sum(cusum(rng.normal(size=500), h=h).alarm is not None for _ in range(200))
    assert alarms <= 20


def test_the_spread_is_measured_independently_of_the_level() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(0, 3, 4000)
    assert moving_range_std(values) == pytest.approx(3, rel=0.05)
    values[2000:] += 50
    assert moving_range_std(values) == pytest.approx(3, rel=0.05)


def test_a_profile_has_the_expected_values() -> None:
    profile = compute_profile(np.array([99.0, 1.0, np.nan, 3.0, 2.0]), context=4, season=1)
    assert profile["level"] == 2.0
    assert profile["change"] == 1.5
    assert profile["missing"] == 0.25
    assert profile["spread"] == pytest.approx(math.sqrt(2 / 3) / 1.5)
    assert profile["latest"] == 0.0
    assert compute_profile(np.full(4, np.nan), context=4, season=1) == {"missing": 1.0}
    assert set(compute_profile(np.full(9, 7.0), context=4, season=1)) == {"level", "change", "missing"}


def test_the_latest_season_is_used_when_the_window_has_two() -> None:
    profile = compute_profile(np.array([1.0, 1.0, 1.0, 5.0]), context=4, season=2)
    assert profile["latest"] == pytest.approx((3 - 2) / math.sqrt(3))
    assert compute_profile(np.array([1.0, 1.0, 1.0, 5.0]), context=4, season=3)["latest"] == pytest.approx(
        3 / math.sqrt(3)
    )
    assert "latest" not in compute_profile(np.array([1.0, 2.0, np.nan, np.nan]), context=4, season=2)


@pytest.mark.parametrize(("season", "detected"), [(24, False), (1, True)])
def test_requests_at_midnight_only_are_not_input_drift(season: int, detected: bool) -> None:
    rng, clock = np.random.default_rng(3), np.arange(40 * 24)
    days = [10 + np.cos(2 * np.pi * clock / 24) + 0.2 * rng.normal(size=len(clock)) for _ in range(30)]
    reference = build_training_profile([make_series(y) for y in days], context=72, season=season)
    shifts = measure_shifts([compute_profile(y[: 36 * 24], context=72, season=season) for y in days], reference)
    assert (shifts["latest"].value > shifts["latest"].bound) == detected


def make_profiles(seed: int, *, windows: int, scale: float = 1.0, trend: float = 0.0) -> list[dict[str, float]]:
    rng = np.random.default_rng(seed)
    y = scale * (10 + rng.normal(size=(windows, 24)) + trend * np.arange(24))
    return [compute_profile(row, context=24, season=1) for row in y]


@pytest.fixture(scope="module")
def reference_profile() -> TrainingProfile:
    rng = np.random.default_rng(0)
    return build_training_profile([make_series(10 + rng.normal(size=480)) for _ in range(50)], context=24, season=1)


def test_the_reference_profile_is_small_and_plain(reference_profile: TrainingProfile) -> None:
    assert set(reference_profile.quantiles) == set(PROFILE_FEATURES)
    assert {len(values) for values in reference_profile.quantiles.values()} == {len(QUANTILE_LEVELS)}
    assert len(reference_profile.model_dump_json()) < 1000
    assert TrainingProfile.model_validate_json(reference_profile.model_dump_json()) == reference_profile


@pytest.mark.parametrize("windows", [5, 40, 400])
def test_inputs_like_those_in_training_pass(reference_profile: TrainingProfile, windows: int) -> None:
    for seed in range(10):
        shifts = measure_shifts(make_profiles(seed, windows=windows), reference_profile)
        assert set(shifts) == set(PROFILE_FEATURES)
        assert [name for name, shift in shifts.items() if shift.value > shift.bound] == []


def test_different_inputs_are_detected(reference_profile: TrainingProfile) -> None:
    trending = measure_shifts(make_profiles(1, windows=100, trend=0.5), reference_profile)
    assert trending["spread"].value > trending["spread"].bound
    assert trending["latest"].value > trending["latest"].bound
    other_unit = measure_shifts(make_profiles(1, windows=20, scale=1000.0), reference_profile)
    assert {name for name, shift in other_unit.items() if shift.value > shift.bound} == {"level", "change"}
    missing = measure_shift("missing", [0.5] * 20, reference_profile)
    assert missing is not None
    assert missing.value > missing.bound


def test_the_stability_index_equals_the_formula(reference_profile: TrainingProfile) -> None:
    edges = np.array(reference_profile.quantiles["latest"])
    values = [edges[0] - 1] * 30 + [edges[-1] + 1] * 10
    shift = measure_shift("latest", values, reference_profile)
    shares = (np.array([30.0, *[0.0] * 8, 10.0]) + 0.5) / 45
    assert shift is not None
    assert shift.value == pytest.approx(float(((shares - 0.1) * np.log(shares / 0.1)).sum()))
    size = 1 / (1 / 40 + 1 / reference_profile.windows)
    assert shift.bound == pytest.approx(0.25 + (9 + 3 * math.sqrt(18)) / size)

"""What holds for every family of generated series, and the law of each."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from forecaster.errors import InputError
from forecaster.synthetic.calendar_effects import draw_calendar_effects, draw_day_factors, measure_holiday_distance
from forecaster.synthetic.families import MAX_LEAD
from forecaster.synthetic.generation import FAMILIES, generate
from forecaster.synthetic.processes import draw_gaussian_process, smooth_exponentially
from forecaster.synthetic.sampling import SeriesShape
from forecaster.synthetic.seasons import draw_pattern
from forecaster.synthetic.trends import draw_drift
from forecaster.synthetic.weekly_profiles import draw_weekly_profiles

LENGTH, SEASON = 240, 12


def draw_values(family: str, *, num_series: int = 400, length: int = LENGTH, season: int = SEASON) -> np.ndarray:
    return generate(family, num_series=num_series, length=length, season=season, seed=3).values


def autocorrelation(values: np.ndarray, lag: int) -> np.ndarray:
    """The autocorrelation of each series at a lag."""
    centred = values - values.mean(axis=1, keepdims=True)
    return (centred[:, lag:] * centred[:, :-lag]).sum(axis=1) / (centred**2).sum(axis=1)


def variance_ratio(values: np.ndarray, span: int) -> np.ndarray:
    """The variance of changes over `span` steps, over `span` times that of single steps (Lo and MacKinlay 1988)."""
    single, long = np.diff(values, axis=1), values[:, span:] - values[:, :-span]
    return (long**2).mean(axis=1) / (span * (single**2).mean(axis=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_reproducible_described_and_finite(family: str) -> None:
    first, again, other = (generate(family, num_series=5, length=60, season=12, seed=seed).values for seed in (7, 7, 8))
    assert first.shape == (5, 60)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other, equal_nan=True)
    assert not np.isinf(first).any()
    assert np.isnan(first).any(axis=1).sum() <= (5 if family in ("missing_values", "mixture") else 0)
    assert len(FAMILIES[family].description.split()) > 5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("season", "length"), [(1, 2), (1, 40), (4, 3), (7, 400), (24, 200), (52, 30)])
def test_a_family_has_series_of_any_length_and_season(family: str, season: int, length: int) -> None:
    values = generate(family, num_series=3, length=length, season=season).values
    assert values.shape == (3, length)
    assert np.isfinite(values[:, [0, -1]]).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_series_of_a_family_are_independent(family: str) -> None:
    """The changes of neighbouring series are uncorrelated; the calendar, which all series share, is the exception."""
    changes = np.diff(np.nan_to_num(draw_values(family, num_series=200)), axis=1)
    assert len(np.unique(changes, axis=0)) > 195  # rows differ
    changes = np.clip(changes, *np.quantile(changes, (0.01, 0.99), axis=1)[..., None])
    centred = changes - changes.mean(axis=1, keepdims=True)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    correlations = (unit[1:] * unit[:-1]).sum(axis=1)
    assert abs(correlations.mean()) < (0.5 if family == "calendar" else 0.08)


def test_white_noise_has_no_autocorrelation_and_a_deviation_of_one() -> None:
    values = draw_values("white_noise")
    assert abs(autocorrelation(values, 1).mean() + 1 / LENGTH) < 0.02
    assert np.median(values.std(axis=1)) == pytest.approx(1, abs=0.05)


def test_a_random_walk_has_a_variance_ratio_of_one_and_no_drift() -> None:
    values = draw_values("random_walk", num_series=1500)
    assert np.mean(variance_ratio(values, 12)) == pytest.approx(1, abs=0.06)
    changes = np.diff(values, axis=1)
    t_values = changes.mean(axis=1) / changes.std(axis=1) * np.sqrt(LENGTH - 1)
    assert abs(t_values.mean()) < 0.1
    assert t_values.std() == pytest.approx(1, abs=0.1)


def test_a_smoothed_level_has_no_drift_and_changes_that_are_partly_taken_back() -> None:
    values = draw_values("smoothed_level", num_series=1500)
    changes = np.diff(values, axis=1)
    assert abs(np.median(values[:, -1] - values[:, 0])) < 0.5
    assert np.mean(autocorrelation(changes, 1)) < -0.2
    assert np.quantile(autocorrelation(changes, 1), 0.99) < 0.3


@pytest.mark.parametrize("family", ["random_walk_with_drift", "smoothed_level_with_drift"])
def test_a_drift_persists_and_is_mostly_upward(family: str) -> None:
    values = draw_values(family, num_series=1000)
    half = LENGTH // 2
    first, second = values[:, half] - values[:, 0], values[:, -1] - values[:, half]
    assert np.mean(np.sign(first) == np.sign(second)) > 0.6
    assert np.mean(values[:, -1] > values[:, 0]) > 0.6


def test_years_have_more_drift_beside_their_noise_than_months() -> None:
    rng = np.random.default_rng(0)
    yearly, monthly = (np.abs(draw_drift(SeriesShape(4000, 2, season), rng)).mean() for season in (1, 12))
    assert yearly > 2 * monthly


def test_exponential_smoothing_with_the_same_weight_leaves_the_noise() -> None:
    rng = np.random.default_rng(1)
    noise, weight, drift = rng.standard_normal((4, 50)), rng.random((4, 1)), rng.standard_normal((4, 1))
    values = smooth_exponentially(noise, weight=weight, drift=drift)
    level, errors = np.zeros(4), np.empty_like(noise)
    for step in range(50):
        errors[:, step] = values[:, step] - (level + drift[:, 0])
        level = level + drift[:, 0] + weight[:, 0] * errors[:, step]
    np.testing.assert_allclose(errors, noise, atol=1e-10)


def test_a_mean_reverting_series_returns_to_its_mean() -> None:
    values = draw_values("mean_reverting")
    assert np.mean(variance_ratio(values, 60)) < 0.5
    assert np.mean(autocorrelation(values, 1)) > 0.5


def test_a_trend_explains_most_of_long_changes() -> None:
    values = draw_values("trend")
    thirds = values.reshape(400, 3, -1).mean(axis=2)
    assert np.median(np.abs(thirds[:, 2] - thirds[:, 0])) > 1.0
    assert np.mean(variance_ratio(draw_values("local_trend"), 12)) != pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("family", ["seasonal", "several_seasons", "level_shifts"])
def test_a_seasonal_family_has_the_season_in_its_autocorrelation(family: str) -> None:
    changes = np.diff(draw_values(family), axis=1)
    at_season = autocorrelation(changes, SEASON)
    assert np.median(at_season) > 0.5
    assert np.median(at_season) > np.median(autocorrelation(changes, SEASON - 1)) + 0.3


@pytest.mark.parametrize("family", ["components", "ets", "sarima", "multiplicative", "mixture"])
def test_a_general_family_is_often_seasonal(family: str) -> None:
    changes = np.diff(np.nan_to_num(draw_values(family, num_series=1000)), axis=1)
    excess = autocorrelation(changes, SEASON) - autocorrelation(changes, SEASON - 1)
    assert 0.25 < np.mean(excess > 0.2) < 0.9
    without = np.diff(np.nan_to_num(draw_values(family, num_series=1000, season=1)), axis=1)
    assert np.mean(autocorrelation(without, SEASON) - autocorrelation(without, SEASON - 1) > 0.2) < 0.1


@pytest.mark.parametrize(("season", "long_season"), [(24, 168), (7, 365)])
def test_several_seasons_repeat_after_the_long_season_too(season: int, long_season: int) -> None:
    values = draw_values("several_seasons", num_series=150, length=4 * long_season, season=season)
    sums = np.cumsum(values, axis=1)
    means = (sums[:, season:] - sums[:, :-season]) / season  # without the short season
    same, opposite = (
        [np.corrcoef(row[lag:], row[:-lag])[0, 1] for row in means] for lag in (long_season, long_season // 2)
    )
    assert np.median(same) > np.median(opposite) + 0.3
    assert SeriesShape(1, 1, season).long_season == long_season


def test_the_days_of_a_week_have_profiles_of_their_own() -> None:
    """Days are like those a week before, and some weekends differ in shape; without a longer season all days are alike."""
    values = draw_values("weekly_profiles", num_series=300, length=6 * 168, season=24)
    days = values.reshape(300, -1, 24)
    shapes = days - days.mean(axis=2, keepdims=True)

    def measure_change(shift: int) -> np.ndarray:
        return np.abs(shapes[:, shift:] - shapes[:, :-shift]).mean(axis=(1, 2))

    differing = measure_change(1) > 1.5 * measure_change(7)
    assert 0.15 < differing.mean() < 0.6
    alike = draw_weekly_profiles(SeriesShape(300, 6 * 168, 24, second_season=0), np.random.default_rng(0))
    days = alike.reshape(300, -1, 24)
    shapes = days - days.mean(axis=2, keepdims=True)
    assert (measure_change(1) > 1.5 * measure_change(7)).mean() < 0.02


def test_a_cycle_has_a_period_that_is_not_the_season() -> None:
    values = draw_values("cycle", num_series=200, length=600)
    spectrum = np.abs(np.fft.rfft(values - values.mean(axis=1, keepdims=True), axis=1))
    periods = 600 / np.argmax(spectrum[:, 1:], axis=1).clip(min=1)
    assert np.mean((periods > 1.4 * SEASON) & (periods < 11 * SEASON)) > 0.9


def test_the_amplitude_of_growing_sines_grows() -> None:
    values = draw_values("growing_sine")
    thirds = values.reshape(400, 3, -1).std(axis=2)
    assert np.mean(thirds[:, 2] > 1.3 * thirds[:, 0]) > 0.95


def test_a_gaussian_process_is_smoother_the_longer_its_scale() -> None:
    shape = SeriesShape(300, LENGTH, 1)
    rough, smooth = (
        draw_gaussian_process(shape, np.random.default_rng(0), shortest=scale, longest=scale) for scale in (2.0, 60.0)
    )
    assert np.median(autocorrelation(smooth, 1)) > np.median(autocorrelation(rough, 1)) + 0.05
    np.testing.assert_allclose(smooth.std(axis=1), 1)


def test_a_pattern_is_centred_with_a_deviation_of_one() -> None:
    for season in (2, 3, 7, 12, 24, 168):
        pattern = draw_pattern(200, season, np.random.default_rng(season))
        np.testing.assert_allclose(pattern.mean(axis=1), 0, atol=1e-9)
        assert (np.abs(pattern.std(axis=1) - 1) < 1e-9).mean() > 0.97  # a constant pattern stays zero


def test_counts_are_whole_and_not_negative() -> None:
    for family in ("counts", "intermittent"):
        values = draw_values(family)
        np.testing.assert_array_equal(values, np.round(values))
        assert values.min() >= 0
    means = draw_values("counts").mean(axis=1)
    assert 0.1 < np.median(means) < 30


def test_intermittent_demand_is_mostly_zero() -> None:
    values = draw_values("intermittent")
    assert 0.6 < (values == 0).mean() < 0.95
    assert values.max() > 5


def test_multiplicative_series_are_positive_and_vary_with_their_level() -> None:
    values = draw_values("multiplicative")
    assert values.min() > 0
    early, late = values[:, : LENGTH // 3], values[:, -LENGTH // 3 :]
    growth = np.log(late.mean(axis=1) / early.mean(axis=1))
    spread = np.log(np.abs(np.diff(late, axis=1)).mean(axis=1) / np.abs(np.diff(early, axis=1)).mean(axis=1))
    assert np.corrcoef(growth, spread)[0, 1] > 0.5


def test_rounded_series_have_few_distinct_values() -> None:
    distinct = [len(np.unique(row)) for row in np.round(draw_values("rounded"), 9)]
    assert np.median(distinct) < LENGTH / 3


def test_level_shifts_and_outliers_are_larger_than_usual_changes() -> None:
    shifted = np.abs(np.diff(draw_values("outliers"), axis=1))
    usual = np.abs(np.diff(draw_values("components"), axis=1))
    ratio = [np.median(changes.max(axis=1) / np.median(changes, axis=1)) for changes in (shifted, usual)]
    assert ratio[0] > 1.5 * ratio[1]
    levels = draw_values("level_shifts").reshape(400, 10, -1).mean(axis=2)  # means of two seasons each
    jumps = np.abs(np.diff(levels, axis=1))
    assert np.median(jumps.max(axis=1) / np.median(jumps, axis=1)) > 5


def test_missing_values_have_the_documented_shares() -> None:
    missing = np.isnan(draw_values("missing_values", num_series=1000))
    assert not missing[:, [0, -1]].any()
    shares = missing.mean(axis=1)
    assert shares.min() < 0.03
    assert 0.1 < shares.mean() < 0.2
    assert shares.max() < 0.4
    mixture = np.isnan(draw_values("mixture", num_series=1000)).any(axis=1)
    assert mixture.mean() == pytest.approx(0.08, abs=0.03)


def test_promotions_raise_sales_and_are_followed_by_a_dip() -> None:
    batch = generate("promotions", num_series=300, length=LENGTH, season=1, seed=0)
    active = batch.covariates["promotion"]
    assert set(np.unique(active)) == {0.0, 1.0}
    ended = np.zeros(active.shape, dtype=bool)
    ended[:, 1:] = (active[:, :-1] == 1) & (active[:, 1:] == 0)
    logarithm = np.log(batch.values)
    quiet, during, after = (
        np.nanmean(np.where(mask, logarithm, np.nan)[ended.any(axis=1)], axis=1)
        for mask in ((active == 0) & ~ended, active == 1, ended)
    )
    assert np.mean(during > quiet) > 0.9
    assert (after - quiet).mean() < -0.05


def test_a_leading_indicator_leads_by_one_to_six_steps() -> None:
    batch = generate("leading_indicator", num_series=200, length=LENGTH, season=12, seed=0)
    indicator = batch.channels["indicator"]

    def correlate(lag: int) -> np.ndarray:
        pairs = zip(indicator[:, : LENGTH - lag], batch.values[:, lag:], strict=True)
        return np.array([abs(np.corrcoef(np.diff(first), np.diff(second))[0, 1]) for first, second in pairs])

    leads = np.argmax([correlate(lag) for lag in range(10)], axis=0)
    assert np.mean((leads >= 1) & (leads <= MAX_LEAD)) > 0.85
    assert set(leads) >= set(range(1, MAX_LEAD + 1))


def test_calendar_series_follow_weekdays_and_the_holidays_of_each_year() -> None:
    days = pd.date_range("2001-01-01", "2004-12-31", freq="D")
    factors = draw_day_factors(days, 100, np.random.default_rng(0))
    weekends = np.asarray(days.day_of_week) >= 5
    assert np.median(factors[:, weekends].mean(axis=1) / factors[:, ~weekends].mean(axis=1)) < 0.9
    christmas = np.flatnonzero((days.month == 12) & (days.day == 25))
    relative = np.log(factors[:, christmas] / factors[:, christmas - 7])  # the same weekday
    is_kept = np.abs(relative).max(axis=1) > 0.3
    assert 0.2 < is_kept.mean() < 0.9
    assert np.abs(np.corrcoef(relative[is_kept, 0], relative[is_kept, 2])[0, 1]) > 0.8


def test_easter_moves_and_christmas_does_not() -> None:
    days = pd.date_range("2001-01-01", "2003-12-31", freq="D")
    good_friday = days[measure_holiday_distance(days, 0) == 0]
    assert [str(day.date()) for day in good_friday] == ["2001-04-13", "2002-03-29", "2003-04-18"]
    christmas = measure_holiday_distance(days, 8)
    assert christmas[days == "2001-12-24"] == -1
    assert christmas[days == "2001-12-27"] == 2


def test_months_have_the_mean_of_their_days_and_hours_the_factor_of_their_day() -> None:
    shapes = SeriesShape(4, 14, 12), SeriesShape(4, 14 * 31, 7)
    monthly, daily = (draw_calendar_effects(shape, np.random.default_rng(5)) for shape in shapes)
    assert monthly.shape == (4, 14)
    assert monthly.std(axis=1).max() < daily.std(axis=1).max()
    hourly = draw_calendar_effects(SeriesShape(4, 48, 24), np.random.default_rng(5))
    ratio = hourly[:, 24:] / hourly[:, :24]  # the daily pattern cancels
    np.testing.assert_allclose(ratio, np.repeat(ratio[:, :1], 24, axis=1))


def test_a_season_without_calendar_is_refused_by_the_calendar_family() -> None:
    with pytest.raises(InputError, match=r"Expected a season that a calendar has .* found 5\. Use one") as error:
        draw_values("calendar", season=5)
    assert error.value.where == "season"


def test_the_first_step_decides_the_dates() -> None:
    """Weekdays shifted by a whole week are the same ones; shifted by less they are others."""
    start, week_later, day_later = (
        draw_calendar_effects(SeriesShape(50, 70, 7, first_step=step), np.random.default_rng(5)) for step in (0, 7, 1)
    )
    same = [np.corrcoef(*pair)[0, 1] for pair in zip(start, week_later, strict=True)]
    other = [np.corrcoef(*pair)[0, 1] for pair in zip(start, day_later, strict=True)]
    assert np.median(same) > 0.8
    assert np.median(other) < 0.5

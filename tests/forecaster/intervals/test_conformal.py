"""Properties of calibrated quantiles: coverage, order and equivariance, and the fallbacks for few residuals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecaster.errors import BundleDamaged, HorizonOutOfRange, InputError
from forecaster.intervals.adaptive import AdaptiveState, update_adaptive_state
from forecaster.intervals.calibration import Calibration
from forecaster.intervals.conformal import MIN_GROUP_WINDOWS, TABLE_LEVELS, calibrate
from forecaster.series.history_summary import history_scale

pytestmark = pytest.mark.integration

UNIT_SCALE = np.ones(1)
WANTED_LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)


def offsets_of_unit_row(
    calibration: Calibration, levels: tuple[float, ...] = WANTED_LEVELS, horizon: int = 1
) -> np.ndarray:
    """Returns the offsets of a row with scale 1, by step and level."""
    return calibration.compute_offsets(levels, horizon=horizon, scales=UNIT_SCALE)[0]


def normal_noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# Coverage


@pytest.mark.parametrize("count", [20, 39, 100, 199, 333])
def test_quantiles_are_the_split_conformal_order_statistics(count: int) -> None:
    errors = normal_noise(count, 1, 1)
    ordered = np.sort(errors.ravel())
    offsets = offsets_of_unit_row(calibrate(errors, np.ones(count)), TABLE_LEVELS)[0]
    for level, offset in zip(TABLE_LEVELS, offsets, strict=True):
        if level == 0.5:
            continue
        exact_rank = round((count + 1) * level, 9)
        rank = math.ceil(exact_rank) if level > 0.5 else math.floor(exact_rank)
        if 1 <= rank <= count:
            assert offset == pytest.approx(ordered[rank - 1], rel=1e-5), level
        else:
            assert offset > ordered[-1] if rank > count else offset < ordered[0]


@pytest.mark.parametrize("count", [39, 99, 199])
def test_each_tail_has_the_coverage_of_its_rank_over_many_draws(count: int) -> None:
    draws, rng = 600, np.random.default_rng(count)
    levels, below = (0.025, 0.1, 0.9, 0.975), np.zeros(4)
    for _ in range(draws):
        sample = rng.gamma(2.0, size=count + 1)  # one tail is longer than the other
        offsets = offsets_of_unit_row(calibrate(sample[:-1, None, None], np.ones(count)), levels)[0]
        below += sample[-1] <= offsets
    for level, share in zip(levels, below / draws, strict=True):
        exact_rank = round((count + 1) * level, 9)
        expected = (math.ceil(exact_rank) if level > 0.5 else math.floor(exact_rank)) / (count + 1)
        assert share == pytest.approx(expected, abs=3.3 * math.sqrt(expected * (1 - expected) / draws))


def simulate_known_process(
    rng: np.random.Generator, *, series: int, length: int, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the errors of the optimal forecast, and the scales, of AR(1) series with coefficient 0.7 and a season of 12.

    Each series has a random size.
    """
    y = np.empty((series, length + horizon))
    shocks = rng.standard_normal(y.shape)
    y[:, 0] = shocks[:, 0] / math.sqrt(1 - 0.7**2)
    for step in range(1, y.shape[1]):
        y[:, step] = 0.7 * y[:, step - 1] + shocks[:, step]
    season = 3 * np.sin(2 * np.pi * (np.arange(length + horizon) + rng.integers(12, size=(series, 1))) / 12)
    size = np.exp(rng.standard_normal((series, 1)))
    optimal_forecast = y[:, length - 1 : length] * 0.7 ** np.arange(1, horizon + 1) + season[:, length:]
    scales = np.array([history_scale(row, 12) for row in (size * (y + season))[:, :length]])
    return size * (y + season)[:, length:] - size * optimal_forecast, scales


def test_intervals_of_a_known_process_cover_at_every_step_with_estimated_scales() -> None:
    rng, cases, count, horizon = np.random.default_rng(0), 200, 39, 6
    hits = {0.8: np.zeros(horizon), 0.95: np.zeros(horizon)}
    for _ in range(cases):
        errors, scales = simulate_known_process(rng, series=count + 1, length=36, horizon=horizon)
        calibration = calibrate(errors[:-1, None], scales[:-1])
        offsets = calibration.compute_offsets((0.025, 0.1, 0.9, 0.975), horizon=horizon, scales=scales[-1:])[0]
        low, tenth, ninetieth, high = offsets.T
        hits[0.8] += (tenth <= errors[-1]) & (errors[-1] <= ninetieth)
        hits[0.95] += (low <= errors[-1]) & (errors[-1] <= high)
    for nominal, hit_counts in hits.items():
        tolerance = 3.3 * math.sqrt(nominal * (1 - nominal) / cases)  # 99.9 %
        assert (np.abs(hit_counts / cases - nominal) <= tolerance).all(), (nominal, hit_counts / cases)


def test_a_single_series_with_few_windows_still_covers() -> None:
    rng, cases, horizon, inside = np.random.default_rng(1), 150, 6, np.zeros(6)
    for _ in range(cases):
        walks = np.cumsum(rng.standard_normal((31, horizon)), axis=1)
        lower, upper = offsets_of_unit_row(calibrate(walks[None, :30], UNIT_SCALE), (0.1, 0.9), horizon).T
        inside += (lower <= walks[30]) & (walks[30] <= upper)
    assert (inside / cases >= 0.8 - 3.3 * math.sqrt(0.16 / cases)).all(), inside / cases
    assert (inside / cases <= 0.8 + 2 / 31 + 3.3 * math.sqrt(0.16 / cases)).all(), inside / cases


# Order


@settings(max_examples=60, deadline=None)
@given(
    series=st.integers(1, 60),
    windows=st.integers(1, 6),
    horizon=st.integers(1, 9),
    missing=st.floats(0, 1),
    seed=st.integers(0, 99),
    levels=st.lists(st.floats(1e-9, 1 - 1e-9), min_size=2, max_size=9),
    drifted=st.booleans(),
)
def test_quantiles_never_cross_and_are_finite(
    series: int, windows: int, horizon: int, missing: float, seed: int, levels: list[float], drifted: bool
) -> None:
    rng = np.random.default_rng(seed)
    errors = rng.standard_t(2, (series, windows, horizon)) + rng.standard_normal()
    errors[rng.random(errors.shape) < missing] = np.nan
    calibration = calibrate(errors, rng.gamma(1.0, size=series))
    adaptive_state = AdaptiveState(shifts=((0.1, 5.0), (0.9, -5.0))) if drifted else None
    offsets = calibration.compute_offsets(
        sorted(levels), horizon=2 * horizon, scales=np.array([0.0, 2.0]), adaptive_state=adaptive_state
    )
    assert offsets.shape == (2, 2 * horizon, len(levels))
    assert np.isfinite(offsets).all()
    assert (np.diff(offsets, axis=2) >= -1e-9 * np.abs(offsets).max()).all()
    assert (offsets[0] == 0).all()


def test_a_quantile_depends_on_no_other_level_and_no_other_row() -> None:
    calibration = calibrate(normal_noise(50, 2, 4), np.ones(50))
    adaptive_state = AdaptiveState(shifts=((0.1, 2.0), (0.9, -2.0)))
    batch = calibration.compute_offsets(
        WANTED_LEVELS, horizon=6, scales=np.array([1.0, 3.0]), adaptive_state=adaptive_state
    )
    single = calibration.compute_offsets((0.9,), horizon=6, scales=np.array([3.0]), adaptive_state=adaptive_state)
    np.testing.assert_array_equal(single[0, :, 0], batch[1, :, WANTED_LEVELS.index(0.9)])


def test_levels_between_stored_levels_are_interpolated() -> None:
    lower, middle, upper = offsets_of_unit_row(calibrate(normal_noise(400, 1, 1), np.ones(400)), (0.81, 0.815, 0.82))[0]
    assert lower < middle < upper


def test_zero_rows_give_zero_offsets() -> None:
    assert calibrate(normal_noise(30, 1, 2), np.ones(30)).compute_offsets(
        WANTED_LEVELS, horizon=3, scales=np.ones(0)
    ).shape == (0, 3, 5)


# Equivariance


def test_scaling_errors_or_scales_scales_the_offsets() -> None:
    errors, scales = normal_noise(80, 2, 5), np.random.default_rng(1).gamma(2.0, size=80)
    base = calibrate(errors, scales).compute_offsets(WANTED_LEVELS, horizon=9, scales=scales)
    rescaled = calibrate(1e6 * errors, 1e6 * scales).compute_offsets(WANTED_LEVELS, horizon=9, scales=1e6 * scales)
    np.testing.assert_allclose(rescaled, 1e6 * base, rtol=1e-4)
    tripled = calibrate(3 * errors, scales).compute_offsets(WANTED_LEVELS, horizon=9, scales=scales)
    np.testing.assert_allclose(tripled, 3 * base, rtol=1e-4)


@pytest.mark.parametrize("count", [3, 25, 80, 150])
def test_negating_errors_mirrors_the_quantiles(count: int) -> None:
    errors = np.random.default_rng(0).gamma(1.0, size=(count, 1, 4)) - 0.5
    mirrored = -offsets_of_unit_row(calibrate(-errors, np.ones(count)), TABLE_LEVELS, 6)[:, ::-1]
    np.testing.assert_allclose(
        offsets_of_unit_row(calibrate(errors, np.ones(count)), TABLE_LEVELS, 6), mirrored, rtol=1e-5, atol=1e-9
    )


def test_the_median_corrects_a_biased_forecast() -> None:
    assert offsets_of_unit_row(calibrate(normal_noise(999, 1, 1) + 5, np.ones(999)), (0.5,))[0, 0] == pytest.approx(
        5, abs=0.15
    )


def test_the_scale_may_differ_by_window() -> None:
    errors = normal_noise(60, 3, 2)
    scales = np.random.default_rng(2).gamma(2.0, size=(60, 3))
    assert calibrate(errors * scales[:, :, None], scales) == calibrate(errors, np.ones(60))


# Missing values


def test_missing_residuals_are_ignored() -> None:
    errors = normal_noise(200, 2, 3)
    errors[120:, 1] = np.nan
    errors[:5] = np.nan
    padded = np.concatenate([errors, np.full((7, 2, 3), np.nan)])
    assert calibrate(padded, np.ones(207)) == calibrate(errors, np.ones(200))
    assert calibrate(padded, np.ones(207)).pool.windows == 115 + 195


def test_windows_without_a_scale_are_excluded() -> None:
    errors, scales = normal_noise(100, 1, 2), np.ones(100)
    errors[40:], scales[40:60], scales[60:] = 1e9, 0.0, np.nan
    assert calibrate(errors, scales) == calibrate(errors[:40], scales[:40])


def test_an_unobserved_step_uses_its_neighbours() -> None:
    errors = np.cumsum(normal_noise(300, 1, 5), axis=2)
    errors[:, :, 3] = np.nan
    upper = offsets_of_unit_row(calibrate(errors, np.ones(300)), (0.9,), 5)[:, 0]
    assert upper[2] < upper[3] < upper[4] * 1.05


# Groups and factors


def test_a_large_group_has_its_own_table_and_a_small_one_uses_the_pool() -> None:
    groups = ["calm"] * 150 + ["wild"] * 150 + ["rare"] * (MIN_GROUP_WINDOWS - 1) + [None] * 50
    errors = normal_noise(len(groups), 1, 3)
    errors[150:300] *= 10
    calibration = calibrate(errors, np.ones(len(groups)), groups=groups)
    assert set(calibration.groups) == {"calm", "wild"}
    requested = ["calm", "wild", "rare", None, "never seen"]
    calm, wild, rare, none, unseen = calibration.compute_offsets(
        (0.9,), horizon=3, scales=np.ones(5), groups=requested
    )[:, 0, 0]
    assert wild == pytest.approx(10 * calm, rel=0.5)
    assert calm < rare < wild
    assert rare == none == unseen
    calm_calibration = calibrate(errors[:150], np.ones(150))
    assert calm == offsets_of_unit_row(calm_calibration, (0.9,))[0, 0]


def test_a_series_with_many_windows_gets_its_own_scale_and_keeps_coverage() -> None:
    rng = np.random.default_rng(3)
    true_factors = np.exp(rng.normal(0, 0.7, size=60))
    errors = rng.standard_normal((60, 41, 4)) * true_factors[:, None, None]
    ids = [f"series {index}" for index in range(60)]
    calibration_errors, test_errors = errors[:, :40], errors[:, 40]
    calibration = calibrate(calibration_errors, np.ones(60), ids=ids)
    factors = np.array([calibration.factors[series_id] for series_id in ids])
    assert np.corrcoef(np.log(factors), np.log(true_factors))[0, 1] > 0.97
    offsets = calibration.compute_offsets((0.1, 0.9), horizon=4, scales=np.ones(60), ids=ids)
    unscaled_offsets = calibration.compute_offsets((0.1, 0.9), horizon=4, scales=np.ones(60), ids=["new"] * 60)
    inside = (offsets[..., 0] <= test_errors) & (test_errors <= offsets[..., 1])
    assert inside.mean() == pytest.approx(0.8, abs=0.08)
    assert (unscaled_offsets == unscaled_offsets[0]).all()


def test_the_series_factor_shrinks_to_one_when_series_do_not_differ() -> None:
    ids = [str(index) for index in range(200)]
    calibration = calibrate(normal_noise(200, 3, 4), np.ones(200), ids=ids)
    assert np.abs(np.log(list(calibration.factors.values()) or [1.0])).max() < 0.25


# Few residuals


def test_few_windows_fall_back_to_a_wide_gaussian_and_are_flagged() -> None:
    few, many = calibrate(normal_noise(8, 1, 4), np.ones(8)), calibrate(normal_noise(4000, 1, 4), np.ones(4000))
    assert (few.pool.basis, many.pool.basis) == ("gaussian", "ranks")
    hits, rng = 0, np.random.default_rng(0)
    for _ in range(300):
        errors = rng.standard_normal(9)
        lower, upper = offsets_of_unit_row(calibrate(errors[:8, None, None], np.ones(8)), (0.025, 0.975))[0]
        hits += lower <= errors[8] <= upper
    assert 0.93 <= hits / 300 <= 0.995


def test_offsets_without_residuals_are_assumed_and_flagged() -> None:
    calibration = calibrate(np.full((3, 1, 4), np.nan), np.ones(3))
    assert calibration.pool.basis == "assumed"
    lower, upper = offsets_of_unit_row(calibration, (0.1, 0.9), 8).T
    assert (np.diff(upper) > 0).all()
    np.testing.assert_allclose(lower, -upper)


def test_a_perfect_forecaster_gets_zero_width() -> None:
    assert (offsets_of_unit_row(calibrate(np.zeros((150, 1, 3)), np.ones(150)), WANTED_LEVELS, 6) == 0).all()


# Beyond the trained horizon


def test_the_spread_of_a_random_walk_grows_with_the_square_root_of_the_step() -> None:
    walks = np.cumsum(normal_noise(3000, 1, 48), axis=2)
    calibration = calibrate(walks[:, :, :12], np.ones(3000))
    assert calibration.pool.growth == pytest.approx(0.5, abs=0.03)
    lower, upper = offsets_of_unit_row(calibration, (0.1, 0.9), 48).T
    inside = ((lower <= walks[:, 0]) & (walks[:, 0] <= upper)).mean(0)
    assert inside == pytest.approx(np.full(48, 0.8), abs=0.04)
    assert upper[47] == pytest.approx(2 * upper[11], rel=0.05)


def test_the_spread_of_white_noise_does_not_grow() -> None:
    calibration = calibrate(normal_noise(3000, 1, 12), np.ones(3000))
    assert calibration.pool.growth == pytest.approx(0, abs=0.03)
    upper = offsets_of_unit_row(calibration, (0.9,), 48)[:, 0]
    assert upper[47] == pytest.approx(upper[11], rel=0.05)


def test_a_long_horizon_is_stored_at_knots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forecaster.intervals.conformal.MAX_TABLE_NUMBERS", 10_000)
    horizon, rng = 900, np.random.default_rng(0)
    errors = np.sqrt(np.arange(1, horizon + 1)) * rng.standard_normal((30, 1, horizon))
    calibration = calibrate(errors, np.ones(30))
    assert len(calibration.steps) * len(TABLE_LEVELS) <= 10_000
    assert (calibration.steps[0], calibration.steps[-1]) == (1, horizon)
    upper = offsets_of_unit_row(calibration, (0.9,), horizon)[:, 0]
    assert upper[800:].mean() == pytest.approx(3 * upper[80:110].mean(), rel=0.2)


# The record


def test_a_calibration_round_trip_is_equal() -> None:
    groups = [["a", "b", None][index % 3] for index in range(450)]
    calibration = calibrate(
        normal_noise(450, 4, 12), np.ones(450), groups=groups, ids=[f"series {index}" for index in range(450)]
    )
    content = calibration.model_dump_json()
    loaded = Calibration.from_json(content)
    assert loaded == calibration
    assert loaded.model_dump_json() == content
    assert len(content) < 60_000
    np.testing.assert_array_equal(
        offsets_of_unit_row(loaded, WANTED_LEVELS, 20), offsets_of_unit_row(calibration, WANTED_LEVELS, 20)
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"growth":', '"pickle":1,"growth":'),
        ('"basis":"ranks"', '"basis":"trust me"'),
        ('"windows":50', '"windows":"50"'),
        ('"spreads":[', '"spreads":[NaN,'),
        ('"spreads":[', '"spreads":[1.0,'),
        ('"offsets":[[', '"offsets":[[1e9,'),
        ('"offsets":[[-', '"offsets":[['),
        ('"steps":[1,2]', '"steps":[2,1]'),
        ('"steps":[1,2]', '"steps":[]'),
        ("{", "["),
    ],
)
def test_an_invalid_calibration_is_rejected(before: str, after: str) -> None:
    content = calibrate(normal_noise(50, 1, 2), np.ones(50)).model_dump_json()
    assert before in content
    with pytest.raises(BundleDamaged, match=r"Train the model again") as caught:
        Calibration.from_json(content.replace(before, after, 1))
    assert caught.value.where == "conformal.json"


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 1.1, float("nan")])
def test_a_level_must_lie_between_zero_and_one(level: float) -> None:
    with pytest.raises(InputError, match="levels above 0 and below 1"):
        offsets_of_unit_row(calibrate(normal_noise(30, 1, 1), np.ones(30)), (level,))


def test_a_horizon_must_be_at_least_one() -> None:
    with pytest.raises(HorizonOutOfRange):
        offsets_of_unit_row(calibrate(normal_noise(30, 1, 1), np.ones(30)), horizon=0)


# The scale


def test_the_scale_is_zero_for_constant_histories_only() -> None:
    nan = np.nan
    assert history_scale(np.full(9, 3.0), 4) == 0
    assert history_scale(np.array([nan, 3.0]), 4) == 0
    assert math.isnan(history_scale(np.array([nan, nan]), 4))
    for changing in ([0, 0, 1], [1, 2, 1, 2, 1, 2], [nan, 0, nan, 0, 0, nan, 5], [0] * 30 + [1]):
        assert history_scale(np.array(changing, dtype=float), 2) > 0


def test_the_scale_follows_the_units_and_ignores_the_level() -> None:
    y = np.cumsum(normal_noise(50))
    assert history_scale(7 * y + 1000, 12) == pytest.approx(7 * history_scale(y, 12))


# The adaptive form


def test_late_actuals_keep_coverage_through_a_level_shift() -> None:
    rng, horizon, length = np.random.default_rng(0), 6, 4000
    calibration = calibrate(normal_noise(500, 1, horizon, seed=1), np.ones(500))
    levels = (0.1, 0.9)
    base = offsets_of_unit_row(calibration, levels, horizon)
    errors = rng.standard_normal((length, horizon))
    errors[length // 4 :] += 8  # far beyond the largest residual of the calibration
    adaptive_state, served_offsets, covered = AdaptiveState(), [], np.zeros((length, 2))
    for time in range(length):
        offsets = calibration.compute_offsets(levels, horizon=horizon, scales=UNIT_SCALE, adaptive_state=adaptive_state)
        served_offsets.append(offsets[0])
        if time < horizon:
            continue
        origin = time - horizon  # the last step of a forecast is observed one horizon later
        for column, level in enumerate(levels):
            hit = errors[origin, -1] <= served_offsets[origin][-1, column]
            covered[origin, column] = hit
            adaptive_state = update_adaptive_state(adaptive_state, level, bool(hit))
    observed = covered[: length - horizon]
    np.testing.assert_allclose(observed.mean(0), levels, atol=0.03)
    np.testing.assert_allclose(observed[-2000:].mean(0), levels, atol=0.02)
    covered_without_updates = errors[length // 4 :, -1] <= base[-1, 1]
    assert covered_without_updates.mean() < 0.01


def test_each_level_adapts_independently_and_the_state_is_immutable() -> None:
    start = AdaptiveState(rate=0.2)
    missed = update_adaptive_state(start, 0.9, covered=False)
    assert start == AdaptiveState(rate=0.2)
    assert missed.shifts == ((0.9, pytest.approx(0.18)),)
    both = update_adaptive_state(missed, 0.1, covered=True)
    assert [level for level, _ in both.shifts] == [0.1, 0.9]
    np.testing.assert_allclose(both.shifts_at((0.01, 0.1, 0.5, 0.9, 0.99)), [-0.18, -0.18, 0, 0.18, 0.18], atol=1e-12)


def test_the_coverage_error_is_bounded_by_the_offset_over_the_updates() -> None:
    rng, state, hits = np.random.default_rng(0), AdaptiveState(rate=0.1), 0
    for time in range(1, 501):
        hit = bool(rng.random() < 0.3)  # adversarial: far from 0.9
        hits, state = hits + hit, update_adaptive_state(state, 0.9, hit)
        assert 0.9 - hits / time == pytest.approx(state.shifts[0][1] / (0.1 * time))

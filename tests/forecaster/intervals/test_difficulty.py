"""The difficulty of a history follows its latest changes, and is learned from the errors of a calibration."""

from __future__ import annotations

import json

import numpy as np
import pytest

from forecaster.errors import BundleDamaged
from forecaster.intervals.calibration import Calibration
from forecaster.intervals.conformal import calibrate
from forecaster.intervals.difficulty import (
    MIN_WINDOWS,
    Difficulty,
    count_recent_steps,
    fit_difficulty,
    measure_changes,
)
from forecaster.series.history_summary import history_scale, history_scales

SEASON = 4


def make_histories(count: int, *, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns histories whose noise changes its size in the middle, and the size at their ends."""
    rng = np.random.default_rng(seed)
    early, late = np.exp(rng.standard_normal((2, count)))
    sizes = np.repeat(np.stack([early, late], axis=1), 40, axis=1)
    return list(rng.standard_normal((count, 80)) * sizes), late


def test_changes_are_those_of_the_last_steps() -> None:
    y = np.array([100.0, -100.0, *np.arange(30.0) ** 2])
    assert count_recent_steps(SEASON) == 12
    recent = np.arange(18.0, 30.0) ** 2
    seasonal = np.abs(recent[4:] - recent[:-4]).mean()
    latest = np.abs(np.diff(recent[-7:])).mean()
    expected = [seasonal, 2.0, latest]
    np.testing.assert_allclose(measure_changes([y, y[-12:]], season=SEASON), [expected, expected])


def test_changes_skip_missing_values_and_are_missing_in_short_histories() -> None:
    y = np.arange(20.0)
    y[15] = np.nan
    (row,) = measure_changes([y], season=SEASON)
    assert row.tolist() == [4.0, 0.0, 1.0]
    short = measure_changes([np.array([1.0]), np.array([np.nan, 1.0, 3.0]), np.empty(0)], season=SEASON)
    assert np.isnan(short[[0, 2]]).all()
    assert np.isnan(short[1, :2]).all()
    assert short[1, 2] == 2.0


def test_factors_follow_the_latest_changes_and_not_the_unit_of_the_data() -> None:
    histories, late = make_histories(300)
    changes = measure_changes(histories, season=SEASON)
    scales = np.array([history_scale(y, SEASON) for y in histories])
    errors = np.abs(np.random.default_rng(1).standard_normal((300, 8)) * late[:, None]).mean(axis=1)
    difficulty = fit_difficulty(changes, scales, errors / scales)
    assert difficulty is not None
    factors = difficulty.compute_factors(changes, scales)
    assert np.corrcoef(np.log(factors * scales), np.log(late))[0, 1] > 0.9
    assert np.corrcoef(np.log(scales), np.log(late))[0, 1] < 0.8
    np.testing.assert_allclose(difficulty.compute_factors(1e6 * changes, 1e6 * scales), factors)


def test_constant_changes_and_missing_ones_have_bounded_factors() -> None:
    difficulty = Difficulty(centers=(0.0, 0.0), weights=(1.0, 1.0))
    changes = np.array([[0.0, 0.0], [np.nan, np.nan], [1e300, 1e300], [2.0, np.nan]])
    factors = difficulty.compute_factors(changes, np.ones(4))
    np.testing.assert_allclose(factors, [np.exp(-2), 1.0, np.exp(2), 2.0])
    assert difficulty.compute_factors(changes, np.array([0.0, np.nan, 0.0, 0.0])).tolist() == [1.0] * 4


def test_few_windows_have_no_difficulty() -> None:
    histories, late = make_histories(MIN_WINDOWS - 1)
    changes = measure_changes(histories, season=SEASON)
    assert fit_difficulty(changes, np.ones(len(late)), late) is None


def test_errors_that_do_not_depend_on_the_changes_leave_the_scale_alone() -> None:
    histories, _ = make_histories(400)
    changes = measure_changes(histories, season=SEASON)
    scales = np.array([history_scale(y, SEASON) for y in histories])
    sizes = np.random.default_rng(3).gamma(4.0, size=400)
    difficulty = fit_difficulty(changes, scales, sizes)
    assert difficulty is not None
    assert np.abs(np.log(difficulty.compute_factors(changes, scales))).max() < 0.5


def test_intervals_cover_calm_and_restless_series_alike() -> None:
    histories, late = make_histories(600, seed=5)
    scales = np.array([history_scale(y, SEASON) for y in histories])
    changes = measure_changes(histories, season=SEASON)
    rng = np.random.default_rng(6)
    errors, actual = (rng.standard_normal((600, 5)) * late[:, None] for _ in range(2))
    is_calm = late < scales / 2
    coverage = {}
    for name, given in {"scale": None, "difficulty": changes[:, None]}.items():
        calibration = calibrate(errors[:, None], scales, changes=given)
        units = (
            scales
            if calibration.difficulty is None
            else scales * calibration.difficulty.compute_factors(changes, scales)
        )
        low, high = np.moveaxis(calibration.compute_offsets((0.1, 0.9), horizon=5, scales=units), 2, 0)
        inside = (low <= actual) & (actual <= high)
        coverage[name] = (inside[is_calm].mean(), inside[~is_calm].mean())
    gaps = {name: abs(calm - restless) for name, (calm, restless) in coverage.items()}
    assert gaps["scale"] > 0.15
    assert gaps["difficulty"] < gaps["scale"] / 2
    assert coverage["difficulty"] == pytest.approx((0.8, 0.8), abs=0.1)


def test_intervals_never_narrow_with_the_step() -> None:
    errors = np.random.default_rng(0).standard_normal((30, 2, 12)) * np.linspace(1, 1.3, 12)
    offsets = calibrate(errors, np.ones(30)).compute_offsets((0.1, 0.5, 0.9), horizon=20, scales=np.ones(1))[0]
    widths = np.diff(offsets, axis=1)
    assert (np.diff(widths, axis=0) >= -1e-5).all()  # tables are rounded


def test_scales_of_many_histories_are_those_of_each_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    histories = [rng.standard_normal(int(steps)) * steps for steps in rng.integers(1, 200, 300)]
    histories += [rng.standard_normal(120) for _ in range(40)]
    histories[3] = np.full(50, 7.0)
    histories[4][::3] = np.nan
    histories[5] = np.full(20, np.nan)
    for season in (1, 12):
        expected = [history_scale(y, season) for y in histories]
        assert np.array_equal(history_scales(histories, season), expected, equal_nan=True)


@pytest.mark.parametrize(("unit", "count"), [("history", 2), ("history", 4), ("head", 3)])
def test_a_file_with_another_number_of_weights_is_damaged(unit: str, count: int) -> None:
    calibration = calibrate(np.random.default_rng(0).standard_normal((30, 1, 2)), np.ones(30))
    content = calibration.model_dump() | {
        "unit": unit,
        "difficulty": {"centers": [0.0] * count, "weights": [0.1] * count},
    }
    with pytest.raises(BundleDamaged, match="weights"):
        Calibration.from_json(json.dumps(content))

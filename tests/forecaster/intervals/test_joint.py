"""Bands of whole paths hold them with the stated probability, at every length, and are no narrower than those of single steps."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from forecaster.errors import LevelOutOfRange
from forecaster.intervals.calibration import Calibration
from forecaster.intervals.conformal import calibrate
from forecaster.intervals.joint import MIN_PATHS, SHARES, JointTable, fit_joint_table, scores_under_table

HORIZON = 8


def draw_paths(count: int, *, seed: int, correlation: float = 0.7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shocks = rng.standard_t(5, (count, HORIZON))
    paths = np.empty_like(shocks)
    for step in range(HORIZON):
        paths[:, step] = shocks[:, step] + (correlation * paths[:, step - 1] if step else 0.0)
    return paths


def calibrate_paths(count: int = 400, *, seed: int = 0) -> Calibration:
    return calibrate(draw_paths(count, seed=seed)[:, None], np.ones(count))


def share_of_whole_paths(calibration: Calibration, levels: list[float], horizon: int) -> float:
    low, high = calibration.compute_offsets(levels, horizon=horizon, scales=np.ones(1))[0].T
    paths = draw_paths(4000, seed=1)[:, :horizon]
    return float(((low <= paths) & (paths <= high)).all(axis=1).mean())


@pytest.mark.parametrize("horizon", [1, 3, HORIZON])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_bands_hold_whole_paths_of_any_length_with_their_probability(share: float, horizon: int) -> None:
    calibration = calibrate_paths()
    levels = [(1 - share) / 2, (1 + share) / 2]
    assert share_of_whole_paths(
        calibration, calibration.widen_levels(levels, horizon=horizon), horizon
    ) == pytest.approx(share, abs=0.06)
    if horizon > 1:
        assert share_of_whole_paths(calibration, levels, horizon) < share - 0.02


def test_levels_are_widened_to_both_sides_more_for_longer_paths_and_never_narrowed() -> None:
    calibration = calibrate_paths()
    levels = [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99]
    short, long, beyond = (calibration.widen_levels(levels, horizon=horizon) for horizon in (2, HORIZON, 40))
    for widened in (short, long, beyond):
        assert widened[3] == 0.5
        np.testing.assert_allclose(np.array(widened) + widened[::-1], 1.0)
        assert (np.diff(widened) > 0).all()
    above = np.array([levels, short, long, beyond])[:, 4:]
    assert (np.diff(above, axis=0) > 0).all()


def test_few_paths_have_no_table() -> None:
    calibration = calibrate_paths(MIN_PATHS - 1)
    assert calibration.joint is None
    with pytest.raises(LevelOutOfRange, match="at least 20 windows"):
        calibration.widen_levels([0.9], horizon=2)


def test_missing_actuals_are_no_step_of_their_path() -> None:
    scores = np.full((MIN_PATHS, 3), np.nan)
    scores[:, 1] = np.arange(MIN_PATHS)
    table = fit_joint_table(scores, [1, 2, 3])
    assert table is not None
    assert [row[0] for row in table.scores] == [0.0, 10.0, 10.0]
    assert table.paths == MIN_PATHS
    assert fit_joint_table(np.full((50, 3), np.nan), [1, 2, 3]) is None


def test_scores_under_a_table_are_the_nominal_ones_at_its_quantiles() -> None:
    calibration = calibrate_paths()
    offsets = np.array(calibration.pool.offsets)
    columns = [calibration.levels.index(level) for level in (0.1, 0.5, 0.975)]
    scores = scores_under_table(offsets[:, columns].T, offsets, calibration.levels)
    np.testing.assert_allclose(scores, np.array([-1.28155, 0.0, 1.95996])[:, None].repeat(HORIZON, axis=1), atol=1e-3)
    far = scores_under_table(np.full((1, HORIZON), 1e3), offsets, calibration.levels)
    assert (far > 10).all()


def test_a_table_survives_json_and_refuses_scores_that_fall() -> None:
    calibration = calibrate_paths()
    assert Calibration.from_json(calibration.model_dump_json()) == calibration
    rising = tuple(float(number) for number in range(len(SHARES)))
    with pytest.raises(ValidationError, match="must not decrease"):
        JointTable(steps=(1, 2), scores=(rising, rising[::-1]), paths=30)

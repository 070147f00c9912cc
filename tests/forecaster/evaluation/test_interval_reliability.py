"""Coverage by decile: calibrated intervals pass, intervals of one width for series of different noise do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from forecaster.errors import InputError, LevelOutOfRange
from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.interval_reliability import COLUMNS, coverage_by_decile, reliability_table
from forecaster.series import Series

SERIES, WINDOWS, HORIZON, HISTORY = 300, 2, 6, 40
LEVELS = (0.025, 0.1, 0.9, 0.975)


def simulate_backtest(*, calibrated: bool, seed: int = 0) -> Backtest:
    """Series of Gaussian noise around a level of ten, with deviations from 0.1 to 3; the intervals know each, or none."""
    rng = np.random.default_rng(seed)
    deviation = np.exp(rng.uniform(np.log(0.1), np.log(3.0), size=SERIES))
    y = 10 + deviation[:, None] * rng.normal(size=(SERIES, HISTORY + WINDOWS * HORIZON))
    actual = y[:, HISTORY:].reshape(SERIES, WINDOWS, HORIZON)
    width = deviation if calibrated else np.full(SERIES, 1.0)
    # Intervals differ by step as well; a wider one is for a wider distribution, of which the actual is a draw.
    factor = np.linspace(0.5, 1.5, HORIZON)
    actual = 10 + (actual - 10) * factor
    spread = (width[:, None] * factor)[:, None, :, None] * np.ones((1, WINDOWS, 1, 1))
    quantiles = 10 + spread * stats.norm.ppf(LEVELS)
    start = pd.Timestamp("2026-01-01")
    return Backtest(
        series=[Series(f"s{row}", start, "h", values) for row, values in enumerate(y)],
        cutoffs=[[start] * WINDOWS] * SERIES,
        actual=actual,
        forecasts={"net": np.full_like(actual, 10.0)},
        scale=np.abs(np.diff(y[:, :HISTORY], axis=1)).mean(axis=1),
        square_scale=np.ones(SERIES),
        excluded_ids=[],
        stride=HORIZON,
        levels=LEVELS,
        quantiles={"net": quantiles},
    )


@pytest.mark.parametrize("by", ["width", "volatility"])
@pytest.mark.parametrize("share", [0.8, 0.95])
def test_calibrated_intervals_hold_in_most_deciles(by: str, share: float) -> None:
    table = coverage_by_decile(simulate_backtest(calibrated=True), "net", share=share, by=by)  # type: ignore[arg-type]
    assert list(table.columns) == list(COLUMNS)
    assert table["decile"].tolist() == list(range(1, 11))
    assert ((table["coverage_lo"] <= share) & (share <= table["coverage_hi"])).sum() >= 8
    assert table["n"].sum() == SERIES * WINDOWS * HORIZON
    assert (table["low"].to_numpy()[1:] >= table["high"].to_numpy()[:-1]).all()


@pytest.mark.parametrize("by", ["width", "volatility"])
def test_one_width_for_series_of_different_noise_fails(by: str) -> None:
    """Intervals of volatile series are narrow for their noise: they cover too little, and those of calm series too much."""
    table = coverage_by_decile(simulate_backtest(calibrated=False), "net", share=0.8, by=by)  # type: ignore[arg-type]
    if by == "width":
        table = table.iloc[::-1]
    assert table["coverage_lo"].iloc[0] > 0.9
    assert table["coverage_hi"].iloc[-1] < 0.5
    assert ((table["coverage_lo"] <= 0.8) & (table["coverage_hi"] >= 0.8)).sum() <= 2


def test_coverage_and_counts_equal_a_loop() -> None:
    result = simulate_backtest(calibrated=True)
    actual = result.actual.copy()
    actual[::3, 0, 1] = np.nan
    result = replace(result, actual=actual, scale=np.where(np.arange(SERIES) == 5, np.nan, result.scale))
    low, high = result.quantiles["net"][..., 1], result.quantiles["net"][..., 2]
    values = {
        index: (high[index] - low[index]) / result.scale[index[0]]
        for index in np.ndindex(actual.shape)
        if np.isfinite(actual[index]) and index[0] != 5
    }
    for row in coverage_by_decile(result, "net", share=0.8, by="width").itertuples():
        members = [index for index, value in values.items() if row.low <= value <= row.high]
        assert row.n == len(members)
        assert row.coverage == pytest.approx(np.mean([low[index] <= actual[index] <= high[index] for index in members]))


def test_series_are_resampled_whole_and_the_same_seed_gives_the_same_bounds() -> None:
    """Repeating every window carries no information: the bounds stay as wide."""
    result = simulate_backtest(calibrated=True)
    repeated = replace(
        result,
        actual=np.tile(result.actual, (1, 4, 1)),
        forecasts={"net": np.tile(result.forecasts["net"], (1, 4, 1))},
        quantiles={"net": np.tile(result.quantiles["net"], (1, 4, 1, 1))},
        stride=1,
    )
    tables = [coverage_by_decile(item, "net", share=0.8, by="width") for item in (result, result, repeated)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    np.testing.assert_allclose(tables[0]["coverage_lo"], tables[2]["coverage_lo"], atol=1e-9)
    assert tables[2]["n"].tolist() == [4 * count for count in tables[0]["n"]]
    other = coverage_by_decile(result, "net", share=0.8, by="width", seed=1)
    assert (other["coverage_lo"] != tables[0]["coverage_lo"]).any()


def test_a_single_series_has_coverage_without_bounds_and_equal_widths_are_one_decile() -> None:
    result = simulate_backtest(calibrated=True)
    single = replace(
        result,
        series=result.series[:1],
        cutoffs=result.cutoffs[:1],
        actual=result.actual[:1],
        forecasts={"net": result.forecasts["net"][:1]},
        scale=result.scale[:1],
        square_scale=result.square_scale[:1],
        quantiles={"net": result.quantiles["net"][:1]},
    )
    table = coverage_by_decile(single, "net", share=0.8, by="volatility")
    assert len(table) == 1
    assert np.isnan(table[["coverage_lo", "coverage_hi"]].to_numpy()).all()
    assert table["coverage"].notna().all()


def test_the_table_of_both_variables_is_tidy_and_empty_without_a_scale() -> None:
    result = simulate_backtest(calibrated=True)
    table = reliability_table(result, "net", shares=(0.8, 0.95))
    assert table.groupby(["share", "by"]).size().to_dict() == dict.fromkeys(
        [(share, by) for share in (0.8, 0.95) for by in ("volatility", "width")], 10
    )
    single = coverage_by_decile(result, "net", share=0.95, by="width")
    part = table[(table["share"] == 0.95) & (table["by"] == "width")].reset_index(drop=True)
    pd.testing.assert_frame_equal(part, single)
    without_scale = replace(result, scale=np.full(SERIES, np.nan))
    assert reliability_table(without_scale, "net", shares=(0.8, 0.95)).empty
    assert list(coverage_by_decile(without_scale, "net", share=0.8, by="width").columns) == list(COLUMNS)
    assert coverage_by_decile(without_scale, "net", share=0.8, by="width").empty


def test_missing_quantiles_are_rejected() -> None:
    result = simulate_backtest(calibrated=True)
    with pytest.raises(InputError, match=r"found 'naive', and quantiles of: net"):
        coverage_by_decile(result, "naive", share=0.8, by="width")
    with pytest.raises(LevelOutOfRange, match=r"found 0\.5, and the levels 0\.025, 0\.1"):
        coverage_by_decile(result, "net", share=0.5, by="width")

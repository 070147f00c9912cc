"""The table of scores: what a hand, a loop and another library come to; over all, by step and by group."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from utilsforecast import losses

from forecaster.errors import CovariateUnknown
from forecaster.evaluation.backtest import Backtest, backtest
from forecaster.evaluation.baselines import seasonal_naive, statistical
from forecaster.evaluation.calibration import calibrated, coverage, quantiles, with_quantiles
from forecaster.evaluation.scores import DECILES, LEVELS, by_step, overall, score_table
from forecaster.metrics import interval_width, weighted_quantile_loss
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.series import Panel, Series
from tests.factories import START, make_forecaster, make_spec, panel_of, wave
from tests.forecaster.evaluation.test_backtest import Spy, constant

SEASON, HORIZON, WINDOWS = 4, 5, 3


@pytest.fixture(scope="module")
def panel() -> Panel:
    """Ten series of two kinds, some with holes, of different sizes."""
    series = []
    for number in range(10):
        y = (1 + number) * wave(60 + number, seed=number)
        if number % 3 == 0:
            y[[30, 51, 55, -2]] = np.nan
        series.append(Series(f"s{number}", START, "h", y, static={"kind": "odd" if number % 2 else "even"}))
    return Panel(series, "h")


@pytest.fixture(scope="module")
def fitted(panel: Panel) -> Forecaster:
    known = Panel([one.until(len(one) - WINDOWS * HORIZON) for one in panel.series], "h")
    return calibrated(make_forecaster(make_spec(horizon=HORIZON)), known, windows=2)


@pytest.fixture(scope="module")
def result(panel: Panel, fitted: Forecaster) -> Backtest:
    asks = {
        "net": Predictor(fitted),
        "seasonal_naive": seasonal_naive(SEASON),
        "naive2": statistical("naive2", season=SEASON),
    }
    found = backtest(panel, asks, horizon=HORIZON, windows=WINDOWS, season=SEASON, keep=8)
    return with_quantiles(found, {"net": fitted}, levels=LEVELS)


@pytest.fixture(scope="module")
def table(result: Backtest) -> pd.DataFrame:
    return score_table(result, by="kind")


def value(table: pd.DataFrame, name: str, metric: str, *, group: str | None = None, step: int | None = None) -> float:
    rows = table[(table["forecaster"] == name) & (table["metric"] == metric)]
    rows = rows[rows["group"].isna() if group is None else rows["group"] == group]
    rows = rows[rows["step"].isna() if step is None else rows["step"] == step]
    [found] = rows["value"]
    return float(found)


def only(result: Backtest, rows: list[int]) -> Backtest:
    """The backtest of some of its series."""
    return replace(
        result,
        series=[result.series[row] for row in rows],
        cutoffs=[result.cutoffs[row] for row in rows],
        actual=result.actual[rows],
        forecasts={name: cube[rows] for name, cube in result.forecasts.items()},
        quantiles={name: cube[rows] for name, cube in result.quantiles.items()},
        scale=result.scale[rows],
        square_scale=result.square_scale[rows],
    )


def test_scores_over_all_are_those_of_the_backtest(result: Backtest, table: pd.DataFrame) -> None:
    for name in result.forecasts:
        for metric, expected in result.scores(name).items():
            assert value(table, name, metric) == pytest.approx(expected, rel=1e-12), (name, metric)


def test_scores_by_step_are_those_of_the_backtest_and_of_each_step_alone(result: Backtest, table: pd.DataFrame) -> None:
    np.testing.assert_allclose(by_step(table, "net", "mase"), result.mase_by_step("net"), rtol=1e-12)
    for step in range(1, HORIZON + 1):
        alone = replace(
            result,
            actual=result.actual[..., step - 1 : step],
            forecasts={name: cube[..., step - 1 : step] for name, cube in result.forecasts.items()},
            quantiles={name: cube[..., step - 1 : step, :] for name, cube in result.quantiles.items()},
        )
        whole = overall(score_table(alone))
        for metric in ("rmsse", "smape", "mae", "mse", "owa", "owa_naive2", "wql", "coverage_80", "width_95"):
            assert value(table, "net", metric, step=step) == pytest.approx(whole["net"][metric], rel=1e-12), metric


def test_scores_of_a_group_are_those_of_its_series_alone(result: Backtest, table: pd.DataFrame) -> None:
    for group, first in (("even", 0), ("odd", 1)):
        alone = score_table(only(result, list(range(first, 10, 2))))
        some = table[table["group"] == group].reset_index(drop=True)
        expected = alone[alone["metric"] != "stand_ins"].reset_index(drop=True)
        assert some["metric"].tolist() == expected["metric"].tolist()
        assert some["step"].tolist() == expected["step"].tolist()
        np.testing.assert_allclose(some["value"], expected["value"], rtol=1e-12)


def test_errors_are_those_of_utilsforecast(result: Backtest) -> None:
    """One window, nothing missing: then theirs is the same mean of means."""
    last = only(result, [1, 2, 4, 5])
    last = replace(
        last,
        actual=last.actual[:, -1:],
        forecasts={name: cube[:, -1:] for name, cube in last.forecasts.items()},
        quantiles={name: cube[:, -1:] for name, cube in last.quantiles.items()},
        cutoffs=[cutoffs[-1:] for cutoffs in last.cutoffs],
    )
    found = overall(score_table(last))["net"]
    frame = last.frame(levels=LEVELS).drop(columns=["cutoff", "step"])
    known = pd.concat(
        [pd.DataFrame({"unique_id": one.id, "ds": one.stamps, "y": one.y})[: -WINDOWS * HORIZON] for one in last.series]
    )
    names = {f"net-{level:g}": f"net-{side}-{share}" for share, side, level in _ends()}
    frame = frame.rename(columns=names)
    for metric, theirs in (
        ("mase", losses.mase(frame, ["net"], seasonality=SEASON, train_df=known)),
        ("rmsse", losses.rmsse(frame, ["net"], seasonality=SEASON, train_df=known)),
        ("mae", losses.mae(frame, ["net"])),
        ("mse", losses.mse(frame, ["net"])),
        ("coverage_80", losses.coverage(frame, ["net"], level=80)),
        ("coverage_95", losses.coverage(frame, ["net"], level=95)),
    ):
        assert found[metric] == pytest.approx(theirs["net"].mean(), rel=1e-9), metric
    assert found["smape"] == pytest.approx(200 * losses.smape(frame, ["net"])["net"].mean(), rel=1e-9)


def _ends() -> list[tuple[int, str, float]]:
    return [(80, "lo", 0.1), (80, "hi", 0.9), (95, "lo", 0.025), (95, "hi", 0.975)]


def test_scores_of_intervals_are_those_of_their_measures(
    result: Backtest, table: pd.DataFrame, fitted: Forecaster
) -> None:
    assert result.comparable().all()
    places = [list(result.levels).index(level) for level in DECILES]
    losses_of = weighted_quantile_loss(result.actual, result.quantiles["net"][..., places], np.array(DECILES))
    assert value(table, "net", "wql") == pytest.approx(float(losses_of.mean()), rel=1e-12)
    for share, inside in coverage(fitted, result, "net", intervals=(0.8, 0.95)).items():
        assert value(table, "net", f"coverage_{round(100 * share)}") == pytest.approx(inside, rel=1e-12)
    low, high = (result.quantiles["net"][..., list(result.levels).index(level)] for level in (0.1, 0.9))
    there = np.isfinite(result.actual)
    widths = interval_width(np.where(there, low, np.nan).reshape(10, -1), np.where(there, high, np.nan).reshape(10, -1))
    assert value(table, "net", "width_80") == pytest.approx(widths.mean(), rel=1e-12)
    assert "wql" not in overall(table)["seasonal_naive"]


def test_a_backtest_has_the_quantiles_that_the_predictor_gives_at_each_origin(
    result: Backtest, fitted: Forecaster
) -> None:
    predictor, levels = Predictor(fitted), (0.1, 0.5, 0.975)
    found = quantiles(fitted, result, "net", levels=levels)
    for row in (0, 1, 7):
        one = result.series[row]
        for window, left in enumerate(result.lefts):
            told = predictor.forecast(one.until(len(one) - left), HORIZON, levels=levels).quantiles
            expected = np.stack([told[level] for level in levels], axis=-1)
            np.testing.assert_allclose(found[row, window], expected, rtol=1e-5, atol=1e-6)


def test_relative_scores_are_ratios_of_means() -> None:
    result = backtest(
        panel_of(wave(40), 3 * wave(40, seed=1)),
        {"one": constant(1.5), "seasonal_naive": seasonal_naive(24), "naive2": constant(2.0)},
        horizon=3,
        windows=2,
        season=24,
    )
    found = overall(score_table(result))
    mine, naive, naive2 = found["one"], found["seasonal_naive"], found["naive2"]
    assert mine["skill_vs_snaive"] == pytest.approx(1 - mine["mase"] / naive["mase"])
    assert mine["owa"] == pytest.approx((mine["mase"] / naive["mase"] + mine["smape"] / naive["smape"]) / 2)
    assert mine["owa_naive2"] == pytest.approx((mine["mase"] / naive2["mase"] + mine["smape"] / naive2["smape"]) / 2)
    assert (naive["owa"], naive["skill_vs_snaive"], naive2["owa_naive2"]) == (1.0, 0.0, 1.0)


def test_a_naive_forecast_without_error_leaves_relative_scores_open() -> None:
    panel = panel_of(np.resize([1.0, 2.0], 20))
    asks = {"one": constant(1.0), "seasonal_naive": seasonal_naive(2)}
    found = overall(score_table(backtest(panel, asks, horizon=2, windows=1, season=1)))["one"]
    assert np.isnan(found["skill_vs_snaive"])
    assert np.isnan(found["owa"])
    assert found["mae"] == 0.5


def test_only_what_everybody_answered_is_scored_and_stand_ins_are_counted() -> None:
    panel = panel_of(wave(12), wave(12, seed=1))
    spy = Spy(("series_0", 10))
    result = backtest(panel, {"all": constant(1.0), "some": spy}, horizon=2, windows=2, season=1)
    found = overall(score_table(result))
    assert found["all"]["mae"] == pytest.approx(result.scores("all")["mae"])
    assert found["all"]["stand_ins"] == 0
    assert found["some"]["stand_ins"] == 1
    assert list(result.warnings["some"]) == ["No."]


def test_scores_survive_a_file(table: pd.DataFrame, tmp_path: Path) -> None:
    table.to_parquet(tmp_path / "scores.parquet", index=False)
    again = pd.read_parquet(tmp_path / "scores.parquet")
    assert list(again.columns) == ["forecaster", "metric", "group", "step", "value"]
    assert overall(again)["net"] == overall(table)["net"]
    table.to_csv(tmp_path / "scores.csv", index=False)
    written = pd.read_csv(tmp_path / "scores.csv")
    assert written["group"].isna().sum() == table["group"].isna().sum()
    assert written["step"].dropna().astype(int).tolist() == table["step"].dropna().tolist()


def test_a_group_by_what_is_not_there_is_refused(result: Backtest) -> None:
    with pytest.raises(CovariateUnknown, match=r"'colour'.*series 's0' has none"):
        score_table(result, by="colour")


def test_the_frame_has_the_quantiles_that_are_asked_for_beside_their_forecaster(result: Backtest) -> None:
    frame = result.frame(levels=(0.1, 0.975))
    expected = ["unique_id", "cutoff", "ds", "step", "y", "net", "net-0.1", "net-0.975", "seasonal_naive", "naive2"]
    assert list(frame.columns) == expected
    place = list(result.levels).index(0.975)
    np.testing.assert_array_equal(frame["net-0.975"], result.quantiles["net"][..., place].ravel())

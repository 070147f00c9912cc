"""The page and the table that end the demo."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest

from forecaster.evaluation.plots import FORECAST_COLOR
from forecaster.series import Forecast
from pipelines.demo.figures import DrawnForecast, plot_side_by_side
from pipelines.demo.page import DemoReport, TrainingSummary, render_demo_page, render_score_lines
from pipelines.demo.series_choice import RULE
from tests.factories import make_series

SCORES = {
    "forecaster": {"mase": 0.777, "rmsse": 0.7, "smape": 17.5, "mae": 120.25, "coverage_80": 0.81},
    "seasonal naive": {"mase": 0.921, "rmsse": 0.9, "smape": 21.0, "mae": 20.0},
    "last value": {"mase": math.nan, "rmsse": 0.9, "smape": 21.0, "mae": 24.0},
}


def draw(title: str, *, levels: tuple[float, ...] = ()) -> DrawnForecast:
    history = make_series(np.arange(1.0, 31.0))
    mean = np.array([31.0, 32.0])
    quantiles = {level: mean + level - 0.5 for level in levels}
    forecast = Forecast("a", pd.DatetimeIndex(history.future_timestamps(2)), mean, quantiles=quantiles)
    return DrawnForecast(title, history, forecast, np.array([30.0, 33.0]))


def make_report() -> DemoReport:
    figure = plot_side_by_side(
        [draw("T1", levels=(0.1, 0.9)), draw("T2", levels=(0.1, 0.9))], history_steps=10, title="Two", labels=("", "y")
    )
    return DemoReport(
        models=[TrainingSummary("hospital", "counts", "GRU of 32", "version 1; promote: <MASE> beats the other's")],
        scores=SCORES,
        num_series=767,
        hospital_figure=figure,
        sine_figure=figure,
        sine_text="classical 10.11, unrolled 0.85",
        commands={"mlflow ui --port 5000": "compares runs", "forecaster serve hospital": "serves the champion"},
    )


@pytest.fixture(scope="module")
def page() -> str:
    return render_demo_page(make_report())


def test_the_page_has_scores_rule_models_and_commands_and_loads_nothing(page: str) -> None:
    for text in (
        *("0.777", "0.921", "81 %", "120.2", "767 series", RULE, "classical 10.11, unrolled 0.85", "GRU of 32"),
        *("version 1; promote: &lt;MASE&gt;", "<code>mlflow ui --port 5000</code>", "prefers-color-scheme: dark"),
    ):
        assert text in page, text
    assert page.count("data:image/png;base64,") == 2
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "<script" not in page


def test_the_best_value_of_each_error_is_marked_also_if_it_is_not_ours(page: str) -> None:
    assert re.findall(r'class="number best">([^<]+)<', page) == ["0.777", "0.700", "17.500", "20.000"]


def test_the_table_of_the_terminal_has_a_line_for_each_forecaster() -> None:
    head, *lines = render_score_lines(SCORES)
    assert head.split() == ["MASE", "RMSSE", "sMAPE", "MAE", "in", "80", "%"]
    assert lines[0].split() == ["forecaster", "0.777", "0.700", "17.500", "120.2", "81", "%"]
    assert lines[2].split()[:3] == ["last", "value", "-"]
    assert len({len(line) for line in [head, *lines]}) == 1


def test_forecasts_are_drawn_side_by_side_with_one_legend() -> None:
    figure = plot_side_by_side(
        [draw("classical: RMSE 10.11"), draw("unrolled: RMSE 0.85")],
        history_steps=10,
        title="sine",
        labels=("t", "f(t)"),
        share_y=True,
    )
    left, right = figure.axes
    assert [axes.get_title(loc="left") for axes in (left, right)] == ["classical: RMSE 10.11", "unrolled: RMSE 0.85"]
    assert (left.get_xlabel(), left.get_ylabel(), right.get_ylabel()) == ("t", "f(t)", "")
    assert left.get_ylim() == right.get_ylim()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["history", "actuals", "forecast"]
    forecast_line = next(line for line in right.lines if line.get_color() == FORECAST_COLOR)
    assert [float(value) for value in forecast_line.get_ydata()] == [30, 31, 32]

"""The gate compares data and models by their grids: another name of a frequency is no other frequency."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.data.frames.panel import to_panel
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Forecast
from pipelines.promotion.evidence import count_steps_behind, count_steps_since
from tests.factories import make_fitted_model, make_spec

CASE = Path(__file__).parents[4] / "shared" / "cases" / "01_quarter_anchor"
NAMES = [
    ("QE-MAR", "QE-JUN", "2020-12-31", "2021-06-30", 2),
    ("QE-DEC", "QE-MAR", "2020-12-31", "2021-06-30", 2),
    ("QS-JAN", "3MS", "2020-10-01", "2021-07-01", 3),
    ("7D", "W-SUN", "2022-01-02", "2022-01-16", 2),
    ("24h", "D", "2022-01-02", "2022-01-03", 1),
    ("QS-JAN", "QS-FEB", "2020-10-01", "2021-02-01", None),
    ("W-MON", "W-SUN", "2022-01-03", "2022-01-09", None),
    ("D", "1", "2022-01-03", "2022-01-09", None),
]


def make_model(freq: str, cutoff: str) -> FittedModel:
    return replace(make_fitted_model(make_spec()), freq=freq, cutoff=pd.Timestamp(cutoff))


@pytest.mark.parametrize(("first", "second", "early", "late", "steps"), NAMES)
def test_steps_are_counted_between_data_whose_frequencies_have_different_names(
    first: str, second: str, early: str, late: str, steps: int | None
) -> None:
    assert count_steps_behind(make_model(first, early), make_model(second, late)) == steps
    assert count_steps_behind(make_model(second, early), make_model(first, late)) == steps


@pytest.mark.parametrize("freq", ["QE-MAR", "QE-JUN", "QE-DEC", "3ME"])
def test_a_model_of_an_earlier_version_forecasts_and_counts_the_steps_of_a_later_quarter(freq: str) -> None:
    model = make_model(freq, "2020-12-31")
    ds = pd.date_range("2008-06-30", periods=52, freq="QE")
    panel = to_panel(pd.DataFrame({"unique_id": "a", "ds": ds, "y": np.arange(52.0)}))
    assert count_steps_since(model, panel) == 1
    forecast = Predictor(model).forecast_batch(panel.series, 2)[0]
    assert isinstance(forecast, Forecast)
    assert list(forecast.ds) == list(pd.date_range("2021-06-30", periods=2, freq="QE"))


@pytest.mark.skipif(not CASE.is_dir(), reason="the folder of shared cases is absent")
def test_the_shared_case_has_one_frequency_a_quarter_and_a_year_later() -> None:
    panels = {name: to_panel(pd.read_csv(CASE / f"{name}.csv")) for name in ("now", "a_quarter_later", "a_year_later")}
    assert {panel.freq for panel in panels.values()} == {"QE-DEC"}
    model = make_model("QE-MAR", "2020-12-31")
    assert {name: count_steps_since(model, panel) for name, panel in panels.items()} == {
        "now": 0,
        "a_quarter_later": 1,
        "a_year_later": 4,
    }

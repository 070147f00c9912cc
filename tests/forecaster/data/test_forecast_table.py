"""The tables of forecasts, built by columns, are those of a frame per series."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from forecaster.data.forecast_table import build_forecast_table, build_table
from forecaster.series import Forecast

LEVELS = (0.1, 0.975)
DAYS = pd.date_range("2026-03-27", periods=4, unit="us")
TIMESTAMPS = {
    "shared": [DAYS, DAYS, DAYS],
    "of several lengths": [DAYS, DAYS[:2], DAYS[1:]],
    "numbers": [pd.RangeIndex(3, 7), pd.RangeIndex(1, 3), pd.Index([5])],
    "in one zone": [DAYS.tz_localize("Europe/Berlin"), DAYS[1:].tz_localize("Europe/Berlin")],
    "in several zones": [DAYS.tz_localize("Europe/Berlin"), DAYS.tz_localize("UTC")],
    "of several units": [DAYS, DAYS.as_unit("ns")],
}


@pytest.mark.parametrize("case", TIMESTAMPS)
def test_a_table_is_that_of_a_frame_per_series(case: str) -> None:
    rng = np.random.default_rng(0)
    forecasts = [
        Forecast(f"s{index}", ds, rng.normal(size=len(ds)), (), {level: rng.normal(size=len(ds)) for level in LEVELS})
        for index, ds in enumerate(TIMESTAMPS[case])
    ]
    expected = pd.concat(
        [
            pd.DataFrame(
                {"unique_id": forecast.id, "ds": forecast.ds, "mean": forecast.mean}
                | {f"{level:g}": values for level, values in forecast.quantiles.items()}
            )
            for forecast in forecasts
        ],
        ignore_index=True,
    )
    pd.testing.assert_frame_equal(build_forecast_table(forecasts, LEVELS), expected)
    names = {"mean": "forecaster", "0.1": "low", "0.975": "high"}
    pd.testing.assert_frame_equal(build_table(forecasts, {"low": 0.1, "high": 0.975}), expected.rename(columns=names))

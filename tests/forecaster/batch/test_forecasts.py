"""`forecast_table`: Arrow tables in, forecasts and rejects out, with one outcome per series."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from forecaster import Forecaster
from forecaster.batch import forecast_table
from forecaster.bundle.pretrained.base import base_predictor
from forecaster.prediction.predictor import Predictor

STEPS = 40


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return base_predictor("MS", horizon=6)


def make_frame(series: int = 6) -> pd.DataFrame:
    """Returns monthly series s0, s1, ... with a season."""
    ds = pd.date_range("2018-01-01", periods=STEPS, freq="MS")
    rng = np.random.default_rng(3)
    y = 50 + 10 * np.sin(np.arange(STEPS) * np.pi / 6) + rng.normal(size=(series, STEPS))
    ids = np.repeat([f"s{number}" for number in range(series)], STEPS)
    return pd.DataFrame({"unique_id": ids, "ds": np.tile(ds, series), "y": y.ravel()})


def test_a_table_has_the_forecasts_of_the_python_api(predictor: Predictor) -> None:
    frame = make_frame()
    result = forecast_table(predictor, pa.Table.from_pandas(frame), level=80, quantiles=[0.5])
    expected = Forecaster.pretrained().predict(frame, horizon=6, level=80, quantiles=[0.5])
    assert result.forecasts.column_names == list(expected)
    pd.testing.assert_frame_equal(result.forecasts.to_pandas(), expected, check_dtype=False)
    assert (result.rejects.num_rows, result.warnings.num_rows, result.repairs) == (0, 0, ())


def test_an_invalid_series_is_a_reject_and_does_not_change_the_others(predictor: Predictor) -> None:
    frame = make_frame()
    whole = forecast_table(predictor, frame, horizon=3).forecasts.to_pandas().set_index("unique_id")
    frame.loc[STEPS + 1, "ds"] = frame["ds"][STEPS]  # s1: two values at one time
    frame.loc[2 * STEPS : 3 * STEPS - 1, "y"] = np.nan  # s2
    frame = frame[~((frame["unique_id"] == "s4") & (frame.index % 2 == 1))]  # every other month
    frame = frame[~((frame["unique_id"] == "s5") & (frame.index < 6 * STEPS - 1))]  # one row
    missing = pd.DataFrame({"unique_id": [None], "ds": frame["ds"][:1], "y": [1.0]})
    result = forecast_table(predictor, pd.concat([frame, missing], ignore_index=True), horizon=3)
    rejects = dict(zip(*(result.rejects.column(name).to_pylist() for name in ("unique_id", "code")), strict=True))
    assert rejects == {
        None: "bad_id",
        "s1": "duplicate_stamp",
        "s2": "no_data",
        "s4": "irregular_stamps",
        "s5": "history_too_short",
    }
    kept = result.forecasts.to_pandas().set_index("unique_id")
    assert list(kept.index.unique()) == ["s0", "s3"]
    pd.testing.assert_frame_equal(kept, whole.loc[["s0", "s3"]])

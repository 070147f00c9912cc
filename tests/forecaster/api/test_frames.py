"""Every kind of frame gives the same forecasts, in a frame of its own library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from utilsforecast.evaluation import evaluate
from utilsforecast.losses import coverage, mae
from utilsforecast.plotting import plot_series

from forecaster import Forecaster
from forecaster.errors import MissingColumn
from tests.forecaster.api.conftest import HORIZON, make_frame

pytestmark = pytest.mark.filterwarnings("ignore:On the test windows:forecaster.api.ForecastWarning")


def with_dtypes(**dtypes: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.astype(dtypes)


def to_wide(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.pivot_table(index="ds", columns="unique_id", values="y")


PANDAS_FRAMES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "numpy types": lambda frame: frame,
    "nullable types": with_dtypes(unique_id="Int64", y="Float64"),
    "Arrow types": lambda frame: frame.convert_dtypes(dtype_backend="pyarrow"),
    "Arrow dates": with_dtypes(ds=pd.ArrowDtype(pa.date32())),
    "text ids": with_dtypes(unique_id="str"),
    "categorical ids": with_dtypes(unique_id="category"),
    "nanoseconds": with_dtypes(ds="datetime64[ns]"),
    "periods": lambda frame: frame.assign(ds=frame["ds"].dt.to_period("M")),
    "32-bit values": with_dtypes(y="float32"),
    "ids in the index": lambda frame: frame.set_index("unique_id"),
    "ids and timestamps in the index": lambda frame: frame.set_index(["unique_id", "ds"]),
}


@pytest.mark.parametrize("kind", PANDAS_FRAMES)
def test_pandas_frames_of_all_types_give_the_same_forecasts_in_their_types(
    kind: str, model: Forecaster, frame: pd.DataFrame
) -> None:
    given, expected = PANDAS_FRAMES[kind](frame), model.predict()
    result = model.predict(given)
    np.testing.assert_allclose(result["forecaster"], expected["forecaster"], rtol=1e-5)
    columns = given.reset_index() if "y" in given and "unique_id" not in given else given
    for name in {"unique_id", "ds"} & set(columns.columns):
        assert result[name].dtype == columns[name].dtype, name
    assert result["unique_id"].astype(str).tolist() == expected["unique_id"].astype(str).tolist()
    if kind != "periods":
        assert pd.DatetimeIndex(result["ds"]).equals(pd.DatetimeIndex(expected["ds"]))


def test_text_and_zones_are_read_as_timestamps(model: Forecaster, frame: pd.DataFrame) -> None:
    expected = model.predict()
    text = model.predict(frame.assign(ds=frame["ds"].dt.strftime("%Y-%m-%d")))
    assert text["ds"].equals(expected["ds"])
    zoned = frame.assign(ds=frame["ds"].dt.tz_localize("Europe/Berlin"))
    result = model.predict(zoned)
    assert str(result["ds"].dt.tz) == "Europe/Berlin"
    assert result["ds"].dt.tz_localize(None).equals(expected["ds"])
    np.testing.assert_array_equal(result["forecaster"], expected["forecaster"])


def test_frames_of_pyarrow_stay_frames_of_pyarrow(model: Forecaster, frame: pd.DataFrame) -> None:
    table = pa.Table.from_pandas(frame.astype({"unique_id": "str"}), preserve_index=False)
    result, expected = model.predict(table, level=80), model.predict(level=80)
    assert isinstance(result, pa.Table)
    assert result.schema.field("ds").type == table.schema.field("ds").type
    assert result.column("unique_id").to_pylist() == expected["unique_id"].astype(str).tolist()
    np.testing.assert_array_equal(result.column("forecaster-lo-80").to_numpy(), expected["forecaster-lo-80"])
    assert isinstance(model.cross_validation(table, 1, progress=False), pa.Table)


def test_frames_of_polars_stay_frames_of_polars(model: Forecaster, frame: pd.DataFrame) -> None:
    polars = pytest.importorskip("polars")
    given = polars.from_pandas(frame).with_columns(polars.col("ds").cast(polars.Date))
    expected, result = model.predict(level=80), model.predict(given, level=80)
    assert model.warnings.schema["warning"] == polars.String  # also without a row
    assert isinstance(result, polars.DataFrame)
    assert result.schema["ds"] == polars.Date
    assert result.schema["unique_id"] == given.schema["unique_id"]
    np.testing.assert_array_equal(result["forecaster-hi-80"].to_numpy(), expected["forecaster-hi-80"])
    actuals = polars.from_pandas(make_frame(steps=HORIZON, start="2020-01-01")).with_columns(
        polars.col("ds").cast(polars.Date)
    )
    merged = result.join(actuals, on=["unique_id", "ds"])
    assert len(merged) == len(result)
    scores = evaluate(merged.drop("forecaster-lo-80", "forecaster-hi-80"), metrics=[mae])
    assert scores["forecaster"].is_finite().all()
    zoned = given.with_columns(polars.col("ds").cast(polars.Datetime("us")).dt.replace_time_zone("Europe/Berlin"))
    assert model.predict(zoned).schema["ds"] == zoned.schema["ds"]
    with pytest.raises(Exception, match="Collect a lazy frame"):
        model.predict(given.lazy())


def test_a_series_may_have_ids_and_timestamps_in_its_index(model: Forecaster, frame: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(model.predict(frame.set_index(["unique_id", "ds"])["y"]), model.predict())


def test_one_series_needs_no_ids(model: Forecaster, frame: pd.DataFrame) -> None:
    expected = model.predict(frame[frame["unique_id"] == 2])["forecaster"]
    single = frame[frame["unique_id"] == 2].drop(columns="unique_id")
    series = single.set_index("ds")["y"]
    for given, name in (
        (single, "y"),
        (single.set_index("ds"), "y"),
        (single.set_index("ds").rename_axis("month"), "y"),
        (series, "y"),
        (series.rename("sales"), "sales"),
        (series.rename(None), "y"),
    ):
        result = model.predict(given)
        assert result["unique_id"].unique().tolist() == [name]
        np.testing.assert_array_equal(result["forecaster"], expected)


def test_a_wide_frame_has_one_series_in_each_column(model: Forecaster, frame: pd.DataFrame) -> None:
    expected, wide = model.predict(), to_wide(frame)
    for given in (wide, wide.reset_index(), wide.rename_axis("month")):
        pd.testing.assert_frame_equal(model.predict(given), expected)
    wide.loc[wide.index[:20], 3] = np.nan  # this series begins later
    later = model.predict(wide)
    np.testing.assert_array_equal(later["forecaster"][: 2 * HORIZON], expected["forecaster"][: 2 * HORIZON])
    assert len(later) == len(expected)
    with pytest.raises(MissingColumn, match="shop are not numbers"):
        model.predict(wide.reset_index().assign(shop="a"))
    with pytest.raises(MissingColumn, match="also covariates"):
        Forecaster(6, covariates=["price"]).fit(wide)


def test_other_column_names_are_arguments_and_names_of_the_results(model: Forecaster, frame: pd.DataFrame) -> None:
    renamed = Forecaster(spec=model.spec, id_col="shop", time_col="month", target_col="sales", accelerator="cpu")
    rows = frame.rename(columns={"unique_id": "shop", "ds": "month", "y": "sales"})
    renamed.fit(rows, progress=False)
    result = renamed.predict(level=80)
    assert list(result.columns[:4]) == ["shop", "month", "forecaster", "forecaster-lo-80"]
    np.testing.assert_array_equal(result["forecaster"], model.predict()["forecaster"])
    assert {"shop", "month", "cutoff", "sales"} <= set(renamed.cross_validation(n_windows=1, progress=False).columns)
    assert len(renamed.plot(forecast=result).axes) == 4


def test_the_functions_of_utilsforecast_read_the_results_unchanged(model: Forecaster, frame: pd.DataFrame) -> None:
    forecast = model.predict(level=[80, 95])
    assert plot_series(frame, forecast, level=[80, 95], max_insample_length=24) is not None
    validation = model.cross_validation(frame, n_windows=1, level=80, progress=False)
    scores = evaluate(validation, metrics=[mae, coverage], level=[80], agg_fn="mean")
    errors = (validation["forecaster"] - validation["y"]).abs()
    value = scores.loc[scores["metric"] == "mae", "forecaster"].mean()
    assert value == pytest.approx(errors.mean())

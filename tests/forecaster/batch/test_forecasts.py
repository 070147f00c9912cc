"""`forecast_table`: Arrow tables in, forecasts and rejects out, with one outcome per series."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import pytest

from forecaster import Forecaster
from forecaster.batch import forecast_table, reading
from forecaster.bundle.pretrained.base import base_predictor
from forecaster.data.frames.panel import to_frame
from forecaster.errors import HorizonOutOfRange, InputError, LevelOutOfRange, MissingColumn
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast, Panel
from tests.forecaster.prediction.test_covariates import make_model, make_series_with_covariates

CHECKOUT = Path(__file__).parents[3]
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


def test_a_series_has_one_forecast_in_any_part_of_the_table(predictor: Predictor) -> None:
    frame = make_frame()
    frame.loc[frame["unique_id"] == "s3", "ds"] += pd.Timedelta("1D")  # beside the grid of the model
    whole = forecast_table(predictor, frame, horizon=2)
    assert whole.rejects.column("code").to_pylist() == ["irregular_stamps"]
    parts = [forecast_table(predictor, part, horizon=2).forecasts for _, part in frame.groupby("unique_id")]
    assert pa.concat_tables(parts).equals(whole.forecasts)


def test_gaps_are_allowed_in_a_declared_frequency(predictor: Predictor) -> None:
    frame = make_frame(1).iloc[::2]
    assert forecast_table(predictor, frame).rejects.column("code").to_pylist() == ["irregular_stamps"]
    declared = forecast_table(predictor, frame, freq="MS")
    assert declared.forecasts.num_rows == 6
    assert declared.repairs[0].startswith("19 absent rows")


TABLES = {
    "a record batch": lambda frame: pa.RecordBatch.from_pandas(frame),
    "several chunks": lambda frame: pa.concat_tables([pa.table(frame[:70]), pa.table(frame[70:])]),
    "polars": lambda frame: pytest.importorskip("polars").from_pandas(frame),
    "dictionary": lambda frame: pa.table(frame.assign(unique_id=frame["unique_id"].astype("category"))),
    "numbers as ids": lambda frame: pa.table(frame.assign(unique_id=frame["unique_id"].str[1:].astype("int64"))),
    "dates": lambda frame: pa.table(frame).set_column(1, "ds", pa.table(frame).column("ds").cast(pa.date32())),
    "text": lambda frame: frame.assign(ds=frame["ds"].dt.strftime("%Y-%m-%d")),
    "a zone": lambda frame: frame.assign(ds=frame["ds"].dt.tz_localize("Europe/Berlin")),
}


@pytest.mark.parametrize("case", TABLES)
def test_results_have_the_ids_and_timestamps_of_the_table(predictor: Predictor, case: str) -> None:
    table = TABLES[case](make_frame(3))
    forecasts = forecast_table(predictor, table, horizon=2).forecasts
    expected = forecast_table(predictor, make_frame(3), horizon=2).forecasts
    assert forecasts.column("forecaster").equals(expected.column("forecaster"))
    if isinstance(table, pa.Table | pa.RecordBatch):
        id_type = table.schema.field("unique_id").type
        assert forecasts.schema.field("unique_id").type == (
            id_type.value_type if pa.types.is_dictionary(id_type) else id_type
        )
        assert forecasts.schema.field("ds").type == table.schema.field("ds").type
    zone = "Europe/Berlin" if case == "a zone" else None
    assert [str(value)[:10] for value in forecasts.column("ds").to_pylist()[:2]] == ["2021-05-01", "2021-06-01"]
    assert case not in ("a zone", "text") or forecasts.schema.field("ds").type == pa.timestamp("us", zone)


def test_a_table_without_rows_has_empty_tables_of_the_same_types(predictor: Predictor) -> None:
    table = pa.table(make_frame(2))
    whole, empty = (forecast_table(predictor, part, level=[80]) for part in (table, table.slice(0, 0)))
    assert (empty.forecasts.schema, empty.rejects.schema) == (whole.forecasts.schema, whole.rejects.schema)
    assert empty.forecasts.num_rows == empty.rejects.num_rows == 0


def test_covariates_and_static_features_may_be_tables_of_their_own() -> None:
    model = make_model("rollout", calendar=())
    panel = Panel([make_series_with_covariates(name=name, seed=seed) for seed, name in enumerate("abc")], "h")
    expected = Predictor(model).forecast_batch(panel.series, 4)
    frame = to_frame(panel)
    is_future = frame["y"].isna()
    future = frame[is_future & (frame["unique_id"] != "c")].drop(columns=["y", "region"])
    static = pd.DataFrame({"unique_id": ["z", "b", "a", "c"], "region": "north"})
    result = forecast_table(
        Predictor(model), frame[~is_future].drop(columns="region"), horizon=4, future=future, static=static
    )
    means = [outcome.mean for outcome in expected[:2] if isinstance(outcome, Forecast)]
    np.testing.assert_array_equal(result.forecasts.column("forecaster").to_numpy(), np.concatenate(means))
    assert result.rejects.select(["unique_id", "code"]).to_pylist() == [{"unique_id": "c", "code": "covariate_unknown"}]
    incomplete = forecast_table(Predictor(model), frame.drop(columns="region"), horizon=4, static=static[:2])
    assert incomplete.rejects.column("unique_id").to_pylist() == ["a", "c"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"table": 3},
            InputError,
            "an Arrow table, a record batch or a frame for `table`; found an object of type int",
        ),
        ({"table": make_frame(1).drop(columns="y")}, MissingColumn, "y not found"),
        ({"table": make_frame(1).drop(columns="unique_id")}, MissingColumn, "the column 'unique_id' in `table`"),
        ({"future": make_frame(1)}, InputError, "no `future`, because this model has no covariates"),
        (
            {"static": pd.DataFrame({"unique_id": ["a", 1]})},
            InputError,
            "one type in column 'unique_id' of `static`",
        ),
        ({"static": pd.concat([make_frame(1)[:2]])}, InputError, "one row for each series in `static`; found 2 rows"),
        ({"level": 0.8}, LevelOutOfRange, "in percent"),
        ({"horizon": 0}, HorizonOutOfRange, "at least 1 step"),
    ],
)
def test_arguments_that_concern_all_series_raise_an_error(
    predictor: Predictor, arguments: dict[str, Any], error: type[InputError], message: str
) -> None:
    with pytest.raises(error, match=message):
        forecast_table(predictor, **({"table": make_frame(1)} | arguments))


@pytest.mark.integration
def test_a_process_that_forecasts_a_table_imports_neither_torch_nor_the_python_api(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table(make_frame(2)), tmp_path / "data.parquet")
    program = (
        "import sys, pyarrow.parquet\n"
        "from forecaster.batch import forecast_table\n"
        "from forecaster.bundle.pretrained.base import base_predictor\n"
        f"table = pyarrow.parquet.read_table({str(tmp_path / 'data.parquet')!r})\n"
        "result = forecast_table(base_predictor('MS', horizon=3), table, level=80)\n"
        "assert result.forecasts.num_rows == 6\n"
        "print([name for name in ('torch', 'mlflow', 'matplotlib', 'forecaster.api') if name in sys.modules])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert completed.stdout.strip() == "[]"


def test_many_series_with_invalid_ones_are_read_in_parts(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_SERIES_AT_ONCE", 3)
    frame = make_frame(12)
    whole = forecast_table(predictor, frame, horizon=1).forecasts
    text = frame.assign(y=frame["y"].astype(str))
    invalid = {"s1": "duplicate_stamp", "s5": "not_a_number", "s10": "duplicate_stamp", "s11": "bad_stamp"}
    first = frame.drop_duplicates("unique_id").reset_index().set_index("unique_id")["index"]
    text["ds"] = text["ds"].astype(str)
    text.loc[first["s5"], "y"] = "1,5"
    text.loc[first["s11"], "ds"] = "31.01.2018"
    text.loc[[first["s1"] + 1, first["s10"] + 1], "ds"] = "2018-01-01"
    result = forecast_table(predictor, text.sample(frac=1.0, random_state=1), horizon=1)
    codes = dict(zip(*(result.rejects.column(name).to_pylist() for name in ("unique_id", "code")), strict=True))
    assert codes == invalid
    assert list(codes) == list(invalid)
    is_kept = pc.invert(pc.is_in(whole.column("unique_id"), value_set=pa.array(list(invalid))))
    assert result.forecasts.drop_columns("ds").equals(whole.filter(is_kept).drop_columns("ds"))


def test_rows_without_any_id_are_one_reject(predictor: Predictor) -> None:
    table = pa.table(make_frame(1)).set_column(0, "unique_id", pa.nulls(STEPS, pa.string()))
    result = forecast_table(predictor, table)
    assert (result.forecasts.num_rows, result.rejects.to_pylist()[0]["code"]) == (0, "bad_id")
